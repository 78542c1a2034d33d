//! Recognises elementwise operators: functions of one code, sums, products, concatenation, Softmax.
//! How their result is stored is in `emit`.

use std::rc::Rc;

use fedge_models::pb::NodeProto;

use super::graph::{Builder, Refusal, clamp, float, int};
use super::kernels::elementwise::Affine;
use super::linear::rank;
use super::program::Step;
use super::value::{Kind, Known, Pending, Tensor};

impl Builder {
    /// Relu and Clip bound a waiting result; on codes, every function becomes a table.
    pub(super) fn function(&mut self, node: &NodeProto) -> Result<Known, Refusal> {
        let bounds = match node.op_type.as_str() {
            "Relu" => Some((0.0, f32::INFINITY)),
            "Clip" => {
                Some((self.bound(node, 1, "min", f32::NEG_INFINITY)?, self.bound(node, 2, "max", f32::INFINITY)?))
            }
            _ => None,
        };
        match (self.get(node, 0)?, bounds) {
            (Known::Pending(pending), _) if matches!(pending.kind, Kind::Function(..)) => {
                let Kind::Function(tensor, values) = pending.kind else { return Err("is no function".to_owned()) };
                apply(node, bounds, tensor, values.iter().copied())
            }
            (Known::Pending(mut pending), Some((low, high))) => {
                clamp(&mut pending, low, high);
                Ok(Known::Pending(pending))
            }
            (Known::Real(tensor, affine), _) => apply(node, bounds, tensor, decoded(affine)),
            _ => Err("its input is not quantized".to_owned()),
        }
    }

    fn bound(&self, node: &NodeProto, index: usize, name: &str, default: f32) -> Result<f32, Refusal> {
        match self.optional(node, index)? {
            None => Ok(float(node, name, default)),
            Some(known) => scalar(&known, usize::MAX).ok_or_else(|| "its bounds are not constant".to_owned()),
        }
    }

    /// Add, Sub, Mul and Div.
    pub(super) fn arithmetic(&mut self, node: &NodeProto) -> Result<Known, Refusal> {
        let operator = node.op_type.as_str();
        let (a, b) = (self.get(node, 0)?, self.get(node, 1)?);
        if let Some(b) = scalar(&b, rank(&a)) {
            let with = |value: f32| calculated(operator, value, b);
            return with_constant(a, with);
        }
        if let Some(a) = scalar(&a, rank(&b)) {
            let with = |value: f32| calculated(operator, a, value);
            return with_constant(b, with);
        }
        match (operator, a, b) {
            ("Add", Known::Pending(pending), constant) | ("Add", constant, Known::Pending(pending)) => {
                self.with_bias(&pending, &constant)
            }
            ("Add", Known::Real(a, of_a), Known::Real(b, of_b)) => {
                let [a, b] = self.aligned(a, b)?;
                let shape = a.shape.clone();
                Ok(Pending::known(Kind::Sum([(a, of_a), (b, of_b)]), shape))
            }
            ("Mul", Known::Real(a, of_a), Known::Real(b, of_b)) => {
                let ((a, of_a), (b, of_b)) =
                    if b.len() > a.len() { ((b, of_b), (a, of_a)) } else { ((a, of_a), (b, of_b)) };
                let shape = a.shape.clone();
                let [a, b] =
                    if a.shape == b.shape { self.aligned(a, b)? } else { [self.channels_last(a)?, self.plain(b)?] };
                let each_channel = b.shape.len() == a.shape.len()
                    && b.shape.first() == Some(&b.len())
                    && a.shape.first() == Some(&b.len());
                if a.shape != b.shape && !each_channel {
                    return Err(format!("multiplies {:?} by {:?}", a.shape, b.shape));
                }
                Ok(Pending::known(Kind::Product([(a, of_a), (b, of_b)]), shape))
            }
            _ => Err("its operands are not both quantized, nor is one a constant that fits".to_owned()),
        }
    }

    /// Two tensors of one shape in one order.
    fn aligned(&mut self, a: Tensor, b: Tensor) -> Result<[Tensor; 2], Refusal> {
        if a.shape != b.shape {
            return Err(format!("combines {:?} and {:?}", a.shape, b.shape));
        }
        if a.order == b.order {
            return Ok([a, b]);
        }
        match (a.order, a.shape.len()) {
            (Some(_), 2..) | (None, 2..) => Ok([self.channels_last(a)?, self.channels_last(b)?]),
            _ => Ok([self.plain(a)?, self.plain(b)?]),
        }
    }

    pub(super) fn concat(&mut self, node: &NodeProto) -> Result<Known, Refusal> {
        let mut parts = Vec::new();
        for index in 0..node.input.len() {
            parts.push(self.real(node, index)?);
        }
        let Some((first, _)) = parts.first() else { return Err("joins nothing".to_owned()) };
        let rank = first.shape.len();
        let axis = int(node, "axis", 0);
        let axis = if axis < 0 { axis + rank as i64 + 1 } else { axis };
        if axis != 1 || rank == 0 {
            return Err(format!("joins along axis {axis}"));
        }
        if parts.iter().any(|(part, _)| part.shape.len() != rank || part.shape[1..] != first.shape[1..]) {
            return Err("joins parts of different shapes".to_owned());
        }
        let mut shape = first.shape.clone();
        shape[0] = parts.iter().map(|(part, _)| part.shape[0]).sum();
        let image = rank > 1 && shape[1..].iter().product::<usize>() > 1;
        let mut aligned = Vec::new();
        for (part, of) in parts {
            let part = if image { self.channels_last(part)? } else { self.plain(part)? };
            aligned.push((part, of));
        }
        Ok(Pending::known(Kind::Concat(aligned.into()), shape))
    }

    pub(super) fn softmax(&mut self, node: &NodeProto) -> Result<Known, Refusal> {
        let known = self.get(node, 0)?;
        let tensor = self.float(known)?;
        let tensor = self.plain(tensor)?;
        let rank = tensor.shape.len() as i64 + 1;
        let axis = int(node, "axis", if self.opset >= 13 { -1 } else { 1 });
        let axis = if axis < 0 { axis + rank } else { axis };
        // Before operator set 13 all dimensions from the axis on were one.
        if (axis != rank - 1 || axis == 0) && !(self.opset < 13 && axis == 1) {
            return Err(format!("is over axis {axis} of {rank}"));
        }
        let width = if self.opset < 13 { tensor.len() } else { tensor.shape.last().copied().unwrap_or(1) };
        if self.opset < 13 && axis != 1 {
            return Err("is over inner dimensions in an old operator set".to_owned());
        }
        let id = self.push(Step::Softmax { from: tensor.id, width }, tensor.len(), true)?;
        Ok(Known::Float(Tensor { id, ..tensor }))
    }
}

/// The values that codes stand for.
fn decoded(affine: Affine) -> impl Iterator<Item = f32> {
    (0..256).map(move |code| (code - affine.zero) as f32 * affine.scale)
}

fn apply(
    node: &NodeProto,
    bounds: Option<(f32, f32)>,
    tensor: Tensor,
    values: impl Iterator<Item = f32>,
) -> Result<Known, Refusal> {
    let function = |value: f32| match bounds {
        Some((low, high)) => value.max(low).min(high),
        None => calculate(node, value),
    };
    let values: Rc<[f32]> = values.map(function).collect();
    let shape = tensor.shape.clone();
    Ok(Pending::known(Kind::Function(tensor, values), shape))
}

/// ONNX's definitions, with their defaults.
fn calculate(node: &NodeProto, x: f32) -> f32 {
    match node.op_type.as_str() {
        "HardSwish" => x * (x / 6.0 + 0.5).clamp(0.0, 1.0),
        "HardSigmoid" => (float(node, "alpha", 0.2) * x + float(node, "beta", 0.5)).clamp(0.0, 1.0),
        "Sigmoid" => 1.0 / (1.0 + (-x).exp()),
        "Tanh" => x.tanh(),
        "LeakyRelu" if x < 0.0 => float(node, "alpha", 0.01) * x,
        "Elu" if x < 0.0 => float(node, "alpha", 1.0) * (x.exp() - 1.0),
        "Abs" => x.abs(),
        "Neg" => -x,
        "Exp" => x.exp(),
        "Sqrt" => x.sqrt(),
        "Softplus" => x.max(0.0) + (-x.abs()).exp().ln_1p(),
        _ => x,
    }
}

fn calculated(operator: &str, a: f32, b: f32) -> f32 {
    match operator {
        "Add" => a + b,
        "Sub" => a - b,
        "Mul" => a * b,
        _ => a / b,
    }
}

fn with_constant(known: Known, with: impl Fn(f32) -> f32) -> Result<Known, Refusal> {
    let (tensor, values): (Tensor, Vec<f32>) = match known {
        Known::Real(tensor, affine) => (tensor, decoded(affine).map(with).collect()),
        Known::Pending(Pending { kind: Kind::Function(tensor, values), .. }) => {
            (tensor, values.iter().copied().map(with).collect())
        }
        _ => return Err("its operand is not quantized".to_owned()),
    };
    let shape = tensor.shape.clone();
    Ok(Pending::known(Kind::Function(tensor, values.into()), shape))
}

/// The value of a constant of one element whose shape cannot widen that of its partner, which has so many dimensions.
fn scalar(known: &Known, partner: usize) -> Option<f32> {
    match known {
        _ if rank(known) > partner => None,
        Known::Constant(constant) if constant.len() == 1 => constant.floats().map(|values| values[0]),
        Known::Weights(weights) if weights.len() == 1 => weights.floats().first().copied(),
        _ => None,
    }
}
