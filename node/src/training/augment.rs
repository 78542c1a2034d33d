//! Pictures of a batch, changed a little at random each time that they are trained on: mirrored, and shifted.
//! Which samples make a batch is `trainer`'s; what people configure is in `plan`.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use super::TrainingError;

/// Furthest that a picture is shifted, pixels.
pub const MAX_CROP: u32 = 256;
/// Streams of the seed from here on are augmentation's, one an epoch; those below shuffle.
const STREAMS: u64 = 1 << 32;

/// How pictures, `[channels, height, width]`, are changed before each step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Augmentation {
    /// Each picture is mirrored, left to right, with probability 1/2.
    pub flip: bool,
    /// Each is framed by this many pixels of zero, after preprocessing, and cut back to its size at a random place (Krizhevsky
    /// 2009; He et al. 2016, section 4.2, with 4). 0: none. At most [`MAX_CROP`].
    pub crop: u32,
}

impl Augmentation {
    /// Whether it changes anything.
    pub fn is_some(&self) -> bool {
        *self != Augmentation::default()
    }

    /// Checks it against what is trained on.
    ///
    /// # Errors
    /// Samples that are no pictures, targets that lie in the picture, and a shift out of range.
    pub(super) fn check(&self, sample: &[usize], target: &[usize]) -> Result<(), TrainingError> {
        let refused = |field, problem: String| Err(TrainingError::Plan { field, problem });
        if self.crop > MAX_CROP {
            return refused("crop", format!("is {}; give 0 to {MAX_CROP}", self.crop));
        }
        let field = if self.flip { "flip" } else { "crop" };
        if self.is_some() && sample.len() != 3 {
            return refused(
                field,
                format!("takes pictures [channels, height, width]; samples have the shape {sample:?}"),
            );
        }
        if self.is_some() && target.len() > 1 {
            return refused(
                field,
                format!("would not move targets of shape {target:?} with the picture; leave it out"),
            );
        }
        Ok(())
    }

    /// The random numbers of one epoch.
    pub(super) fn random(&self, seed: u64, epoch: u32) -> ChaCha8Rng {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        random.set_stream(STREAMS + u64::from(epoch));
        random
    }

    /// Changes each picture of this shape in place; three numbers are drawn for each, whatever is switched on.
    pub(super) fn apply(&self, inputs: &mut [f32], shape: &[usize], random: &mut ChaCha8Rng) {
        let &[_, height, width] = shape else { return };
        let len = shape.iter().product::<usize>().max(1);
        let mut old = Vec::new();
        for picture in inputs.chunks_exact_mut(len) {
            let mirrored = random.next_u32() & 1 == 1 && self.flip;
            let (down, right) = (self.shift(random), self.shift(random));
            if !mirrored && (down, right) == (0, 0) {
                continue;
            }
            old.clear();
            old.extend_from_slice(picture);
            let rows = picture.chunks_exact_mut(width).zip(0..);
            for (row, index) in rows {
                let (plane, y) = (index / height, (index % height) as isize - down);
                let from = usize::try_from(y).ok().filter(|y| *y < height).map(|y| (plane * height + y) * width);
                let from = from.and_then(|start| old.get(start..start + width)).unwrap_or_default();
                for (pixel, x) in row.iter_mut().zip(0isize..) {
                    let x = x - right;
                    let x = if mirrored { width as isize - 1 - x } else { x };
                    *pixel = usize::try_from(x).ok().and_then(|x| from.get(x)).copied().unwrap_or(0.0);
                }
            }
        }
    }

    /// Uniform in `-crop..=crop`.
    fn shift(&self, random: &mut ChaCha8Rng) -> isize {
        let places = u64::from(self.crop) * 2 + 1;
        // Lemire's multiplication; its bias is below 2^-22.
        let place = (u64::from(random.next_u32()) * places) >> 32;
        place as isize - self.crop as isize
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const SHAPE: [usize; 3] = [2, 2, 3];

    fn changed(augmentation: Augmentation, epoch: u32) -> Vec<Vec<f32>> {
        let picture: Vec<f32> = (1u8..=12).map(f32::from).collect();
        let mut inputs = picture.repeat(64);
        augmentation.apply(&mut inputs, &SHAPE, &mut augmentation.random(7, epoch));
        inputs.chunks(12).map(<[f32]>::to_vec).collect()
    }

    #[test]
    fn half_of_the_pictures_are_mirrored_row_by_row() {
        let whole: Vec<f32> = (1u8..=12).map(f32::from).collect();
        let mirrored = [3.0, 2.0, 1.0, 6.0, 5.0, 4.0, 9.0, 8.0, 7.0, 12.0, 11.0, 10.0];
        let found = changed(Augmentation { flip: true, crop: 0 }, 1);
        let count = found.iter().filter(|picture| **picture == mirrored).count();
        assert!((20..=44).contains(&count), "{count}");
        assert!(found.iter().all(|picture| *picture == mirrored || *picture == whole));
    }

    #[test]
    fn a_crop_shifts_all_channels_alike_and_fills_with_zeros() {
        let found = changed(Augmentation { flip: false, crop: 1 }, 1);
        let down_right = [0.0, 0.0, 0.0, 0.0, 1.0, 2.0, 0.0, 0.0, 0.0, 0.0, 7.0, 8.0];
        assert!(found.iter().any(|picture| *picture == down_right));
        let kinds: std::collections::BTreeSet<Vec<u32>> =
            found.iter().map(|picture| picture.iter().map(|value| value.to_bits()).collect()).collect();
        assert_eq!(kinds.len(), 9, "nine places");
        let far = changed(Augmentation { flip: true, crop: 100 }, 1);
        assert!(far.iter().any(|picture| picture.iter().all(|pixel| *pixel == 0.0)));
    }

    #[test]
    fn each_epoch_draws_anew_and_the_same_seed_draws_the_same() {
        let both = Augmentation { flip: true, crop: 1 };
        assert_eq!(changed(both, 1), changed(both, 1));
        assert_ne!(changed(both, 1), changed(both, 2));
        assert!(changed(Augmentation::default(), 1).iter().all(|picture| picture[0] == 1.0 && picture[11] == 12.0));
    }

    #[test]
    fn what_has_no_pictures_is_refused() {
        let flip = Augmentation { flip: true, crop: 0 };
        assert!(flip.check(&[3, 8, 8], &[]).is_ok() && flip.check(&[3, 8, 8], &[10]).is_ok());
        assert!(flip.check(&[64], &[]).unwrap_err().to_string().contains("flip"));
        assert!(flip.check(&[3, 8, 8], &[8, 8]).unwrap_err().to_string().contains("targets"));
        assert!(Augmentation::default().check(&[64], &[8, 8]).is_ok());
        assert!(
            Augmentation { flip: false, crop: 300 }.check(&[3, 8, 8], &[]).unwrap_err().to_string().contains("256")
        );
    }
}
