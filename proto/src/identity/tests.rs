//! Tests of certificates as identities and of the directory that keeps them.
//! Tests of their text forms stand beside these.

use std::fs;
use std::time::{Duration, SystemTime};

use super::testing::{NOW, TestAuthority};
use super::*;

const URI: &str = "spiffe://fedge.test/default/node/edge-1";

fn connection() -> Connection {
    Connection {
        trust_domain: "fedge.test".to_owned(),
        federation: "coordinator.test:7443".to_owned(),
        enrolment: "coordinator.test:7444".to_owned(),
        operators: "coordinator.test:7445".to_owned(),
    }
}

#[test]
fn a_certificate_has_exactly_one_spiffe_uri_or_is_refused() {
    let (authority, key) = (TestAuthority::new("a"), PrivateKey::generate().unwrap());
    let leaf = authority.leaf(&key, &[URI], &["edge.test", "127.0.0.1"], NOW);
    assert_eq!(from_certificate(&leaf).unwrap(), URI.parse().unwrap());
    assert_eq!(host_names(&leaf).unwrap(), ["edge.test".parse().unwrap(), "127.0.0.1".parse().unwrap()]);

    let refused: [(&[&str], &str); 4] = [
        (&[], "no SPIFFE URI"),
        (&[URI, URI], "2 URIs"),
        (&[URI, "https://example.org"], "2 URIs"),
        (&["https://example.org"], "does not begin with spiffe://"),
    ];
    for (uris, why) in refused {
        let error = from_certificate(&authority.leaf(&key, uris, &["edge.test"], NOW)).unwrap_err().to_string();
        assert!(error.contains(why), "{uris:?}: {error}");
    }
}

#[test]
fn no_cut_of_a_certificate_is_accepted() {
    let leaf = TestAuthority::new("a").leaf(&PrivateKey::generate().unwrap(), &[URI], &[], NOW);
    for cut in 0..leaf.len() {
        assert!(from_certificate(&leaf[..cut]).is_err(), "{cut} bytes were accepted");
    }
}

#[test]
fn an_identity_needs_the_key_of_its_certificate() {
    let (authority, key) = (TestAuthority::new("a"), PrivateKey::generate().unwrap());
    let leaf = authority.leaf(&key, &[URI], &[], NOW);
    let roots = vec![authority.certificate().clone()];
    let error = Identity::new(vec![leaf], PrivateKey::generate().unwrap(), roots).unwrap_err();
    assert_eq!(error, IdentityError::KeyMismatch(URI.parse().unwrap()));
}

#[test]
fn an_identity_is_due_at_half_of_its_life() {
    let identity = TestAuthority::new("a").identity_with(URI, &[], 0..24);
    let begin = identity.not_before();
    assert!(!identity.needs_renewal(begin + Duration::from_secs(12 * 3600 - 1)));
    assert!(identity.needs_renewal(begin + Duration::from_secs(12 * 3600)));
    assert!(!identity.expired(begin + Duration::from_secs(24 * 3600)));
    assert!(identity.expired(begin + Duration::from_secs(24 * 3600 + 1)));
}

#[test]
fn a_chain_is_verified_at_the_given_time_against_the_given_authority() {
    let (authority, other) = (TestAuthority::new("a"), TestAuthority::new("b"));
    let identity = authority.identity_with(URI, &[], -48..-24);
    let day_ago = SystemTime::now() - Duration::from_secs(30 * 3600);
    verify_chain(identity.chain(), identity.roots(), day_ago).unwrap();
    assert!(verify_chain(identity.chain(), identity.roots(), SystemTime::now()).is_err());
    let error = verify_chain(identity.chain(), &[other.certificate().clone()], day_ago).unwrap_err().to_string();
    assert!(error.contains("another CA"), "{error}");
}

#[test]
fn a_directory_gives_back_what_it_was_given_and_keeps_the_key_private() {
    let scratch = tempfile::tempdir().unwrap();
    let directory = IdentityDirectory::new(scratch.path().join("a/b"));
    assert!(!directory.exists());
    let identity = TestAuthority::new("a").identity_with(URI, &["edge.test"], NOW);
    directory.create(&identity, &connection()).unwrap();

    let loaded = directory.load().unwrap();
    assert_eq!(loaded.id(), identity.id());
    assert_eq!(loaded.chain(), identity.chain());
    assert_eq!(loaded.roots(), identity.roots());
    assert_eq!(loaded.key().public_key(), identity.key().public_key());
    assert_eq!(directory.connection().unwrap(), connection());
    assert!(!format!("{loaded:?}").contains("KEY"));
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = |name: &str| fs::metadata(directory.path().join(name)).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode("identity.pem"), mode(".")), (0o600, 0o700));
    }
    let left: Vec<_> = fs::read_dir(directory.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left.len(), 3, "{left:?}");
}

#[test]
fn a_directory_that_holds_an_identity_is_not_overwritten_by_create() {
    let scratch = tempfile::tempdir().unwrap();
    let (directory, authority) = (IdentityDirectory::new(scratch.path()), TestAuthority::new("a"));
    directory.create(&authority.identity(Role::Node, "first"), &connection()).unwrap();
    let error = directory.create(&authority.identity(Role::Node, "second"), &connection()).unwrap_err();
    assert!(matches!(error, IdentityError::Exists { .. }), "{error}");
    assert_eq!(directory.id().unwrap().id(), "first");
}

#[test]
fn a_key_to_join_with_outlives_a_crash_and_ends_with_the_identity() {
    let scratch = tempfile::tempdir().unwrap();
    let directory = IdentityDirectory::new(scratch.path());
    let key = directory.pending_key().unwrap();
    assert_eq!(directory.pending_key().unwrap().public_key(), key.public_key());
    directory.store(&TestAuthority::new("a").identity(Role::Node, "edge-1"), &connection()).unwrap();
    assert_ne!(directory.pending_key().unwrap().public_key(), key.public_key());
}

#[test]
fn an_unknown_key_in_connection_toml_is_an_error_that_names_it() {
    let scratch = tempfile::tempdir().unwrap();
    let directory = IdentityDirectory::new(scratch.path());
    directory.store_connection(&connection()).unwrap();
    let path = scratch.path().join("connection.toml");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, format!("{text}\nport = 1\n")).unwrap();
    let error = directory.connection().unwrap_err().to_string();
    assert!(error.contains("connection.toml") && error.contains("port"), "{error}");
}

#[test]
fn damaged_files_are_refused_by_name() {
    let scratch = tempfile::tempdir().unwrap();
    let directory = IdentityDirectory::new(scratch.path());
    directory.create(&TestAuthority::new("a").identity(Role::Node, "edge-1"), &connection()).unwrap();
    for name in ["identity.pem", "ca.pem"] {
        let path = scratch.path().join(name);
        let good = fs::read(&path).unwrap();
        for bad in [b"".to_vec(), b"not PEM".to_vec(), good[..good.len() / 3].to_vec(), vec![b'a'; 300_000]] {
            fs::write(&path, bad).unwrap();
            let error = directory.load().unwrap_err().to_string();
            assert!(error.contains(name), "{error}");
        }
        fs::remove_file(&path).unwrap();
        let error = directory.load().unwrap_err().to_string();
        assert!(error.contains(name) && error.contains("cannot read"), "{error}");
        fs::write(&path, good).unwrap();
    }
    directory.load().unwrap();
}

#[test]
fn a_place_that_can_t_be_a_directory_is_refused_by_name() {
    let scratch = tempfile::tempdir().unwrap();
    let file = scratch.path().join("file");
    fs::write(&file, b"").unwrap();
    let error = IdentityDirectory::new(file.join("identity")).prepare().unwrap_err().to_string();
    assert!(error.contains("cannot make the directory") && error.contains("file/identity"), "{error}");
}

#[test]
fn times_are_shown_as_people_read_them() {
    assert_eq!(display_time(UNIX_EPOCH + Duration::from_secs(1_795_442_709)), "2026-11-23 14:05:09 UTC");
}
