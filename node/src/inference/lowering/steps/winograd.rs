//! 3 × 3 convolution with stride 1 by Winograd's F(2×2, 3×3) in integers: 16 products for 4 outputs instead of 36.
//! Other convolutions are `conv`'s.
//!
//! Exact: with weights transformed by 2G instead of G, every number stays an integer, and the result is four times the
//! convolution's (Lavin and Gray, Fast Algorithms for Convolutional Neural Networks, 2016, section 4.1). Codes grow to 10 bits
//! plus sign, weights to 12; sums may wrap around in 32 bits on the way, since only rings are used and the result fits.

use super::Window;
use crate::inference::lowering::kernels::{self, BLOCK, Isa, Panel, Range, SLACK, Weights};

/// Bytes of transformed input that are worked on at a time.
const TILES_BYTES: usize = 160 << 10;
/// Positions of a transformed tile.
pub(in crate::inference::lowering) const POSITIONS: usize = 16;

/// A 3 × 3 convolution with stride 1.
#[derive(Clone, Debug)]
pub(in crate::inference::lowering) struct Winograd {
    pub window: Window,
    /// Transformed weights of each position.
    pub positions: Vec<Weights>,
    /// `[blocks × BLOCK]`, without the input's zero point's share.
    pub bias: Vec<i32>,
    /// `[blocks × BLOCK]`.
    pub multiplier: Vec<f32>,
    /// Code of the padding.
    pub padding: u8,
    pub range: Range,
}

/// Buffers of one thread.
#[derive(Default)]
pub(in crate::inference::lowering) struct Scratch {
    /// `[POSITIONS, tiles, stride]`.
    input: Vec<i16>,
    /// `[POSITIONS, tiles, BLOCK]`.
    sums: Vec<i32>,
}

impl Winograd {
    /// Whether the convolution is of this kind, and large enough to gain.
    pub(in crate::inference::lowering) fn gains(window: &Window, columns: usize) -> bool {
        let plain = window.kernel == [3, 3] && window.stride == [1, 1] && window.dilation == [1, 1];
        // On small images the border tiles and the larger weights cost more than the products saved.
        plain && window.c >= 16 && columns >= 16 && window.out[0] >= 12 && window.out[1] >= 12
    }

    /// Bytes of packed weights; no less than those of the direct convolution.
    pub(in crate::inference::lowering) fn packed_bytes(window: &Window, columns: usize) -> usize {
        Weights::packed_bytes(columns, window.c).saturating_mul(POSITIONS)
    }

    /// Transforms weights `[columns, 3 × 3 × channels]`, given as `weight(column, k)`, of a convolution that
    /// [gains](Winograd::gains); `None` where its sums might not fit.
    pub(in crate::inference::lowering) fn new(
        window: Window,
        weight: impl Fn(usize, usize) -> i16,
        bias: &[i32],
        multiplier: &[f32],
        padding: u8,
        range: Range,
    ) -> Option<Winograd> {
        let columns = bias.len();
        let fits = |column: usize| {
            let sum: i64 = (0..9 * window.c).map(|k| i64::from(weight(column, k)).abs()).sum();
            sum * 255 * 4 <= i64::from(i32::MAX)
        };
        if !(0..columns).all(fits) {
            return None;
        }
        let zeros = vec![0; columns];
        let ones = vec![1.0; columns];
        let positions = (0..POSITIONS).map(|position| {
            let at = |column: usize, channel: usize| {
                let tap = |k: usize| i32::from(weight(column, k * window.c + channel));
                transformed(position / 4, position % 4, tap)
            };
            Weights::pack(columns, window.c, at, &zeros, &ones)
        });
        let positions = positions.collect();
        let padded = columns.next_multiple_of(BLOCK);
        let (mut bias, mut multiplier) = (bias.to_vec(), multiplier.to_vec());
        bias.resize(padded, 0);
        multiplier.resize(padded, 0.0);
        Some(Winograd { window, positions, bias, multiplier, padding, range })
    }

    /// Runs `batch` images. `x` has [`SLACK`] codes behind the last image.
    pub(in crate::inference::lowering) fn run(
        &self,
        isa: Isa,
        x: &[u8],
        batch: usize,
        y: &mut [u8],
        scratch: &mut Scratch,
    ) {
        let window = &self.window;
        let columns = self.positions.first().map_or(0, |weights| weights.columns);
        let [high, wide] = window.out.map(|size| size.div_ceil(2));
        let stride = window.c.next_multiple_of(16) + 16;
        let total = batch * high * wide;
        let at_once = (TILES_BYTES / (2 * POSITIONS * stride) / 12 * 12).clamp(12, 96).min(total.max(1));
        scratch.input.resize((POSITIONS * at_once * stride + SLACK).max(scratch.input.len()), 0);
        scratch.sums.resize((POSITIONS * at_once * BLOCK).max(scratch.sums.len()), 0);
        let place = |tile: usize| (tile / (high * wide), tile / wide % high * 2, tile % wide * 2);
        let padding = vec![self.padding; window.c + SLACK];
        for first in (0..total).step_by(at_once) {
            let rows = at_once.min(total - first);
            for row in 0..rows {
                let (image, oy, ox) = place(first + row);
                let x = &x[image * window.input_len()..];
                let pixels = self.see(x, oy, ox, &padding);
                kernels::winograd_input(isa, &pixels, window.c, rows * stride, &mut scratch.input[row * stride..]);
            }
            for block in 0..columns.div_ceil(BLOCK) {
                for (position, weights) in self.positions.iter().enumerate() {
                    let values = &scratch.input[position * rows * stride..][..rows * stride];
                    let sums = &mut scratch.sums[position * rows * BLOCK..][..rows * BLOCK];
                    kernels::sums(isa, Panel { values, stride, rows }, weights, block, sums);
                }
                let at = block * BLOCK;
                let width = BLOCK.min(columns - at);
                for row in 0..rows {
                    let (image, oy, ox) = place(first + row);
                    let mut codes = [[0u8; BLOCK]; 4];
                    let sums = &scratch.sums[row * BLOCK..];
                    let (bias, multiplier) = (&self.bias[at..], &self.multiplier[at..]);
                    kernels::winograd_output(isa, sums, rows * BLOCK, bias, multiplier, self.range, &mut codes);
                    for (index, codes) in codes.iter().enumerate() {
                        let (oy, ox) = (oy + index / 2, ox + index % 2);
                        if oy < window.out[0] && ox < window.out[1] {
                            let pixel = image * window.pixels() + oy * window.out[1] + ox;
                            y[pixel * columns + at..][..width].copy_from_slice(&codes[..width]);
                        }
                    }
                }
            }
        }
    }

    /// The 4 × 4 pixels that a tile of outputs sees.
    fn see<'x>(&self, x: &'x [u8], oy: usize, ox: usize, padding: &'x [u8]) -> [&'x [u8]; POSITIONS] {
        let window = &self.window;
        std::array::from_fn(|position| {
            // Kernel position k of output o is position o + k.
            match (window.row(oy, position / 4), window.column(ox, position % 4)) {
                (Some(iy), Some(ix)) => &x[(iy * window.w + ix) * window.c..],
                _ => padding,
            }
        })
    }

    /// Bytes of packed weights.
    pub(in crate::inference::lowering) fn bytes(&self) -> usize {
        self.positions.iter().map(Weights::bytes).sum()
    }
}

/// Element (i, j) of `2G g (2G)ᵀ`; `tap(k)` is the kernel's value at row k / 3, column k % 3.
fn transformed(i: usize, j: usize, tap: impl Fn(usize) -> i32) -> i16 {
    const TWICE_G: [[i32; 3]; 4] = [[2, 0, 0], [1, 1, 1], [1, -1, 1], [0, 0, 2]];
    let products = (0..9).map(|k| TWICE_G[i][k / 3] * TWICE_G[j][k % 3] * tap(k));
    // At most 9 × 255, or 4 × 255 with a factor 2 on both sides.
    products.sum::<i32>() as i16
}
