//! Bounds on what a small file could grow into: constants computed from constants, and window attributes.
//! Runtimes fold the first while they load. Sizes that depend on the input are checked in `float`, on tract's own shapes.

use std::collections::HashMap;

use super::tensor;
use crate::operators::attributes;
use crate::{ModelError, pb};

/// Most elements of a value that is computed from constants: 256 MiB of float32.
const MAX_FOLDED: usize = 1 << 26;
/// Most elements of a constant whose size is computed from shapes; `growth` holds it to that.
pub(crate) const MAX_GROWN: usize = 1 << 20;
/// Greatest window, stride, padding or dilation along an axis.
const MAX_WINDOW: u64 = 1 << 16;
/// A shape has at most this many dimensions, whatever it is the shape of.
const MAX_RANK: usize = 16;

/// What is known of a constant: its shape, or at least how many elements it has at most.
#[derive(Clone)]
enum Size {
    Shape(Vec<usize>),
    /// Of rank 0 or 1, with at most so many elements: what is computed of shapes is so.
    List(usize),
    AtMost(usize),
}

impl Size {
    fn len(&self) -> usize {
        match self {
            Size::Shape(dims) => dims.iter().fold(1, |product, &dim| product.saturating_mul(dim)),
            Size::List(len) | Size::AtMost(len) => *len,
        }
    }

    fn is_list(&self) -> bool {
        match self {
            Size::Shape(dims) => dims.len() <= 1,
            Size::List(_) => true,
            Size::AtMost(_) => false,
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
            return Ok(Some(shape.map_or(Size::List(listed.max(1)), Size::Shape)));
        }
        // The shape of a list is one number.
        "Shape" => {
            let of = node.input.first().and_then(|name| constants.get(name.as_str()));
            return Ok(Some(Size::List(if of.is_some_and(Size::is_list) { 1 } else { MAX_RANK })));
        }
        "Size" => return Ok(Some(Size::List(1))),
        "Pad" => check_pad(node, graph, constants)?,
        _ => {}
    }
    let inputs = node.input.iter().filter(|name| !name.is_empty()).map(|name| constants.get(name.as_str()));
    let Some(inputs) = inputs.collect::<Option<Vec<&Size>>>() else { return Ok(None) };
    let first = || inputs.first().map_or(Size::AtMost(1), |size| (*size).clone());
    let known = |slot: usize| known(node, slot, graph);
    Ok(Some(match node.op_type.as_str() {
        "Expand" => match (known(1), first()) {
            (Some(target), data) => broadcast(&[&data, &Size::Shape(sized(node, &target)?)]),
            (None, _) => Size::AtMost(MAX_GROWN),
        },
        "Tile" => match (known(1), first()) {
            (Some(times), data) => {
                Size::AtMost(sized(node, &times)?.iter().fold(data.len(), |len, &times| len.saturating_mul(times)))
            }
            (None, _) => Size::AtMost(MAX_GROWN),
        },
        "ConstantOfShape" => match known(0) {
            Some(dims) => Size::Shape(sized(node, &dims)?),
            None if first().is_list() && first().len() <= 1 => Size::List(MAX_GROWN),
            None => Size::AtMost(MAX_GROWN),
        },
        "Range" => match (known(0).as_deref(), known(1).as_deref(), known(2).as_deref()) {
            (Some([start]), Some([limit]), Some([step])) if *step != 0 => {
                let count = limit.abs_diff(*start).div_ceil(step.unsigned_abs());
                Size::List(usize::try_from(count).unwrap_or(usize::MAX))
            }
            _ => Size::List(MAX_GROWN),
        },
        "Add" | "Sub" | "Mul" | "Div" | "Mod" | "Pow" | "Max" | "Min" | "Mean" | "Sum" | "And" | "Or" | "Equal"
        | "Greater" | "GreaterOrEqual" | "Less" | "LessOrEqual" | "Where" | "PRelu" => broadcast(&inputs),
        "Gather" if inputs.iter().all(|size| size.is_list()) => Size::List(inputs.get(1).map_or(1, |size| size.len())),
        "Slice" | "Squeeze" | "Transpose" if first().is_list() => Size::List(first().len()),
        "Unsqueeze" if first().is_list() && first().len() <= 1 => Size::List(1),
        "Reshape" if known(1).is_some_and(|target| target.len() <= 1) => Size::List(first().len()),
        "MatMul" | "Gemm" | "Gather" | "Einsum" | "LSTM" | "GRU" => Size::AtMost(product(&inputs)),
        "Concat" => {
            let total = inputs.iter().fold(0, |sum: usize, size| sum.saturating_add(size.len()));
            if inputs.iter().all(|size| size.is_list()) { Size::List(total) } else { Size::AtMost(total) }
        }
        "Conv" | "ConvTranspose" | "MaxPool" | "AveragePool" | "Pad" | "Resize" => {
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

/// Values of an integer input that is an initializer or a Constant node.
fn known(node: &pb::NodeProto, slot: usize, graph: &pb::GraphProto) -> Option<Vec<i64>> {
    let name = node.input.get(slot).filter(|name| !name.is_empty())?;
    if let Some(tensor) = graph.initializer.iter().find(|tensor| tensor.name == *name) {
        return tensor::integers(tensor);
    }
    let maker = graph.node.iter().find(|maker| maker.op_type == "Constant" && maker.output.contains(name))?;
    if attributes::has(maker, "value_int") {
        return Some(vec![attributes::int(maker, "value_int", 0)]);
    }
    match attributes::tensor(maker, "value") {
        Some(tensor) => tensor::integers(tensor),
        None => attributes::has(maker, "value_ints").then(|| attributes::ints(maker, "value_ints").to_vec()),
    }
}

/// A shape, whose product is within the limit.
fn sized(node: &pb::NodeProto, dims: &[i64]) -> Result<Vec<usize>, ModelError> {
    let dims: Option<Vec<usize>> = dims.iter().map(|&dim| usize::try_from(dim).ok()).collect();
    let refused = || ModelError::node(node, "asks for a shape with negative sizes");
    dims.filter(|dims| dims.len() <= MAX_RANK).ok_or_else(refused)
}

/// Numpy's rule where all shapes are known or none has two axes, else the product, which no broadcast exceeds.
fn broadcast(inputs: &[&Size]) -> Size {
    if inputs.iter().all(|size| size.is_list()) && !inputs.iter().all(|size| matches!(size, Size::Shape(_))) {
        return Size::List(inputs.iter().map(|size| size.len()).max().unwrap_or(1));
    }
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
    fn constants_that_short_nodes_ask_for_are_bounded() {
        let fill = vec![node("ConstantOfShape", &["s"], &["c"]), node("Add", &["x", "c"], &["y"])];
        assert!(refused(fill, vec![integers("s", &[1 << 20, 1 << 20])]).contains("constants alone"));
        let expand = vec![node("Expand", &["v", "s"], &["c"]), node("Add", &["x", "c"], &["y"])];
        let column = || floats("v", &[20_000, 1], &[0.0; 20_000]);
        assert!(refused(expand, vec![integers("s", &[20_000, 20_000]), column()]).contains("400000000"));
        let tile = vec![node("Tile", &["v", "s"], &["c"]), node("Add", &["x", "c"], &["y"])];
        assert!(refused(tile, vec![integers("s", &[20_000, 20_000]), column()]).contains("constants alone"));
        let range = vec![node("Range", &["a", "b", "c"], &["r"]), node("Add", &["x", "r"], &["y"])];
        let ends = vec![integers("a", &[0]), integers("b", &[1 << 40]), integers("c", &[1])];
        assert!(refused(range, ends).contains("constants alone"));
        let negative = vec![node("ConstantOfShape", &["s"], &["c"]), node("Add", &["x", "c"], &["y"])];
        assert!(refused(negative, vec![integers("s", &[-1])]).contains("negative"));
    }

    #[test]
    fn the_shape_arithmetic_of_exporters_stays_a_list() {
        let nodes = vec![
            node("Shape", &["x"], &["s"]),
            node("Gather", &["s", "zero"], &["n"]),
            node("Unsqueeze", &["n", "zero"], &["u"]),
            int(node("Concat", &["u", "minus", "minus"], &["target"]), "axis", 0),
            node("Shape", &["target"], &["len"]),
            node("ConstantOfShape", &["len"], &["ones"]),
            node("Equal", &["target", "ones"], &["same"]),
            node("Where", &["same", "ones", "target"], &["final"]),
            node("Expand", &["w", "final"], &["e"]),
            int(node("Concat", &["x", "e"], &["y"]), "axis", 1),
        ];
        let initializers = vec![integers("zero", &[0]), integers("minus", &[-1]), floats("w", &[1, 1, 4], &[0.0; 4])];
        Model::from_bytes(bytes(graph(&[-1, 4], &[-1, 4], nodes, initializers))).unwrap();
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
