//! A node's folder with its identity, and a caller's identity, of a CA of their own: for benchmarks over mutual TLS.
//! What they are used for is the matter of each benchmark.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

use anyhow::ensure;
use fedge_coordinator::init;
use fedge_coordinator::registry::authority::{Authority, LEAF_LIFETIME, Subject};
use fedge_proto::identity::{HostName, Role, SharedIdentity};

/// The node's folder, and an identity of the role `caller`.
pub fn identities(fedge: &Path, scratch: &Path, caller: Role) -> anyhow::Result<(PathBuf, SharedIdentity)> {
    let (coordinator, node) = (scratch.join("coordinator"), scratch.join("node"));
    let mut init = Command::new(fedge);
    init.args(["coordinator", "init", "--host", "127.0.0.1", "--listen", "127.0.0.1", "--dir"]).arg(&coordinator);
    let made = init.output()?;
    ensure!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let authority = Authority::load(&init::authority_folder(&coordinator))?;
    let connection = init::connection(&authority, &fedge_coordinator::config::Config::load(&coordinator)?);
    let issue = |role, id: &str| {
        let host_names = if role == Role::Node { vec!["127.0.0.1".parse::<HostName>()?] } else { Vec::new() };
        let subject = Subject { role, id: id.to_owned(), host_names };
        let (identity, _) = authority.issue_identity(&subject, LEAF_LIFETIME, SystemTime::now())?;
        Ok::<_, anyhow::Error>(identity)
    };
    std::fs::create_dir_all(&node)?;
    fedge_node::run::identity_directory(&node).create(&issue(Role::Node, "bench")?, &connection)?;
    Ok((node, SharedIdentity::new(issue(caller, "caller")?)))
}
