//! A domain under another name: its file, its link and its place in the list follow.

use std::sync::Arc;

use super::event::{Defined, DomainEvent, Lifecycle, Undefined};
use super::flags::no_flags;
use super::reads::persistent;
use super::{Domains, blocking};
use crate::conf::domain::Domain;
use crate::error::{Error, Result};
use crate::qemu::job::{DomainHandle, DomainObject, Modify};
use crate::qemu::run_state::RunState;

impl Domains {
    /// Gives a domain that is shut off another name.
    pub async fn rename(self: &Arc<Self>, mut domain: DomainHandle, name: String, flags: u32) -> Result<()> {
        no_flags(flags, "qemuDomainRename")?;
        if name.is_empty() {
            let sentence = "string new_name in virDomainRename must not be empty";
            return Err(Error::refused_argument("virDomainRename", "new_name", sentence));
        }
        let object = Arc::clone(domain.object());
        let _job = domain.begin::<Modify>().await?;
        let domains = Arc::clone(self);
        blocking(move || domains.rename_now(&object, &name)).await
    }

    fn rename_now(&self, object: &Arc<DomainObject>, name: &str) -> Result<()> {
        let configuration = object.configure();
        let state = configuration.state();
        self.check_there(&state)?;
        let invalid = |sentence| Err(Error::operation_invalid(sentence));
        if state.is_active() {
            return invalid("cannot rename active domain");
        }
        if !state.is_persistent() {
            return invalid("cannot rename a transient domain");
        }
        if self.has_managed_save(&state) {
            return invalid("domain with a managed saved state can't be renamed");
        }
        if !matches!(state.run, RunState::Shutoff(_)) {
            return invalid("domain has to be shutoff before renaming");
        }
        if name.contains('/') {
            return Err(Error::xml_error(format!("name {name} cannot contain '/'")));
        }
        let mut definition = Domain::clone(persistent(&state)?);
        definition.name = name.into();
        self.list.claim(name, object)?;
        let moved = self
            .move_files(&state.name, &definition, state.autostart)
            .and_then(|()| self.snapshot_files.rename(&state.name, name))
            .and_then(|()| self.checkpoint_files.rename(&state.name, name));
        if let Err(error) = moved {
            self.list.release_name(name);
            return Err(Error::io(format_args!("cannot rename domain '{}'", state.name), error));
        }
        self.publish(&state, DomainEvent::Lifecycle(Lifecycle::Undefined(Undefined::Renamed)));
        configuration.update(
            |state| {
                state.name = name.into();
                state.inactive = Some(Arc::new(definition));
            },
            |state, ()| self.publish(state, DomainEvent::Lifecycle(Lifecycle::Defined(Defined::Renamed))),
        );
        self.list.release_name(&state.name);
        tracing::info!(domain = %state.name, name, "renamed");
        Ok(())
    }

    /// What has the new name is there before what has the old one goes.
    fn move_files(&self, old: &str, definition: &Domain, autostart: bool) -> std::io::Result<()> {
        let written = self.definitions.save(definition).and_then(|()| match autostart {
            true => self.definitions.set_autostart(&definition.name, true),
            false => Ok(()),
        });
        let moved = written.and_then(|()| self.definitions.remove(old));
        if moved.is_err() {
            // The first error is the one that the user needs.
            self.definitions.remove(&definition.name).ok();
        }
        moved
    }
}
