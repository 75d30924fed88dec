//! A guest's state that the daemon keeps, for the next start to go on from; and definitions in saved files.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::flags::{CallFlags, ImageFlags, ImageStateFlags, SaveFlags, StartFlags, no_flags};
use super::reads::running;
use super::restore::{From, Image, Judge, Wishes};
use super::save::{Request, cache, exclusive, settings};
use super::start::Variables;
use super::{Domains, blocking};
use crate::conf::domain::Domain;
use crate::conf::xml::Form;
use crate::drivers::ClientId;
use crate::error::{Error, Result};
use crate::qemu::job::{AsyncJob, DomainHandle, Ending, Operation, Start, State};
use crate::qemu::monitor::Status as QemuStatus;
use crate::qemu::process::How;
use crate::qemu::save_file::{self, PARTIAL};
use crate::qemu::save_image::{Prologue, Whole};
use crate::util::accounts::{Ids, or_as_user};
use crate::util::file;

impl Domains {
    /// `virDomainManagedSave`
    pub async fn managed_save_now(self: &Arc<Self>, domain: DomainHandle, flags: u32) -> Result<()> {
        let flags = SaveFlags::accept_in(flags, "qemuDomainManagedSave")?;
        self.save_managed(domain, None, flags).await
    }

    pub(super) async fn save_managed(
        self: &Arc<Self>,
        domain: DomainHandle,
        xml: Option<String>,
        flags: SaveFlags,
    ) -> Result<()> {
        let state = domain.state();
        running(&state)?;
        if !state.is_persistent() {
            return Err(Error::operation_invalid("cannot do managed save for transient domain"));
        }
        let path = self.managed_save(&state.name);
        let directory = path.parent().map(Path::to_owned).unwrap_or_default();
        blocking(move || {
            file::make_directory(&directory, 0o711)
                .map_err(|error| Error::io(format_args!("cannot create '{}'", directory.display()), error))
        })
        .await?;
        let format = self.rules.saving.save_format;
        self.save_to(domain, Request { path, format, xml, channels: None, flags }).await
    }

    /// Forgets a guest's kept state.
    pub async fn drop_managed(self: &Arc<Self>, domain: DomainHandle, flags: u32) -> Result<()> {
        no_flags(flags, "qemuDomainManagedSaveRemove")?;
        let path = self.managed_save(&domain.state().name);
        blocking(move || {
            std::fs::remove_file(&path).map_err(|error| {
                Error::io(format_args!("Failed to remove managed save file '{}'", path.display()), error)
            })
        })
        .await
    }

    /// Has a start go on from what is kept. A file that cannot be restored stays, even if it never could be: whether
    /// the guest is to lose what was in its memory is not ours to say. A forced boot says it.
    pub(super) async fn start_from_kept(
        self: &Arc<Self>,
        job: &mut AsyncJob<Start>,
        flags: StartFlags,
        owner: Option<ClientId>,
    ) -> Result<()> {
        let state = job.state();
        let path = self.managed_save(&state.name);
        let image = self.look_into(&path).await?;
        check_belongs(&image, &state)?;
        let bypassed = flags.contains(StartFlags::BYPASS_CACHE);
        let said = if bypassed { SaveFlags::BYPASS_CACHE } else { SaveFlags::empty() };
        let wishes = Wishes {
            settings: settings(image.prologue.format, None, said)?,
            cache: cache(bypassed),
            runs: image.prologue.runs,
            paused: flags.contains(StartFlags::PAUSED),
            owner,
            variables: Variables::reset_if(flags.contains(StartFlags::RESET_NVRAM)),
            from: From::Kept,
        };
        let brought = self.bring_back(job, &image, wishes).await;
        if brought.is_err() {
            self.bring_kept_back(&state.name);
        } else if let Err(error) = file::remove_if_there(&self.kept_aside(&state.name)) {
            tracing::warn!(domain = %state.name, %error, "the guest's old state takes room");
        }
        brought
    }

    /// Where a kept state is from before the guest runs on from it: one that stays under its name is restored over the
    /// guest's disks the next time. A daemon that finds it removes it.
    fn kept_aside(&self, name: &str) -> PathBuf {
        let mut path = self.managed_save(name).into_os_string();
        path.push(format!(".resumed{PARTIAL}"));
        path.into()
    }

    pub(super) fn set_kept_aside(&self, name: &str) -> Result<()> {
        let path = self.managed_save(name);
        std::fs::rename(&path, self.kept_aside(name)).map_err(|error| {
            Error::io(format_args!("cannot rename managed save file '{}'", path.display()), error)
        })
    }

    /// The guest has not run; it may go on from there the next time.
    pub(super) fn bring_kept_back(&self, name: &str) {
        match std::fs::rename(self.kept_aside(name), self.managed_save(name)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                tracing::error!(domain = name, %error, "the guest's kept state does not come back");
            }
            _ => {}
        }
    }

    /// Whether all that the last daemon had left to do of a managed save is to end the guest.
    pub(super) async fn was_kept(&self, state: &State, status: Option<&QemuStatus>) -> bool {
        let path = self.managed_save(&state.name);
        let was_to_be = state.interrupted.as_ref().is_some_and(|job| {
            Operation::from_name(&job.operation) == Some(Operation::Save)
                && job.file.as_deref().map(Path::new) == Some(&path)
        });
        // All of it has left QEMU, and all of it is in the file.
        if !was_to_be || status.is_none_or(|status| status.status != "postmigrate") {
            return false;
        }
        match self.look_into(&path).await.and_then(|image| check_belongs(&image, state)) {
            Ok(()) => true,
            Err(error) => {
                tracing::warn!(domain = %state.name, %error, "the guest was not saved");
                false
            }
        }
    }

    /// Ends a guest whose state is kept.
    pub(super) async fn end_kept(&self, mut job: AsyncJob<Start>) {
        tracing::info!(domain = %job.state().name, "its state is kept; ending it");
        if let Err(error) = job.stop(How::Forced, Ending::Saved).await {
            tracing::error!(domain = %job.state().name, %error, "cannot end a guest whose state is kept");
        }
    }

    /// Forgets a kept state of a guest that has gone on since.
    pub(super) fn drop_old_memory(&self, state: &State) {
        if !self.managed_save(&state.name).exists() {
            return;
        }
        tracing::warn!(domain = %state.name, "removes a kept state: the guest has gone on since");
        if let Err(error) = self.remove_managed_save(state) {
            tracing::error!(domain = %state.name, %error, "the guest's old state stays");
        }
    }

    /// The definition of the guest in a file.
    pub async fn save_image_xml(&self, path: &str, flags: u32, judge: Judge<'_>) -> Result<String> {
        let flags = ImageFlags::accept(flags)?;
        let image = self.look_into(Path::new(path)).await?;
        judge(&image.definition)?;
        Ok(image.definition.to_xml(image_form(flags)))
    }

    /// The same as it was read, for whoever judges by it.
    pub async fn saved_definition(&self, path: &str) -> Result<Domain> {
        self.look_into(Path::new(path)).await.map(|image| image.definition)
    }

    /// Has the guest in a file go on with another definition.
    pub async fn define_save_image(&self, path: &str, xml: &str, flags: u32, judge: Judge<'_>) -> Result<()> {
        let flags = ImageStateFlags::accept(flags)?;
        if flags.contains(ImageStateFlags::RUNNING | ImageStateFlags::PAUSED) {
            return Err(exclusive("VIR_DOMAIN_SAVE_RUNNING", "VIR_DOMAIN_SAVE_PAUSED"));
        }
        let Image { path, file, user, mut prologue, definition } = self.look_into(Path::new(path)).await?;
        judge(&definition)?;
        let runs = match flags {
            flags if flags.contains(ImageStateFlags::RUNNING) => true,
            flags if flags.contains(ImageStateFlags::PAUSED) => false,
            _ => prologue.runs,
        };
        if prologue.xml == xml && prologue.runs == runs {
            return Ok(());
        }
        prologue.runs = runs;
        let given = self.replacement(&definition, xml).await?;
        prologue.xml = given.to_xml(Form::SECURE | Form::MIGRATABLE);
        rewrite(file, path, user, prologue).await
    }

    /// The same of a guest's kept state.
    pub async fn managed_save_xml(&self, domain: DomainHandle, flags: u32) -> Result<String> {
        ImageFlags::accept_in(flags, "qemuDomainManagedSaveGetXMLDesc")?;
        self.save_image_xml(&self.kept(&domain)?, flags, &|_| Ok(())).await
    }

    pub async fn define_managed_save(&self, domain: DomainHandle, xml: &str, flags: u32) -> Result<()> {
        self.define_save_image(&self.kept(&domain)?, xml, flags, &|_| Ok(())).await
    }

    fn kept(&self, domain: &DomainHandle) -> Result<String> {
        let path = self.managed_save(&domain.state().name);
        match path.exists() {
            true => Ok(path.to_string_lossy().into_owned()),
            false => Err(Error::operation_invalid("domain does not have managed save image")),
        }
    }

    /// Removes what an earlier daemon was writing for a client.
    pub(super) async fn drop_half_written(&self, state: &State) {
        let Some(path) = state.interrupted.as_ref().and_then(|job| job.file.clone()) else { return };
        let (user, mark) = (self.user_of_files(state).ok().flatten(), state.uuid.to_string());
        let removed = blocking(move || {
            save_file::remove_partial(Path::new(&path), &mark, user)
                .map_err(|error| Error::io(format_args!("cannot remove what is to be '{path}'"), error))
        });
        if let Err(error) = removed.await {
            tracing::warn!(domain = %state.name, %error, "what is not whole stays");
        }
    }

    /// Removes what an earlier daemon has left half-written.
    pub(super) fn drop_half_saved(&self) {
        let directory = self.paths.qemu_state().join("save");
        let entries = std::fs::read_dir(&directory).into_iter().flatten().flatten();
        for entry in entries.filter(|entry| entry.file_name().to_string_lossy().ends_with(PARTIAL)) {
            if let Err(error) = file::remove_if_there(&entry.path()) {
                tracing::warn!(path = %entry.path().display(), %error, "cannot remove what is not whole");
            }
        }
    }
}

fn image_form(flags: ImageFlags) -> Form {
    if flags.contains(ImageFlags::SECURE) { Form::SECURE } else { Form::INACTIVE }
}

fn check_belongs(image: &Image, state: &State) -> Result<()> {
    let found = &image.definition;
    if *found.name == *state.name && found.uuid == state.uuid {
        return Ok(());
    }
    Err(Error::operation_failed(format!(
        "cannot restore domain '{}' uuid {} from a file which belongs to domain '{}' uuid {}",
        state.name, state.uuid, found.name, found.uuid
    )))
}

/// Replaces a file's first part; what comes behind stays where it is.
async fn rewrite(file: File, path: PathBuf, user: Option<Ids>, prologue: Prologue) -> Result<()> {
    use std::os::unix::fs::FileExt;

    blocking(move || {
        let bytes = prologue.encode(Whole::Yes)?;
        let opened = or_as_user(user, || File::options().write(true).open(save_file::of_open(&file)));
        let written = opened.and_then(|file| {
            file.write_all_at(&bytes, 0)?;
            file.sync_data()
        });
        written.map_err(|error| {
            Error::io(format_args!("failed to write header data to '{}'", path.display()), error)
        })
    })
    .await
}
