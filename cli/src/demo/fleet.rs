//! The demo's processes: a real coordinator and real nodes, started by the very commands that an operator types.
//! They end with the demo, however it ends: each watches its standard input.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use super::data::{self, Split};

/// Longest wait for a process to say that it is ready.
const START: Duration = Duration::from_secs(60);
/// Longest wait for a process to end by itself.
const END: Duration = Duration::from_secs(10);

/// A running process.
#[derive(Debug)]
pub(super) struct Process {
    pub(super) name: String,
    child: Child,
    log: PathBuf,
}

/// A node of the fleet.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) process: Process,
    /// Its inference port.
    pub(super) address: String,
}

/// Everything that runs.
#[derive(Debug)]
pub(super) struct Fleet {
    pub(super) coordinator: Process,
    pub(super) nodes: Vec<Node>,
    pub(super) operator_identity: PathBuf,
    pub(super) client_identity: PathBuf,
}

impl Fleet {
    /// Makes and starts a coordinator and one node for each part of the split, all in `folder`.
    pub(super) async fn start(folder: &Path, split: &Split) -> anyhow::Result<Fleet> {
        let ports = free_ports(3 + split.nodes.len())?;
        let [federation, enrolment, operators, node_ports @ ..] = ports.as_slice() else { bail!("no free ports") };
        let home = folder.join("coordinator");
        let port = |name, port: &u16| [name, port.to_string()];
        run(Command::new(program()?)
            .args(["coordinator", "init", "--host", "127.0.0.1", "--host", "localhost", "--listen", "127.0.0.1"])
            .args(port("--federation-port".to_owned(), federation))
            .args(port("--enrolment-port".to_owned(), enrolment))
            .args(port("--operators-port".to_owned(), operators))
            .arg("--dir")
            .arg(&home))
        .await?;
        let coordinator = Process::start("coordinator", &folder.join("coordinator.log"), |command| {
            command.args(["coordinator", "run", "--heartbeat-ms", "500", "--liveness-ms", "15000", "--dir"]).arg(&home);
        })
        .await?;
        let enrolment = format!("127.0.0.1:{enrolment}");
        let client_identity = folder.join("client");
        let token = token(&home, "client", "demo-client").await?;
        run(Command::new(program()?)
            .args(["enrol", "--coordinator", &enrolment, "--dir"])
            .arg(&client_identity)
            .env("FEDGE_TOKEN", token))
        .await?;
        let mut nodes = Vec::new();
        for (index, (digits, port)) in split.nodes.iter().zip(node_ports).enumerate() {
            nodes.push(start_node(folder, &home, &enrolment, index + 1, digits, *port).await?);
        }
        Ok(Fleet { coordinator, nodes, operator_identity: home.join("operator"), client_identity })
    }

    /// Says so if a process ended that should run.
    pub(super) fn check(&mut self) -> anyhow::Result<()> {
        let nodes = self.nodes.iter_mut().map(|n| &mut n.process);
        for process in std::iter::once(&mut self.coordinator).chain(nodes) {
            process.check()?;
        }
        Ok(())
    }

    /// Peak resident memory of each process in bytes, where the system tells.
    pub(super) fn peak_memory(&self) -> Vec<(String, Option<u64>)> {
        let nodes = self.nodes.iter().map(|n| &n.process);
        std::iter::once(&self.coordinator).chain(nodes).map(|p| (p.name.clone(), p.peak_memory())).collect()
    }

    /// Ends everything: asks, waits, then kills.
    pub(super) async fn stop(self) {
        let nodes = self.nodes.into_iter().map(|n| n.process);
        let stops: Vec<_> = nodes.chain(std::iter::once(self.coordinator)).map(|p| tokio::spawn(p.stop())).collect();
        for stop in stops {
            let _ = stop.await;
        }
    }
}

async fn start_node(
    folder: &Path,
    coordinator: &Path,
    enrolment: &str,
    number: usize,
    digits: &[data::Digit],
    port: u16,
) -> anyhow::Result<Node> {
    let name = format!("node-{number}");
    let home = folder.join(&name);
    let token = token(coordinator, "node", &name).await?;
    run(Command::new(program()?)
        .args(["node", "join", "--coordinator", enrolment, "--dir"])
        .arg(&home)
        .env("FEDGE_TOKEN", token))
    .await?;
    let samples = home.join("digits.csv");
    data::write_csv(&samples, digits)?;
    let address = format!("127.0.0.1:{port}");
    let process = Process::start(&name, &folder.join(format!("{name}.log")), |command| {
        command.args(["node", "run", "--listen", &address, "--keep", "0", "--dir"]).arg(&home);
        command.arg("--data").arg(&samples);
    })
    .await?;
    Ok(Node { process, address })
}

/// As many free TCP ports of the loopback interface; nobody holds them, so use them soon.
fn free_ports(count: usize) -> anyhow::Result<Vec<u16>> {
    let mut held = Vec::new();
    for _ in 0..count {
        held.push(std::net::TcpListener::bind("127.0.0.1:0").context("no free port on 127.0.0.1")?);
    }
    held.iter().map(|listener| Ok(listener.local_addr()?.port())).collect()
}

/// Mints a token with the command that an operator types.
async fn token(coordinator: &Path, role: &str, name: &str) -> anyhow::Result<String> {
    let mut command = Command::new(program()?);
    command.args(["coordinator", "token", "--json", "--role", role, "--name", name]);
    command.args(["--dns-name", "127.0.0.1", "--dns-name", "localhost", "--dir"]).arg(coordinator);
    let reply: serde_json::Value = serde_json::from_str(&run(&mut command).await?)?;
    reply["token"].as_str().map(str::to_owned).context("`fedge coordinator token` printed no token")
}

/// Runs a command to its end and gives what it printed.
async fn run(command: &mut Command) -> anyhow::Result<String> {
    let output = command.stdin(Stdio::null()).output().await.context("this program can't be started again")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(text)
}

fn program() -> anyhow::Result<PathBuf> {
    std::env::current_exe().context("the path of this program is unknown")
}

impl Process {
    /// Starts a process of ours, its log into a file, and waits for its first line: the one that says "ready".
    async fn start(name: &str, log: &Path, arguments: impl FnOnce(&mut Command)) -> anyhow::Result<Process> {
        let file = std::fs::File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
        let mut command = Command::new(program()?);
        arguments(&mut command);
        command.arg("--end-with-input").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(file).kill_on_drop(true);
        let mut child = command.spawn().with_context(|| format!("{name} can't be started"))?;
        let stdout = child.stdout.take().context("no standard output")?;
        let mut process = Process { name: name.to_owned(), child, log: log.to_owned() };
        let mut lines = BufReader::new(stdout).lines();
        let first = tokio::time::timeout(START, lines.next_line()).await;
        match first {
            Ok(Ok(Some(line))) if line.contains("ready") => {}
            _ => {
                // It says why on standard error; give it the moment to end.
                let _ = tokio::time::timeout(Duration::from_secs(1), process.child.wait()).await;
                process.check()?;
                bail!("{name} was not ready within {} s; its log: {}", START.as_secs(), log.display());
            }
        }
        // Keep reading, so that it never blocks on a full pipe.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        Ok(process)
    }

    fn check(&mut self) -> anyhow::Result<()> {
        if let Some(status) = self.child.try_wait()? {
            let log = std::fs::read_to_string(&self.log).unwrap_or_default();
            let tail: Vec<&str> = log.lines().rev().take(5).collect();
            let tail: Vec<&str> = tail.into_iter().rev().collect();
            bail!("{} ended ({status}):\n{}", self.name, tail.join("\n"));
        }
        Ok(())
    }

    #[cfg(target_os = "linux")]
    fn peak_memory(&self) -> Option<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()?)).ok()?;
        let line = status.lines().find(|l| l.starts_with("VmHWM:"))?;
        let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
        Some(kib * 1024)
    }

    #[cfg(not(target_os = "linux"))]
    fn peak_memory(&self) -> Option<u64> {
        None
    }

    async fn stop(mut self) {
        drop(self.child.stdin.take());
        if tokio::time::timeout(END, self.child.wait()).await.is_err() {
            let _ = self.child.kill().await;
        }
    }
}
