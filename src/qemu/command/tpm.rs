//! Trusted platform modules.

use super::line::{Line, Props, escape_comma};
use super::{Guest, Result, internal, unsupported};
use crate::conf::devices::{Tpm, TpmBackend};

pub(super) fn build(guest: &Guest<'_>, line: &mut Line<'_>) -> Result<()> {
    for tpm in &guest.domain.devices.tpms {
        backend(guest, line, tpm)?;
        let alias = guest.alias(&tpm.info)?;
        let Some(model) = tpm.model else { return internal("TPM has no model") };
        let props = Props::driver(model.as_str()).set("tpmdev", format!("tpm-{alias}")).set("id", alias);
        line.device(guest.at(props, &tpm.info)?);
    }
    Ok(())
}

/// The names of the descriptors of the host's TPM, and of the file that takes a command back.
pub(super) fn device_name(alias: &str) -> String {
    format!("{alias}-tpm")
}

pub(super) fn cancel_name(alias: &str) -> String {
    format!("{alias}-cancel")
}

fn backend(guest: &Guest<'_>, line: &mut Line<'_>, tpm: &Tpm) -> Result<()> {
    let alias = guest.alias(&tpm.info)?;
    let socket = match &tpm.backend {
        TpmBackend::Passthrough(_) => {
            let device = guest.pass_file(line, &device_name(alias))?;
            let cancel = guest.pass_file(line, &cancel_name(alias))?;
            line.option("-tpmdev", format!("passthrough,id=tpm-{alias},path={device},cancel-path={cancel}"));
            return Ok(());
        }
        TpmBackend::Emulator(emulator) => emulator.socket.as_deref(),
        TpmBackend::External(external) => external.source.as_ref().and_then(|source| source.path.as_deref()),
    };
    let Some(socket) = socket else { return unsupported("the TPM emulator was not started") };
    line.option("-chardev", format!("socket,id=chrtpm,path={}", escape_comma(socket)));
    line.option("-tpmdev", format!("emulator,id=tpm-{alias},chardev=chrtpm"));
    Ok(())
}
