//! Depthwise convolution: one filter a channel, channels side by side in vectors.
//! Grouped convolutions with several channels a group are `conv`'s.

use super::Window;
use crate::inference::lowering::kernels::depthwise::{Filters, convolve};
use crate::inference::lowering::kernels::{Isa, Range, SLACK};

/// A depthwise convolution with as many output as input channels.
#[derive(Clone, Debug)]
pub(in crate::inference::lowering) struct Depthwise {
    pub window: Window,
    pub filters: Filters,
    /// Code of the padding: the input's zero point, whose contribution the bias takes away again.
    pub padding: u8,
    pub range: Range,
}

impl Depthwise {
    /// Runs `batch` images. `x` has [`SLACK`] codes behind the last image.
    pub(in crate::inference::lowering) fn run(&self, isa: Isa, x: &[u8], batch: usize, y: &mut [u8]) {
        let window = &self.window;
        let channels = window.c;
        // A line of padding stands in for lines above and below the image.
        let padding = vec![self.padding; (window.w + window.kernel[1]) * channels + SLACK];
        let mut taps: Vec<&[u8]> = vec![&padding; self.filters.places()];
        let inner = window.inner(0..window.kernel[1]);
        let mut lines = y.chunks_exact_mut((window.out[1] * channels).max(1));
        for image in 0..batch {
            let x = &x[image * window.input_len()..];
            for (oy, line) in (0..window.out[0]).zip(&mut lines) {
                let mut ox = 0;
                while ox < window.out[1] {
                    let pixels = if ox == inner.start { inner.len().max(1) } else { 1 };
                    self.see(x, oy, ox, &padding, &mut taps);
                    let step = window.stride[1] * channels;
                    let out = &mut line[ox * channels..];
                    convolve(isa, &taps, step, pixels, &self.filters, self.range, out);
                    ox += pixels;
                }
            }
        }
    }

    /// What each kernel position sees from an output pixel on.
    #[inline]
    fn see<'x>(&self, x: &'x [u8], oy: usize, ox: usize, padding: &'x [u8], taps: &mut [&'x [u8]]) {
        let window = &self.window;
        for ky in 0..window.kernel[0] {
            let row = window.row(oy, ky);
            for kx in 0..window.kernel[1] {
                taps[self.filters.place(ky * window.kernel[1] + kx)] = match (row, window.column(ox, kx)) {
                    (Some(iy), Some(ix)) => &x[(iy * window.w + ix) * window.c..],
                    // Columns lie side by side here too.
                    _ => &padding[kx * window.c..],
                };
            }
        }
    }

    /// Bytes of packed filters.
    pub(in crate::inference::lowering) fn bytes(&self) -> usize {
        self.filters.bytes()
    }
}
