//! What connects: mutual TLS with post-quantum key exchange, reconnection, reload, plaintext on loopback.
//! What is refused is tested in `refusals`.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustls::{NamedGroup, ProtocolVersion};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_stream::StreamExt;
use tonic::Code;

use super::*;
use crate::identity::fingerprint;

#[tokio::test]
async fn mutual_tls_negotiates_tls_13_with_x25519mlkem768_and_http_2() {
    let authority = TestAuthority::new("a");
    let server = serve(&authority.identity(Role::Node, "edge-1"), ClientAuth::Required).await;
    let client = authority.identity(Role::Client, "camera");
    let config = client_config(Some(&client), Trust::of(&client), Role::Node).unwrap();
    let mut stream = handshake(&server.address, config).await.unwrap();
    // The server's first bytes: it accepted our certificate.
    assert!(stream.read(&mut [0; 64]).await.unwrap() > 0);
    let connection = stream.get_ref().1;
    assert_eq!(connection.negotiated_key_exchange_group().unwrap().name(), NamedGroup::X25519MLKEM768);
    assert_eq!(connection.protocol_version(), Some(ProtocolVersion::TLSv1_3));
    assert_eq!(connection.alpn_protocol(), Some(&b"h2"[..]));
    assert_eq!(connection.tls13_tickets_received(), 0);
}

#[tokio::test]
async fn a_handler_knows_who_calls_it() {
    let authority = TestAuthority::new("a");
    let server = serve(&authority.identity(Role::Node, "edge-1"), ClientAuth::Required).await;
    let client = authority.identity(Role::Client, "camera");
    let length = client.id().to_string().len();
    let channel = connect(&server.address, &shared(client), Role::Node).await.unwrap();
    assert_eq!(call(channel).await.unwrap() as usize, length);
}

#[tokio::test]
async fn a_reloaded_certificate_is_used_by_the_next_connection() {
    let authority = TestAuthority::new("a");
    let (old, new) = (authority.identity(Role::Node, "edge-1"), authority.identity(Role::Node, "edge-1"));
    let server = serve(&old, ClientAuth::None).await;
    let presented = || async {
        let config = client_config(None, Trust::of(&old), Role::Node).unwrap();
        let stream = handshake(&server.address, config).await.unwrap();
        fingerprint(&stream.get_ref().1.peer_certificates().unwrap()[0])
    };
    assert_eq!(presented().await, old.fingerprint());
    server.config.replace(server_config(&new, ClientAuth::None).unwrap());
    assert_eq!(presented().await, new.fingerprint());
}

#[tokio::test]
async fn a_channel_reconnects_with_the_identity_of_that_moment() {
    let authority = TestAuthority::new("a");
    let node = authority.identity(Role::Node, "edge-1");
    let seen = Arc::new(std::sync::Mutex::new(Vec::new()));
    let log = Arc::clone(&seen);
    let rules =
        AuthorizationLayer::new(AnonymousCallers::EnrolmentOnly).with_revoked(Arc::new(move |_, fingerprint| {
            log.lock().unwrap().push(*fingerprint);
            false
        }));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let run = |listener, rules| {
        let config = ReloadableServerConfig::new(server_config(&node, ClientAuth::Required).unwrap());
        let server = Server::builder().layer(rules).add_service(FeedbackServer::new(Echo));
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let connections = incoming(listener, config, Limits::default());
        let task = tokio::spawn(server.serve_with_incoming_shutdown(connections, async { drop(stopped.await) }));
        (stop, task)
    };
    let (old, new) = (authority.identity(Role::Client, "camera"), authority.identity(Role::Client, "camera"));
    let identity = shared(old.clone());

    let (stop, task) = run(listener, rules.clone());
    let channel = connect(&address.to_string(), &identity, Role::Node).await.unwrap();
    call(channel.clone()).await.unwrap();
    identity.replace(new.clone());
    call(channel.clone()).await.unwrap();
    stop.send(()).unwrap();
    task.await.unwrap().unwrap();

    let (_stop, _task) = run(TcpListener::bind(address).await.unwrap(), rules);
    // The first call after a lost connection may still meet the old one.
    if call(channel.clone()).await.is_err() {
        call(channel).await.unwrap();
    }
    let seen = seen.lock().unwrap().clone();
    assert_eq!(seen[..2], [old.fingerprint(), old.fingerprint()]);
    assert_eq!(seen.last(), Some(&new.fingerprint()));
}

#[tokio::test]
async fn a_revoked_certificate_is_refused_on_an_open_connection() {
    let authority = TestAuthority::new("a");
    let revoked = Arc::new(AtomicBool::new(false));
    let hook = Arc::clone(&revoked);
    let rules = AuthorizationLayer::new(AnonymousCallers::EnrolmentOnly)
        .with_revoked(Arc::new(move |_, _| hook.load(Ordering::SeqCst)));
    let server = serve_with(&authority.identity(Role::Node, "edge-1"), ClientAuth::Required, rules).await;
    let client = shared(authority.identity(Role::Client, "camera"));
    let channel = connect(&server.address, &client, Role::Node).await.unwrap();
    call(channel.clone()).await.unwrap();
    revoked.store(true, Ordering::SeqCst);
    let status = call(channel).await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated);
    assert!(status.message().contains("client/camera was revoked"), "{}", status.message());
}

#[tokio::test]
async fn failed_and_unfinished_handshakes_do_not_stop_others() {
    let authority = TestAuthority::new("a");
    let server = serve(&authority.identity(Role::Node, "edge-1"), ClientAuth::Required).await;
    let mut unfinished = Vec::new();
    for _ in 0..8 {
        unfinished.push(TcpStream::connect(&server.address).await.unwrap());
        use tokio::io::AsyncWriteExt;
        let mut garbage = TcpStream::connect(&server.address).await.unwrap();
        garbage.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        drop(garbage);
    }
    let client = shared(authority.identity(Role::Client, "camera"));
    let channel = connect(&server.address, &client, Role::Node).await.unwrap();
    call(channel).await.unwrap();
}

#[tokio::test]
async fn plaintext_serves_inference_on_loopback_and_nowhere_else() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let connections = plaintext_incoming(listener, Limits::default()).unwrap();
    let rules = AuthorizationLayer::new(AnonymousCallers::LocalInference);
    let server = Server::builder().layer(rules).add_service(FeedbackServer::new(Echo));
    let task = tokio::spawn(server.serve_with_incoming(connections));
    let channel = connect_plaintext(&address).await.unwrap();
    assert_eq!(call(channel).await.unwrap(), 0);
    task.abort();

    let open = TcpListener::bind("0.0.0.0:0").await.unwrap();
    let error = plaintext_incoming(open, Limits::default()).unwrap_err().to_string();
    assert!(error.contains("plaintext is allowed on loopback only"), "{error}");
    let error = connect_plaintext("192.0.2.1:8001").await.unwrap_err().to_string();
    assert!(error.contains("plaintext is allowed on loopback only"), "{error}");
}

#[tokio::test]
async fn dropping_the_stream_closes_the_listener() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let connections = plaintext_incoming(listener, Limits::default()).unwrap();
    drop(connections);
    // The accepting task ends when it is polled next.
    for _ in 0..1000 {
        if TcpListener::bind(address).await.is_ok() {
            return;
        }
        tokio::task::yield_now().await;
    }
    panic!("{address} is still taken");
}

#[tokio::test]
async fn who_says_nothing_or_half_a_preface_is_let_go_and_who_asks_may_be_silent_later() {
    for (sent, lives) in
        [(&b""[..], false), (b"PRI * HTTP/2.0\r\n", false), (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", true)]
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let limits = Limits { first_bytes_timeout: Duration::from_millis(300), ..Limits::default() };
        let mut accepted = plaintext_incoming(listener, limits).unwrap();
        let mut client = TcpStream::connect(address).await.unwrap();
        client.write_all(sent).await.unwrap();
        let mut connection = accepted.next().await.unwrap().unwrap();
        let mut bytes = Vec::new();
        let read = tokio::time::timeout(Duration::from_secs(2), connection.read_to_end(&mut bytes)).await;
        assert_eq!(bytes, sent);
        match read {
            Ok(outcome) => assert!(!lives && outcome.unwrap_err().kind() == std::io::ErrorKind::TimedOut),
            Err(_) => assert!(lives, "still open after {} bytes", sent.len()),
        }
    }
}
