//! Stores waiting results: the step that computes them, with bias, scales, zero points and clamp worked out.
//! What waits, and why, is decided by the recognisers.

use std::rc::Rc;

use super::graph::{Builder, Refusal};
use super::kernels::elementwise::Affine;
use super::kernels::{self, DepthwiseWeights, Range};
use super::program::Step;
use super::steps::{AveragePool, Concat, Conv, Depthwise, Output, Permute, Product, Sum, Winograd};
use super::value::{Kind, Known, Linear, Pending, Tensor};

impl Builder {
    /// Stores a waiting result as codes.
    pub(super) fn store(&mut self, pending: Pending, to: Affine) -> Result<Tensor, Refusal> {
        let range = clamped(to, pending.low, pending.high);
        let shape = pending.shape;
        let len = shape.iter().product();
        let (step, order) = match pending.kind {
            Kind::Linear(linear) => {
                let order = linear_order(&linear, &shape);
                (linear_step(&linear, Output::Codes(range), to.scale)?, order)
            }
            Kind::Sum([(a, of_a), (b, of_b)]) => {
                let over = |of: Affine| Affine { scale: of.scale / to.scale, zero: of.zero };
                let sum = Sum { a: over(of_a), b: over(of_b), range };
                (Step::Sum { a: a.id, b: b.id, sum }, a.order)
            }
            Kind::Product([(a, of_a), (b, of_b)]) => {
                let scale = of_a.scale * of_b.scale / to.scale;
                let product =
                    Product { zero_a: of_a.zero, zero_b: of_b.zero, scale, range, len: a.len(), len_b: b.len() };
                (Step::Product { a: a.id, b: b.id, product }, a.order)
            }
            Kind::Average { x, input, window, count_padding } => {
                if window.taps() > i32::MAX as usize / 255 {
                    return Err("its windows are too large to sum in 32 bits".to_owned());
                }
                let input = Affine { scale: input.scale / to.scale, zero: input.zero };
                let pool = AveragePool { window, input, output: range, count_padding };
                let (c, s) = (window.c, window.pixels());
                (Step::AveragePool { from: x.id, pool }, (c > 1 && s > 1).then_some((c, s)))
            }
            Kind::Concat(parts) => {
                let order = concat_order(&parts, &shape);
                let table = |of: Affine| (of != to || range != to.range()).then(|| recoding(of, to.scale, range));
                let wide = |tensor: &Tensor| if order.is_some() { tensor.image().0 } else { tensor.len() };
                let concat = Concat { parts: parts.iter().map(|(part, of)| (wide(part), table(*of))).collect() };
                (Step::Concat { from: parts.iter().map(|(part, _)| part.id).collect(), concat }, order)
            }
            Kind::Function(x, values) => {
                let mut table = Box::new([0; 256]);
                for (code, value) in table.iter_mut().zip(values.iter()) {
                    *code = kernels::code(value / to.scale, range);
                }
                (Step::Table { from: x.id, table }, x.order)
            }
        };
        let id = self.push(step, len, false)?;
        Ok(Tensor { id, shape, order })
    }

    /// Stores codes in another scale; the same one costs nothing.
    pub(super) fn recode(&mut self, tensor: Tensor, from: Affine, to: Affine) -> Result<Tensor, Refusal> {
        if from == to {
            return Ok(tensor);
        }
        let table = recoding(from, to.scale, to.range());
        let id = self.push(Step::Table { from: tensor.id, table }, tensor.len(), false)?;
        Ok(Tensor { id, ..tensor })
    }

    /// A value as f32.
    pub(super) fn float(&mut self, known: Known) -> Result<Tensor, Refusal> {
        match known {
            Known::Float(tensor) => Ok(tensor),
            Known::Real(tensor, affine) => {
                let id = self.push(Step::Dequantize { from: tensor.id, affine }, tensor.len(), true)?;
                Ok(Tensor { id, ..tensor })
            }
            Known::Pending(Pending { kind: Kind::Linear(linear), shape, low, high }) => {
                let order = linear_order(&linear, &shape);
                let step = linear_step(&linear, Output::Floats(Range { zero: 0, low, high }), 1.0)?;
                let id = self.push(step, shape.iter().product(), true)?;
                Ok(Tensor { id, shape, order })
            }
            Known::Pending(_) => Err("its result is read in float".to_owned()),
            Known::Codes(..) => Err("integers are read as they are".to_owned()),
            Known::Constant(_) | Known::Weights(_) => Err("a constant is read as a value".to_owned()),
        }
    }

    /// The same value in ONNX's order.
    pub(super) fn plain(&mut self, tensor: Tensor) -> Result<Tensor, Refusal> {
        let Some((c, s)) = tensor.order else { return Ok(tensor) };
        self.permuted(&tensor, vec![(c, 1), (s, c)], None)
    }

    /// An image `[c, ...]` with its channels last.
    pub(super) fn channels_last(&mut self, tensor: Tensor) -> Result<Tensor, Refusal> {
        let (c, s) = tensor.image();
        let order = (c > 1 && s > 1).then_some((c, s));
        if tensor.order == order {
            return Ok(tensor);
        }
        let plain = self.plain(tensor)?;
        if order.is_none() { Ok(plain) } else { self.permuted(&plain, vec![(s, 1), (c, s)], order) }
    }

    /// Adds a permutation; the result keeps the tensor's shape.
    pub(super) fn permuted(
        &mut self,
        tensor: &Tensor,
        dims: Vec<(usize, usize)>,
        order: Option<(usize, usize)>,
    ) -> Result<Tensor, Refusal> {
        let float = self.values[tensor.id].float;
        let id = self.push(Step::Permute { from: tensor.id, permute: Permute { dims } }, tensor.len(), float)?;
        Ok(Tensor { id, shape: tensor.shape.clone(), order })
    }
}

/// Codes within a Relu's or Clip's bounds.
fn clamped(to: Affine, low: f32, high: f32) -> Range {
    let all = to.range();
    let high = (high / to.scale).round_ties_even().clamp(all.low, all.high);
    let low = (low / to.scale).round_ties_even().clamp(all.low, all.high);
    Range { zero: to.zero, low: low.min(high), high }
}

fn recoding(from: Affine, scale: f32, range: Range) -> Box<[u8; 256]> {
    let mut table = Box::new([0; 256]);
    for (code, to) in (0i32..).zip(table.iter_mut()) {
        *to = kernels::code((code - from.zero) as f32 * from.scale / scale, range);
    }
    table
}

/// Images come out channels last, matrices in their own order.
fn linear_order(linear: &Linear, shape: &[usize]) -> Option<(usize, usize)> {
    let (columns, pixels) = (linear.scales.len(), linear.window.pixels());
    let image = shape.len() > 1 && shape[0] == columns && shape[1..].iter().product::<usize>() == pixels;
    (image && linear.image && columns > 1 && pixels > 1).then_some((columns, pixels))
}

/// Channels-last parts are joined along their channels, which lie last.
fn concat_order(parts: &[(Tensor, Affine)], shape: &[usize]) -> Option<(usize, usize)> {
    let (c, s): (usize, usize) = (shape.first().copied().unwrap_or(1), shape.iter().skip(1).product());
    (!parts.is_empty() && shape.len() > 1 && c > 1 && s > 1).then_some((c, s))
}

fn linear_step(linear: &Rc<Linear>, output: Output, out_scale: f32) -> Result<Step, Refusal> {
    let Linear { x, input, window, groups, weights, depth, scales, bias, .. } = &**linear;
    let columns = scales.len();
    let mut folded = Vec::with_capacity(columns);
    for (bias, row) in bias.iter().zip(weights.chunks_exact((*depth).max(1))) {
        let sum: i64 = row.iter().map(|&weight| i64::from(weight)).sum();
        let reach: i64 = row.iter().map(|&weight| i64::from(weight).abs()).sum::<i64>() * 255;
        let bias = bias - i64::from(input.zero) * sum;
        if bias.abs().checked_add(reach).is_none_or(|most| most > i64::from(i32::MAX)) {
            return Err("its sums may exceed 32 bits".to_owned());
        }
        folded.push(i32::try_from(bias).map_err(|_| "its bias exceeds 32 bits")?);
    }
    let multiplier: Vec<f32> = scales.iter().map(|scale| input.scale * scale / out_scale).collect();
    if !multiplier.iter().all(|multiplier| multiplier.is_finite()) {
        return Err("its scales are too far apart".to_owned());
    }
    let padding = input.zero as u8;
    let from = x.id;
    if let Output::Codes(range) = output
        && *groups == window.c
        && *groups == columns
        && *groups > 1
    {
        let taps = window.taps();
        let at = |channel: usize, tap: usize| weights[channel * taps + tap];
        let weights = DepthwiseWeights::pack(columns, taps, at, &folded, &multiplier);
        return Ok(Step::Depthwise { from, conv: Box::new(Depthwise { window: *window, weights, padding, range }) });
    }
    if let Output::Codes(range) = output
        && *groups == 1
        && let Some(conv) = Winograd::new(*window, weights, &folded, &multiplier, padding, range)
    {
        return Ok(Step::Winograd { from, conv: Box::new(conv) });
    }
    let each = columns / groups;
    let groups = (0..*groups).map(|group| {
        let part = group * each..(group + 1) * each;
        let at = |column: usize, k: usize| weights[(group * each + column) * depth + k];
        kernels::Weights::pack(each, *depth, at, &folded[part.clone()], &multiplier[part])
    });
    let groups = groups.collect();
    Ok(Step::Conv { from, conv: Box::new(Conv { window: *window, groups, padding, output }) })
}
