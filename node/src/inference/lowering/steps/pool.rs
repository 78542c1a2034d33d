//! Pooling over images of codes: the greatest, or the mean with requantization.
//! Codes grow with the values they stand for, so the greatest code is the greatest value.

use super::Window;
use crate::inference::lowering::kernels::elementwise::{self, Affine};
use crate::inference::lowering::kernels::{Isa, Range};

/// The greatest code of each window; padding never wins.
#[derive(Clone, Debug)]
pub(in crate::inference::lowering) struct MaxPool {
    pub window: Window,
}

impl MaxPool {
    pub(in crate::inference::lowering) fn run(&self, isa: Isa, x: &[u8], batch: usize, y: &mut [u8]) {
        let window = &self.window;
        let c = window.c;
        for image in 0..batch {
            let x = &x[image * window.input_len()..];
            let y = &mut y[image * window.pixels() * c..];
            for oy in 0..window.out[0] {
                for ox in 0..window.out[1] {
                    let to = &mut y[(oy * window.out[1] + ox) * c..][..c];
                    to.fill(0);
                    for iy in (0..window.kernel[0]).filter_map(|k| window.row(oy, k)) {
                        for ix in (0..window.kernel[1]).filter_map(|k| window.column(ox, k)) {
                            elementwise::max(isa, &x[(iy * window.w + ix) * c..][..c], to);
                        }
                    }
                }
            }
        }
    }
}

/// The mean of each window, in the output's codes.
#[derive(Clone, Debug)]
pub(in crate::inference::lowering) struct AveragePool {
    pub window: Window,
    /// Scale of the input over that of the output; zero point of the input.
    pub input: Affine,
    /// Codes of the output.
    pub output: Range,
    /// Whether padding counts as values of zero.
    pub count_padding: bool,
}

impl AveragePool {
    pub(in crate::inference::lowering) fn run(&self, isa: Isa, x: &[u8], batch: usize, y: &mut [u8]) {
        let window = &self.window;
        let c = window.c;
        let mut sums = vec![0i32; c];
        for image in 0..batch {
            let x = &x[image * window.input_len()..];
            let y = &mut y[image * window.pixels() * c..];
            for oy in 0..window.out[0] {
                for ox in 0..window.out[1] {
                    sums.fill(0);
                    let mut seen = 0i32;
                    for iy in (0..window.kernel[0]).filter_map(|k| window.row(oy, k)) {
                        for ix in (0..window.kernel[1]).filter_map(|k| window.column(ox, k)) {
                            elementwise::sum(isa, &x[(iy * window.w + ix) * c..][..c], &mut sums);
                            seen += 1;
                        }
                    }
                    let count = if self.count_padding { window.taps() as i32 } else { seen.max(1) };
                    let scale = self.input.scale / count as f32;
                    let to = &mut y[(oy * window.out[1] + ox) * c..][..c];
                    elementwise::requantize(isa, &sums, seen * self.input.zero, scale, self.output, to);
                }
            }
        }
    }
}
