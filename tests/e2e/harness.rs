//! Starts coordinators and nodes as processes and runs commands against them. No test lives here.
//! Everything is in a temporary folder of its own and ends with its value.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// The program under test.
pub fn fedge() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fedge-under-test"));
    command.env("FEDGE_LOG", "info");
    command
}

/// Runs a command that must succeed; gives what it printed.
pub fn succeed(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output().expect("the program starts");
    assert!(output.status.success(), "{command:?}\n{}\n{}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

/// Runs a command that must fail with status 1; gives its error text.
pub fn fail(command: &mut Command) -> String {
    let output = run(command);
    assert_eq!(output.status.code(), Some(1), "{command:?}\n{}\n{}", text(&output.stdout), text(&output.stderr));
    text(&output.stderr)
}

/// Runs a command.
pub fn run(command: &mut Command) -> Output {
    command.stdin(Stdio::null()).output().expect("the program starts")
}

/// Runs a command that must succeed and parses the JSON that it printed.
pub fn json(command: &mut Command) -> Value {
    let printed = succeed(command);
    serde_json::from_str(printed.trim()).unwrap_or_else(|e| panic!("{command:?} printed no JSON ({e}): {printed}"))
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A file of the project.
pub fn project(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

/// Free TCP ports of the loopback interface.
pub fn free_ports<const N: usize>() -> [u16; N] {
    let held = [(); N].map(|()| std::net::TcpListener::bind("127.0.0.1:0").expect("a free port"));
    held.map(|listener| listener.local_addr().expect("an address").port())
}

/// Waits until `done` gives something, at most three minutes: a bound for hangs, not a measure.
pub fn wait_for<T>(what: &str, mut done: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(180);
    loop {
        if let Some(value) = done() {
            return value;
        }
        assert!(Instant::now() < deadline, "waited three minutes for {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A running process, killed when dropped.
pub struct Process {
    child: Child,
    pub log: PathBuf,
}

impl Process {
    /// Starts it and waits for its line that says "ready".
    pub fn start(command: &mut Command, log: PathBuf) -> Process {
        let mut process = Process::spawn(command, log);
        let stdout = process.child.stdout.take().expect("standard output");
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line).expect("a line");
        assert!(line.contains("ready"), "{command:?}: {line}{}", process.log());
        process
    }

    fn spawn(command: &mut Command, log: PathBuf) -> Process {
        let file = std::fs::OpenOptions::new().create(true).append(true).open(&log).expect("log file");
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(file).spawn().expect("start");
        Process { child, log }
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Waits until it has died of itself.
    pub fn wait_until_dead(&mut self, why: &str) {
        wait_for(why, || self.child.try_wait().expect("a child").map(|_| ()));
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A coordinator in a temporary folder.
pub struct Coordinator {
    folder: tempfile::TempDir,
    process: Option<Process>,
    pub ports: [u16; 3],
}

impl Coordinator {
    /// Initialises and starts one, with quick heartbeats.
    pub fn start() -> Coordinator {
        Coordinator::start_in(tempfile::tempdir().expect("folder"))
    }

    /// As `start`, in this folder.
    pub fn start_in(folder: tempfile::TempDir) -> Coordinator {
        let ports = free_ports::<3>();
        let [federation, enrolment, operators] = ports.map(|p| p.to_string());
        let mut coordinator = Coordinator { folder, process: None, ports };
        succeed(
            fedge()
                .args(["coordinator", "init", "--host", "127.0.0.1", "--listen", "127.0.0.1"])
                .args(["--federation-port", &federation, "--enrolment-port", &enrolment])
                .args(["--operators-port", &operators, "--dir"])
                .arg(coordinator.home()),
        );
        coordinator.restart();
        coordinator
    }

    /// Kills it, if it runs, and starts it again on the same folder.
    pub fn restart(&mut self) {
        self.restart_with(&[]);
    }

    /// As `restart`; it dies when it passes this point (`name` or `name:passes`).
    pub fn restart_to_die_at(&mut self, point: &str) {
        self.restart_with(&[("FEDGE_KILL_AT", point)]);
    }

    fn restart_with(&mut self, environment: &[(&str, &str)]) {
        self.kill();
        let mut command = fedge();
        command.envs(environment.iter().copied());
        command
            .args(["coordinator", "run", "--heartbeat-ms", "200", "--liveness-ms", "4000", "--dir"])
            .arg(self.home());
        self.process = Some(Process::start(&mut command, self.folder.path().join("coordinator.log")));
    }

    /// Waits until the point has killed it.
    pub fn wait_until_dead(&mut self, why: &str) {
        self.process.as_mut().expect("a process").wait_until_dead(why);
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill();
        }
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub fn home(&self) -> PathBuf {
        self.folder.path().join("coordinator")
    }

    pub fn operator(&self) -> PathBuf {
        self.home().join("operator")
    }

    pub fn enrolment(&self) -> String {
        format!("127.0.0.1:{}", self.ports[1])
    }

    /// Mints a token.
    pub fn token(&self, role: &str, name: &str) -> String {
        let mut command = fedge();
        command.args(["coordinator", "token", "--json", "--role", role, "--name", name, "--dns-name", "127.0.0.1"]);
        let minted = json(command.arg("--dir").arg(self.home()));
        minted["token"].as_str().expect("a token").to_owned()
    }

    /// Enrols an operator or a client; gives its identity directory.
    pub fn enrol(&self, role: &str, name: &str) -> PathBuf {
        let directory = self.folder.path().join(name);
        let token = self.token(role, name);
        succeed(
            fedge().args(["enrol", "--coordinator", &self.enrolment(), "--token", &token, "--dir"]).arg(&directory),
        );
        directory
    }

    /// A command as the first operator.
    pub fn as_operator(&self, arguments: &[&str]) -> Command {
        let mut command = fedge();
        command.args(arguments).arg("--identity").arg(self.operator());
        command
    }

    /// Publishes the demo's model as "digits".
    pub fn publish_digits(&self) {
        let model = project("models/zoo/digits_cnn.onnx");
        let mut command = self.as_operator(&["model", "publish", "--name", "digits", "--scale", "0.0625"]);
        succeed(command.args(["--labels", "0,1,2,3,4,5,6,7,8,9"]).arg(model));
    }

    /// Starts a task; gives its id.
    pub fn create_task(&self, specification: &str) -> String {
        let file = self.folder.path().join("task.toml");
        std::fs::write(&file, specification).expect("task file");
        let created = json(self.as_operator(&["task", "create", "--json"]).arg(file));
        created["id"].as_str().expect("an id").to_owned()
    }

    pub fn task(&self, id: &str) -> Value {
        json(&mut self.as_operator(&["task", "show", "--json", id]))
    }

    /// Waits for a task's end.
    pub fn wait_for_end(&self, id: &str) -> Value {
        wait_for("the task's end", || {
            let task = self.task(id);
            (task["state"] != "running").then_some(task)
        })
    }
}

/// A node in a folder of its coordinator's.
pub struct Node {
    pub home: PathBuf,
    pub address: String,
    process: Option<Process>,
    arguments: Vec<String>,
}

impl Node {
    /// Joins and starts a node that learns from these rows of the digits.
    pub fn start(coordinator: &Coordinator, name: &str, rows: &[String]) -> Node {
        let home = coordinator.folder().join(name);
        let token = coordinator.token("node", name);
        let join = ["node", "join", "--coordinator", &coordinator.enrolment(), "--token", &token, "--dir"];
        succeed(fedge().args(join).arg(&home));
        let data = home.join("digits.csv");
        std::fs::write(&data, format!("{}\n", rows.join("\n"))).expect("data file");
        let [port] = free_ports();
        let address = format!("127.0.0.1:{port}");
        let arguments = vec!["--listen".to_owned(), address.clone(), "--data".to_owned(), data.display().to_string()];
        let mut node = Node { home, address, process: None, arguments };
        node.restart();
        node
    }

    /// Kills it, if it runs, and starts it again on the same folder.
    pub fn restart(&mut self) {
        self.kill();
        let mut command = fedge();
        command.args(["node", "run", "--dir"]).arg(&self.home).args(&self.arguments);
        self.process = Some(Process::start(&mut command, self.home.join("node.log")));
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill();
        }
    }

    pub fn status(&self) -> Value {
        json(fedge().args(["node", "status", "--json", "--dir"]).arg(&self.home))
    }

    /// Waits until it serves a version, and gives what it says of it.
    pub fn wait_until_serving(&self, number: u64) -> Value {
        wait_for("a node that serves", || {
            let served = self.status()["status"]["serving"][0].clone();
            (served["number"].as_u64() == Some(number)).then_some(served)
        })
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.home.join("node.log")).unwrap_or_default()
    }
}

/// The digits as CSV rows, without the header.
pub fn digits() -> Vec<String> {
    let text = std::fs::read_to_string(project("models/zoo/digits.csv")).expect("digits");
    text.lines().skip(1).map(str::to_owned).collect()
}

/// Every `n`-th row, beginning at `first`.
pub fn every(rows: &[String], n: usize, first: usize) -> Vec<String> {
    rows.iter().skip(first).step_by(n).cloned().collect()
}
