//! What the demo prints: the introduction, a line a round, the summary, JSON; and whether it went well.
//! Nothing is measured here.

use std::path::Path;

use fedge_proto::operators::RoundSummary;

use super::data::Split;
use super::traffic::{Score, Seen};
use crate::output;

/// Share of answers that must equal the float model's class: below, something else than quantization is wrong.
const LEAST_AGREEMENT: f64 = 0.95;
/// Accuracy that int8 may lose against float.
const INT8_LOSS: f64 = 0.01;
/// Failures that are shown.
const SHOWN_FAILURES: usize = 5;

/// One line of the table.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) round: RoundSummary,
    pub(super) float: Option<f64>,
    pub(super) int8: Option<f64>,
}

/// Everything that the demo found out.
#[derive(Debug)]
pub(super) struct Report {
    pub(super) accuracy_initial: f64,
    pub(super) accuracy_float: f64,
    pub(super) final_version: u64,
    pub(super) agreement: f64,
    pub(super) scores: Vec<Score>,
    pub(super) rows: Vec<Row>,
    pub(super) rounds: u64,
    pub(super) nodes: u64,
    pub(super) seed: u64,
    pub(super) seen: Seen,
    pub(super) sending_seconds: f64,
    pub(super) memory: Vec<(String, Option<u64>)>,
    pub(super) seconds: f64,
}

/// What is about to happen, and who has which digits.
pub(super) fn introduction(folder: &Path, split: &Split) -> String {
    let mut text = format!(
        "A coordinator and {} start in {}, over mutual TLS on loopback.\n\
         {} handwritten digits are kept aside for measuring; the rest is split unevenly:\n",
        count(split.nodes.len() as u64, "node"),
        folder.display(),
        split.held_out.len()
    );
    text.push_str("\n  digit     0    1    2    3    4    5    6    7    8    9   all\n");
    for (index, digits) in split.nodes.iter().enumerate() {
        text.push_str(&format!("  node-{:<2}", index + 1));
        for class in 0..super::data::CLASSES {
            text.push_str(&format!("{:>5}", digits.iter().filter(|d| d.label == class).count()));
        }
        text.push_str(&format!("{:>6}\n", digits.len()));
    }
    text
}

/// The table's head.
pub(super) fn header(nodes: usize) -> String {
    let width = (nodes * 5).max(18);
    format!(
        "round  version  float    int8     {:<width$}  up       down     time\n\
         {:24}(worst)  (examples a node)",
        "trained on", ""
    )
}

/// The line before the first round.
pub(super) fn initial_row(accuracy: f64) -> String {
    format!("    -        1  {:>5.1} %", accuracy * 100.0)
}

/// The line of a round.
pub(super) fn row(row: &Row) -> String {
    let round = &row.round;
    let share = |a: Option<f64>| a.map_or("      –".into(), |a| format!("{:>5.1} %", a * 100.0));
    let examples: Vec<String> = round
        .nodes
        .iter()
        .map(|n| if n.outcome == "trained" { format!("{:>4}", n.examples) } else { n.outcome.clone() })
        .collect();
    let width = (round.nodes.len() * 5).max(18);
    let mut line = format!(
        "{:>5}  {:>7}  {}  {}  {:<width$}  {:<7}  {:<7}  {:.1} s",
        round.round,
        round.version,
        share(row.float),
        share(row.int8),
        examples.join(" "),
        output::bytes(round.bytes_up),
        output::bytes(round.bytes_down),
        round.duration_ms as f64 / 1000.0
    );
    if !round.reason.is_empty() {
        line.push_str(&format!("  {}: {}", round.outcome, round.reason));
    }
    line
}

/// "1 node", "3 nodes".
fn count(number: u64, what: &str) -> String {
    if number == 1 { format!("1 {what}") } else { format!("{number} {what}s") }
}

impl Report {
    /// Accuracy of the worst node's server on the held-out digits.
    fn accuracy_int8(&self) -> f64 {
        self.scores.iter().map(|s| s.correct as f64 / s.total.max(1) as f64).reduce(f64::min).unwrap_or(0.0)
    }

    /// Versions that answered requests.
    fn versions_served(&self) -> u64 {
        self.seen.versions().len() as u64
    }

    /// What people read at the end.
    /// `program` is how the reader calls this program.
    pub(super) fn summary(&self, folder: &Path, program: &str) -> String {
        let mut text = format!(
            "\nAccuracy on digits that no node trained on: {:.1} % before, {:.1} % after in float, {:.1} % in int8 (worst node).\n",
            self.accuracy_initial * 100.0,
            self.accuracy_float * 100.0,
            self.accuracy_int8() * 100.0
        );
        let (ok, failed) = (self.seen.ok, self.seen.failures.len());
        text.push_str(&format!(
            "Requests meanwhile: {ok} answered, {failed} failed, {:.0} a second, over {} versions; p50 {:.1} ms, p99 {:.1} ms;\n\
             {:.1} % of the answers equal the float model's of the same version.\n",
            ok as f64 / self.sending_seconds.max(0.001),
            self.versions_served(),
            self.seen.quantile(0.5).as_secs_f64() * 1000.0,
            self.seen.quantile(0.99).as_secs_f64() * 1000.0,
            self.agreement * 100.0
        ));
        for failure in self.seen.failures.iter().take(SHOWN_FAILURES) {
            text.push_str(&format!("  failed: {failure}\n"));
        }
        let memory: Vec<String> = self
            .memory
            .iter()
            .map(|(name, peak)| format!("{name} {}", peak.map_or("unknown".into(), output::bytes)))
            .collect();
        text.push_str(&format!("Peak memory: {}.\n", memory.join(", ")));
        let (rounds, nodes) = (count(self.rows.len() as u64, "round"), count(self.nodes, "node"));
        text.push_str(&format!("{rounds}, {nodes}, {:.0} s in all.\n", self.seconds));
        let dir = folder.display();
        text.push_str(&format!(
            "\nEverything is still in {dir}. Try next, each in a terminal of its own:\n\
             \x20 {program} coordinator run --dir {dir}/coordinator\n\
             \x20 {program} node run --dir {dir}/node-1 --listen 127.0.0.1:8001\n\
             \x20 {program} infer --model digits --file {dir}/node-{other}/digits.csv --row 3 --identity {dir}/client\n\
             \x20 {program} model list --identity {dir}/coordinator/operator\n",
            other = self.nodes.min(2)
        ));
        text
    }

    /// The last line of `--json`.
    pub(super) fn json(&self) -> serde_json::Value {
        let precisions: Vec<_> = self
            .scores
            .iter()
            .map(|s| serde_json::json!({ "node": s.node, "correct": s.correct, "total": s.total, "precision": s.precisions }))
            .collect();
        let memory: serde_json::Map<String, serde_json::Value> =
            self.memory.iter().map(|(name, peak)| (name.clone(), serde_json::json!(peak))).collect();
        let rows: Vec<_> = self
            .rows
            .iter()
            .map(|r| {
                serde_json::json!({
                    "round": r.round.round, "version": r.round.version, "outcome": r.round.outcome,
                    "accuracy_float": r.float, "accuracy_int8": r.int8, "seconds": r.round.duration_ms as f64 / 1000.0,
                    "bytes_up": r.round.bytes_up, "bytes_down": r.round.bytes_down,
                    "examples": r.round.nodes.iter().map(|n| n.examples).collect::<Vec<_>>(),
                })
            })
            .collect();
        serde_json::json!({
            "accuracy_initial": self.accuracy_initial,
            "accuracy_float": self.accuracy_float,
            "accuracy_int8": self.accuracy_int8(),
            "requests_ok": self.seen.ok,
            "requests_failed": self.seen.failures.len(),
            "requests_per_second": self.seen.ok as f64 / self.sending_seconds.max(0.001),
            "latency_p50_ms": self.seen.quantile(0.5).as_secs_f64() * 1000.0,
            "latency_p99_ms": self.seen.quantile(0.99).as_secs_f64() * 1000.0,
            "agreement_with_float": self.agreement,
            "versions_served": self.versions_served(),
            "rounds": self.rows.iter().filter(|r| r.round.outcome == "aggregated").count(),
            "nodes": self.nodes,
            "seed": self.seed,
            "seconds": self.seconds,
            "peak_memory_bytes": memory,
            "servers": precisions,
            "table": rows,
        })
    }

    /// An error when something went otherwise than the demo promises.
    pub(super) fn verdict(&self) -> anyhow::Result<()> {
        let mut faults = Vec::new();
        if !self.seen.failures.is_empty() {
            faults.push(format!("{} requests failed", self.seen.failures.len()));
        }
        let failed = self.rows.iter().filter(|r| r.round.outcome != "aggregated").count();
        if failed > 0 || self.rows.len() as u64 != self.rounds {
            faults.push(format!("{failed} of {} rounds failed", self.rows.len()));
        }
        for score in &self.scores {
            if score.precisions.iter().any(|p| p != "int8") {
                faults.push(format!("{} fell back to float", score.node));
            }
            if score.versions.iter().any(|v| *v != self.final_version) {
                faults.push(format!("{} does not serve version {}", score.node, self.final_version));
            }
        }
        if self.accuracy_int8() < self.accuracy_float - INT8_LOSS {
            faults.push(format!("int8 is more than {:.0} point below float", INT8_LOSS * 100.0));
        }
        if self.agreement < LEAST_AGREEMENT {
            faults.push(format!("only {:.1} % of the answers equal the float model's", self.agreement * 100.0));
        }
        if faults.is_empty() {
            Ok(())
        } else {
            Err(anyhow::anyhow!("the demo did not go as it should: {}", faults.join("; ")))
        }
    }
}
