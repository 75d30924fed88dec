//! The QEMU binaries of this host and what each of them can do.
//!
//! ```text
//! lookup(binary) ─ known, fingerprint same ─▶ shared QemuCaps
//!       │
//!       ├─ cache file, fingerprint same ─────▶ read
//!       └─ else ─ one caller asks the binary, the others wait ─▶ write cache file
//! ```
//!
//! Nothing is asked before someone needs the answer, so the daemon serves at once.

use std::collections::HashMap;
use std::ffi::OsString;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use serde::{Deserialize, Serialize};

use super::converse::{ConverseError, converse};
use super::fingerprint::{Fingerprint, Host};
use super::guest_cpu::{self, GuestCpuError};
use super::probe::{self, ProbeError};
use super::{Accel, QemuCaps};
use crate::conf::capabilities::cpu::{CpuMap, CpuMapError};
use crate::conf::domain::{Cpu, CpuMode};
use crate::util::arch::Arch;
use crate::util::file::{self, Durability};
use crate::util::reason::Reason;

/// Guests may name any program as their emulator; beyond this many the oldest knowledge is thrown away.
const MAX_KNOWN: usize = 64;

/// A cache file is a few hundred KiB.
const MAX_CACHE: u64 = 16 << 20;

/// Where libvirt's packages put the description of CPU models.
const CPU_MAP: &str = "/usr/share/libvirt/cpu_map";

/// The longest of its files describes the features, about 150 KiB.
const MAX_CPU_MAP_FILE: u64 = 4 << 20;

/// Where a distribution without the usual names keeps its only QEMU.
const UNUSUAL: &str = "/usr/libexec/qemu-kvm";

/// Why nothing is known of a binary.
#[derive(Debug, thiserror::Error)]
pub enum LookupError {
    #[error("Cannot check QEMU binary {}: {}", binary.display(), Reason(source))]
    Missing { binary: PathBuf, source: io::Error },
    #[error("QEMU binary {} is not executable: {}", binary.display(), Reason(source))]
    NotExecutable { binary: PathBuf, source: io::Error },
    #[error("Failed to start QEMU binary {} for probing: {source}", binary.display())]
    Converse { binary: PathBuf, source: ConverseError },
    #[error("Failed to probe capabilities for {}: {source}", binary.display())]
    Probe { binary: PathBuf, source: ProbeError },
}

/// All binaries; clones share what they know.
#[derive(Debug, Clone)]
pub struct Emulators {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    cache: PathBuf,
    search_path: OsString,
    host: Mutex<Option<Host>>,
    /// Read when first needed; absent where libvirt's description is not installed.
    cpu_map: OnceLock<Option<Arc<CpuMap>>>,
    known: Mutex<HashMap<PathBuf, Arc<Entry>>>,
}

/// One binary. Who holds `asking` is finding out; the others wait for it.
#[derive(Debug, Default)]
struct Entry {
    asking: tokio::sync::Mutex<()>,
    found: Mutex<Option<(Fingerprint, Arc<QemuCaps>)>>,
}

#[derive(Deserialize)]
struct CacheFile {
    fingerprint: Fingerprint,
    caps: QemuCaps,
}

#[derive(Serialize)]
struct CacheFileRef<'a> {
    fingerprint: &'a Fingerprint,
    caps: &'a QemuCaps,
}

impl Emulators {
    /// $PATH, where binaries are.
    pub fn search_path(&self) -> &std::ffi::OsStr {
        &self.inner.search_path
    }

    /// Keeps its files in `cache`/capabilities and finds binaries in the directories of `search_path` ($PATH).
    pub fn new(cache: &Path, search_path: OsString) -> Self {
        let inner = Inner {
            cache: cache.join("capabilities"),
            search_path,
            host: Mutex::default(),
            cpu_map: OnceLock::new(),
            known: Mutex::default(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// The binary that runs guests of this architecture when they name none.
    pub fn default_binary(&self, guest: Arch) -> Option<PathBuf> {
        let host = Arch::host();
        let native = host.filter(|host| host.runs_natively(guest));
        // Only the host's own binary runs armv7l guests with KVM.
        let first = native.filter(|host| (*host, guest) == (Arch::Aarch64, Arch::Armv7l));
        let target = if guest.is_ppc64() { Some(Arch::Ppc64) } else { native };
        let names = [first, Some(guest), target].into_iter().flatten();
        let usual = names.map(|arch| format!("qemu-system-{}", arch.qemu_target()));
        let found = usual.into_iter().find_map(|name| self.find(Path::new(&name)));
        found.or_else(|| native.and_then(|_| self.find(Path::new(UNUSUAL))))
    }

    fn find(&self, name: &Path) -> Option<PathBuf> {
        let mut candidates =
            std::env::split_paths(&self.inner.search_path).map(|directory| directory.join(name));
        candidates.find(|path| path.is_absolute() && executable(path).is_ok())
    }

    /// What the binary can do, from memory, from its cache file or from itself.
    pub async fn lookup(&self, binary: &Path) -> Result<Arc<QemuCaps>, LookupError> {
        let missing = |source| LookupError::Missing { binary: binary.to_owned(), source };
        let host = self.host();
        let fingerprint = Fingerprint::take(binary, host.clone()).map_err(missing)?;
        let entry = self.entry(binary);
        if let Some(caps) = entry.fresh(&fingerprint) {
            return Ok(caps);
        }
        let _asking = entry.asking.lock().await;
        if let Some(caps) = entry.fresh(&fingerprint) {
            return Ok(caps);
        }
        let file = self.inner.cache_file(binary);
        let caps = match read_cache(&file, &fingerprint) {
            Some(caps) => caps,
            None => {
                executable(binary)
                    .map_err(|source| LookupError::NotExecutable { binary: binary.to_owned(), source })?;
                let caps = self.ask(binary, &host).await?;
                if let Err(error) = write_cache(&file, &fingerprint, &caps) {
                    tracing::warn!(file = %file.display(), %error, "cannot keep the capabilities of a QEMU binary");
                }
                caps
            }
        };
        let caps = Arc::new(caps);
        *entry.found.lock().unwrap_or_else(PoisonError::into_inner) = Some((fingerprint, caps.clone()));
        Ok(caps)
    }

    /// libvirt's description of CPU models.
    pub fn cpu_map(&self) -> Option<Arc<CpuMap>> {
        let load = || match load_cpu_map() {
            Ok(map) => Some(Arc::new(map)),
            Err(error) => {
                tracing::warn!(%error, "CPU models have no names without libvirt's description of them");
                None
            }
        };
        self.inner.cpu_map.get_or_init(load).clone()
    }

    /// Completes the CPU of a guest that is about to start on this binary.
    pub fn complete_cpu(&self, cpu: &mut Cpu, caps: &QemuCaps, accel: Accel) -> Result<(), GuestCpuError> {
        let named = cpu.mode == CpuMode::HostModel || cpu.model.is_some();
        let map = if named { self.cpu_map() } else { None };
        guest_cpu::resolve(cpu, caps, accel, map.as_deref())
    }

    async fn ask(&self, binary: &Path, host: &Host) -> Result<QemuCaps, LookupError> {
        tracing::info!(binary = %binary.display(), kvm = host.kvm_usable(), "asking a QEMU binary what it can do");
        let path = &self.inner.search_path;
        let failed = |source| LookupError::Converse { binary: binary.to_owned(), source };
        let best = converse(binary, path, "kvm:tcg", probe::questions());
        let (best, tcg) = if host.kvm_usable() {
            // Without TCG compiled in this fails, and then there is nothing to be known of it.
            let (best, tcg) = tokio::join!(best, converse(binary, path, "tcg", probe::accel_questions()));
            (best.map_err(failed)?, tcg.ok())
        } else {
            (best.await.map_err(failed)?, None)
        };
        probe::assemble(binary.to_owned(), &best, tcg.as_ref())
            .map_err(|source| LookupError::Probe { binary: binary.to_owned(), source })
    }

    fn host(&self) -> Host {
        let mut host = self.inner.host.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *host {
            Some(host) => {
                host.refresh();
                host.clone()
            }
            None => host.insert(Host::look()).clone(),
        }
    }

    fn entry(&self, binary: &Path) -> Arc<Entry> {
        let mut known = self.inner.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MAX_KNOWN && !known.contains_key(binary) {
            known.clear();
        }
        known.entry(binary.to_owned()).or_default().clone()
    }
}

impl Inner {
    fn cache_file(&self, binary: &Path) -> PathBuf {
        let name = binary.to_string_lossy();
        self.cache.join(format!("{}.json", name.trim_start_matches('/').replace('/', "-")))
    }
}

impl Entry {
    fn fresh(&self, fingerprint: &Fingerprint) -> Option<Arc<QemuCaps>> {
        let found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        found.as_ref().filter(|(known, _)| known == fingerprint).map(|(_, caps)| caps.clone())
    }
}

fn load_cpu_map() -> Result<CpuMap, CpuMapError> {
    CpuMap::load(|name| {
        let content = file::read_at_most(&Path::new(CPU_MAP).join(name), MAX_CPU_MAP_FILE)?;
        String::from_utf8(content).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    })
}

fn executable(path: &Path) -> io::Result<()> {
    let state = path.metadata()?;
    let ok = state.is_file() && state.permissions().mode() & 0o111 != 0;
    if ok { Ok(()) } else { Err(rustix::io::Errno::ACCESS.into()) }
}

/// A file that is absent, torn or about another state of the binary is as good as none.
fn read_cache(path: &Path, fingerprint: &Fingerprint) -> Option<QemuCaps> {
    let content = file::read_at_most(path, MAX_CACHE).ok()?;
    let cached: CacheFile = serde_json::from_slice(&content).ok()?;
    (cached.fingerprint == *fingerprint).then_some(cached.caps)
}

fn write_cache(path: &Path, fingerprint: &Fingerprint, caps: &QemuCaps) -> io::Result<()> {
    if let Some(directory) = path.parent() {
        file::make_directory(directory, 0o755)?;
    }
    let content = serde_json::to_vec(&CacheFileRef { fingerprint, caps })?;
    file::replace(path, &content, 0o600, Durability::Crash)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::qemu::capabilities::Cap;

    fn emulators(cache: &Path) -> Emulators {
        Emulators::new(cache, "/usr/local/bin:/usr/bin:/bin".into())
    }

    #[tokio::test]
    async fn a_binary_is_asked_once_and_then_remembered() {
        let cache = tempfile::tempdir().unwrap();
        let emulators = emulators(cache.path());
        let binary = emulators.default_binary(Arch::X86_64).expect("qemu-system-x86 is installed");
        let (one, other) = tokio::join!(emulators.lookup(&binary), emulators.lookup(&binary));
        let caps = one.unwrap();
        assert!(Arc::ptr_eq(&caps, &other.unwrap()), "two lookups at once asked twice");
        assert!(caps.supports(Cap::Tcg) && caps.machine(Accel::Tcg, "q35").is_some());
        assert!(Arc::ptr_eq(&caps, &emulators.lookup(&binary).await.unwrap()));
    }

    #[tokio::test]
    async fn the_cache_file_serves_the_next_daemon_unless_it_is_torn_or_stale() {
        let cache = tempfile::tempdir().unwrap();
        let binary = emulators(cache.path()).default_binary(Arch::X86_64).unwrap();
        let package = |caps: &QemuCaps| caps.package.clone();
        let asked = package(&emulators(cache.path()).lookup(&binary).await.unwrap());
        let [file] =
            fs::read_dir(cache.path().join("capabilities")).unwrap().collect::<Vec<_>>().try_into().unwrap();
        let file = file.unwrap().path();
        let written = fs::read_to_string(&file).unwrap();

        // What the file says is believed, so a mark in it shows who was asked.
        fs::write(&file, written.replace(&asked, "from the file")).unwrap();
        assert_eq!(package(&emulators(cache.path()).lookup(&binary).await.unwrap()), "from the file");
        let torn = written.replace(&asked, "torn");
        fs::write(&file, &torn[..torn.len() / 2]).unwrap();
        assert_eq!(package(&emulators(cache.path()).lookup(&binary).await.unwrap()), asked);
        let stale = written.replace(&asked, "stale").replacen("\"size\":", "\"size\":1", 1);
        fs::write(&file, stale).unwrap();
        assert_eq!(package(&emulators(cache.path()).lookup(&binary).await.unwrap()), asked);
    }

    #[tokio::test]
    async fn what_is_no_qemu_says_why() {
        let directory = tempfile::tempdir().unwrap();
        let emulators = emulators(directory.path());
        let script = directory.path().join("broken");
        fs::write(&script, "#!/bin/sh\necho it broke >&2\nexit 1\n").unwrap();
        let text = async |binary: &Path| emulators.lookup(binary).await.unwrap_err().to_string();
        assert_eq!(text(Path::new("/x")).await, "Cannot check QEMU binary /x: No such file or directory");
        let name = script.display();
        assert_eq!(text(&script).await, format!("QEMU binary {name} is not executable: Permission denied"));
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(text(&script).await, format!("Failed to start QEMU binary {name} for probing: it broke"));
    }

    #[test]
    fn an_architecture_without_binary_has_none() {
        let nowhere = Emulators::new(Path::new("/nonexistent"), "/nonexistent".into());
        assert_eq!(nowhere.default_binary(Arch::Alpha), None);
    }
}
