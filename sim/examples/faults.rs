//! Runs seeds of the simulation of rounds under faults: one with its trace, or many with their coverage.
//! What a seed stands for and what must hold is in `fedge_sim::faults`.

use std::process::ExitCode;
use std::time::Instant;

use fedge_sim::faults::{Bug, run, sweep};

const USAGE: &str = "\
Usage: faults --seed N [--bug NAME] [--trace]     one seed, with everything that happens in it
       faults --seeds FIRST..END [--bug NAME] [--threads N] [--coverage]     many seeds";

#[derive(Default)]
struct Options {
    seed: Option<u64>,
    seeds: Option<(u64, u64)>,
    bug: Option<Bug>,
    threads: Option<usize>,
    trace: bool,
    coverage: bool,
}

fn main() -> ExitCode {
    let options = match parse(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(problem) => {
            eprintln!("{problem}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    match (options.seed, options.seeds) {
        (Some(seed), None) => one(seed, &options),
        (None, Some((first, end))) => many(first, end, &options),
        _ => {
            eprintln!("say which seeds: --seed or --seeds\n{USAGE}");
            ExitCode::from(2)
        }
    }
}

fn one(seed: u64, options: &Options) -> ExitCode {
    let outcome = run(seed, options.bug, options.trace);
    outcome.lines.iter().for_each(|line| println!("{line}"));
    let seconds = outcome.ended_ms / 1000;
    println!("seed {seed}: {} events in {seconds} virtual seconds, trace {:016x}", outcome.events, outcome.hash);
    match outcome.violation {
        None => ExitCode::SUCCESS,
        Some(violation) => {
            println!("violates {violation}");
            ExitCode::FAILURE
        }
    }
}

fn many(first: u64, end: u64, options: &Options) -> ExitCode {
    let started = Instant::now();
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let threads = options.threads.unwrap_or(cores);
    let sweep = sweep(first..end, options.bug, threads, 10);
    let seconds = started.elapsed().as_secs_f64();
    print!("{}", sweep.report(options.bug));
    println!(
        "{} seeds, {} events in {seconds:.1} s on {threads} threads: {:.0} seeds a second",
        sweep.seeds,
        sweep.events,
        sweep.seeds as f64 / seconds
    );
    if options.coverage {
        println!("\n{}", sweep.coverage.table());
        let missing = sweep.coverage.missing();
        println!("never occurred: {}", if missing.is_empty() { "nothing".to_owned() } else { missing.join(", ") });
    }
    if sweep.violations.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn parse(mut args: impl Iterator<Item = String>) -> Result<Options, String> {
    let mut options = Options::default();
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or(format!("{arg} needs a value"));
        match arg.as_str() {
            "--seed" => options.seed = Some(number(&value()?)?),
            "--seeds" => {
                let text = value()?;
                let (first, end) = text.split_once("..").ok_or(format!("{text} is no range: FIRST..END"))?;
                options.seeds = Some((number(first)?, number(end)?));
            }
            "--bug" => {
                let name = value()?;
                let bug = Bug::ALL.into_iter().find(|bug| bug.name() == name);
                let known: Vec<String> = Bug::ALL.into_iter().map(Bug::name).collect();
                options.bug = Some(bug.ok_or(format!("{name} is no bug; there are {}", known.join(", ")))?);
            }
            "--threads" => options.threads = Some(number(&value()?)? as usize),
            "--trace" => options.trace = true,
            "--coverage" => options.coverage = true,
            _ => return Err(format!("{arg} is unknown")),
        }
    }
    Ok(options)
}

fn number(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| format!("{text} is no number"))
}
