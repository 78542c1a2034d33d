//! Makes the next version of a round's sums: base and server state are read, and the new ones written, piece by piece.
//! The arithmetic is `aggregate`'s; recording what was made, in the round's own transaction, is `driver`'s.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fedge_models::{Digest, Manifest, ModelError, Package};

use super::base::Base;
use super::state::{ServerState, VersionRef};
use crate::aggregate::fixed_point::{LargestAbs, Sums};
use crate::aggregate::strategies::{StateArray, StrategySpec};
use crate::aggregate::{AggregationError, Close, UpdateFacts};
use crate::store::models::ModelRow;
use crate::store::{Store, StoreError};

/// Why no version came out of a round's updates.
#[derive(Debug, thiserror::Error)]
pub enum MintError {
    /// The arithmetic.
    #[error(transparent)]
    Aggregation(#[from] AggregationError),
    /// The model repository.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The base or the new version.
    #[error("making the next version: {0}")]
    Model(#[from] ModelError),
    /// A worker died.
    #[error("aggregation was interrupted: {0}")]
    Interrupted(String),
    /// What the strategy keeps.
    #[error("the strategy's state {}: {source}", path.display())]
    State {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// An update that was accepted can't be read back.
    #[error("reading an accepted update again, {update}: {problem}")]
    Update {
        /// Where it lies.
        update: String,
        /// Why.
        problem: String,
    },
}

/// A new version on disk, not recorded yet.
#[derive(Debug)]
pub struct Minted {
    /// Which one.
    pub version: VersionRef,
    /// Its row.
    pub row: ModelRow,
    /// What the strategy keeps beside it.
    pub server: Option<ServerState>,
    /// What the next round needs of it.
    pub base: Base,
}

/// Everything that a version is made of.
#[derive(Debug)]
pub struct Order {
    /// The task.
    pub task_id: String,
    /// The round.
    pub round: u64,
    /// How updates become the version.
    pub strategy: StrategySpec,
    /// The version before.
    pub base: Base,
    /// What the strategy kept beside it.
    pub server: Option<ServerState>,
    /// The updates.
    pub sums: Arc<Sums>,
    /// What is known of each, by node.
    pub facts: Vec<UpdateFacts>,
    /// Nodes that were there when the cohort was selected.
    pub population: usize,
}

/// Makes the version and writes it, with its server state. Memory: some pieces, whatever the model's size.
///
/// # Errors
/// [`MintError`]; nothing of the version is there then, or leftovers that the next attempt replaces.
pub fn mint(store: &Store, order: Order) -> Result<Minted, MintError> {
    let base = &order.base;
    let close = Close::new(&order.strategy, order.sums, &order.facts, order.population)?;
    let arrays = order.strategy.strategy().state();
    let number = base.manifest.number + 1;
    let len = base.places.layout().exchanged_len();
    let state = Arrays::open(store, &order.task_id, base.manifest.number, order.server.as_ref(), arrays, len)?;
    let mut largest = LargestAbs::new(base.places.layout());
    let manifest = Manifest {
        number,
        parent: Some(base.manifest.digest),
        task: Some(order.task_id.clone()),
        round: Some(order.round),
        ..Manifest::clone(&base.manifest)
    };
    let file = File::open(&base.path).map_err(|source| StoreError::File {
        what: "cannot open the model",
        path: base.path.clone(),
        source,
    })?;
    let written = Package::write_streamed(manifest, &store.models_folder(), |out| {
        base.places.splice(&file, out, |start, values, next: &mut Vec<f32>| {
            let mut pieces = state.read(start, values.len())?;
            let new = close.piece(start, values, &mut pieces)?;
            state.write(start, &pieces)?;
            largest.piece(&new)?;
            next.extend_from_slice(&new);
            Ok::<(), MintError>(())
        })
    })?;
    fail::fail_point!("mint_model_written");
    let version = VersionRef { number, digest: written.manifest.digest };
    let server = state.finish(number)?;
    fail::fail_point!("mint_state_written");
    let row = ModelRow::of_manifest(&written.manifest, written.bytes)?;
    let base = Base {
        path: store.model_path(&written.manifest.name, number),
        manifest: Arc::new(written.manifest),
        places: base.places.clone(),
        scales: Base::scales(&base.places, largest)?,
    };
    Ok(Minted { version, row, server, base })
}

/// The strategy's arrays on disk: those beside the base are read, those beside the new version written, one after the
/// other in a file.
struct Arrays {
    arrays: Vec<StateArray>,
    len: usize,
    old: Option<(PathBuf, File)>,
    new: Option<(tempfile::NamedTempFile, PathBuf)>,
    store: Store,
    task_id: String,
}

impl Arrays {
    fn open(
        store: &Store,
        task_id: &str,
        number: u64,
        server: Option<&ServerState>,
        arrays: Vec<StateArray>,
        len: usize,
    ) -> Result<Arrays, MintError> {
        let mut opened =
            Arrays { arrays, len, old: None, new: None, store: store.clone(), task_id: task_id.to_owned() };
        if opened.arrays.is_empty() {
            return Ok(opened);
        }
        if let Some(server) = server {
            let path = store.server_state(task_id, number);
            let failed = |source| MintError::State { path: path.clone(), source };
            let file = File::open(&path).map_err(failed)?;
            let expected = (opened.arrays.len() * len * 4) as u64;
            if server.size_bytes != expected {
                let problem = format!("it has {} bytes, the task's parameters need {expected}", server.size_bytes);
                return Err(failed(std::io::Error::other(problem)));
            }
            if digest_of(&path).map_err(failed)? != server.digest {
                return Err(failed(std::io::Error::other("it is damaged: its digest is another one")));
            }
            opened.old = Some((path, file));
        }
        let path = store.server_state(task_id, number + 1);
        let folder = path.parent().unwrap_or(Path::new("."));
        let staged = tempfile::NamedTempFile::new_in(folder);
        let staged = staged.map_err(|source| MintError::State { path: path.clone(), source })?;
        opened.new = Some((staged, path));
        Ok(opened)
    }

    /// The range of each array.
    fn read(&self, start: usize, len: usize) -> Result<Vec<Vec<f32>>, MintError> {
        let mut pieces = Vec::with_capacity(self.arrays.len());
        for (index, array) in self.arrays.iter().enumerate() {
            let Some((path, file)) = &self.old else {
                pieces.push(vec![array.initial; len]);
                continue;
            };
            let mut bytes = vec![0; len * 4];
            let read = file.read_exact_at(&mut bytes, self.offset(index, start));
            read.map_err(|source| MintError::State { path: path.clone(), source })?;
            pieces.push(bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect());
        }
        Ok(pieces)
    }

    fn write(&self, start: usize, pieces: &[Vec<f32>]) -> Result<(), MintError> {
        let Some((staged, path)) = &self.new else { return Ok(()) };
        for (index, piece) in pieces.iter().enumerate() {
            let bytes: Vec<u8> = piece.iter().flat_map(|v| v.to_le_bytes()).collect();
            let written = staged.as_file().write_all_at(&bytes, self.offset(index, start));
            written.map_err(|source| MintError::State { path: path.clone(), source })?;
        }
        Ok(())
    }

    /// Gives the new file its name; on disk when this returns.
    fn finish(self, number: u64) -> Result<Option<ServerState>, MintError> {
        let Some((mut staged, path)) = self.new else { return Ok(None) };
        debug_assert_eq!(path, self.store.server_state(&self.task_id, number));
        let failed = |source| MintError::State { path: path.clone(), source };
        staged.flush().and_then(|()| staged.as_file().sync_all()).map_err(failed)?;
        let digest = digest_of(staged.path()).map_err(failed)?;
        fail::fail_point!("mint_state_synced");
        staged.persist(&path).map_err(|e| failed(e.error))?;
        let folder = path.parent().unwrap_or(Path::new("."));
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed)?;
        let size_bytes = (self.arrays.len() * self.len * 4) as u64;
        Ok(Some(ServerState { digest, size_bytes }))
    }

    fn offset(&self, array: usize, start: usize) -> u64 {
        (array as u64 * self.len as u64 + start as u64) * 4
    }
}

fn digest_of(path: &Path) -> std::io::Result<Digest> {
    let mut hash = fedge_models::HashingWriter::new(std::io::sink());
    std::io::copy(&mut File::open(path)?, &mut hash)?;
    Ok(hash.finish().1)
}
