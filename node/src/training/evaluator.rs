//! A model's answers to a data set, batch by batch and off the tape: loss and accuracy, or the outputs themselves.
//! Steps and gradients are `trainer`'s.

use fedge_models::Model;

use super::backend::{Precision, Processor, Tensor, tensor, to_f64};
use super::dataset::Targets;
use super::graph::{Mode, Program};
use super::loss::measure;
use super::parameters::Parameters;
use super::trainer::{check, form_of};
use super::{Dataset, Evaluation, Objective, TrainingError, spare};

/// Samples of one forward pass of an evaluation, at most.
const EVALUATION_BATCH: usize = 128;

/// Loss and accuracy with frozen statistics; nothing is put on a tape.
pub(super) fn evaluate<P: Processor>(
    model: &Model,
    data: &Dataset,
    objective: &Objective,
) -> Result<Evaluation, TrainingError> {
    let parameters = Parameters::<P>::from_model(model)?.plain();
    Evaluator::<P>::new(model, data, Some(objective), EVALUATION_BATCH)?.evaluate(&parameters, objective)
}

/// The graph's whole output for every sample, row-major, and its shape.
pub(super) fn outputs<P: Processor>(model: &Model, data: &Dataset) -> Result<(Vec<usize>, Vec<f32>), TrainingError> {
    let (mut shape, mut all) = (Vec::new(), Vec::new());
    let parameters = Parameters::<P>::from_model(model)?.plain();
    Evaluator::<P>::new(model, data, None, EVALUATION_BATCH)?.over_batches(&parameters, |program, _, outputs| {
        if program.output_shape.first() != Some(&program.batch) {
            return Err(TrainingError::graph(format!(
                "gives an output of shape {:?} to {} samples; export it with a dynamic batch",
                program.output_shape, program.batch
            )));
        }
        all.extend(outputs.iter().map(|&output| output as f32));
        shape.clone_from(&program.output_shape);
        Ok(())
    })?;
    if let Some(batch) = shape.first_mut() {
        *batch = data.len();
    }
    Ok((shape, all))
}

/// A model's graph in evaluation mode, compiled for one data set; it needs no model any more, and takes any parameters.
pub(super) struct Evaluator<'d, P: Processor> {
    data: &'d Dataset,
    batch: usize,
    /// For whole batches, and for the last one where it is smaller.
    programs: Vec<Program<P::Plain>>,
}

impl<'d, P: Processor> Evaluator<'d, P> {
    /// For batches of at most `batch` samples. With an objective, the data is checked against the model.
    pub(super) fn new(
        model: &Model,
        data: &'d Dataset,
        objective: Option<&Objective>,
        batch: usize,
    ) -> Result<Evaluator<'d, P>, TrainingError> {
        let batch = model.input().fixed_batch().unwrap_or(batch.clamp(1, EVALUATION_BATCH));
        let mut sizes = vec![batch.min(data.len()), data.len() % batch];
        sizes.retain(|size| *size > 0);
        sizes.dedup();
        let loss = objective.map(|objective| objective.loss);
        let compile = |size: usize| {
            let program = Program::compile(model, size, Mode::Evaluate, Precision::Single, loss)?;
            if let Some(objective) = objective {
                check(&program, objective, data)?;
            }
            Ok(program)
        };
        let programs: Result<Vec<_>, TrainingError> = sizes.into_iter().map(compile).collect();
        Ok(Evaluator { data, batch, programs: programs? })
    }

    /// Loss and accuracy at these parameters.
    pub(super) fn evaluate(
        &self,
        parameters: &[Tensor<P::Plain>],
        objective: &Objective,
    ) -> Result<Evaluation, TrainingError> {
        let (mut correct, mut answers, mut loss_sum, mut weight_sum) = (0, 0, 0.0, 0.0);
        let mut first = 0;
        self.over_batches(parameters, |program, targets, outputs| {
            if let Some(index) = outputs.iter().position(|output| !output.is_finite()) {
                let len = outputs.len() / program.batch;
                return Err(TrainingError::NotFinite { sample: first + index / len.max(1) + 1 });
            }
            let form = form_of(program, objective, targets.shape(), targets.is_values())?;
            let result = measure(objective, form, &outputs, targets);
            correct += result.correct as u64;
            answers += result.answers as u64;
            loss_sum += result.loss * result.weight;
            weight_sum += result.weight;
            first += program.batch;
            Ok(())
        })?;
        let loss = if weight_sum > 0.0 { (loss_sum / weight_sum) as f32 } else { 0.0 };
        Ok(Evaluation { examples: self.data.len() as u64, answers, correct, loss })
    }

    /// Runs the graph over the data, batch by batch.
    fn over_batches(
        &self,
        parameters: &[Tensor<P::Plain>],
        mut each: impl FnMut(&Program<P::Plain>, &Targets, Vec<f64>) -> Result<(), TrainingError>,
    ) -> Result<(), TrainingError> {
        let _kept = spare::Kept;
        let indices: Vec<usize> = (0..self.data.len()).collect();
        for indices in indices.chunks(self.batch) {
            let Some(program) = self.programs.iter().find(|program| program.batch == indices.len()) else {
                return Err(TrainingError::graph("has no program for this batch"));
            };
            let (inputs, targets) = self.data.batch(indices)?;
            let sample = self.data.sample_shape().iter().copied();
            let shape: Vec<usize> = std::iter::once(indices.len()).chain(sample).collect();
            let input = tensor::<P::Plain>(inputs, &shape, Precision::Single)?;
            each(program, &targets, to_f64::<P::Plain>(program.run(parameters, input, &mut Vec::new())?)?)?;
        }
        Ok(())
    }
}
