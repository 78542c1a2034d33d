//! The directory that keeps one identity: `identity.pem`, `ca.pem`, `connection.toml`.
//! What is written there is decided by enrolment and renewal.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde::{Deserialize, Serialize};

use super::certificate::CERTIFICATES_MAX;
use super::{Identity, IdentityError, PrivateKey, SpiffeId};

const IDENTITY_FILE: &str = "identity.pem";
const ROOTS_FILE: &str = "ca.pem";
const CONNECTION_FILE: &str = "connection.toml";
const PENDING_FILE: &str = "pending-key.pem";
const FILE_MAX: u64 = 256 * 1024;

/// Where an identity's coordinator is reached. `connection.toml`; unknown keys are errors.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Connection {
    /// The federation's name, as in SPIFFE ids.
    pub trust_domain: String,
    /// `host:port` for nodes.
    pub federation: String,
    /// `host:port` for enrolment and renewal.
    pub enrolment: String,
    /// `host:port` for operators.
    pub operators: String,
}

/// One identity's directory. Key and chain are in one file, so that no crash can part them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdentityDirectory {
    path: PathBuf,
}

impl IdentityDirectory {
    /// Names the directory; touches nothing.
    pub fn new(path: impl Into<PathBuf>) -> IdentityDirectory {
        IdentityDirectory { path: path.into() }
    }

    /// The directory's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// An identity has been written here.
    pub fn exists(&self) -> bool {
        self.path.join(IDENTITY_FILE).exists()
    }

    /// Reads the identity.
    ///
    /// # Errors
    /// Files that are missing, unreadable, malformed, or do not belong together.
    pub fn load(&self) -> Result<Identity, IdentityError> {
        let identity_path = self.path.join(IDENTITY_FILE);
        let pem = read(&identity_path)?;
        let content = |why: String| IdentityError::Content { path: identity_path.clone(), why };
        let key = PrivateKeyDer::from_pem_slice(&pem)
            .map_err(|_| content("it holds no private key in PEM; join again with --force".to_owned()))?;
        let key = PrivateKey::from_der(&key).map_err(|e| content(e.to_string()))?;
        let chain = certificates(&identity_path, &pem)?;
        let roots_path = self.path.join(ROOTS_FILE);
        let roots = certificates(&roots_path, &read(&roots_path)?)?;
        Identity::new(chain, key, roots).map_err(|e| content(e.to_string()))
    }

    /// When the identity's files were last written, and their sizes: another stamp, another identity. Missing files have none.
    pub fn stamp(&self) -> [Option<(SystemTime, u64)>; 2] {
        [IDENTITY_FILE, ROOTS_FILE].map(|name| {
            let metadata = std::fs::metadata(self.path.join(name)).ok()?;
            Some((metadata.modified().ok()?, metadata.len()))
        })
    }

    /// Reads where the coordinator is.
    ///
    /// # Errors
    /// A file that is missing, unreadable, malformed or has unknown keys.
    pub fn connection(&self) -> Result<Connection, IdentityError> {
        let path = self.path.join(CONNECTION_FILE);
        let bytes = read(&path)?;
        let content = |why: String| IdentityError::Content { path: path.clone(), why };
        let text = std::str::from_utf8(&bytes).map_err(|_| content("it is not UTF-8".to_owned()))?;
        toml::from_str(text).map_err(|e| content(e.to_string()))
    }

    /// Makes the directory (mode 0700) and proves that files can be written there; writes nothing that lasts.
    ///
    /// # Errors
    /// A directory that can't be made or written.
    pub fn prepare(&self) -> Result<(), IdentityError> {
        make_directory(&self.path)?;
        stage(&self.path, b"", 0o600).map(drop)
    }

    /// The key to join with, written before it is used: after a crash, or a reply that was lost, the same key may redeem its
    /// token again. [`IdentityDirectory::store`] removes it.
    ///
    /// # Errors
    /// A directory that can't be read or written.
    pub fn pending_key(&self) -> Result<PrivateKey, IdentityError> {
        let path = self.path.join(PENDING_FILE);
        if path.exists()
            && let Ok(der) = PrivateKeyDer::from_pem_slice(&read(&path)?)
            && let Ok(key) = PrivateKey::from_der(&der)
        {
            return Ok(key);
        }
        make_directory(&self.path)?;
        let key = PrivateKey::generate()?;
        replace(&path, pem("PRIVATE KEY", key.to_der().secret_der()).as_bytes(), 0o600)?;
        Ok(key)
    }

    /// Writes everything, the identity last: it exists entirely or not at all. Replaces what is there.
    ///
    /// # Errors
    /// Files that can't be written.
    pub fn store(&self, identity: &Identity, connection: &Connection) -> Result<(), IdentityError> {
        make_directory(&self.path)?;
        self.store_connection(connection)?;
        let roots: String = identity.roots().iter().map(|der| pem("CERTIFICATE", der)).collect();
        replace(&self.path.join(ROOTS_FILE), roots.as_bytes(), 0o644)?;
        self.replace_identity(identity)?;
        let pending = self.path.join(PENDING_FILE);
        match fs::remove_file(&pending) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(file_error("cannot remove", &pending, &e)),
            _ => Ok(()),
        }
    }

    /// Writes everything where no identity is yet.
    ///
    /// # Errors
    /// [`IdentityError::Exists`] when there is one; files that can't be written.
    pub fn create(&self, identity: &Identity, connection: &Connection) -> Result<(), IdentityError> {
        if self.exists() {
            let id = self.load().map_or_else(|_| identity.id().clone(), |held| held.id().clone());
            return Err(IdentityError::Exists { path: self.path.clone(), id });
        }
        self.store(identity, connection)
    }

    /// Replaces key and chain in one step; the roots stay.
    ///
    /// # Errors
    /// A file that can't be written; the old one is then intact.
    pub fn replace_identity(&self, identity: &Identity) -> Result<(), IdentityError> {
        let mut text = pem("PRIVATE KEY", identity.key().to_der().secret_der());
        for certificate in identity.chain() {
            text.push_str(&pem("CERTIFICATE", certificate));
        }
        replace(&self.path.join(IDENTITY_FILE), text.as_bytes(), 0o600)
    }

    /// Replaces `connection.toml`.
    ///
    /// # Errors
    /// A file that can't be written.
    pub fn store_connection(&self, connection: &Connection) -> Result<(), IdentityError> {
        let path = self.path.join(CONNECTION_FILE);
        let text = toml::to_string(connection)
            .map_err(|e| IdentityError::Content { path: path.clone(), why: e.to_string() })?;
        replace(&path, text.as_bytes(), 0o644)
    }

    /// Whose identity the directory holds.
    ///
    /// # Errors
    /// As [`IdentityDirectory::load`].
    pub fn id(&self) -> Result<SpiffeId, IdentityError> {
        self.load().map(|identity| identity.id().clone())
    }
}

/// DER as PEM text (RFC 7468).
pub fn pem(label: &str, der: &[u8]) -> String {
    let body = STANDARD.encode(der);
    let mut text = format!("-----BEGIN {label}-----\n");
    for (index, character) in body.chars().enumerate() {
        if index > 0 && index % 64 == 0 {
            text.push('\n');
        }
        text.push(character);
    }
    text.push_str(&format!("\n-----END {label}-----\n"));
    text
}

/// Writes a file in one step: staged beside it, synced, renamed, the directory synced. `mode` as in chmod.
///
/// # Errors
/// A file that can't be written; an old one is then intact.
pub fn replace(path: &Path, bytes: &[u8], mode: u32) -> Result<(), IdentityError> {
    let directory = path.parent().unwrap_or(Path::new("."));
    let failed = |e: std::io::Error| file_error("cannot write", path, &e);
    let staged = stage(directory, bytes, mode)?;
    staged.persist(path).map_err(|e| failed(e.error))?;
    File::open(directory).and_then(|directory| directory.sync_all()).map_err(failed)
}

fn stage(directory: &Path, bytes: &[u8], mode: u32) -> Result<tempfile::NamedTempFile, IdentityError> {
    let failed = |e: std::io::Error| file_error("cannot write in", directory, &e);
    let mut staged = tempfile::Builder::new()
        .prefix(".stage-")
        .make_in(directory, |path| {
            let mut options = OpenOptions::new();
            options.write(true).create_new(true);
            #[cfg(unix)]
            std::os::unix::fs::OpenOptionsExt::mode(&mut options, mode);
            options.open(path)
        })
        .map_err(failed)?;
    staged.write_all(bytes).and_then(|()| staged.as_file().sync_all()).map_err(failed)?;
    Ok(staged)
}

fn make_directory(path: &Path) -> Result<(), IdentityError> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(path).map_err(|e| file_error("cannot make the directory", path, &e))
}

fn read(path: &Path) -> Result<Vec<u8>, IdentityError> {
    let failed = |e: std::io::Error| file_error("cannot read", path, &e);
    let mut bytes = Vec::new();
    File::open(path).and_then(|file| file.take(FILE_MAX + 1).read_to_end(&mut bytes)).map_err(failed)?;
    if bytes.len() as u64 > FILE_MAX {
        let why = format!("it is larger than {FILE_MAX} bytes, so it is not what fedge wrote");
        return Err(IdentityError::Content { path: path.to_owned(), why });
    }
    Ok(bytes)
}

fn certificates(path: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    let content = |why: &str| IdentityError::Content { path: path.to_owned(), why: why.to_owned() };
    let found: Vec<_> = CertificateDer::pem_slice_iter(pem)
        .take(CERTIFICATES_MAX + 1)
        .collect::<Result<_, _>>()
        .map_err(|_| content("it is not PEM; join again with --force"))?;
    match found.len() {
        0 => Err(content("it holds no certificate; join again with --force")),
        1..=CERTIFICATES_MAX => Ok(found),
        _ => Err(content("it holds more than 8 certificates")),
    }
}

fn file_error(action: &'static str, path: &Path, error: &std::io::Error) -> IdentityError {
    use std::io::ErrorKind;
    let advice = match error.kind() {
        ErrorKind::NotFound => "; is this the directory of an identity? `fedge node join` makes one",
        ErrorKind::PermissionDenied => "; give this user the right to it, or choose another directory with --dir",
        ErrorKind::ReadOnlyFilesystem => "; choose a directory on a writable file system with --dir",
        ErrorKind::StorageFull => "; free some space",
        _ => "",
    };
    IdentityError::File { action, path: path.to_owned(), why: format!("{error}{advice}") }
}
