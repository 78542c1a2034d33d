//! The operators of a lowered program, each over a whole batch: what they hold and how they run.
//! Buffers and order are `program`'s matter, recognising them in a graph is `lower`'s, inner loops are `kernels`'.

pub(super) mod conv;
mod depthwise;
mod mix;
mod pool;
#[cfg(test)]
mod tests;
pub(super) mod winograd;

pub(super) use conv::{Conv, Output, Packed};
pub(super) use depthwise::Depthwise;
pub(super) use mix::{Concat, Permute, Product, Sum};
pub(super) use pool::{AveragePool, MaxPool};
pub(super) use winograd::Winograd;

/// A sliding window over an image `[h, w, c]` of codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Window {
    /// Height of the input.
    pub h: usize,
    /// Width of the input.
    pub w: usize,
    /// Channels of the input.
    pub c: usize,
    /// Height and width of the kernel.
    pub kernel: [usize; 2],
    /// Steps between windows.
    pub stride: [usize; 2],
    /// Steps between kernel positions.
    pub dilation: [usize; 2],
    /// Padding above and to the left.
    pub pad: [usize; 2],
    /// Height and width of the output.
    pub out: [usize; 2],
}

impl Window {
    /// Codes of one input.
    pub(super) fn input_len(&self) -> usize {
        self.h * self.w * self.c
    }

    /// Output pixels of one sample.
    pub(super) fn pixels(&self) -> usize {
        self.out[0] * self.out[1]
    }

    /// Kernel positions.
    pub(super) fn taps(&self) -> usize {
        self.kernel[0] * self.kernel[1]
    }

    /// Input row of kernel row `k` for output row `o`; `None` in the padding.
    #[inline]
    pub(super) fn row(&self, o: usize, k: usize) -> Option<usize> {
        (o * self.stride[0] + k * self.dilation[0]).checked_sub(self.pad[0]).filter(|&row| row < self.h)
    }

    /// Input column of kernel column `k` for output column `o`; `None` in the padding.
    #[inline]
    pub(super) fn column(&self, o: usize, k: usize) -> Option<usize> {
        (o * self.stride[1] + k * self.dilation[1]).checked_sub(self.pad[1]).filter(|&column| column < self.w)
    }

    /// Output columns for which all of these kernel columns lie within the image's width.
    pub(super) fn inner(&self, kernel: std::ops::Range<usize>) -> std::ops::Range<usize> {
        let (stride, pad) = (self.stride[1], self.pad[1]);
        let first = pad.saturating_sub(kernel.start * self.dilation[1]).div_ceil(stride);
        let reach = kernel.end.saturating_sub(1) * self.dilation[1] + 1;
        let past = (self.w + pad).checked_sub(reach).map_or(0, |last| last / stride + 1);
        first..past.min(self.out[1]).max(first)
    }
}
