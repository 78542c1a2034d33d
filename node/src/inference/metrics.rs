//! Prometheus: Triton's series by their names and labels, so that dashboards work, and our own as `fedge_*`.
//! Counting is `statistics`'; here it becomes text.

use std::fmt::Write;

use super::repository::ModelRepository;
use super::serving::Serving;
use super::statistics::{Failure, LATENCY_BOUNDS_S, Timer};

/// Content type of the text.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4";

/// A counter of one version.
type Counter = fn(&Serving) -> u64;

/// All series in the text format of Prometheus.
pub fn render(repository: &ModelRepository) -> String {
    let names = repository.names();
    let versions: Vec<_> = names.iter().flat_map(|name| repository.versions(name)).collect();
    let mut text = String::with_capacity(4096);
    let counters: [(&str, &str, Counter); 8] = [
        ("nv_inference_request_success", "Answered requests", |s| s.statistics().success.get().0),
        ("nv_inference_count", "Samples that went through the model", |s| s.statistics().samples()),
        ("nv_inference_exec_count", "Runs of the model", |s| s.statistics().runs()),
        ("nv_inference_request_duration_us", "Time of answered requests, microseconds", |s| {
            us(&s.statistics().success)
        }),
        ("nv_inference_queue_duration_us", "Time in the queue, microseconds", |s| us(&s.statistics().queue)),
        ("nv_inference_compute_input_duration_us", "Time of putting inputs together, microseconds", |s| {
            us(&s.statistics().compute_input)
        }),
        ("nv_inference_compute_infer_duration_us", "Time in the engine, microseconds", |s| {
            us(&s.statistics().compute_infer)
        }),
        ("nv_inference_compute_output_duration_us", "Time of taking outputs apart, microseconds", |s| {
            us(&s.statistics().compute_output)
        }),
    ];
    for (name, help, value) in counters {
        head(&mut text, name, help, "counter");
        for serving in &versions {
            line(&mut text, name, &labels(serving), value(serving));
        }
    }
    let name = "nv_inference_request_failure";
    head(&mut text, name, "Requests without an answer, by reason", "counter");
    for serving in &versions {
        for why in Failure::ALL {
            let labels = format!("{},reason=\"{}\"", labels(serving), why.name());
            line(&mut text, name, &labels, serving.statistics().failures(why));
        }
    }
    let name = "nv_inference_pending_request_count";
    head(&mut text, name, "Requests that wait for a thread", "gauge");
    for model in &names {
        if let Some(serving) = repository.current(model) {
            line(&mut text, name, &labels(&serving), repository.waiting(model) as u64);
        }
    }
    latency(&mut text, &versions);
    own(&mut text, repository, &names, &versions);
    process(&mut text);
    text
}

fn latency(text: &mut String, versions: &[std::sync::Arc<Serving>]) {
    let name = "fedge_inference_duration_seconds";
    head(text, name, "Time of answered requests", "histogram");
    for serving in versions {
        let (labels, statistics) = (labels(serving), serving.statistics());
        let mut total = 0;
        for (index, count) in statistics.latency().into_iter().enumerate() {
            total += count;
            let bound = LATENCY_BOUNDS_S.get(index).map_or("+Inf".to_owned(), f64::to_string);
            line(text, "fedge_inference_duration_seconds_bucket", &format!("{labels},le=\"{bound}\""), total);
        }
        let seconds = statistics.success.get().1 as f64 / 1e9;
        // Writing to a String does not fail.
        let _ = writeln!(text, "{name}_sum{{{labels}}} {seconds}");
        line(text, "fedge_inference_duration_seconds_count", &labels, total);
    }
}

fn own(text: &mut String, repository: &ModelRepository, names: &[String], versions: &[std::sync::Arc<Serving>]) {
    head(text, "fedge_model_info", "What is served: digest, precision and the round that made it", "gauge");
    for serving in versions {
        let manifest = serving.manifest();
        let round = manifest.round.map(|round| round.to_string()).unwrap_or_default();
        let labels = format!(
            "{},digest=\"{}\",precision=\"{}\",round=\"{round}\"",
            labels(serving),
            manifest.digest,
            serving.precision()
        );
        line(text, "fedge_model_info", &labels, 1);
    }
    head(text, "fedge_model_swaps_total", "How often versions of a model were swapped in", "counter");
    for model in names {
        let labels = format!("model=\"{}\"", escape(model));
        line(text, "fedge_model_swaps_total", &labels, repository.versions_served(model));
    }
    head(text, "fedge_ready", "1 while every known model has a ready version", "gauge");
    let _ = writeln!(text, "fedge_ready {}", u8::from(repository.ready()));
    head(text, "fedge_build_info", "The program's version", "gauge");
    line(text, "fedge_build_info", &format!("version=\"{}\"", env!("CARGO_PKG_VERSION")), 1);
}

/// Memory and CPU time of this process, where the system tells them.
fn process(text: &mut String) {
    if let Some(bytes) = resident_bytes() {
        head(text, "process_resident_memory_bytes", "Resident memory", "gauge");
        let _ = writeln!(text, "process_resident_memory_bytes {bytes}");
    }
    if let Some(seconds) = cpu_seconds() {
        head(text, "process_cpu_seconds_total", "CPU time", "counter");
        let _ = writeln!(text, "process_cpu_seconds_total {seconds}");
    }
}

fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

/// User and system time: fields 14 and 15 of the line, in hundredths on every Linux; the name before may hold spaces.
fn cpu_seconds() -> Option<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = |index: usize| fields.get(index)?.parse::<u64>().ok();
    Some((ticks(11)? + ticks(12)?) as f64 / 100.0)
}

fn us(timer: &Timer) -> u64 {
    timer.get().1 / 1000
}

fn labels(serving: &Serving) -> String {
    let manifest = serving.manifest();
    format!("model=\"{}\",version=\"{}\"", escape(&manifest.name), manifest.number)
}

fn escape(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

fn head(text: &mut String, name: &str, help: &str, kind: &str) {
    let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

fn line(text: &mut String, name: &str, labels: &str, value: u64) {
    let _ = writeln!(text, "{name}{{{labels}}} {value}");
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use std::time::Duration;

    use super::super::statistics::Stages;
    use super::super::test_fixtures::serving;
    use super::*;

    #[test]
    fn the_series_that_dashboards_know_have_their_labels_and_add_up() {
        let repository = ModelRepository::new();
        repository.swap(serving(3));
        let statistics = repository.current("digits").unwrap();
        let stages = Stages { infer: Duration::from_micros(1500), ..Stages::default() };
        statistics.statistics().ran(4, &stages);
        statistics.statistics().answered(Duration::from_micros(2000), &stages);
        statistics.statistics().failed(Failure::Rejected, Duration::ZERO);
        let text = render(&repository);
        for expected in [
            "nv_inference_request_success{model=\"digits\",version=\"3\"} 1\n",
            "nv_inference_request_failure{model=\"digits\",version=\"3\",reason=\"REJECTED\"} 1\n",
            "nv_inference_request_failure{model=\"digits\",version=\"3\",reason=\"OTHER\"} 0\n",
            "nv_inference_count{model=\"digits\",version=\"3\"} 4\n",
            "nv_inference_exec_count{model=\"digits\",version=\"3\"} 1\n",
            "nv_inference_request_duration_us{model=\"digits\",version=\"3\"} 2000\n",
            "nv_inference_compute_infer_duration_us{model=\"digits\",version=\"3\"} 1500\n",
            "nv_inference_pending_request_count{model=\"digits\",version=\"3\"} 0\n",
            "fedge_inference_duration_seconds_bucket{model=\"digits\",version=\"3\",le=\"0.001\"} 0\n",
            "fedge_inference_duration_seconds_bucket{model=\"digits\",version=\"3\",le=\"0.0025\"} 1\n",
            "fedge_inference_duration_seconds_bucket{model=\"digits\",version=\"3\",le=\"+Inf\"} 1\n",
            "fedge_inference_duration_seconds_sum{model=\"digits\",version=\"3\"} 0.002\n",
            "fedge_model_swaps_total{model=\"digits\"} 1\n",
            "round=\"103\"} 1\n",
        ] {
            assert!(text.contains(expected), "{expected}{text}");
        }
        let mut seen = std::collections::BTreeSet::new();
        for line in text.lines().filter(|line| line.starts_with("# TYPE")) {
            assert!(seen.insert(line.to_owned()), "{line} twice");
        }
    }
}
