//! A real coordinator process and real node processes for the benchmarks: folders, identities, processes, what they cost.
//! What is measured is the matter of each benchmark.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail, ensure};
use fedge_coordinator::config::Config;
use fedge_coordinator::init;
use fedge_coordinator::registry::authority::{Authority, LEAF_LIFETIME, Subject};
use fedge_proto::identity::{HostName, Identity, Role};
use serde_json::Value;

/// The programs beside the benchmark's own.
pub struct Programs {
    pub fedge: PathBuf,
    node: PathBuf,
}

impl Programs {
    /// `fedge` as given, or the one that was built with the benchmarks.
    pub fn find(fedge: Option<PathBuf>) -> anyhow::Result<Programs> {
        let own = std::env::current_exe()?;
        let folder = own.parent().context("the benchmark has no folder")?;
        let fedge = fedge.unwrap_or_else(|| folder.join("fedge-under-test"));
        let node = folder.join("fedge-bench-node");
        for path in [&fedge, &node] {
            ensure!(path.exists(), "{} is missing: cargo build --release -p fedge-tests", path.display());
        }
        Ok(Programs { fedge, node })
    }
}

/// A running process, killed when dropped.
pub struct Process {
    child: Child,
}

impl Process {
    /// Starts it and waits for its line that says "ready".
    pub fn start(command: &mut Command, log: &Path) -> anyhow::Result<Process> {
        let file = std::fs::File::create(log)?;
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(file).spawn();
        let mut process = Process { child: child.with_context(|| format!("starting {command:?}"))? };
        let stdout = process.child.stdout.take().context("standard output")?;
        let mut line = String::new();
        let mut reader = BufReader::new(stdout);
        reader.read_line(&mut line)?;
        if !line.contains("ready") {
            bail!("{command:?} did not start: {line}{}", std::fs::read_to_string(log).unwrap_or_default());
        }
        // Whatever else it prints must not fill the pipe.
        std::thread::spawn(move || std::io::copy(&mut reader, &mut std::io::sink()));
        Ok(process)
    }

    /// CPU seconds so far, user and system.
    pub fn cpu_seconds(&self) -> anyhow::Result<f64> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let ticks = |index: usize| fields.get(index).and_then(|f| f.parse::<u64>().ok()).unwrap_or(0);
        // USER_HZ is 100 on every Linux that there is.
        Ok((ticks(11) + ticks(12)) as f64 / 100.0)
    }

    /// Begins its peak of memory again.
    pub fn reset_peak(&self) -> anyhow::Result<()> {
        Ok(std::fs::write(format!("/proc/{}/clear_refs", self.child.id()), "5")?)
    }

    /// A line of /proc/PID/status in bytes: `VmRSS`, `VmHWM`.
    pub fn memory(&self, key: &str) -> anyhow::Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find(|line| line.starts_with(key)).context("no such line in status")?;
        let kib: u64 = line.split_whitespace().nth(1).and_then(|n| n.parse().ok()).context("no number in status")?;
        Ok(kib * 1024)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A coordinator with its folder.
pub struct Coordinator {
    pub programs: Programs,
    /// Its own folder.
    pub folder: PathBuf,
    pub process: Process,
}

impl Coordinator {
    /// Makes and starts one on loopback.
    pub fn start(programs: Programs, folder: &Path) -> anyhow::Result<Coordinator> {
        let ports: Vec<u16> = (0..3)
            .map(|_| Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port()))
            .collect::<std::io::Result<_>>()?;
        let dir = folder.join("coordinator");
        let mut init = Command::new(&programs.fedge);
        init.args(["coordinator", "init", "--host", "127.0.0.1", "--listen", "127.0.0.1", "--dir"]).arg(&dir);
        for (flag, port) in ["--federation-port", "--enrolment-port", "--operators-port"].iter().zip(&ports) {
            init.arg(flag).arg(port.to_string());
        }
        succeed(&mut init)?;
        let mut run = Command::new(&programs.fedge);
        run.args(["coordinator", "run", "--dir"]).arg(&dir);
        let process = Process::start(&mut run, &folder.join("coordinator.log"))?;
        Ok(Coordinator { programs, folder: dir, process })
    }

    /// Gives each name an identity in a folder of its own, as joining would; a thousand tokens are not what is measured.
    pub fn enrol(&self, names: &[String], parent: &Path) -> anyhow::Result<()> {
        let authority = Authority::load(&init::authority_folder(&self.folder))?;
        let connection = init::connection(&authority, &Config::load(&self.folder)?);
        for name in names {
            let identity = issue(&authority, Role::Node, name)?;
            let folder = parent.join(name);
            std::fs::create_dir_all(&folder)?;
            fedge_node::run::identity_directory(&folder).create(&identity, &connection)?;
        }
        Ok(())
    }

    /// A client's identity.
    // Not every benchmark asks nodes.
    #[allow(dead_code)]
    pub fn client(&self, name: &str) -> anyhow::Result<Identity> {
        issue(&Authority::load(&init::authority_folder(&self.folder))?, Role::Client, name)
    }

    /// Starts a process of all the nodes in `parent`.
    pub fn start_nodes(&self, parent: &Path) -> anyhow::Result<Process> {
        let mut command = Command::new(&self.programs.node);
        command.arg("--dirs").arg(parent).args(["--model", crate::MODEL]);
        Process::start(&mut command, &parent.with_extension("log"))
    }

    /// Runs a command of an operator that prints JSON.
    pub fn operate(&self, arguments: &[&str]) -> anyhow::Result<Value> {
        let printed = self.command(arguments, true)?;
        serde_json::from_str(printed.trim()).with_context(|| format!("fedge {arguments:?} printed {printed}"))
    }

    /// Runs a command of an operator.
    pub fn command(&self, arguments: &[&str], json: bool) -> anyhow::Result<String> {
        let mut command = Command::new(&self.programs.fedge);
        command.args(arguments).arg("--identity").arg(self.folder.join("operator"));
        if json {
            command.arg("--json");
        }
        succeed(&mut command)
    }

    /// Waits until so many nodes are available for the model.
    pub fn wait_for_nodes(&self, nodes: usize) -> anyhow::Result<Duration> {
        let started = std::time::Instant::now();
        loop {
            let listed = self.operate(&["coordinator", "nodes"])?;
            let available =
                |n: &&Value| n["available"] == true && n["serving"].as_array().is_some_and(|s| !s.is_empty());
            if listed.as_array().is_some_and(|all| all.iter().filter(available).count() >= nodes) {
                return Ok(started.elapsed());
            }
            ensure!(started.elapsed() < Duration::from_secs(120), "not all nodes came within two minutes");
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

/// Nodes can be reached on loopback.
fn issue(authority: &Authority, role: Role, id: &str) -> anyhow::Result<Identity> {
    let host_names = if role == Role::Node { vec!["127.0.0.1".parse::<HostName>()?] } else { Vec::new() };
    let subject = Subject { role, id: id.to_owned(), host_names };
    Ok(authority.issue_identity(&subject, LEAF_LIFETIME, SystemTime::now())?.0)
}

fn succeed(command: &mut Command) -> anyhow::Result<String> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("starting {command:?}"))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    ensure!(output.status.success(), "{command:?}\n{}{}", text(&output.stdout), text(&output.stderr));
    Ok(text(&output.stdout))
}
