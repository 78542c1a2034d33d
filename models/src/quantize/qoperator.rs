//! Rewrites ONNX Runtime's QOperator form (QLinearConv, QGemm, ...) into QDQ form, which the engines here read.
//! Making quantized models is `emit`'s; running them is the node's.

use std::collections::HashMap;

use prost::Message;

use super::QuantizeError;
use super::build::{self, Names};
use crate::model::tensor;
use crate::operators::attributes;
use crate::pb::{self, AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, tensor_proto::DataType};

/// Bytes that the added scales of biases may take, beyond those of the file itself: many nodes may read one list.
const FREE_ROOM: usize = 16 << 20;

/// The QDQ form of a file in QOperator form, also with ONNX Runtime's own operators (`com.microsoft`: QGemm, QLinearAdd,
/// QLinearMul, QLinearConcat, QLinearSigmoid, QLinearLeakyRelu, QLinearSoftmax, the averages); `None` where the file has
/// none of them. The values are the same up to one step. The input is hostile: nothing but the wiring is trusted, and the result
/// still has to pass [`crate::Model::from_bytes`].
pub fn to_qdq(bytes: &[u8]) -> Result<Option<Vec<u8>>, QuantizeError> {
    crate::model::scan::check(bytes)?;
    let mut model = ModelProto::decode(bytes)
        .map_err(|error| QuantizeError::Model(format!("it is not a whole ONNX file: {error}")))?;
    let default_set = |set: &&pb::OperatorSetIdProto| matches!(set.domain.as_str(), "" | "ai.onnx");
    let opset = model.opset_import.iter().find(default_set).map_or(0, |set| set.version);
    let Some(graph) = model.graph.as_mut() else { return Ok(None) };
    if !graph.node.iter().any(is_foreign) {
        return Ok(None);
    }
    let mut rewriter = Rewriter {
        names: Names::of(graph),
        constants: constants(graph),
        opset,
        room: bytes.len().saturating_add(FREE_ROOM),
        added: Vec::new(),
        nodes: Vec::new(),
    };
    for node in std::mem::take(&mut graph.node) {
        if is_foreign(&node) {
            rewriter.rewrite(&node)?;
        } else {
            rewriter.nodes.push(node);
        }
    }
    let Rewriter { nodes, added, .. } = rewriter;
    graph.node = nodes;
    graph.initializer.extend(added);
    graph.value_info.clear();
    model.opset_import.retain(|set| matches!(set.domain.as_str(), "" | "ai.onnx"));
    Ok(Some(model.encode_to_vec()))
}

fn is_foreign(node: &NodeProto) -> bool {
    node.domain == "com.microsoft" || matches!(node.op_type.as_str(), "QLinearConv" | "QLinearMatMul")
}

fn constants(graph: &GraphProto) -> HashMap<String, TensorProto> {
    // Scales only: copies of the weights would double the memory.
    let small = graph.initializer.iter().filter(|tensor| tensor.data_type == DataType::Float as i32);
    small.map(|tensor| (tensor.name.clone(), tensor.clone())).collect()
}

struct Rewriter {
    names: Names,
    constants: HashMap<String, TensorProto>,
    /// The file's default operator set.
    opset: i64,
    /// Bytes that added tensors may still take.
    room: usize,
    added: Vec<TensorProto>,
    nodes: Vec<NodeProto>,
}

impl Rewriter {
    fn rewrite(&mut self, node: &NodeProto) -> Result<(), QuantizeError> {
        let axis_of_columns = if attributes::int(node, "transB", 0) != 0 { 0 } else { 1 };
        match node.op_type.as_str() {
            "QLinearConv" => self.linear(node, "Conv", 0, &[6, 7], Some(8), &[]),
            "QLinearMatMul" => self.linear(node, "MatMul", 1, &[6, 7], None, &[]),
            "QGemm" => self.linear(node, "Gemm", axis_of_columns, &[7, 8], Some(6), &["alpha", "transA", "transB"]),
            "QLinearAdd" => self.several(node, "Add", &[0, 3], 6),
            "QLinearMul" => self.several(node, "Mul", &[0, 3], 6),
            "QLinearConcat" => {
                let parts: Vec<usize> = (2..node.input.len()).step_by(3).collect();
                self.several(node, "Concat", &parts, 0)
            }
            "QLinearSigmoid" => self.several(node, "Sigmoid", &[0], 3),
            "QLinearLeakyRelu" => self.several(node, "LeakyRelu", &[0], 3),
            "QLinearSoftmax" => self.softmax(node),
            "QLinearGlobalAveragePool" => self.several(node, "GlobalAveragePool", &[0], 3),
            "QLinearAveragePool" => self.several(node, "AveragePool", &[0], 3),
            "QLinearReduceMean" => self.several(node, "ReduceMean", &[0], 3),
            "QuantizeLinear" | "DequantizeLinear" => {
                self.nodes.push(NodeProto { domain: String::new(), ..node.clone() });
                Ok(())
            }
            other => Err(QuantizeError::Model(format!(
                "the operator {other:.60?} of ONNX Runtime has no QDQ form here; quantize with QuantFormat.QDQ"
            ))),
        }
    }

    /// An operator on quantized values (`parts`, each followed by scale and zero point) with output scale at `out`.
    fn several(&mut self, node: &NodeProto, operator: &str, parts: &[usize], out: usize) -> Result<(), QuantizeError> {
        if attributes::int(node, "channels_last", 0) != 0 {
            return Err(QuantizeError::Model(format!("{operator} runs channels last; quantize with QuantFormat.QDQ")));
        }
        let mut inputs = Vec::new();
        for &part in parts {
            inputs.push(self.dequantized(node, part, 1)?);
        }
        let keep = |attribute: &&AttributeProto| !matches!(attribute.name.as_str(), "channels_last" | "opset");
        let kept = node.attribute.iter().filter(keep).cloned().collect();
        self.finish(node, operator, inputs, kept, &[out, out + 1])
    }

    /// Before operator set 13 all dimensions from the axis on are one; `opset` says which of the two this node means.
    fn softmax(&mut self, node: &NodeProto) -> Result<(), QuantizeError> {
        let meant = attributes::int(node, "opset", self.opset);
        let axis = attributes::int(node, "axis", if meant < 13 { 1 } else { -1 });
        // Over the last dimension both are the same.
        if (meant < 13) != (self.opset < 13) && axis != -1 {
            return Err(QuantizeError::Model(format!(
                "{:.60?} is the Softmax of operator set {meant} over axis {axis}, but that of the file's operator set {} is another; quantize with QuantFormat.QDQ",
                node.name, self.opset
            )));
        }
        let mut node = node.clone();
        node.attribute.retain(|attribute| attribute.name != "axis");
        node.attribute.push(build::int_attribute("axis", axis));
        self.several(&node, "Softmax", &[0], 3)
    }

    /// A convolution or matrix product with weights at 3 whose channels lie on `axis`, output parameters at `out`, bias at `bias`.
    fn linear(
        &mut self,
        node: &NodeProto,
        operator: &str,
        axis: i64,
        out: &[usize; 2],
        bias: Option<usize>,
        keep: &[&str],
    ) -> Result<(), QuantizeError> {
        let mut inputs = vec![self.dequantized(node, 0, 1)?, self.dequantized(node, 3, axis)?];
        let alpha = attributes::float(node, "alpha", 1.0);
        if let Some(codes) = bias.and_then(|index| node.input.get(index)).filter(|name| !name.is_empty()) {
            let scales = self.product(node, alpha)?;
            self.room = self.room.checked_sub(size_of_val(&*scales)).ok_or_else(|| {
                let problem = "its nodes read one list of scales too often; give each weight its own";
                QuantizeError::Model(problem.to_owned())
            })?;
            let [scale, result, name] = ["scale", "dequantized", "DequantizeLinear"]
                .map(|suffix| self.names.fresh(&format!("{codes}_{suffix}")));
            let dims = if scales.len() == 1 { vec![] } else { vec![scales.len()] };
            self.added.push(build::tensor(scale.clone(), DataType::Float, &dims, build::float_bytes(&scales)));
            let mut dequantize =
                build::node("DequantizeLinear", name, vec![codes.clone(), scale], vec![result.clone()]);
            dequantize.attribute.push(build::int_attribute("axis", 0));
            self.nodes.push(dequantize);
            inputs.push(result);
        }
        let keeps = |attribute: &&AttributeProto| operator == "Conv" || keep.contains(&attribute.name.as_str());
        let kept = node.attribute.iter().filter(keeps).cloned().collect();
        self.finish(node, operator, inputs, kept, out)
    }

    /// Scale of the sums: that of the input times those of the weights.
    fn product(&self, node: &NodeProto, alpha: f32) -> Result<Vec<f32>, QuantizeError> {
        let read = |index: usize| {
            let name = node.input.get(index).map_or("", String::as_str);
            self.constants.get(name).and_then(tensor::floats).filter(|values| !values.is_empty())
        };
        match (read(1), read(4)) {
            (Some(input), Some(weights)) => Ok(weights.iter().map(|weight| alpha * input[0] * weight).collect()),
            _ => Err(QuantizeError::Model(format!("the scales of {:.60?} are not constant float32", node.name))),
        }
    }

    /// Dequantizes input `at`, whose scale and zero point follow it.
    fn dequantized(&mut self, node: &NodeProto, at: usize, axis: i64) -> Result<String, QuantizeError> {
        let [Some(codes), Some(scale)] =
            [at, at + 1].map(|index| node.input.get(index).filter(|name| !name.is_empty()))
        else {
            return Err(QuantizeError::Model(format!("{:.60?} lacks its input {at} or its scale", node.name)));
        };
        let mut inputs = vec![codes.clone(), scale.clone()];
        inputs.extend(node.input.get(at + 2).filter(|name| !name.is_empty()).cloned());
        let result = self.names.fresh(&format!("{codes}_dequantized"));
        let name = self.names.fresh(&format!("{codes}_DequantizeLinear"));
        let mut dequantize = build::node("DequantizeLinear", name, inputs, vec![result.clone()]);
        dequantize.attribute.push(build::int_attribute("axis", axis));
        self.nodes.push(dequantize);
        Ok(result)
    }

    /// The float operator, and its quantization where the node has output parameters.
    fn finish(
        &mut self,
        node: &NodeProto,
        operator: &str,
        inputs: Vec<String>,
        attributes: Vec<AttributeProto>,
        out: &[usize; 2],
    ) -> Result<(), QuantizeError> {
        let Some(output) = node.output.first() else {
            return Err(QuantizeError::Model(format!("{:.60?} has no output", node.name)));
        };
        let parameters: Vec<String> =
            out.iter().filter_map(|&index| node.input.get(index)).filter(|name| !name.is_empty()).cloned().collect();
        let result = if parameters.is_empty() { output.clone() } else { self.names.fresh(&format!("{output}_float")) };
        let name = self.names.fresh(&format!("{}_{operator}", node.name));
        let mut made = build::node(operator, name, inputs, vec![result.clone()]);
        made.attribute = attributes;
        self.nodes.push(made);
        if !parameters.is_empty() {
            let name = self.names.fresh(&format!("{output}_QuantizeLinear"));
            let inputs = std::iter::once(result).chain(parameters).collect();
            self.nodes.push(build::node("QuantizeLinear", name, inputs, vec![output.clone()]));
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;
    use crate::{Model, testing};

    fn scalar(name: &str, scale: f32) -> TensorProto {
        build::tensor(name.to_owned(), DataType::Float, &[], build::float_bytes(&[scale]))
    }

    fn byte(name: &str, dims: &[usize], values: &[u8], kind: DataType) -> TensorProto {
        build::tensor(name.to_owned(), kind, dims, values.to_vec())
    }

    fn qgemm(inputs: &[&str]) -> ModelProto {
        let quantize = testing::node("QuantizeLinear", &["x", "xs", "xz"], &["xq"]);
        let mut gemm = testing::node("QGemm", inputs, &["y"]);
        gemm.domain = "com.microsoft".to_owned();
        let initializers = vec![
            scalar("xs", 0.5),
            byte("xz", &[], &[3], DataType::Uint8),
            byte("w", &[2, 3], &[1, 2, 3, 4, 5, 255], DataType::Int8),
            scalar("ws", 0.25),
            byte("wz", &[], &[0], DataType::Int8),
            build::tensor(
                "b".to_owned(),
                DataType::Int32,
                &[3],
                [8i32, 0, -8].iter().flat_map(|v| v.to_le_bytes()).collect(),
            ),
        ];
        testing::model(testing::graph(&[-1, 2], &[-1, 3], vec![quantize, gemm], initializers), 17)
    }

    #[test]
    fn a_qgemm_with_float_output_gives_what_its_integers_say() {
        let file = qgemm(&["xq", "xs", "xz", "w", "ws", "wz", "b", "", ""]);
        let bytes = to_qdq(&file.encode_to_vec()).unwrap().unwrap();
        let model = Model::from_bytes(bytes).unwrap();
        let runner = crate::float::FloatRunner::new(&model).unwrap();
        let output = runner.run(ndarray::arr2(&[[1.0f32, 2.0]]).into_dyn().view()).unwrap();
        // 1.0 is code 2 above zero, 2.0 is 4; a bias of 8 steps is 1.
        let codes = [[1.0f32, 2.0, 3.0], [4.0, 5.0, -1.0]];
        for (column, found) in output.iter().enumerate() {
            let exact = (1.0 * codes[0][column] + 2.0 * codes[1][column]) * 0.25 + [1.0, 0.0, -1.0][column];
            assert!((found - exact).abs() < 1e-5, "{found} {exact}");
        }
    }

    /// A Softmax of `[n, 2, 3]` whose node means the operator set `meant`, in a file of another.
    fn softmax(meant: i64, axis: Option<i64>, opset: i64) -> Result<Vec<f32>, QuantizeError> {
        let quantize = testing::node("QuantizeLinear", &["x", "s", "z"], &["xq"]);
        let mut softmax = testing::node("QLinearSoftmax", &["xq", "s", "z", "ys", "yz"], &["yq"]);
        softmax.domain = "com.microsoft".to_owned();
        softmax = testing::int(softmax, "opset", meant);
        if let Some(axis) = axis {
            softmax = testing::int(softmax, "axis", axis);
        }
        let dequantize = testing::node("DequantizeLinear", &["yq", "ys", "yz"], &["y"]);
        let zero = |name| byte(name, &[], &[0], DataType::Uint8);
        let initializers = vec![scalar("s", 0.5), zero("z"), scalar("ys", 1.0 / 256.0), zero("yz")];
        let nodes = vec![quantize, softmax, dequantize];
        let file = testing::model(testing::graph(&[-1, 2, 3], &[-1, 2, 3], nodes, initializers), opset);
        let model = Model::from_bytes(to_qdq(&file.encode_to_vec())?.unwrap()).unwrap();
        let input = ndarray::Array3::zeros((1, 2, 3)).into_dyn();
        Ok(crate::float::FloatRunner::new(&model).unwrap().run(input.view()).unwrap().into_iter().collect())
    }

    #[test]
    fn a_softmax_means_its_own_operator_set_or_is_refused() {
        for (share, meant, axis, opset) in [
            (1.0 / 6.0, 11, None, 11),
            (1.0 / 6.0, 12, Some(1), 12),
            (1.0 / 3.0, 13, None, 17),
            (1.0 / 2.0, 13, Some(1), 17),
            (1.0 / 3.0, 11, Some(-1), 17),
            (1.0 / 3.0, 13, None, 11),
        ] {
            let found = softmax(meant, axis, opset).unwrap();
            let near = found.iter().all(|value| (value - share).abs() < 0.01);
            assert!(near, "{meant} {axis:?} in {opset}: {found:?} instead of {share}");
        }
        for (meant, axis, opset) in [(11, None, 17), (12, Some(1), 13), (13, Some(1), 11)] {
            let error = softmax(meant, axis, opset).unwrap_err().to_string();
            assert!(error.contains(&format!("operator set {meant} over axis 1")), "{error}");
        }
    }

    #[test]
    fn one_list_of_scales_is_not_copied_without_end() {
        let count = 1 << 20;
        let mut nodes = vec![testing::node("QuantizeLinear", &["x", "xs", "xz"], &["xq"])];
        for reader in 0..32 {
            let name = format!("y{reader}");
            nodes.push(testing::node("QLinearConv", &["xq", "xs", "xz", "w", "ws", "wz", "xs", "xz", "b"], &[&name]));
        }
        let initializers = vec![
            scalar("xs", 0.5),
            byte("xz", &[], &[3], DataType::Uint8),
            build::tensor("ws".to_owned(), DataType::Float, &[count], vec![0; 4 * count]),
        ];
        let file = testing::model(testing::graph(&[-1, 1, 1, 1], &[-1, 1, 1, 1], nodes, initializers), 17);
        let error = to_qdq(&file.encode_to_vec()).unwrap_err().to_string();
        assert!(error.contains("too often"), "{error}");
    }

    #[test]
    fn files_without_such_operators_are_left_alone_and_broken_ones_are_refused() {
        assert!(to_qdq(&testing::bytes(testing::linear())).unwrap().is_none());
        for inputs in [&["xq"][..], &["xq", "xs", "xz", "w", "nowhere", "wz", "b"]] {
            let result = to_qdq(&qgemm(inputs).encode_to_vec());
            assert!(result.is_err() || Model::from_bytes(result.unwrap().unwrap()).is_err());
        }
        let mut unknown = qgemm(&["xq"]);
        unknown.graph.as_mut().unwrap().node[1].op_type = "QAttention".to_owned();
        assert!(to_qdq(&unknown.encode_to_vec()).unwrap_err().to_string().contains("QAttention"));
    }
}
