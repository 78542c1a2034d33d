//! The int8 kernels: matrix blocks, depthwise convolution, widening and elementwise loops, chosen by CPU feature at run
//! time. The only unsafe code of the node lives in this module; what is computed, and in which order, is `steps`' matter.
//!
//! Activations are u8 codes. Products are exact: operands are widened to 16 bits and summed in 32 (`vpmaddwd`, and
//! `vpdpwssd` with AVX-512 VNNI), because `vpmaddubsw` saturates its 16-bit sums; or bytes are multiplied as they are (`bytes`), where
//! the CPU sums their products in 32 bits. So every CPU gives the same bits.

#![allow(unsafe_code)]

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod avxvnni;
pub(super) mod bytes;
pub(super) mod depthwise;
pub(super) mod elementwise;
mod scalar;
#[cfg(test)]
mod tests;

/// Output channels of one block of weights.
pub(super) const BLOCK: usize = 16;
/// Elements that may be read behind the end of an activation, and written behind the end of a packed row.
pub(super) const SLACK: usize = 64;

/// Which kernels run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Isa {
    /// Plain Rust: the reference, and what other processors than x86-64 with AVX2 run.
    Portable,
    /// 256-bit vectors.
    Avx2,
    /// 256-bit vectors with products of bytes.
    AvxVnni,
    /// 512-bit vectors with VNNI.
    Avx512Vnni,
}

impl Isa {
    /// The best that this CPU has.
    pub(crate) fn detect() -> Isa {
        Isa::available().last().copied().unwrap_or(Isa::Portable)
    }

    /// All that this CPU has, the reference first.
    pub(crate) fn available() -> Vec<Isa> {
        #[allow(unused_mut)]
        let mut all = vec![Isa::Portable];
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") {
            all.push(Isa::Avx2);
            if is_x86_feature_detected!("avxvnni") {
                all.push(Isa::AvxVnni);
            }
            if ["avx512f", "avx512bw", "avx512vl", "avx512vnni"].iter().all(|feature| match *feature {
                "avx512f" => is_x86_feature_detected!("avx512f"),
                "avx512bw" => is_x86_feature_detected!("avx512bw"),
                "avx512vl" => is_x86_feature_detected!("avx512vl"),
                _ => is_x86_feature_detected!("avx512vnni"),
            }) {
                all.push(Isa::Avx512Vnni);
            }
        }
        all
    }

    /// Whether it multiplies bytes without widening them (`bytes`).
    pub(crate) fn multiplies_bytes(self) -> bool {
        matches!(self, Isa::AvxVnni | Isa::Avx512Vnni)
    }

    /// As reports name it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Isa::Portable => "portable",
            Isa::Avx2 => "avx2",
            Isa::AvxVnni => "avx-vnni",
            Isa::Avx512Vnni => "avx512-vnni",
        }
    }
}

/// How 32-bit sums become u8 codes: `clamp(round(sum × multiplier), low, high) + zero`, ties to even.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Range {
    /// The code that stands for zero.
    pub zero: i32,
    /// Least result before the zero point is added.
    pub low: f32,
    /// Greatest result before the zero point is added.
    pub high: f32,
}

/// Weights `[columns, depth]` in blocks of [`BLOCK`] columns: for each pair of depths, 16 columns × 2 values.
#[derive(Clone, Debug)]
pub(crate) struct Weights {
    /// Output channels.
    pub columns: usize,
    /// Pairs of values along the depth.
    pub pairs: usize,
    /// `[blocks, pairs, BLOCK, 2]`.
    data: Vec<i16>,
    /// `[blocks × BLOCK]`, added to the sums.
    bias: Vec<i32>,
    /// `[blocks × BLOCK]`, scale of a sum.
    multiplier: Vec<f32>,
}

impl Weights {
    /// Bytes that [`Weights::pack`] takes.
    pub(crate) fn packed_bytes(columns: usize, depth: usize) -> usize {
        let of_block = depth.div_ceil(2).saturating_mul(2 * BLOCK * size_of::<i16>());
        columns.div_ceil(BLOCK).saturating_mul(of_block.saturating_add(BLOCK * 8))
    }

    /// Packs weights given as `at(column, depth)`. `bias` and `multiplier` hold `columns` values.
    pub(crate) fn pack(
        columns: usize,
        depth: usize,
        at: impl Fn(usize, usize) -> i16,
        bias: &[i32],
        multiplier: &[f32],
    ) -> Weights {
        let (blocks, pairs) = (columns.div_ceil(BLOCK), depth.div_ceil(2));
        let mut data = vec![0; blocks * pairs * BLOCK * 2];
        for column in 0..columns {
            for k in 0..depth {
                let block = column / BLOCK * pairs + k / 2;
                data[block * BLOCK * 2 + column % BLOCK * 2 + k % 2] = at(column, k);
            }
        }
        let padded = |len| blocks * BLOCK + len;
        let mut weights = Weights {
            columns,
            pairs,
            data,
            bias: Vec::with_capacity(padded(0)),
            multiplier: Vec::with_capacity(padded(0)),
        };
        weights.bias.extend_from_slice(&bias[..columns]);
        weights.bias.resize(padded(0), 0);
        weights.multiplier.extend_from_slice(&multiplier[..columns]);
        weights.multiplier.resize(padded(0), 0.0);
        weights
    }

    /// Bytes held.
    pub(crate) fn bytes(&self) -> usize {
        self.data.len() * 2 + self.bias.len() * 8
    }
}

/// Packed rows: `rows` times `stride` values, of which `2 × pairs` count.
#[derive(Clone, Copy)]
pub(crate) struct Panel<'p> {
    pub values: &'p [i16],
    pub stride: usize,
    pub rows: usize,
}

/// Where results go: row `r`, column `c` at `r × stride + c`.
pub(crate) enum Target<'t> {
    /// u8 codes.
    Codes(&'t mut [u8], Range),
    /// Floats: `(sum as f32) × multiplier`, clamped.
    Floats(&'t mut [f32], Range),
}

impl Target<'_> {
    /// Values that there is place for.
    fn len(&self) -> usize {
        match self {
            Target::Codes(out, _) => out.len(),
            Target::Floats(out, _) => out.len(),
        }
    }

    /// Stores a scaled sum: the reference of what every kernel's epilogue does.
    fn put(&mut self, at: usize, value: f32) {
        match self {
            Target::Codes(out, range) => out[at] = code(value, *range),
            Target::Floats(out, range) => out[at] = value.max(range.low).min(range.high),
        }
    }
}

/// Multiplies packed rows by all columns. Panics where a slice is shorter than its description: a fault of this crate.
pub(crate) fn multiply(isa: Isa, panel: Panel<'_>, weights: &Weights, target: Target<'_>, stride: usize) {
    let Panel { values, stride: row, rows } = panel;
    if rows == 0 || weights.columns == 0 {
        return;
    }
    let blocks = weights.columns.div_ceil(BLOCK);
    assert!(row >= weights.pairs * 2 && values.len() >= rows * row, "packed rows are too short");
    assert!(weights.data.len() >= blocks * weights.pairs * BLOCK * 2, "weights are too short");
    assert!(weights.bias.len() >= blocks * BLOCK && weights.multiplier.len() >= blocks * BLOCK);
    assert!(target.len() >= (rows - 1) * stride + weights.columns, "the output is too short");
    match isa {
        // SAFETY: the CPU has the features (only `Isa::available` makes these values), and the assertions above
        // bound every access: rows × row values, blocks × pairs × 32 weights, (rows - 1) × stride + columns results.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 | Isa::AvxVnni => unsafe { avx2::multiply(panel, weights, target, stride) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Vnni => unsafe { avx512::multiply(panel, weights, target, stride) },
        _ => scalar::multiply(panel, weights, target, stride),
    }
}

/// Sums alone, without bias, for one block of 16 columns: row `r` at `r × 16`. They may wrap around.
pub(crate) fn sums(isa: Isa, panel: Panel<'_>, weights: &Weights, block: usize, out: &mut [i32]) {
    let Panel { values, stride, rows } = panel;
    assert!(stride >= weights.pairs * 2 && values.len() >= rows * stride, "packed rows are too short");
    assert!(weights.data.len() >= (block + 1) * weights.pairs * BLOCK * 2 && out.len() >= rows * BLOCK);
    match isa {
        // SAFETY: the CPU has the features, and the assertions above bound every access.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 | Isa::AvxVnni => unsafe { avx2::block_sums(panel, weights, block, out) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Vnni => unsafe { avx512::block_sums(panel, weights, block, out) },
        _ => scalar::block_sums(panel, weights, block, out),
    }
}

/// Codes that are widened in rows: row `r` from `from[r × step..]` to `to[r × stride..]`, `len` values each. Up to 15 more values
/// of each row are overwritten; `from` and `to` must have place for `len` + 16 at the last row. Panics otherwise.
#[inline]
pub(crate) fn widen(isa: Isa, from: &[u8], step: usize, rows: usize, len: usize, to: &mut [i16], stride: usize) {
    if rows == 0 {
        return;
    }
    assert!(from.len() >= (rows - 1) * step + len + 16, "widening needs slack");
    assert!(to.len() >= (rows - 1) * stride + len + 16, "widening needs slack");
    match isa {
        // SAFETY: the CPU has AVX2; whole blocks of 16 end before len + 16 in each row, which both slices have.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 | Isa::AvxVnni | Isa::Avx512Vnni => unsafe { avx2::widen(from, step, rows, len, to, stride) },
        _ => {
            for row in 0..rows {
                for (to, from) in to[row * stride..][..len].iter_mut().zip(&from[row * step..]) {
                    *to = i16::from(*from);
                }
            }
        }
    }
}

/// `Bᵀ d B` of Winograd's F(2×2, 3×3) for `channels` channels of 4 × 4 pixels; position p goes to `to[p × step..]`. Whole
/// vectors of 16 channels are read and written; panics where the slices lack place for them.
pub(crate) fn winograd_input(isa: Isa, pixels: &[&[u8]; 16], channels: usize, step: usize, to: &mut [i16]) {
    let whole = channels.next_multiple_of(BLOCK);
    assert!(pixels.iter().all(|pixel| pixel.len() >= whole), "the input lacks slack");
    assert!(step >= whole && to.len() >= 15 * step + whole, "the transformed input is too short");
    match isa {
        // SAFETY: the CPU has AVX2, and the assertions above bound every whole vector.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 | Isa::AvxVnni | Isa::Avx512Vnni => unsafe { avx2::winograd_input(pixels, channels, step, to) },
        _ => scalar::winograd_input(pixels, channels, step, to),
    }
}

/// `Aᵀ M A / 4`, requantized: position p of 16 columns lies at `sums[p × step..]`; gives four output pixels.
pub(crate) fn winograd_output(
    isa: Isa,
    sums: &[i32],
    step: usize,
    bias: &[i32],
    multiplier: &[f32],
    range: Range,
    to: &mut [[u8; BLOCK]; 4],
) {
    assert!(sums.len() >= 15 * step + BLOCK && bias.len() >= BLOCK && multiplier.len() >= BLOCK);
    match isa {
        // SAFETY: the CPU has AVX2, and the assertion above bounds every access.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 | Isa::AvxVnni | Isa::Avx512Vnni => unsafe {
            avx2::winograd_output(sums, step, bias, multiplier, range, to);
        },
        _ => scalar::winograd_output(sums, step, bias, multiplier, range, to),
    }
}

/// Rounds half to even and adds the zero point; the value is clamped first, so it fits. The same bits as `vcvtps2dq`.
#[inline(always)]
pub(super) fn code(value: f32, range: Range) -> u8 {
    // 1.5 × 2^23: adding it leaves the rounded integer in the low bits of the mantissa.
    const MAGIC: f32 = 12_582_912.0;
    let rounded = (value.max(range.low).min(range.high) + MAGIC).to_bits().wrapping_sub(MAGIC.to_bits());
    rounded.wrapping_add(range.zero as u32) as u8
}
