//! FedProx's own experiment on its own synthetic data: with 90 % stragglers, partial work and the proximal term beat
//! federated averaging, which drops the stragglers, for every seed. `FEDGE_LONG=1` runs it as long as the paper does.
//!
//! Li et al., "Federated Optimization in Heterogeneous Networks", MLSys 2020, §5.1, §5.2 and appendix C.1.

#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use fedge_coordinator::rounds::task::TaskSpec;
use fedge_models::Model;
use fedge_node::training::Dataset;
use fedge_sim::experiment::population::{Node, Population};
use fedge_sim::experiment::systems::Systems;
use fedge_sim::experiment::{Experiment, Trainer};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, LogNormal, Normal};

const DEVICES: usize = 30;
const FEATURES: usize = 60;
const CLASSES: usize = 10;

/// Synthetic(1, 1): 30 devices, n_k = ⌊LogNormal(4, 2)⌋ + 50, u_k and B_k ~ N(0, 1), W_k and b_k ~ N(u_k, 1), v_k ~
/// N(B_k, 1), x ~ N(v_k, diag(j^-1.2)), y = argmax(xW + b); 90 % to train on. At most `most` samples a device: the tail of
/// the sizes is long.
fn synthetic(seed: u64, most: usize) -> Population {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut normal = |mean: f64, deviation: f64| Normal::new(mean, deviation).unwrap().sample(&mut random);
    let (mut inputs, mut labels, mut nodes, mut test) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for device in 0..DEVICES {
        let size = LogNormal::new(4.0, 2.0).unwrap();
        let samples =
            ((size.sample(&mut ChaCha8Rng::seed_from_u64(seed * 1000 + device as u64)) as usize) + 50).min(most);
        let (shift, centre) = (normal(0.0, 1.0), normal(0.0, 1.0));
        let weights: Vec<f64> = (0..FEATURES * CLASSES).map(|_| normal(shift, 1.0)).collect();
        let bias: Vec<f64> = (0..CLASSES).map(|_| normal(shift, 1.0)).collect();
        let mean: Vec<f64> = (0..FEATURES).map(|_| normal(centre, 1.0)).collect();
        let first = labels.len() as u32;
        for _ in 0..samples {
            let x: Vec<f64> =
                mean.iter().enumerate().map(|(j, mean)| normal(*mean, ((j + 1) as f64).powf(-0.6))).collect();
            let score = |class: usize| -> f64 {
                bias[class] + x.iter().enumerate().map(|(j, x)| x * weights[j * CLASSES + class]).sum::<f64>()
            };
            let label = (0..CLASSES).max_by(|a, b| score(*a).total_cmp(&score(*b))).unwrap();
            inputs.extend(x.iter().map(|x| *x as f32));
            labels.push(label as u32);
        }
        let cut = first + (samples as f64 * 0.9) as u32;
        test.extend(cut..labels.len() as u32);
        nodes.push(Node {
            name: format!("device-{device:02}"),
            train: (first..cut).collect(),
            held_out: Arc::from([]),
        });
    }
    let data = Dataset::new(inputs, labels, vec![FEATURES]).unwrap();
    let test_set = data.select(test.clone().into()).unwrap();
    Population { nodes, data: Some(data), test: Some(test_set), test_rows: test }
}

/// Accuracy and loss, each the mean of the last `tail` rounds.
fn result(population: &Population, strategy: &str, rounds: u64, seed: u64, tail: usize) -> (f64, f64) {
    let task = format!(
        "model = \"synthetic\"\nstrategy = {strategy}\n[rounds]\ncount = {rounds}\nmin_nodes = 1\ncohort = 10\n\
         evaluate_every = 0\nseed = {seed}\n[training]\nepochs = 20\nbatch_size = 10\nlearning_rate = 0.01\nmomentum = 0.0\n\
         seed = {seed}\n"
    );
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/zoo/logistic_60x10.onnx");
    let experiment = Experiment {
        task: TaskSpec::parse(&task).unwrap(),
        model: Model::from_path(&model).unwrap(),
        population: population.clone(),
        systems: Systems { stragglers: 0.9, ..Systems::default() },
        trainer: Trainer::Real,
        evaluators: 0,
        test_every: 1,
        seed,
        threads: std::thread::available_parallelism().map_or(2, usize::from),
    };
    let finished = experiment.run(&mut |_| {}, &AtomicBool::new(false)).unwrap();
    let tested: Vec<_> = finished.rounds.iter().filter_map(|round| round.test).collect();
    let last = &tested[tested.len() - tail..];
    let mean = |value: &dyn Fn(usize) -> f64| (0..tail).map(value).sum::<f64>() / tail as f64;
    (mean(&|i| last[i].accuracy()), mean(&|i| last[i].loss))
}

#[test]
fn with_90_percent_stragglers_fedprox_beats_fedavg_for_every_seed() {
    let long = std::env::var_os("FEDGE_LONG").is_some();
    let (rounds, most, tail) = if long { (200, usize::MAX, 20) } else { (30, 300, 10) };
    for seed in 0..3 {
        let population = synthetic(seed, most);
        let average = result(&population, "\"fedavg\"", rounds, seed, tail);
        let proximal = result(&population, "{ name = \"fedprox\", mu = 1.0 }", rounds, seed, tail);
        println!("seed {seed}: accuracy, loss: FedAvg {average:.3?}, FedProx {proximal:.3?}");
        assert!(proximal.0 > average.0, "seed {seed}: {average:?} {proximal:?}");
        assert!(proximal.1 < average.1, "seed {seed}: {average:?} {proximal:?}");
    }
}
