//! Devices: as volumes, and before they are overwritten.

use std::path::Path;

use super::{ANSWER, Storage};
use crate::conf::storage::Volume;
use crate::drivers::storage::errors;
use crate::drivers::storage::pool::PoolObject;
use crate::error::{Code, Error, Result};
use crate::qemu::storage as image;

/// What is overwritten at both ends of a device, so that nothing is recognised there any more.
const ENDS: u64 = 1 << 20;

/// What a device is looked at for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// To write to it: nothing must be there.
    Overwrite,
    /// To use what is there.
    Use,
}

/// A device as a volume.
pub(super) fn volume(name: &str, key: &str, path: &str) -> Result<Volume> {
    Ok(image::probe_device(name, key, path)?)
}

impl Storage {
    pub(super) async fn device_exists(object: &PoolObject, path: &str) -> Result<bool> {
        let path = path.to_owned();
        object.blocking(move || Ok(Path::new(&path).exists())).await
    }

    /// Refuses a device on which `blkid` finds something else than `format`.
    pub(super) async fn check_device(&self, device: &str, format: &str, purpose: Purpose) -> Result<()> {
        let probe_failed =
            |sentence: String| Err(errors::ours(Error::new(Code::STORAGE_PROBE_FAILED, sentence)));
        // Answers 2 when it recognises nothing.
        let args = ["-p", "-o", "value", "-s", "TYPE", "-s", "PTTYPE", device];
        let found = match self.tools.tool("blkid", &args, ANSWER).await {
            Ok(found) => String::from_utf8_lossy(&found).trim().to_owned(),
            Err(error) if error.to_string().contains("exit status 2") => String::new(),
            Err(error) => return Err(error.into()),
        };
        match purpose {
            Purpose::Overwrite if found.is_empty() => Ok(()),
            Purpose::Overwrite if found == format => {
                let sentence = format!("Device '{device}' already formatted using '{format}'");
                Err(errors::ours(Error::new(Code::STORAGE_POOL_BUILT, sentence)))
            }
            Purpose::Overwrite => {
                let sentence = format!(
                    "Format of device '{device}' does not match the expected format '{format}', forced overwrite is necessary"
                );
                Err(errors::ours(Error::new(Code::STORAGE_POOL_BUILT, sentence)))
            }
            Purpose::Use if found.is_empty() => {
                probe_failed(format!("Device '{device}' is unrecognized, requires build"))
            }
            Purpose::Use if found == format => Ok(()),
            Purpose::Use => Err(errors::invalid(format!(
                "Format of device '{device}' does not match the expected format '{format}'"
            ))),
        }
    }

    /// Overwrites what a device is recognised by.
    pub(super) async fn clear_device(object: &PoolObject, path: &str) -> Result<()> {
        let path = path.to_owned();
        object.copying(move || Ok(image::clear_ends(&path, ENDS)?)).await
    }
}
