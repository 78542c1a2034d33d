//! Convolution and matrix multiplication with constant weights: rows are gathered, and widened where the CPU needs it, into a small
//! panel that stays in cache, then multiplied, scaled, clamped and stored in one go. No im2col of the whole image, no copy for padding.

use super::Window;
use crate::inference::lowering::kernels::bytes::{self, BytePanel, ByteWeights};
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
    pub groups: Vec<Packed>,
    /// Code of the padding: the input's zero point, whose contribution the bias takes away again.
    pub padding: u8,
    pub output: Output,
}

/// The weights of a group.
#[derive(Clone, Debug)]
pub(in crate::inference::lowering) enum Packed {
    /// 16 bits each: rows are widened.
    Words(Weights),
    /// 8 bits each, for CPUs that multiply bytes.
    Bytes(ByteWeights),
}

impl Packed {
    /// Packs for these kernels; see [`Weights::pack`].
    pub(in crate::inference::lowering) fn pack(
        isa: Isa,
        columns: usize,
        depth: usize,
        at: impl Fn(usize, usize) -> i16,
        bias: &[i32],
        multiplier: &[f32],
    ) -> Packed {
        let narrow = isa.multiplies_bytes().then(|| ByteWeights::pack(columns, depth, &at, bias, multiplier)).flatten();
        narrow.map_or_else(|| Packed::Words(Weights::pack(columns, depth, at, bias, multiplier)), Packed::Bytes)
    }

    fn columns(&self) -> usize {
        match self {
            Packed::Words(weights) => weights.columns,
            Packed::Bytes(weights) => weights.columns,
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Packed::Words(weights) => weights.bytes(),
            Packed::Bytes(weights) => weights.bytes(),
        }
    }
}

/// Gathered rows of one thread.
#[derive(Default)]
pub(in crate::inference::lowering) struct Scratch {
    words: Vec<i16>,
    bytes: Vec<u8>,
}

/// A code in a gathered row.
trait Lane: Copy + Default {
    fn of(code: u8) -> Self;
    /// As [`kernels::widen`].
    fn lay(isa: Isa, from: &[u8], step: usize, rows: usize, len: usize, to: &mut [Self], stride: usize);
}

impl Lane for i16 {
    fn of(code: u8) -> i16 {
        i16::from(code)
    }

    fn lay(isa: Isa, from: &[u8], step: usize, rows: usize, len: usize, to: &mut [i16], stride: usize) {
        kernels::widen(isa, from, step, rows, len, to, stride);
    }
}

impl Lane for u8 {
    fn of(code: u8) -> u8 {
        code
    }

    fn lay(isa: Isa, from: &[u8], step: usize, rows: usize, len: usize, to: &mut [u8], stride: usize) {
        bytes::copy_rows(isa, from, step, rows, len, to, stride);
    }
}

/// Results of a batch.
pub(in crate::inference::lowering) enum Results<'r> {
    Codes(&'r mut [u8]),
    Floats(&'r mut [f32]),
}

impl Conv {
    /// Output channels.
    pub(in crate::inference::lowering) fn columns(&self) -> usize {
        self.groups.iter().map(Packed::columns).sum()
    }

    /// Runs `batch` images. `x` has [`SLACK`] codes behind the last image.
    pub(in crate::inference::lowering) fn run(
        &self,
        isa: Isa,
        x: &[u8],
        batch: usize,
        mut y: Results<'_>,
        scratch: &mut Scratch,
    ) {
        let columns = self.columns();
        let depth = self.window.taps() * self.window.c / self.groups.len().max(1);
        let stride = row_stride(depth);
        let total = batch * self.window.pixels();
        let at_once = (PANEL_BYTES / (2 * stride) / 12 * 12).clamp(12, 1 << 12).min(total.max(1));
        let room = at_once * stride + SLACK;
        for first in (0..total).step_by(at_once) {
            let rows = at_once.min(total - first);
            let mut column = 0;
            for (group, weights) in self.groups.iter().enumerate() {
                let at = first * columns + column;
                let target = match (&mut y, self.output) {
                    (Results::Codes(y), Output::Codes(range)) => Target::Codes(&mut y[at..], range),
                    (Results::Floats(y), Output::Floats(range)) => Target::Floats(&mut y[at..], range),
                    _ => return,
                };
                match weights {
                    Packed::Words(weights) => {
                        let words = roomy(&mut scratch.words, room);
                        self.pack(isa, x, first, rows, group, stride, words);
                        let panel = Panel { values: &words[..rows * stride], stride, rows };
                        kernels::multiply(isa, panel, weights, target, columns);
                    }
                    // What lies side by side is multiplied where it lies.
                    Packed::Bytes(weights) if self.is_pointwise() => {
                        let skip = group * self.window.c / self.groups.len().max(1);
                        let values = &x[first * self.window.c + skip..];
                        bytes::multiply(
                            isa,
                            BytePanel { values, stride: self.window.c, rows },
                            weights,
                            target,
                            columns,
                        );
                    }
                    Packed::Bytes(weights) => {
                        let bytes = roomy(&mut scratch.bytes, room);
                        self.pack(isa, x, first, rows, group, stride, bytes);
                        let values = &bytes[..rows * stride];
                        bytes::multiply(isa, BytePanel { values, stride, rows }, weights, target, columns);
                    }
                }
                column += weights.columns();
            }
        }
    }

    /// Whether each output pixel sees the input pixel of the same place alone.
    fn is_pointwise(&self) -> bool {
        // Padding behind the image shows only in the output's size.
        let window = &self.window;
        window.taps() == 1 && window.pad == [0, 0] && window.stride == [1, 1] && window.out == [window.h, window.w]
    }

    /// Gathers what `rows` output pixels from `first` on see, in the order kernel row, kernel column, channel.
    #[allow(clippy::too_many_arguments)]
    fn pack<T: Lane>(&self, isa: Isa, x: &[u8], first: usize, rows: usize, group: usize, stride: usize, to: &mut [T]) {
        let window = &self.window;
        let channels = window.c / self.groups.len().max(1);
        let skip = group * channels;
        if self.is_pointwise() {
            T::lay(isa, &x[first * window.c + skip..], window.c, rows, channels, to, stride);
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
            (0..rows).for_each(|row| to[row * stride + depth] = T::default());
        }
    }

    /// What `count` neighbours in one output line see, from (`oy`, `ox`) on.
    #[allow(clippy::too_many_arguments)]
    fn pack_line<T: Lane>(
        &self,
        isa: Isa,
        image: &[u8],
        (oy, ox): (usize, usize),
        count: usize,
        skip: usize,
        stride: usize,
        to: &mut [T],
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
                        .fill(T::of(self.padding));
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
                    T::lay(isa, &line[ix * window.c + skip..], step, past - from, len, to, stride);
                }
            }
        }
    }

    /// Kernel columns `parts` over one output pixel, some of them in the padding.
    fn pack_border<T: Lane>(&self, line: &[u8], ox: usize, parts: std::ops::Range<usize>, skip: usize, to: &mut [T]) {
        let channels = self.window.c / self.groups.len().max(1);
        for (kx, to) in parts.zip(to.chunks_mut(channels.max(1))) {
            match self.window.column(ox, kx) {
                None => to.fill(T::of(self.padding)),
                Some(ix) => {
                    let from = &line[ix * self.window.c + skip..][..channels];
                    to.iter_mut().zip(from).for_each(|(to, from)| *to = T::of(*from));
                }
            }
        }
    }

    /// Bytes of packed weights.
    pub(in crate::inference::lowering) fn bytes(&self) -> usize {
        self.groups.iter().map(Packed::bytes).sum()
    }
}

/// A buffer of at least this length; what it holds is of no account.
fn roomy<T: Lane>(buffer: &mut Vec<T>, len: usize) -> &mut [T] {
    if buffer.len() < len {
        buffer.resize(len, T::default());
    }
    buffer
}

/// Values from one packed row to the next: room for a whole vector behind the row, and no multiple of 4 KiB, which would map all
/// rows to the same cache sets.
fn row_stride(depth: usize) -> usize {
    let stride = depth.next_multiple_of(16) + 16;
    if stride % 512 < 32 { stride + 32 } else { stride }
}
