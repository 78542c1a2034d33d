//! Reads a model file's exchanged values, or writes the file with other ones, as a stream of bounded pieces.
//! Where the values lie, `places` says; the same in memory is `splice`.

use std::io::{self, BufReader, BufWriter, Read, Write};

use super::Places;
use crate::ModelError;
use crate::weights::{find_not_finite, not_finite};

/// Most values in a piece: 1 MiB of float32.
pub const PIECE_VALUES: usize = 1 << 18;

/// Joins what lies between places, and places of a single value, into larger reads and writes.
const BUFFER_BYTES: usize = 1 << 16;

const READ: &str = "read the base model's file";
const WRITE: &str = "write the new model's file";

impl Places {
    /// Gives the exchanged values of `file` to `look`, piece by piece in flat order: the index of a piece's first value
    /// in the flat vector, and 1 to [`PIECE_VALUES`] values of one place.
    ///
    /// `file` yields the whole file that the places were taken from, or another version of its lineage. Refused: a file
    /// of another length, a value that is not finite, and whatever `look` refuses. Memory: 2 MiB.
    pub fn for_each_piece<E: From<ModelError>>(
        &self,
        file: impl Read,
        mut look: impl FnMut(usize, &[f32]) -> Result<(), E>,
    ) -> Result<(), E> {
        self.walk(file, io::sink(), |first, values, _| look(first, values))
    }

    /// Writes `base` to `out` with other values in its places; all other bytes are copied.
    ///
    /// `next` gets a piece as [`Places::for_each_piece`] gives it, and an empty vector, into which it puts as many new
    /// values. Refused: a base of another length, a value that is not finite, old or new, another number of values, and
    /// whatever `next` refuses; what was written until then is of no use. Memory: 3 MiB, whatever the model's size.
    ///
    /// The digest of the new file is known to a [`HashingWriter`](crate::HashingWriter) as `out`.
    pub fn splice<E: From<ModelError>>(
        &self,
        base: impl Read,
        out: impl Write,
        mut next: impl FnMut(usize, &[f32], &mut Vec<f32>) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut new = Vec::new();
        self.walk(base, out, |first, values, bytes| {
            new.clear();
            next(first, values, &mut new)?;
            self.check(first, values.len(), &new)?;
            for (old, new) in bytes.as_chunks_mut::<4>().0.iter_mut().zip(&new) {
                *old = new.to_le_bytes();
            }
            Ok(())
        })
    }

    /// Copies the file. Each piece is first shown with its bytes, which may be changed.
    fn walk<E: From<ModelError>>(
        &self,
        file: impl Read,
        out: impl Write,
        mut piece: impl FnMut(usize, &[f32], &mut [u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut file = BufReader::with_capacity(BUFFER_BYTES, file);
        let mut out = BufWriter::with_capacity(BUFFER_BYTES, out);
        let (mut bytes, mut values) = (Vec::new(), Vec::new());
        let mut at = 0;
        for place in self.runs() {
            self.copy(&mut file, &mut out, place.bytes.start - at)?;
            for first in place.flat.clone().step_by(PIECE_VALUES) {
                let len = PIECE_VALUES.min(place.flat.end - first);
                bytes.resize(len * 4, 0);
                file.read_exact(&mut bytes).map_err(|error| self.unread(error))?;
                values.clear();
                values.extend(bytes.as_chunks::<4>().0.iter().map(|value| f32::from_le_bytes(*value)));
                self.check(first, len, &values)?;
                piece(first, &values, &mut bytes)?;
                out.write_all(&bytes).map_err(unwritten)?;
            }
            at = place.bytes.end;
        }
        self.copy(&mut file, &mut out, self.file_bytes() - at)?;
        if file.bytes().next().transpose().map_err(|error| self.unread(error))?.is_some() {
            let problem = format!("it goes on after the {} bytes that its lineage has", self.file_bytes());
            return Err(ModelError::Stream { action: READ, source: io::Error::other(problem) }.into());
        }
        out.flush().map_err(unwritten)?;
        Ok(())
    }

    /// Copies this many bytes.
    fn copy(&self, file: &mut impl Read, out: &mut impl Write, mut bytes: u64) -> Result<(), ModelError> {
        let mut buffer = [0; 1 << 13];
        while bytes > 0 {
            let len = bytes.min(buffer.len() as u64) as usize;
            let part = buffer.get_mut(..len).unwrap_or_default();
            file.read_exact(part).map_err(|error| self.unread(error))?;
            out.write_all(part).map_err(unwritten)?;
            bytes -= len as u64;
        }
        Ok(())
    }

    fn check(&self, first: usize, expected: usize, values: &[f32]) -> Result<(), ModelError> {
        if values.len() != expected {
            let problem = format!("are {} where {expected} have a place, from value {first} on", values.len());
            return Err(ModelError::Weights { problem });
        }
        match find_not_finite(values) {
            Some(index) => Err(not_finite(self.layout(), first + index)),
            None => Ok(()),
        }
    }

    fn unread(&self, error: io::Error) -> ModelError {
        let source = match error.kind() {
            io::ErrorKind::UnexpectedEof => {
                let problem = format!("it ends before the {} bytes that its lineage has", self.file_bytes());
                io::Error::new(io::ErrorKind::UnexpectedEof, problem)
            }
            _ => error,
        };
        ModelError::Stream { action: READ, source }
    }
}

fn unwritten(source: io::Error) -> ModelError {
    ModelError::Stream { action: WRITE, source }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;
    use crate::testing::{self, DIGITS, FloatData};
    use crate::{Digest, HashingWriter, Model, Weights};

    /// A trickle: each read gives few bytes, as a socket may.
    struct Trickle<'b>(&'b [u8]);

    impl Read for Trickle<'_> {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            let len = into.len().min(1 + self.0.len() % 7);
            self.0.read(&mut into[..len])
        }
    }

    fn half(value: f32) -> f32 {
        value * 0.5 + 0.25
    }

    fn halve(_: usize, base: &[f32], out: &mut Vec<f32>) -> Result<(), ModelError> {
        out.extend(base.iter().map(|value| half(*value)));
        Ok(())
    }

    /// One dense layer of three pieces.
    fn large() -> Vec<u8> {
        let len = 2 * PIECE_VALUES + 5;
        let values: Vec<f32> = (0..len).map(|index| index as f32 / 1e6).collect();
        let gemm = testing::node("Gemm", &["x", "w"], &["y"]);
        let weight = testing::floats("w", &[1, len as i64], &values);
        testing::bytes(testing::graph(&[-1, 1], &[-1, len as i64], vec![gemm], vec![weight]))
    }

    fn all() -> Vec<Vec<u8>> {
        let float_data = [FloatData::Packed, FloatData::Single].map(testing::linear_with_float_data);
        [DIGITS.to_vec(), large()].into_iter().chain(float_data).collect()
    }

    #[test]
    fn a_streamed_file_is_the_one_that_is_made_in_memory() {
        for file in all() {
            let model = Model::from_bytes(file.clone()).unwrap();
            let values = model.weights().values().iter().map(|value| half(*value)).collect();
            let expected = model.with_weights(&Weights::new(model.layout().clone(), values).unwrap()).unwrap();
            let mut out = HashingWriter::new(Vec::new());
            model.places().splice(Trickle(&file), &mut out, halve).unwrap();
            let (streamed, digest, bytes) = out.finish();
            assert_eq!(streamed, **expected.bytes());
            assert_eq!((digest, bytes), (expected.digest(), file.len() as u64));
            assert_eq!(expected.places(), model.places());
        }
    }

    #[test]
    fn the_pieces_are_the_flat_values_in_order_and_none_is_larger_than_said() {
        for file in all() {
            let model = Model::from_bytes(file.clone()).unwrap();
            let mut flat = Vec::new();
            let look = |first, values: &[f32]| {
                assert_eq!(first, flat.len());
                assert!((1..=PIECE_VALUES).contains(&values.len()));
                assert!(
                    model
                        .places()
                        .runs()
                        .iter()
                        .any(|run| run.flat.contains(&first) && first + values.len() <= run.flat.end)
                );
                flat.extend_from_slice(values);
                Ok::<_, ModelError>(())
            };
            model.places().for_each_piece(&file[..], look).unwrap();
            assert_eq!(flat, model.weights().values());
        }
    }

    #[test]
    fn a_base_of_another_length_is_refused_wherever_it_ends() {
        let model = Model::from_bytes(DIGITS).unwrap();
        for length in (0..DIGITS.len()).step_by(997).chain([DIGITS.len() - 1]) {
            let error = model.places().splice(&DIGITS[..length], io::sink(), halve).unwrap_err().to_string();
            assert!(error.contains("ends before") && error.contains(&DIGITS.len().to_string()), "{error}");
        }
        let longer = [DIGITS, b"!"].concat();
        let error = model.places().splice(&longer[..], io::sink(), halve).unwrap_err().to_string();
        assert!(error.contains("goes on"), "{error}");
    }

    #[test]
    fn values_that_are_not_finite_are_refused_with_their_parameter_wherever_they_come_from() {
        let model = Model::from_bytes(DIGITS).unwrap();
        let place = &model.places().runs()[1];
        let (at, flat) = (place.bytes.start as usize, place.flat.start);
        let name = &model.layout().parameters()[1].name;
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut damaged = DIGITS.to_vec();
            damaged[at + 8..at + 12].copy_from_slice(&bad.to_le_bytes());
            let error = model.places().splice(&damaged[..], io::sink(), halve).unwrap_err().to_string();
            assert!(error.contains(name) && error.contains("element 2"), "{error}");
            let look = |_, _: &[f32]| Ok::<_, ModelError>(());
            assert_eq!(model.places().for_each_piece(&damaged[..], look).unwrap_err().to_string(), error);
            let grow = |first: usize, base: &[f32], out: &mut Vec<f32>| {
                out.extend_from_slice(base);
                if first == flat {
                    out[2] = bad;
                }
                Ok::<_, ModelError>(())
            };
            assert_eq!(model.places().splice(DIGITS, io::sink(), grow).unwrap_err().to_string(), error);
        }
    }

    #[test]
    fn a_wrong_number_of_new_values_and_the_callers_own_error_stop_the_stream() {
        let model = Model::from_bytes(DIGITS).unwrap();
        let few = |_: usize, base: &[f32], out: &mut Vec<f32>| {
            out.extend_from_slice(&base[1..]);
            Ok::<_, ModelError>(())
        };
        let error = model.places().splice(DIGITS, io::sink(), few).unwrap_err().to_string();
        assert!(error.contains("143 where 144"), "{error}");
        let own = |_: usize, _: &[f32], _: &mut Vec<f32>| Err(ModelError::graph("is not wanted"));
        let error = model.places().splice(DIGITS, io::sink(), own).unwrap_err().to_string();
        assert!(error.contains("is not wanted"), "{error}");
    }

    #[test]
    fn a_full_disk_is_reported_as_a_failure_to_write() {
        let model = Model::from_bytes(DIGITS).unwrap();
        let mut room = vec![0; 30_000];
        let error = model.places().splice(DIGITS, &mut room[..], halve).unwrap_err().to_string();
        assert!(error.contains("write the new model"), "{error}");
        assert_ne!(Digest::of(&room), Digest::of(&DIGITS[..30_000]), "it did write before it failed");
    }

    #[test]
    #[ignore = "a measurement, not a check"]
    fn speed_of_100_megabytes() {
        let len = 25_000_000;
        let gemm = testing::node("Gemm", &["x", "w"], &["y"]);
        let weight = testing::floats("w", &[1, len], &vec![0.5; len as usize]);
        let file = testing::bytes(testing::graph(&[-1, 1], &[-1, len], vec![gemm], vec![weight]));
        let model = Model::from_bytes(file.clone()).unwrap();
        let rate = |name: &str, work: &dyn Fn()| {
            let started = std::time::Instant::now();
            work();
            println!("{name}: {:.2} GB/s", file.len() as f64 / started.elapsed().as_secs_f64() / 1e9);
        };
        let look = |_, _: &[f32]| Ok::<_, ModelError>(());
        rate("looking at the values", &|| model.places().for_each_piece(&file[..], look).unwrap());
        rate("splicing", &|| model.places().splice(&file[..], io::sink(), halve).unwrap());
        let hash = || model.places().splice(&file[..], HashingWriter::new(io::sink()), halve).unwrap();
        rate("splicing and hashing", &hash);
    }
}
