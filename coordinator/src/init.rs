//! `fedge coordinator init`: a folder with the CA, the server's and the operator's certificates, and the configuration.
//! Issuing certificates lives in `registry`.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use fedge_proto::identity::{Connection, HostName, IdentityDirectory, IdentityError, Role};

use crate::config::{Config, ConfigError, FILE_NAME};
use crate::registry::authority::{Authority, AuthorityError, Issued, LEAF_LIFETIME, Subject};
use crate::registry::certificates;
use crate::store::{Store, StoreError};

/// Life of the first operator's certificate: people come back after weeks, and renew when they do.
pub const OPERATOR_LIFE: Duration = Duration::from_secs(90 * 24 * 3600);

/// Why a coordinator's folder could not be made or used.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// There is one already.
    #[error("{} holds a coordinator already; give another --dir, or run it with `fedge coordinator run`", .0.display())]
    Exists(PathBuf),
    /// Configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Certificates.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// Identities.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// Files and database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The registry's tables.
    #[error("recording a certificate: {0}")]
    Database(#[from] sqlx::Error),
}

/// The folder of the CA.
pub fn authority_folder(folder: &Path) -> PathBuf {
    folder.join("ca")
}

/// The identity directory of the server itself.
pub fn server_identity(folder: &Path) -> IdentityDirectory {
    IdentityDirectory::new(folder.join("identity"))
}

/// The identity directory of the first operator.
pub fn operator_identity(folder: &Path) -> IdentityDirectory {
    IdentityDirectory::new(folder.join("operator"))
}

/// The folder of the database and the models.
pub fn store_folder(folder: &Path) -> PathBuf {
    folder.join("store")
}

/// Makes a coordinator's folder.
///
/// # Errors
/// [`InitError`]; an existing coordinator is never touched.
pub async fn init(folder: &Path, trust_domain: &str, config: &Config) -> Result<(), InitError> {
    let path = folder.join(FILE_NAME);
    if path.exists() {
        return Err(InitError::Exists(folder.to_owned()));
    }
    config.check(&path)?;
    let file = |what, path: &Path| {
        let path = path.to_owned();
        move |source| StoreError::File { what, path, source }
    };
    std::fs::create_dir_all(folder).map_err(file("cannot create the folder", folder))?;
    let now = SystemTime::now();
    let authority = Authority::create(&authority_folder(folder), trust_domain, now)?;
    let store = Store::open(&store_folder(folder)).await?;
    let connection = connection(&authority, config);
    let operator = Subject { role: Role::Operator, id: "operator".into(), host_names: vec![] };
    for (directory, subject, life) in [
        (server_identity(folder), server_subject(config)?, LEAF_LIFETIME),
        (operator_identity(folder), operator, OPERATOR_LIFE),
    ] {
        let (identity, issued) = authority.issue_identity(&subject, life, now)?;
        record(&store, &issued, now).await?;
        directory.create(&identity, &connection)?;
    }
    // The configuration comes last: where it is, everything is.
    std::fs::write(&path, config.commented()).map_err(file("cannot write", &path))?;
    Ok(())
}

/// Where identities of this coordinator reach it.
pub fn connection(authority: &Authority, config: &Config) -> Connection {
    Connection {
        trust_domain: authority.trust_domain().to_owned(),
        federation: config.advertise.federation.clone(),
        enrolment: config.advertise.enrolment.clone(),
        operators: config.advertise.operators.clone(),
    }
}

/// Whom the server's own certificate is for.
///
/// # Errors
/// A name that can't stand in a certificate.
pub fn server_subject(config: &Config) -> Result<Subject, IdentityError> {
    let host_names = config.certificate.names.iter().map(|n| n.parse()).collect::<Result<Vec<HostName>, _>>()?;
    Ok(Subject { role: Role::Coordinator, id: "coordinator".into(), host_names })
}

/// Remembers a certificate that this process issued for itself.
///
/// # Errors
/// The database.
pub async fn record(store: &Store, issued: &Issued, now: SystemTime) -> Result<(), sqlx::Error> {
    certificates::record(store.pool(), issued, None, now).await.map(|_| ())
}
