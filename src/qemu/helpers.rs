//! Processes that serve one guest beside its QEMU: an emulated TPM, servers of shared directories.
//!
//! ```text
//!  needed ──► start ──► serving ──► keep: noted beside the guest's monitor, watched
//!             │            │                    │
//!             │            └─ dropped: killed   └─ end: QEMU is gone, so they are told to go
//!             └─ makes the TPM, the first time
//! ```
//!
//! QEMU connects to a socket that the daemon has made, so nobody waits for a helper to be ready. Each ends by
//! itself when QEMU leaves it; that they are told to covers a QEMU that never came.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use thiserror::Error;

use super::passt;
use super::process::{Files, StartError, listen_at};
use super::security::{self, SecurityError};
use crate::conf::devices::{
    BackendKind, CacheMode, Filesystem, Interface, TpmBackend, TpmEmulator, TpmVersion,
};
use crate::conf::domain::Domain;
use crate::conf::xml::OnOff;
use crate::util::accounts::Ids;
use crate::util::file::{self, Durability};
use crate::util::process::{Child, Command, Process, ProcessError, Signal};

/// Making a TPM with its certificates takes seconds on a busy host.
const SETUP_LIMIT: Duration = Duration::from_secs(60);
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
const MAX_OUTPUT: usize = 64 * 1024;

/// Where servers of shared directories are described.
const VHOST_USER: [&str; 2] = ["/usr/share/qemu/vhost-user", "/etc/qemu/vhost-user"];

/// Why a guest has no helper.
#[derive(Debug, Error)]
pub enum HelperError {
    #[error("Unable to find '{program}' binary in $PATH")]
    Missing { program: &'static str },
    /// libvirt's code: `VIR_ERR_CONFIG_UNSUPPORTED`.
    #[error("{0}")]
    Unsupported(&'static str),
    #[error("Could not run '{program}': {words}")]
    Failed { program: &'static str, words: String },
    #[error(transparent)]
    Start(#[from] StartError),
    #[error(transparent)]
    Security(#[from] SecurityError),
}

impl From<ProcessError> for HelperError {
    fn from(error: ProcessError) -> Self {
        Self::Start(error.into())
    }
}

/// What helpers need to know of their guest and the host.
#[derive(Debug)]
pub struct Host<'a> {
    pub files: &'a Files,
    /// Where guests' TPMs are kept, by uuid.
    pub tpm_states: PathBuf,
    /// Where programs are looked for: $PATH.
    pub search_path: &'a str,
    /// Whom TPMs run as, if not as this daemon's user.
    pub tpm_user: Option<Ids>,
}

/// A process to be started.
#[derive(Debug)]
pub struct Helper {
    name: String,
    socket: PathBuf,
    /// To be started with the number of the listening socket.
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Tpm {
        program: PathBuf,
        setup: Box<Command>,
        state: PathBuf,
        version: TpmVersion,
        search_path: String,
        user: Option<Ids>,
    },
    Directory {
        program: PathBuf,
        filesystem: Box<Filesystem>,
    },
    Network {
        program: PathBuf,
        arguments: Vec<String>,
    },
}

/// Which helpers a guest needs. Their sockets are filled into the definition.
pub fn needed(domain: &mut Domain, host: &Host<'_>) -> Result<Vec<Helper>, HelperError> {
    let mut helpers = Vec::new();
    let guest = format!("{}:{}", domain.name, domain.uuid);
    let state = host.tpm_states.join(domain.uuid.to_string());
    for tpm in &mut domain.devices.tpms {
        if let TpmBackend::Emulator(emulator) = &mut tpm.backend {
            helpers.push(tpm_helper(emulator, &guest, &state, host)?);
        }
    }
    for filesystem in domain.devices.filesystems.iter_mut().filter(|it| it.is_virtiofs()) {
        let theirs = filesystem.source.as_ref().is_some_and(|source| source.socket.is_some());
        if !theirs {
            helpers.push(directory_helper(filesystem, host)?);
        }
    }
    let interfaces = domain.devices.interfaces.iter_mut();
    for interface in interfaces.filter(|it| it.backend.kind == Some(BackendKind::Passt)) {
        helpers.push(network_helper(interface, host)?);
    }
    Ok(helpers)
}

fn network_helper(interface: &mut Interface, host: &Host<'_>) -> Result<Helper, HelperError> {
    let program = find("passt", host.search_path).ok_or(HelperError::Missing { program: "passt" })?;
    let name = format!("{}-passt", interface.info.alias.as_deref().unwrap_or("net"));
    let socket = host.files.directory.join(format!("{name}.sock"));
    interface.backend.socket = Some(socket.display().to_string().into());
    let arguments = passt::arguments(interface, &socket);
    Ok(Helper { name, socket, kind: Kind::Network { program, arguments } })
}

fn tpm_helper(
    emulator: &mut TpmEmulator,
    guest: &str,
    state: &Path,
    host: &Host<'_>,
) -> Result<Helper, HelperError> {
    if emulator.encryption.is_some() {
        return Err(HelperError::Unsupported("an encrypted TPM state is not supported"));
    }
    if emulator.source.is_some() {
        return Err(HelperError::Unsupported("a TPM state in a place of its own is not supported"));
    }
    let find = |program| find(program, host.search_path).ok_or(HelperError::Missing { program });
    let version = emulator.version.unwrap_or(TpmVersion::V2_0);
    let state = state.join(if version == TpmVersion::V2_0 { "tpm2" } else { "tpm1.2" });
    let mut setup = Command::new(find("swtpm_setup")?).env("PATH", host.search_path);
    if version == TpmVersion::V2_0 {
        setup = setup.arg("--tpm2");
    }
    setup = setup.arg("--tpm-state").arg(&state).args(["--vmid", guest]);
    setup = setup.args([
        "--createek",
        "--create-ek-cert",
        "--create-platform-cert",
        "--lock-nvram",
        "--not-overwrite",
    ]);
    let socket = host.files.directory.join("swtpm.sock");
    emulator.socket = Some(socket.display().to_string().into());
    let search_path = host.search_path.to_owned();
    let user = host.tpm_user;
    let (program, setup) = (find("swtpm")?, Box::new(setup));
    let kind = Kind::Tpm { program, setup, state, version, search_path, user };
    Ok(Helper { name: "swtpm".to_owned(), socket, kind })
}

fn directory_helper(filesystem: &mut Filesystem, host: &Host<'_>) -> Result<Helper, HelperError> {
    let program = match &filesystem.binary.path {
        Some(path) => PathBuf::from(&**path),
        None => {
            described_server().ok_or(HelperError::Unsupported("Unable to find a satisfying virtiofsd"))?
        }
    };
    filesystem.binary.path = Some(program.display().to_string().into());
    let name = format!("{}-fs", filesystem.info.alias.as_deref().unwrap_or("fs"));
    let socket = host.files.directory.join(format!("{name}.sock"));
    filesystem.socket = Some(socket.display().to_string().into());
    let kind = Kind::Directory { program, filesystem: Box::new(filesystem.clone()) };
    Ok(Helper { name, socket, kind })
}

/// Which versions of TPMs the host's emulator has; `None` without one.
pub async fn swtpm_versions(search_path: &OsStr) -> Option<Vec<&'static str>> {
    /// It prints what it has and ends.
    const LIMIT: Duration = Duration::from_secs(10);
    const VERSIONS: [(&str, &str); 2] = [("tpm-1.2", "1.2"), ("tpm-2.0", "2.0")];
    let search_path = search_path.to_str()?;
    find("swtpm", search_path)?;
    let setup = Command::new(find("swtpm_setup", search_path)?).env("PATH", search_path);
    let said = match setup.arg("--print-capabilities").capture(LIMIT, MAX_OUTPUT).await {
        Ok(said) => said.stdout,
        Err(error) => {
            tracing::warn!(%error, "swtpm_setup does not say what it has");
            return Some(Vec::new());
        }
    };
    let said: serde_json::Value = serde_json::from_slice(&said).unwrap_or_default();
    let has = |name: &str| said["features"].as_array().is_some_and(|all| all.iter().any(|it| it == name));
    Some(VERSIONS.iter().filter(|(feature, _)| has(feature)).map(|(_, version)| *version).collect())
}

/// A program of the host.
pub(super) fn find(program: &str, search_path: &str) -> Option<PathBuf> {
    search_path.split(':').map(|directory| Path::new(directory).join(program)).find(|path| path.is_file())
}

/// The first program on the host that says that it serves directories.
fn described_server() -> Option<PathBuf> {
    let mut descriptions: Vec<PathBuf> = VHOST_USER
        .iter()
        .filter_map(|directory| fs::read_dir(directory).ok())
        .flat_map(|entries| entries.filter_map(|entry| Some(entry.ok()?.path())))
        .filter(|path| path.extension().is_some_and(|extension| extension == "json"))
        .collect();
    descriptions.sort();
    descriptions.iter().find_map(|path| {
        let text = file::read_at_most(path, MAX_OUTPUT as u64).ok()?;
        let description: serde_json::Value = serde_json::from_slice(&text).ok()?;
        let serves = description.get("type")?.as_str()? == "fs";
        serves.then(|| description.get("binary")?.as_str().map(PathBuf::from))?
    })
}

/// Helpers that serve a guest which is not up yet: killed when this is dropped.
#[derive(Debug, Default)]
pub struct Serving(Vec<(String, Child)>);

/// Starts them, and writes each down beside the guest's monitor. QEMU, which runs as `qemu`, may speak to them.
pub async fn start(helpers: Vec<Helper>, files: &Files, qemu: Option<Ids>) -> Result<Serving, HelperError> {
    let mut serving = Serving::default();
    for mut helper in helpers {
        if let Kind::Network { program, arguments } = &mut helper.kind {
            let command = Command::new(&*program).args(std::mem::take(arguments));
            let child = start_network(command, &helper.socket, qemu).await?;
            note(files, &helper.name, child.process())?;
            serving.0.push((helper.name, child));
            continue;
        }
        let listener = listen_at(&helper.socket)?;
        if let Some(ids) = qemu {
            security::give_for_good(&helper.socket, ids)?;
        }
        let socket = listener.as_raw_fd();
        let command = match helper.kind {
            Kind::Tpm { program, setup, state, version, search_path, user } => {
                let as_user = |command: Command| match user {
                    Some(ids) => command.run_as(ids),
                    None => command,
                };
                make_tpm(as_user(*setup), &state, user).await?;
                as_user(tpm_command(program, &state, version, socket)).env("PATH", search_path)
            }
            Kind::Directory { program, filesystem } => {
                directory_command(program, &filesystem, socket).await?
            }
            Kind::Network { .. } => continue,
        };
        let child = command.pass(listener).start().await?;
        note(files, &helper.name, child.process())?;
        tracing::debug!(helper = helper.name, pid = child.process().pid(), "serves the guest");
        serving.0.push((helper.name, child));
    }
    Ok(serving)
}

/// passt makes its socket itself; QEMU must not come before.
async fn start_network(command: Command, socket: &Path, user: Option<Ids>) -> Result<Child, HelperError> {
    if let Err(source) = file::remove_if_there(socket) {
        return Err(StartError::File { path: socket.to_owned(), source }.into());
    }
    let command = match user {
        Some(ids) => command.run_as(ids),
        None => command,
    };
    let child = command.start().await?;
    match passt::listens(child.process(), socket).await {
        true => Ok(child),
        false => Err(HelperError::Failed { program: "passt", words: "it does not listen".to_owned() }),
    }
}

impl Serving {
    /// Lets them live as long as their guest. That one ends is written to the daemon's log.
    pub fn keep(self, guest: &str) {
        for (name, child) in self.0 {
            let (process, guest) = (child.release(), guest.to_owned());
            tokio::spawn(async move {
                let exit = process.exited().await;
                tracing::info!(domain = guest, helper = name, ?exit, "a helper has ended");
            });
        }
    }
}

/// A TPM is made once, with its certificates; a directory that is there has one.
async fn make_tpm(setup: Command, state: &Path, user: Option<Ids>) -> Result<(), HelperError> {
    let exists = state.exists();
    let directories = [(state.parent(), 0o711), (Some(state), 0o700)];
    for (directory, mode) in directories.into_iter().filter_map(|(path, mode)| Some((path?, mode))) {
        file::make_directory(directory, mode)
            .map_err(|source| StartError::File { path: directory.to_owned(), source })?;
    }
    if let Some(ids) = user {
        security::give_tree_for_good(state, ids)?;
    }
    if exists {
        return Ok(());
    }
    let made = setup.capture(SETUP_LIMIT, MAX_OUTPUT).await;
    let failure = match made {
        Ok(made) if made.exit.success() => return Ok(()),
        Ok(made) => {
            let words = [made.stderr, made.stdout].concat();
            let words = String::from_utf8_lossy(&words).trim().to_owned();
            HelperError::Failed { program: "swtpm_setup", words }
        }
        Err(error) => error.into(),
    };
    // What is half made must not be taken for a TPM.
    file::remove_tree_if_there(state).ok();
    Err(failure)
}

fn tpm_command(program: PathBuf, state: &Path, version: TpmVersion, socket: i32) -> Command {
    let command = Command::new(program)
        .args(["socket", "--ctrl"])
        .arg(format!("type=unixio,fd={socket}"))
        .arg("--tpmstate")
        .arg(format!("dir={},mode=0600", state.display()))
        .arg("--terminate");
    if version == TpmVersion::V2_0 { command.arg("--tpm2") } else { command }
}

async fn directory_command(
    program: PathBuf,
    filesystem: &Filesystem,
    socket: i32,
) -> Result<Command, HelperError> {
    let asked = Command::new(&program).arg("--print-capabilities").capture(ANSWER_LIMIT, MAX_OUTPUT).await?;
    let is_new = String::from_utf8_lossy(&asked.stdout).contains("separate-options");
    let source = filesystem.source.as_ref().and_then(|source| source.dir.as_deref()).unwrap_or_default();
    let mut command = Command::new(program).arg(format!("--fd={socket}"));
    command = match is_new {
        true => new_options(command, filesystem, source)?,
        false => command.arg("-o").arg(old_options(filesystem, source)),
    };
    let binary = &filesystem.binary;
    if let Some(size) = binary.thread_pool.filter(|size| *size >= 0) {
        command = command.arg(format!("--thread-pool-size={size}"));
    }
    if let Some(max) = binary.openfiles.filter(|max| *max > 0) {
        command = command.arg(format!("--rlimit-nofile={max}"));
    }
    if let Some(idmap) = &filesystem.idmap {
        for (option, ids) in [("--uid-map", &idmap.uids), ("--gid-map", &idmap.gids)] {
            for ids in ids {
                command = command.arg(format!("{option}=:{}:{}:{}:", ids.start, ids.target, ids.count));
            }
        }
    }
    Ok(if filesystem.readonly { command.arg("--readonly") } else { command })
}

/// Of the server in Rust.
fn new_options(mut command: Command, filesystem: &Filesystem, source: &str) -> Result<Command, HelperError> {
    let binary = &filesystem.binary;
    command = command.args(["--shared-dir", source]);
    command = match binary.cache {
        None => command,
        Some(CacheMode::None) => command.args(["--cache", "never"]),
        Some(CacheMode::Always) => command.args(["--cache", "always"]),
    };
    if let Some(sandbox) = binary.sandbox {
        command = command.args(["--sandbox", sandbox.as_str()]);
    }
    if binary.lock.posix.is_some() || binary.lock.flock.is_some() {
        return Err(HelperError::Unsupported("locking options are not supported by this virtiofsd"));
    }
    Ok(if binary.xattr == Some(OnOff::On) { command.arg("--xattr") } else { command })
}

/// Of the server that older QEMUs bring along.
fn old_options(filesystem: &Filesystem, source: &str) -> String {
    let binary = &filesystem.binary;
    let mut options = format!("source={}", source.replace(',', ",,"));
    if let Some(cache) = binary.cache {
        options.push_str(&format!(",cache={cache}"));
    }
    if let Some(sandbox) = binary.sandbox {
        options.push_str(&format!(",sandbox={sandbox}"));
    }
    for (name, switch) in
        [("xattr", binary.xattr), ("flock", binary.lock.flock), ("posix_lock", binary.lock.posix)]
    {
        match switch {
            Some(OnOff::On) => options.push_str(&format!(",{name}")),
            Some(OnOff::Off) => options.push_str(&format!(",no_{name}")),
            None => {}
        }
    }
    options
}

/// Writes a helper down: its number and start time name it for good, also to a later daemon.
fn note(files: &Files, name: &str, process: &Process) -> Result<(), StartError> {
    let path = files.directory.join(format!("{name}.pid"));
    let text = format!("{} {}\n", process.pid(), process.start_time());
    file::replace(&path, text.as_bytes(), 0o644, Durability::Crash)
        .map_err(|source| StartError::File { path, source })
}

/// Tells the helpers of a guest whose QEMU is gone to go, too.
pub fn end(files: &Files) {
    let Ok(entries) = fs::read_dir(&files.directory) else { return };
    let noted = entries.filter_map(|entry| Some(entry.ok()?.path()));
    for path in noted.filter(|path| path.extension().is_some_and(|extension| extension == "pid")) {
        match read_note(&path).map(|process| process.signal(Signal::TERM)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(path = %path.display(), %error, "cannot end a helper");
            }
            _ => {}
        }
    }
}

/// Forgets the server of a device that its guest has let go of; it has ended by itself.
pub fn forget(files: &Files, alias: &str) {
    let names = ["fs.pid", "fs.sock", "passt.pid", "passt.sock"].map(|name| format!("{alias}-{name}"));
    for path in names.map(|name| files.directory.join(name)) {
        if let Err(error) = file::remove_if_there(&path) {
            tracing::warn!(path = %path.display(), %error, "what a helper leaves behind stays");
        }
    }
}

fn read_note(path: &Path) -> io::Result<Process> {
    let text = fs::read_to_string(path)?;
    let mut words = text.split_ascii_whitespace().map(str::parse::<u64>);
    let (Some(Ok(pid)), Some(Ok(start_time))) = (words.next(), words.next()) else {
        return Err(io::ErrorKind::InvalidData.into());
    };
    Process::open(u32::try_from(pid).unwrap_or_default(), start_time)
}
