//! One checked ONNX file: its original bytes and what is known of them.
//! The checks themselves are in the submodules; values are in `weights`, execution in `float`.

use std::path::Path;
use std::sync::Arc;

use prost::Message;

use crate::operators::{self, UnsupportedOperator};
use crate::{Digest, Layout, ModelError, Weights, pb};

mod graph;
mod interface;
mod places;
pub(crate) mod scan;
mod signature;
pub(crate) mod sizes;
mod splice;
mod stream;
pub(crate) mod tensor;

pub(crate) use places::initializers;

pub use interface::Interface;
pub use places::{Place, Places};
pub use signature::{ElementType, TensorSignature};
pub use stream::PIECE_VALUES;

/// Largest file that is read, in bytes: protobuf's own limit of 2 GiB.
pub const MAX_FILE_BYTES: u64 = 2 << 30;

/// A checked ONNX file. Cheap to clone: the parts are shared.
#[derive(Clone, Debug)]
pub struct Model {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    bytes: Arc<[u8]>,
    digest: Digest,
    graph: pb::GraphProto,
    opset: i64,
    input: TensorSignature,
    output: TensorSignature,
    layout: Arc<Layout>,
    places: Places,
}

impl Model {
    /// Reads one self-contained ONNX file (at most [`MAX_FILE_BYTES`]) as hostile input.
    ///
    /// Refused, each with what to do instead: files that are truncated or no ONNX, external data (use
    /// [`Model::from_path`]), model-local functions, training info, subgraphs, sparse tensors, operators outside the
    /// catalogue, graphs that are not sorted or define a value twice, tensors whose bytes do not match their shape,
    /// NaN in any float initializer, infinity in an exchanged one, and any number of graph inputs or outputs but one.
    pub fn from_bytes(bytes: impl Into<Arc<[u8]>>) -> Result<Model, ModelError> {
        let bytes: Arc<[u8]> = bytes.into();
        scan::check(&bytes)?;
        let mut proto = pb::ModelProto::decode(&*bytes)
            .map_err(|error| ModelError::NotOnnx { bytes: bytes.len(), problem: error.to_string() })?;
        let mut graph = proto
            .graph
            .take()
            .ok_or_else(|| ModelError::NotOnnx { bytes: bytes.len(), problem: "it holds no graph".to_owned() })?;
        let opset = graph::default_opset(&proto)?;
        for initializer in &graph.initializer {
            tensor::check(initializer)?;
        }
        let (input, output) = graph::check(&graph, opset)?;
        sizes::check(&graph)?;
        let layout = Arc::new(tensor::layout(&graph)?);
        tensor::check_finite(&graph, &layout)?;
        let places = Places::find(&bytes, &layout)?;
        // The file holds them: a second copy would double what a model takes.
        tensor::strip(&mut graph, &layout);
        let digest = Digest::of(&bytes);
        let inner = Inner { bytes, digest, graph, opset, input, output, layout, places };
        Ok(Model { inner: Arc::new(inner) })
    }

    /// Reads an ONNX file; external data that lies beside it is folded in, so that [`Model::bytes`] is self-contained.
    /// Errors as [`Model::from_bytes`], and where a file is missing, too large or outside the model's directory.
    pub fn from_path(path: &Path) -> Result<Model, ModelError> {
        Model::from_bytes(crate::external::read_folded(path)?)
    }

    /// The file, byte for byte.
    pub fn bytes(&self) -> &Arc<[u8]> {
        &self.inner.bytes
    }

    /// SHA-256 of [`Model::bytes`].
    pub fn digest(&self) -> Digest {
        self.inner.digest
    }

    /// The decoded graph, without the values of exchanged parameters: [`Model::weights`] reads them in the file. Fields newer
    /// than IR 8 are missing here; the bytes keep them.
    pub fn graph(&self) -> &pb::GraphProto {
        &self.inner.graph
    }

    /// Version of ONNX's default operator set.
    pub fn opset(&self) -> i64 {
        self.inner.opset
    }

    /// The one graph input that is not an initializer; its first dimension is the batch.
    pub fn input(&self) -> &TensorSignature {
        &self.inner.input
    }

    /// The one graph output.
    pub fn output(&self) -> &TensorSignature {
        &self.inner.output
    }

    /// Names, shapes and classes of the float32 initializers.
    pub fn layout(&self) -> &Arc<Layout> {
        &self.inner.layout
    }

    /// Where the exchanged values lie in the file: what is needed to stream a new version without this model.
    pub fn places(&self) -> &Places {
        &self.inner.places
    }

    /// Values of the exchanged parameters, copied out of the file.
    pub fn weights(&self) -> Weights {
        let Inner { bytes, layout, places, .. } = &*self.inner;
        let mut values = Vec::with_capacity(layout.exchanged_len());
        for place in places.runs() {
            let run = bytes.get(place.bytes.start as usize..place.bytes.end as usize).unwrap_or_default();
            values.extend(run.as_chunks::<4>().0.iter().map(|value| f32::from_le_bytes(*value)));
        }
        Weights::checked(layout.clone(), values)
    }

    /// The same file with other weights: only the bytes of exchanged initializers change.
    /// Refused where the weights belong to another layout.
    pub fn with_weights(&self, weights: &Weights) -> Result<Model, ModelError> {
        if weights.layout().digest() != self.inner.layout.digest() {
            return Err(ModelError::Weights {
                problem: format!(
                    "belong to the layout {}, but this model's is {}; train from this very model",
                    weights.layout().digest(),
                    self.inner.layout.digest()
                ),
            });
        }
        Model::from_bytes(splice::splice(&self.inner.bytes, &self.inner.places, weights)?)
    }

    /// What stops this model from being trained, node by node; empty where nothing does.
    pub fn untrainable(&self) -> Vec<UnsupportedOperator> {
        let Inner { graph, layout, input, output, .. } = &*self.inner;
        operators::untrainable(graph, layout, input, output)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;
    use crate::ParameterClass;
    use crate::testing::{self, DIGITS};
    use proptest::prelude::*;

    #[test]
    fn the_demo_model_is_read_as_pytorch_wrote_it() {
        let model = Model::from_bytes(DIGITS).unwrap();
        assert_eq!(model.opset(), 20);
        assert_eq!((model.input().name.as_str(), model.input().sample_shape()), ("pixels", vec![1, 8, 8]));
        assert_eq!((model.output().name.as_str(), model.output().dims.as_slice()), ("logits", &[None, Some(10)][..]));
        assert_eq!(model.layout().exchanged_len(), 11_482);
        assert!(model.layout().parameters().iter().all(|spec| spec.class == ParameterClass::Trainable));
        assert!(model.layout().parameter("val_7").is_none(), "an int64 shape is no parameter");
        assert_eq!(model.untrainable(), []);
        assert_eq!(model.weights().tensor("conv1.weight").unwrap().len(), 144);
    }

    #[test]
    fn a_file_cut_anywhere_is_refused_or_still_whole_and_never_panics() {
        let whole = Model::from_bytes(DIGITS).unwrap();
        for length in 0..DIGITS.len() {
            match Model::from_bytes(&DIGITS[..length]) {
                Ok(model) => assert_eq!(model.graph(), whole.graph(), "cut at {length}"),
                Err(error) => assert!(!error.to_string().is_empty()),
            }
        }
        let error = Model::from_bytes(&DIGITS[..20_000]).unwrap_err().to_string();
        assert!(error.contains("truncated") && error.contains("20000 bytes") && error.contains("at byte"), "{error}");
    }

    #[test]
    fn text_and_an_empty_file_are_no_onnx_files() {
        for bytes in [&b""[..], b"hello, this is not a model", b"\0\0\0\0", b"PK\x03\x04zip"] {
            let error = Model::from_bytes(bytes).unwrap_err();
            assert!(matches!(error, ModelError::NotOnnx { .. }), "{error}");
        }
    }

    #[test]
    fn weights_of_another_layout_are_refused() {
        let digits = Model::from_bytes(DIGITS).unwrap();
        let linear = Model::from_bytes(testing::bytes(testing::linear())).unwrap();
        let error = digits.with_weights(&linear.weights()).unwrap_err().to_string();
        assert!(error.contains(&linear.layout().digest().to_string()), "{error}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn damaged_files_never_panic(place in 0..DIGITS.len(), value in any::<u8>(), second in 0..2000usize) {
            let mut bytes = DIGITS.to_vec();
            bytes[place] = value;
            bytes[second] ^= value;
            let _ = Model::from_bytes(bytes);
        }

        #[test]
        fn bytes_at_random_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = Model::from_bytes(bytes);
        }
    }
}
