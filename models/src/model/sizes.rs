//! Bounds on what a small file could grow into: constants computed from constants, and window attributes.
//! Runtimes fold the first while they load. Sizes that depend on the input are checked in `float`, on tract's own shapes.

use std::collections::HashMap;

use super::tensor;
use crate::operators::attributes;
use crate::{ModelError, pb};

/// Most elements of a value that is computed from constants: 256 MiB of float32.
const MAX_FOLDED: usize = 1 << 26;
/// Greatest window, stride, padding or dilation along an axis.
const MAX_WINDOW: u64 = 1 << 16;
/// A shape has at most this many dimensions, whatever it is the shape of.
const MAX_RANK: usize = 16;

/// What is known of a constant: its shape, or at least how many elements it has at most.
#[derive(Clone)]
enum Size {
    Shape(Vec<usize>),
    AtMost(usize),
}

impl Size {
    fn len(&self) -> usize {
        match self {
            Size::Shape(dims) => dims.iter().fold(1, |product, &dim| product.saturating_mul(dim)),
            Size::AtMost(len) => *len,
        }
    }
}

/// Refuses nodes that could use up memory. The graph's nodes are in order and its tensors checked.
pub(crate) fn check(graph: &pb::GraphProto) -> Result<(), ModelError> {
    let mut constants: HashMap<&str, Size> = HashMap::new();
    for initializer in &graph.initializer {
        constants.insert(&initializer.name, Size::Shape(tensor::shape(initializer)?));
    }
    for node in &graph.node {
        check_windows(node)?;
        if let Some(size) = folded(node, graph, &constants)? {
            if size.len() > MAX_FOLDED {
                return Err(ModelError::node(
                    node,
                    format!(
                        "computes up to {} elements from constants alone, above the limit of {MAX_FOLDED}; fold the constants before publishing (onnxsim)",
                        size.len()
                    ),
                ));
            }
            for output in node.output.iter().filter(|name| !name.is_empty()) {
                constants.insert(output, size.clone());
            }
        }
    }
    Ok(())
}

fn check_windows(node: &pb::NodeProto) -> Result<(), ModelError> {
    for name in ["kernel_shape", "strides", "pads", "dilations", "output_padding", "output_shape"] {
        if let Some(value) = attributes::ints(node, name).iter().find(|value| value.unsigned_abs() > MAX_WINDOW) {
            return Err(ModelError::node(
                node,
                format!("has {value} among its {name}, above the limit of {MAX_WINDOW}"),
            ));
        }
    }
    Ok(())
}

/// The size of each of the node's results where all its inputs are constants; `None` where one is not.
fn folded(
    node: &pb::NodeProto,
    graph: &pb::GraphProto,
    constants: &HashMap<&str, Size>,
) -> Result<Option<Size>, ModelError> {
    match node.op_type.as_str() {
        "Constant" => {
            let listed = attributes::ints(node, "value_ints").len().max(attributes::floats(node, "value_floats").len());
            let shape = attributes::tensor(node, "value").map(tensor::shape).transpose()?;
            return Ok(Some(shape.map_or(Size::AtMost(listed.max(1)), Size::Shape)));
        }
        "Shape" => return Ok(Some(Size::AtMost(MAX_RANK))),
        "Pad" => check_pad(node, graph, constants)?,
        _ => {}
    }
    let inputs = node.input.iter().filter(|name| !name.is_empty()).map(|name| constants.get(name.as_str()));
    let Some(inputs) = inputs.collect::<Option<Vec<&Size>>>() else { return Ok(None) };
    let first = || inputs.first().map_or(Size::AtMost(1), |size| (*size).clone());
    Ok(Some(match node.op_type.as_str() {
        "Add" | "Sub" | "Mul" | "Div" | "Pow" | "Max" | "Min" | "Mean" | "Sum" | "And" | "Or" | "Equal" | "Greater"
        | "GreaterOrEqual" | "Less" | "LessOrEqual" | "Where" | "PRelu" => broadcast(&inputs),
        "MatMul" | "Gemm" | "Gather" => Size::AtMost(product(&inputs)),
        "Concat" => Size::AtMost(inputs.iter().fold(0, |sum, size| sum.saturating_add(size.len()))),
        "Conv" | "ConvTranspose" | "MaxPool" | "AveragePool" | "Pad" => {
            return Err(ModelError::node(
                node,
                "computes on constants alone; fold the constants before publishing (onnxsim)",
            ));
        }
        "Abs" | "Neg" | "Cast" | "Identity" | "Sqrt" | "Exp" | "Log" | "Reciprocal" | "DequantizeLinear"
        | "QuantizeLinear" => first(),
        // All others give at most as many elements as their first input has.
        _ => Size::AtMost(first().len()),
    }))
}

fn product(inputs: &[&Size]) -> usize {
    inputs.iter().fold(1, |product, size| product.saturating_mul(size.len()))
}

/// Numpy's rule where all shapes are known, else the product, which no broadcast exceeds.
fn broadcast(inputs: &[&Size]) -> Size {
    let mut dims: Vec<usize> = Vec::new();
    for size in inputs {
        let Size::Shape(shape) = size else { return Size::AtMost(product(inputs)) };
        let longer = shape.len().max(dims.len());
        let at = |dims: &[usize], axis: usize| {
            (axis + dims.len()).checked_sub(longer).and_then(|axis| dims.get(axis)).copied()
        };
        dims = (0..longer).map(|axis| at(&dims, axis).unwrap_or(1).max(at(shape, axis).unwrap_or(1))).collect();
    }
    Size::Shape(dims)
}

/// Pads must be an initializer or a Constant of sane numbers; before operator set 11 they are an attribute.
fn check_pad(node: &pb::NodeProto, graph: &pb::GraphProto, constants: &HashMap<&str, Size>) -> Result<(), ModelError> {
    let Some(name) = node.input.get(1).filter(|name| !name.is_empty()) else { return Ok(()) };
    let initializer = graph.initializer.iter().find(|tensor| tensor.name == *name);
    let constant = || {
        let maker = graph.node.iter().find(|maker| maker.op_type == "Constant" && maker.output.contains(name))?;
        attributes::tensor(maker, "value")
    };
    let pads =
        initializer.or_else(constant).filter(|_| constants.contains_key(name.as_str())).and_then(tensor::integers);
    let Some(pads) = pads else {
        return Err(ModelError::node(node, "computes its pads while it runs; make them an int64 initializer"));
    };
    match pads.iter().find(|pad| pad.unsigned_abs() > MAX_WINDOW) {
        Some(pad) => Err(ModelError::node(node, format!("has {pad} among its pads, above the limit of {MAX_WINDOW}"))),
        None => Ok(()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use crate::testing::{bytes, floats, graph, int, integers, ints, node};
    use crate::{Model, pb};

    fn refused(nodes: Vec<pb::NodeProto>, initializers: Vec<pb::TensorProto>) -> String {
        Model::from_bytes(bytes(graph(&[-1, 1, 4, 4], &[-1, 1, 4, 4], nodes, initializers))).unwrap_err().to_string()
    }

    #[test]
    fn doubling_constants_are_refused_before_they_fill_the_memory() {
        let mut nodes = Vec::new();
        for step in 0..40 {
            let (from, to) = (format!("c{step}"), format!("c{}", step + 1));
            nodes.push(int(node("Concat", &[&from, &from], &[&to]), "axis", 0));
        }
        nodes.push(node("Add", &["x", "c40"], &["y"]));
        let error = refused(nodes, vec![floats("c0", &[4], &[1.0; 4])]);
        assert!(error.contains("constants alone"), "{error}");
    }

    #[test]
    fn an_outer_product_of_constants_is_bounded_and_a_plain_sum_is_not_refused() {
        let column = floats("column", &[20_000, 1], &[0.0; 20_000]);
        let row = floats("row", &[1, 20_000], &[0.0; 20_000]);
        let nodes = vec![node("Mul", &["column", "row"], &["big"]), node("Add", &["x", "big"], &["y"])];
        assert!(refused(nodes, vec![column, row]).contains("400000000"));
        let pair = |name| floats(name, &[100, 200], &[0.0; 20_000]);
        let nodes = vec![node("Mul", &["a", "b"], &["c"]), node("Relu", &["x"], &["y"])];
        Model::from_bytes(bytes(graph(&[-1, 4], &[-1, 4], nodes, vec![pair("a"), pair("b")]))).unwrap();
    }

    #[test]
    fn enormous_windows_and_computed_pads_are_refused() {
        let conv = ints(node("Conv", &["x", "w"], &["y"]), "pads", &[1 << 40, 0, 0, 0]);
        assert!(refused(vec![conv], vec![floats("w", &[1, 1, 1, 1], &[1.0])]).contains("pads"));
        assert!(refused(vec![node("Pad", &["x", "x"], &["y"])], vec![]).contains("pads"));
        let pads = integers("p", &[0, 0, 0, 0, 0, 0, 0, 1 << 40]);
        assert!(refused(vec![node("Pad", &["x", "p"], &["y"])], vec![pads]).contains("1099511627776"));
    }
}
