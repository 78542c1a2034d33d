//! A model's answers to a data set, batch by batch and off the tape: loss and accuracy, or the outputs themselves.
//! Steps and gradients are `trainer`'s.

use fedge_models::Model;

use super::backend::{Plain, Precision, tensor, to_f64};
use super::dataset::Targets;
use super::graph::{Mode, Program};
use super::loss::measure;
use super::parameters::Parameters;
use super::trainer::{check, form_of};
use super::{Dataset, Evaluation, Objective, TrainingError};

/// Samples of one forward pass of an evaluation.
const EVALUATION_BATCH: usize = 128;

/// Loss and accuracy with frozen statistics; nothing is put on a tape.
pub(super) fn evaluate(model: &Model, data: &Dataset, objective: &Objective) -> Result<Evaluation, TrainingError> {
    let (mut correct, mut answers, mut loss_sum, mut weight_sum) = (0, 0, 0.0, 0.0);
    let mut first = 0;
    over_batches(model, data, Some(objective), |program, targets, outputs| {
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
    Ok(Evaluation { examples: data.len() as u64, answers, correct, loss })
}

/// The graph's whole output for every sample, row-major, and its shape.
pub(super) fn outputs(model: &Model, data: &Dataset) -> Result<(Vec<usize>, Vec<f32>), TrainingError> {
    let (mut shape, mut all) = (Vec::new(), Vec::new());
    over_batches(model, data, None, |program, _, outputs| {
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

/// Runs the model over the data, batch by batch, in evaluation mode.
fn over_batches(
    model: &Model,
    data: &Dataset,
    objective: Option<&Objective>,
    mut each: impl FnMut(&Program<Plain>, &Targets, Vec<f64>) -> Result<(), TrainingError>,
) -> Result<(), TrainingError> {
    let parameters = Parameters::from_model(model)?.plain();
    let indices: Vec<usize> = (0..data.len()).collect();
    let batch = model.input().fixed_batch().unwrap_or(EVALUATION_BATCH);
    let mut compiled: Option<Program<Plain>> = None;
    for indices in indices.chunks(batch) {
        let program = match compiled.take() {
            Some(program) if program.batch == indices.len() => compiled.insert(program),
            _ => {
                let loss = objective.map(|objective| objective.loss);
                let program = Program::compile(model, indices.len(), Mode::Evaluate, Precision::Single, loss)?;
                if let Some(objective) = objective {
                    check(&program, objective, data)?;
                }
                compiled.insert(program)
            }
        };
        let (inputs, targets) = data.batch(indices);
        let shape: Vec<usize> = std::iter::once(indices.len()).chain(data.sample_shape().iter().copied()).collect();
        let input = tensor::<Plain>(inputs, &shape, Precision::Single)?;
        each(program, &targets, to_f64(program.run(&parameters, input, &mut Vec::new())?))?;
    }
    Ok(())
}
