//! Names, shapes and classes of a model's float parameters, and the digest by which two models agree on them.
//! The values are in `weights`; the classes come from how the graph uses a tensor (`layout/classify.rs`).

use std::collections::HashMap;
use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::{Digest, ModelError};

mod classify;
mod selection;

pub(crate) use classify::classify;
pub(crate) use selection::fits;
pub use selection::{Exchange, Selection};

/// What training may do to a float initializer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ParameterClass {
    /// Learned by gradient steps and averaged between nodes.
    Trainable,
    /// A BatchNormalization running mean or variance: averaged between nodes, never a gradient step.
    Statistic,
    /// Part of the model's definition (Clip bounds and the like): never touched, never sent.
    Constant,
}

/// One float32 initializer of the file.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ParameterSpec {
    /// The initializer's name in the ONNX file.
    pub name: String,
    /// Its dimensions; empty for a scalar.
    pub shape: Vec<usize>,
    /// What training may do to it.
    pub class: ParameterClass,
}

impl ParameterSpec {
    /// Number of elements: the product of the dimensions (1 for a scalar).
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether a dimension is zero.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether nodes send it: trainable or statistic.
    pub fn is_exchanged(&self) -> bool {
        self.class != ParameterClass::Constant
    }
}

/// Every float32 initializer in file order. The exchanged part (trainable and statistic) is flattened in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    parameters: Vec<ParameterSpec>,
    ranges: Vec<Option<Range<usize>>>,
    by_name: HashMap<String, usize>,
    exchanged_len: usize,
    digest: Digest,
}

impl Layout {
    /// Orders parameters into a layout. Refuses a name that is given twice and sizes that overflow.
    pub fn new(parameters: Vec<ParameterSpec>) -> Result<Layout, ModelError> {
        let mut by_name = HashMap::with_capacity(parameters.len());
        let mut ranges = Vec::with_capacity(parameters.len());
        let mut exchanged_len = 0usize;
        for (index, spec) in parameters.iter().enumerate() {
            if by_name.insert(spec.name.clone(), index).is_some() {
                return Err(ModelError::tensor(&spec.name, "is defined twice; give each initializer its own name"));
            }
            let len = spec.shape.iter().try_fold(1usize, |product, &dim| product.checked_mul(dim));
            let end = len.and_then(|len| exchanged_len.checked_add(len)).ok_or_else(|| {
                ModelError::tensor(&spec.name, format!("has the shape {:?}, whose size overflows", spec.shape))
            })?;
            if spec.is_exchanged() {
                ranges.push(Some(exchanged_len..end));
                exchanged_len = end;
            } else {
                ranges.push(None);
            }
        }
        let digest = digest(&parameters);
        Ok(Layout { parameters, ranges, by_name, exchanged_len, digest })
    }

    /// All parameters, in file order.
    pub fn parameters(&self) -> &[ParameterSpec] {
        &self.parameters
    }

    /// SHA-256 over a canonical encoding of the ordered names, shapes and classes. Two models with the same digest
    /// can exchange weights.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// Number of float32 values that nodes exchange.
    pub fn exchanged_len(&self) -> usize {
        self.exchanged_len
    }

    /// The exchanged parameters in order, each with its range in the flat vector.
    pub fn exchanged(&self) -> impl Iterator<Item = (&ParameterSpec, Range<usize>)> {
        self.parameters.iter().zip(&self.ranges).filter_map(|(spec, range)| Some((spec, range.clone()?)))
    }

    /// The range of one exchanged parameter in the flat vector; `None` where this name is not exchanged.
    pub fn range(&self, name: &str) -> Option<Range<usize>> {
        self.ranges.get(*self.by_name.get(name)?)?.clone()
    }

    /// The parameter of this name, whatever its class.
    pub fn parameter(&self, name: &str) -> Option<&ParameterSpec> {
        self.parameters.get(*self.by_name.get(name)?)
    }
}

/// Encoding 1, little-endian: the tag, the count (u64), then for each parameter the name's length (u64) and UTF-8
/// bytes, the rank (u64), each dimension (u64) and the class (0 trainable, 1 statistic, 2 constant; u8).
fn digest(parameters: &[ParameterSpec]) -> Digest {
    let mut bytes = b"fedge layout 1\0".to_vec();
    let number = |bytes: &mut Vec<u8>, value: usize| bytes.extend_from_slice(&(value as u64).to_le_bytes());
    number(&mut bytes, parameters.len());
    for spec in parameters {
        number(&mut bytes, spec.name.len());
        bytes.extend_from_slice(spec.name.as_bytes());
        number(&mut bytes, spec.shape.len());
        for &dim in &spec.shape {
            number(&mut bytes, dim);
        }
        bytes.push(match spec.class {
            ParameterClass::Trainable => 0,
            ParameterClass::Statistic => 1,
            ParameterClass::Constant => 2,
        });
    }
    Digest::of(&bytes)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    fn spec(name: &str, shape: &[usize], class: ParameterClass) -> ParameterSpec {
        ParameterSpec { name: name.to_owned(), shape: shape.to_vec(), class }
    }

    #[test]
    fn the_digest_is_that_of_the_documented_encoding() {
        let layout = Layout::new(vec![spec("w", &[2, 3], ParameterClass::Trainable)]).unwrap();
        let mut bytes = b"fedge layout 1\0".to_vec();
        for number in [1u64, 1] {
            bytes.extend(number.to_le_bytes());
        }
        bytes.push(b'w');
        for number in [2u64, 2, 3] {
            bytes.extend(number.to_le_bytes());
        }
        bytes.push(0);
        assert_eq!(layout.digest(), Digest::of(&bytes));
    }

    #[test]
    fn names_shapes_classes_and_order_all_change_the_digest() {
        use ParameterClass::{Statistic, Trainable};
        let digest = |specs: &[ParameterSpec]| Layout::new(specs.to_vec()).unwrap().digest();
        let [a, b] = [spec("a", &[6], Trainable), spec("b", &[2], Trainable)];
        let base = digest(&[a.clone(), b.clone()]);
        assert_ne!(base, digest(&[b.clone(), a.clone()]));
        assert_ne!(base, digest(&[a.clone(), spec("c", &[2], Trainable)]));
        assert_ne!(base, digest(&[spec("a", &[2, 3], Trainable), b.clone()]));
        assert_ne!(base, digest(&[a.clone(), spec("b", &[2], Statistic)]));
        assert_ne!(base, digest(&[a]));
    }

    #[test]
    fn sizes_that_overflow_and_names_given_twice_are_refused() {
        let huge = spec("w", &[usize::MAX, 2], ParameterClass::Trainable);
        assert!(Layout::new(vec![huge]).is_err());
        let half = |name| spec(name, &[usize::MAX / 2 + 1], ParameterClass::Trainable);
        assert!(Layout::new(vec![half("a"), half("b")]).is_err());
        let one = || spec("w", &[1], ParameterClass::Trainable);
        assert!(Layout::new(vec![one(), one()]).is_err());
    }
}
