//! Tests of the authority: what it writes, what it certifies, what it refuses.
//! Its use over the wire is tested where nodes and coordinators meet, in the crate `tests`.

use std::fs;

use fedge_proto::identity::{certificate_facts, verify_chain};
use rcgen::KeyPair;

use super::*;

fn node() -> Subject {
    let host_names = vec!["edge-1.test".parse().unwrap(), "192.0.2.7".parse().unwrap()];
    Subject { role: Role::Node, id: "edge-1".to_owned(), host_names }
}

fn made(now: SystemTime) -> (Authority, tempfile::TempDir) {
    let scratch = tempfile::tempdir().unwrap();
    (Authority::create(scratch.path(), "fedge.test", now).unwrap(), scratch)
}

#[test]
fn an_authority_is_loaded_as_it_was_made_and_its_key_is_private() {
    let (made, scratch) = made(SystemTime::now());
    let loaded = Authority::load(scratch.path()).unwrap();
    assert_eq!(loaded.trust_domain(), "fedge.test");
    assert_eq!(loaded.certificate(), made.certificate());
    assert_eq!(loaded.public_key_sha256(), made.public_key_sha256());
    let (identity, _) = loaded.issue_identity(&node(), LEAF_LIFETIME, SystemTime::now()).unwrap();
    verify_chain(identity.chain(), std::slice::from_ref(made.certificate()), SystemTime::now()).unwrap();
    assert!(!format!("{loaded:?}").contains("key"), "{loaded:?}");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = fs::metadata(scratch.path().join("ca-key.pem")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}

#[test]
fn a_second_authority_is_not_made_over_the_first() {
    let (_, scratch) = made(SystemTime::now());
    let before = fs::read(scratch.path().join("ca-key.pem")).unwrap();
    let error = Authority::create(scratch.path(), "fedge.test", SystemTime::now()).unwrap_err();
    assert!(matches!(error, AuthorityError::Exists(_)), "{error}");
    assert_eq!(fs::read(scratch.path().join("ca-key.pem")).unwrap(), before);
}

#[test]
fn a_leaf_has_the_subject_s_names_a_day_of_life_and_a_random_serial() {
    let now = SystemTime::now();
    let (authority, _scratch) = made(now);
    let key = PrivateKey::generate().unwrap();
    let request = key.certificate_signing_request().unwrap();
    let first = authority.issue(&request, &node(), LEAF_LIFETIME, now).unwrap();
    let facts = certificate_facts(&first.certificate).unwrap();
    assert_eq!(facts.id.to_string(), "spiffe://fedge.test/default/node/edge-1");
    assert_eq!(facts.host_names, node().host_names);
    assert_eq!(facts.public_key, key.public_key());
    let life = facts.not_after.duration_since(facts.not_before).unwrap();
    assert_eq!(life, LEAF_LIFETIME + BACKDATED);
    assert!(facts.not_before < now && now < facts.not_after);
    let second = authority.issue(&request, &node(), LEAF_LIFETIME, now).unwrap();
    assert_eq!(first.serial.len(), 32);
    assert_ne!(first.serial, second.serial);
}

#[test]
fn names_and_powers_in_a_request_are_ignored() {
    let now = SystemTime::now();
    let (authority, _scratch) = made(now);
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec!["evil.test".to_owned()]).unwrap();
    let uri = "spiffe://fedge.test/default/operator/root";
    params.subject_alt_names.push(SanType::URI(uri.try_into().unwrap()));
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let request = params.serialize_request(&key).unwrap();
    let issued = authority.issue(request.der(), &node(), LEAF_LIFETIME, now).unwrap();
    let facts = certificate_facts(&issued.certificate).unwrap();
    assert_eq!(facts.id.to_string(), "spiffe://fedge.test/default/node/edge-1");
    assert_eq!(facts.host_names, node().host_names);
    assert!(identity::authority_facts(&issued.certificate).is_err(), "the leaf is a CA");
}

#[test]
fn a_leaf_can_t_issue_certificates() {
    let now = SystemTime::now();
    let (authority, _scratch) = made(now);
    let (leaf, _) = authority.issue_identity(&node(), LEAF_LIFETIME, now).unwrap();
    let victim = PrivateKey::generate().unwrap();
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::URI("spiffe://fedge.test/default/operator/root".try_into().unwrap())];
    let issuer = Issuer::from_ca_cert_der(&leaf.chain()[0], leaf.key().signing_key()).unwrap();
    let forged = params.signed_by(victim.signing_key(), &issuer).unwrap().der().clone();
    let chain = [forged, leaf.chain()[0].clone()];
    assert!(verify_chain(&chain, std::slice::from_ref(authority.certificate()), now).is_err());
}

#[test]
fn a_leaf_never_outlives_its_authority_and_an_expired_authority_issues_none() {
    let now = SystemTime::now();
    let (authority, _scratch) = made(now - ROOT_LIFETIME + Duration::from_secs(3600));
    let (leaf, _) = authority.issue_identity(&node(), LEAF_LIFETIME, now).unwrap();
    assert!(leaf.not_after() <= now + Duration::from_secs(3600));
    let error = authority.issue_identity(&node(), LEAF_LIFETIME, now + Duration::from_secs(3601)).unwrap_err();
    assert!(matches!(error, AuthorityError::Expired(_)), "{error}");
}

#[test]
fn a_damaged_or_mixed_up_authority_is_refused_by_file() {
    let (_, scratch) = made(SystemTime::now());
    let (_, other) = made(SystemTime::now());
    for name in ["ca.pem", "ca-key.pem"] {
        let path = scratch.path().join(name);
        let good = fs::read(&path).unwrap();
        for bad in [b"".to_vec(), good[..good.len() / 2].to_vec()] {
            fs::write(&path, bad).unwrap();
            assert!(Authority::load(scratch.path()).unwrap_err().to_string().contains(name));
        }
        fs::copy(other.path().join(name), &path).unwrap();
        let error = Authority::load(scratch.path()).unwrap_err().to_string();
        assert!(error.contains("not that of ca-key.pem"), "{error}");
        fs::remove_file(&path).unwrap();
        assert!(Authority::load(scratch.path()).unwrap_err().to_string().contains("cannot read"));
        fs::write(&path, good).unwrap();
    }
    let leaf =
        Authority::load(scratch.path()).unwrap().issue_identity(&node(), LEAF_LIFETIME, SystemTime::now()).unwrap().0;
    fs::write(scratch.path().join("ca.pem"), identity::pem("CERTIFICATE", &leaf.chain()[0])).unwrap();
    assert!(Authority::load(scratch.path()).unwrap_err().to_string().contains("not a CA certificate"));
}

#[test]
fn names_that_no_identity_has_are_refused() {
    let now = SystemTime::now();
    let (authority, scratch) = made(now);
    for id in ["", "Edge", "a/b", "a b", "..", &"a".repeat(65)] {
        let subject = Subject { role: Role::Node, id: id.to_owned(), host_names: Vec::new() };
        assert!(authority.issue_identity(&subject, LEAF_LIFETIME, now).is_err(), "{id:?} was accepted");
    }
    let directory = scratch.path().join("other");
    assert!(Authority::create(&directory, "Fedge Test", now).is_err());
    assert!(!directory.exists());
}
