//! Operators that pick parts of tensors, or repeat them: Gather, Slice, Split, Expand, Tile, Pad.
//! On integers that are known at compile time Gather and Slice fold; that is in `integers`.

use burn::backend::{DType, DeviceOps, IntDType, Scalar, Shape, Slice, TensorData, TensorMetadata};

use super::super::TrainingError;
use super::super::backend::Tensor;
use super::super::engine::Engine;
use super::super::node::Node;
use super::super::value::{Integers, Kind, MAX_INTEGERS, Origin, TensorRef, Value};
use super::elementwise::{broadcast_shape, expand};
use super::{Built, Kernel, Output, Work, held, integers, reshape};

type Made<B> = Result<Built<B>, TrainingError>;
type Indices<B> = burn::backend::tensor::IntTensor<B>;

/// Greatest padding of one side.
const MAX_PAD: i64 = 1 << 16;

fn int_dtype<B: Engine>() -> IntDType {
    B::Device::default().defaults().int_dtype
}

/// The entries of these indices along an axis; what several outputs take adds up in the gradient.
pub(super) fn pick<B: Engine>(x: Tensor<B>, axis: usize, indices: &[usize]) -> Tensor<B> {
    let contiguous = indices.windows(2).all(|pair| pair[1] == pair[0] + 1);
    if let (true, Some(&first), Some(&last)) = (contiguous, indices.first(), indices.last()) {
        return range::<B>(x, axis, first, last + 1);
    }
    let values: Vec<i64> = indices.iter().map(|&index| index as i64).collect();
    let data = TensorData::new(values, Shape::from(vec![indices.len()])).convert_dtype(DType::from(int_dtype::<B>()));
    B::float_select(x, axis, B::int_from_data(data, &B::Device::default()))
}

/// The entries from `start` to before `end` along an axis.
pub(super) fn range<B: Engine>(x: Tensor<B>, axis: usize, start: usize, end: usize) -> Tensor<B> {
    let shape = x.shape();
    if start == 0 && shape.get(axis) == Some(&end) {
        return x;
    }
    let whole = |dim: usize| Slice::new(0, Some(dim as isize), 1);
    let mut slices: Vec<Slice> = shape.iter().map(|&dim| whole(dim)).collect();
    if let Some(slice) = slices.get_mut(axis) {
        *slice = Slice::new(start as isize, Some(end as isize), 1);
    }
    B::float_slice(x, &slices)
}

pub(super) fn gather<B: Engine>(node: &Node<'_>) -> Made<B> {
    if let (Value::Integers(_), Value::Integers(_)) = (node.value(0)?, node.value(1)?) {
        return integers::gather(node);
    }
    node.expect_attributes(&["axis"])?;
    node.expect_inputs(2..=2)?;
    let x = node.any(0)?;
    let axis = node.axis(node.int("axis", 0)?, x.shape.len())?;
    let size = x.shape.get(axis).copied().unwrap_or(1);
    let around = |middle: &[usize]| {
        let (before, after) = (x.shape.get(..axis).unwrap_or_default(), x.shape.get(axis + 1..).unwrap_or_default());
        [before, middle, after].concat()
    };
    match node.value(1)? {
        Value::Integers(Integers { values, scalar }) => {
            let place = |&index: &i64| {
                let index = if index < 0 { index.checked_add(size as i64)? } else { index };
                usize::try_from(index).ok().filter(|&index| index < size)
            };
            let indices: Option<Vec<usize>> = values.iter().map(place).collect();
            let indices = indices.ok_or_else(|| node.error(format!("an index is out of range for {size} entries")))?;
            let count = [indices.len()];
            let shape = around(if *scalar { &[] } else { &count[..] });
            let target = shape.clone();
            Ok(Built::unary(x, shape, move |x| reshape::<B>(pick::<B>(x, axis, &indices), &target)).of_kind(x.kind))
        }
        _ => {
            let indices = node.any(1)?;
            if indices.kind != Kind::Integer {
                return Err(node.error("its indices are no integers"));
            }
            let shape = around(&indices.shape);
            let (target, count) = (shape.clone(), indices.shape.iter().product());
            let kernel = Kernel::Fallible(Box::new(move |inputs| {
                let Ok([x, indices]) = <[Tensor<B>; 2]>::try_from(inputs) else {
                    return Err("lost an input".to_owned());
                };
                let indices = whole::<B>(indices, count, size)?;
                Ok(reshape::<B>(B::float_select(x, axis, indices), &target))
            }));
            Ok(Built::step(vec![x.clone(), indices.clone()], shape, kernel).of_kind(x.kind))
        }
    }
}

/// Computed indices as integers below `size`, negative ones counted from the end.
fn whole<B: Engine>(indices: Tensor<B>, count: usize, size: usize) -> Result<Indices<B>, String> {
    let data = burn::backend::read_sync(B::float_into_data(reshape::<B>(indices, &[count])))
        .map_err(|error| format!("cannot read its indices: {error}"))?;
    let mut values = Vec::with_capacity(count);
    for index in data.iter::<f64>() {
        let place = if index < 0.0 { index + size as f64 } else { index };
        if !(0.0..size as f64).contains(&place) {
            return Err(format!("got the index {index} for {size} entries; check the samples"));
        }
        values.push(place as i64);
    }
    let data = TensorData::new(values, Shape::from(vec![count])).convert_dtype(DType::from(int_dtype::<B>()));
    Ok(B::int_from_data(data, &B::Device::default()))
}

pub(super) fn slice<B: Engine>(node: &Node<'_>) -> Made<B> {
    if let Value::Integers(_) = node.value(0)? {
        return integers::slice(node);
    }
    node.expect_attributes(&["starts", "ends", "axes"])?;
    node.expect_inputs(1..=5)?;
    let x = node.any(0)?;
    let rank = x.shape.len();
    let list = |input: usize, name: &str| match node.optional(input) {
        Some(_) => node.integers(input).map(|integers| Some(integers.values.clone())),
        None => Ok(node.ints(name)?.map(<[i64]>::to_vec)),
    };
    let missing = || node.error("it lacks its starts or ends");
    let (starts, ends) = (list(1, "starts")?.ok_or_else(missing)?, list(2, "ends")?.ok_or_else(missing)?);
    let axes = list(3, "axes")?.unwrap_or_else(|| (0..starts.len() as i64).collect());
    let steps = if node.optional(4).is_some() { node.integers(4)?.values.clone() } else { vec![1; starts.len()] };
    if [ends.len(), axes.len(), steps.len()] != [starts.len(); 3] {
        return Err(node.error("its lists of starts, ends, axes and steps differ in length"));
    }
    let mut shape = x.shape.clone();
    let mut picks = Vec::new();
    for (((&start, &end), &axis), &step) in starts.iter().zip(&ends).zip(&axes).zip(&steps) {
        let axis = node.axis(axis, rank)?;
        if picks.iter().any(|(other, _)| *other == axis) {
            return Err(node.error(format!("its axes {axes:?} name one twice")));
        }
        let size = x.shape.get(axis).copied().unwrap_or(1);
        let indices =
            stepped(size as i64, start, end, step).ok_or_else(|| node.error(format!("its step is {step}")))?;
        if let Some(dim) = shape.get_mut(axis) {
            *dim = indices.len();
        }
        picks.push((axis, indices));
    }
    let run = move |x| picks.iter().fold(x, |x, (axis, indices)| pick::<B>(x, *axis, indices));
    Ok(Built::unary(x, shape, run).of_kind(x.kind))
}

/// What a Slice takes of an axis, as ONNX defines it; `None` for a step of 0.
fn stepped(size: i64, start: i64, end: i64, step: i64) -> Option<Vec<usize>> {
    let absolute = |index: i64| if index < 0 { index.saturating_add(size) } else { index };
    let (start, end) = (absolute(start), absolute(end));
    Some(match step {
        0 => return None,
        1.. => {
            let step = usize::try_from(step).unwrap_or(usize::MAX);
            (start.clamp(0, size) as usize..end.clamp(0, size) as usize).step_by(step).collect()
        }
        _ => {
            let (mut index, end) = (start.clamp(-1, size - 1), end.clamp(-1, size - 1));
            let mut indices = Vec::new();
            while index > end {
                indices.push(index as usize);
                index = index.saturating_add(step);
            }
            indices
        }
    })
}

pub(super) fn split<B: Engine>(node: &Node<'_>) -> Made<B> {
    node.expect_attributes(&["axis", "split", "num_outputs"])?;
    node.expect_inputs(1..=2)?;
    let x = node.any(0)?;
    let axis = node.axis(node.int("axis", 0)?, x.shape.len())?;
    let size = x.shape.get(axis).copied().unwrap_or(1);
    let given = match node.optional(1) {
        Some(_) => Some(node.integers(1)?.values.clone()),
        None => node.ints("split")?.map(<[i64]>::to_vec),
    };
    let parts = node.output_count();
    let sizes: Option<Vec<usize>> = match given {
        Some(sizes) => sizes.iter().map(|&size| usize::try_from(size).ok()).collect(),
        None if parts == 0 => None,
        // In even parts, the last of which may be smaller.
        None => {
            let part = size.div_ceil(parts);
            Some((0..parts).map(|index| part.min(size.saturating_sub(index * part))).collect())
        }
    };
    let sizes = sizes.filter(|sizes| sizes.len() == parts && sizes.iter().sum::<usize>() == size);
    let sizes =
        sizes.ok_or_else(|| node.error(format!("its parts do not make up the {size} entries of axis {axis}")))?;
    let outputs = sizes
        .iter()
        .map(|&part| {
            let mut shape = x.shape.clone();
            if let Some(dim) = shape.get_mut(axis) {
                *dim = part;
            }
            Output { shape, kind: x.kind }
        })
        .collect();
    let kernel = Kernel::Many(Box::new(move |inputs: Vec<Tensor<B>>| {
        let Some(x) = inputs.into_iter().next() else { return Vec::new() };
        let mut start = 0;
        let part = |&size: &usize| -> Tensor<B> {
            start += size;
            range::<B>(x.clone(), axis, start - size, start)
        };
        sizes.iter().map(part).collect::<Vec<Tensor<B>>>()
    }));
    Ok(Built::Step(Work { inputs: vec![x.clone()], outputs, kernel }))
}

pub(super) fn expand_to<B: Engine>(node: &Node<'_>) -> Made<B> {
    node.expect_attributes(&[])?;
    node.expect_inputs(2..=2)?;
    let target: Option<Vec<usize>> =
        node.integers(1)?.values.iter().map(|&dim| usize::try_from(dim).ok().filter(|&dim| dim > 0)).collect();
    let target =
        target.ok_or_else(|| node.error(format!("it expands to {:?}", node.integers(1).map(|i| i.values.clone()))))?;
    if let Value::Integers(Integers { values, scalar }) = node.value(0)? {
        return match (values.as_slice(), target.as_slice()) {
            ([value], [len]) if *len <= MAX_INTEGERS => Ok(Built::integers(vec![*value; *len], false)),
            (values, [1]) => Ok(Built::integers(values.to_vec(), false)),
            (values, []) => Ok(Built::integers(values.to_vec(), *scalar)),
            (values, [len]) if *len == values.len() => Ok(Built::integers(values.to_vec(), false)),
            _ => Err(node.error(format!("{} integers do not expand to {target:?}", values.len()))),
        };
    }
    let x = node.any(0)?;
    let shape = broadcast_shape(&x.shape, &target)
        .ok_or_else(|| node.error(format!("a tensor of shape {:?} does not expand to {target:?}", x.shape)))?;
    if shape == x.shape {
        return Ok(Built::Value(Value::Tensor(x.clone())));
    }
    let target = held(&shape);
    Ok(Built::unary(x, shape, move |x| expand::<B>(x, &target)).of_kind(x.kind))
}

pub(super) fn tile<B: Engine>(node: &Node<'_>) -> Made<B> {
    node.expect_attributes(&[])?;
    node.expect_inputs(2..=2)?;
    let x = node.any(0)?;
    let times: Option<Vec<usize>> =
        node.integers(1)?.values.iter().map(|&times| usize::try_from(times).ok().filter(|&times| times > 0)).collect();
    let times = times.filter(|times| times.len() == x.shape.len());
    let times = times.ok_or_else(|| node.error(format!("its repeats do not fit the shape {:?}", x.shape)))?;
    let shape: Option<Vec<usize>> = x.shape.iter().zip(&times).map(|(dim, times)| dim.checked_mul(*times)).collect();
    let shape = shape.ok_or_else(|| node.error("its output is too large"))?;
    Ok(Built::unary(x, shape, move |x| {
        times.iter().enumerate().fold(x, |x, (axis, &times)| repeated::<B>(x, axis, times))
    })
    .of_kind(x.kind))
}

/// The tensor so many times over along an axis. No list of copies: a single number may be asked for half a billion times.
fn repeated<B: Engine>(x: Tensor<B>, axis: usize, times: usize) -> Tensor<B> {
    if times == 1 {
        return x;
    }
    let mut shape = x.shape().to_vec();
    let (outer, inner) = shape.split_at(axis.min(shape.len()));
    let (outer, inner) = (outer.iter().product(), inner.iter().product());
    let x = B::float_expand(reshape::<B>(x, &[outer, 1, inner]), Shape::from(vec![outer, times, inner]));
    if let Some(dim) = shape.get_mut(axis) {
        *dim *= times;
    }
    reshape::<B>(x, &shape)
}

/// Pads each axis; negative pads cut off.
pub(super) fn pad<B: Engine>(node: &Node<'_>) -> Made<B> {
    node.expect_attributes(&["mode", "pads", "value"])?;
    node.expect_inputs(1..=4)?;
    let x = node.any(0)?;
    let rank = x.shape.len();
    let pads = match node.optional(1) {
        Some(_) => node.integers(1)?.values.clone(),
        None => node.ints("pads")?.ok_or_else(|| node.error("it has no pads"))?.to_vec(),
    };
    let axes: Vec<usize> = match node.optional(3) {
        Some(_) => node.integers(3)?.values.iter().map(|&axis| node.axis(axis, rank)).collect::<Result<_, _>>()?,
        None => (0..rank).collect(),
    };
    let value = match node.optional(2) {
        None => node.float("value", 0.0)?,
        Some(Value::Tensor(TensorRef { origin: Origin::Constant(Some(value)), .. })) => *value,
        Some(_) => return Err(node.error("its value must be a constant single number")),
    };
    if pads.len() != 2 * axes.len() || pads.iter().any(|pad| pad.abs() > MAX_PAD) {
        return Err(node.error(format!("its pads {pads:?} do not fit {} axes", axes.len())));
    }
    let mode = node.string("mode", "constant")?;
    let (begins, ends) = pads.split_at(axes.len());
    let mut shape = x.shape.clone();
    let mut steps = Vec::new();
    for ((&axis, &begin), &end) in axes.iter().zip(begins).zip(ends) {
        let size = shape.get(axis).copied().unwrap_or(1);
        let places = padded(mode, size as i64, begin, end)
            .ok_or_else(|| node.error(format!("its mode {mode:?} does not pad {size} entries by {begin} and {end}")))?;
        if begin == 0 && end == 0 {
            continue;
        }
        if !steps.is_empty() {
            node.hold("a value between two of its axes", &shape)?;
        }
        if let Some(dim) = shape.get_mut(axis) {
            *dim = places.len();
        }
        steps.push((axis, places));
    }
    let fill = Scalar::Float(f64::from(value));
    Ok(Built::unary(x, shape, move |x| {
        steps.iter().fold(x, |x, (axis, places)| fill_axis::<B>(x, *axis, places, fill))
    })
    .of_kind(x.kind))
}

/// Where each entry of a padded axis comes from; `None` inside: from the fill value. `None`: the mode cannot do it.
fn padded(mode: &str, size: i64, begin: i64, end: i64) -> Option<Vec<Option<usize>>> {
    let place = |index: i64| -> Option<Option<usize>> {
        if (0..size).contains(&index) {
            return Some(Some(index as usize));
        }
        Some(match mode {
            "constant" => None,
            "edge" => Some(index.clamp(0, size - 1) as usize),
            "reflect" => {
                let mirrored = if index < 0 { -index } else { 2 * (size - 1) - index };
                Some(usize::try_from(mirrored).ok().filter(|&place| (place as i64) < size)?)
            }
            "wrap" => Some(index.rem_euclid(size) as usize),
            _ => return None,
        })
    };
    (size > 0 && begin.checked_add(size)?.checked_add(end)? > 0).then(|| (-begin..size + end).map(place).collect())?
}

fn fill_axis<B: Engine>(x: Tensor<B>, axis: usize, places: &[Option<usize>], fill: Scalar) -> Tensor<B> {
    let kept: Vec<usize> = places.iter().flatten().copied().collect();
    let before = places.iter().take_while(|place| place.is_none()).count();
    let after = if kept.is_empty() { 0 } else { places.iter().rev().take_while(|place| place.is_none()).count() };
    let (mut shape, dtype) = (x.shape().to_vec(), x.dtype());
    let mut block = |len: usize| {
        if let Some(dim) = shape.get_mut(axis) {
            *dim = len;
        }
        B::float_full(Shape::from(shape.clone()), fill, &B::Device::default(), dtype.into())
    };
    let mut parts: Vec<Tensor<B>> = Vec::new();
    if before > 0 {
        parts.push(block(before));
    }
    if !kept.is_empty() {
        parts.push(pick::<B>(x, axis, &kept));
    }
    if after > 0 {
        parts.push(block(after));
    }
    if parts.len() > 1 { B::float_cat(parts, axis) } else { parts.remove(0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_are_onnxs() {
        assert_eq!(stepped(5, 1, 4, 1), Some(vec![1, 2, 3]));
        assert_eq!(stepped(5, -3, i64::MAX, 2), Some(vec![2, 4]));
        assert_eq!(stepped(5, 4, i64::MIN, -2), Some(vec![4, 2, 0]));
        assert_eq!(stepped(5, -1, -6, -1), Some(vec![4, 3, 2, 1, 0]));
        assert_eq!(stepped(5, 7, 9, 1), Some(vec![]));
        assert_eq!(stepped(5, 0, 5, 0), None);
    }

    #[test]
    fn pads_mirror_repeat_and_cut() {
        let places = |mode, begin, end| padded(mode, 3, begin, end);
        assert_eq!(places("constant", 1, -1), Some(vec![None, Some(0), Some(1)]));
        assert_eq!(places("reflect", 2, 1), Some(vec![Some(2), Some(1), Some(0), Some(1), Some(2), Some(1)]));
        assert_eq!(places("edge", 2, 0), Some(vec![Some(0), Some(0), Some(0), Some(1), Some(2)]));
        assert_eq!(places("wrap", 1, 1), Some(vec![Some(2), Some(0), Some(1), Some(2), Some(0)]));
        assert_eq!(places("reflect", 3, 0), None);
        assert_eq!(places("constant", -2, -1), None);
    }
}
