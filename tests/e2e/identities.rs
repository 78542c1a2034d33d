//! Who is let in, seen from the command line: wrong roles, foreign authorities, tokens used twice.
//! Expiry and handshakes without a certificate are tested on sockets in the crate `proto`.

use crate::harness::{Coordinator, Node, digits, every, fail, fedge, run, succeed, text, wait_for};

#[test]
fn a_client_may_not_operate_and_a_node_may_not_ask_another_node() {
    let coordinator = Coordinator::start();
    coordinator.publish_digits();
    let client = coordinator.enrol("client", "client");
    let error = fail(fedge().args(["model", "list", "--identity"]).arg(&client));
    assert!(error.contains("client") && error.contains("operator"), "{error}");
    let node = Node::start(&coordinator, "edge", &every(&digits(), 8, 0));
    node.wait_until_serving(1);
    let identity = node.home.join("identity");
    let error = fail(
        fedge()
            .args(["infer", "--model", "digits", "--node", &node.address, "--file"])
            .arg(node.home.join("digits.csv"))
            .arg("--identity")
            .arg(identity),
    );
    assert!(error.contains("a node may not call"), "{error}");
}

#[test]
fn an_identity_of_another_coordinator_is_refused_with_a_sentence() {
    let (ours, theirs) = (Coordinator::start(), Coordinator::start());
    // The stranger's operator asks our coordinator.
    let connection = theirs.operator().join("connection.toml");
    let text = std::fs::read_to_string(&connection).expect("connection");
    let [_, _, theirs_port] = theirs.ports;
    std::fs::write(&connection, text.replace(&theirs_port.to_string(), &ours.ports[2].to_string())).expect("write");
    let error = fail(fedge().args(["model", "list", "--identity"]).arg(theirs.operator()));
    assert!(
        error.contains("another CA") || error.contains("another authority") || error.contains("issued by"),
        "{error}"
    );
}

#[test]
fn a_token_works_once_and_a_token_of_another_role_is_named() {
    let coordinator = Coordinator::start();
    let token = coordinator.token("node", "edge");
    let join = |token: &str, name: &str| {
        let mut command = fedge();
        command.args(["node", "join", "--coordinator", &coordinator.enrolment(), "--token", token, "--dir"]);
        command.arg(coordinator.folder().join(name));
        command
    };
    succeed(&mut join(&token, "first"));
    // The same node may ask again: its identity is kept.
    assert!(succeed(&mut join(&token, "first")).contains("kept"));
    let error = fail(&mut join(&token, "second"));
    assert!(error.contains("already used"), "{error}");
    let error = fail(&mut join(&coordinator.token("client", "c"), "third"));
    assert!(error.contains("client") && error.contains("--role node"), "{error}");
    let error = fail(&mut join("not-a-token", "fourth"));
    assert!(error.contains("malformed"), "{error}");
}

#[test]
fn without_an_identity_the_error_says_how_to_get_one() {
    let folder = tempfile::tempdir().expect("folder");
    let error = fail(fedge().args(["task", "list", "--identity"]).arg(folder.path()));
    assert!(error.contains("fedge enrol"), "{error}");
    let error = fail(fedge().args(["node", "run", "--dir"]).arg(folder.path()));
    assert!(error.contains("fedge node join"), "{error}");
}

#[test]
fn a_revoked_operator_is_refused_by_the_running_coordinator() {
    let coordinator = Coordinator::start();
    let other = coordinator.enrol("operator", "visitor");
    succeed(fedge().args(["model", "list", "--identity"]).arg(&other));
    let revoke = ["coordinator", "revoke", "visitor", "--role", "operator", "--dir"];
    succeed(fedge().args(revoke).arg(coordinator.home()));
    let error = wait_for("the refusal", || {
        let output = run(fedge().args(["model", "list", "--identity"]).arg(&other));
        (!output.status.success()).then(|| text(&output.stderr))
    });
    assert!(error.contains("revoked"), "{error}");
    let error = fail(fedge().args(["coordinator", "revoke", "nobody", "--dir"]).arg(coordinator.home()));
    assert!(error.contains("nobody"), "{error}");
}
