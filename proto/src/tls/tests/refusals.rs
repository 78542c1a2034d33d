//! Every refused identity, with the sentence that its owner reads.
//! What connects is tested in `connections`.

use rustls::sign::{CertifiedKey, SingleCertAndKey};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tonic::Code;

use super::*;
use crate::identity::testing::NOW;
use crate::identity::{PrivateKey, public_key_digest};

fn assert_says(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "`{part}` is missing in: {text}");
    }
}

async fn node(authority: &TestAuthority) -> TestServer {
    serve(&authority.identity(Role::Node, "edge-1"), ClientAuth::Required).await
}

#[tokio::test]
async fn no_certificate_is_refused() {
    let authority = TestAuthority::new("a");
    let server = node(&authority).await;
    let trust = Trust::of(&authority.identity(Role::Client, "camera"));
    let error = connect_without_certificate(&server.address, trust, Role::Node).await.unwrap_err();
    assert!(matches!(error, ConnectError::Refused { .. }), "{error:?}");
    assert_says(&error.to_string(), &[&server.address, "certificate required", "joined with a token"]);
}

#[tokio::test]
async fn a_client_of_another_ca_is_refused_also_when_both_cas_have_one_name() {
    let ours = TestAuthority::new("a");
    let server = node(&ours).await;
    for name in ["a", "b"] {
        let other = TestAuthority::new(name);
        // It trusts our CA, so that only the server can refuse.
        let key = PrivateKey::generate().unwrap();
        let leaf = other.leaf(&key, &["spiffe://fedge.test/default/client/camera"], &[], NOW);
        let client = Identity::new(vec![leaf], key, vec![ours.certificate().clone()]).unwrap();
        assert_says(&refusal(&server, client).await, &["unknown CA", "client/camera", "join again with a token"]);
    }
}

#[tokio::test]
async fn a_server_of_another_ca_is_refused_also_when_both_cas_have_one_name() {
    let server = node(&TestAuthority::new("a")).await;
    for name in ["a", "b"] {
        let client = TestAuthority::new(name).identity(Role::Client, "camera");
        assert_says(&refusal(&server, client).await, &["issued by another CA", "join again"]);
    }
}

#[tokio::test]
async fn an_expired_client_certificate_is_refused() {
    let authority = TestAuthority::new("a");
    let server = node(&authority).await;
    let client = authority.identity_with("spiffe://fedge.test/default/client/camera", &[], -48..-24);
    assert_says(
        &refusal(&server, client).await,
        &["certificate expired", "client/camera ended at 20", "renew it within 30 days"],
    );
}

#[tokio::test]
async fn an_expired_server_certificate_is_refused() {
    let authority = TestAuthority::new("a");
    let old = authority.identity_with("spiffe://fedge.test/default/node/edge-1", &["127.0.0.1"], -48..-24);
    let server = serve(&old, ClientAuth::Required).await;
    assert_says(&refusal(&server, authority.identity(Role::Client, "camera")).await, &["expired at 20", "must renew"]);
}

#[tokio::test]
async fn a_server_certificate_that_is_not_yet_valid_is_refused() {
    let authority = TestAuthority::new("a");
    let early = authority.identity_with("spiffe://fedge.test/default/node/edge-1", &["127.0.0.1"], 2..4);
    let server = serve(&early, ClientAuth::Required).await;
    assert_says(&refusal(&server, authority.identity(Role::Client, "camera")).await, &["valid only from 20", "clocks"]);
}

#[tokio::test]
async fn a_server_of_the_wrong_role_is_refused() {
    let authority = TestAuthority::new("a");
    let server = node(&authority).await;
    let client = shared(authority.identity(Role::Node, "edge-2"));
    let error = connect(&server.address, &client, Role::Coordinator).await.unwrap_err().to_string();
    assert_says(&error, &[&server.address, "presented the certificate of a node", "expected a coordinator"]);
}

#[tokio::test]
async fn a_client_of_the_wrong_role_is_refused() {
    let authority = TestAuthority::new("a");
    let server = node(&authority).await;
    let client = shared(authority.identity(Role::Node, "edge-2"));
    let channel = connect(&server.address, &client, Role::Node).await.unwrap();
    let status = call(channel).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);
    assert_says(
        status.message(),
        &["a node may not call /fedge.feedback.v1.Feedback/Label", "an operator or a client"],
    );
}

#[tokio::test]
async fn a_server_without_the_dialled_name_is_refused_with_the_names_that_it_has() {
    let authority = TestAuthority::new("a");
    let named = authority.identity_with("spiffe://fedge.test/default/node/edge-1", &["edge-1.test", "192.0.2.7"], NOW);
    let server = serve(&named, ClientAuth::Required).await;
    let error = refusal(&server, authority.identity(Role::Client, "camera")).await;
    assert_says(
        &error,
        &["not valid for name 127.0.0.1", "[edge-1.test, 192.0.2.7]", "mint the token with --dns-name 127.0.0.1"],
    );
}

#[tokio::test]
async fn another_trust_domain_of_the_same_ca_is_refused_both_ways() {
    let authority = TestAuthority::new("a");
    let foreign = authority.identity_with("spiffe://other.test/default/node/edge-9", &["127.0.0.1"], NOW);
    let server = node(&authority).await;
    let key = PrivateKey::generate().unwrap();
    let leaf = authority.leaf(&key, &["spiffe://other.test/default/client/camera"], &[], NOW);
    assert_refused_by_server(&server, &authority, leaf, &key).await;

    let server = serve(&foreign, ClientAuth::Required).await;
    let error = refusal(&server, authority.identity(Role::Client, "camera")).await;
    assert_says(&error, &["spiffe://other.test/default/node/edge-9", "expected one of the trust domain fedge.test"]);
}

#[tokio::test]
async fn a_client_certificate_without_exactly_one_spiffe_uri_is_refused() {
    let authority = TestAuthority::new("a");
    let server = node(&authority).await;
    let uri = "spiffe://fedge.test/default/client/camera";
    let cases: [&[&str]; 3] = [&[], &[uri, "spiffe://fedge.test/default/operator/root"], &["https://example.org"]];
    for uris in cases {
        let key = PrivateKey::generate().unwrap();
        let leaf = authority.leaf(&key, uris, &["camera.test"], NOW);
        assert_refused_by_server(&server, &authority, leaf, &key).await;
    }
}

/// Shows this certificate, which no [`Identity`] would hold, and expects the alert for it.
async fn assert_refused_by_server(
    server: &TestServer,
    authority: &TestAuthority,
    leaf: rustls_pki_types::CertificateDer<'static>,
    key: &PrivateKey,
) {
    let good = authority.identity(Role::Client, "camera");
    let mut config = client_config(Some(&good), Trust::of(&good), Role::Node).unwrap();
    let signing = provider().key_provider.load_private_key(key.to_der()).unwrap();
    config.client_auth_cert_resolver = Arc::new(SingleCertAndKey::from(CertifiedKey::new(vec![leaf], signing)));
    let mut stream = handshake(&server.address, config).await.unwrap();
    let error = stream.read(&mut [0; 64]).await.unwrap_err();
    let text = trouble::explain(&server.address, &error, Some(&good)).to_string();
    assert_says(&text, &["refused the connection", "not an identity of the server's federation"]);
}

#[tokio::test]
async fn a_join_token_s_pin_accepts_its_ca_and_refuses_every_other() {
    let authority = TestAuthority::new("a");
    let coordinator = authority.identity(Role::Coordinator, "c");
    let server = serve(&coordinator, ClientAuth::None).await;
    let pin = |authority: &TestAuthority| Trust::PinnedAuthority {
        public_key_sha256: public_key_digest(authority.certificate()).unwrap(),
    };
    connect_without_certificate(&server.address, pin(&authority), Role::Coordinator).await.unwrap();
    let other = pin(&TestAuthority::new("a"));
    let error = connect_without_certificate(&server.address, other, Role::Coordinator).await.unwrap_err().to_string();
    assert_says(&error, &["another CA than the one in the join token", "intercepted"]);

    let node = serve(&authority.identity(Role::Node, "edge-1"), ClientAuth::None).await;
    let error =
        connect_without_certificate(&node.address, pin(&authority), Role::Coordinator).await.unwrap_err().to_string();
    assert_says(&error, &["presented the certificate of a node", "expected a coordinator"]);
}

#[tokio::test]
async fn a_server_that_sends_the_pinned_ca_beside_a_leaf_of_its_own_is_refused() {
    let (authority, attacker) = (TestAuthority::new("a"), TestAuthority::new("a"));
    let key = PrivateKey::generate().unwrap();
    let leaf = attacker.leaf(&key, &["spiffe://fedge.test/default/coordinator/c"], &["127.0.0.1"], NOW);
    let forged = Identity::new(vec![leaf], key, vec![authority.certificate().clone()]).unwrap();
    let server = serve(&forged, ClientAuth::None).await;
    let pin = Trust::PinnedAuthority { public_key_sha256: public_key_digest(authority.certificate()).unwrap() };
    let error = connect_without_certificate(&server.address, pin, Role::Coordinator).await.unwrap_err().to_string();
    assert_says(&error, &["intercepted"]);
}

#[tokio::test]
async fn a_tls_12_client_is_refused_with_the_alert_protocol_version() {
    let server = node(&TestAuthority::new("a")).await;
    // ClientHello of TLS 1.2: version, random, no session, one cipher, no compression, signature_algorithms and groups.
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    body.extend([0, 0, 2, 0xc0, 0x2b, 1, 0]);
    let extensions = [
        0, 10, 0, 4, 0, 2, 0, 23, // supported_groups: P-256
        0, 11, 0, 2, 1, 0, // ec_point_formats: uncompressed
        0, 13, 0, 4, 0, 2, 4, 3, // signature_algorithms: ecdsa_secp256r1_sha256
    ];
    body.extend([0, u8::try_from(extensions.len()).unwrap()]);
    body.extend(extensions);
    let length = u8::try_from(body.len()).unwrap();
    let mut record = vec![22, 3, 1, 0, length + 4, 1, 0, 0, length];
    record.extend(body);

    let mut stream = TcpStream::connect(&server.address).await.unwrap();
    stream.write_all(&record).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    assert_eq!(answer, [21, 3, 3, 0, 2, 2, 70], "a fatal alert protocol_version");
}

#[tokio::test]
async fn a_server_that_says_nothing_or_no_tls_is_named() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let client = shared(TestAuthority::new("a").identity(Role::Client, "camera"));
    let answer = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(b"SSH-2.0-server\r\n").await.unwrap();
        stream.shutdown().await.unwrap();
    });
    let error = connect(&address, &client, Role::Node).await.unwrap_err().to_string();
    assert_says(&error, &["no connection with", &address, "does not speak TLS"]);
    answer.await.unwrap();

    // The listener is gone.
    let error = connect(&address, &client, Role::Node).await.unwrap_err().to_string();
    assert_says(&error, &["cannot reach", &address, "is it running"]);
}

#[tokio::test]
async fn a_lazy_channel_says_the_same_sentence_in_its_status() {
    let authority = TestAuthority::new("a");
    let server = node(&authority).await;
    let client = shared(authority.identity(Role::Node, "edge-2"));
    let channel = connect_lazy(&server.address, &client, Role::Coordinator).unwrap();
    let status = call(channel).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert_says(status.message(), &["presented the certificate of a node", "expected a coordinator"]);
}

#[test]
fn an_address_is_host_and_port() {
    for good in ["localhost:7443", "127.0.0.1:1", "[::1]:65535", "coordinator.example.org:7443"] {
        check_address(good).unwrap();
    }
    for bad in [
        "",
        "localhost",
        "localhost:",
        ":7443",
        "localhost:0",
        "localhost:70000",
        "https://localhost:1",
        "a b:1",
        "u@h:1",
    ] {
        let error = check_address(bad).unwrap_err().to_string();
        assert_says(&error, &["is not an address", "give host:port"]);
    }
}
