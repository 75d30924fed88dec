//! What must stay the same for an old answer of a QEMU binary to still hold.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Raised when what is cached changes its form or meaning.
const FORMAT: u32 = 1;

const KVM: &str = "/dev/kvm";

/// Where distributions put QEMU's modules.
const MODULES: [&str; 4] =
    ["/usr/lib/x86_64-linux-gnu/qemu", "/usr/lib/aarch64-linux-gnu/qemu", "/usr/lib64/qemu", "/usr/lib/qemu"];

/// The state of a binary and of the host it was asked on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Fingerprint {
    format: u32,
    binary: PathBuf,
    size: u64,
    mtime_ns: i128,
    ctime_ns: i128,
    /// Modules that are installed later add devices.
    modules_mtime_ns: Option<i128>,
    host: Host,
}

impl Fingerprint {
    pub(super) fn take(binary: &Path, host: Host) -> io::Result<Self> {
        let state = fs::metadata(binary)?;
        let modules = MODULES.iter().find_map(|directory| fs::metadata(directory).ok());
        Ok(Self {
            format: FORMAT,
            binary: binary.to_owned(),
            size: state.size(),
            mtime_ns: nanoseconds(state.mtime(), state.mtime_nsec()),
            ctime_ns: nanoseconds(state.ctime(), state.ctime_nsec()),
            modules_mtime_ns: modules.map(|state| nanoseconds(state.mtime(), state.mtime_nsec())),
            host,
        })
    }
}

fn nanoseconds(seconds: i64, nanoseconds: i64) -> i128 {
    i128::from(seconds) * 1_000_000_000 + i128::from(nanoseconds)
}

/// The part of the host that decides what KVM offers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Host {
    /// Release and build.
    kernel: String,
    cpu: String,
    kvm: Option<Kvm>,
}

/// A /dev/kvm.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Kvm {
    /// Changes with the permissions, and when the module is loaded again.
    ctime_ns: i128,
    usable: bool,
    nested: bool,
}

impl Host {
    pub(super) fn look() -> Self {
        let uname = rustix::system::uname();
        let kernel = format!("{} {}", uname.release().to_string_lossy(), uname.version().to_string_lossy());
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let mut host = Self { kernel, cpu: signature(&cpuinfo), kvm: None };
        host.refresh();
        host
    }

    /// Looks again at what changes while the daemon runs. A device that is the same is not opened again.
    pub(super) fn refresh(&mut self) {
        let device = fs::metadata(KVM).ok();
        let ctime_ns = device.map(|state| nanoseconds(state.ctime(), state.ctime_nsec()));
        if ctime_ns != self.kvm.as_ref().map(|kvm| kvm.ctime_ns) {
            self.kvm = ctime_ns.map(|ctime_ns| Kvm { ctime_ns, usable: usable(), nested: nested() });
        }
    }

    pub(super) fn kvm_usable(&self) -> bool {
        self.kvm.as_ref().is_some_and(|kvm| kvm.usable)
    }
}

fn usable() -> bool {
    File::options().read(true).write(true).open(KVM).is_ok()
}

fn nested() -> bool {
    ["kvm_intel", "kvm_amd", "kvm_hv", "kvm"].iter().any(|module| {
        let value = fs::read_to_string(format!("/sys/module/{module}/parameters/nested"));
        value.is_ok_and(|value| value.starts_with(['Y', 'y', '1']))
    })
}

/// The first processor's make and microcode.
fn signature(cpuinfo: &str) -> String {
    let first = cpuinfo.split("\n\n").next().unwrap_or_default();
    let kept = ["vendor_id", "model name", "cpu family", "model", "stepping", "microcode", "flags"];
    let fields = first.lines().filter_map(|line| line.split_once(':'));
    let kept = fields.filter(|(name, _)| kept.contains(&name.trim()));
    kept.map(|(_, value)| value.trim()).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_binary_has_another_fingerprint() {
        let directory = tempfile::tempdir().unwrap();
        let binary = directory.path().join("qemu-system-test");
        fs::write(&binary, "one").unwrap();
        let host = Host::look();
        let first = Fingerprint::take(&binary, host.clone()).unwrap();
        assert_eq!(first, Fingerprint::take(&binary, host.clone()).unwrap());
        fs::write(&binary, "another").unwrap();
        assert_ne!(first, Fingerprint::take(&binary, host).unwrap());
    }

    #[test]
    fn the_signature_is_of_the_first_processor() {
        let cpuinfo =
            "vendor_id\t: AuthenticAMD\nmodel name\t: AMD EPYC\nbogomips\t: 1\n\nvendor_id\t: other\n";
        assert_eq!(signature(cpuinfo), "AuthenticAMD, AMD EPYC");
    }
}
