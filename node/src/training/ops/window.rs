//! The sliding window that convolution and pooling share: kernel, strides, dilations, padding, output size.
//! What happens inside a window is in `convolution` and `pooling`.

use super::super::TrainingError;
use super::super::node::Node;

/// Most that a kernel size, stride, dilation or padding may be; with it no size computation can overflow.
const LIMIT: i64 = 1 << 16;

/// A window over the spatial axes; every list has one entry an axis.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Window {
    pub kernel: Vec<usize>,
    pub strides: Vec<usize>,
    pub dilations: Vec<usize>,
    /// Padding before and after each axis.
    pub pads: Vec<(usize, usize)>,
    pub ceil_mode: bool,
}

impl Window {
    /// The attributes that [`Window::read`] reads.
    pub(super) const ATTRIBUTES: [&'static str; 6] =
        ["kernel_shape", "strides", "dilations", "pads", "auto_pad", "ceil_mode"];

    /// Reads a node's window over axes of these sizes. `weight` is the kernel's size where a weight tells it.
    pub(super) fn read(node: &Node<'_>, spatial: &[usize], weight: Option<&[usize]>) -> Result<Window, TrainingError> {
        let rank = spatial.len();
        let kernel = match (sizes(node, "kernel_shape", rank, 1)?, weight) {
            (None, None) => return Err(node.error("it has no kernel_shape")),
            (Some(kernel), Some(weight)) if kernel != weight => {
                return Err(node.error(format!("its kernel_shape {kernel:?} differs from its weight's {weight:?}")));
            }
            (Some(kernel), _) => kernel,
            (None, Some(weight)) => weight.to_vec(),
        };
        if kernel.iter().any(|&size| size == 0 || size > LIMIT as usize) {
            return Err(node.error(format!("its kernel_shape {kernel:?} is out of range")));
        }
        let strides = sizes(node, "strides", rank, 1)?.unwrap_or_else(|| vec![1; rank]);
        let dilations = sizes(node, "dilations", rank, 1)?.unwrap_or_else(|| vec![1; rank]);
        let ceil_mode = node.flag("ceil_mode", false)?;
        let mut window = Window { kernel, strides, dilations, pads: vec![(0, 0); rank], ceil_mode };
        window.pads = match node.string("auto_pad", "NOTSET")? {
            "NOTSET" => match sizes(node, "pads", 2 * rank, 0)? {
                None => window.pads,
                Some(pads) => {
                    let (begin, end) = pads.split_at(rank);
                    begin.iter().copied().zip(end.iter().copied()).collect()
                }
            },
            "VALID" => window.pads,
            "SAME_UPPER" => window.same(spatial).map(|total| (total / 2, total - total / 2)).collect(),
            "SAME_LOWER" => window.same(spatial).map(|total| (total - total / 2, total / 2)).collect(),
            other => return Err(node.error(format!("its auto_pad {other:?} is unknown"))),
        };
        Ok(window)
    }

    /// Size of the output along each axis, as ONNX defines it; with `ceil_mode` a last window that would start in the
    /// padding behind the input is dropped, as PyTorch and ONNX from operator set 19 on do.
    pub(super) fn output(&self, node: &Node<'_>, spatial: &[usize]) -> Result<Vec<usize>, TrainingError> {
        let mut output = Vec::with_capacity(spatial.len());
        for ((axis, &size), (&stride, &(begin, end))) in
            spatial.iter().enumerate().zip(self.strides.iter().zip(&self.pads))
        {
            let extent = self.extent(axis);
            let padded = size + begin + end;
            let Some(room) = padded.checked_sub(extent) else {
                return Err(node.error(format!("its window of {extent} does not fit into {padded} (axis {axis})")));
            };
            let mut count = if self.ceil_mode { room.div_ceil(stride) } else { room / stride } + 1;
            if self.ceil_mode && (count - 1) * stride >= size + begin {
                count -= 1;
            }
            output.push(count);
        }
        Ok(output)
    }

    /// The window of a transposed convolution; what is added behind each axis; and where along the whole output the
    /// wanted part begins and how long it is. (ONNX, ConvTranspose: whole = stride · (size − 1) + extent + more.)
    #[allow(clippy::type_complexity)]
    pub(super) fn transposed(
        node: &Node<'_>,
        spatial: &[usize],
        weight: &[usize],
    ) -> Result<(Window, Vec<usize>, Vec<(usize, usize)>), TrainingError> {
        let rank = spatial.len();
        let mut window = Window::read(node, spatial, Some(weight))?;
        let mut more = sizes(node, "output_padding", rank, 0)?.unwrap_or_else(|| vec![0; rank]);
        let wanted = sizes(node, "output_shape", rank, 1)?;
        let padding = node.string("auto_pad", "NOTSET")?;
        let mut cuts = Vec::with_capacity(rank);
        for (axis, &size) in spatial.iter().enumerate() {
            let at = |list: &[usize]| list.get(axis).copied().unwrap_or(1);
            let extent = window.extent(axis);
            let whole = at(&window.strides) * (size - 1) + extent + more.get(axis).copied().unwrap_or(0);
            let target = match (&wanted, padding.starts_with("SAME")) {
                (Some(wanted), _) => Some(at(wanted)),
                (None, true) => Some(size * at(&window.strides)),
                (None, false) => None,
            };
            let (begin, size) = match target {
                Some(target) => {
                    if let (Some(missing), Some(more)) = (target.checked_sub(whole), more.get_mut(axis)) {
                        *more += missing;
                    }
                    let total = whole.saturating_sub(target);
                    // The odd one goes to the end for SAME_UPPER, and to the beginning otherwise.
                    (if padding == "SAME_UPPER" { total / 2 } else { total - total / 2 }, target)
                }
                None => {
                    let (begin, end) = window.pads.get(axis).copied().unwrap_or((0, 0));
                    let size = whole.checked_sub(begin + end).filter(|&size| size > 0);
                    (begin, size.ok_or_else(|| node.error(format!("its pads leave nothing of axis {axis}")))?)
                }
            };
            cuts.push((begin, size));
        }
        window.pads = vec![(0, 0); rank];
        Ok((window, more, cuts))
    }

    /// What the window spans along an axis, dilation included.
    pub(super) fn extent(&self, axis: usize) -> usize {
        let kernel = self.kernel.get(axis).copied().unwrap_or(1);
        let dilation = self.dilations.get(axis).copied().unwrap_or(1);
        dilation * (kernel - 1) + 1
    }

    /// The padding that makes the output ceil(size / stride) along each axis.
    fn same<'w>(&'w self, spatial: &'w [usize]) -> impl Iterator<Item = usize> + 'w {
        spatial.iter().zip(&self.strides).enumerate().map(|(axis, (&size, &stride))| {
            ((size.div_ceil(stride).saturating_sub(1)) * stride + self.extent(axis)).saturating_sub(size)
        })
    }
}

/// A list of `len` numbers from `least` to [`LIMIT`], if given.
fn sizes(node: &Node<'_>, name: &str, len: usize, least: i64) -> Result<Option<Vec<usize>>, TrainingError> {
    let Some(values) = node.ints(name)? else { return Ok(None) };
    if values.len() != len {
        return Err(node.error(format!("its {name} has {} entries, not {len}", values.len())));
    }
    if !values.iter().all(|value| (least..=LIMIT).contains(value)) {
        return Err(node.error(format!("its {name} {values:?} is out of range ({least} to {LIMIT})")));
    }
    Ok(Some(values.iter().map(|&value| value as usize).collect()))
}
