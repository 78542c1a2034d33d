//! What a simulation prints and writes round by round: lines of a table, lines of CSV, the summary, JSON, the chart.
//! The figures come from the simulation; the picture is drawn in `plot`.

use std::time::Duration;

use fedge_coordinator::rounds::task::TaskSpec;
use fedge_sim::experiment::population::Population;
use fedge_sim::experiment::report::{Round, Score};
use plotters::style::RGBColor;

use super::plot::{Chart, Line};
use crate::output;

/// The table's first line.
pub(super) const HEADER: &str = "round       time  trained  partial  dropped   examples  train loss  test loss  accuracy  \
                                 held-out        up      down";

/// The first line of the CSV file.
pub(super) const CSV_HEADER: &str = "round,version,time_s,duration_s,selected,trained,partial,dropped,examples,train_loss,\
                                     test_loss,test_accuracy,held_out_loss,held_out_accuracy,bytes_up,bytes_down,failure";

/// Who takes part, in one or two sentences.
pub(super) fn introduction(population: &Population, partition: &str, seed: u64, threads: usize) -> String {
    let sizes: Vec<usize> = population.nodes.iter().map(|node| node.train.len()).filter(|size| *size > 0).collect();
    let (least, most) = (sizes.iter().min().unwrap_or(&0), sizes.iter().max().unwrap_or(&0));
    let held_out: usize = population.nodes.iter().map(|node| node.held_out.len()).sum();
    let mut text = format!(
        "{} nodes ({partition}, seed {seed}) with {least} to {most} training samples each, {} in all; {held_out} held out, \
         {} to test on; {threads} threads",
        population.nodes.len(),
        sizes.iter().sum::<usize>(),
        population.test.as_ref().map_or(0, |test| test.len()),
    );
    let without = population.nodes.len() - sizes.len();
    if without > 0 {
        text.push_str(&format!("\n{without} nodes have no training samples and never take part"));
    }
    text
}

/// One line of the table, and below it what went wrong.
pub(super) fn line(round: &Round) -> String {
    let loss = |loss: Option<f64>| loss.map_or("–".to_owned(), |loss| format!("{loss:.4}"));
    let mut text = format!(
        "{:>5}  {:>9}  {:>7}  {:>7}  {:>7}  {:>9}  {:>10}  {:>9}  {:>8}  {:>8}  {:>8}  {:>8}",
        round.round,
        time(round.time_ms),
        round.trained,
        round.partial,
        round.dropped,
        round.examples,
        loss(round.train_loss),
        loss(round.test.map(|test| test.loss)),
        accuracy(round.test),
        accuracy(round.held_out),
        output::bytes(round.bytes_up),
        output::bytes(round.bytes_down),
    );
    if let Some(reason) = &round.failure {
        text.push_str(&format!("\n       failed: {reason}"));
    }
    if let Some(reason) = &round.declined {
        text.push_str(&format!("\n       a node declined: {reason}"));
    }
    text
}

/// One line of the CSV file.
pub(super) fn csv_line(round: &Round) -> String {
    let number = |value: Option<f64>| value.map_or_else(String::new, |value| value.to_string());
    let seconds = |ms: u64| (ms as f64 / 1000.0).to_string();
    let failure = round.failure.as_ref().map_or_else(String::new, |f| format!("\"{}\"", f.replace('"', "\"\"")));
    [
        round.round.to_string(),
        round.version.to_string(),
        seconds(round.time_ms),
        seconds(round.duration_ms),
        round.selected.to_string(),
        round.trained.to_string(),
        round.partial.to_string(),
        round.dropped.to_string(),
        round.examples.to_string(),
        number(round.train_loss),
        number(round.test.map(|test| test.loss)),
        number(round.test.map(|test| test.accuracy())),
        number(round.held_out.map(|held_out| held_out.loss)),
        number(round.held_out.map(|held_out| held_out.accuracy())),
        round.bytes_up.to_string(),
        round.bytes_down.to_string(),
        failure,
    ]
    .join(",")
}

/// What came of it, in a few lines.
pub(super) fn summary(rounds: &[Round], took: Duration) -> String {
    let done = rounds.len().saturating_sub(1);
    let Some(last) = rounds.last() else { return String::new() };
    let seconds = took.as_secs_f64();
    let mut text = format!(
        "{done} rounds in {seconds:.1} s ({:.1} a second), {} of virtual time; the newest version is {}",
        done as f64 / seconds.max(1e-9),
        time(last.time_ms),
        last.version
    );
    let tested: Vec<(u64, Score)> = rounds.iter().filter_map(|round| Some((round.round, round.test?))).collect();
    let better = |a: &(u64, Score), b: &(u64, Score)| a.1.accuracy().total_cmp(&b.1.accuracy()).then(b.0.cmp(&a.0));
    if let (Some((_, newest)), Some((round, best))) = (tested.last(), tested.iter().copied().max_by(better)) {
        text.push_str(&format!(
            "\nTest accuracy {} (best {} after round {round}), loss {:.4}",
            percent(newest.accuracy()),
            percent(best.accuracy()),
            newest.loss
        ));
    }
    let failed = rounds.iter().filter(|round| round.failure.is_some()).count();
    if failed > 0 {
        text.push_str(&format!("\n{failed} of {done} rounds failed"));
    }
    let (up, down) = (rounds.iter().map(|r| r.bytes_up).sum(), rounds.iter().map(|r| r.bytes_down).sum());
    text.push_str(&format!("\n{} up, {} down", output::bytes(up), output::bytes(down)));
    text
}

/// Everything, for programs.
pub(super) fn json(
    task: &TaskSpec,
    population: &Population,
    partition: &str,
    rounds: &[Round],
    stopped: bool,
    took: Duration,
) -> serde_json::Value {
    serde_json::json!({
        "task": task,
        "nodes": population.nodes.len(),
        "nodes_with_samples": population.trainable(),
        "partition": partition,
        "test_samples": population.test.as_ref().map_or(0, |test| test.len()),
        "rounds": rounds.iter().map(round_json).collect::<Vec<_>>(),
        "bytes_up": rounds.iter().map(|round| round.bytes_up).sum::<u64>(),
        "bytes_down": rounds.iter().map(|round| round.bytes_down).sum::<u64>(),
        "stopped": stopped,
        "seconds": took.as_secs_f64(),
    })
}

fn round_json(round: &Round) -> serde_json::Value {
    let mut value = serde_json::json!(round);
    for (name, score) in [("test", round.test), ("held_out", round.held_out)] {
        if let (Some(score), Some(object)) = (score, value.get_mut(name)) {
            object["accuracy"] = serde_json::json!(score.accuracy());
        }
    }
    value
}

/// The chart of what there is.
pub(super) fn chart(task: &TaskSpec, subtitle: String, rounds: &[Round]) -> Chart {
    const BLUE: RGBColor = RGBColor(0x1f, 0x5f, 0xbf);
    const ORANGE: RGBColor = RGBColor(0xd9, 0x7a, 0x12);
    const GREEN: RGBColor = RGBColor(0x2a, 0x8f, 0x5b);
    let points = |value: &dyn Fn(&Round) -> Option<f64>| -> Vec<(f64, f64)> {
        rounds.iter().filter_map(|round| Some((round.round as f64, value(round)?))).collect()
    };
    let lines = |lines: Vec<Line>| lines.into_iter().filter(|line| !line.points.is_empty()).collect();
    let percent = |score: Option<Score>| score.map(|score| 100.0 * score.accuracy());
    let accuracy = vec![
        Line { name: "test set", color: BLUE, points: points(&|round| percent(round.test)) },
        Line { name: "held out on nodes", color: GREEN, points: points(&|round| percent(round.held_out)) },
    ];
    let loss = vec![
        Line { name: "test set", color: BLUE, points: points(&|round| round.test.map(|test| test.loss)) },
        Line { name: "training, last epoch", color: ORANGE, points: points(&|round| round.train_loss) },
    ];
    Chart { title: task.model.clone(), subtitle, accuracy: lines(accuracy), loss: lines(loss) }
}

/// "97.3 %", or "–" of nothing.
fn accuracy(score: Option<Score>) -> String {
    score.map_or("–".to_owned(), |score| percent(score.accuracy()))
}

fn percent(share: f64) -> String {
    format!("{:.2} %", 100.0 * share)
}

/// `h:mm:ss` of virtual time.
fn time(ms: u64) -> String {
    let seconds = ms.div_ceil(1000);
    format!("{}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn round() -> Round {
        let score = Score { examples: 2000, correct: 1946, loss: 0.083 };
        Round {
            round: 7,
            failure: None,
            version: 8,
            time_ms: 3_661_000,
            duration_ms: 12_500,
            selected: 10,
            trained: 8,
            partial: 2,
            dropped: 2,
            declined: None,
            examples: 5210,
            train_loss: Some(0.0417),
            test: Some(score),
            held_out: None,
            bytes_up: 1_420_000,
            bytes_down: 0,
        }
    }

    #[test]
    fn lines_fit_below_the_header_and_give_each_figure() {
        let line = line(&round());
        assert_eq!(line.chars().count(), HEADER.chars().count());
        for text in ["1:01:01", "5210", "0.0417", "0.0830", "97.30 %", "1.4 MB", "–"] {
            assert!(line.contains(text), "{text}: {line}");
        }
        let failed = Round { failure: Some("1 of at least 2".into()), ..round() };
        assert!(super::line(&failed).ends_with("failed: 1 of at least 2"));
    }

    #[test]
    fn csv_lines_have_as_many_fields_as_the_header_and_quote_text() {
        let fields = |line: &str| line.split(',').count();
        assert_eq!(fields(&csv_line(&round())), fields(CSV_HEADER));
        let failed = Round { failure: Some("it said \"no\"".into()), ..round() };
        assert!(csv_line(&failed).ends_with(",\"it said \"\"no\"\"\""));
        assert!(csv_line(&round()).starts_with("7,8,3661,12.5,10,8,2,2,5210,0.0417,0.083,0.973,,,1420000,0,"));
    }

    #[test]
    fn the_summary_names_the_first_best_round() {
        let worse = Round { round: 8, test: Some(Score { examples: 10, correct: 9, loss: 1.0 }), ..round() };
        let same = Round { round: 9, ..round() };
        let text = summary(&[Round { round: 0, ..worse.clone() }, round(), same, worse], Duration::from_secs(6));
        assert!(text.contains("3 rounds in 6.0 s (0.5 a second)"), "{text}");
        assert!(text.contains("Test accuracy 90.00 % (best 97.30 % after round 7)"), "{text}");
    }
}
