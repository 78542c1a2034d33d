//! What training computes on, and whether it is there.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::TrainingError;

/// What training computes on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Device {
    /// The processor that the program runs on, in single or double precision.
    #[default]
    Cpu,
    /// The graphics processor that the system prefers, over Vulkan, Metal or DirectX 12, in single precision. Needs a
    /// program built with the feature `wgpu`.
    Gpu,
}

impl Device {
    /// Whether training can run on it, and what it is called. A graphics processor is taken into use by the first call, and
    /// stays so.
    ///
    /// # Errors
    /// The program was built without the graphics processor's part, or none answers.
    pub fn check(self) -> Result<String, TrainingError> {
        match self {
            Device::Cpu => Ok("cpu".to_owned()),
            Device::Gpu => gpu().map_err(|problem| TrainingError::Device { problem }),
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Device::Cpu => "cpu",
            Device::Gpu => "gpu",
        })
    }
}

impl FromStr for Device {
    type Err = String;

    fn from_str(text: &str) -> Result<Device, String> {
        match text {
            "cpu" => Ok(Device::Cpu),
            "gpu" => Ok(Device::Gpu),
            _ => Err(format!("{text:?} is no device; give \"cpu\" or \"gpu\"")),
        }
    }
}

/// Takes the graphics processor into use, once.
#[cfg(feature = "wgpu")]
fn gpu() -> Result<String, String> {
    use std::panic::catch_unwind;
    use std::sync::OnceLock;

    use burn_wgpu::graphics::AutoGraphicsApi;
    use burn_wgpu::{RuntimeOptions, WgpuDevice, try_init_setup};

    static FOUND: OnceLock<Result<String, String>> = OnceLock::new();
    let find = || {
        // A driver that cannot start is not always said in the result.
        let setup =
            catch_unwind(|| try_init_setup::<AutoGraphicsApi>(&WgpuDevice::default(), RuntimeOptions::default()));
        let setup = setup.map_err(|_| "its driver stopped".to_owned())?.map_err(|problem| {
            format!("none answers ({problem}); install its driver (on Linux, Vulkan's), or train on the cpu")
        })?;
        let adapter = setup.adapter.get_info();
        let name = format!("{} ({})", adapter.name, adapter.backend);
        tracing::info!(adapter = %name, kind = ?adapter.device_type, "training on the gpu");
        Ok(name)
    };
    FOUND.get_or_init(find).clone()
}

/// Why there is no graphics processor in a program without its part.
#[cfg(not(feature = "wgpu"))]
pub(super) const ABSENT: &str =
    "this program was built without it; build it with `--features wgpu`, or train on the cpu";

#[cfg(not(feature = "wgpu"))]
fn gpu() -> Result<String, String> {
    Err(ABSENT.to_owned())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_named_as_it_is_written() {
        for device in [Device::Cpu, Device::Gpu] {
            assert_eq!(device.to_string().parse::<Device>().unwrap(), device);
        }
        assert!("cuda".parse::<Device>().unwrap_err().contains("\"gpu\""));
        assert_eq!(Device::Cpu.check().unwrap(), "cpu");
    }

    #[cfg(not(feature = "wgpu"))]
    #[test]
    fn a_program_without_the_feature_says_how_to_get_it() {
        assert!(Device::Gpu.check().unwrap_err().to_string().contains("--features wgpu"));
    }
}
