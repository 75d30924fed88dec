//! The machine itself, and what concerns QEMU as a whole.

use super::line::{Line, Props, escape_comma};
use super::{Guest, Result, Sandbox, internal, unsupported};
use crate::conf::devices::SoundModel;
use crate::conf::domain::{IoapicDriver, TimerName, VirtType};
use crate::conf::xml::{OnOff, YesNo};
use crate::qemu::capabilities::Cap;
use crate::util::paths::Scope;

/// QEMU and the libraries below it shall write to the guest's own directory only.
pub(super) fn environment(guest: &Guest<'_>, line: &mut Line<'_>) {
    let mut set = |name: &str, value: String| line.env.push((name.to_owned(), value));
    set("LC_ALL", "C".to_owned());
    for (name, value) in guest.context.inherited_env {
        set(name, value.clone());
    }
    let home = guest.context.state_dir.display();
    if guest.context.scope == Scope::System {
        set("HOME", home.to_string());
        set("XDG_DATA_HOME", format!("{home}/.local/share"));
    }
    set("XDG_CACHE_HOME", format!("{home}/.cache"));
    if guest.context.scope == Scope::System {
        set("XDG_CONFIG_HOME", format!("{home}/.config"));
    }
}

pub(super) fn name(guest: &Guest<'_>, line: &mut Line<'_>) -> Result<()> {
    line.option("-name", format!("guest={},debug-threads=on", escape_comma(&guest.domain.name)));
    Ok(())
}

/// How strictly QEMU sees to it that nothing deprecated is used.
pub(super) fn deprecation(guest: &Guest<'_>, line: &mut Line<'_>) -> Result<()> {
    let extras = guest.domain.qemu.0.as_deref();
    let input = match extras.and_then(|extras| extras.deprecation_behavior.as_deref()) {
        Some("omit") => None,
        Some("reject") => Some("reject"),
        Some("crash") => Some("crash"),
        _ => return Ok(()),
    };
    line.json("-compat", Props::new().set("deprecated-output", "hide").maybe("deprecated-input", input));
    Ok(())
}

/// The guest's CPUs wait until everything else is ready.
pub(super) fn stopped(_: &Guest<'_>, line: &mut Line<'_>) -> Result<()> {
    line.flag("-S");
    Ok(())
}

/// The key that secrets sent later are encrypted with.
pub(super) fn master_key(guest: &Guest<'_>, line: &mut Line<'_>) -> Result<()> {
    let file = guest.context.state_dir.join("master-key.aes");
    let props = Props::object("secret", "masterKey0").set("format", "raw");
    line.object(props.set("file", file.display().to_string()));
    Ok(())
}

pub(super) fn machine(guest: &Guest<'_>, line: &mut Line<'_>) -> Result<()> {
    let domain = guest.domain;
    // QEMU's own USB controller would come on top of those of the definition.
    let mut text = format!("{},usb=off", guest.machine());
    let mut add = |name: &str, value: &str| {
        text.push_str(&format!(",{name}={value}"));
    };
    features(guest, &mut add)?;
    let usual = if guest.context.settings.dump_guest_core { OnOff::On } else { OnOff::Off };
    add("dump-guest-core", domain.memory.dump_core.unwrap_or(usual).as_str());
    if domain.memory_backing.as_ref().is_some_and(|backing| backing.nosharepages) {
        add("mem-merge", "off");
    }
    super::memory_device::machine(guest, &mut add)?;
    if let (Some(id), false) = (guest.default_ram_id(), guest.has_numa()) {
        add("memory-backend", id);
    }
    if domain.launch_security.is_some() {
        add("confidential-guest-support", super::launch_security::ID);
    }
    for (name, node) in super::boot::flash_nodes(domain) {
        add(name, node);
    }
    if guest.has_hmat() {
        add("hmat", "on");
    }
    if domain.os.bios.useserial == Some(YesNo::Yes) {
        add("graphics", "off");
    }
    for timer in domain.clock.timers.iter().filter(|timer| timer.name == TimerName::Hpet) {
        if let Some(present) = timer.present.filter(|_| guest.supports(Cap::MachineHpet)) {
            add("hpet", if present == YesNo::Yes { "on" } else { "off" });
        }
    }
    if let Some(sound) = domain.devices.sounds.iter().find(|sound| sound.model == SoundModel::Pcspk) {
        add("pcspk-audiodev", &guest.audiodev(sound.audio)?);
    }
    let machine = guest.caps.machine(guest.accel(), guest.machine());
    if machine.and_then(|machine| machine.acpi) == Some(true) {
        add("acpi", if domain.features.acpi { "on" } else { "off" });
    }
    line.option("-machine", text);
    Ok(())
}

fn features(guest: &Guest<'_>, add: &mut impl FnMut(&str, &str)) -> Result<()> {
    let features = &guest.domain.features;
    if let Some(vmport) = features.vmport {
        add("vmport", vmport.state.as_str());
    }
    if let Some(smm) = features.smm {
        add("smm", smm.state.as_str());
    }
    if features.gic.is_some() {
        return unsupported("gic-version option is not available with this QEMU binary");
    }
    match features.ioapic {
        Some(IoapicDriver::Qemu) => add("kernel_irqchip", "split"),
        Some(IoapicDriver::Kvm) => add("kernel_irqchip", "on"),
        None => {}
    }
    if let Some(ps2) = features.ps2 {
        add("i8042", ps2.state.as_str());
    }
    Ok(())
}

pub(super) fn accel(guest: &Guest<'_>, line: &mut Line<'_>) -> Result<()> {
    let features = &guest.domain.features;
    let text = match guest.domain.virt_type {
        VirtType::Qemu => match features.tcg.tb_cache {
            Some(size) if size.0 > 0 => format!("tcg,tb-size={}", size.0 >> 10),
            _ => "tcg".to_owned(),
        },
        VirtType::Kvm => {
            let ring = features.kvm.as_ref().and_then(|kvm| kvm.0.dirty_ring);
            match ring.filter(|ring| ring.state == OnOff::On).and_then(|ring| ring.size) {
                Some(size) => format!("kvm,dirty-ring-size={}", size.0),
                None => "kvm".to_owned(),
            }
        }
        other => return internal(format!("unexpected domain type {other}")),
    };
    line.option("-accel", text);
    Ok(())
}

pub(super) fn tseg(guest: &Guest<'_>, line: &mut Line<'_>) -> Result<()> {
    if let Some(size) = guest.domain.features.smm.and_then(|smm| smm.tseg) {
        line.option("-global", format!("mch.extended-tseg-mbytes={}", size.0 >> 20));
    }
    Ok(())
}

pub(super) fn uuid(guest: &Guest<'_>, line: &mut Line<'_>) -> Result<()> {
    line.option("-uuid", guest.domain.uuid.to_string());
    Ok(())
}

pub(super) fn generation_id(guest: &Guest<'_>, line: &mut Line<'_>) -> Result<()> {
    if let Some(uuid) = guest.domain.genid.as_ref().and_then(|genid| genid.0) {
        line.device(Props::driver("vmgenid").set("guid", uuid.to_string()).set("id", "vmgenid0"));
    }
    Ok(())
}

pub(super) fn display(guest: &Guest<'_>, line: &mut Line<'_>) -> Result<()> {
    if guest.domain.devices.graphics.is_empty() {
        line.option("-display", "none");
    }
    line.flag("-no-user-config");
    line.flag("-nodefaults");
    Ok(())
}

pub(super) fn monitor(guest: &Guest<'_>, line: &mut Line<'_>) -> Result<()> {
    let socket = format!("socket,id=charmonitor,fd={},server=on,wait=off", guest.context.monitor);
    line.option("-chardev", socket);
    line.option("-mon", "chardev=charmonitor,id=monitor,mode=control");
    Ok(())
}

pub(super) fn power_management(guest: &Guest<'_>, line: &mut Line<'_>) -> Result<()> {
    // What becomes of a guest that shuts down or reboots is told over QMP.
    line.flag("-no-shutdown");
    let machine = guest.caps.machine(guest.accel(), guest.machine());
    // A QEMU that does not tell which machines have it has another way to leave it out.
    if machine.is_some_and(|machine| machine.acpi.is_none()) && !guest.domain.features.acpi {
        line.flag("-no-acpi");
    }
    let pm = guest.domain.pm;
    let device = if guest.is_q35() { "ICH9-LPC" } else { "PIIX4_PM" };
    for (name, enabled) in [("disable_s3", pm.suspend_to_mem), ("disable_s4", pm.suspend_to_disk)] {
        if let Some(enabled) = enabled {
            line.option("-global", format!("{device}.{name}={}", u8::from(enabled == YesNo::No)));
        }
    }
    Ok(())
}

pub(super) fn incoming(guest: &Guest<'_>, line: &mut Line<'_>) -> Result<()> {
    if let Some(uri) = guest.context.incoming {
        line.option("-incoming", uri);
    }
    Ok(())
}

pub(super) fn vmcoreinfo(guest: &Guest<'_>, line: &mut Line<'_>) -> Result<()> {
    if guest.domain.features.vmcoreinfo.is_some_and(|feature| feature.state == OnOff::On) {
        line.device(Props::driver("vmcoreinfo"));
    }
    Ok(())
}

/// `<qemu:commandline>`
pub(super) fn extra_arguments(guest: &Guest<'_>, line: &mut Line<'_>) -> Result<()> {
    if let Some(extras) = &guest.domain.qemu.0 {
        line.args.extend(extras.args.iter().map(|arg| arg.to_string()));
        for (name, value) in &extras.env {
            line.env.push((name.to_string(), value.as_deref().unwrap_or_default().to_owned()));
        }
    }
    Ok(())
}

pub(super) fn sandbox(guest: &Guest<'_>, line: &mut Line<'_>) -> Result<()> {
    if guest.supports(Cap::SeccompSandbox) {
        line.option(
            "-sandbox",
            match guest.context.sandbox {
                Sandbox::On => "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
                Sandbox::Off => "off",
            },
        );
    }
    Ok(())
}

pub(super) fn teardown(guest: &Guest<'_>, line: &mut Line<'_>) -> Result<()> {
    if let Some(teardown) = guest.domain.features.async_teardown
        && guest.supports(Cap::RunWithAsyncTeardown)
    {
        let state = if teardown.enabled == YesNo::Yes { "on" } else { "off" };
        line.option("-run-with", format!("async-teardown={state}"));
    }
    Ok(())
}

pub(super) fn message_format(_: &Guest<'_>, line: &mut Line<'_>) -> Result<()> {
    line.option("-msg", "timestamp=on");
    Ok(())
}

impl Guest<'_> {
    /// The machine's own name for its memory, which the backend must have.
    pub(super) fn default_ram_id(&self) -> Option<&str> {
        self.caps.machine(self.accel(), self.machine())?.default_ram_id.as_deref()
    }
}
