//! What an ONNX file takes and gives, for a file that is only to be served: any number of inputs and outputs, any operator.
//! Files that are trained and quantized are read as a `Model`, whose checks go much further.

use prost::Message;

use super::{scan, signature, sizes, tensor};
use crate::error::shorten;
use crate::{Digest, ModelError, TensorSignature, pb};

/// The inputs and outputs of an ONNX file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// SHA-256 of the file.
    pub digest: Digest,
    /// Digest of the layout of its float32 initializers.
    pub layout: Digest,
    /// Inputs that are no initializers, in the file's order; their names differ.
    pub inputs: Vec<TensorSignature>,
    /// Outputs in the file's order; their names differ.
    pub outputs: Vec<TensorSignature>,
}

impl Interface {
    /// Most inputs, and most outputs, of a served model.
    pub const MAX_TENSORS: usize = 256;

    /// Reads a self-contained ONNX file as hostile input: bounds on its size and parts, tensors whose bytes match their
    /// shapes, no constants that grow without bounds, no NaN among its floats. Whether an engine runs its operators is for the engine to say.
    pub fn from_bytes(bytes: &[u8]) -> Result<Interface, ModelError> {
        scan::check(bytes)?;
        let proto = pb::ModelProto::decode(bytes)
            .map_err(|error| ModelError::NotOnnx { bytes: bytes.len(), problem: error.to_string() })?;
        let graph = proto
            .graph
            .ok_or_else(|| ModelError::NotOnnx { bytes: bytes.len(), problem: "it holds no graph".to_owned() })?;
        for initializer in &graph.initializer {
            tensor::check(initializer)?;
        }
        sizes::check(&graph)?;
        let layout = tensor::layout(&graph)?;
        tensor::check_finite(&graph, &layout)?;
        let initializers: std::collections::HashSet<&str> =
            graph.initializer.iter().map(|tensor| tensor.name.as_str()).collect();
        let free = graph.input.iter().filter(|value| !initializers.contains(value.name.as_str()));
        Ok(Interface {
            digest: Digest::of(bytes),
            layout: layout.digest(),
            inputs: signatures(free, "input")?,
            outputs: signatures(graph.output.iter(), "output")?,
        })
    }

    /// Whether the first dimension of every input and output is dynamic, so that it counts samples and requests can be
    /// put together.
    pub fn is_batched(&self) -> bool {
        self.inputs.iter().chain(&self.outputs).all(|tensor| tensor.dims.first() == Some(&None))
    }
}

fn signatures<'a>(
    values: impl Iterator<Item = &'a pb::ValueInfoProto>,
    role: &str,
) -> Result<Vec<TensorSignature>, ModelError> {
    let mut found: Vec<TensorSignature> = Vec::new();
    for value in values {
        if value.name.is_empty() || found.iter().any(|known| known.name == value.name) {
            return Err(ModelError::graph(format!(
                "lists the {role} {:?} twice or without a name",
                shorten(&value.name)
            )));
        }
        if found.len() == Interface::MAX_TENSORS {
            return Err(ModelError::graph(format!("has more than {} {role}s", Interface::MAX_TENSORS)));
        }
        found.push(signature::read_open(value, role)?);
    }
    if found.is_empty() {
        return Err(ModelError::graph(format!("has no {role}; export it again")));
    }
    Ok(found)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;
    use crate::testing::{DIGITS, bytes, graph, node, value};

    #[test]
    fn several_inputs_and_outputs_of_any_rank_are_read_in_order() {
        let mut graph = graph(&[-1, 2], &[-1, 2], vec![node("Add", &["x", "z"], &["y"])], vec![]);
        graph.input.push(value("z", &[-1, 2]));
        graph.output.push(value("x", &[-1, 2]));
        let interface = Interface::from_bytes(&bytes(graph)).unwrap();
        let names = |tensors: &[TensorSignature]| tensors.iter().map(|t| t.name.clone()).collect::<Vec<_>>();
        assert_eq!(
            (names(&interface.inputs), names(&interface.outputs)),
            (vec!["x".into(), "z".into()], vec!["y".into(), "x".into()])
        );
        assert!(interface.is_batched());
    }

    #[test]
    fn a_fixed_first_dimension_is_no_batch() {
        let fixed = graph(&[1, 2], &[1, 2], vec![node("Relu", &["x"], &["y"])], vec![]);
        assert!(!Interface::from_bytes(&bytes(fixed)).unwrap().is_batched());
    }

    #[test]
    fn a_name_given_twice_and_a_cut_file_are_refused() {
        let mut twice = graph(&[-1, 2], &[-1, 2], vec![node("Relu", &["x"], &["y"])], vec![]);
        twice.input.push(value("x", &[-1, 2]));
        assert!(Interface::from_bytes(&bytes(twice)).unwrap_err().to_string().contains("\"x\""));
        for length in (0..DIGITS.len()).step_by(97) {
            let _ = Interface::from_bytes(&DIGITS[..length]);
        }
    }
}
