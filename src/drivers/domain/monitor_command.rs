//! A client's own commands to QEMU's monitor.

use std::os::fd::OwnedFd;

use super::Domains;
use super::flags::{CallFlags, MonitorCommandFlags};
use crate::error::{Error, Result};
use crate::qemu::job::{DomainHandle, Query};

impl Domains {
    /// Passes a command to QEMU as it is, and answers what QEMU says.
    pub async fn monitor_command(
        &self,
        mut domain: DomainHandle,
        command: &str,
        descriptors: Vec<OwnedFd>,
        flags: u32,
    ) -> Result<String> {
        let flags = MonitorCommandFlags::accept(flags)?;
        if descriptors.len() > 1 {
            let sentence = "at most 1 fd can be passed to qemu along with a command";
            return Err(Error::invalid_arg(sentence));
        }
        let job = domain.begin::<Query>().await?;
        let live = job.live()?;
        let state = live.state();
        tracing::warn!(domain = %state.name, uuid = %state.uuid, "is tainted: custom-monitor");
        match flags.contains(MonitorCommandFlags::HMP) {
            true => Ok(live.monitor().execute_human(command).await?),
            false => Ok(live.monitor().execute_raw(command, descriptors.into_iter().next()).await?),
        }
    }
}
