//! Loops over codes: quantize, dequantize, add, multiply, tables, pooling. Plain Rust, compiled again for AVX2 and AVX-512.
//! Which values they meet, and in which order they lie, is `steps`' matter.

#![allow(unsafe_code)]

use super::{Isa, Range, code};

/// Defines a function that runs `body` compiled for AVX2 or AVX-512 where the CPU has it.
macro_rules! vectorized {
    ($(#[$doc:meta])* $name:ident ( $($arg:ident : $type:ty),* ) $body:block) => {
        $(#[$doc])*
        #[allow(clippy::too_many_arguments)]
        pub(crate) fn $name(isa: Isa, $($arg: $type),*) {
            #[inline(always)]
            #[allow(clippy::too_many_arguments)]
            fn body($($arg: $type),*) $body
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2")]
                #[allow(clippy::too_many_arguments)]
                fn avx2($($arg: $type),*) {
                    body($($arg),*);
                }
                #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
                #[allow(clippy::too_many_arguments)]
                fn avx512($($arg: $type),*) {
                    body($($arg),*);
                }
                match isa {
                    Isa::Portable => {}
                    // SAFETY: these values are made only where the CPU has AVX2.
                    Isa::Avx2 | Isa::AvxVnni => return unsafe { avx2($($arg),*) },
                    // SAFETY: this value is made only where the CPU has these features.
                    Isa::Avx512Vnni => return unsafe { avx512($($arg),*) },
                }
            }
            let _ = isa;
            body($($arg),*);
        }
    };
}

/// Scale and zero point of codes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Affine {
    /// Step between two codes.
    pub scale: f32,
    /// The code that stands for zero, 0 to 255.
    pub zero: i32,
}

impl Affine {
    /// All codes.
    pub(crate) fn range(self) -> Range {
        Range { zero: self.zero, low: -(self.zero as f32), high: (255 - self.zero) as f32 }
    }
}

vectorized! {
    /// `to[i] = code(from[i] / scale)`, as ONNX's QuantizeLinear.
    quantize(from: &[f32], scale: f32, range: Range, to: &mut [u8]) {
        for (to, from) in to.iter_mut().zip(from) {
            *to = code(*from / scale, range);
        }
    }
}

vectorized! {
    /// `to[i] = (from[i] - zero) × scale`.
    dequantize(from: &[u8], affine: Affine, to: &mut [f32]) {
        for (to, from) in to.iter_mut().zip(from) {
            *to = (i32::from(*from) - affine.zero) as f32 * affine.scale;
        }
    }
}

vectorized! {
    /// `(a - zero_a) × scale_a + (b - zero_b) × scale_b`, the scales already divided by the output's.
    add(a: &[u8], of_a: Affine, b: &[u8], of_b: Affine, range: Range, to: &mut [u8]) {
        for ((to, a), b) in to.iter_mut().zip(a).zip(b) {
            let a = (i32::from(*a) - of_a.zero) as f32 * of_a.scale;
            let b = (i32::from(*b) - of_b.zero) as f32 * of_b.scale;
            *to = code(a + b, range);
        }
    }
}

vectorized! {
    /// `(a - zero_a) × (b - zero_b) × scale`, the scale that of both inputs over the output's; `b` repeats as often as it
    /// fits into `a`.
    mul(a: &[u8], zero_a: i32, b: &[u8], zero_b: i32, scale: f32, range: Range, to: &mut [u8]) {
        let len = b.len().max(1);
        for (a, to) in a.chunks_exact(len).zip(to.chunks_exact_mut(len)) {
            for ((to, a), b) in to.iter_mut().zip(a).zip(b) {
                *to = code(((i32::from(*a) - zero_a) * (i32::from(*b) - zero_b)) as f32 * scale, range);
            }
        }
    }
}

vectorized! {
    /// The greater of both, in place.
    max(from: &[u8], to: &mut [u8]) {
        for (to, from) in to.iter_mut().zip(from) {
            *to = (*to).max(*from);
        }
    }
}

vectorized! {
    /// Adds codes to sums.
    sum(from: &[u8], to: &mut [i32]) {
        for (to, from) in to.iter_mut().zip(from) {
            *to += i32::from(*from);
        }
    }
}

vectorized! {
    /// `code((sum - offset) × scale)`.
    requantize(from: &[i32], offset: i32, scale: f32, range: Range, to: &mut [u8]) {
        for (to, from) in to.iter_mut().zip(from) {
            *to = code((*from - offset) as f32 * scale, range);
        }
    }
}

/// `to[i] = table[from[i]]`.
pub(crate) fn look_up(from: &[u8], table: &[u8; 256], to: &mut [u8]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to = table[usize::from(*from)];
    }
}
