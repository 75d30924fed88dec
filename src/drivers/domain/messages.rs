//! What support wants to know of a running guest: what is unusual in it, and what will go away.

use super::Domains;
use super::flags::{CallFlags, MessageFlags};
use crate::conf::domain::Domain;
use crate::error::Result;
use crate::qemu::command::accel_of;
use crate::qemu::job::DomainHandle;

impl Domains {
    /// The messages of the kinds in `flags`, of all kinds if there are none. A domain that is off has none.
    pub async fn messages(&self, domain: &DomainHandle, flags: u32) -> Result<Vec<String>> {
        let wanted = match MessageFlags::accept(flags)? {
            none if none.is_empty() => MessageFlags::all(),
            some => some,
        };
        let state = domain.state();
        let Some(live) = &state.live else { return Ok(Vec::new()) };
        let old_machine = self.deprecated_machine(live).await?;
        let mut messages = Vec::new();
        if wanted.contains(MessageFlags::TAINTING) {
            messages.extend(taints(live).map(|what| format!("tainted: {what}")));
            if old_machine.is_some() {
                messages.push("tainted: use of deprecated configuration settings".to_owned());
            }
        }
        if let Some(name) = old_machine.filter(|_| wanted.contains(MessageFlags::DEPRECATION)) {
            messages.push(format!("deprecated configuration: machine type '{name}'"));
        }
        Ok(messages)
    }

    async fn deprecated_machine(&self, live: &Domain) -> Result<Option<String>> {
        let emulator = live.devices.emulator.as_deref().unwrap_or_default();
        let machine = live.os.os_type.machine.as_deref().unwrap_or_default();
        let caps = self.emulators.lookup(emulator.as_ref()).await?;
        let found = caps.machine(accel_of(live), machine);
        Ok(found.filter(|found| found.deprecated).map(|_| machine.to_owned()))
    }
}

/// In the order of libvirt's list.
fn taints(live: &Domain) -> impl Iterator<Item = &'static str> {
    let is_root = |label: &str| label.split(':').any(|id| id.trim_start_matches('+') == "0");
    let mut labels = live.seclabels.iter().filter(|label| label.model.as_deref() == Some("dac"));
    let has_root = labels.any(|label| label.label.as_deref().is_some_and(is_root));
    let has_arguments = live.qemu.0.as_ref().is_some_and(|own| !own.args.is_empty() || !own.env.is_empty());
    let custom = has_arguments.then_some("custom configuration parameters specified");
    let root = has_root.then_some("running with undesirable elevated privileges");
    custom.into_iter().chain(root)
}
