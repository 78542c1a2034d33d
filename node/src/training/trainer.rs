//! The training loop: batches, steps, epochs, cancellation; and gradients beside it. Evaluation is `evaluator`'s.
//! Runs on the calling thread; `pool` decides which thread that is.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::atomic::Ordering;

use burn::backend::ops::FloatTensorOps;
use burn::backend::{AutodiffBackend, TensorMetadata};
use fedge_models::{Layout, Model, ParameterSpec, Selection, Weights};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use super::backend::{Precision, Processor, Tensor, leaf, tensor, tensor_from_f64, to_f64};
use super::dataset::Targets;
use super::engine::Engine;
use super::evaluator::Evaluator;
use super::graph::{Mode, Program};
use super::loss::Loss;
use super::loss::{Form, Measured, measure};
use super::ops::BatchStatistics;
use super::optimizer::{Stepper, Store, Terms};
use super::parameters::Parameters;
use super::plan::Schedule;
use super::{Dataset, Objective, Outcome, Plan, Progress, TrainingError, Watch, spare};

/// A model while it is trained.
pub(super) struct Session<P: Processor> {
    /// Holds the file twice; none once no program is needed any more.
    model: Option<Model>,
    sample_shape: Vec<usize>,
    /// FedProx's w₀ by parameter; empty where the plan has no proximal term.
    start: Vec<Tensor<P::Plain>>,
    /// SCAFFOLD's c − c_i by parameter; empty where the plan has none.
    correction: Vec<Tensor<P::Plain>>,
    objective: Objective,
    mode: Mode,
    parameters: Parameters<P>,
    optimizer: Stepper<P::Plain>,
    schedule: (Schedule, u32),
    clip_norm: f32,
    /// Steps that were taken, and those of the whole run.
    steps: (u64, u64),
    /// One program a batch size: the plan's, and that of an epoch's last batch.
    programs: HashMap<usize, Program<P::Taped>>,
}

impl<P: Processor> Session<P> {
    /// Starts from the model's own weights; the schedule spans `total` steps. The plan must be valid.
    pub(super) fn new(model: Model, plan: &Plan, total: u64) -> Result<Session<P>, TrainingError> {
        let expected = model.layout().exchanged_len();
        if let Some(given) = plan.correction.as_ref().map(|c| c.len()).filter(|&given| given != expected) {
            let problem = format!("has {given} values, but the model exchanges {expected}; give one for each");
            return Err(TrainingError::Plan { field: "correction", problem });
        }
        let mut parameters = Parameters::from_model(&model)?;
        select(&mut parameters, model.layout(), &plan.trained)?;
        Ok(Session {
            sample_shape: model.input().sample_shape(),
            start: if plan.proximal_mu == 0.0 { Vec::new() } else { parameters.plain() },
            correction: corrections::<P>(model.layout(), plan.correction.as_deref())?,
            objective: plan.objective.clone(),
            mode: if plan.frozen_statistics { Mode::Frozen } else { Mode::Train },
            optimizer: Stepper::new(plan.optimizer, plan.proximal_mu, parameters.list.len()),
            schedule: (plan.schedule, plan.warmup_steps),
            clip_norm: plan.clip_norm,
            steps: (0, total),
            programs: HashMap::new(),
            model: Some(model),
            parameters,
        })
    }

    /// The program for batches of this size, compiled when it is first asked for.
    pub(super) fn program(&mut self, batch: usize) -> Result<&Program<P::Taped>, TrainingError> {
        use std::collections::hash_map::Entry;
        Ok(match self.programs.entry(batch) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => {
                let no_model = || TrainingError::graph("has no program for this batch");
                let model = self.model.as_ref().ok_or_else(no_model)?;
                entry.insert(Program::compile(model, batch, self.mode, Precision::Single, Some(self.objective.loss))?)
            }
        })
    }

    /// What tells how good the model is on samples, at any time; made before the model is given up.
    fn judge<'d>(&self, samples: &'d Dataset, batch: usize) -> Result<Evaluator<'d, P>, TrainingError> {
        let model = self.model.as_ref().ok_or_else(|| TrainingError::graph("is not there any more"))?;
        Evaluator::new(model, samples, Some(&self.objective), batch)
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
    pub(super) fn step(&mut self, inputs: Vec<f32>, targets: &Targets) -> Result<f64, TrainingError> {
        let batch = inputs.len() / self.sample_shape.iter().product::<usize>().max(1);
        let shape: Vec<usize> = std::iter::once(batch).chain(self.sample_shape.iter().copied()).collect();
        self.program(batch)?;
        let Some(program) = self.programs.get(&batch) else {
            return Err(TrainingError::graph("has no program for this batch"));
        };
        let input = tensor::<P::Plain>(inputs, &shape, Precision::Single)?;
        let task = (&self.objective, form_of(program, &self.objective, targets.shape(), targets.is_values())?);
        let pass = backward::<P>(program, &self.parameters, input, task, targets, Precision::Single)?;
        if !pass.loss.is_finite() {
            return Ok(pass.loss);
        }
        self.descend(pass.gradients);
        for batch in pass.statistics {
            self.follow(batch);
        }
        Ok(pass.loss)
    }

    /// Steps every parameter that has a gradient.
    fn descend(&mut self, mut gradients: Vec<Option<Tensor<P::Plain>>>) {
        if self.clip_norm > 0.0 {
            P::Plain::clip(&mut gradients, self.clip_norm);
        }
        let rate = self.schedule.0.factor(self.steps.0, self.steps.1, self.schedule.1);
        self.steps.0 += 1;
        self.optimizer.begin(rate);
        for (index, (parameter, gradient)) in self.parameters.list.iter_mut().zip(gradients).enumerate() {
            let Some(gradient) = gradient else { continue };
            let terms = Terms { start: self.start.get(index), correction: self.correction.get(index) };
            P::Plain::step(&mut self.optimizer, index, &mut parameter.values, gradient, &terms);
        }
    }

    /// Moves the running statistics of one BatchNormalization. A batch with one value a channel has no variance, and
    /// leaves them as they are.
    fn follow(&mut self, batch: BatchStatistics<P::Taped>) {
        if batch.count < 2 {
            return;
        }
        let unbiased = batch.count as f32 / (batch.count - 1) as f32;
        for (index, new, factor) in
            [(batch.mean_parameter, batch.mean, 1.0), (batch.variance_parameter, batch.variance, unbiased)]
        {
            if let Some(parameter) = self.parameters.list.get_mut(index) {
                P::Plain::follow(&mut parameter.values, P::Taped::inner(new), batch.momentum, factor);
            }
        }
    }

    pub(super) fn into_weights(self) -> Result<Option<Weights>, TrainingError> {
        self.parameters.into_weights()
    }
}

/// SCAFFOLD's correction, a tensor a parameter.
fn corrections<P: Processor>(
    layout: &Layout,
    correction: Option<&[f32]>,
) -> Result<Vec<Tensor<P::Plain>>, TrainingError> {
    let Some(values) = correction else { return Ok(Vec::new()) };
    let of = |(spec, range): (&ParameterSpec, Range<usize>)| {
        tensor::<P::Plain>(values.get(range).unwrap_or_default().to_vec(), &spec.shape, Precision::Single)
    };
    layout.exchanged().map(of).collect()
}

/// Marks which parameters a run trains.
fn select<P: Processor>(
    parameters: &mut Parameters<P>,
    layout: &Layout,
    trained: &Selection,
) -> Result<(), TrainingError> {
    trained.check(layout).map_err(|problem| TrainingError::Plan { field: "trained", problem })?;
    for parameter in &mut parameters.list {
        parameter.trainable &= trained.takes(&parameter.name, parameter.values.shape().len());
    }
    Ok(())
}

/// How the program's output is compared with targets of this shape (one sample's).
pub(super) fn form_of<B: Engine>(
    program: &Program<B>,
    objective: &Objective,
    target: &[usize],
    values: bool,
) -> Result<Form, TrainingError> {
    let form = Form::of(objective.loss, &program.output_shape, target, values)?;
    match program.softmax_axis {
        Some(axis) if form.axis != Some(axis) => Err(TrainingError::graph(format!(
            "ends with a Softmax over axis {axis}, but the labels' shape {target:?} says that the classes lie along another; \
             bring the labels into the output's shape without its class axis"
        ))),
        _ => Ok(form),
    }
}

/// Checks all the data against what the program gives.
pub(super) fn check<B: Engine>(
    program: &Program<B>,
    objective: &Objective,
    data: &Dataset,
) -> Result<(), TrainingError> {
    let (target, values) = data.target_form();
    let form = form_of(program, objective, target, values)?;
    if program.output_shape.first() != Some(&program.batch) {
        return Err(TrainingError::graph(format!(
            "gives an output of shape {:?} to {} samples; export it with a dynamic batch",
            program.output_shape, program.batch
        )));
    }
    if let Some(weights) = objective.class_weights.as_ref().filter(|weights| weights.len() != form.classes) {
        let problem = format!("are {} numbers; the model has {} classes", weights.len(), form.classes);
        return Err(TrainingError::Plan { field: "class_weights", problem });
    }
    match (form.axis, objective.loss) {
        (Some(_), _) => data.check_labels(form.classes),
        (None, Loss::BinaryCrossEntropy) if !values => data.check_labels(2),
        _ => Ok(()),
    }
}

/// What one forward and backward pass gives.
struct Pass<P: Processor> {
    loss: f64,
    /// Each parameter's gradient; `None` for what is not trained and for what the output does not depend on.
    gradients: Vec<Option<Tensor<P::Plain>>>,
    statistics: Vec<BatchStatistics<P::Taped>>,
}

/// Runs forward and backward. The loss's own gradient is computed in closed form and seeds the tape: the sum of
/// outputs ⊙ g has exactly the gradient g at the outputs.
fn backward<P: Processor>(
    program: &Program<P::Taped>,
    parameters: &Parameters<P>,
    input: Tensor<P::Plain>,
    (objective, form): (&Objective, Form),
    targets: &Targets,
    precision: Precision,
) -> Result<Pass<P>, TrainingError> {
    let leaves = parameters.leaves();
    let mut statistics = Vec::new();
    let outputs = program.run(&leaves, leaf::<P::Taped>(input, false), &mut statistics)?;
    // Here most is held: what the forward pass found no use for goes.
    spare::clear();
    let answers = to_f64::<P::Plain>(P::Taped::inner(outputs.clone()))?;
    let Measured { loss, gradient, .. } = measure(objective, form, &answers, targets);
    if !loss.is_finite() {
        return Ok(Pass { loss, gradients: Vec::new(), statistics });
    }
    let seed = tensor_from_f64::<P::Plain>(gradient, &program.output_shape, precision)?;
    let seeded = P::Taped::float_sum(P::Taped::float_mul(outputs, leaf::<P::Taped>(seed, false)));
    let mut gradients = P::Taped::backward(seeded);
    let gradients = leaves
        .iter()
        .zip(&parameters.list)
        .map(|(leaf, parameter)| if parameter.trainable { P::Taped::grad_remove(leaf, &mut gradients) } else { None })
        .collect();
    Ok(Pass { loss, gradients, statistics })
}

/// Trains; `plan` and the data's shape are checked already.
pub(super) fn train<P: Processor>(
    model: Model,
    data: &Dataset,
    plan: &Plan,
    watch: Watch<'_>,
) -> Result<Outcome, TrainingError> {
    let _kept = spare::Kept;
    let batch_size = (plan.batch_size as usize).min(data.len());
    let steps_total = u64::from(plan.epochs) * data.len().div_ceil(batch_size) as u64;
    let mut session = Session::<P>::new(model, plan, steps_total)?;
    let program = session.program(batch_size)?;
    if !program.learned {
        return Err(TrainingError::graph("has an output that no trainable parameter takes part in"));
    }
    check(program, &plan.objective, data)?;
    plan.augmentation.check(data.sample_shape(), data.target_form().0)?;
    let judge = watch.held_out.map(|samples| session.judge(samples, batch_size)).transpose()?;
    let judged = |session: &Session<P>| {
        judge.as_ref().map(|judge| judge.evaluate(&session.parameters.plain(), &plan.objective)).transpose()
    };
    let before = judged(&session)?;
    session.settle(Some(data.len() % batch_size).filter(|last| *last > 0))?;
    let (mut step, mut partial) = (0, false);
    let (mut loss_first, mut loss_last) = (0.0, 0.0);
    'epochs: for epoch in 1..=plan.epochs {
        let (mut loss_sum, mut samples) = (0.0, 0);
        let mut random = plan.augmentation.random(plan.seed, epoch);
        for indices in shuffled(data.len(), plan.seed, epoch).chunks(batch_size) {
            if watch.cancel.load(Ordering::Relaxed) {
                return Err(TrainingError::Cancelled { steps: step });
            }
            // Asked before the first step too, so that the caller sees how long each step takes.
            if (watch.enough)() && step > 0 {
                partial = true;
                break 'epochs;
            }
            let (mut inputs, targets) = data.batch(indices)?;
            if plan.augmentation.is_some() {
                plan.augmentation.apply(&mut inputs, data.sample_shape(), &mut random);
            }
            let loss = session.step(inputs, &targets)?;
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
            (watch.progress)(Progress { epoch, epochs: plan.epochs, step, steps: steps_total, loss: loss as f32 });
        }
    }
    let held_out = before.zip(judged(&session)?);
    let weights =
        session.into_weights()?.ok_or(TrainingError::Diverged { step, epoch: plan.epochs, what: "a weight" })?;
    Ok(Outcome { weights, examples: data.len() as u64, steps: step, partial, loss_first, loss_last, held_out })
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

/// Loss and gradients over all the data as one batch, at any parameters and in either precision.
pub(super) fn gradients_at<P: Processor>(
    model: &Model,
    parameters: &Parameters<P>,
    data: &Dataset,
    objective: &Objective,
    mode: Mode,
    precision: Precision,
) -> Result<(f64, BTreeMap<String, Vec<f64>>), TrainingError> {
    let _kept = spare::Kept;
    let program = Program::<P::Taped>::compile(model, data.len(), mode, precision, Some(objective.loss))?;
    check(&program, objective, data)?;
    let shape: Vec<usize> = std::iter::once(data.len()).chain(data.sample_shape().iter().copied()).collect();
    let (inputs, targets) = data.whole()?;
    let input = tensor::<P::Plain>(inputs, &shape, precision)?;
    let task = (objective, form_of(&program, objective, targets.shape(), targets.is_values())?);
    let Pass { loss, gradients, .. } = backward::<P>(&program, parameters, input, task, &targets, precision)?;
    if !loss.is_finite() {
        return Err(TrainingError::Diverged { step: 1, epoch: 1, what: "the loss" });
    }
    let mut named = BTreeMap::new();
    for (parameter, gradient) in parameters.list.iter().zip(gradients).filter(|(parameter, _)| parameter.trainable) {
        let gradient = match gradient {
            Some(gradient) => to_f64::<P::Plain>(gradient)?,
            None => vec![0.0; parameter.values.shape().num_elements()],
        };
        named.insert(parameter.name.clone(), gradient);
    }
    Ok((loss, named))
}
