//! A node without a coordinator: serves the models of a folder. Only wiring lives here.
//! A node of a fleet is assembled in `run`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use fedge_proto::identity::SharedIdentity;
use tokio_util::sync::CancellationToken;

use crate::config::{Config, ConfigError};
use crate::doors::{Addresses, Doors};
use crate::federation::renewal;
use crate::inference::library::LibraryError;
use crate::inference::{Inference, KeepPolicy, Library, LibraryOptions, ModelRepository, ServiceOptions};
use crate::run::{DRAIN, RunError, executor_options, identity_directory, traces, usable_identity};
use crate::server::Services;

/// What a standalone node serves, and where.
#[derive(Debug, Clone)]
pub struct Standalone {
    /// `<model>/<version>/model.onnx`.
    pub model_repository: PathBuf,
    /// When models are loaded.
    pub library: LibraryOptions,
}

/// Serves the models of a folder until `shutdown` is ready; `ready` is called once it listens and every model that could
/// be loaded is. `folder` holds the identity that it shows, unless it serves in plaintext.
///
/// # Errors
/// [`RunError`] says which file, port or certificate is in the way. A model that can't be loaded is no error: it is logged,
/// and in the index.
pub async fn run(
    folder: &Path,
    config: Config,
    standalone: Standalone,
    ready: impl FnOnce(Addresses),
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> Result<(), RunError> {
    if let Some(name) = config.model.keys().next() {
        return Err(ConfigError::Model {
            name: name.clone(),
            key: "all",
            problem: "of a standalone node is in the model repository: MODEL/model.toml",
        }
        .into());
    }
    let doors = Doors::bind(&config).await?;
    let addresses = doors.addresses;
    let stop = CancellationToken::new();
    let directory = identity_directory(folder);
    let identity = match config.inference.plaintext {
        true => None,
        false => Some(usable_identity(&directory).await?),
    };
    let executor = executor_options(&config);
    let repository = Arc::new(ModelRepository::with_options(executor.clone()));
    let options = LibraryOptions { executor, ..standalone.library };
    let poll = !matches!(options.control, crate::inference::library::Control::Explicit);
    let library = Arc::new(Library::new(standalone.model_repository, Arc::clone(&repository), options));
    if poll {
        library.look().await?;
    }
    let options = ServiceOptions { keep: KeepPolicy::Off, ..ServiceOptions::default() };
    let inference = Inference::new(repository, None, options.keep, options.limits);
    let services = Services { inference, library: Some(Arc::clone(&library)), samples: None, options };
    let traces = traces(&config, identity.as_ref())?;
    let (server, renewed) = doors.open(services, identity.as_ref(), traces.clone(), &stop)?;
    let renewal = identity.map(|identity| {
        tokio::spawn(renewal::keep_renewed(directory, SharedIdentity::new(identity), renewed, stop.clone()))
    });
    let watching = {
        let library = Arc::clone(&library);
        tokio::spawn(async move { library.watch().await })
    };
    ready(addresses);

    shutdown.await;
    tracing::info!("shutting down");
    watching.abort();
    stop.cancel();
    let served = tokio::time::timeout(DRAIN, server).await;
    if let Some(renewal) = renewal {
        let _ = renewal.await;
    }
    let _ = tokio::task::spawn_blocking(move || traces.finish()).await;
    match served {
        Ok(Ok(result)) => result.map_err(RunError::Serve),
        // Callers that did not end in time are cut off.
        Ok(Err(_)) | Err(_) => Ok(()),
    }
}

impl From<LibraryError> for RunError {
    fn from(error: LibraryError) -> RunError {
        RunError::Models(error.to_string())
    }
}
