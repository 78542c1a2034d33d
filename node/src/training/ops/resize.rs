//! Resize: nearest and linear, axis by axis, in every coordinate transformation that exporters write.
//! Linear interpolation over several axes is the product of one over each, so an axis is all that this file knows.

use burn::backend::{Scalar, Shape, TensorData, TensorMetadata};

use super::super::TrainingError;
use super::super::backend::Tensor;
use super::super::engine::Engine;
use super::super::node::Node;
use super::super::value::TensorRef;
use super::Built;
use super::select::pick;

/// Greatest size of an axis.
const MAX_SIZE: usize = 1 << 16;

/// How one axis is resized.
enum Axis {
    /// Each output is one input.
    Nearest(Vec<usize>),
    /// Each output lies between two inputs, at this share of the way.
    Linear { low: Vec<usize>, high: Vec<usize>, share: Vec<f64> },
}

pub(super) fn resize<B: Engine>(node: &Node<'_>) -> Result<Built<B>, TrainingError> {
    node.expect_attributes(&[
        "mode",
        "coordinate_transformation_mode",
        "nearest_mode",
        "cubic_coeff_a",
        "exclude_outside",
        "extrapolation_value",
        "antialias",
        "axes",
        "keep_aspect_ratio_policy",
    ])?;
    let x = node.tensor(0)?;
    if node.flag("antialias", false)? || node.string("keep_aspect_ratio_policy", "stretch")? != "stretch" {
        return Err(node.error("training resizes without antialias and aspect policies only"));
    }
    let axes: Vec<usize> = match node.ints("axes")? {
        Some(axes) => axes.iter().map(|&axis| node.axis(axis, x.shape.len())).collect::<Result<_, _>>()?,
        None => (0..x.shape.len()).collect(),
    };
    let mut shape = x.shape.clone();
    let mut steps = Vec::new();
    for (axis, size, scale) in wanted(node, x, &axes)? {
        let old = shape.get(axis).copied().unwrap_or(1);
        if size == old && (scale - 1.0).abs() < 1e-6 {
            continue;
        }
        if !steps.is_empty() {
            node.hold("a value between two of its axes", &shape)?;
        }
        let plan = plan(node, old, size, scale)?;
        if let Some(dim) = shape.get_mut(axis) {
            *dim = size;
        }
        if matches!(plan, Axis::Linear { .. }) {
            node.hold("the lower neighbours", &shape)?;
            node.hold("the upper neighbours", &shape)?;
        }
        steps.push((axis, plan));
    }
    Ok(Built::unary(x, shape, move |x| steps.iter().fold(x, |x, (axis, plan)| run::<B>(x, *axis, plan))))
}

/// Axis, new size and scale of each resized axis.
fn wanted(node: &Node<'_>, x: &TensorRef, axes: &[usize]) -> Result<Vec<(usize, usize, f64)>, TrainingError> {
    let size = |axis: usize| x.shape.get(axis).copied().unwrap_or(1);
    // Before operator set 11 the scales are input 1, and there is no roi.
    let scales_input = if node.opset() < 11 { 1 } else { 2 };
    let found: Vec<(usize, usize, f64)> = if node.optional(scales_input).is_some() {
        let scales = known(node, scales_input)?;
        let grown = |(&axis, &scale): (&usize, &f32)| {
            let scale = f64::from(scale);
            (axis, (size(axis) as f64 * scale).floor().max(0.0) as usize, scale)
        };
        if scales.len() != axes.len() {
            return Err(node.error(format!("it has {} scales for {} axes", scales.len(), axes.len())));
        }
        axes.iter().zip(&scales).map(grown).collect()
    } else {
        let sizes = &node.integers(3)?.values;
        if sizes.len() != axes.len() {
            return Err(node.error(format!("it has {} sizes for {} axes", sizes.len(), axes.len())));
        }
        let given = |(&axis, &new): (&usize, &i64)| {
            let new = usize::try_from(new).unwrap_or(0);
            (axis, new, new as f64 / size(axis) as f64)
        };
        axes.iter().zip(sizes).map(given).collect()
    };
    match found.iter().find(|(_, size, _)| !(1..=MAX_SIZE).contains(size)) {
        Some((_, size, _)) => Err(node.error(format!("it resizes an axis to {size}"))),
        None => Ok(found),
    }
}

fn plan(node: &Node<'_>, size: usize, new: usize, scale: f64) -> Result<Axis, TrainingError> {
    let transformation =
        node.string("coordinate_transformation_mode", if node.opset() < 11 { "asymmetric" } else { "half_pixel" })?;
    let (old, whole) = (size as f64, new as f64);
    let origin = |index: usize| -> Option<f64> {
        let at = index as f64;
        Some(match transformation {
            "half_pixel" => (at + 0.5) / scale - 0.5,
            "half_pixel_symmetric" => {
                let adjustment = whole / (scale * old);
                old / 2.0 * (1.0 - adjustment) + (at + 0.5) / scale - 0.5
            }
            "pytorch_half_pixel" if new > 1 => (at + 0.5) / scale - 0.5,
            "pytorch_half_pixel" => 0.0,
            "align_corners" if new > 1 => at * (old - 1.0) / (whole - 1.0),
            "align_corners" => 0.0,
            "asymmetric" => at / scale,
            _ => return None,
        })
    };
    let origins: Option<Vec<f64>> = (0..new).map(origin).collect();
    let origins = origins
        .ok_or_else(|| node.error(format!("training lacks the coordinate transformation {transformation:?}")))?;
    let held = |place: f64| place.clamp(0.0, old - 1.0) as usize;
    match node.string("mode", "nearest")? {
        "nearest" => {
            let rounding =
                node.string("nearest_mode", if node.opset() < 11 { "floor" } else { "round_prefer_floor" })?;
            let round = |place: f64| match rounding {
                "floor" => Some(held(place.floor())),
                "ceil" => Some(held(place.ceil())),
                "round_prefer_floor" => Some(held((place - 0.5).ceil())),
                "round_prefer_ceil" => Some(held((place + 0.5).floor())),
                _ => None,
            };
            let indices: Option<Vec<usize>> = origins.into_iter().map(round).collect();
            indices.map(Axis::Nearest).ok_or_else(|| node.error(format!("its nearest_mode {rounding:?} is unknown")))
        }
        "linear" => {
            let inside: Vec<f64> = origins.into_iter().map(|place| place.clamp(0.0, old - 1.0)).collect();
            let low: Vec<usize> = inside.iter().map(|place| place.floor() as usize).collect();
            let high = low.iter().map(|place| (place + 1).min(size - 1)).collect();
            let share = inside.iter().zip(&low).map(|(place, low)| place - *low as f64).collect();
            Ok(Axis::Linear { low, high, share })
        }
        other => Err(node.error(format!("training resizes by \"nearest\" and \"linear\", not {other:?}"))),
    }
}

fn run<B: Engine>(x: Tensor<B>, axis: usize, plan: &Axis) -> Tensor<B> {
    match plan {
        Axis::Nearest(indices) => pick::<B>(x, axis, indices),
        Axis::Linear { low, high, share } => {
            let dtype = x.dtype();
            let mut shape = vec![1; x.shape().len()];
            if let Some(dim) = shape.get_mut(axis) {
                *dim = share.len();
            }
            let data = TensorData::new(share.clone(), Shape::from(shape)).convert_dtype(dtype);
            let share = B::float_from_data(data, &B::Device::default());
            let rest = B::float_add_scalar(B::float_neg(share.clone()), Scalar::Float(1.0));
            let (low, high) = (pick::<B>(x.clone(), axis, low), pick::<B>(x, axis, high));
            B::float_add(B::float_mul(low, rest), B::float_mul(high, share))
        }
    }
}

/// Floats that are known when the graph is compiled.
fn known(node: &Node<'_>, input: usize) -> Result<Vec<f32>, TrainingError> {
    match &node.tensor(input)?.known {
        Some(values) => Ok(values.to_vec()),
        None => Err(node.error("its scales are computed while it runs; make them an initializer")),
    }
}
