//! `fedge enrol`: an operator's or a client's token becomes an identity directory.
//! Nodes join with `fedge node join`; the protocol of joining is the node crate's.

use std::path::PathBuf;
use std::time::SystemTime;

use clap::Args;
use fedge_node::federation::enrol::{Enrolled, enrol};
use fedge_proto::identity::{IdentityDirectory, Role};

use crate::process;

/// Flags of `enrol`.
#[derive(Debug, Args)]
pub(crate) struct Enrol {
    /// The coordinator's enrolment port, host:port
    #[arg(long, value_name = "HOST:PORT", env = "FEDGE_COORDINATOR")]
    coordinator: String,
    /// The join token
    #[arg(long, env = "FEDGE_TOKEN", hide_env_values = true)]
    token: String,
    /// Where the identity goes
    #[arg(long, default_value = "fedge-identity")]
    dir: PathBuf,
    /// Replace an identity that is there
    #[arg(long)]
    force: bool,
}

impl Enrol {
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        process::log("warn");
        let directory = IdentityDirectory::new(&self.dir);
        join(&self.token, &self.coordinator, &directory, None, self.force).await
    }
}

/// Redeems a token and says what came of it.
pub(crate) async fn join(
    token: &str,
    coordinator: &str,
    directory: &IdentityDirectory,
    role: Option<Role>,
    force: bool,
) -> anyhow::Result<()> {
    let enrolled = enrol(token, coordinator, directory, role, force, SystemTime::now()).await?;
    let path = directory.path().display();
    let id = enrolled.identity().id();
    match &enrolled {
        Enrolled::Joined(_) => println!("Joined as {id}; the identity is in {path}."),
        Enrolled::Kept(_) => println!("Already joined as {id}: the identity in {path} is kept (--force replaces it)."),
    }
    Ok(())
}
