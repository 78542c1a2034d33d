//! `fedge`: parses the command line, wires the rooms, prints.
//! No inference, training or aggregation lives here; neither do rounds.

#[cfg(feature = "coordinator")]
mod coordinator;
#[cfg(all(feature = "coordinator", feature = "node"))]
mod demo;
#[cfg(feature = "node")]
mod enrol;
#[cfg(feature = "node")]
mod infer;
#[cfg(all(feature = "coordinator", feature = "node"))]
mod learn;
#[cfg(feature = "node")]
mod measure;
mod model;
#[cfg(feature = "node")]
mod node;
mod operator;
mod output;
mod preprocessing;
mod process;
#[cfg(feature = "simulate")]
mod simulate;
#[cfg(feature = "node")]
mod softmax;
mod task;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// One ONNX file in; a fleet that serves it in int8 and keeps learning from its own data.
#[derive(Debug, Parser)]
#[command(name = "fedge", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// The whole story on one machine: a coordinator, nodes, rounds, and requests meanwhile
    #[cfg(all(feature = "coordinator", feature = "node"))]
    Demo(demo::Demo),
    /// The server: make one, run it, mint join tokens
    #[cfg(feature = "coordinator")]
    #[command(subcommand)]
    Coordinator(coordinator::Command),
    /// An edge node: join a coordinator, run, look at it
    #[cfg(feature = "node")]
    #[command(subcommand)]
    Node(node::Command),
    /// Redeem an operator's or client's join token
    #[cfg(feature = "node")]
    Enrol(enrol::Enrol),
    /// Model files and the versions that a coordinator holds
    #[command(subcommand)]
    Model(model::Command),
    /// Federated training: create a task, watch its rounds
    #[command(subcommand)]
    Task(task::Command),
    /// Try a task file on virtual nodes in this process, on a virtual clock
    #[cfg(feature = "simulate")]
    Simulate(Box<simulate::Simulate>),
    /// Ask a node about one sample, and send the right label back
    #[cfg(feature = "node")]
    Infer(infer::Infer),
}

/// The program: parses, runs, reports. Exit status 0, 1 for failures, 2 for a wrong command line.
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let done = process::runtime().and_then(|runtime| runtime.block_on(run(arguments.command)));
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", sentence(&error));
            ExitCode::FAILURE
        }
    }
}

/// An error and its causes, but for causes that the sentence says already.
fn sentence(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).fold(String::new(), |text, cause| {
        if text.contains(&cause) {
            text
        } else if text.is_empty() {
            cause
        } else {
            format!("{text}: {cause}")
        }
    })
}

async fn run(command: Command) -> anyhow::Result<()> {
    match command {
        #[cfg(all(feature = "coordinator", feature = "node"))]
        Command::Demo(demo) => demo.run().await,
        #[cfg(feature = "coordinator")]
        Command::Coordinator(command) => command.run().await,
        #[cfg(feature = "node")]
        Command::Node(command) => command.run().await,
        #[cfg(feature = "node")]
        Command::Enrol(enrol) => enrol.run().await,
        Command::Model(command) => command.run().await,
        Command::Task(command) => command.run().await,
        #[cfg(feature = "simulate")]
        Command::Simulate(simulate) => simulate.run().await,
        #[cfg(feature = "node")]
        Command::Infer(infer) => infer.run().await,
    }
}
