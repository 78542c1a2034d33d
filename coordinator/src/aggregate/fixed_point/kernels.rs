//! The inner loops over values: rounding, adding, comparing, squares. Written so that they vectorise on plain SSE2.
//! They know slices and numbers; tensors, bounds and errors are their callers'.

/// 1.5 · 2^52. Adding it to |x| <= 2^51 leaves a double whose unit is 1, so the processor's own rounding (to nearest,
/// ties to even) makes the integer, and the low bits hold it.
const SHIFT: f64 = 6_755_399_441_055_744.0;

/// Values that fit the first-level cache while two loops go over them.
const BLOCK: usize = 4096;

/// `x.round_ties_even()` for |x| <= 2^51.
pub(super) fn round(x: f64) -> f64 {
    (x + SHIFT) - SHIFT
}

/// The integer nearest to x, ties to even, for |x| <= 2^51. Any other x gives some number.
pub(super) fn integer(x: f64) -> i64 {
    (x + SHIFT).to_bits().wrapping_sub(SHIFT.to_bits()) as i64
}

/// sum += weight · round(delta · factor), element by element; |delta · factor · weight| <= 2^51.
pub(super) fn add(sums: &mut [i64], deltas: &[f32], factor: f64, weight: f64) {
    for (sum, delta) in sums.iter_mut().zip(deltas) {
        // The product of two integers below 2^51 is exact in f64.
        *sum = sum.wrapping_add(integer(round(f64::from(*delta) * factor) * weight));
    }
}

/// The largest |value|; larger than infinity where a NaN is among them. As bits, which order like the values.
fn largest_bits(values: &[f32]) -> i32 {
    values.iter().fold(0, |largest, value| largest.max((value.to_bits() & 0x7fff_ffff) as i32))
}

/// The largest |value|, 0 of none; not finite where one isn't.
pub(super) fn largest_abs(values: &[f32]) -> f32 {
    f32::from_bits(largest_bits(values) as u32)
}

/// Whether every |value| is below `bound` (positive or infinite); a NaN is not.
pub(in crate::aggregate) fn all_within(values: &[f32], bound: f32) -> bool {
    largest_bits(values) < bound.to_bits() as i32
}

/// Sum of squares in eight lanes by position, so that the result does not depend on how the values were cut.
#[derive(Debug, Clone, Default)]
pub(super) struct Squares {
    lanes: [f64; 8],
}

impl Squares {
    /// Adds the squares of the values at flat positions `start`...
    pub(super) fn add(&mut self, start: usize, values: &[f32]) {
        let head = values.len().min(start.wrapping_neg() % 8);
        let (head, rest) = values.split_at(head);
        for (lane, value) in self.lanes.iter_mut().skip(start % 8).zip(head) {
            *lane += f64::from(*value) * f64::from(*value);
        }
        let (chunks, tail) = rest.as_chunks::<8>();
        let mut lanes = self.lanes;
        for chunk in chunks {
            for (lane, value) in lanes.iter_mut().zip(chunk) {
                *lane += f64::from(*value) * f64::from(*value);
            }
        }
        for (lane, value) in lanes.iter_mut().zip(tail) {
            *lane += f64::from(*value) * f64::from(*value);
        }
        self.lanes = lanes;
    }

    /// The sum of all lanes.
    pub(super) fn total(&self) -> f64 {
        self.lanes.iter().sum()
    }
}

/// Whether every |value| is below `bound`, and if so adds their squares.
pub(super) fn check(values: &[f32], bound: f32, start: usize, squares: Option<&mut Squares>) -> bool {
    let Some(squares) = squares else { return all_within(values, bound) };
    let mut at = start;
    for block in values.chunks(BLOCK) {
        if !all_within(block, bound) {
            return false;
        }
        squares.add(at, block);
        at += block.len();
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMIT: f64 = (1u64 << 51) as f64;

    #[test]
    fn rounding_equals_round_ties_even_at_ties_limits_and_signs() {
        for x in [0.0, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 0.499_999_999_999_999_94, LIMIT, -LIMIT, LIMIT - 0.5, 1e-300] {
            assert_eq!(round(x), x.round_ties_even(), "{x}");
            assert_eq!(integer(x), x.round_ties_even() as i64, "{x}");
        }
    }

    #[test]
    fn a_nan_or_an_infinity_is_within_no_bound() {
        for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 8.0, -8.0] {
            assert!(!all_within(&[0.0, bad, 1.0], 8.0), "{bad}");
        }
        assert!(all_within(&[f32::MAX, -f32::MAX], f32::INFINITY));
        assert!(!all_within(&[f32::NAN], f32::INFINITY));
        assert!(all_within(&[], 8.0));
    }

    proptest! {
        #[test]
        fn rounding_equals_round_ties_even(
            x in -LIMIT..=LIMIT, bits in any::<u64>(), half in -(1i64 << 50)..(1i64 << 50),
        ) {
            let any = f64::from_bits(bits);
            let any = if any.abs() <= LIMIT { any } else { 0.25 };
            for x in [x, x / 1e9, any, half as f64 + 0.5] {
                prop_assert_eq!(round(x), x.round_ties_even());
                prop_assert_eq!(integer(x), x.round_ties_even() as i64);
            }
        }

        #[test]
        fn squares_do_not_depend_on_how_the_values_were_cut(
            values in prop::collection::vec(-2.0f32..2.0, 0..100),
            start in 0usize..20, cut in 0usize..100, second in 0usize..100,
        ) {
            let mut whole = Squares::default();
            whole.add(start, &values);
            let mut cuts = [cut.min(values.len()), second.min(values.len())];
            cuts.sort_unstable();
            let mut parts = Squares::default();
            parts.add(start, &values[..cuts[0]]);
            parts.add(start + cuts[0], &values[cuts[0]..cuts[1]]);
            parts.add(start + cuts[1], &values[cuts[1]..]);
            prop_assert_eq!(whole.total(), parts.total());
            let plain: f64 = values.iter().map(|v| f64::from(*v).powi(2)).sum();
            prop_assert!((whole.total() - plain).abs() <= 1e-12 * plain.max(1.0));
        }
    }
}
