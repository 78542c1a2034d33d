//! Bounds on what a small file could grow into: constants computed from constants, and window attributes.
//! Runtimes fold the first while they load. Sizes that depend on the input are checked in `float`, on tract's own shapes.

use std::collections::{HashMap, HashSet};

use super::tensor;
use crate::operators::attributes;
use crate::{ModelError, pb};

/// Most elements of a value that is computed from constants: 256 MiB of float32.
const MAX_FOLDED: usize = 1 << 26;
/// Most elements of a constant whose size is computed from shapes; `growth` holds those of [`computed`] to that.
pub(crate) const MAX_GROWN: usize = 1 << 20;
/// Greatest window, stride, padding or dilation along an axis.
const MAX_WINDOW: u64 = 1 << 16;
/// A shape has at most this many dimensions, whatever it is the shape of.
const MAX_RANK: usize = 16;
/// Longest list of integers that says how another value is made: two pads an axis.
const MAX_LIST: usize = 2 * MAX_RANK;

/// What is known of a constant: its shape, or at least how many elements it has at most.
#[derive(Clone)]
enum Size {
    Shape(Vec<usize>),
    /// Of rank 0.
    Number,
    /// Of rank 1, with at most so many elements: what is computed of shapes is so.
    List(usize),
    /// Of any rank.
    AtMost(usize),
}

impl Size {
    fn len(&self) -> usize {
        match self {
            Size::Shape(dims) => dims.iter().fold(1, |product, &dim| product.saturating_mul(dim)),
            Size::Number => 1,
            Size::List(len) | Size::AtMost(len) => *len,
        }
    }

    /// `None` where it is not known.
    fn rank(&self) -> Option<usize> {
        match self {
            Size::Shape(dims) => Some(dims.len()),
            Size::Number => Some(0),
            Size::List(_) => Some(1),
            Size::AtMost(_) => None,
        }
    }

    /// A number or a list.
    fn is_flat(&self) -> bool {
        self.rank().is_some_and(|rank| rank <= 1)
    }
}

/// Where the values of a graph come from, by name.
struct Sources<'g> {
    initializers: HashMap<&'g str, &'g pb::TensorProto>,
    /// Constant nodes.
    constants: HashMap<&'g str, &'g pb::NodeProto>,
}

impl<'g> Sources<'g> {
    fn of(graph: &'g pb::GraphProto) -> Sources<'g> {
        let constants = graph.node.iter().filter(|node| node.op_type == "Constant");
        Sources {
            initializers: graph.initializer.iter().map(|tensor| (tensor.name.as_str(), tensor)).collect(),
            constants: constants.flat_map(|node| node.output.iter().map(move |name| (name.as_str(), node))).collect(),
        }
    }

    /// The first values, [`MAX_LIST`] and one, of an integer input that is an initializer or a Constant node.
    fn integers(&self, node: &pb::NodeProto, slot: usize) -> Option<Vec<i64>> {
        let name = node.input.get(slot).map(String::as_str).filter(|name| !name.is_empty())?;
        if let Some(tensor) = self.initializers.get(name) {
            return first_integers(tensor);
        }
        let maker = self.constants.get(name)?;
        if attributes::has(maker, "value_int") {
            return Some(vec![attributes::int(maker, "value_int", 0)]);
        }
        match attributes::tensor(maker, "value") {
            Some(tensor) => first_integers(tensor),
            None => attributes::has(maker, "value_ints")
                .then(|| attributes::ints(maker, "value_ints").iter().copied().take(MAX_LIST + 1).collect()),
        }
    }
}

fn first_integers(tensor: &pb::TensorProto) -> Option<Vec<i64>> {
    let of_type = tensor.data_type == pb::tensor_proto::DataType::Int64 as i32;
    let raw = tensor.raw_data.as_chunks::<8>().0.iter().map(|bytes| i64::from_le_bytes(*bytes));
    // One of the two is empty.
    of_type.then(|| raw.chain(tensor.int64_data.iter().copied()).take(MAX_LIST + 1).collect())
}

/// Refuses nodes that could use up memory. The graph's nodes are in order and its tensors checked.
pub(crate) fn check(graph: &pb::GraphProto) -> Result<(), ModelError> {
    computed(graph).map(drop)
}

/// As [`check`]; gives the nodes, by index, that make a constant whose size the file does not write down.
pub(crate) fn computed(graph: &pb::GraphProto) -> Result<HashSet<usize>, ModelError> {
    let sources = Sources::of(graph);
    let (mut constants, mut found): (HashMap<&str, Size>, _) = (HashMap::new(), HashSet::new());
    for initializer in &graph.initializer {
        constants.insert(&initializer.name, Size::Shape(tensor::shape(initializer)?));
    }
    for (index, node) in graph.node.iter().enumerate() {
        check_windows(node)?;
        check_order(node)?;
        if let Some(size) = folded(node, &sources, &constants)? {
            let size = size.unwrap_or_else(|grown| {
                found.insert(index);
                grown
            });
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
    Ok(found)
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

/// Refuses a Transpose that names an axis twice: tract 0.23.9 turns the order into single moves, and would look for them until
/// the memory is full (`change_axes::perm_to_atoms`).
fn check_order(node: &pb::NodeProto) -> Result<(), ModelError> {
    let order = attributes::ints(node, "perm");
    let mut axes = order.to_vec();
    axes.sort_unstable();
    if node.op_type != "Transpose" || axes.iter().copied().eq(0..axes.len() as i64) {
        return Ok(());
    }
    let shown: Vec<i64> = order.iter().copied().take(MAX_RANK).collect();
    Err(ModelError::node(
        node,
        format!("has {shown:?} as its perm, which does not name each axis once, counted from 0; export it again"),
    ))
}

/// The size of each of the node's results where all its inputs are constants; `None` where one is not. What is bounded by
/// [`MAX_GROWN`] alone is an `Err` inside.
fn folded(
    node: &pb::NodeProto,
    sources: &Sources<'_>,
    constants: &HashMap<&str, Size>,
) -> Result<Option<Result<Size, Size>>, ModelError> {
    match node.op_type.as_str() {
        "Constant" => return constant(node).map(|size| Some(Ok(size))),
        // The shape of a list is one number; that of a number is empty.
        "Shape" => {
            let of = node.input.first().and_then(|name| constants.get(name.as_str()));
            return Ok(Some(Ok(Size::List(of.and_then(Size::rank).unwrap_or(MAX_RANK).max(1)))));
        }
        "Size" => return Ok(Some(Ok(Size::Number))),
        "Pad" => check_pad(node, sources)?,
        _ => {}
    }
    let inputs = node.input.iter().filter(|name| !name.is_empty()).map(|name| constants.get(name.as_str()));
    let Some(inputs) = inputs.collect::<Option<Vec<&Size>>>() else { return Ok(None) };
    let first = || inputs.first().map_or(Size::AtMost(1), |size| (*size).clone());
    let known = |slot: usize| sources.integers(node, slot);
    let axes = || match node.input.get(1) {
        Some(_) => known(1).unwrap_or_default(),
        None => attributes::ints(node, "axes").to_vec(),
    };
    let grown = |size: Size| Ok(Some(Err(size)));
    let size = match node.op_type.as_str() {
        "Expand" => match (known(1), first()) {
            (Some(target), data) => broadcast(&[&data, &Size::Shape(sized(node, &target)?)]),
            (None, _) => return grown(Size::AtMost(MAX_GROWN)),
        },
        "Tile" => match (known(1), first()) {
            (Some(times), data) => {
                Size::AtMost(sized(node, &times)?.iter().fold(data.len(), |len, &times| len.saturating_mul(times)))
            }
            (None, _) => return grown(Size::AtMost(MAX_GROWN)),
        },
        "ConstantOfShape" => match known(0) {
            Some(dims) => Size::Shape(sized(node, &dims)?),
            None if first().rank() == Some(1) && first().len() <= 1 => return grown(Size::List(MAX_GROWN)),
            None => return grown(Size::AtMost(MAX_GROWN)),
        },
        "Range" => match (known(0).as_deref(), known(1).as_deref(), known(2).as_deref()) {
            (Some([start]), Some([limit]), Some([step])) if *step != 0 => {
                let count = limit.abs_diff(*start).div_ceil(step.unsigned_abs());
                Size::List(usize::try_from(count).unwrap_or(usize::MAX))
            }
            _ => return grown(Size::List(MAX_GROWN)),
        },
        "Add" | "Sub" | "Mul" | "Div" | "Mod" | "Pow" | "Max" | "Min" | "Mean" | "Sum" | "And" | "Or" | "Equal"
        | "Greater" | "GreaterOrEqual" | "Less" | "LessOrEqual" | "Where" | "PRelu" => match broadcast(&inputs) {
            // Of inputs that are computed themselves no more is known than that.
            size if size.len() > MAX_FOLDED && !matches!(size, Size::Shape(_)) => {
                return grown(Size::AtMost(MAX_GROWN));
            }
            size => size,
        },
        // What is gathered has the shape of the indices in place of the axis.
        "Gather" if first().rank() == Some(1) && inputs.get(1).is_some_and(|size| size.is_flat()) => {
            inputs.get(1).map_or(Size::Number, |size| (*size).clone())
        }
        "Slice" | "Transpose" if first().is_flat() => first(),
        "Squeeze" if first().rank() == Some(1) => {
            if axes().len() == 1 {
                Size::Number
            } else {
                first()
            }
        }
        "Unsqueeze" if first().rank() == Some(0) && axes().len() == 1 => Size::List(1),
        "Reshape" => match known(1).as_deref() {
            Some([]) => Size::Number,
            Some([_]) => Size::List(first().len()),
            _ => Size::AtMost(first().len()),
        },
        "MatMul" | "MatMulInteger" | "QLinearMatMul" | "Gemm" | "Gather" | "GatherND" | "GatherElements" | "Einsum"
        | "LSTM" | "GRU" => Size::AtMost(product(&inputs)),
        "Concat" => {
            let total = inputs.iter().fold(0, |sum: usize, size| sum.saturating_add(size.len()));
            let lists = inputs.iter().all(|size| size.rank() == Some(1));
            if lists { Size::List(total) } else { Size::AtMost(total) }
        }
        "NonZero" => Size::AtMost(first().len().saturating_mul(MAX_RANK)),
        // Many of these are in no catalogue, but a file that is served as it is may have them.
        "Conv" | "ConvInteger" | "QLinearConv" | "ConvTranspose" | "MaxPool" | "AveragePool" | "Pad" | "Resize"
        | "Upsample" | "GridSample" | "OneHot" | "RandomNormal" | "RandomUniform" | "Multinomial" | "HannWindow"
        | "HammingWindow" | "BlackmanWindow" | "MelWeightMatrix" | "DFT" | "STFT" | "NonMaxSuppression" => {
            return Err(ModelError::node(
                node,
                "computes on constants alone; fold the constants before publishing (onnxsim)",
            ));
        }
        "Abs" | "Neg" | "Cast" | "Identity" | "Sqrt" | "Exp" | "Log" | "Reciprocal" | "DequantizeLinear"
        | "QuantizeLinear" => first(),
        // All others give at most as many elements as their first input has.
        _ => Size::AtMost(first().len()),
    };
    Ok(Some(Ok(size)))
}

fn product(inputs: &[&Size]) -> usize {
    inputs.iter().fold(1, |product, size| product.saturating_mul(size.len()))
}

/// The size of what a Constant node holds.
fn constant(node: &pb::NodeProto) -> Result<Size, ModelError> {
    if let Some(tensor) = attributes::tensor(node, "value") {
        return tensor::shape(tensor).map(Size::Shape);
    }
    if attributes::has(node, "value_int") || attributes::has(node, "value_float") {
        return Ok(Size::Number);
    }
    Ok(Size::List(attributes::ints(node, "value_ints").len().max(attributes::floats(node, "value_floats").len())))
}

/// A shape, whose product is within the limit.
fn sized(node: &pb::NodeProto, dims: &[i64]) -> Result<Vec<usize>, ModelError> {
    let dims: Option<Vec<usize>> = dims.iter().map(|&dim| usize::try_from(dim).ok()).collect();
    let refused = || ModelError::node(node, "asks for a shape with negative sizes or too many dimensions");
    dims.filter(|dims| dims.len() <= MAX_RANK).ok_or_else(refused)
}

/// Numpy's rule where all shapes are known or none has two axes, else the product, which no broadcast exceeds.
fn broadcast(inputs: &[&Size]) -> Size {
    if inputs.iter().all(|size| size.is_flat()) && !inputs.iter().all(|size| matches!(size, Size::Shape(_))) {
        let numbers = inputs.iter().all(|size| size.rank() == Some(0));
        let longest = inputs.iter().map(|size| size.len()).max().unwrap_or(1);
        return if numbers { Size::Number } else { Size::List(longest) };
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
fn check_pad(node: &pb::NodeProto, sources: &Sources<'_>) -> Result<(), ModelError> {
    if node.input.get(1).is_none_or(String::is_empty) {
        return Ok(());
    }
    let Some(pads) = sources.integers(node, 1).filter(|pads| pads.len() <= MAX_LIST) else {
        return Err(ModelError::node(node, "computes its pads while it runs; make them an int64 initializer"));
    };
    match pads.iter().find(|pad| pad.unsigned_abs() > MAX_WINDOW) {
        Some(pad) => Err(ModelError::node(node, format!("has {pad} among its pads, above the limit of {MAX_WINDOW}"))),
        None => Ok(()),
    }
}

#[cfg(test)]
#[path = "sizes_tests.rs"]
mod tests;
