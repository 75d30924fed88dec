//! What support wants to know of a running guest: what is unusual in it, and what will go away.

use super::Domains;
use super::flags::{CallFlags, MessageFlags};
use crate::conf::devices::InterfaceKind;
use crate::conf::domain::{Domain, QemuExtras};
use crate::conf::xml::YesNo;
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
            messages.extend(taints(live).iter().map(|(_, what)| format!("tainted: {what}")));
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

/// What is unusual in a guest, by its name in libvirt's files and its sentence, in the order of libvirt's list.
pub(super) fn taints(live: &Domain) -> Vec<(&'static str, &'static str)> {
    let is_root = |label: &str| label.split(':').any(|id| id.trim_start_matches('+') == "0");
    let mut labels = live.seclabels.iter().filter(|label| label.model.as_deref() == Some("dac"));
    let has_root = labels.any(|label| label.label.as_deref().is_some_and(is_root));
    let devices = &live.devices;
    let has_raw_io = devices.disks.iter().any(|disk| disk.rawio == Some(YesNo::Yes));
    let own = live.qemu.0.as_deref();
    let has = |what: fn(&QemuExtras) -> bool| own.is_some_and(what);
    let [arguments, features, properties] = [
        has(|own| !own.args.is_empty() || !own.env.is_empty()),
        has(|own| !own.capabilities_added.is_empty() || !own.capabilities_removed.is_empty()),
        has(|own| !own.overrides.is_empty()),
    ];
    let mut cards = devices.interfaces.iter().filter(|card| card.kind == InterfaceKind::Ethernet);
    let all = [
        (arguments, "custom-argv", "custom configuration parameters specified"),
        (has_root || has_raw_io, "high-privileges", "running with undesirable elevated privileges"),
        (
            cards.any(|card| card.script.is_some()),
            "shell-scripts",
            "network configuration using opaque shell scripts",
        ),
        (
            devices.disks.iter().any(|disk| disk.storage.is_host_cdrom),
            "cdrom-passthrough",
            "use of host cdrom passthrough",
        ),
        (live.os.dtb.is_some(), "custom-dtb", "custom device tree blob used"),
        (features, "custom-hypervisor-feature", "hypervisor feature autodetection override"),
        (properties, "custom-device", "custom device configuration"),
    ];
    all.into_iter().filter(|(there, ..)| *there).map(|(_, flag, sentence)| (flag, sentence)).collect()
}
