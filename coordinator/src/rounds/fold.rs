//! Reads accepted updates, from their row or their file, and adds them to the round's sums, a piece at a time.
//! Which updates count is decided in `step`; the arithmetic is `aggregate`'s.

use std::fs::File;
use std::io::{Cursor, Read};
use std::path::PathBuf;
use std::sync::Arc;

use fedge_proto::update::{Coding, Decoder};
use prost::bytes::Bytes;
use sha2::{Digest as _, Sha256};

use super::mint::MintError;
use crate::aggregate::fixed_point::{Check, Contribution, Scales, Sums};

/// Values that are decoded at a time.
const PIECE: usize = 1 << 16;

/// Where an update's payload lies.
#[derive(Debug, Clone)]
pub enum Payload {
    /// In memory: a small one.
    Row(Bytes),
    /// In the spool.
    File(PathBuf),
}

impl Payload {
    fn open(&self) -> std::io::Result<Box<dyn Read + Send>> {
        Ok(match self {
            Payload::Row(bytes) => Box::new(Cursor::new(bytes.clone())),
            Payload::File(path) => Box::new(std::io::BufReader::with_capacity(1 << 18, File::open(path)?)),
        })
    }

    fn name(&self) -> String {
        match self {
            Payload::Row(_) => "a row of the database".to_owned(),
            Payload::File(path) => path.display().to_string(),
        }
    }
}

/// How an update's values are written.
#[derive(Debug, Clone)]
pub struct Form {
    /// Encoding and compression.
    pub coding: Coding,
    /// Lengths of the exchanged tensors.
    pub tensors: Arc<[usize]>,
}

/// Checks every value of an update; gives the squared norm of the trainable ones.
///
/// # Errors
/// [`MintError::Aggregation`] names the parameter, [`MintError::Update`] says why the payload can't be decoded.
pub fn check(payload: &Payload, form: &Form, scales: &Arc<Scales>) -> Result<f64, MintError> {
    let mut check = Check::new(scales.clone());
    decode(payload, form, payload.open().map_err(|e| unreadable(payload, &e))?, |piece| Ok(check.piece(piece)?))?;
    Ok(check.finish()?)
}

/// Adds an update to the sums. `sha256`: to be checked on the way, where the payload was stored since it was received.
///
/// # Errors
/// As [`check`]; the sums are lost then.
pub fn fold(
    payload: &Payload,
    form: &Form,
    sums: &Sums,
    contribution: &Contribution,
    sha256: Option<[u8; 32]>,
) -> Result<(), MintError> {
    if let Some(expected) = sha256 {
        let mut hash = Sha256::new();
        let mut reader = payload.open().map_err(|e| unreadable(payload, &e))?;
        std::io::copy(&mut reader, &mut hash).map_err(|e| unreadable(payload, &e))?;
        if hash.finalize().as_slice() != expected {
            return Err(unreadable(payload, &"it is damaged: its digest is not the one that was acknowledged"));
        }
    }
    let mut fold = sums.begin(contribution)?;
    decode(payload, form, payload.open().map_err(|e| unreadable(payload, &e))?, |piece| Ok(fold.piece(piece)?))?;
    Ok(fold.finish()?)
}

fn decode(
    payload: &Payload,
    form: &Form,
    reader: Box<dyn Read + Send>,
    mut piece: impl FnMut(&[f32]) -> Result<(), MintError>,
) -> Result<(), MintError> {
    let mut decoder = Decoder::new(reader, &form.coding, &form.tensors).map_err(|e| unreadable(payload, &e))?;
    let mut values = vec![0.0; PIECE];
    loop {
        let len = decoder.read(&mut values).map_err(|e| unreadable(payload, &e))?;
        if len == 0 {
            return Ok(());
        }
        piece(values.get(..len).unwrap_or_default())?;
    }
}

fn unreadable(payload: &Payload, problem: &dyn std::fmt::Display) -> MintError {
    MintError::Update { update: payload.name(), problem: problem.to_string() }
}
