//! Stores waiting results: the step that computes them, with bias, scales, zero points and clamp worked out.
//! What waits, and why, is decided by the recognisers.

use super::graph::{Builder, Refusal};
use super::kernels::depthwise::Filters;
use super::kernels::elementwise::Affine;
use super::kernels::{self, Isa, Range, Weights};
use super::program::Step;
use super::steps::{AveragePool, Concat, Conv, Depthwise, Output, Packed, Permute, Product, Sum, Winograd};
use super::value::{Kind, Known, Linear, Pending, Tensor};

impl Builder {
    /// Stores a waiting result as codes.
    pub(super) fn store(&mut self, pending: Pending, to: Affine) -> Result<Tensor, Refusal> {
        let range = clamped(to, pending.low, pending.high);
        let shape = pending.shape;
        let len = elements(&shape)?;
        let (step, order) = match pending.kind {
            Kind::Linear(linear) => {
                let order = linear_order(&linear, &shape);
                (self.linear_step(&linear, Output::Codes(range), to.scale)?, order)
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
                self.reserve(parts.len().saturating_mul(Concat::BYTES_OF_PART))?;
                let concat = Concat::new(parts.iter().map(|(part, of)| (wide(part), table(*of))));
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
                let step = self.linear_step(&linear, Output::Floats(Range { zero: 0, low, high }), 1.0)?;
                let id = self.push(step, elements(&shape)?, true)?;
                Ok(Tensor { id, shape, order })
            }
            Known::Pending(_) => Err("its result is read in float".to_owned()),
            Known::Codes(..) => Err("integers are read as they are".to_owned()),
            Known::Constant(_) | Known::Weights(_) => Err("a constant is read as a value".to_owned()),
        }
    }

    fn linear_step(&mut self, linear: &Linear, output: Output, out_scale: f32) -> Result<Step, Refusal> {
        let Linear { x, input, window, groups, depth, scales, .. } = linear;
        let (columns, each) = (scales.len(), scales.len() / groups);
        let codes = match output {
            Output::Codes(range) => Some(range),
            Output::Floats(_) => None,
        };
        let depthwise = codes.filter(|_| *groups == window.c && each == 1 && *groups > 1);
        // Where bytes are multiplied as they are, Winograd's fewer products of 16 bits take longer.
        let isa = Isa::detect();
        let narrow = |column: usize| (0..*depth).all(|k| i8::try_from(linear.weight(column, k)).is_ok());
        let winograd = codes.filter(|_| *groups == 1 && Winograd::gains(window, columns));
        let winograd = winograd.filter(|_| !(isa.multiplies_bytes() && (0..columns).all(narrow)));
        self.reserve(match (depthwise, winograd) {
            (Some(_), _) => Filters::packed_bytes(columns, window.taps()),
            (_, Some(_)) => Winograd::packed_bytes(window, columns),
            _ => groups.saturating_mul(size_of::<Packed>() + Weights::packed_bytes(each, *depth)),
        })?;
        let folded = folded(linear)?;
        let multiplier: Vec<f32> = scales.iter().map(|scale| input.scale * scale / out_scale).collect();
        if !multiplier.iter().all(|multiplier| multiplier.is_finite()) {
            return Err("its scales are too far apart".to_owned());
        }
        let (from, padding) = (x.id, input.zero as u8);
        let at = |column: usize, k: usize| linear.weight(column, k) as i16;
        if let Some(range) = depthwise {
            let filters = Filters::pack(isa, columns, window.kernel, at, &folded, &multiplier);
            return Ok(Step::Depthwise {
                from,
                conv: Box::new(Depthwise { window: *window, filters, padding, range }),
            });
        }
        if let Some(range) = winograd
            && let Some(conv) = Winograd::new(*window, at, &folded, &multiplier, padding, range)
        {
            return Ok(Step::Winograd { from, conv: Box::new(conv) });
        }
        let groups = (0..*groups).map(|group| {
            let part = group * each..(group + 1) * each;
            let at = |column: usize, k: usize| at(group * each + column, k);
            Packed::pack(isa, each, *depth, at, &folded[part.clone()], &multiplier[part])
        });
        let groups = groups.collect();
        Ok(Step::Conv { from, conv: Box::new(Conv { window: *window, groups, padding, output }) })
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

/// Each column's bias with the share of the input's zero point taken out. Refused: weights of more than 8 bits and sums of
/// more than 32.
fn folded(linear: &Linear) -> Result<Vec<i32>, Refusal> {
    let zero = i64::from(linear.input.zero);
    let column = |(column, bias): (usize, &i64)| {
        let (mut sum, mut reach) = (0i64, 0i64);
        for k in 0..linear.depth {
            let weight = linear.weight(column, k);
            if weight.abs() > 255 {
                return Err("its weights are not 8 bits wide".to_owned());
            }
            sum += weight;
            reach += weight.abs() * 255;
        }
        let bias = bias.checked_sub(zero * sum).and_then(|bias| i32::try_from(bias).ok());
        let bias = bias.ok_or("its bias exceeds 32 bits")?;
        match i64::from(bias).abs() + reach <= i64::from(i32::MAX) {
            true => Ok(bias),
            false => Err("its sums may exceed 32 bits".to_owned()),
        }
    };
    linear.bias.iter().enumerate().map(column).collect()
}

/// Number of elements of a shape; `None` beyond what any value may have.
fn elements(shape: &[usize]) -> Result<usize, Refusal> {
    let len = shape.iter().try_fold(1usize, |len, &dim| len.checked_mul(dim));
    len.ok_or_else(|| format!("gives a value of the shape {shape:?}"))
}
