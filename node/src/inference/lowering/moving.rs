//! Recognises operators that move or pool values: Reshape and its kin, Transpose, MaxPool, the averages.
//! How a waiting result is stored is in `emit`.

use fedge_models::pb::NodeProto;

use super::graph::{Builder, Refusal, int, ints};
use super::linear::{is_image, window};
use super::program::Step;
use super::steps::{MaxPool, Window};
use super::value::{Kind, Known, Pending, Tensor};

/// Most dimensions of a sample, as of a constant: `Permute` recurses over them, and each value has a copy of its own.
const MAX_RANK: usize = 16;

impl Builder {
    /// Applies `change` to a stored tensor of codes or floats.
    fn moved(
        &mut self,
        known: Known,
        change: impl FnOnce(&mut Builder, Tensor) -> Result<Tensor, Refusal>,
    ) -> Result<Known, Refusal> {
        Ok(match known {
            Known::Codes(tensor, signed) => Known::Codes(change(self, tensor)?, signed),
            Known::Real(tensor, affine) => Known::Real(change(self, tensor)?, affine),
            pending @ (Known::Float(_) | Known::Pending(_)) => {
                let tensor = self.float(pending)?;
                Known::Float(change(self, tensor)?)
            }
            Known::Constant(_) | Known::Weights(_) => return Err("moves a constant".to_owned()),
        })
    }

    /// Reshape, Flatten, Squeeze and Unsqueeze: the batch stays in front, the order of the values stays.
    pub(super) fn reshape(&mut self, node: &NodeProto) -> Result<Known, Refusal> {
        let known = self.get(node, 0)?;
        let target = match node.op_type.as_str() {
            "Flatten" => (int(node, "axis", 1) == 1).then_some(vec![0, -1]).ok_or("flattens the batch")?,
            "Reshape" => self.list(node, 1, "shape")?,
            _ => Vec::new(),
        };
        let axes = if target.is_empty() { self.list(node, 1, "axes").unwrap_or_default() } else { Vec::new() };
        if target.len().max(axes.len()) > MAX_RANK {
            return Err(format!("gives more than {MAX_RANK} dimensions"));
        }
        let (operator, zero_copies) = (node.op_type.clone(), int(node, "allowzero", 0) == 0);
        self.moved(known, |_, tensor| {
            let shape = match operator.as_str() {
                "Squeeze" => squeezed(&tensor.shape, &axes),
                "Unsqueeze" => unsqueezed(&tensor.shape, &axes),
                _ => reshaped(&tensor.shape, &target, zero_copies),
            };
            let shape = shape.ok_or("changes the batch, or its shape is not constant")?;
            if shape.len() > MAX_RANK {
                return Err(format!("gives more than {MAX_RANK} dimensions"));
            }
            Ok(Tensor { shape, ..tensor })
        })
    }

    /// An int64 list given as an input or, in older operator sets, as an attribute.
    fn list(&self, node: &NodeProto, index: usize, name: &str) -> Result<Vec<i64>, Refusal> {
        match self.optional(node, index)? {
            None => Ok(ints(node, name).to_vec()),
            Some(Known::Constant(constant)) => {
                constant.i64s().map(<[i64]>::to_vec).ok_or_else(|| format!("its {name} has another type"))
            }
            Some(_) => Err(format!("its {name} is not constant")),
        }
    }

    pub(super) fn transpose(&mut self, node: &NodeProto) -> Result<Known, Refusal> {
        let known = self.get(node, 0)?;
        let given = ints(node, "perm").to_vec();
        self.moved(known, |builder, tensor| {
            let tensor = builder.plain(tensor)?;
            let rank = tensor.shape.len();
            if rank > MAX_RANK {
                return Err(format!("is over {rank} dimensions"));
            }
            let permutation: Vec<usize> = given.iter().filter_map(|&axis| usize::try_from(axis).ok()).collect();
            let mut sorted = permutation.clone();
            sorted.sort_unstable();
            if !sorted.into_iter().eq(0..=rank) || permutation[0] != 0 {
                return Err("moves the batch".to_owned());
            }
            let strides: Vec<usize> = (0..rank).map(|axis| tensor.shape[axis + 1..].iter().product()).collect();
            let dims: Vec<_> =
                permutation[1..].iter().map(|&axis| (tensor.shape[axis - 1], strides[axis - 1])).collect();
            let shape = dims.iter().map(|dim| dim.0).collect();
            Ok(Tensor { shape, ..builder.permuted(&tensor, dims, None)? })
        })
    }

    pub(super) fn max_pool(&mut self, node: &NodeProto) -> Result<Known, Refusal> {
        if node.output.iter().skip(1).any(|output| !output.is_empty()) || int(node, "storage_order", 0) != 0 {
            return Err("gives indices too".to_owned());
        }
        let known = self.get(node, 0)?;
        if matches!(known, Known::Float(_) | Known::Pending(_)) {
            return Err("its input is not quantized".to_owned());
        }
        self.moved(known, |builder, tensor| {
            let (window, tensor) = builder.pool(node, tensor)?;
            let (c, s) = (window.c, window.pixels());
            let step = Step::MaxPool { from: tensor.id, pool: MaxPool { window } };
            let id = builder.push(step, c * s, false)?;
            let order = (c > 1 && s > 1).then_some((c, s));
            Ok(Tensor { id, shape: pooled(&tensor.shape, &window), order })
        })
    }

    pub(super) fn average_pool(&mut self, node: &NodeProto) -> Result<Known, Refusal> {
        let (tensor, input) = self.real(node, 0)?;
        if int(node, "ceil_mode", 0) != 0 && int(node, "count_include_pad", 0) != 0 {
            return Err("counts padding and rounds up".to_owned());
        }
        let (window, x) = self.pool(node, tensor)?;
        let shape = pooled(&x.shape, &window);
        let count_padding = int(node, "count_include_pad", 0) != 0;
        Ok(Pending::known(Kind::Average { x, input, window, count_padding }, shape))
    }

    fn pool(&mut self, node: &NodeProto, tensor: Tensor) -> Result<(Window, Tensor), Refusal> {
        if !is_image(&tensor) {
            return Err(format!("pools {:?}", tensor.shape));
        }
        let tensor = self.channels_last(tensor)?;
        let kernel: Vec<usize> = ints(node, "kernel_shape").iter().filter_map(|&v| usize::try_from(v).ok()).collect();
        Ok((window(node, &tensor.shape, &kernel, int(node, "ceil_mode", 0) != 0)?, tensor))
    }

    /// GlobalAveragePool, and ReduceMean over all but batch and channels.
    pub(super) fn global_average(&mut self, node: &NodeProto) -> Result<Known, Refusal> {
        let (tensor, input) = self.real(node, 0)?;
        if !is_image(&tensor) {
            return Err(format!("averages {:?}", tensor.shape));
        }
        let rank = tensor.shape.len();
        let mut keep = true;
        if node.op_type == "ReduceMean" {
            let mut axes: Vec<i64> = self.list(node, 1, "axes")?;
            axes.iter_mut().filter(|axis| **axis < 0).for_each(|axis| *axis += rank as i64 + 1);
            axes.sort_unstable();
            if !axes.into_iter().eq(2..=rank as i64) {
                return Err("averages other dimensions than the image's".to_owned());
            }
            keep = int(node, "keepdims", 1) != 0;
        }
        let x = self.channels_last(tensor)?;
        let (c, s) = x.image();
        let ones = [1, 1];
        let window = Window { h: 1, w: s, c, kernel: [1, s], stride: ones, dilation: ones, pad: [0, 0], out: ones };
        let mut shape = vec![c];
        shape.resize(if keep { rank } else { 1 }, 1);
        Ok(Pending::known(Kind::Average { x, input, window, count_padding: false }, shape))
    }
}

fn pooled(shape: &[usize], window: &Window) -> Vec<usize> {
    let mut pooled = vec![window.c];
    pooled.extend(&window.out[3 - shape.len()..]);
    pooled
}

/// ONNX's Reshape of a sample whose batch stays in front; `None` where it does not, or the sizes differ.
fn reshaped(shape: &[usize], target: &[i64], zero_copies: bool) -> Option<Vec<usize>> {
    let (first, rest) = target.split_first()?;
    let len: usize = shape.iter().product();
    let mut out = Vec::with_capacity(rest.len());
    for (index, &dim) in rest.iter().enumerate() {
        out.push(match dim {
            0 if zero_copies => *shape.get(index)?,
            -1 => 0,
            dim => usize::try_from(dim).ok().filter(|&dim| dim > 0)?,
        });
    }
    let known = out.iter().filter(|&&dim| dim > 0).try_fold(1usize, |product, &dim| product.checked_mul(dim))?;
    match (first, rest.iter().filter(|&&dim| dim == -1).count()) {
        // A fixed 1 would be wrong for other batches, but a file whose batch is 1 says it.
        (-1, 0) | (0 | 1, 0) if known == len => Some(out),
        (0 | 1, 1) if known > 0 && len.is_multiple_of(known) => {
            out.iter_mut().filter(|dim| **dim == 0).for_each(|dim| *dim = len / known);
            Some(out)
        }
        _ => None,
    }
}

fn squeezed(shape: &[usize], axes: &[i64]) -> Option<Vec<usize>> {
    let rank = shape.len() as i64 + 1;
    let axes: Vec<i64> = axes.iter().map(|&axis| if axis < 0 { axis + rank } else { axis }).collect();
    let fits = !axes.is_empty() && axes.iter().all(|&axis| (1..rank).contains(&axis) && shape[axis as usize - 1] == 1);
    let kept = shape.iter().enumerate().filter(|(index, _)| !axes.contains(&(*index as i64 + 1)));
    fits.then(|| kept.map(|(_, &dim)| dim).collect())
}

fn unsqueezed(shape: &[usize], axes: &[i64]) -> Option<Vec<usize>> {
    let rank = (shape.len() + 1 + axes.len()) as i64;
    let mut axes: Vec<i64> = axes.iter().map(|&axis| if axis < 0 { axis + rank } else { axis }).collect();
    axes.sort_unstable();
    axes.dedup();
    let fits = !axes.is_empty() && axes.iter().all(|axis| (1..rank).contains(axis));
    if !fits || axes.len() as i64 + shape.len() as i64 + 1 != rank {
        return None;
    }
    let mut out = shape.to_vec();
    for axis in axes {
        out.insert(axis as usize - 1, 1);
    }
    Some(out)
}
