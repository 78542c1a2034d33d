//! The exchanged parameters of a model as tensors, between their flat form and the tape.
//! Which of them are stepped, and how, is in `trainer` and `optimizer`.

use std::ops::Range;
use std::sync::Arc;

use fedge_models::{Layout, Model, ParameterClass, Weights};

use super::TrainingError;
use super::backend::{Precision, Processor, Tensor, leaf, tensor, tensor_from_f64, to_f32};

/// Every exchanged parameter, in the layout's order. They live off the tape; a step lifts them onto it.
pub(super) struct Parameters<P: Processor> {
    layout: Arc<Layout>,
    pub list: Vec<Parameter<P>>,
}

/// One exchanged parameter.
pub(super) struct Parameter<P: Processor> {
    pub name: String,
    /// Whether a gradient is taken; otherwise it is a statistic, or the plan leaves it as it is.
    pub trainable: bool,
    pub values: Tensor<P::Plain>,
}

impl<P: Processor> Parameters<P> {
    /// Copies a model's weights into tensors, without a flat copy in between.
    pub(super) fn from_model(model: &Model) -> Result<Parameters<P>, TrainingError> {
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
            tensor::<P::Plain>(values.next().unwrap_or_default(), shape, Precision::Single)
        })
    }

    /// Double precision from doubles, for gradient checks.
    pub(super) fn from_f64(layout: &Arc<Layout>, values: &[f64]) -> Result<Parameters<P>, TrainingError> {
        let take = |range: Range<usize>, shape: &[usize]| {
            tensor_from_f64::<P::Plain>(values.get(range).unwrap_or_default().to_vec(), shape, Precision::Double)
        };
        Parameters::build(layout, take)
    }

    fn build(
        layout: &Arc<Layout>,
        mut take: impl FnMut(Range<usize>, &[usize]) -> Result<Tensor<P::Plain>, TrainingError>,
    ) -> Result<Parameters<P>, TrainingError> {
        let list: Result<Vec<Parameter<P>>, TrainingError> = layout
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
    pub(super) fn leaves(&self) -> Vec<Tensor<P::Taped>> {
        self.list.iter().map(|parameter| leaf::<P::Taped>(parameter.values.clone(), parameter.trainable)).collect()
    }

    /// The parameters off the tape; the numbers are shared, not copied.
    pub(super) fn plain(&self) -> Vec<Tensor<P::Plain>> {
        self.list.iter().map(|parameter| parameter.values.clone()).collect()
    }

    /// Back to flat weights; single precision alone. `None` where a number is not finite.
    pub(super) fn into_weights(self) -> Result<Option<Weights>, TrainingError> {
        let mut values = Vec::with_capacity(self.layout.exchanged_len());
        for parameter in self.list {
            values.extend(to_f32::<P::Plain>(parameter.values)?);
        }
        Ok(Weights::new(self.layout, values).ok())
    }
}
