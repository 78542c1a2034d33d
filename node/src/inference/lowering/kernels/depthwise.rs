//! Depthwise convolution: one filter a channel, channels side by side in vectors. Codes and weights are widened to 16 bits, two
//! taps to a sum; or four taps of bytes, where AVX-512 VNNI sums them and the weights fit.

use super::{BLOCK, Isa, Range, Weights, code};

/// Filters of all channels, as the kernels of a CPU take them.
#[derive(Clone, Debug)]
pub(crate) enum Filters {
    /// 16 bits each.
    Words(WordFilters),
    /// 8 bits each.
    Bytes(ByteFilters),
}

impl Filters {
    /// Most bytes that [`Filters::pack`] takes.
    pub(crate) fn packed_bytes(channels: usize, taps: usize) -> usize {
        // As words, which never take less.
        Weights::packed_bytes(channels, taps)
    }

    /// Packs weights given as `at(channel, tap)`, taps row by row of a kernel of this height and width. `bias` and `multiplier`
    /// hold `channels` values.
    pub(crate) fn pack(
        isa: Isa,
        channels: usize,
        kernel: [usize; 2],
        at: impl Fn(usize, usize) -> i16,
        bias: &[i32],
        multiplier: &[f32],
    ) -> Filters {
        let narrow = (isa == Isa::Avx512Vnni).then(|| ByteFilters::pack(channels, kernel, &at, bias, multiplier));
        let taps = kernel[0] * kernel[1];
        let words = || Filters::Words(WordFilters::pack(channels, taps, at, bias, multiplier));
        narrow.flatten().map_or_else(words, Filters::Bytes)
    }

    /// Places that [`convolve`] takes: one for each kernel position, and some that count nothing.
    pub(crate) fn places(&self) -> usize {
        match self {
            Filters::Words(filters) => filters.taps.next_multiple_of(2),
            Filters::Bytes(filters) => filters.fours * 4,
        }
    }

    /// The place of a kernel position.
    pub(crate) fn place(&self, tap: usize) -> usize {
        match self {
            Filters::Words(_) => tap,
            Filters::Bytes(filters) => filters.place(tap),
        }
    }

    /// Bytes held.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Filters::Words(filters) => filters.data.len() * 2 + filters.bias.len() * 8,
            Filters::Bytes(filters) => filters.data.len() + filters.bias.len() * 8,
        }
    }

    fn channels(&self) -> usize {
        match self {
            Filters::Words(filters) => filters.channels,
            Filters::Bytes(filters) => filters.channels,
        }
    }
}

/// For each block of 16 channels and pair of taps 32 values in the order in which AVX2 unpacks: channels 0-3, 8-11, then 4-7,
/// 12-15, each channel with its two taps.
#[derive(Clone, Debug)]
pub(crate) struct WordFilters {
    pub(super) channels: usize,
    /// Kernel positions.
    pub(super) taps: usize,
    /// `[blocks, ceil(taps / 2), 32]`.
    pub(super) data: Vec<i16>,
    /// `[blocks × BLOCK]`, in the same order as the data's channels.
    pub(super) bias: Vec<i32>,
    /// `[blocks × BLOCK]`, in the same order.
    pub(super) multiplier: Vec<f32>,
}

/// Channel of each of the 16 places of a block of words.
pub(super) const ORDER: [usize; BLOCK] = [0, 1, 2, 3, 8, 9, 10, 11, 4, 5, 6, 7, 12, 13, 14, 15];

impl WordFilters {
    fn pack(
        channels: usize,
        taps: usize,
        at: impl Fn(usize, usize) -> i16,
        bias: &[i32],
        multiplier: &[f32],
    ) -> WordFilters {
        let (blocks, pairs) = (channels.div_ceil(BLOCK), taps.div_ceil(2));
        let mut filters = WordFilters {
            channels,
            taps,
            data: vec![0; blocks * pairs * 32],
            bias: vec![0; blocks * BLOCK],
            multiplier: vec![0.0; blocks * BLOCK],
        };
        for block in 0..blocks {
            for (place, &within) in ORDER.iter().enumerate() {
                let channel = block * BLOCK + within;
                if channel >= channels {
                    continue;
                }
                filters.bias[block * BLOCK + place] = bias[channel];
                filters.multiplier[block * BLOCK + place] = multiplier[channel];
                for tap in 0..taps {
                    filters.data[(block * pairs + tap / 2) * 32 + place * 2 + tap % 2] = at(channel, tap);
                }
            }
        }
        filters
    }
}

/// Blocks of 64 channels, and what is left in blocks of 32 and 16. Unpacking bytes and then pairs of them makes four vectors of a
/// block; each has four channels of every sixteen, with four taps of each.
#[derive(Clone, Debug)]
pub(crate) struct ByteFilters {
    pub(super) channels: usize,
    /// Fours of kernel positions.
    pub(super) fours: usize,
    /// Of 3 × 3: a four is a column of the kernel.
    pub(super) by_columns: bool,
    /// For each block `[fours, 4 vectors, sixteens, 4 channels, 4 taps]`.
    pub(super) data: Vec<i8>,
    /// For each block `[4 vectors, sixteens, 4 channels]`.
    pub(super) bias: Vec<i32>,
    /// As the bias.
    pub(super) multiplier: Vec<f32>,
}

/// The first channel of each block, and how many it has place for. Blocks end within the channels rounded up to 16.
pub(super) fn blocks(channels: usize) -> impl Iterator<Item = (usize, usize)> {
    let mut first = 0;
    std::iter::from_fn(move || {
        let width = match channels - first {
            0 => return None,
            64.. => 64,
            17.. => 32,
            _ => 16,
        };
        let block = (first, width);
        first = channels.min(first + width);
        Some(block)
    })
}

impl ByteFilters {
    /// `None` where a weight is no i8.
    fn pack(
        channels: usize,
        kernel: [usize; 2],
        at: impl Fn(usize, usize) -> i16,
        bias: &[i32],
        multiplier: &[f32],
    ) -> Option<ByteFilters> {
        let taps = kernel[0] * kernel[1];
        let (whole, fours) = (channels.next_multiple_of(BLOCK), taps.div_ceil(4));
        let mut filters = ByteFilters {
            channels,
            fours,
            by_columns: kernel == [3, 3],
            data: vec![0; whole * fours * 4],
            bias: vec![0; whole],
            multiplier: vec![0.0; whole],
        };
        for (first, width) in blocks(channels) {
            for within in 0..width.min(channels - first) {
                let (channel, lane) = (first + within, lane(within, width));
                filters.bias[first + lane] = bias[channel];
                filters.multiplier[first + lane] = multiplier[channel];
                for tap in 0..taps {
                    let place = filters.place(tap);
                    let to = (first * fours + place / 4 * width + lane) * 4 + place % 4;
                    filters.data[to] = i8::try_from(at(channel, tap)).ok()?;
                }
            }
        }
        Some(filters)
    }

    fn place(&self, tap: usize) -> usize {
        if self.by_columns { tap % 3 * 4 + tap / 3 } else { tap }
    }

    /// What the kernel must equal bit for bit.
    fn reference(&self, taps: &[&[u8]], step: usize, pixels: usize, range: Range, out: &mut [u8]) {
        for (pixel, out) in out.chunks_exact_mut(self.channels.max(1)).take(pixels).enumerate() {
            for (first, width) in blocks(self.channels) {
                for within in 0..width.min(self.channels - first) {
                    let (channel, lane) = (first + within, lane(within, width));
                    let data =
                        |place: usize| self.data[(first * self.fours + place / 4 * width + lane) * 4 + place % 4];
                    let products = taps
                        .iter()
                        .enumerate()
                        .map(|(place, values)| i32::from(values[pixel * step + channel]) * i32::from(data(place)));
                    let sum = self.bias[first + lane] + products.sum::<i32>();
                    out[channel] = code(sum as f32 * self.multiplier[first + lane], range);
                }
            }
        }
    }
}

/// Where a channel of a block lies.
fn lane(within: usize, width: usize) -> usize {
    within % 16 / 4 * (width / 4) + within / 16 * 4 + within % 4
}

/// Whether each of these sees at a pixel what the one before it sees at the next, to the same end.
#[cfg(target_arch = "x86_64")]
fn slides([first, second, third]: [&[u8]; 3], step: usize) -> bool {
    let same = |a: Option<&[u8]>, b: &[u8]| a.is_some_and(|a| a.as_ptr_range() == b.as_ptr_range());
    same(first.get(step..), second) && same(second.get(step..), third)
}

/// Output pixels that lie side by side: pixel `p` sees `taps[t][p × step..]` at the kernel position of place `t` ([`Filters::place`]),
/// and anything at those of no position. Results go to `out`, `[pixels, channels]`. Each tap must reach whole blocks of 16 channels; panics
/// otherwise.
#[inline]
pub(crate) fn convolve(
    isa: Isa,
    taps: &[&[u8]],
    step: usize,
    pixels: usize,
    filters: &Filters,
    range: Range,
    out: &mut [u8],
) {
    let whole = filters.channels().next_multiple_of(BLOCK);
    assert!(taps.len() == filters.places() && out.len() >= pixels * filters.channels());
    let reach = pixels.saturating_sub(1) * step + whole;
    assert!(taps.iter().all(|tap| tap.len() >= reach), "the input lacks slack");
    match (isa, filters) {
        // SAFETY: the CPU has AVX2; each tap has whole blocks of bytes from each pixel on, the filters have whole blocks by
        // their packing, and whole blocks of results are written only where `out` has place.
        #[cfg(target_arch = "x86_64")]
        (Isa::Avx2 | Isa::AvxVnni | Isa::Avx512Vnni, Filters::Words(filters)) => unsafe {
            match taps.len() / 2 {
                5 => super::avx2::depthwise::<5>(taps, step, pixels, filters, range, out),
                13 => super::avx2::depthwise::<13>(taps, step, pixels, filters, range, out),
                _ => super::avx2::depthwise::<0>(taps, step, pixels, filters, range, out),
            }
        },
        // SAFETY: as above, with AVX-512 F, BW, VL and VNNI; what slides reaches as far as its last column.
        #[cfg(target_arch = "x86_64")]
        (Isa::Avx512Vnni, Filters::Bytes(filters)) => unsafe {
            let sliding =
                filters.by_columns && (0..3).all(|row| slides([taps[row], taps[4 + row], taps[8 + row]], step));
            super::avx512::depthwise::convolve(taps, step, pixels, filters, range, out, sliding);
        },
        (_, Filters::Words(filters)) => super::scalar::depthwise(taps, step, pixels, filters, range, out),
        (_, Filters::Bytes(filters)) => filters.reference(taps, step, pixels, range, out),
    }
}
