//! Guests as XML: the smallest that runs, and the sample guest that boots Linux.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use super::program::run;

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// A file of the sample guest; the first use builds it if it is not there.
pub fn part(name: &str) -> PathBuf {
    static BUILT: OnceLock<()> = OnceLock::new();
    BUILT.get_or_init(|| {
        run(&format!("{ROOT}/scripts/deps"), &["test"]).ok();
        run(&format!("{ROOT}/scripts/guest"), &[]).ok();
    });
    Path::new(ROOT).canonicalize().expect("the project is there").join(".build/guest").join(name)
}

/// `kvm` or `qemu` (TCG) for guests that boot Linux: not every KVM survives one.
fn linux_type() -> &'static str {
    static ANSWER: OnceLock<&str> = OnceLock::new();
    ANSWER.get_or_init(|| match run(&format!("{ROOT}/scripts/guest"), &["accel"]).ok().trim() {
        "kvm" => "kvm",
        _ => "qemu",
    })
}

/// A guest description in the making.
#[derive(Debug, Clone)]
pub struct Guest {
    pub name: String,
    kind: &'static str,
    machine: &'static str,
    memory_mib: u32,
    boot: String,
    devices: String,
}

/// A guest whose CPU halts at its first instruction: runs at once, does nothing, hears no button.
pub fn halting(name: &str) -> Guest {
    Guest {
        name: name.to_owned(),
        kind: if Path::new("/dev/kvm").exists() { "kvm" } else { "qemu" },
        machine: "pc",
        memory_mib: 16,
        boot: format!("<loader type='rom'>{}</loader>", part("halt.rom").display()),
        devices: String::new(),
    }
}

/// A guest without a kernel that fills its memory and prints `count N` on its first serial port a hundred times a
/// second. QEMU alone runs it, as few KVMs are fast in its mode.
pub fn counting(name: &str) -> Guest {
    let boot = format!("<loader type='rom'>{}</loader>", part("count.rom").display());
    let console = "<serial type='pty'/><console type='pty'/>";
    Guest { boot, ..halting(name) }.tcg().memory_mib(32).device(console)
}

/// The same, that writes to 200 MiB of its memory in a second.
pub fn dirtying(name: &str) -> Guest {
    let boot = format!("<loader type='rom'>{}</loader>", part("dirty.rom").display());
    Guest { boot, ..counting(name) }
}

/// The sample guest with its options (see scripts/guest.d/init), a console on its first serial port.
pub fn linux(name: &str, options: &str) -> Guest {
    let mut boot = String::new();
    let initrd = if options.contains("guest.agent") { "initrd-agent" } else { "initrd" };
    for (element, text) in [
        ("kernel", part("vmlinuz").display().to_string()),
        ("initrd", part(initrd).display().to_string()),
        ("cmdline", format!("console=ttyS0 quiet {options}")),
    ] {
        write!(boot, "<{element}>{text}</{element}>").expect("a String takes all");
    }
    Guest {
        name: name.to_owned(),
        kind: linux_type(),
        machine: "q35",
        memory_mib: 256,
        boot,
        devices: String::new(),
    }
    .device("<serial type='pty'/><console type='pty'/>")
}

impl Guest {
    /// Adds a device element.
    pub fn device(mut self, xml: &str) -> Self {
        self.devices.push_str(xml);
        self
    }

    /// With this firmware.
    pub fn rom(mut self, path: &Path) -> Self {
        self.boot = format!("<loader type='rom'>{}</loader>", path.display());
        self
    }

    /// Without the host's help, which not every user may ask for.
    pub fn tcg(mut self) -> Self {
        self.kind = "qemu";
        self
    }

    pub fn memory_mib(mut self, memory_mib: u32) -> Self {
        self.memory_mib = memory_mib;
        self
    }

    pub fn machine(mut self, machine: &'static str) -> Self {
        self.machine = machine;
        self
    }

    pub fn xml(&self) -> String {
        let Self { name, kind, machine, memory_mib, boot, devices } = self;
        format!(
            "<domain type='{kind}'><name>{name}</name><memory unit='MiB'>{memory_mib}</memory>\
             <os><type arch='x86_64' machine='{machine}'>hvm</type>{boot}</os><features><acpi/></features>\
             <devices><controller type='usb' model='none'/><memballoon model='none'/>{devices}</devices></domain>"
        )
    }
}
