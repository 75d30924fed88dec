//! The file that outlives the daemon: what is known of a running guest, in libvirt's form.
//!
//! `RUNTIME/NAME.xml` is there as long as the guest runs. A new daemon reads it to take hold of the guest;
//! libvirt's own daemon can read it too, and the other way round.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use thiserror::Error;

use super::block_jobs::{BlockJobsRecord, Overlays};
use super::process::{Claim, Directories, Files, Language};
use super::run_state::RunState;
use crate::conf::domain::{Cpu, Domain};
use crate::conf::xml::{Element, Form, Part, Writer, YesNo, read_document, write_document, xml};
use crate::conf::{self, ConfError};
use crate::util::file::{self, Durability};
use crate::util::reason::Reason;

/// A larger file is not ours.
const MAX_BYTES: u64 = 16 * 1024 * 1024;

const HEADER: &str = "<!--
This file belongs to the daemon and is overwritten; changes to it are lost.
Use 'virsh edit' or another client instead.
-->

";

xml! {
    /// `<domstatus>`
    pub struct Status {
        flat run: RunState;
        attr pid: u32 = "pid";
        child taints: Vec<Taint> = "taint";
        child deprecations: Vec<Deprecation> = "deprecation";
        child monitor: MonitorSocket = "monitor";
        list vcpus: Vec<VcpuThread> = "vcpus" / "vcpu";
        /// What the guest's QEMU could do when it was started: the binary may be another by now.
        list capabilities: Vec<Capability> = "qemuCaps" / "flag";
        /// What was under way; the next daemon ends it.
        child job: Option<JobRecord> = "job";
        /// The guest is being rebooted: its power-off is not the end.
        flag fake_reboot: bool = "fakereboot";
        /// Aliases of the devices that QEMU knows.
        list devices: Vec<DeviceAlias> = "devices" / "device";
        child_attr directory: String = "libDir" / "path";
        child_attr channels: String = "channelTargetDir" / "path";
        child_attr memory_directory: Option<String> = "memoryBackingDir" / "path";
        /// The CPU as defined, where the live one has been expanded.
        child defined_cpu: Option<Box<Cpu>> = "cpu";
        /// It is noted whose its files were.
        flag remember_owner: bool = "rememberOwner";
        child_attr allow_reboot: Option<YesNo> = "allowReboot" / "value";
        /// The last number given to a block node.
        child_attr last_node: u64 = "nodename" / "index";
        child_attr last_fdset: u32 = "fdset" / "index";
        child block_jobs: Option<BlockJobsRecord> = "blockjobs";
        text agent_timeout: i32 = "agentTimeout", or -2;
        /// It ends with the connection that started it. Unknown to libvirt, as the next.
        flag autodestroy: bool = "autodestroy";
        /// When the process started, so that another one with its number is not taken for it. Unknown to
        /// libvirt, which skips it.
        child_attr start_time: Option<u64> = "process" / "startTime";
        /// Disks that QEMU may have on new images by now. Unknown to libvirt, too.
        child overlays: Option<Overlays> = "overlays";
        child domain: LiveDomain = "domain";
    }
}

xml! {
    /// `<job>`: the job that held the guest.
    pub struct JobRecord {
        attr kind: String = "type";
        attr operation: String = "async";
        attr phase: Option<String> = "phase";
        attr flags: Option<String> = "flags";
        attr since_ms: Option<u64> = "asyncStarted";
        /// What it was to write. Unknown to libvirt.
        attr file: Option<String> = "file";
        /// Images are being merged: what has not come to its end by itself never will.
        flag snapshot_delete: bool = "snapshotDelete";
    }
}

xml! {
    /// `<taint>`: something about the guest that its bug reports have to say.
    pub struct Taint {
        attr flag: String = "flag";
    }
}

xml! {
    /// `<flag>`
    pub struct Capability {
        attr name: String = "name";
    }
}

xml! {
    /// `<monitor>`
    pub struct MonitorSocket {
        attr path: String = "path";
        attr kind: String = "type";
    }
}

xml! {
    /// `<vcpu>` with the host thread that runs it.
    pub struct VcpuThread {
        attr id: u32 = "id";
        attr pid: u32 = "pid";
    }
}

xml! {
    /// `<device>`
    pub struct DeviceAlias {
        attr alias: String = "alias";
    }
}

xml! {
    /// `<deprecation>`: why the guest uses something that will go away.
    pub struct Deprecation {
        body text: Option<String>;
    }
}

impl JobRecord {
    /// The flag word of the call that began it.
    pub fn flag_bits(&self) -> u32 {
        let digits = self.flags.as_deref().and_then(|flags| flags.strip_prefix("0x"));
        digits.and_then(|digits| u32::from_str_radix(digits, 16).ok()).unwrap_or(0)
    }
}

impl MonitorSocket {
    pub fn new(files: &Files) -> Self {
        let kind = match files.language {
            Language::Qmp => "unix",
            // Unknown to libvirt, which cannot steer such a guest.
            Language::Human => "unix-human",
        };
        Self { path: files.monitor().to_string_lossy().into_owned(), kind: kind.to_owned() }
    }

    fn language(&self) -> Language {
        if self.kind == "unix-human" { Language::Human } else { Language::Qmp }
    }
}

/// The live definition, shared with whoever reads it.
#[derive(Debug, Clone, PartialEq)]
pub struct LiveDomain(pub Arc<Domain>);

impl Part for LiveDomain {
    fn read(element: Element<'_>) -> conf::Result<Self> {
        Domain::from_element(element).map(|domain| Self(Arc::new(domain)))
    }

    fn write_attributes(&self, out: &mut Writer) {
        self.0.write_attributes(out);
    }

    fn write_children(&self, out: &mut Writer) {
        self.0.write_children(out);
    }
}

impl Part for RunState {
    fn read(element: Element<'_>) -> conf::Result<Self> {
        let state: String = element.required("state")?;
        let reason: String = element.value("reason")?.unwrap_or_else(|| "unknown".to_owned());
        Self::from_names(&state, &reason).ok_or_else(|| {
            ConfError::unsupported(format!("invalid domain state '{state}' or its reason '{reason}'"))
        })
    }

    fn write_attributes(&self, out: &mut Writer) {
        let (state, reason) = self.names();
        out.attribute_str("state", state);
        out.attribute_str("reason", reason);
    }

    fn write_children(&self, _: &mut Writer) {}
}

/// Why a status file could not be used.
#[derive(Debug, Error)]
pub enum StatusError {
    #[error("cannot read status file '{}': {}", path.display(), Reason(source))]
    Read { path: PathBuf, source: io::Error },
    #[error("cannot write status file '{}': {}", path.display(), Reason(source))]
    Write { path: PathBuf, source: io::Error },
    #[error("status file '{}' is broken: {}", path.display(), source.message)]
    Content { path: PathBuf, source: ConfError },
}

impl Status {
    /// Where the status of a guest is kept.
    pub fn path(directories: &Directories, name: &str) -> PathBuf {
        directories.runtime.join(format!("{name}.xml"))
    }

    /// The text of the file.
    pub fn to_text(&self) -> String {
        let text = write_document(self, "domstatus", Form::LIVE | Form::SECURE | Form::STATUS);
        format!("{HEADER}{text}")
    }

    pub fn parse(text: &str) -> conf::Result<Self> {
        read_document(text, "domstatus", Form::LIVE | Form::SECURE | Form::STATUS)
    }

    /// Writes the file. It has to survive the daemon, not the host: the guest does not either.
    pub fn save(&self, path: &Path) -> Result<(), StatusError> {
        file::replace(path, self.to_text().as_bytes(), 0o600, Durability::Crash)
            .map_err(|source| StatusError::Write { path: path.to_owned(), source })
    }

    pub fn load(path: &Path) -> Result<Self, StatusError> {
        let failed = |source| StatusError::Read { path: path.to_owned(), source };
        let content = file::read_at_most(path, MAX_BYTES).map_err(failed)?;
        let text = String::from_utf8(content)
            .map_err(|error| failed(io::Error::new(io::ErrorKind::InvalidData, error)))?;
        Self::parse(&text).map_err(|source| StatusError::Content { path: path.to_owned(), source })
    }

    /// What the process behind this file has to prove.
    pub fn claim(&self, directories: &Directories) -> Claim {
        let Domain { name, uuid, .. } = &*self.domain.0;
        Claim {
            name: name.to_string(),
            uuid: *uuid,
            pid: self.pid,
            start_time: self.start_time,
            files: Files {
                directory: PathBuf::from(&self.directory),
                channels: PathBuf::from(&self.channels),
                memory: self.memory_directory.clone().map_or_else(
                    || Files::new(directories, self.domain.0.id.unwrap_or(-1), name).memory,
                    PathBuf::from,
                ),
                pidfile: directories.runtime.join(format!("{name}.pid")),
                logs: directories.log.clone(),
                monitor: PathBuf::from(&self.monitor.path),
                language: self.monitor.language(),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::qemu::run_state;
    use crate::util::paths::Paths;

    /// What libvirt 11.3 wrote for a running guest, with most of the capabilities left out.
    const UPSTREAM: &str = include_str!("../../tests/data/status/upstream.xml");

    #[test]
    fn libvirts_own_file_is_read_and_written_alike() {
        let status = Status::parse(UPSTREAM).unwrap();
        assert_eq!(status.run, RunState::Running(run_state::Running::Booted));
        assert_eq!(status.taints[0].flag, "high-privileges");
        assert_eq!(status.capabilities[0].name, "kvm");
        assert_eq!((status.vcpus.len(), status.devices.len(), status.agent_timeout), (1, 4, -2));
        // Not written: that output goes through virtlogd.
        let expected = UPSTREAM.replace("  <chardevStdioLogd/>\n", "");
        assert_eq!(status.to_text().strip_prefix(HEADER).unwrap(), expected);
    }

    #[test]
    fn a_file_says_all_that_taking_hold_of_the_guest_needs() {
        let root = tempfile::tempdir().unwrap();
        let directories = Directories::new(&Paths::system(root.path()));
        let mut status = Status::parse(UPSTREAM).unwrap();
        status.start_time = Some(162_582);
        status.fake_reboot = true;
        status.allow_reboot = Some(YesNo::Yes);
        let path = root.path().join("guest.xml");
        status.save(&path).unwrap();
        let loaded = Status::load(&path).unwrap();
        assert_eq!(loaded, status);
        let claim = loaded.claim(&directories);
        assert_eq!((claim.pid, claim.start_time), (status.pid, Some(162_582)));
        assert_eq!(claim.files.monitor().to_str(), Some(status.monitor.path.as_str()));
        assert!(claim.files.pidfile.ends_with("qemu/a-rather-long-guest-name-for-paths.pid"));
    }

    #[test]
    fn a_broken_file_says_where_and_why() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("guest.xml");
        assert!(matches!(Status::load(&path), Err(StatusError::Read { .. })));
        for content in
            ["", "<domain/>", &UPSTREAM[..UPSTREAM.len() / 2], &UPSTREAM.replace("booted", "bored")]
        {
            std::fs::write(&path, content).unwrap();
            let error = Status::load(&path).unwrap_err();
            assert!(error.to_string().starts_with("status file '/"), "{error}");
        }
    }
}
