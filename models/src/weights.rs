//! The values of a model's exchanged parameters: one flat vector of float32 in the layout's order.
//! Which parameters those are, `layout` decides; writing them into a file is `Model::with_weights`.

use std::sync::Arc;

use crate::{Layout, ModelError};

/// Flat float32 values of the exchanged parameters (trainable and statistic), in the layout's order; all finite.
#[derive(Clone, Debug, PartialEq)]
pub struct Weights {
    layout: Arc<Layout>,
    values: Vec<f32>,
}

impl Weights {
    /// Pairs values with their layout. `values` holds `layout.exchanged_len()` finite numbers; anything else is refused.
    pub fn new(layout: Arc<Layout>, values: Vec<f32>) -> Result<Weights, ModelError> {
        if values.len() != layout.exchanged_len() {
            return Err(ModelError::Weights {
                problem: format!(
                    "hold {} values, but the model's layout {} exchanges {}; send the weights of this very model",
                    values.len(),
                    layout.digest(),
                    layout.exchanged_len()
                ),
            });
        }
        if let Some(index) = values.iter().position(|value| !value.is_finite()) {
            let tensor = layout.exchanged().find(|(_, range)| range.contains(&index));
            let (name, within) = tensor.map_or(("?", index), |(spec, range)| (&spec.name, index - range.start));
            return Err(ModelError::tensor(
                name,
                format!("element {within} is not finite; weights must be numbers, so lower the learning rate or drop this update"),
            ));
        }
        Ok(Weights { layout, values })
    }

    /// Values that were read from a checked file, whose length and finiteness are known.
    pub(crate) fn checked(layout: Arc<Layout>, values: Vec<f32>) -> Weights {
        Weights { layout, values }
    }

    /// The names, shapes and classes that give the values their meaning.
    pub fn layout(&self) -> &Arc<Layout> {
        &self.layout
    }

    /// All values, flat.
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// All values, flat, without a copy.
    pub fn into_values(self) -> Vec<f32> {
        self.values
    }

    /// The values of one exchanged parameter, row-major; `None` where the layout exchanges no such name.
    pub fn tensor(&self, name: &str) -> Option<&[f32]> {
        self.values.get(self.layout.range(name)?)
    }
}
