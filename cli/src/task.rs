//! `fedge task`: create, list, show, watch, pause, resume, cancel.
//! What a task is, and how its rounds go, is the coordinator's matter.

use std::path::PathBuf;

use anyhow::Context;
use clap::{Args, Subcommand};
use fedge_proto::operators::{
    CancelTaskRequest, CreateTaskRequest, ListTasksRequest, PauseTaskRequest, ResumeTaskRequest, RoundSummary,
    ShowTaskRequest, Task, TaskEvent, WatchTaskRequest, task_event::Event,
};

use crate::operator::{Operator, OperatorFlags, refused};
use crate::{output, process};

/// Federated training.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Start a task from its file
    Create(Create),
    /// All tasks
    List(List),
    /// One task with its rounds
    Show(One),
    /// Follow a task until it ends: what it waits for, each round
    Watch(One),
    /// Begin no new round; the one under way is finished
    Pause(One),
    /// Go on with a paused task
    Resume(One),
    /// End a running task; its versions stay
    Cancel(One),
}

/// Flags of `create`.
#[derive(Debug, Args)]
pub(crate) struct Create {
    /// The task file, TOML (docs/task.md describes it)
    file: PathBuf,
    #[command(flatten)]
    operator: OperatorFlags,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Flags of `list`.
#[derive(Debug, Args)]
pub(crate) struct List {
    #[command(flatten)]
    operator: OperatorFlags,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Flags of the commands on one task.
#[derive(Debug, Args)]
pub(crate) struct One {
    /// The task's id
    id: String,
    #[command(flatten)]
    operator: OperatorFlags,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Command {
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        process::log("warn");
        match self {
            Command::Create(create) => create.run().await,
            Command::List(list) => list.run().await,
            Command::Show(one) => {
                let request = ShowTaskRequest { id: one.id.clone() };
                let mut client = one.operator.connect().await?.client();
                print(&client.show_task(request).await.map_err(refused)?.into_inner(), one.json)
            }
            Command::Watch(one) => one.watch().await,
            Command::Pause(one) => {
                let request = PauseTaskRequest { id: one.id.clone() };
                let mut client = one.operator.connect().await?.client();
                print(&client.pause_task(request).await.map_err(refused)?.into_inner(), one.json)
            }
            Command::Resume(one) => {
                let request = ResumeTaskRequest { id: one.id.clone() };
                let mut client = one.operator.connect().await?.client();
                print(&client.resume_task(request).await.map_err(refused)?.into_inner(), one.json)
            }
            Command::Cancel(one) => {
                let request = CancelTaskRequest { id: one.id.clone() };
                let mut client = one.operator.connect().await?.client();
                print(&client.cancel_task(request).await.map_err(refused)?.into_inner(), one.json)
            }
        }
    }
}

impl Create {
    async fn run(self) -> anyhow::Result<()> {
        let specification = std::fs::read_to_string(&self.file)
            .with_context(|| format!("cannot read the task file {}", self.file.display()))?;
        let task = create(&self.operator.connect().await?, specification).await?;
        if self.json {
            return output::json(&task_json(&task));
        }
        println!("Task {} runs on {}.", task.id, task.model_name);
        println!("Next: fedge task watch {}", task.id);
        Ok(())
    }
}

/// Starts a task.
pub(crate) async fn create(operator: &Operator, specification: String) -> anyhow::Result<Task> {
    let request = CreateTaskRequest { specification };
    Ok(operator.client().create_task(request).await.map_err(refused)?.into_inner())
}

/// A task's events, from its beginning.
pub(crate) async fn events(operator: &Operator, id: &str) -> anyhow::Result<tonic::Streaming<TaskEvent>> {
    let request = WatchTaskRequest { id: id.to_owned() };
    Ok(operator.client().watch_task(request).await.map_err(refused)?.into_inner())
}

impl List {
    async fn run(self) -> anyhow::Result<()> {
        let mut client = self.operator.connect().await?.client();
        let tasks = client.list_tasks(ListTasksRequest {}).await.map_err(refused)?.into_inner().tasks;
        if self.json {
            return output::json(&tasks.iter().map(task_json).collect::<Vec<_>>());
        }
        let mut table = output::table(&["task", "model", "state", "rounds", "version", "created"], &[3, 4]);
        for t in tasks {
            let rounds = format!("{}/{}", t.rounds_done, t.rounds_total);
            let (version, created) = (t.newest_version.to_string(), output::ago(t.created_ms));
            table.add_row([t.id, t.model_name, t.state, rounds, version, created]);
        }
        println!("{table}");
        Ok(())
    }
}

impl One {
    async fn watch(self) -> anyhow::Result<()> {
        let mut stream = events(&self.operator.connect().await?, &self.id).await?;
        let lost = |status| {
            let again = format!("the task goes on; `fedge task watch {}` follows it again", self.id);
            refused(status).context(again)
        };
        let spinner = output::spinner();
        if !self.json {
            println!("{ROUND_HEADER}");
        }
        while let Some(event) = stream.message().await.map_err(lost)? {
            match event.event {
                Some(Event::Status(status)) if self.json => {
                    output::json(&serde_json::json!({ "status": status }))?;
                }
                // Elsewhere than on a terminal the table's lines are enough, and what a waiting task waits for.
                Some(Event::Status(status))
                    if spinner.is_hidden() && (status.contains("waits for nodes") || status.starts_with("paused")) =>
                {
                    println!("       {status}");
                }
                Some(Event::Status(status)) => spinner.set_message(status),
                Some(Event::Round(round)) if self.json => output::json(&round_json(&round))?,
                Some(Event::Round(round)) => spinner.suspend(|| println!("{}", round_line(&round))),
                Some(Event::Ended(task)) => {
                    spinner.finish_and_clear();
                    return ended(&task, self.json);
                }
                None => {}
            }
        }
        anyhow::bail!("the coordinator ended the watch: it is shutting down, or was restarted; watch again")
    }
}

/// Says how a task ended; an error when nothing came of it.
fn ended(task: &Task, json: bool) -> anyhow::Result<()> {
    if json {
        output::json(&task_json(task))?;
    } else {
        println!("{} {}: {}", task.id, task.state, task.status);
    }
    let fruitless = !task.rounds.iter().any(|r| r.outcome == "aggregated");
    anyhow::ensure!(task.state != "finished" || !fruitless, "no round of {} succeeded; its rounds say why", task.id);
    Ok(())
}

const ROUND_HEADER: &str =
    "round  version  outcome      nodes  examples   float    int8    loss       up     down      time";

fn round_line(r: &RoundSummary) -> String {
    let trained = r.nodes.iter().filter(|n| matches!(n.outcome.as_str(), "trained" | "partial")).count();
    let examples: u64 = r.nodes.iter().map(|n| n.examples).sum();
    let mut line = format!(
        "{:>5}  {:>7}  {:<11}  {:>2}/{:<2}  {:>8}  {:>6}  {:>6}  {:>6}  {:>7}  {:>7}  {:>6.1} s",
        r.round,
        if r.version == 0 { "–".to_owned() } else { r.version.to_string() },
        r.outcome,
        trained,
        r.nodes.len(),
        examples,
        output::percent(r.correct_float, r.evaluated_examples),
        output::percent(r.correct_served, r.evaluated_examples),
        if r.evaluated_examples == 0 { "–".to_owned() } else { format!("{:.4}", r.loss) },
        output::bytes(r.bytes_up),
        output::bytes(r.bytes_down),
        r.duration_ms as f64 / 1000.0
    );
    if !r.reason.is_empty() {
        line.push_str(&format!("\n       {}", r.reason));
    }
    for node in r.nodes.iter().filter(|n| !n.reason.is_empty()) {
        line.push_str(&format!("\n       {}: {}", node.node, node.reason));
    }
    line
}

fn print(task: &Task, json: bool) -> anyhow::Result<()> {
    if json {
        return output::json(&task_json(task));
    }
    println!("task      {} on {}", task.id, task.model_name);
    println!("state     {}: {}", task.state, task.status);
    println!("rounds    {} of {}, newest version {}", task.rounds_done, task.rounds_total, task.newest_version);
    for (reason, count) in &task.refused {
        println!("refused   {count} updates: {reason}");
    }
    println!("{ROUND_HEADER}");
    for round in &task.rounds {
        println!("{}", round_line(round));
    }
    Ok(())
}

fn task_json(t: &Task) -> serde_json::Value {
    serde_json::json!({
        "id": t.id, "model": t.model_name, "state": t.state, "status": t.status, "rounds_done": t.rounds_done,
        "rounds_total": t.rounds_total, "newest_version": t.newest_version, "refused": t.refused,
        "rounds": t.rounds.iter().map(round_json).collect::<Vec<_>>(), "specification": t.specification,
        "created_ms": t.created_ms,
    })
}

fn round_json(r: &RoundSummary) -> serde_json::Value {
    let nodes: Vec<_> = r
        .nodes
        .iter()
        .map(|n| {
            serde_json::json!({
                "node": n.node, "outcome": n.outcome, "reason": n.reason, "examples": n.examples, "steps": n.steps,
                "loss_first": n.loss_first, "loss_last": n.loss_last, "duration_ms": n.duration_ms,
                "evaluated_examples": n.evaluated_examples, "correct_float": n.correct_float,
                "correct_served": n.correct_served, "precision": n.precision, "staleness": n.staleness,
            })
        })
        .collect();
    serde_json::json!({
        "round": r.round, "outcome": r.outcome, "reason": r.reason, "version": r.version,
        "duration_ms": r.duration_ms, "bytes_up": r.bytes_up, "bytes_down": r.bytes_down,
        "evaluated_examples": r.evaluated_examples, "correct_float": r.correct_float,
        "correct_served": r.correct_served, "loss": r.loss, "nodes": nodes,
    })
}
