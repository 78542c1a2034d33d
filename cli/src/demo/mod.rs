//! `fedge demo`: the whole story on one machine, with real processes, real TLS and real data.
//! It uses the same commands and calls as everybody: no door of its own.

mod data;
mod fleet;
mod report;
mod traffic;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use clap::Args;
use fedge_models::float::FloatRunner;
use fedge_models::{Model, Preprocessing};
use fedge_proto::operators::{ListNodesRequest, RoundSummary, task_event::Event};

use self::data::{Digit, Split};
use self::fleet::Fleet;
use self::report::{Report, Row};
use self::traffic::{Clients, MODEL_NAME, lock};
use crate::operator::{Operator, refused};
use crate::{output, process, task};

/// Marks a folder that the demo made and may replace.
const MARKER: &str = ".fedge-demo";
/// Longest wait for all nodes to serve the first version in int8.
const FIRST_SERVE: Duration = Duration::from_secs(60);

/// Flags of `demo`.
#[derive(Debug, Args)]
pub(crate) struct Demo {
    /// Number of nodes
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=16))]
    nodes: u8,
    /// Number of rounds
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..=1000))]
    rounds: u16,
    /// Seed of the split and of training
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Where everything is made; an earlier demo there is replaced
    #[arg(long, default_value = "fedge-demo")]
    dir: PathBuf,
    /// Print one JSON object as the last line
    #[arg(long)]
    json: bool,
}

impl Demo {
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        process::log("warn");
        prepare_folder(&self.dir)?;
        let split = data::split(self.nodes.into(), self.seed)?;
        let started = Instant::now();
        println!("{}", report::introduction(&self.dir, &split));
        let mut fleet = tokio::select! {
            fleet = Fleet::start(&self.dir, &split) => fleet?,
            () = process::asked_to_end(false) => bail!("interrupted; everything that was started has ended"),
        };
        let told = tokio::select! {
            told = self.tell(&mut fleet, &split, started) => told,
            () = process::asked_to_end(false) => Err(anyhow::anyhow!("interrupted; everything that was started has ended")),
        };
        fleet.stop().await;
        let report = told?;
        println!("{}", report.summary(&self.dir, &called_as()));
        if self.json {
            output::json(&report.json())?;
        }
        report.verdict()
    }

    async fn tell(&self, fleet: &mut Fleet, split: &Split, started: Instant) -> anyhow::Result<Report> {
        let operator = Operator::connect(&fleet.operator_identity).await?;
        let model = Model::from_bytes(data::MODEL.to_vec())?;
        let preprocessing = Preprocessing { scale: 1.0 / 16.0, ..Preprocessing::default() };
        let labels = (0..data::CLASSES).map(|c| c.to_string()).collect();
        operator.publish(MODEL_NAME, &model, labels, &preprocessing).await?;
        wait_until_served(&operator, fleet).await?;

        let held_out = Arc::new(split.held_out.clone());
        let clients = Clients::connect(fleet).await?;
        let mut predictions = BTreeMap::from([(1, predict(&model, &preprocessing, &held_out)?)]);
        let accuracy_initial = accuracy(&predictions[&1], &held_out);
        let (seen, sending) = clients.start_traffic(held_out.clone());
        let sending_since = Instant::now();

        let id = task::create(&operator, self.specification()).await?.id;
        let mut events = task::events(&operator, &id).await?;
        println!("{}", report::header(split.nodes.len()));
        println!("{}", report::initial_row(accuracy_initial));
        let (spinner, mut rows) = (output::spinner(), Vec::new());
        while let Some(event) = events.message().await.map_err(refused)? {
            fleet.check()?;
            match event.event {
                Some(Event::Status(status)) => spinner.set_message(status),
                Some(Event::Round(round)) => {
                    let row =
                        self.row(&operator, &clients, &round, &preprocessing, &held_out, &mut predictions).await?;
                    spinner.suspend(|| println!("{}", report::row(&row)));
                    rows.push(row);
                }
                Some(Event::Ended(_)) | None => break,
            }
        }
        spinner.finish_and_clear();
        let scores = clients.score(&held_out).await?;
        // The last requests see the last version, too.
        tokio::time::sleep(Duration::from_millis(300)).await;
        sending.abort();
        let sending_seconds = sending_since.elapsed().as_secs_f64();
        tokio::time::sleep(Duration::from_millis(300)).await;
        fleet.check()?;
        let newest = predictions.last_key_value().context("no version")?;
        let seen = std::mem::take(&mut *lock(&seen));
        Ok(Report {
            accuracy_initial,
            accuracy_float: accuracy(newest.1, &held_out),
            final_version: *newest.0,
            agreement: agreement(&seen, &predictions),
            scores,
            rows,
            rounds: self.rounds.into(),
            nodes: self.nodes.into(),
            seed: self.seed,
            seen,
            sending_seconds,
            memory: fleet.peak_memory(),
            seconds: started.elapsed().as_secs_f64(),
        })
    }

    /// What a round brought: the new version's accuracy in float here, and in int8 on each running server.
    async fn row(
        &self,
        operator: &Operator,
        clients: &Clients,
        round: &RoundSummary,
        preprocessing: &Preprocessing,
        held_out: &[Digit],
        predictions: &mut BTreeMap<u64, Vec<usize>>,
    ) -> anyhow::Result<Row> {
        let mut row = Row { round: round.clone(), float: None, int8: None };
        if round.version > 0 {
            let (_, model) = operator.download(MODEL_NAME, round.version).await?;
            let predicted = predict(&model, preprocessing, held_out)?;
            row.float = Some(accuracy(&predicted, held_out));
            predictions.insert(round.version, predicted);
            let scores = clients.score(held_out).await?;
            row.int8 = scores.iter().map(|s| s.correct as f64 / s.total as f64).reduce(f64::min);
        }
        Ok(row)
    }

    /// The task file of the demo.
    fn specification(&self) -> String {
        format!(
            "model = \"{MODEL_NAME}\"\nstrategy = \"fedavg\"\n\n\
             [rounds]\ncount = {}\nmin_nodes = {}\nseed = {}\n\n\
             [training]\nepochs = 5\nbatch_size = 32\nlearning_rate = 0.05\nmomentum = 0.9\nseed = {}\n",
            self.rounds, self.nodes, self.seed, self.seed
        )
    }
}

/// How to call this program again: by its name where it is on the PATH, else by the path that it was called with.
fn called_as() -> String {
    let called = std::env::args().next().unwrap_or_default();
    let name = Path::new(&called).file_stem().unwrap_or_default();
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).any(|folder| folder.join(name).is_file());
    if found { name.to_string_lossy().into_owned() } else { called }
}

/// An empty folder; what an earlier demo left there goes, anything else stays and is an error.
fn prepare_folder(folder: &Path) -> anyhow::Result<()> {
    if folder.join(MARKER).exists() {
        refuse_if_in_use(folder)?;
        std::fs::remove_dir_all(folder).with_context(|| format!("cannot replace {}", folder.display()))?;
    }
    std::fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let occupied = std::fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?.next();
    ensure!(occupied.is_none(), "{} is not empty and was not made by a demo: give another --dir", folder.display());
    let marker = folder.join(MARKER);
    std::fs::write(&marker, "made by `fedge demo`, which replaces this folder\n")
        .with_context(|| format!("cannot write {}", marker.display()))
}

/// A coordinator or node of an earlier demo may still run on its folder: it holds the lock there.
fn refuse_if_in_use(folder: &Path) -> anyhow::Result<()> {
    for entry in std::fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?.flatten() {
        for name in ["coordinator.lock", "node.lock"] {
            let Ok(lock) = std::fs::File::open(entry.path().join(name)) else { continue };
            if matches!(lock.try_lock(), Err(std::fs::TryLockError::WouldBlock)) {
                bail!("{} is in use: stop what runs there first, or give another --dir", entry.path().display());
            }
        }
    }
    Ok(())
}

async fn wait_until_served(operator: &Operator, fleet: &mut Fleet) -> anyhow::Result<()> {
    let deadline = Instant::now() + FIRST_SERVE;
    loop {
        let nodes = operator.client().list_nodes(ListNodesRequest {}).await.map_err(refused)?.into_inner().nodes;
        let served = nodes.iter().flat_map(|n| &n.serving).filter(|s| s.number == 1 && s.precision == "int8").count();
        if served >= fleet.nodes.len() {
            return Ok(());
        }
        fleet.check()?;
        if Instant::now() > deadline {
            bail!(
                "only {served} of {} nodes serve the model in int8 after {} s: {nodes:?}",
                fleet.nodes.len(),
                FIRST_SERVE.as_secs()
            );
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// The float model's classes of the digits, computed here.
fn predict(model: &Model, preprocessing: &Preprocessing, digits: &[Digit]) -> anyhow::Result<Vec<usize>> {
    let shape = model.input().sample_shape();
    let mut pixels: Vec<f32> = digits.iter().flat_map(|d| d.pixels.iter().copied()).collect();
    preprocessing.apply(&mut pixels, &shape);
    let batch: Vec<usize> = std::iter::once(digits.len()).chain(shape).collect();
    let logits = FloatRunner::new(model)?.run(ndarray::ArrayViewD::from_shape(batch, &pixels)?)?;
    Ok(logits.rows().into_iter().filter_map(|row| argmax(&row.to_vec())).collect())
}

/// Index of the largest value; the first of equals.
pub(crate) fn argmax(row: &[f32]) -> Option<usize> {
    row.iter().enumerate().reduce(|best, next| if next.1 > best.1 { next } else { best }).map(|(index, _)| index)
}

fn accuracy(predicted: &[usize], digits: &[Digit]) -> f64 {
    let correct = digits.iter().zip(predicted).filter(|(d, p)| d.label == **p).count();
    correct as f64 / digits.len().max(1) as f64
}

/// Share of the traffic's answers that equal the float model's class of the same version.
fn agreement(seen: &traffic::Seen, predictions: &BTreeMap<u64, Vec<usize>>) -> f64 {
    let known = seen.answers.iter().filter_map(|a| Some((a.class, *predictions.get(&a.version)?.get(a.digit)?)));
    let (mut same, mut all) = (0u64, 0u64);
    for (answered, predicted) in known {
        same += u64::from(answered == predicted);
        all += 1;
    }
    if all == 0 { 0.0 } else { same as f64 / all as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_equal_largest_values_is_the_class() {
        assert_eq!(argmax(&[1.0, 3.0, 3.0]), Some(1));
        assert_eq!(argmax(&[]), None);
    }
}
