//! A process under measurement, with its children: CPU time, memory, and what it printed when it was ready.
//! What is measured is the matter of each benchmark.

// Each benchmark uses a part of it.
#![allow(dead_code)]

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

/// Processes that are looked at.
pub struct Watched {
    roots: Vec<u32>,
    child: Option<Child>,
    line: String,
    /// When the process was started, if it was started here.
    pub started: Option<Instant>,
}

impl Watched {
    /// Processes that somebody else started.
    pub fn of(pids: &[u32]) -> Watched {
        Watched { roots: pids.to_vec(), child: None, line: String::new(), started: None }
    }

    /// Starts a process and waits for its first line, which must say "ready". It is killed when dropped.
    pub fn start(command: &mut Command) -> anyhow::Result<Watched> {
        let started = Instant::now();
        command.env("FEDGE_LOG", "warn");
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
        let mut child = child.with_context(|| format!("starting {command:?}"))?;
        let stdout = child.stdout.take().context("standard output")?;
        let mut watched =
            Watched { roots: vec![child.id()], child: Some(child), line: String::new(), started: Some(started) };
        BufReader::new(stdout).read_line(&mut watched.line)?;
        ensure!(watched.line.contains("ready"), "{command:?} printed {:?}", watched.line);
        Ok(watched)
    }

    /// The word after this text of its first line.
    pub fn word_after(&self, text: &str) -> anyhow::Result<String> {
        let rest = self.line.split_once(text).with_context(|| format!("no {text:?} in {:?}", self.line))?.1;
        Ok(rest.split([' ', ',']).next().unwrap_or_default().trim().to_owned())
    }

    /// CPU seconds so far, user and system, of all that live.
    pub fn cpu_seconds(&self) -> anyhow::Result<f64> {
        let mut ticks = 0;
        for pid in self.all() {
            let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { continue };
            let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
            let of = |index: usize| fields.get(index).and_then(|field| field.parse::<u64>().ok()).unwrap_or(0);
            ticks += of(11) + of(12);
        }
        // USER_HZ is 100 on every Linux that there is.
        Ok(ticks as f64 / 100.0)
    }

    /// The sum of a line of /proc/PID/status in bytes: `VmRSS`, `VmHWM`. Shared pages count in each.
    pub fn memory(&self, key: &str) -> anyhow::Result<u64> {
        let mut kib = 0;
        for pid in self.all() {
            let Ok(status) = std::fs::read_to_string(format!("/proc/{pid}/status")) else { continue };
            let line = status.lines().find(|line| line.starts_with(key)).unwrap_or_default();
            kib += line.split_whitespace().nth(1).and_then(|number| number.parse::<u64>().ok()).unwrap_or(0);
        }
        Ok(kib * 1024)
    }

    /// Open file descriptors.
    pub fn descriptors(&self) -> usize {
        let of = |pid: u32| std::fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count);
        self.all().into_iter().map(of).sum()
    }

    /// Asks a process that was started here to end, and waits for it: the time that took and whether it ended well; none
    /// where it did not end in time.
    pub fn terminate(&mut self, within: Duration) -> anyhow::Result<Option<(Duration, bool)>> {
        let child = self.child.as_mut().context("it was not started here")?;
        let pid = rustix::process::Pid::from_raw(i32::try_from(child.id())?).context("a process id")?;
        let started = Instant::now();
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        while started.elapsed() < within {
            if let Some(status) = child.try_wait()? {
                return Ok(Some((started.elapsed(), status.success())));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(None)
    }

    /// The processes and all that descend from them.
    fn all(&self) -> Vec<u32> {
        let mut all = self.roots.clone();
        let mut next = 0;
        while let Some(pid) = all.get(next).copied() {
            next += 1;
            let Ok(tasks) = std::fs::read_dir(format!("/proc/{pid}/task")) else { continue };
            for task in tasks.flatten() {
                let children = std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
                all.extend(children.split_whitespace().filter_map(|child| child.parse::<u32>().ok()));
            }
        }
        all
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
