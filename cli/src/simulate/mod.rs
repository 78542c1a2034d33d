//! `fedge simulate`: a task file, virtual nodes in this process, and what came of each round.
//! The simulation itself is the crate `sim`'s matter; nothing is trained or decided here.

mod flags;
mod plot;
mod png;
mod table;

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use anyhow::{Context, bail};
use fedge_sim::experiment::report::{News, Round};
use fedge_sim::experiment::splits_file::SplitsFile;
use fedge_sim::experiment::{Experiment, Finished};
use indicatif::{ProgressBar, ProgressStyle};

pub(crate) use self::flags::Simulate;
use self::plot::Form;
use crate::{output, process};

impl Simulate {
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        process::log("warn");
        let form = self.output.plot.as_deref().map(Form::of).transpose()?;
        let experiment = Arc::new(self.experiment()?);
        let partition = self.partition();
        let mut sheet = self.prepare(&experiment)?;
        if !self.output.json {
            let text = table::introduction(&experiment.population, &partition, self.seed, experiment.threads);
            println!("{text}\n{}", table::HEADER);
        }
        let started = Instant::now();
        let bar = progress_bar(experiment.task.rounds.count);
        let (stop, quiet) = (Arc::new(AtomicBool::new(false)), self.output.json);
        let work = {
            let (experiment, stop, bar) = (experiment.clone(), stop.clone(), bar.clone());
            move || -> anyhow::Result<Finished> {
                let mut unwritten = Ok(());
                let finished =
                    experiment.run(&mut |news| observe(news, &bar, quiet, &mut sheet, &mut unwritten), &stop);
                unwritten?;
                Ok(finished?)
            }
        };
        let mut working = tokio::task::spawn_blocking(work);
        let finished = tokio::select! {
            finished = &mut working => finished,
            () = process::asked_to_end(false) => {
                stop.store(true, Ordering::Relaxed);
                working.await
            }
        };
        let finished = finished.context("the simulation broke off")??;
        bar.finish_and_clear();
        self.conclude(&experiment, &partition, form, &finished, started.elapsed())
    }

    /// Opens or writes every file that can be written before the first round, and tries those that come after the last,
    /// so that hours of work are not lost on a wrong path.
    fn prepare(&self, experiment: &Experiment) -> anyhow::Result<Option<File>> {
        let flags = &self.output;
        if let Some(path) = &flags.export_splits {
            let samples = experiment.population.data.as_ref().map_or(0, |data| data.len());
            SplitsFile::of(&experiment.population, samples).write(path)?;
        }
        for path in [&flags.plot, &flags.out].into_iter().flatten() {
            File::options().create(true).append(true).open(path).with_context(|| cannot_write(path))?;
        }
        let Some(path) = &flags.csv else { return Ok(None) };
        let mut file = File::create(path).with_context(|| cannot_write(path))?;
        writeln!(file, "{}", table::CSV_HEADER).with_context(|| cannot_write(path))?;
        Ok(Some(file))
    }

    fn conclude(
        &self,
        experiment: &Experiment,
        partition: &str,
        form: Option<Form>,
        finished: &Finished,
        took: std::time::Duration,
    ) -> anyhow::Result<()> {
        let Finished { rounds, model, stopped } = finished;
        if let (Some(path), Some(form)) = (&self.output.plot, form) {
            let chart = table::chart(&experiment.task, subtitle(experiment, partition), rounds);
            std::fs::write(path, chart.draw(form)?).with_context(|| cannot_write(path))?;
        }
        if let Some(path) = &self.output.out {
            std::fs::write(path, model.bytes()).with_context(|| cannot_write(path))?;
        }
        if self.output.json {
            output::json(&table::json(&experiment.task, &experiment.population, partition, rounds, *stopped, took))?;
        } else {
            println!("{}", table::summary(rounds, took));
        }
        let done = rounds.len().saturating_sub(1);
        if *stopped {
            bail!("stopped after {done} of {} rounds; what was written holds these", experiment.task.rounds.count);
        }
        if rounds.iter().skip(1).all(|round| round.failure.is_some()) {
            bail!("no round succeeded; the lines above say why");
        }
        Ok(())
    }
}

/// One line below the chart's title.
fn subtitle(experiment: &Experiment, partition: &str) -> String {
    let systems = &experiment.systems;
    let mut text = format!("{} nodes, {partition}", experiment.population.nodes.len());
    for (share, what) in [(systems.stragglers, "stragglers"), (systems.dropouts, "dropouts")] {
        if share > 0.0 {
            text.push_str(&format!(", {:.0} % {what}", share * 100.0));
        }
    }
    text
}

fn observe(
    news: News<'_>,
    bar: &ProgressBar,
    quiet: bool,
    sheet: &mut Option<File>,
    unwritten: &mut anyhow::Result<()>,
) {
    match news {
        News::Progress { round, done, of } => bar.set_message(format!("round {round}: {done} of {of} updates")),
        News::Round(round) => {
            if !quiet {
                bar.suspend(|| println!("{}", table::line(round)));
            }
            bar.set_position(round.round);
            if let Some(file) = sheet
                && let Err(error) = write_line(file, round)
            {
                *unwritten = Err(error).context("cannot write the file of --csv");
                *sheet = None;
            }
        }
    }
}

fn write_line(file: &mut File, round: &Round) -> std::io::Result<()> {
    writeln!(file, "{}", table::csv_line(round))
}

/// A bar of rounds on a terminal, and nothing elsewhere: there the table's lines are enough.
fn progress_bar(rounds: u64) -> ProgressBar {
    use std::io::IsTerminal;
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len} rounds, {eta} left; {msg}");
    let bar = ProgressBar::new(rounds);
    style.map_or(bar.clone(), |style| bar.with_style(style))
}

fn cannot_write(path: &Path) -> String {
    format!("cannot write {}", path.display())
}
