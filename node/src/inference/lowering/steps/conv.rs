//! Convolution and matrix multiplication with constant weights: rows are widened into a small panel that stays in
//! cache, then multiplied, scaled, clamped and stored in one go. No im2col of the whole image, no copy for padding.

use super::Window;
use crate::inference::lowering::kernels::{self, Isa, Panel, Range, SLACK, Target, Weights};

/// Bytes of packed rows that stay in the second-level cache beside the weights.
const PANEL_BYTES: usize = 128 << 10;

/// What a convolution writes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::inference::lowering) enum Output {
    /// u8 codes.
    Codes(Range),
    /// Floats within these bounds.
    Floats(Range),
}

/// A convolution, also grouped; a matrix product is one of 1 × 1 over `[h = 1, w = rows, c = depth]`.
#[derive(Clone, Debug)]
pub(in crate::inference::lowering) struct Conv {
    pub window: Window,
    /// One entry a group.
    pub groups: Vec<Weights>,
    /// Code of the padding: the input's zero point, whose contribution the bias takes away again.
    pub padding: u8,
    pub output: Output,
}

/// Results of a batch.
pub(in crate::inference::lowering) enum Results<'r> {
    Codes(&'r mut [u8]),
    Floats(&'r mut [f32]),
}

impl Conv {
    /// Output channels.
    pub(in crate::inference::lowering) fn columns(&self) -> usize {
        self.groups.iter().map(|group| group.columns).sum()
    }

    /// Runs `batch` images. `x` has [`SLACK`] codes behind the last image.
    pub(in crate::inference::lowering) fn run(
        &self,
        isa: Isa,
        x: &[u8],
        batch: usize,
        mut y: Results<'_>,
        scratch: &mut Vec<i16>,
    ) {
        let columns = self.columns();
        let depth = self.window.taps() * self.window.c / self.groups.len().max(1);
        let stride = row_stride(depth);
        let total = batch * self.window.pixels();
        let at_once = (PANEL_BYTES / (2 * stride) / 12 * 12).clamp(12, 1 << 12).min(total.max(1));
        scratch.resize((at_once * stride + SLACK).max(scratch.len()), 0);
        for first in (0..total).step_by(at_once) {
            let rows = at_once.min(total - first);
            let mut column = 0;
            for (group, weights) in self.groups.iter().enumerate() {
                self.pack(isa, x, first, rows, group, stride, scratch);
                let panel = Panel { values: &scratch[..rows * stride], stride, rows };
                let at = first * columns + column;
                let target = match (&mut y, self.output) {
                    (Results::Codes(y), Output::Codes(range)) => Target::Codes(&mut y[at..], range),
                    (Results::Floats(y), Output::Floats(range)) => Target::Floats(&mut y[at..], range),
                    _ => return,
                };
                kernels::multiply(isa, panel, weights, target, columns);
                column += weights.columns;
            }
        }
    }

    /// Widens what `rows` output pixels from `first` on see, in the order kernel row, kernel column, channel.
    #[allow(clippy::too_many_arguments)]
    fn pack(&self, isa: Isa, x: &[u8], first: usize, rows: usize, group: usize, stride: usize, to: &mut [i16]) {
        let window = &self.window;
        let channels = window.c / self.groups.len().max(1);
        let skip = group * channels;
        let depth = window.taps() * channels;
        if window.taps() == 1 && window.pad == [0, 0] && window.stride == [1, 1] {
            for row in 0..rows {
                let from = (first + row) * window.c + skip;
                kernels::widen(isa, &x[from..], channels, &mut to[row * stride..]);
                finish(&mut to[row * stride..], depth);
            }
            return;
        }
        let (pixels, width) = (window.pixels(), window.out[1]);
        let (mut image, mut oy, mut ox) = (first / pixels, first % pixels / width, first % width);
        for row in 0..rows {
            let image_at = image * window.input_len();
            let row_to = &mut to[row * stride..];
            for ky in 0..window.kernel[0] {
                let part = &mut row_to[ky * window.kernel[1] * channels..];
                match window.row(oy, ky) {
                    None => part[..window.kernel[1] * channels].fill(i16::from(self.padding)),
                    Some(iy) => self.pack_line(isa, &x[image_at + iy * window.w * window.c..], ox, skip, part),
                }
            }
            finish(row_to, depth);
            ox += 1;
            if ox == width {
                (ox, oy) = (0, oy + 1);
                if oy == window.out[0] {
                    (oy, image) = (0, image + 1);
                }
            }
        }
    }

    /// One kernel row over one input row.
    fn pack_line(&self, isa: Isa, line: &[u8], ox: usize, skip: usize, to: &mut [i16]) {
        let window = &self.window;
        let channels = window.c / self.groups.len().max(1);
        let left = ox * window.stride[1];
        let whole = window.dilation[1] == 1 && channels == window.c;
        if whole && left >= window.pad[1] && left - window.pad[1] + window.kernel[1] <= window.w {
            let from = (left - window.pad[1]) * channels;
            kernels::widen(isa, &line[from..], window.kernel[1] * channels, to);
            return;
        }
        for kx in 0..window.kernel[1] {
            let to = &mut to[kx * channels..];
            match window.column(ox, kx) {
                None => to[..channels].fill(i16::from(self.padding)),
                Some(ix) => kernels::widen(isa, &line[ix * window.c + skip..], channels, to),
            }
        }
    }

    /// Bytes of packed weights.
    pub(in crate::inference::lowering) fn bytes(&self) -> usize {
        self.groups.iter().map(Weights::bytes).sum()
    }
}

/// Values from one packed row to the next: room for a whole vector behind the row, and no multiple of 4 KiB, which would map all
/// rows to the same cache sets.
fn row_stride(depth: usize) -> usize {
    let stride = depth.next_multiple_of(16) + 16;
    if stride % 512 < 32 { stride + 32 } else { stride }
}

/// The second value of the last pair counts nothing, but its weight is 0 and must meet a number.
fn finish(row: &mut [i16], depth: usize) {
    if depth % 2 == 1 {
        row[depth] = 0;
    }
}
