//! tract for models that are only served: any number of inputs and outputs, of every type that tract carries.
//! Models of one float32 input and output run in `engine`, where int8 and its kernels are.

use std::borrow::Cow;
use std::sync::Arc;

use fedge_models::float::{check_growth, check_sizes, datum_type};
use fedge_models::mending::mended;
use fedge_models::{ElementType, TensorSignature, pb};
use prost::Message;
use prost::bytes::Bytes;
use tract_onnx::prelude::{Framework, InferenceModelExt, TValue, TVec, Tensor, TractResult, TypedRunnableModel};
use tract_onnx::tract_hir::internal::{IntoRunnable, bail};

use super::engine::{EngineError, NoExternalData, caught};
use super::request::TensorData;

/// A loaded model. Send and Sync.
pub(crate) struct TensorEngine {
    plan: Arc<TypedRunnableModel>,
    outputs: Vec<ElementType>,
}

impl TensorEngine {
    /// Loads ONNX bytes with these inputs and outputs, as `Interface` reads them.
    pub(crate) fn load(
        onnx: &[u8],
        inputs: &[TensorSignature],
        outputs: &[TensorSignature],
    ) -> Result<TensorEngine, EngineError> {
        let refused = |problem: String| EngineError { action: "load", problem };
        for (role, signature) in inputs.iter().map(|s| ("input", s)).chain(outputs.iter().map(|s| ("output", s))) {
            if datum_type(signature.element).is_none() {
                let element = signature.element.name();
                return Err(refused(format!(
                    "its {role} {:?} is {element}, which tract does not carry",
                    signature.name
                )));
            }
        }
        let proto = pb::ModelProto::decode(onnx).map_err(|error| refused(error.to_string()))?;
        check_growth(&proto, None).map_err(|error| refused(error.to_string()))?;
        let plan = caught("load", || {
            let mut onnx = tract_onnx::onnx().with_ignore_value_info(true);
            onnx.provider = Arc::new(NoExternalData);
            let model = onnx.model_for_proto_model(&mended(Cow::Borrowed(&proto)))?;
            let names: Vec<&str> = model.inputs.iter().map(|outlet| model.nodes[outlet.node].name.as_str()).collect();
            if !names.iter().copied().eq(inputs.iter().map(|input| input.name.as_str())) {
                bail!("tract reads the inputs {names:?}, the file lists others");
            }
            let model = model.into_typed()?;
            check_sizes(&model)?;
            model.into_optimized()?.into_runnable()
        })?;
        Ok(TensorEngine { plan, outputs: outputs.iter().map(|output| output.element).collect() })
    }

    /// Runs one tensor an input, in the model's order, of the model's types.
    pub(crate) fn run(&self, inputs: &[TensorData]) -> Result<Vec<TensorData>, EngineError> {
        caught("run", || {
            let inputs: TVec<TValue> = inputs.iter().map(tensor).collect::<TractResult<_>>()?;
            let results = self.plan.run(inputs)?;
            if results.len() != self.outputs.len() {
                bail!("it gave {} outputs where the file lists {}", results.len(), self.outputs.len());
            }
            results.iter().zip(&self.outputs).map(|(result, element)| data(result, *element)).collect()
        })
    }
}

fn tensor(data: &TensorData) -> TractResult<TValue> {
    let Some(datum) = datum_type(data.element) else { bail!("tract carries no {}", data.element.name()) };
    let mut tensor = Tensor::zero_dt(datum, &data.shape)?;
    let bytes = tensor.as_bytes_mut();
    if bytes.len() != data.data.len() {
        bail!("{} bytes came for the shape {:?} of {}", data.data.len(), data.shape, data.element.name());
    }
    // Booleans were checked to be 0 or 1 with the request; any other bytes are values.
    bytes.copy_from_slice(&data.data);
    swap_on_big_endian(bytes, data.element.size());
    Ok(tensor.into())
}

fn data(result: &Tensor, element: ElementType) -> TractResult<TensorData> {
    let Some(wanted) = datum_type(element) else { bail!("tract carries no {}", element.name()) };
    // Shapes come as symbolic dimensions, and quantized numbers as such.
    let cast = result.cast_to_dt(wanted)?;
    let mut bytes = cast.as_bytes().to_vec();
    swap_on_big_endian(&mut bytes, element.size());
    Ok(TensorData { element, shape: result.shape().to_vec(), data: Bytes::from(bytes) })
}

/// The wire is little-endian.
fn swap_on_big_endian(bytes: &mut [u8], size: usize) {
    if cfg!(target_endian = "big") {
        bytes.chunks_exact_mut(size).for_each(<[u8]>::reverse);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use fedge_models::Interface;

    use proptest::prelude::*;

    use super::super::test_fixtures::{every_type, fuzz_cases, two_inputs, zoo};
    use super::*;

    fn load(onnx: &[u8]) -> Result<TensorEngine, EngineError> {
        let interface = Interface::from_bytes(onnx).unwrap();
        TensorEngine::load(onnx, &interface.inputs, &interface.outputs)
    }

    #[test]
    fn two_inputs_give_two_outputs_for_any_batch() {
        let engine = load(&two_inputs()).unwrap();
        for rows in [1usize, 3] {
            let input = |scale: i64| {
                let values = (0..rows as i64 * 2).map(|value| value * scale);
                TensorData {
                    element: ElementType::Int64,
                    shape: vec![rows, 2],
                    data: values.flat_map(i64::to_le_bytes).collect(),
                }
            };
            let outputs = engine.run(&[input(10), input(1)]).unwrap();
            let read = |data: &TensorData| -> Vec<i64> {
                data.data.as_chunks().0.iter().map(|&chunk| i64::from_le_bytes(chunk)).collect()
            };
            let expected = |factor: i64| (0..rows as i64 * 2).map(|value| value * factor).collect::<Vec<_>>();
            assert_eq!((read(&outputs[0]), read(&outputs[1])), (expected(11), expected(9)));
            assert_eq!(outputs[0].shape, [rows, 2]);
        }
    }

    #[test]
    fn every_type_that_tract_carries_goes_through_unchanged_and_bfloat16_is_refused() {
        for element in ElementType::ALL {
            let loaded = load(&every_type(element));
            if element == ElementType::Bf16 {
                assert!(loaded.err().unwrap().to_string().contains("BF16"));
                continue;
            }
            let bytes: Vec<u8> = (0..4 * element.size()).map(|byte| (byte % 2) as u8).collect();
            let data = TensorData { element, shape: vec![2, 2], data: Bytes::from(bytes) };
            assert_eq!(loaded.unwrap().run(std::slice::from_ref(&data)).unwrap(), [data], "{}", element.name());
        }
    }

    /// `two_inputs` with these nodes before it, whose last result takes the place of `a` in the sum.
    fn grown(nodes: &[(&str, &[&str], &str)], initializers: &[(&str, &[i64])]) -> Vec<u8> {
        let mut proto = pb::ModelProto::decode(&*two_inputs()).unwrap();
        let graph = proto.graph.as_mut().unwrap();
        for (name, values) in initializers {
            graph.initializer.push(pb::TensorProto {
                name: (*name).to_owned(),
                dims: vec![values.len() as i64],
                data_type: pb::tensor_proto::DataType::Int64 as i32,
                int64_data: values.to_vec(),
                ..pb::TensorProto::default()
            });
        }
        let made = nodes.iter().map(|(operator, inputs, output)| pb::NodeProto {
            op_type: (*operator).to_owned(),
            input: inputs.iter().map(|&name| name.to_owned()).collect(),
            output: vec![(*output).to_owned()],
            ..pb::NodeProto::default()
        });
        graph.node[0].input[0] = nodes.last().unwrap().2.to_owned();
        graph.node.splice(0..0, made);
        proto.encode_to_vec()
    }

    #[test]
    fn a_constant_or_a_value_that_outgrows_the_memory_is_refused_before_it_is_made() {
        let filled = grown(
            &[("Shape", &["a"], "s"), ("Mul", &["s", "k"], "m"), ("ConstantOfShape", &["m"], "c")],
            &[("k", &[1 << 20, 1 << 20])],
        );
        let error = load(&filled).err().unwrap().to_string();
        assert!(error.contains("makes a constant of"), "{error}");
        let expanded = grown(&[("Expand", &["a", "target"], "e")], &[("target", &[1 << 29, 1, 2])]);
        let error = load(&expanded).err().unwrap().to_string();
        assert!(error.contains("above the limit of 268435456 elements"), "{error}");
        let fits = grown(&[("Expand", &["a", "target"], "e")], &[("target", &[1, 2])]);
        load(&fits).unwrap();
    }

    #[test]
    fn the_engine_of_one_input_refuses_values_that_outgrow_the_memory_too() {
        use super::super::engine::Engine;
        let mut proto = pb::ModelProto::decode(&*every_type(ElementType::Fp32)).unwrap();
        let graph = proto.graph.as_mut().unwrap();
        graph.initializer.push(pb::TensorProto {
            name: "target".to_owned(),
            dims: vec![3],
            data_type: pb::tensor_proto::DataType::Int64 as i32,
            int64_data: vec![1 << 29, 1, 2],
            ..pb::TensorProto::default()
        });
        graph.node[0].op_type = "Expand".to_owned();
        graph.node[0].input.push("target".to_owned());
        let onnx = proto.encode_to_vec();
        let interface = Interface::from_bytes(&onnx).unwrap();
        let error = Engine::load(&onnx, &interface.inputs[0], &interface.outputs[0]).err().unwrap().to_string();
        assert!(error.contains("above the limit of 268435456 elements"), "{error}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(fuzz_cases(200)))]
        #[test]
        fn a_damaged_file_is_refused_or_loads_and_never_panics(damage in proptest::collection::vec((0..60_000usize, any::<u8>()), 1..6)) {
            let mut onnx = std::fs::read(zoo("digits_cnn.onnx")).unwrap();
            for (place, byte) in damage {
                // The structure is at the file's ends, weights are in between.
                let at = if place % 2 == 0 { place % 3000 } else { onnx.len() - 1 - place % 3000 };
                onnx[at] = byte;
            }
            if let Ok(interface) = Interface::from_bytes(&onnx) {
                let _ = TensorEngine::load(&onnx, &interface.inputs, &interface.outputs);
            }
        }
    }
}
