//! What a domain starts with the next time: define, undefine, autostart.

use std::sync::Arc;

use super::event::{Defined, DomainEvent, Lifecycle, Undefined};
use super::flags::{CallFlags, DefineFlags, UndefineFlags};
use super::list::{Added, Existing};
use super::remains::{has_nvram, remove_nvram};
use super::{Domains, blocking};
use crate::conf::domain::Domain;
use crate::error::{Error, Result};
use crate::qemu::job::{DomainHandle, DomainObject, State};

impl Domains {
    /// Adds a persistent domain, or changes what an existing one starts with the next time.
    pub async fn define(self: &Arc<Self>, xml: &str, flags: u32) -> Result<Arc<State>> {
        if DefineFlags::accept(flags)?.contains(DefineFlags::VALIDATE) {
            self.check_names(xml).await?;
        }
        let definition = self.read_definition(xml).await?;
        let domains = Arc::clone(self);
        blocking(move || domains.define_read(Arc::new(definition))).await
    }

    fn define_read(&self, definition: Arc<Domain>) -> Result<Arc<State>> {
        let name = &*definition.name;
        let fresh = || {
            let mut state = State::new(name, definition.uuid);
            state.inactive = Some(Arc::clone(&definition));
            DomainObject::new(state, self.limits)
        };
        let Added { object, is_new } = self.list.add((name, definition.uuid), Existing::Redefine, fresh)?;
        let configuration = object.configure();
        if configuration.state().gone {
            return Err(Error::operation_failed(format!("domain '{name}' is already being removed")));
        }
        if let Err(error) = self.definitions.save(&definition) {
            if is_new {
                configuration.update(|state| state.inactive = None, |_, ()| ());
                self.forget_unused(&object);
            }
            return Err(Error::io(format_args!("cannot save the definition of domain '{name}'"), error));
        }
        let redefines = !is_new && configuration.state().is_persistent();
        let detail = if redefines { Defined::Updated } else { Defined::Added };
        configuration.update(
            |state| state.inactive = Some(Arc::clone(&definition)),
            |state, ()| self.publish(state, DomainEvent::Lifecycle(Lifecycle::Defined(detail))),
        );
        tracing::info!(domain = name, "defined");
        Ok(configuration.state())
    }

    /// Keeps a guest that has come from another host, for when it has ended here.
    pub(super) fn make_persistent(&self, object: &DomainObject, definition: Domain) -> Result<()> {
        let configuration = object.configure();
        let state = configuration.state();
        self.check_there(&state)?;
        let name = &state.name;
        self.definitions.save(&definition).map_err(|error| {
            Error::io(format_args!("cannot save the definition of domain '{name}'"), error)
        })?;
        let detail = if state.is_persistent() { Defined::Updated } else { Defined::Added };
        configuration.update(
            |state| state.inactive = Some(Arc::new(definition)),
            |state, ()| self.publish(state, DomainEvent::Lifecycle(Lifecycle::Defined(detail))),
        );
        Ok(())
    }

    /// Changes what a domain starts with the next time, if it is defined and `edit` says that anything changes.
    pub(super) async fn amend_definition(
        self: &Arc<Self>,
        object: &Arc<DomainObject>,
        edit: impl FnOnce(&mut Domain) -> bool + Send + 'static,
    ) -> Result<()> {
        let (domains, object) = (Arc::clone(self), Arc::clone(object));
        blocking(move || {
            let configuration = object.configure();
            let Some(inactive) = configuration.state().inactive.clone() else { return Ok(()) };
            let mut edited = Domain::clone(&inactive);
            if !edit(&mut edited) {
                return Ok(());
            }
            let edited = Arc::new(edited);
            domains.definitions.save(&edited).map_err(|error| {
                Error::io(format_args!("cannot save the definition of domain '{}'", edited.name), error)
            })?;
            configuration.update(|state| state.inactive = Some(Arc::clone(&edited)), |_, ()| ());
            Ok(())
        })
        .await
    }

    /// Forgets a guest that has gone to another host. To clients that is part of its going.
    pub(super) fn forget_migrated(&self, object: &DomainObject) -> Result<()> {
        let configuration = object.configure();
        let state = configuration.state();
        let name = &state.name;
        if state.is_active() || !state.is_persistent() {
            return Ok(());
        }
        self.definitions.remove(name).map_err(|error| {
            Error::io(format_args!("cannot remove the definition of domain '{name}'"), error)
        })?;
        let forget = |state: &mut State| {
            state.inactive = None;
            state.autostart = false;
            state.gone = true;
        };
        configuration.update(forget, |_, ()| self.list.remove(object));
        Ok(())
    }

    /// Forgets a persistent domain; one that runs goes on as a transient one.
    pub async fn undefine(self: &Arc<Self>, domain: DomainHandle, flags: u32) -> Result<()> {
        let flags = UndefineFlags::accept(flags)?;
        for (both, what) in [
            (UndefineFlags::NVRAM | UndefineFlags::KEEP_NVRAM, "nvram"),
            (UndefineFlags::TPM | UndefineFlags::KEEP_TPM, "TPM"),
        ] {
            if flags.contains(both) {
                return Err(Error::operation_invalid(format!("cannot both keep and delete {what}")));
            }
        }
        let domains = Arc::clone(self);
        blocking(move || domains.undefine_now(domain.object(), flags)).await
    }

    fn undefine_now(&self, object: &DomainObject, flags: UndefineFlags) -> Result<()> {
        let configuration = object.configure();
        let state = configuration.state();
        self.check_there(&state)?;
        if !state.is_persistent() {
            return Err(Error::operation_invalid("cannot undefine transient domain"));
        }
        self.check_undefine(&state, flags)?;
        if !state.is_active() {
            self.remove_snapshots(&state)?;
            self.remove_checkpoints(&state)?;
            let forget = |state: &mut State| {
                state.snapshots = Arc::default();
                state.checkpoints = Arc::default();
            };
            configuration.update(forget, |_, ()| ());
        }
        self.remove_managed_save(&state)?;
        if flags.contains(UndefineFlags::NVRAM) {
            remove_nvram(&state)?;
        }
        let name = &state.name;
        self.definitions.remove(name).map_err(|error| {
            Error::io(format_args!("cannot remove the definition of domain '{name}'"), error)
        })?;
        let forget = |state: &mut State| {
            state.inactive = None;
            state.autostart = false;
            state.gone = !state.is_active();
            state.gone
        };
        let gone = configuration.update(forget, |state, gone| {
            if *gone {
                self.list.remove(object);
            }
            self.publish(state, DomainEvent::Lifecycle(Lifecycle::Undefined(Undefined::Removed)));
        });
        if gone {
            self.drop_tpm_state(&state, flags);
        }
        tracing::info!(domain = %name, "undefined");
        Ok(())
    }

    /// Refuses to lose what the client does not say may go. Nothing is removed before all of it has been asked for.
    fn check_undefine(&self, state: &State, flags: UndefineFlags) -> Result<()> {
        let moments = |number: usize, what: &str, said: UndefineFlags| match number {
            1.. if !state.is_active() && !flags.contains(said) => {
                let sentence = format!("cannot delete inactive domain with {number} {what}");
                Err(Error::operation_invalid(sentence))
            }
            _ => Ok(()),
        };
        moments(state.snapshots.len(), "snapshots", UndefineFlags::SNAPSHOTS_METADATA)?;
        moments(state.checkpoints.len(), "checkpoints", UndefineFlags::CHECKPOINTS_METADATA)?;
        if !flags.contains(UndefineFlags::MANAGED_SAVE) && self.managed_save(&state.name).exists() {
            let sentence = "Refusing to undefine while domain managed save image exists";
            return Err(Error::operation_invalid(sentence));
        }
        if !flags.intersects(UndefineFlags::NVRAM | UndefineFlags::KEEP_NVRAM) && has_nvram(state) {
            return Err(Error::operation_invalid("cannot undefine domain with nvram"));
        }
        Ok(())
    }

    pub(super) fn remove_managed_save(&self, state: &State) -> Result<()> {
        let image = self.managed_save(&state.name);
        crate::util::file::remove_if_there(&image).map_err(|error| {
            Error::io(format_args!("cannot remove managed save file '{}'", image.display()), error)
        })
    }

    /// Whether a domain starts with the host.
    pub async fn set_autostart(self: &Arc<Self>, domain: DomainHandle, on: bool) -> Result<()> {
        let domains = Arc::clone(self);
        blocking(move || domains.set_autostart_now(domain.object(), on)).await
    }

    /// Whether a domain starts with the host the next time, and then no more.
    pub async fn set_autostart_once(self: &Arc<Self>, domain: DomainHandle, on: bool) -> Result<()> {
        let domains = Arc::clone(self);
        blocking(move || {
            let configuration = domain.object().configure();
            let state = configuration.state();
            domains.check_there(&state)?;
            if !state.is_persistent() {
                return Err(Error::operation_invalid("cannot set autostart for transient domain"));
            }
            domains.definitions.set_autostart_once(&state.name, on).map_err(|error| {
                Error::io(format_args!("cannot change the autostart link of domain '{}'", state.name), error)
            })
        })
        .await
    }

    pub async fn autostart_once(self: &Arc<Self>, domain: DomainHandle) -> Result<bool> {
        let domains = Arc::clone(self);
        blocking(move || Ok(domains.definitions.starts_once(&domain.state().name))).await
    }

    fn set_autostart_now(&self, object: &DomainObject, on: bool) -> Result<()> {
        let configuration = object.configure();
        let state = configuration.state();
        self.check_there(&state)?;
        if !state.is_persistent() {
            return Err(Error::operation_invalid("cannot set autostart for transient domain"));
        }
        if state.autostart == on {
            return Ok(());
        }
        self.definitions.set_autostart(&state.name, on).map_err(|error| {
            Error::io(format_args!("cannot change the autostart link of domain '{}'", state.name), error)
        })?;
        configuration.update(|state| state.autostart = on, |_, ()| ());
        Ok(())
    }
}
