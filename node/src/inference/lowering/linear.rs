//! Recognises Conv, Gemm and MatMul with dequantized inputs and weights.
//! How their result is stored is in `emit`.

use std::rc::Rc;

use fedge_models::pb::NodeProto;

use super::constant::Weights;
use super::graph::{Builder, MAX_LEN, Refusal, float, int, ints, text};
use super::kernels::elementwise::Affine;
use super::steps::Window;
use super::value::{Kind, Known, Layout, Linear, Pending, Tensor};

/// What a waiting product holds for each column, its bias and scales, while they are worked out twice.
const BYTES_OF_COLUMN: usize = 32;

impl Builder {
    pub(super) fn conv(&mut self, node: &NodeProto) -> Result<Known, Refusal> {
        let (x, input) = self.real(node, 0)?;
        let weights = self.weights(node)?;
        let rank = x.shape.len();
        let shape = weights.shape();
        if !(2..=3).contains(&rank) || shape.len() != rank + 1 {
            return Err(format!("is over {} dimensions", shape.len()));
        }
        let x = self.channels_last(x)?;
        let (columns, channels) = (shape[0], shape[1]);
        let groups = usize::try_from(int(node, "group", 1)).unwrap_or(0);
        let window = window(node, &x.shape, &shape[2..], false)?;
        if groups == 0 || columns == 0 || columns % groups != 0 || channels.checked_mul(groups) != Some(window.c) {
            return Err("its groups do not fit its channels".to_owned());
        }
        let (depth, layout) = (channels * window.taps(), Layout::Filters { channels, taps: window.taps() });
        let scales = self.scales(&weights, columns, 0)?;
        let bias = self.bias(node, 1.0, input, &scales)?;
        let mut shape = vec![columns];
        shape.extend(&window.out[3 - rank..]);
        let linear = Linear { x, input, window, groups, weights, layout, image: true, depth, scales, bias };
        Ok(Pending::known(Kind::Linear(Rc::new(linear)), shape))
    }

    pub(super) fn gemm(&mut self, node: &NodeProto) -> Result<Known, Refusal> {
        if int(node, "transA", 0) != 0 {
            return Err("transposes its input".to_owned());
        }
        self.product(node, int(node, "transB", 0) != 0, float(node, "alpha", 1.0), float(node, "beta", 1.0))
    }

    pub(super) fn matmul(&mut self, node: &NodeProto) -> Result<Known, Refusal> {
        self.product(node, false, 1.0, 1.0)
    }

    fn product(&mut self, node: &NodeProto, transposed: bool, alpha: f32, beta: f32) -> Result<Known, Refusal> {
        let (x, input) = self.real(node, 0)?;
        let weights = self.weights(node)?;
        let &[first, second] = weights.shape() else { return Err("its weights are no matrix".to_owned()) };
        let (depth, columns) = if transposed { (second, first) } else { (first, second) };
        let x = if x.shape.len() == 1 { x } else { self.plain(x)? };
        let rows = x.len() / depth.max(1);
        if x.shape.last() != Some(&depth) || columns == 0 || depth == 0 || rows == 0 {
            return Err(format!("multiplies {:?} by {:?}", x.shape, weights.shape()));
        }
        let layout = if transposed { Layout::Rows(x.order) } else { Layout::Columns(x.order) };
        let mut scales = self.scales(&weights, columns, usize::from(!transposed))?;
        scales.iter_mut().for_each(|scale| *scale *= alpha);
        if !scales.iter().all(|scale| scale.is_normal()) {
            return Err("its weights' scale vanishes".to_owned());
        }
        let bias = self.bias(node, beta, input, &scales)?;
        let mut shape = x.shape.clone();
        if let Some(last) = shape.last_mut() {
            *last = columns;
        }
        let ones = [1, 1];
        let window =
            Window { h: 1, w: rows, c: depth, kernel: ones, stride: ones, dilation: ones, pad: [0, 0], out: [1, rows] };
        let linear = Linear { x, input, window, groups: 1, weights, layout, image: false, depth, scales, bias };
        Ok(Pending::known(Kind::Linear(Rc::new(linear)), shape))
    }

    fn weights(&self, node: &NodeProto) -> Result<Rc<Weights>, Refusal> {
        match self.get(node, 1)? {
            Known::Weights(weights) => Ok(weights),
            _ => Err("its weights are no quantized constant".to_owned()),
        }
    }

    /// The bias in steps of input scale × weight scale.
    fn bias(&self, node: &NodeProto, beta: f32, input: Affine, scales: &[f32]) -> Result<Vec<i64>, Refusal> {
        let Some(known) = self.optional(node, 2)? else { return Ok(vec![0; scales.len()]) };
        bias_steps(&known, beta, input, scales)
    }

    /// One scale for each column.
    fn scales(&mut self, weights: &Weights, columns: usize, axis: usize) -> Result<Vec<f32>, Refusal> {
        self.reserve(columns.saturating_mul(BYTES_OF_COLUMN))?;
        match weights.scales() {
            [one] => Ok(vec![*one; columns]),
            several if several.len() == columns && weights.axis() == axis => Ok(several.to_vec()),
            _ => Err("its weights' scales do not follow the output's channels".to_owned()),
        }
    }

    /// Where a matrix product waits, adds a constant of one value a column to its bias.
    pub(super) fn with_bias(&mut self, pending: &Pending, constant: &Known) -> Result<Known, Refusal> {
        let refused = || "adds what is neither quantized nor a bias".to_owned();
        let Kind::Linear(linear) = &pending.kind else { return Err(refused()) };
        let bounded = pending.low != f32::NEG_INFINITY || pending.high != f32::INFINITY;
        // A constant of more dimensions would widen the result.
        if linear.image || bounded || rank(constant) > pending.shape.len() + 1 {
            return Err(refused());
        }
        self.reserve(linear.scales.len().saturating_mul(BYTES_OF_COLUMN))?;
        let mut linear = Linear::clone(linear);
        let more = bias_steps(constant, 1.0, linear.input, &linear.scales)?;
        linear.bias.iter_mut().zip(more).for_each(|(bias, more)| *bias = bias.saturating_add(more));
        Ok(Known::Pending(Pending { kind: Kind::Linear(Rc::new(linear)), ..pending.clone() }))
    }
}

/// Dimensions of a value, the batch included.
pub(super) fn rank(known: &Known) -> usize {
    match known {
        Known::Constant(constant) => constant.shape.len(),
        Known::Weights(weights) => weights.shape().len(),
        Known::Codes(tensor, _) | Known::Real(tensor, _) | Known::Float(tensor) => tensor.shape.len() + 1,
        Known::Pending(pending) => pending.shape.len() + 1,
    }
}

/// A bias of one value a column in steps of input scale × weight scale.
pub(super) fn bias_steps(known: &Known, beta: f32, input: Affine, scales: &[f32]) -> Result<Vec<i64>, Refusal> {
    let columns = scales.len();
    let shape = match known {
        Known::Constant(constant) => &*constant.shape,
        Known::Weights(weights) => weights.shape(),
        _ => return Err("its bias is not constant".to_owned()),
    };
    if shape.iter().product::<usize>() != 1 && shape.last() != Some(&columns) {
        return Err(format!("its bias of the shape {shape:?} does not lie along the {columns} columns"));
    }
    let steps: Vec<f32> = scales.iter().map(|scale| input.scale * scale).collect();
    let rounded = |values: &[f32]| -> Vec<i64> {
        let values = values.iter().cycle().zip(&steps);
        values.map(|(value, step)| (f64::from(*value) * f64::from(beta) / f64::from(*step)).round() as i64).collect()
    };
    let values = match known {
        Known::Constant(constant) => constant.floats().ok_or("its bias has another type")?.to_vec(),
        Known::Weights(weights) => {
            let same = |(index, scale): (usize, &f32)| *scale == steps[index % columns];
            let whole = weights.len() == columns && beta == 1.0;
            let matches = weights.scales().len() == columns || steps.iter().all(|step| *step == steps[0]);
            if whole && matches && weights.scales().iter().enumerate().all(same) {
                return Ok((0..columns).map(|index| weights.steps(index, index)).collect());
            }
            weights.floats()
        }
        _ => return Err("its bias is not constant".to_owned()),
    };
    if values.len() != columns && values.len() != 1 {
        return Err(format!("its bias has {} values for {columns} columns", values.len()));
    }
    Ok(rounded(&values))
}

/// The window of a convolution or pool over an image `[c, h, w]` or `[c, w]`.
pub(super) fn window(node: &NodeProto, shape: &[usize], kernel: &[usize], ceil: bool) -> Result<Window, Refusal> {
    let spatial = shape.len() - 1;
    let list = |name: &str, count: usize, default: i64| -> Result<Vec<usize>, Refusal> {
        let given = ints(node, name);
        let given = if given.is_empty() { vec![default; count] } else { given.to_vec() };
        let list: Vec<usize> =
            given.iter().filter_map(|&v| usize::try_from(v).ok().filter(|&v| v <= 1 << 20)).collect();
        if list.len() == count { Ok(list) } else { Err(format!("its {name} is {given:?}")) }
    };
    let (strides, dilations) = (list("strides", spatial, 1)?, list("dilations", spatial, 1)?);
    let mut pads = list("pads", 2 * spatial, 0)?;
    if kernel.len() != spatial || strides.contains(&0) || dilations.contains(&0) || kernel.contains(&0) {
        return Err("its kernel does not fit its input".to_owned());
    }
    let mut out = vec![0; spatial];
    for axis in 0..spatial {
        let (size, stride) = (shape[axis + 1], strides[axis]);
        let reach = (kernel[axis] - 1).checked_mul(dilations[axis]).filter(|&reach| reach <= 1 << 20);
        let reach = reach.ok_or("its kernel is too large")? + 1;
        match text(node, "auto_pad") {
            b"" | b"NOTSET" => {}
            b"VALID" => (pads[axis], pads[axis + spatial]) = (0, 0),
            same => {
                let total = ((size.div_ceil(stride) - 1) * stride + reach).saturating_sub(size);
                let small = total / 2;
                let upper = same == b"SAME_UPPER";
                (pads[axis], pads[axis + spatial]) =
                    if upper { (small, total - small) } else { (total - small, small) };
            }
        }
        let padded = size + pads[axis] + pads[axis + spatial];
        let free = padded.checked_sub(reach).ok_or("its kernel is larger than its input")?;
        out[axis] = free / stride + 1;
        if ceil && free % stride != 0 && out[axis] * stride < size + pads[axis] {
            out[axis] += 1;
        }
    }
    let two = |list: &[usize], one: usize| if spatial == 1 { [one, list[0]] } else { [list[0], list[1]] };
    let window = Window {
        h: if spatial == 1 { 1 } else { shape[1] },
        w: shape[spatial],
        c: shape[0],
        kernel: two(kernel, 1),
        stride: two(&strides, 1),
        dilation: two(&dilations, 1),
        pad: two(&pads, 0),
        out: two(&out, 1),
    };
    let sizes = [window.out[0], window.out[1], window.kernel[0], window.kernel[1], window.c];
    let size = sizes.iter().try_fold(1usize, |product, &size| product.checked_mul(size));
    match size {
        Some(size) if size <= MAX_LEN << 4 => Ok(window),
        _ => Err("its windows are too large".to_owned()),
    }
}

/// The tensor's shape fits an image `[c, h, w]` or `[c, w]`.
pub(super) fn is_image(tensor: &Tensor) -> bool {
    (2..=3).contains(&tensor.shape.len())
}
