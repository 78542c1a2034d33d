//! The newest version of a running task's lineage, as rounds need it: where its values lie and how finely they are summed.
//! The model itself stays on disk; a version is made from it in `mint`.

use std::path::PathBuf;
use std::sync::Arc;

use fedge_models::{Exchange, Manifest, ModelError, Places};

use crate::aggregate::AggregationError;
use crate::aggregate::fixed_point::{LargestAbs, Scales};
use crate::store::{Store, StoreError};

/// Why a version is no base for a task.
#[derive(Debug, thiserror::Error)]
pub enum BaseError {
    /// It can't be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// What the task trains is not there.
    #[error("{0}")]
    Exchange(String),
}

/// A version on disk. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Base {
    /// What the version says of itself.
    pub manifest: Arc<Manifest>,
    /// Where the values lie that travel in the task.
    pub places: Places,
    /// The round's integer scales.
    pub scales: Arc<Scales>,
    /// Its ONNX file.
    pub path: PathBuf,
}

impl Base {
    /// Reads and checks a stored version, of which this is exchanged. The model is in memory only while this runs.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] names the version; [`BaseError::Exchange`] where the task trains nothing of it.
    pub fn load(store: &Store, name: &str, number: u64, exchange: &Exchange) -> Result<Base, BaseError> {
        let package = store.read_package(name, number)?;
        let damaged = |reason: String| StoreError::Damaged { what: format!("model {name} version {number}"), reason };
        let places = package.model.places().exchanging(exchange).map_err(|e| BaseError::Exchange(e.to_string()))?;
        let mut largest = LargestAbs::new(places.layout());
        let look = |_, values: &[f32]| largest.piece(values).map_err(Refused::from);
        places.for_each_piece(&mut &**package.model.bytes(), look).map_err(|e| damaged(e.0))?;
        let scales = Base::scales(&places, largest).map_err(|e| damaged(e.to_string()))?;
        let path = store.model_path(name, number);
        Ok(Base { manifest: Arc::new(package.manifest), places, scales, path })
    }

    /// The scales of a version whose largest values are known.
    pub(super) fn scales(places: &Places, largest: LargestAbs) -> Result<Arc<Scales>, AggregationError> {
        Ok(Arc::new(Scales::new(places.layout(), &largest.finish()?)?))
    }

    /// Lengths of the tensors that travel, in flat order.
    pub fn tensors(&self) -> Vec<usize> {
        self.places.layout().exchanged().map(|(_, range)| range.len()).collect()
    }
}

struct Refused(String);

impl From<ModelError> for Refused {
    fn from(error: ModelError) -> Self {
        Refused(error.to_string())
    }
}

impl From<AggregationError> for Refused {
    fn from(error: AggregationError) -> Self {
        Refused(error.to_string())
    }
}
