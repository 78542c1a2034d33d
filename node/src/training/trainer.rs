//! The training loop: batches, steps, epochs, cancellation; and evaluation and gradients beside it.
//! Runs on the calling thread; `pool` decides which thread that is.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use burn::backend::AutodiffBackend;
use burn::backend::ops::FloatTensorOps;
use fedge_models::{Layout, Model, Weights};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use super::backend::{Plain, PlainTensor, Precision, Taped, leaf, tensor, tensor_from_f64, to_f64};
use super::graph::{Mode, Program};
use super::loss::{CrossEntropy, cross_entropy};
use super::ops::{BatchStatistics, follow};
use super::optimizer::Sgd;
use super::parameters::Parameters;
use super::{Dataset, Evaluation, Loss, Outcome, Plan, Progress, TrainingError};

/// Samples of one forward pass of an evaluation.
const EVALUATION_BATCH: usize = 128;

/// A model while it is trained.
pub(super) struct Session {
    /// Holds the file twice; none once no program is needed any more.
    model: Option<Model>,
    layout: Arc<Layout>,
    sample_shape: Vec<usize>,
    /// FedProx's w₀; empty where the plan has no proximal term.
    start: Vec<f32>,
    /// SCAFFOLD's c − c_i; empty where the plan has none.
    correction: Arc<[f32]>,
    parameters: Parameters,
    optimizer: Sgd,
    /// One program a batch size: the plan's, and that of an epoch's last batch.
    programs: HashMap<usize, Program<Taped>>,
}

impl Session {
    /// Starts from the model's own weights. The plan must be valid.
    pub(super) fn new(model: Model, plan: &Plan) -> Result<Session, TrainingError> {
        let expected = model.layout().exchanged_len();
        if let Some(given) = plan.correction.as_ref().map(|c| c.len()).filter(|&given| given != expected) {
            let problem = format!("has {given} values, but the model exchanges {expected}; give one for each");
            return Err(TrainingError::Plan { field: "correction", problem });
        }
        let correction = plan.correction.clone().unwrap_or_default();
        let parameters = Parameters::from_model(&model)?;
        let optimizer = Sgd::new(plan.optimizer, plan.proximal_mu, parameters.list.len());
        let start = if plan.proximal_mu == 0.0 { Vec::new() } else { model.weights().into_values() };
        let (layout, sample_shape) = (model.layout().clone(), model.input().sample_shape());
        let programs = HashMap::new();
        Ok(Session { model: Some(model), layout, sample_shape, start, correction, parameters, optimizer, programs })
    }

    /// The program for batches of this size, compiled when it is first asked for.
    pub(super) fn program(&mut self, batch: usize) -> Result<&Program<Taped>, TrainingError> {
        use std::collections::hash_map::Entry;
        Ok(match self.programs.entry(batch) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => {
                let no_model = || TrainingError::graph("has no program for this batch");
                let model = self.model.as_ref().ok_or_else(no_model)?;
                entry.insert(Program::compile(model, batch, Mode::Train, Precision::Single)?)
            }
        })
    }

    /// Compiles the program of an epoch's last batch, if it is a smaller one, and gives the model up: no other program can
    /// be asked for afterwards.
    pub(super) fn settle(&mut self, last: Option<usize>) -> Result<(), TrainingError> {
        if let Some(last) = last {
            self.program(last)?;
        }
        self.model = None;
        Ok(())
    }

    /// One step on one batch; gives the batch's mean loss before the step. A loss that is not finite is given back and
    /// changes nothing.
    pub(super) fn step(&mut self, inputs: Vec<f32>, labels: &[u32]) -> Result<f64, TrainingError> {
        let shape: Vec<usize> = std::iter::once(labels.len()).chain(self.sample_shape.iter().copied()).collect();
        self.program(labels.len())?;
        let Some(program) = self.programs.get(&labels.len()) else {
            return Err(TrainingError::graph("has no program for this batch"));
        };
        let input = tensor::<Plain>(inputs, &shape, Precision::Single)?;
        let (loss, gradients, statistics) = backward(program, &self.parameters, input, labels, Precision::Single)?;
        if !loss.is_finite() {
            return Ok(loss);
        }
        let ranges = self.layout.exchanged().map(|(_, range)| range);
        for (index, ((parameter, gradient), range)) in
            self.parameters.list.iter_mut().zip(gradients).zip(ranges).enumerate()
        {
            let Some(mut gradient) = gradient.map(|gradient| gradient.to_contiguous()) else { continue };
            let start = self.start.get(range.clone()).unwrap_or_default();
            let correction = self.correction.get(range).unwrap_or_default();
            let (values, gradient) = (parameter.values.storage_mut::<f32>(), gradient.storage_mut::<f32>());
            self.optimizer.step(index, values, gradient, start, correction);
        }
        for batch in statistics {
            self.follow(batch);
        }
        Ok(loss)
    }

    /// Moves the running statistics of one BatchNormalization. A batch with one value a channel has no variance, and
    /// leaves them as they are.
    fn follow(&mut self, batch: BatchStatistics<Taped>) {
        if batch.count < 2 {
            return;
        }
        let unbiased = batch.count as f32 / (batch.count - 1) as f32;
        for (index, new, factor) in
            [(batch.mean_parameter, batch.mean, 1.0), (batch.variance_parameter, batch.variance, unbiased)]
        {
            if let Some(parameter) = self.parameters.list.get_mut(index) {
                let new = Taped::inner(new).to_contiguous();
                follow(parameter.values.storage_mut::<f32>(), new.storage::<f32>(), batch.momentum, factor);
            }
        }
    }

    pub(super) fn into_weights(self) -> Option<Weights> {
        self.parameters.into_weights()
    }
}

/// What one forward and backward pass gives: the loss, each parameter's gradient (`None` for statistics and for
/// parameters that the output does not depend on), and the batch's statistics.
type Pass = (f64, Vec<Option<PlainTensor>>, Vec<BatchStatistics<Taped>>);

/// Runs forward and backward. The loss's own gradient is computed in closed form and seeds the tape: the sum of
/// logits ⊙ g has exactly the gradient g at the logits.
fn backward(
    program: &Program<Taped>,
    parameters: &Parameters,
    input: PlainTensor,
    labels: &[u32],
    precision: Precision,
) -> Result<Pass, TrainingError> {
    let leaves = parameters.leaves();
    let mut statistics = Vec::new();
    let logits = program.run(&leaves, leaf(input, false), &mut statistics)?;
    let CrossEntropy { loss, gradient, .. } =
        cross_entropy(&to_f64(Taped::inner(logits.clone())), labels, program.classes());
    if !loss.is_finite() {
        return Ok((loss, Vec::new(), statistics));
    }
    let seed = tensor_from_f64::<Plain>(gradient, &[labels.len(), program.classes()], precision)?;
    let seeded = Taped::float_sum(Taped::float_mul(logits, leaf(seed, false)));
    let mut gradients = Taped::backward(seeded);
    let gradients = leaves
        .iter()
        .zip(&parameters.list)
        .map(|(leaf, parameter)| if parameter.trainable { Taped::grad_remove(leaf, &mut gradients) } else { None })
        .collect();
    Ok((loss, gradients, statistics))
}

/// Trains; `plan` and the data's shape are checked already.
pub(super) fn train(
    model: Model,
    data: &Dataset,
    plan: &Plan,
    progress: &(dyn Fn(Progress) + Sync),
    cancel: &AtomicBool,
    enough: &(dyn Fn() -> bool + Sync),
) -> Result<Outcome, TrainingError> {
    let mut session = Session::new(model, plan)?;
    let batch_size = (plan.batch_size as usize).min(data.len());
    data.check_labels(session.program(batch_size)?.classes())?;
    session.settle(Some(data.len() % batch_size).filter(|last| *last > 0))?;
    let steps_total = u64::from(plan.epochs) * data.len().div_ceil(batch_size) as u64;
    let (mut step, mut partial) = (0, false);
    let (mut loss_first, mut loss_last) = (0.0, 0.0);
    'epochs: for epoch in 1..=plan.epochs {
        let (mut loss_sum, mut samples) = (0.0, 0);
        for indices in shuffled(data.len(), plan.seed, epoch).chunks(batch_size) {
            if cancel.load(Ordering::Relaxed) {
                return Err(TrainingError::Cancelled { steps: step });
            }
            // Asked before the first step too, so that the caller sees how long each step takes.
            if enough() && step > 0 {
                partial = true;
                break 'epochs;
            }
            let (inputs, labels) = data.batch(indices);
            let loss = session.step(inputs, &labels)?;
            step += 1;
            if !loss.is_finite() {
                return Err(TrainingError::Diverged { step, epoch, what: "the loss" });
            }
            loss_sum += loss * indices.len() as f64;
            samples += indices.len();
            loss_last = (loss_sum / samples as f64) as f32;
            if epoch == 1 {
                loss_first = loss_last;
            }
            progress(Progress { epoch, epochs: plan.epochs, step, steps: steps_total, loss: loss as f32 });
        }
    }
    let weights =
        session.into_weights().ok_or(TrainingError::Diverged { step, epoch: plan.epochs, what: "a weight" })?;
    Ok(Outcome { weights, examples: data.len() as u64, steps: step, partial, loss_first, loss_last })
}

/// The order of an epoch's examples: Fisher and Yates's shuffle (Durstenfeld 1964) by ChaCha8 of the seed, one stream
/// an epoch. Written out, so that no update of a library changes what a seed means.
fn shuffled(len: usize, seed: u64, epoch: u32) -> Vec<usize> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    random.set_stream(u64::from(epoch));
    let mut order: Vec<usize> = (0..len).collect();
    for last in (1..len).rev() {
        // Lemire's multiplication; its bias is below len / 2^64.
        let other = ((u128::from(random.next_u64()) * (last as u128 + 1)) >> 64) as usize;
        order.swap(last, other);
    }
    order
}

/// Loss and accuracy with frozen statistics; nothing is put on a tape.
pub(super) fn evaluate(model: &Model, data: &Dataset) -> Result<Evaluation, TrainingError> {
    let parameters = Parameters::from_model(model)?.plain();
    let (mut correct, mut loss_sum) = (0, 0.0);
    let indices: Vec<usize> = (0..data.len()).collect();
    let mut program: Option<(usize, Program<Plain>)> = None;
    for indices in indices.chunks(EVALUATION_BATCH) {
        let (size, program) = match program.take() {
            Some((size, compiled)) if size == indices.len() => program.insert((size, compiled)),
            _ => {
                let compiled = Program::compile(model, indices.len(), Mode::Evaluate, Precision::Single)?;
                data.check_labels(compiled.classes())?;
                program.insert((indices.len(), compiled))
            }
        };
        let (inputs, labels) = data.batch(indices);
        let shape: Vec<usize> = std::iter::once(*size).chain(data.sample_shape().iter().copied()).collect();
        let input = tensor::<Plain>(inputs, &shape, Precision::Single)?;
        let logits = to_f64(program.run(&parameters, input, &mut Vec::new())?);
        if let Some(index) = logits.iter().position(|logit| !logit.is_finite()) {
            let sample = indices.first().copied().unwrap_or_default() + index / program.classes() + 1;
            return Err(TrainingError::NotFinite { sample });
        }
        let result = cross_entropy(&logits, &labels, program.classes());
        correct += result.correct as u64;
        loss_sum += result.loss * labels.len() as f64;
    }
    Ok(Evaluation { examples: data.len() as u64, correct, loss: (loss_sum / data.len() as f64) as f32 })
}

/// Loss and gradients over all the data as one batch.
pub(super) fn gradients(
    model: &Model,
    data: &Dataset,
    loss: Loss,
) -> Result<(f32, BTreeMap<String, Vec<f32>>), TrainingError> {
    let Loss::CrossEntropy = loss;
    let parameters = Parameters::from_model(model)?;
    let (loss, gradients) = gradients_at(model, &parameters, data, Precision::Single)?;
    let single = |values: Vec<f64>| values.into_iter().map(|value| value as f32).collect();
    Ok((loss as f32, gradients.into_iter().map(|(name, values)| (name, single(values))).collect()))
}

/// As [`gradients`], at any parameters and in either precision.
pub(super) fn gradients_at(
    model: &Model,
    parameters: &Parameters,
    data: &Dataset,
    precision: Precision,
) -> Result<(f64, BTreeMap<String, Vec<f64>>), TrainingError> {
    let program = Program::compile(model, data.len(), Mode::Train, precision)?;
    data.check_labels(program.classes())?;
    let shape: Vec<usize> = std::iter::once(data.len()).chain(data.sample_shape().iter().copied()).collect();
    let (inputs, labels) = data.whole();
    let input = tensor::<Plain>(inputs, &shape, precision)?;
    let (loss, gradients, _) = backward(&program, parameters, input, &labels, precision)?;
    if !loss.is_finite() {
        return Err(TrainingError::Diverged { step: 1, epoch: 1, what: "the loss" });
    }
    let named = parameters.list.iter().zip(gradients).filter(|(parameter, _)| parameter.trainable);
    let gradients = named
        .map(|(parameter, gradient)| {
            let zeros = || vec![0.0; to_f64(parameter.values.clone()).len()];
            (parameter.name.clone(), gradient.map_or_else(zeros, to_f64))
        })
        .collect();
    Ok((loss, gradients))
}
