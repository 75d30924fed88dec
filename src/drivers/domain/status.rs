//! The files from which the next daemon learns what runs.

use std::sync::Arc;

use super::Domains;
use super::messages::taints;
use crate::conf::xml::YesNo;
use crate::qemu::block_jobs::BlockJobsRecord;
use crate::qemu::job::{Phase, State, Underway};
use crate::qemu::process::Files;
use crate::qemu::security::Owners;
use crate::qemu::status::{
    Capability, DeviceAlias, JobRecord, LiveDomain, MonitorSocket, Status, StatusError, Taint, VcpuThread,
};
use crate::util::process::Process;

impl Domains {
    /// Writes down what is known of a running guest. Called while the state is being replaced, so that the
    /// file follows the states.
    pub(super) fn write_status(&self, state: &State) -> Result<(), StatusError> {
        match (state.process(), state.files()) {
            (Some(process), Some(files)) => self.write_status_of(state, process, files),
            _ => Ok(()),
        }
    }

    /// The same for a guest that the state knows no process of yet.
    pub(super) fn write_status_of(
        &self,
        state: &State,
        process: &Process,
        files: &Files,
    ) -> Result<(), StatusError> {
        let Some(status) = status(state, process, files) else { return Ok(()) };
        status.save(&Status::path(&self.directories, &state.name))
    }

    /// The same for a guest that runs: it goes on with the file as it was, from which the next daemon can still
    /// find out.
    pub(super) fn save_status(&self, state: &State) {
        if let Err(error) = self.write_status(state) {
            tracing::warn!(domain = %state.name, %error, "the next daemon will not find this guest as it is");
        }
    }

    pub(super) fn remove_status(&self, name: &str) {
        let path = Status::path(&self.directories, name);
        if let Err(error) = crate::util::file::remove_if_there(&path) {
            tracing::warn!(domain = name, %error, "cannot remove the status file");
        }
    }
}

/// Whether the file says the same of both. What they share has not changed.
pub(super) fn recorded_alike(one: &State, other: &State) -> bool {
    fn same<T: ?Sized>(one: &Option<Arc<T>>, other: &Option<Arc<T>>) -> bool {
        match (one, other) {
            (Some(one), Some(other)) => Arc::ptr_eq(one, other),
            (None, None) => true,
            _ => false,
        }
    }
    let small = |state: &State| {
        let operation = state.operation.as_ref().map(|it| (it.recorded(), it.deletes_snapshot));
        (state.run, state.reboots, operation, state.agent_patience)
    };
    small(one) == small(other)
        && same(&one.live, &other.live)
        && same(&one.launched, &other.launched)
        && same(&one.overlays, &other.overlays)
        && Arc::ptr_eq(&one.vcpu_threads, &other.vcpu_threads)
        && Arc::ptr_eq(&one.block_jobs, &other.block_jobs)
}

fn job(underway: &Underway) -> JobRecord {
    let (operation, phase, flags, since_ms) = underway.recorded();
    JobRecord {
        kind: "none".to_owned(),
        operation: operation.name().to_owned(),
        phase: phase.map(|Phase(name)| name.to_owned()),
        flags: Some(format!("{flags:#x}")),
        since_ms: Some(since_ms),
        file: underway.file.as_deref().map(str::to_owned),
        snapshot_delete: underway.deletes_snapshot,
    }
}

/// None for a domain that does not run.
pub(super) fn status(state: &State, process: &Process, files: &Files) -> Option<Status> {
    let (live, launched) = (state.live.as_ref()?, state.launched.as_ref()?);
    let capability = |name: &str| Capability { name: name.to_owned() };
    let threads = (0..).zip(state.vcpu_threads.iter()).filter(|(_, thread)| **thread != 0);
    Some(Status {
        run: state.run,
        pid: process.pid(),
        taints: taints(live).into_iter().map(|(flag, _)| Taint { flag: flag.to_owned() }).collect(),
        deprecations: Vec::new(),
        monitor: MonitorSocket::new(files),
        vcpus: threads.map(|(id, pid)| VcpuThread { id, pid: *pid }).collect(),
        capabilities: launched.capabilities.iter().map(|cap| capability(cap.as_str())).collect(),
        job: state.operation.as_ref().map(job).or_else(|| state.interrupted.as_deref().cloned()),
        fake_reboot: state.reboots,
        devices: launched.devices.iter().map(|alias| DeviceAlias { alias: alias.clone() }).collect(),
        directory: files.directory.to_string_lossy().into_owned(),
        channels: files.channels.to_string_lossy().into_owned(),
        memory_directory: Some(files.memory.to_string_lossy().into_owned()),
        defined_cpu: launched.defined_cpu.clone(),
        remember_owner: launched.owners == Owners::Remembered,
        allow_reboot: Some(YesNo::Yes),
        last_node: u64::from(launched.last_node),
        last_fdset: 0,
        block_jobs: Some(BlockJobsRecord::of(&state.block_jobs)),
        agent_timeout: state.agent_patience.number(),
        autodestroy: state.autodestroy,
        start_time: Some(process.start_time()),
        overlays: state.overlays.as_deref().cloned(),
        domain: LiveDomain(live.clone()),
    })
}
