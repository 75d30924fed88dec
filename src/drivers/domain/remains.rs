//! What a domain leaves on the host besides its definition: the variables of its firmware, the state of its TPM.
//!
//! | | when the domain is undefined | when a transient one ends |
//! | --- | --- | --- |
//! | variables | removed or kept as the client says, who has to say | kept |
//! | state of a TPM | removed, unless the client or `persistent_state` says otherwise | the same |

use std::path::Path;

use super::Domains;
use super::flags::UndefineFlags;
use crate::conf::devices::TpmBackend;
use crate::conf::domain::{Domain, NvramSourceType};
use crate::conf::xml::YesNo;
use crate::error::{Error, Result};
use crate::qemu::job::State;
use crate::util::file::remove_if_there;

/// Whether the domain's firmware has left variables.
pub(super) fn has_nvram(state: &State) -> bool {
    let path = state.definition().and_then(|definition| nvram(definition));
    path.is_some_and(|path| Path::new(path).exists())
}

/// Removes the variables of the domain's firmware, if there are any.
pub(super) fn remove_nvram(state: &State) -> Result<()> {
    let Some(path) = state.definition().and_then(|definition| nvram(definition)) else { return Ok(()) };
    remove_if_there(Path::new(path))
        .map_err(|error| Error::io(format_args!("failed to remove nvram: {path}"), error))
}

/// The file or block device with the variables.
fn nvram(definition: &Domain) -> Option<&str> {
    let place = &definition.os.nvram.as_deref()?.place;
    let is_here = !place.is_remote() && place.source_type != Some(NvramSourceType::Network);
    place.path.as_deref().filter(|_| is_here)
}

impl Domains {
    /// Removes the state of the TPMs that the daemon keeps for a domain that is no more.
    pub(super) fn drop_tpm_state(&self, state: &State, flags: UndefineFlags) {
        let Some(definition) = state.definition() else { return };
        let goes = definition.devices.tpms.iter().any(|tpm| match &tpm.backend {
            TpmBackend::Emulator(emulator) if emulator.source.is_some() => false,
            TpmBackend::Emulator(emulator) => match emulator.persistent_state {
                Some(YesNo::Yes) => flags.contains(UndefineFlags::TPM),
                _ => !flags.contains(UndefineFlags::KEEP_TPM),
            },
            TpmBackend::Passthrough(_) | TpmBackend::External(_) => false,
        });
        if !goes {
            return;
        }
        let directory = self.tpm_states().join(state.uuid.to_string());
        match std::fs::remove_dir_all(&directory) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                tracing::warn!(domain = %state.name, %error, "cannot remove the state of the guest's TPM");
            }
            _ => {}
        }
    }
}
