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
        if let Some(index) = find_not_finite(&values) {
            return Err(not_finite(&layout, index));
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

/// The first value that is no number or infinite. Looks at all first, without a branch a value: nearly always it is none.
pub(crate) fn find_not_finite(values: &[f32]) -> Option<usize> {
    if values.iter().fold(true, |all, value| all & value.is_finite()) {
        return None;
    }
    values.iter().position(|value| !value.is_finite())
}

/// The error that names the parameter of a value that is not finite, by its place in the flat vector.
pub(crate) fn not_finite(layout: &Layout, index: usize) -> ModelError {
    let tensor = layout.exchanged().find(|(_, range)| range.contains(&index));
    let (name, within) = tensor.map_or(("?", index), |(spec, range)| (&spec.name, index - range.start));
    ModelError::tensor(
        name,
        format!(
            "element {within} is not finite; weights must be numbers, so lower the learning rate or drop this update"
        ),
    )
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;
    use crate::{ParameterClass, ParameterSpec};

    fn layout() -> Arc<Layout> {
        let spec = |name: &str, len, class| ParameterSpec { name: name.to_owned(), shape: vec![len], class };
        let specs = vec![
            spec("a", 2, ParameterClass::Trainable),
            spec("fixed", 9, ParameterClass::Constant),
            spec("b", 1, ParameterClass::Statistic),
        ];
        Arc::new(Layout::new(specs).unwrap())
    }

    #[test]
    fn tensors_are_found_by_name_and_constants_are_not_among_them() {
        let weights = Weights::new(layout(), vec![1.0, 2.0, 3.0]).unwrap();
        assert_eq!(weights.tensor("b"), Some(&[3.0][..]));
        assert_eq!(weights.tensor("fixed"), None);
    }

    #[test]
    fn a_wrong_number_of_values_is_refused_with_both_numbers() {
        let error = Weights::new(layout(), vec![1.0]).unwrap_err().to_string();
        assert!(error.contains("hold 1 values") && error.contains("exchanges 3"), "{error}");
    }

    #[test]
    fn a_value_that_is_not_finite_is_refused_with_its_place() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let error = Weights::new(layout(), vec![1.0, bad, 3.0]).unwrap_err().to_string();
            assert!(error.contains("\"a\"") && error.contains("element 1"), "{error}");
        }
    }
}
