//! `fedge coordinator`: init, run, token, revoke, nodes.
//! The server itself is the crate `coordinator`.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use anyhow::Context;
use clap::{Args, Subcommand};
use fedge_coordinator::config::{Advertise, Certificate, Config, Listen, Nodes, StoreLimits};
use fedge_coordinator::init;
use fedge_coordinator::registry::authority::{Authority, Subject};
use fedge_coordinator::registry::{certificates, tokens};
use fedge_coordinator::server;
use fedge_coordinator::store::Store;
use fedge_proto::identity::{HostName, Role, SpiffeId};
use fedge_proto::operators::{ListNodesRequest, Node};

use crate::operator::{OperatorFlags, refused};
use crate::{output, process};

const DEFAULT_FOLDER: &str = "fedge-coordinator";

/// The server.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make a coordinator's folder: CA, certificates, commented configuration
    Init(Init),
    /// Run the coordinator of a folder
    Run(Run),
    /// Mint a one-time join token
    Token(Token),
    /// Refuse an identity from now on: its certificates, renewals and tokens
    Revoke(Revoke),
    /// The nodes that have connected: who is there, what each serves and holds
    Nodes(ListNodes),
}

impl Command {
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        match self {
            Command::Init(init) => init.run().await,
            Command::Run(run) => run.run().await,
            Command::Token(token) => token.run().await,
            Command::Revoke(revoke) => revoke.run().await,
            Command::Nodes(list) => list.run().await,
        }
    }
}

/// Flags of `nodes`.
#[derive(Debug, Args)]
pub(crate) struct ListNodes {
    #[command(flatten)]
    operator: OperatorFlags,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl ListNodes {
    async fn run(self) -> anyhow::Result<()> {
        process::log("warn");
        let mut client = self.operator.connect().await?.client();
        let nodes = client.list_nodes(ListNodesRequest {}).await.map_err(refused)?.into_inner().nodes;
        if self.json {
            return output::json(&nodes.iter().map(node_json).collect::<Vec<_>>());
        }
        let mut table =
            output::table(&["node", "state", "heard of", "model", "version", "precision", "samples"], &[4, 6]);
        for node in nodes {
            let state = match (node.available, node.resting.as_str()) {
                (false, _) => "lost".to_owned(),
                (true, "") => "available".to_owned(),
                (true, reason) => format!("resting: {reason}"),
            };
            let head = [node.id.clone(), state, output::ago(node.last_seen_ms)];
            if node.serving.is_empty() {
                table.add_row(head.clone().into_iter().chain(["–", "–", "–", "–"].map(str::to_owned)));
            }
            for (line, s) in node.serving.iter().enumerate() {
                let head = if line == 0 { head.clone() } else { Default::default() };
                let what = [&s.model_name, &s.number.to_string(), &s.precision, &s.training_samples.to_string()];
                table.add_row(head.into_iter().chain(what.map(Clone::clone)));
            }
        }
        println!("{table}");
        Ok(())
    }
}

fn node_json(node: &Node) -> serde_json::Value {
    let serving = node.serving.iter().map(|s| {
        serde_json::json!({
            "model": s.model_name, "version": s.number, "precision": s.precision, "float_reason": s.float_reason,
            "training_samples": s.training_samples, "held_out_samples": s.held_out_samples,
            "drift": s.drift, "drift_alarms": s.drift_alarms,
        })
    });
    serde_json::json!({
        "node": node.id, "available": node.available, "last_seen_ms": node.last_seen_ms, "software": node.software,
        "inference_address": node.inference_address, "resting": node.resting, "serving": serving.collect::<Vec<_>>(),
    })
}

/// Flags of `init`.
#[derive(Debug, Args)]
pub(crate) struct Init {
    /// Where to make it
    #[arg(long, default_value = DEFAULT_FOLDER, env = "FEDGE_COORDINATOR_DIR")]
    dir: PathBuf,
    /// DNS name or IP address under which nodes and operators reach this machine; repeat for more, the first is advertised
    #[arg(long = "host", value_name = "NAME", default_values = ["localhost", "127.0.0.1"])]
    hosts: Vec<String>,
    /// Name of the federation in every identity
    #[arg(long, default_value = "fedge.local")]
    trust_domain: String,
    /// IP address to listen on
    #[arg(long, value_name = "IP", default_value = "0.0.0.0")]
    listen: String,
    /// Port for nodes
    #[arg(long, value_name = "PORT", default_value_t = 7443)]
    federation_port: u16,
    /// Port for join tokens and renewals
    #[arg(long, value_name = "PORT", default_value_t = 7444)]
    enrolment_port: u16,
    /// Port for operators
    #[arg(long, value_name = "PORT", default_value_t = 7445)]
    operators_port: u16,
}

impl Init {
    async fn run(self) -> anyhow::Result<()> {
        process::log("warn");
        let host = self.hosts.first().cloned().unwrap_or_else(|| "localhost".into());
        let bracketed = |host: &str| if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
        let (listen, host) = (bracketed(&self.listen), bracketed(&host));
        let config = Config {
            listen: Listen {
                federation: format!("{listen}:{}", self.federation_port),
                enrolment: format!("{listen}:{}", self.enrolment_port),
                operators: format!("{listen}:{}", self.operators_port),
            },
            advertise: Advertise {
                federation: format!("{host}:{}", self.federation_port),
                enrolment: format!("{host}:{}", self.enrolment_port),
                operators: format!("{host}:{}", self.operators_port),
            },
            certificate: Certificate { names: self.hosts.clone() },
            nodes: Nodes::default(),
            store: StoreLimits::default(),
        };
        init::init(&self.dir, &self.trust_domain, &config).await?;
        let dir = self.dir.display();
        println!("Made a coordinator in {dir}: CA, certificates, {dir}/coordinator.toml.");
        println!(
            "Operators use the identity in {dir}/operator (set FEDGE_IDENTITY to it, or copy it to their machine)."
        );
        println!("Next: fedge coordinator run --dir {dir}");
        println!("      fedge coordinator token --dir {dir}    (once for each node)");
        Ok(())
    }
}

/// Flags of `run`.
#[derive(Debug, Args)]
pub(crate) struct Run {
    /// The coordinator's folder
    #[arg(long, default_value = DEFAULT_FOLDER, env = "FEDGE_COORDINATOR_DIR")]
    dir: PathBuf,
    /// Overrides listen.federation
    #[arg(long, value_name = "IP:PORT", env = "FEDGE_COORDINATOR_FEDERATION")]
    federation: Option<String>,
    /// Overrides listen.enrolment
    #[arg(long, value_name = "IP:PORT", env = "FEDGE_COORDINATOR_ENROLMENT")]
    enrolment: Option<String>,
    /// Overrides listen.operators
    #[arg(long, value_name = "IP:PORT", env = "FEDGE_COORDINATOR_OPERATORS")]
    operators: Option<String>,
    /// Overrides nodes.heartbeat_ms
    #[arg(long, value_name = "MS", env = "FEDGE_COORDINATOR_HEARTBEAT_MS")]
    heartbeat_ms: Option<u64>,
    /// Overrides nodes.liveness_ms
    #[arg(long, value_name = "MS", env = "FEDGE_COORDINATOR_LIVENESS_MS")]
    liveness_ms: Option<u64>,
    /// End when standard input ends
    #[arg(long, hide = true)]
    end_with_input: bool,
}

impl Run {
    async fn run(self) -> anyhow::Result<()> {
        process::log("info");
        let mut config = Config::load(&self.dir)?;
        let listen = &mut config.listen;
        for (value, flag) in [
            (&mut listen.federation, self.federation),
            (&mut listen.enrolment, self.enrolment),
            (&mut listen.operators, self.operators),
        ] {
            if let Some(flag) = flag {
                *value = flag;
            }
        }
        config.nodes.heartbeat_ms = self.heartbeat_ms.unwrap_or(config.nodes.heartbeat_ms);
        config.nodes.liveness_ms = self.liveness_ms.unwrap_or(config.nodes.liveness_ms);
        config.check(&self.dir.join(fedge_coordinator::config::FILE_NAME))?;
        let ready = |config: &Config| {
            let listen = &config.listen;
            println!(
                "coordinator ready: nodes {}, enrolment {}, operators {}",
                listen.federation, listen.enrolment, listen.operators
            );
        };
        let end = process::asked_to_end(self.end_with_input);
        Ok(server::run(&self.dir, config, ready, end).await?)
    }
}

/// Flags of `token`.
#[derive(Debug, Args)]
pub(crate) struct Token {
    /// The coordinator's folder
    #[arg(long, default_value = DEFAULT_FOLDER, env = "FEDGE_COORDINATOR_DIR")]
    dir: PathBuf,
    /// What the token is for
    #[arg(long, default_value = "node", value_parser = ["node", "operator", "client"])]
    role: String,
    /// Name of who joins, [a-z0-9._-] [default: a random one]
    #[arg(long)]
    name: Option<String>,
    /// DNS name or IP address under which a node serves inference; repeat for more
    #[arg(long = "dns-name", value_name = "NAME")]
    dns_names: Vec<String>,
    /// Minutes that the token lives, 1 to 60
    #[arg(long, value_name = "MINUTES", default_value_t = 60)]
    minutes: u64,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Token {
    async fn run(self) -> anyhow::Result<()> {
        process::log("warn");
        let config = Config::load(&self.dir)?;
        let authority = Authority::load(&init::authority_folder(&self.dir))?;
        let store = Store::open(&init::store_folder(&self.dir)).await?;
        let role: Role = self.role.parse()?;
        let id = self.name.unwrap_or_else(|| format!("{role}-{:08x}", rand::random::<u32>()));
        let host_names = self.dns_names.iter().map(|n| n.parse::<HostName>()).collect::<Result<Vec<_>, _>>()?;
        if role == Role::Node && host_names.is_empty() {
            eprintln!("note: without --dns-name, clients can't verify this node's inference port by name");
        }
        let subject = Subject { role, id: id.clone(), host_names };
        let life = Duration::from_secs(self.minutes.saturating_mul(60));
        let now = SystemTime::now();
        let token = tokens::mint(store.pool(), &authority, &subject, life, now).await.context("no token was minted")?;
        let enrolment = &config.advertise.enrolment;
        if self.json {
            return output::json(&serde_json::json!({
                "token": token.to_string(), "role": role.to_string(), "name": id,
                "coordinator": enrolment, "lives_minutes": self.minutes,
            }));
        }
        println!("{token}");
        let command = if role == Role::Node { "fedge node join" } else { "fedge enrol" };
        eprintln!(
            "One {role}, {id:?}, within {} minutes: {command} --coordinator {enrolment} --token <the line above>",
            self.minutes
        );
        Ok(())
    }
}

/// Flags of `revoke`.
#[derive(Debug, Args)]
pub(crate) struct Revoke {
    /// Name of the identity, as in its token
    name: String,
    /// Its role
    #[arg(long, default_value = "node", value_parser = ["node", "operator", "client"])]
    role: String,
    /// The coordinator's folder
    #[arg(long, default_value = DEFAULT_FOLDER, env = "FEDGE_COORDINATOR_DIR")]
    dir: PathBuf,
}

impl Revoke {
    async fn run(self) -> anyhow::Result<()> {
        process::log("warn");
        let authority = Authority::load(&init::authority_folder(&self.dir))?;
        let store = Store::open(&init::store_folder(&self.dir)).await?;
        let id = SpiffeId::new(authority.trust_domain(), self.role.parse()?, &self.name)?;
        let now = SystemTime::now();
        let revoked = certificates::revoke(store.pool(), &id, now).await.context("nothing was revoked")?;
        anyhow::ensure!(revoked > 0, "{id} holds no certificate of this coordinator that could be revoked");
        println!("Revoked {id}: a running coordinator refuses it within 10 seconds. A new token lets it join again.");
        Ok(())
    }
}
