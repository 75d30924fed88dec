//! From a guest whose process is gone to a domain that is shut off, or to nothing.

use std::sync::Arc;

use super::Domains;
use super::event::{DomainEvent, Lifecycle, Stopped};
use super::flags::UndefineFlags;
use crate::qemu::helpers;
use crate::qemu::job::{Destroy, DomainHandle, DomainObject, Ending, JobError, State};
use crate::qemu::log;
use crate::qemu::run_state::{Paused, RunState, Shutoff};

impl Domains {
    /// Takes a domain down whose process is gone. Only the task that watches the process calls this.
    pub(super) async fn take_down(&self, object: &Arc<DomainObject>) {
        let mut domain = DomainHandle::new(Arc::clone(object));
        let job = loop {
            match domain.begin::<Destroy>().await {
                Ok(job) => break job,
                Err(JobError::Gone { .. }) => return,
                // Whoever holds the job talks to a monitor that is gone, so it ends.
                Err(error) => tracing::warn!(domain = %object.state().name, %error, "taking down waits"),
            }
        };
        job.drop_parked();
        let state = object.state();
        self.release(&state);
        self.take_back_all(&state).await;
        self.drop_backup(&state).await;
        let (reason, detail) = meaning(state.ending);
        tracing::info!(domain = %state.name, ?reason, "stopped");
        let (_, word) = RunState::Shutoff(reason).names();
        let note = format!("shutting down, reason={word}");
        if let Err(error) = log::note(&self.paths.qemu_log(), &state.name, &note) {
            tracing::warn!(domain = %state.name, %error, "cannot write to the guest's log");
        }
        // It may come back at once.
        let stays = |state: &State| state.is_persistent() || state.ending == Some(Ending::FromSnapshot);
        // Whoever hears of the end finds nothing of a guest that is forgotten with it.
        let configuration = object.configure();
        if !stays(&configuration.state()) {
            self.drop_remains(&state);
        }
        let end = |state: &mut State| {
            let stays = stays(state);
            state.detach(reason);
            state.gone = !stays;
            state.gone
        };
        // Of a guest that never came to be nobody has heard.
        let known = state.run != RunState::Paused(Paused::StartingUp);
        job.update_then(end, |state, gone| {
            if *gone {
                self.list.remove(object);
            }
            if known {
                self.publish(state, DomainEvent::Lifecycle(Lifecycle::Stopped(detail)));
            }
        });
        if known {
            self.audit_stop(&state, detail);
        }
    }

    /// Removes what is kept for a guest that will not be known any more.
    fn drop_remains(&self, state: &State) {
        // The state of one that has gone to another host may be what it uses there.
        if state.ending != Some(Ending::Migrated) {
            self.drop_tpm_state(state, UndefineFlags::empty());
        }
        let dropped = self.remove_snapshots(state).and(self.remove_checkpoints(state));
        if let Err(error) = dropped {
            tracing::warn!(domain = %state.name, %error, "what is known of snapshots stays");
        }
    }

    /// Gives back what the guest had of the host: its id, files, ports.
    pub(super) fn release(&self, state: &State) {
        if let Some(id) = state.id {
            self.list.release_id(id);
        }
        self.ports.release(state.uuid);
        self.written.remove_all(&state.name);
        self.owners.release(state.uuid);
        self.frozen.release(state.uuid);
        self.migrations.forget(state.uuid);
        if let Some(files) = state.files() {
            helpers::end(files);
        }
        if let Some(files) = state.files()
            && let Err(error) = files.remove()
        {
            tracing::warn!(domain = %state.name, %error, "cannot remove the guest's files");
        }
        self.remove_status(&state.name);
    }
}

/// What an ending is as a reason and as an event. Nobody caused it: the process died.
fn meaning(ending: Option<Ending>) -> (Shutoff, Stopped) {
    match ending {
        None => (Shutoff::Crashed, Stopped::Failed),
        Some(Ending::Shutdown) => (Shutoff::Shutdown, Stopped::Shutdown),
        Some(Ending::Destroyed) => (Shutoff::Destroyed, Stopped::Destroyed),
        Some(Ending::Crashed) => (Shutoff::Crashed, Stopped::Crashed),
        Some(Ending::Saved) => (Shutoff::Saved, Stopped::Saved),
        Some(Ending::FromSnapshot) => (Shutoff::FromSnapshot, Stopped::FromSnapshot),
        Some(Ending::Migrated) => (Shutoff::Migrated, Stopped::Migrated),
        Some(Ending::Failed) => (Shutoff::Failed, Stopped::Failed),
    }
}
