//! Joining and renewal: the node's client against the coordinator's service, over real TLS.
//! What either does alone is tested in its own room.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use fedge_coordinator::registry::authority::{Authority, LEAF_LIFETIME, Subject};
use fedge_coordinator::registry::certificates;
use fedge_coordinator::registry::enrolment::EnrolmentService;
use fedge_coordinator::registry::tokens;
use fedge_coordinator::store::Store;
use fedge_node::federation::enrol::{EnrolError, Enrolled, enrol};
use fedge_node::federation::renewal::{Renewal, keep_renewed, renew, renew_if_due};
use fedge_proto::authorization::{AnonymousCallers, AuthorizationLayer};
use fedge_proto::enrolment::Addresses;
use fedge_proto::identity::{
    Connection, IdentityDirectory, IdentityError, JoinToken, Role, SharedIdentity, verify_chain,
};
use fedge_proto::tls::{ClientAuth, ConnectError, Limits, ReloadableServerConfig, incoming, server_config};
use tokio::net::TcpListener;
use tonic::Code;
use tonic::transport::Server;

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);

/// The enrolment port of a coordinator whose authority was made 60 days ago.
struct Coordinator {
    authority: Arc<Authority>,
    store: Store,
    address: String,
    now: SystemTime,
    folder: tempfile::TempDir,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Coordinator {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Coordinator {
    async fn start() -> Coordinator {
        let now = SystemTime::now();
        let folder = tempfile::tempdir().expect("temporary folder");
        let authority = Authority::create(&folder.path().join("ca"), "fedge.test", now - 60 * DAY).expect("authority");
        let authority = Arc::new(authority);
        let store = Store::open(&folder.path().join("store")).await.expect("store");
        let names = vec!["127.0.0.1".parse().expect("address")];
        let subject = Subject { role: Role::Coordinator, id: "coordinator".to_owned(), host_names: names };
        let (identity, _) = authority.issue_identity(&subject, LEAF_LIFETIME, now).expect("server identity");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("port");
        let address = listener.local_addr().expect("address").to_string();
        let addresses = Addresses {
            federation: "127.0.0.1:1".to_owned(),
            enrolment: address.clone(),
            operators: "127.0.0.1:3".to_owned(),
        };
        let service = EnrolmentService::server_with_clock(
            Arc::clone(&authority),
            store.pool().clone(),
            addresses,
            Arc::new(move || now),
        );
        let config = ReloadableServerConfig::new(server_config(&identity, ClientAuth::None).expect("TLS"));
        let connections = incoming(listener, config, Limits::default());
        let task = tokio::spawn(async move {
            let rules = AuthorizationLayer::new(AnonymousCallers::EnrolmentOnly);
            let server = Server::builder().layer(rules).add_service(service);
            server.serve_with_incoming(connections).await.expect("server");
        });
        Coordinator { authority, store, address, now, folder, task }
    }

    async fn token(&self, role: Role, minted: SystemTime) -> String {
        let names = vec!["edge-1.test".parse().expect("name"), "192.0.2.7".parse().expect("address")];
        let subject = Subject { role, id: "edge-1".to_owned(), host_names: names };
        let token = tokens::mint(self.store.pool(), &self.authority, &subject, HOUR, minted).await;
        token.expect("token").to_string()
    }

    fn directory(&self, name: &str) -> IdentityDirectory {
        IdentityDirectory::new(self.folder.path().join(name))
    }

    async fn enrol(&self, token: &str, directory: &IdentityDirectory) -> Result<Enrolled, EnrolError> {
        enrol(token, &self.address, directory, None, false, self.now).await
    }

    /// A directory whose identity was issued that long ago.
    fn issued_ago(&self, ago: Duration) -> IdentityDirectory {
        let names = vec!["edge-1.test".parse().expect("name")];
        let subject = Subject { role: Role::Node, id: "edge-1".to_owned(), host_names: names };
        let (identity, _) = self.authority.issue_identity(&subject, LEAF_LIFETIME, self.now - ago).expect("identity");
        let connection = Connection {
            trust_domain: "fedge.test".to_owned(),
            federation: "127.0.0.1:9".to_owned(),
            enrolment: self.address.clone(),
            operators: "127.0.0.1:3".to_owned(),
        };
        let directory = self.directory("issued");
        directory.store(&identity, &connection).expect("directory");
        directory
    }
}

#[tokio::test]
async fn each_role_joins_with_a_token_that_fixes_its_names() {
    let coordinator = Coordinator::start().await;
    for role in [Role::Node, Role::Operator, Role::Client] {
        let directory = coordinator.directory(role.as_str());
        let token = coordinator.token(role, coordinator.now).await;
        let joined = coordinator.enrol(&token, &directory).await.expect("joined");
        assert!(matches!(joined, Enrolled::Joined(_)));
        let identity = directory.load().expect("identity");
        assert_eq!(identity.id().to_string(), format!("spiffe://fedge.test/default/{role}/edge-1"));
        let names: Vec<_> = identity.host_names().iter().map(ToString::to_string).collect();
        assert_eq!(names, ["edge-1.test", "192.0.2.7"]);
        verify_chain(identity.chain(), identity.roots(), coordinator.now).expect("chain");
        let connection = directory.connection().expect("connection");
        assert_eq!(
            (connection.federation.as_str(), connection.enrolment),
            ("127.0.0.1:1", coordinator.address.clone())
        );
    }
}

#[tokio::test]
async fn joining_again_keeps_a_valid_identity_and_does_not_use_the_token() {
    let coordinator = Coordinator::start().await;
    let directory = coordinator.directory("edge");
    let token = coordinator.token(Role::Node, coordinator.now).await;
    let first = coordinator.enrol(&token, &directory).await.expect("joined").identity().fingerprint();
    let spare = coordinator.token(Role::Node, coordinator.now).await;
    let kept = coordinator.enrol(&spare, &directory).await.expect("kept");
    assert!(matches!(kept, Enrolled::Kept(_)));
    assert_eq!(kept.identity().fingerprint(), first);
    let forced = enrol(&spare, &coordinator.address, &directory, None, true, coordinator.now).await.expect("forced");
    assert_ne!(forced.identity().fingerprint(), first);
}

#[tokio::test]
async fn a_token_whose_reply_was_lost_gives_another_certificate_to_the_same_key() {
    let coordinator = Coordinator::start().await;
    let directory = coordinator.directory("edge");
    directory.prepare().expect("directory");
    let key = directory.pending_key().expect("key").public_key();
    let token = coordinator.token(Role::Node, coordinator.now).await;
    let parsed: JoinToken = token.parse().expect("token");
    // The coordinator redeemed it, and the reply never came.
    tokens::redeem(coordinator.store.pool(), &parsed, &key, coordinator.now).await.expect("redeemed");
    let joined = coordinator.enrol(&token, &directory).await.expect("joined");
    assert_eq!(joined.identity().key().public_key(), key);
}

#[tokio::test]
async fn a_used_token_is_refused_to_another_key() {
    let coordinator = Coordinator::start().await;
    let token = coordinator.token(Role::Node, coordinator.now).await;
    coordinator.enrol(&token, &coordinator.directory("first")).await.expect("joined");
    let second = coordinator.directory("second");
    let error = coordinator.enrol(&token, &second).await.expect_err("refused");
    assert!(
        matches!(&error, EnrolError::Refused { status, .. } if status.code() == Code::FailedPrecondition),
        "{error}"
    );
    assert!(error.to_string().contains("was already used, with another key: mint a new one"), "{error}");
    assert!(!second.exists());
}

#[tokio::test]
async fn an_expired_token_is_refused() {
    let coordinator = Coordinator::start().await;
    let token = coordinator.token(Role::Node, coordinator.now - 2 * HOUR).await;
    let error = coordinator.enrol(&token, &coordinator.directory("edge")).await.expect_err("refused");
    assert!(error.to_string().contains("expired at 20") && error.to_string().contains("mint a new one"), "{error}");
}

#[tokio::test]
async fn a_token_with_another_secret_is_refused_as_unknown() {
    let coordinator = Coordinator::start().await;
    let pin = *coordinator.authority.public_key_sha256();
    let forged = JoinToken::new([1; 8], [2; 32], pin).to_string();
    let error = coordinator.enrol(&forged, &coordinator.directory("edge")).await.expect_err("refused");
    assert!(matches!(&error, EnrolError::Refused { status, .. } if status.code() == Code::PermissionDenied), "{error}");
    assert!(error.to_string().contains("unknown token"), "{error}");
}

#[tokio::test]
async fn a_token_of_another_coordinator_is_refused_before_it_is_sent() {
    let (ours, other) = (Coordinator::start().await, Coordinator::start().await);
    let token = other.token(Role::Node, other.now).await;
    let error = ours.enrol(&token, &ours.directory("edge")).await.expect_err("refused");
    assert!(matches!(error, EnrolError::Connect(ConnectError::Server { .. })), "{error}");
    assert!(error.to_string().contains("may be intercepted"), "{error}");
    other.enrol(&token, &other.directory("edge")).await.expect("the token is unused");
}

#[tokio::test]
async fn a_directory_of_another_federation_is_not_overwritten() {
    let (ours, other) = (Coordinator::start().await, Coordinator::start().await);
    let directory = ours.directory("edge");
    other.enrol(&other.token(Role::Node, other.now).await, &directory).await.expect("joined");
    let error = ours.enrol(&ours.token(Role::Node, ours.now).await, &directory).await.expect_err("refused");
    assert!(matches!(error, EnrolError::Identity(IdentityError::Exists { .. })), "{error}");
    assert!(error.to_string().contains("--force"), "{error}");
}

#[tokio::test]
async fn a_token_of_another_role_than_asked_for_is_refused() {
    let coordinator = Coordinator::start().await;
    let directory = coordinator.directory("edge");
    let token = coordinator.token(Role::Operator, coordinator.now).await;
    let outcome = enrol(&token, &coordinator.address, &directory, Some(Role::Node), false, coordinator.now).await;
    let error = outcome.expect_err("refused").to_string();
    assert_eq!(error, "the token is for an operator, not for a node: mint one with --role node");
    assert!(!directory.exists());
}

#[tokio::test]
async fn joining_says_what_is_wrong_before_the_network_is_asked() {
    let coordinator = Coordinator::start().await;
    let error = coordinator.enrol("nonsense", &coordinator.directory("edge")).await.expect_err("refused");
    assert!(error.to_string().contains("the join token is malformed"), "{error}");

    let file = coordinator.folder.path().join("file");
    std::fs::write(&file, b"").expect("file");
    let token = coordinator.token(Role::Node, coordinator.now).await;
    let error = coordinator.enrol(&token, &IdentityDirectory::new(file.join("edge"))).await.expect_err("refused");
    assert!(error.to_string().contains("cannot make the directory"), "{error}");
    coordinator.enrol(&token, &coordinator.directory("edge")).await.expect("the token is unused");

    let free = TcpListener::bind("127.0.0.1:0").await.expect("port").local_addr().expect("address").to_string();
    let token = coordinator.token(Role::Node, coordinator.now).await;
    let unreachable = enrol(&token, &free, &coordinator.directory("other"), None, false, coordinator.now).await;
    assert!(unreachable.expect_err("refused").to_string().contains("is it running"));
}

#[tokio::test]
async fn an_identity_renews_from_half_of_its_life_on_with_a_new_key_and_its_old_names() {
    let coordinator = Coordinator::start().await;
    let directory = coordinator.issued_ago(11 * HOUR);
    let early = renew_if_due(&directory, coordinator.now).await.expect("not due");
    assert!(matches!(early, Renewal::NotDue(_)));

    let directory = coordinator.issued_ago(13 * HOUR);
    let old = directory.load().expect("identity");
    let renewed = renew_if_due(&directory, coordinator.now).await.expect("renewed");
    assert!(matches!(renewed, Renewal::Renewed(_)));
    let new = directory.load().expect("identity");
    assert_eq!((new.id(), new.host_names()), (old.id(), old.host_names()));
    assert_eq!(new.fingerprint(), renewed.identity().fingerprint());
    assert_ne!(new.key().public_key(), old.key().public_key());
    assert!(new.not_after() > coordinator.now + 23 * HOUR);
    assert_eq!(directory.connection().expect("connection").federation, "127.0.0.1:1");
}

#[tokio::test]
async fn an_expired_identity_renews_for_30_days_and_not_later() {
    let coordinator = Coordinator::start().await;
    let directory = coordinator.issued_ago(30 * DAY);
    assert!(directory.load().expect("identity").expired(coordinator.now));
    let renewed = renew_if_due(&directory, coordinator.now).await.expect("renewed");
    assert!(!renewed.identity().expired(coordinator.now));

    let directory = coordinator.issued_ago(31 * DAY + HOUR);
    let before = std::fs::read(directory.path().join("identity.pem")).expect("file");
    let error = renew_if_due(&directory, coordinator.now).await.expect_err("refused");
    assert!(!error.is_transient());
    assert!(error.to_string().contains("more than 30 days ago: join again with a new token"), "{error}");
    assert_eq!(std::fs::read(directory.path().join("identity.pem")).expect("file"), before);
}

#[tokio::test]
async fn a_revoked_identity_does_not_renew_and_may_join_again_with_a_new_token() {
    let coordinator = Coordinator::start().await;
    let directory = coordinator.directory("edge");
    let token = coordinator.token(Role::Node, coordinator.now).await;
    let identity = coordinator.enrol(&token, &directory).await.expect("joined").identity().clone();
    let renewed = renew(&directory, coordinator.now).await.expect("renewed");
    let pool = coordinator.store.pool();
    assert_eq!(certificates::revoke(pool, identity.id(), coordinator.now).await.expect("revoked"), 2);
    assert!(certificates::revoked(pool, &renewed.fingerprint()).await.expect("asked"));
    assert!(certificates::DenyList::load(pool).await.expect("list").contains(&identity.fingerprint()));

    let error = renew(&directory, coordinator.now).await.expect_err("refused");
    assert!(error.to_string().contains("was revoked: join again with a new token"), "{error}");
    let again = enrol(&token, &coordinator.address, &directory, None, true, coordinator.now).await;
    assert!(again.is_err(), "its old token works");
    let token = coordinator.token(Role::Node, coordinator.now + Duration::from_secs(1)).await;
    enrol(&token, &coordinator.address, &directory, None, true, coordinator.now).await.expect("joined again");
    renew(&directory, coordinator.now).await.expect("renewed");
}

#[tokio::test]
async fn a_renewal_without_the_old_key_or_of_another_ca_is_refused() {
    use fedge_proto::enrolment::RenewRequest;
    use fedge_proto::enrolment::enrolment_client::EnrolmentClient;
    use fedge_proto::identity::{PrivateKey, renewal_message};
    use fedge_proto::tls::{Trust, connect_without_certificate};

    let (coordinator, other) = (Coordinator::start().await, Coordinator::start().await);
    let (ours, theirs) = (coordinator.issued_ago(HOUR), other.issued_ago(HOUR));
    let (ours, theirs) = (ours.load().expect("identity"), theirs.load().expect("identity"));
    let trust = Trust::of(&ours);
    let channel = connect_without_certificate(&coordinator.address, trust, Role::Coordinator).await.expect("channel");
    let mut client = EnrolmentClient::new(channel);
    let thief = PrivateKey::generate().expect("key");
    let request = thief.certificate_signing_request().expect("request");
    let message = renewal_message(&request);
    for (identity, proof, why) in [
        (&ours, thief.sign(&message).expect("proof"), "not signed by the certificate's key"),
        (&ours, ours.key().sign(b"another message").expect("proof"), "not signed by the certificate's key"),
        (&ours, Vec::new(), "not signed by the certificate's key"),
        (&theirs, theirs.key().sign(&message).expect("proof"), "another CA issued it"),
    ] {
        let certificate_chain = identity.chain().iter().map(|der| der.to_vec()).collect();
        let forged = RenewRequest { certificate_chain, certificate_signing_request: request.clone(), proof };
        let status = client.renew(forged).await.expect_err("refused");
        assert_eq!(status.code(), Code::PermissionDenied);
        assert!(status.message().contains(why), "{}", status.message());
    }
}

#[tokio::test]
async fn a_running_process_gets_its_renewed_identity() {
    let coordinator = Coordinator::start().await;
    let directory = coordinator.issued_ago(2 * DAY);
    let shared = SharedIdentity::new(directory.load().expect("identity"));
    let (told, mut heard) = tokio::sync::mpsc::unbounded_channel();
    let task = tokio::spawn(keep_renewed(
        directory,
        shared.clone(),
        move |identity| told.send(identity.fingerprint()).expect("the test listens"),
        tokio_util::sync::CancellationToken::new(),
    ));
    let renewed = heard.recv().await.expect("renewed");
    assert_eq!(shared.current().fingerprint(), renewed);
    assert!(!shared.current().expired(coordinator.now));
    task.abort();
}

#[tokio::test]
async fn a_certificate_that_somebody_puts_there_is_used_within_seconds() {
    let coordinator = Coordinator::start().await;
    let by_hand = coordinator.issued_ago(Duration::ZERO).load().expect("identity");
    let directory = coordinator.issued_ago(Duration::ZERO);
    let shared = SharedIdentity::new(directory.load().expect("identity"));
    let (told, mut heard) = tokio::sync::mpsc::unbounded_channel();
    let path = directory.path().to_owned();
    let task = tokio::spawn(keep_renewed(
        directory,
        shared.clone(),
        move |identity| told.send(identity.fingerprint()).expect("the test listens"),
        tokio_util::sync::CancellationToken::new(),
    ));
    tokio::time::sleep(Duration::from_millis(100)).await;
    IdentityDirectory::new(path).replace_identity(&by_hand).expect("written");
    let used = tokio::time::timeout(Duration::from_secs(20), heard.recv()).await.expect("soon").expect("renewed");
    assert_eq!((used, shared.current().fingerprint()), (by_hand.fingerprint(), by_hand.fingerprint()));
    task.abort();
}
