//! The numbers of samples: in memory, or in a temporary file without a name, which goes with the process.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::sync::{Mutex, PoisonError};

use super::TrainingError;

/// Numbers, sample after sample.
#[derive(Debug)]
pub(super) enum Inputs {
    Held(Vec<f32>),
    Filed(Filed),
}

/// Numbers in a file, each in the machine's own byte order.
#[derive(Debug)]
pub(super) struct Filed {
    file: Mutex<File>,
    len: usize,
}

/// Those of a file are equal to themselves alone: comparing them would read it.
impl PartialEq for Inputs {
    fn eq(&self, other: &Inputs) -> bool {
        match (self, other) {
            (Inputs::Held(own), Inputs::Held(other)) => own == other,
            _ => std::ptr::eq(self, other),
        }
    }
}

impl Inputs {
    /// How many numbers there are.
    pub(super) fn len(&self) -> usize {
        match self {
            Inputs::Held(values) => values.len(),
            Inputs::Filed(filed) => filed.len,
        }
    }

    /// Adds numbers; once there are more than `held`, all go to a file.
    pub(super) fn extend(&mut self, more: Vec<f32>, held: usize) -> Result<(), TrainingError> {
        if let Inputs::Held(values) = self {
            if values.len() + more.len() <= held {
                values.extend(more);
                return Ok(());
            }
            let mut filed = Filed { file: Mutex::new(tempfile::tempfile().map_err(failed)?), len: 0 };
            filed.append(values)?;
            *self = Inputs::Filed(filed);
        }
        match self {
            Inputs::Filed(filed) => filed.append(&more),
            Inputs::Held(_) => Ok(()),
        }
    }

    /// Copies the samples of these places, `len` numbers each; places past the end are left out.
    pub(super) fn rows(&self, rows: impl Iterator<Item = usize>, len: usize) -> Result<Vec<f32>, TrainingError> {
        let mut values = Vec::with_capacity(rows.size_hint().0 * len);
        match self {
            Inputs::Held(all) => {
                for row in rows {
                    let sample = row.checked_mul(len).and_then(|start| all.get(start..start.checked_add(len)?));
                    values.extend_from_slice(sample.unwrap_or_default());
                }
            }
            Inputs::Filed(filed) => {
                let mut bytes = vec![0; len * 4];
                let mut file = filed.file.lock().unwrap_or_else(PoisonError::into_inner);
                for row in rows.filter(|row| row.checked_mul(len).is_some_and(|start| start + len <= filed.len)) {
                    file.seek(SeekFrom::Start((row * len * 4) as u64)).map_err(failed)?;
                    file.read_exact(&mut bytes).map_err(failed)?;
                    values.extend(bytes.as_chunks().0.iter().map(|&value| f32::from_ne_bytes(value)));
                }
            }
        }
        Ok(values)
    }
}

impl Filed {
    fn append(&mut self, values: &[f32]) -> Result<(), TrainingError> {
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        file.seek(SeekFrom::End(0)).map_err(failed)?;
        for part in values.chunks(1 << 16) {
            let bytes: Vec<u8> = part.iter().flat_map(|value| value.to_ne_bytes()).collect();
            file.write_all(&bytes).map_err(failed)?;
        }
        self.len += values.len();
        Ok(())
    }
}

fn failed(problem: std::io::Error) -> TrainingError {
    TrainingError::data(format!(
        "too many samples for memory, and a temporary file for them in {} failed: {problem}; set TMPDIR to a folder with room",
        std::env::temp_dir().display()
    ))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn numbers_in_a_file_are_those_in_memory() {
        let pieces: [&[f32]; 4] = [&[1.0, 2.0], &[3.0, -4.5, 5.0, 6.0], &[], &[7.0, f32::MIN_POSITIVE]];
        let gathered = |held| {
            let mut inputs = Inputs::Held(Vec::new());
            pieces.iter().for_each(|piece| inputs.extend(piece.to_vec(), held).unwrap());
            inputs
        };
        let (held, filed) = (gathered(100), gathered(3));
        assert!(matches!(held, Inputs::Held(_)) && matches!(filed, Inputs::Filed(_)));
        assert_eq!((held.len(), filed.len()), (8, 8));
        for rows in [vec![3, 0, 1, 1], vec![9, 2], vec![usize::MAX, 0], vec![]] {
            let of = |inputs: &Inputs| inputs.rows(rows.iter().copied(), 2).unwrap();
            assert_eq!(of(&filed), of(&held));
        }
    }
}
