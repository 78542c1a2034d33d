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
        // Padding behind the image shows only in the output's size.
        if window.taps() == 1 && window.pad == [0, 0] && window.stride == [1, 1] && window.out == [window.h, window.w] {
            kernels::widen(isa, &x[first * window.c + skip..], window.c, rows, channels, to, stride);
        } else {
            let (pixels, width) = (window.pixels(), window.out[1]);
            let mut row = 0;
            while row < rows {
                let pixel = first + row;
                let (image, oy, ox) = (pixel / pixels, pixel % pixels / width, pixel % width);
                let count = (width - ox).min(rows - row);
                let image = &x[image * window.input_len()..];
                self.pack_line(isa, image, (oy, ox), count, skip, stride, &mut to[row * stride..]);
                row += count;
            }
        }
        // The second value of the last pair counts nothing, but its weight is 0 and must meet a number.
        let depth = window.taps() * channels;
        if depth % 2 == 1 {
            (0..rows).for_each(|row| to[row * stride + depth] = 0);
        }
    }

    /// What `count` neighbours in one output line see, from (`oy`, `ox`) on.
    #[allow(clippy::too_many_arguments)]
    fn pack_line(
        &self,
        isa: Isa,
        image: &[u8],
        (oy, ox): (usize, usize),
        count: usize,
        skip: usize,
        stride: usize,
        to: &mut [i16],
    ) {
        let window = &self.window;
        let channels = window.c / self.groups.len().max(1);
        let step = window.stride[1] * window.c;
        let whole = window.dilation[1] == 1 && channels == window.c;
        // Kernel positions that lie side by side in the image are widened together.
        let (parts, len) = if whole { (1, window.kernel[1] * channels) } else { (window.kernel[1], channels) };
        for ky in 0..window.kernel[0] {
            let Some(iy) = window.row(oy, ky) else {
                for row in 0..count {
                    to[row * stride + ky * window.kernel[1] * channels..][..window.kernel[1] * channels]
                        .fill(i16::from(self.padding));
                }
                continue;
            };
            let line = &image[iy * window.w * window.c..];
            for part in 0..parts {
                let inner = window.inner(if whole { 0..window.kernel[1] } else { part..part + 1 });
                let (from, past) = (inner.start.clamp(ox, ox + count), inner.end.clamp(ox, ox + count));
                let at = (ky * window.kernel[1] + part) * channels;
                for column in (ox..from).chain(past.max(from)..ox + count) {
                    let to = &mut to[(column - ox) * stride + at..];
                    self.pack_border(line, column, if whole { 0..window.kernel[1] } else { part..part + 1 }, skip, to);
                }
                if past > from
                    && let Some(ix) = window.column(from, part)
                {
                    let to = &mut to[(from - ox) * stride + at..];
                    kernels::widen(isa, &line[ix * window.c + skip..], step, past - from, len, to, stride);
                }
            }
        }
    }

    /// Kernel columns `parts` over one output pixel, some of them in the padding.
    fn pack_border(&self, line: &[u8], ox: usize, parts: std::ops::Range<usize>, skip: usize, to: &mut [i16]) {
        let channels = self.window.c / self.groups.len().max(1);
        for (kx, to) in parts.zip(to.chunks_mut(channels.max(1))) {
            match self.window.column(ox, kx) {
                None => to.fill(i16::from(self.padding)),
                Some(ix) => {
                    let from = &line[ix * self.window.c + skip..][..channels];
                    to.iter_mut().zip(from).for_each(|(to, from)| *to = i16::from(*from));
                }
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
