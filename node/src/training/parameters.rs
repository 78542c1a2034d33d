//! The exchanged parameters of a model as tensors, between their flat form and the tape.
//! Which of them are stepped, and how, is in `trainer` and `optimizer`.

use std::ops::Range;
use std::sync::Arc;

use fedge_models::{Layout, Model, ParameterClass, Weights};

use super::TrainingError;
use super::backend::{Plain, PlainTensor, Precision, Taped, Tensor, leaf, tensor, tensor_from_f64};

/// Every exchanged parameter, in the layout's order. They live off the tape; a step lifts them onto it.
pub(super) struct Parameters {
    layout: Arc<Layout>,
    pub list: Vec<Parameter>,
}

/// One exchanged parameter.
pub(super) struct Parameter {
    pub name: String,
    /// Whether a gradient is taken; otherwise it is a statistic, or the plan leaves it as it is.
    pub trainable: bool,
    pub values: PlainTensor,
}

impl Parameters {
    /// Copies a model's weights into tensors, without a flat copy in between.
    pub(super) fn from_model(model: &Model) -> Result<Parameters, TrainingError> {
        let ranges: Vec<Range<usize>> = model.layout().exchanged().map(|(_, range)| range).collect();
        let mut values: Vec<Vec<f32>> = ranges.iter().map(|range| Vec::with_capacity(range.len())).collect();
        let mut index = 0;
        let take = |first: usize, piece: &[f32]| {
            // Pieces come in flat order, each within one parameter.
            while ranges.get(index).is_some_and(|range| range.end <= first) {
                index += 1;
            }
            if let Some(values) = values.get_mut(index) {
                values.extend_from_slice(piece);
            }
            Ok::<_, TrainingError>(())
        };
        model.places().for_each_piece(&model.bytes()[..], take)?;
        let mut values = values.into_iter();
        Parameters::build(model.layout(), |_, shape| {
            tensor::<Plain>(values.next().unwrap_or_default(), shape, Precision::Single)
        })
    }

    /// Double precision from doubles, for gradient checks.
    pub(super) fn from_f64(layout: &Arc<Layout>, values: &[f64]) -> Result<Parameters, TrainingError> {
        let take = |range: Range<usize>, shape: &[usize]| {
            tensor_from_f64::<Plain>(values.get(range).unwrap_or_default().to_vec(), shape, Precision::Double)
        };
        Parameters::build(layout, take)
    }

    fn build(
        layout: &Arc<Layout>,
        mut take: impl FnMut(Range<usize>, &[usize]) -> Result<PlainTensor, TrainingError>,
    ) -> Result<Parameters, TrainingError> {
        let list: Result<Vec<Parameter>, TrainingError> = layout
            .exchanged()
            .map(|(spec, range)| {
                Ok(Parameter {
                    name: spec.name.clone(),
                    trainable: spec.class == ParameterClass::Trainable,
                    values: take(range, &spec.shape)?,
                })
            })
            .collect();
        Ok(Parameters { layout: layout.clone(), list: list? })
    }

    /// The parameters as leaves of a new tape; the numbers are shared, not copied.
    pub(super) fn leaves(&self) -> Vec<Tensor<Taped>> {
        self.list.iter().map(|parameter| leaf(parameter.values.clone(), parameter.trainable)).collect()
    }

    /// The parameters off the tape; the numbers are shared, not copied.
    pub(super) fn plain(&self) -> Vec<PlainTensor> {
        self.list.iter().map(|parameter| parameter.values.clone()).collect()
    }

    /// Back to flat weights; single precision alone. `None` where a number is not finite.
    pub(super) fn into_weights(self) -> Option<Weights> {
        let mut values = Vec::with_capacity(self.layout.exchanged_len());
        for parameter in self.list {
            values.extend_from_slice(parameter.values.to_contiguous().storage::<f32>());
        }
        Weights::new(self.layout, values).ok()
    }
}
