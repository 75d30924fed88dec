//! From a file with a guest's state to a guest that goes on.
//!
//! The file is only read: whatever comes of it, it is as it was, and can be tried again.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::event::{DomainEvent, Lifecycle, Started, Suspended};
use super::flags::{CallFlags, RestoreFlags, SaveFlags};
use super::list::{Added, Existing};
use super::save::{cache, exclusive, settings, wants_to_run};
use super::start::{Beginning, Plan, Variables};
use super::{Domains, blocking};
use crate::conf::domain::Domain;
use crate::conf::xml::Form;
use crate::drivers::ClientId;
use crate::drivers::params::{ParamType, Params};
use crate::error::{Error, Result};
use crate::qemu::job::{AsyncJob, AsyncOp, DomainHandle, DomainObject, Ending, Start, State};
use crate::qemu::migrate::{self, Settings, Target, Until};
use crate::qemu::monitor::QueryChardev;
use crate::qemu::process::How;
use crate::qemu::run_state::{Paused, RunState, Running};
use crate::qemu::save_file::{self, Cache, Feed, Packer};
use crate::qemu::save_image::{Prologue, SaveFormat, SaveImageError};
use crate::util::accounts::Ids;

/// Whether the client may do what it wants to with the guest that is in a file.
pub(super) type Judge<'a> = &'a (dyn Fn(&Domain) -> Result<()> + Send + Sync);

/// A file that was looked into. It is read no other way from then on: under its name there may be another one.
#[derive(Debug)]
pub(super) struct Image {
    pub path: PathBuf,
    pub file: File,
    /// Who may read it if root may not.
    pub user: Option<Ids>,
    pub prologue: Prologue,
    pub definition: Domain,
}

/// What is to become of a guest that is restored.
#[derive(Debug)]
pub(super) struct Wishes {
    pub settings: Settings,
    pub cache: Cache,
    pub runs: bool,
    /// The client said now that it is to stand still.
    pub paused: bool,
    pub owner: Option<ClientId>,
    pub variables: Variables,
    pub from: From,
}

/// Whose file it is that a guest goes on from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum From {
    Client,
    /// The daemon's: it is not to be there any more when the guest runs.
    Kept,
}

impl Domains {
    /// `virDomainRestoreFlags`
    pub async fn restore(
        self: &Arc<Self>,
        path: &str,
        xml: Option<&str>,
        flags: u32,
        judge: Judge<'_>,
    ) -> Result<()> {
        let flags = RestoreFlags::accept(flags)?;
        Box::pin(self.restore_from(Path::new(path), xml, None, flags, judge)).await
    }

    /// The same with parameters.
    pub async fn restore_with(self: &Arc<Self>, params: Params, flags: u32, judge: Judge<'_>) -> Result<()> {
        params.validate(&[
            ("file", ParamType::Text),
            ("dxml", ParamType::Text),
            ("parallel.channels", ParamType::Int),
        ])?;
        let path = params.text("file").ok_or_else(|| Error::invalid_arg("missing path to restore from"))?;
        let flags = RestoreFlags::accept(flags)?;
        let channels = params.int("parallel.channels").copied();
        let xml = params.text("dxml").map(String::as_str);
        Box::pin(self.restore_from(Path::new(path), xml, channels, flags, judge)).await
    }

    async fn restore_from(
        self: &Arc<Self>,
        path: &Path,
        xml: Option<&str>,
        channels: Option<i32>,
        flags: RestoreFlags,
        judge: Judge<'_>,
    ) -> Result<()> {
        if flags.contains(RestoreFlags::RUNNING | RestoreFlags::PAUSED) {
            return Err(exclusive("VIR_DOMAIN_SAVE_RUNNING", "VIR_DOMAIN_SAVE_PAUSED"));
        }
        let mut image = self.look_into(path).await?;
        judge(&image.definition)?;
        if let Some(xml) = xml {
            image.definition = self.replacement(&image.definition, xml).await?;
        }
        let said = SaveFlags::from_bits_truncate(flags.bits());
        let wishes = Wishes {
            settings: settings(image.prologue.format, channels, said)?,
            cache: cache(flags.contains(RestoreFlags::BYPASS_CACHE)),
            runs: wants_to_run(said, image.prologue.runs),
            paused: false,
            owner: None,
            variables: Variables::reset_if(flags.contains(RestoreFlags::RESET_NVRAM)),
            from: From::Client,
        };
        let (name, uuid) = (&*image.definition.name, image.definition.uuid);
        let fresh = || DomainObject::new(State::new(name, uuid), self.limits);
        let Added { object, .. } = self.list.add((name, uuid), Existing::Start, fresh)?;
        let restored = async {
            let mut job = DomainHandle::new(Arc::clone(&object)).begin_async::<Start>().await?;
            if job.state().is_active() {
                return Err(Error::operation_invalid(format!("domain '{name}' is already active")));
            }
            self.bring_back(&mut job, &image, wishes).await
        };
        let restored = restored.await;
        if restored.is_err() {
            self.forget_unused(&object);
        }
        restored
    }

    /// What a file says of the guest in it.
    pub(super) async fn look_into(&self, path: &Path) -> Result<Image> {
        let user = self.rules.security.default_ids();
        let (file, prologue) = read_prologue(path, user).await?;
        let prologue = prologue?;
        let definition = self.read_definition(&prologue.xml).await?;
        Ok(Image { path: path.to_owned(), file, user, prologue, definition })
    }

    /// A client's definition instead of the one in a file, if the guest would not notice.
    pub(super) async fn replacement(&self, saved: &Domain, xml: &str) -> Result<Domain> {
        let given = self.read_definition(xml).await?;
        let portable = |definition: &Domain| {
            Domain::parse(&definition.to_xml(Form::SECURE | Form::MIGRATABLE), Form::INACTIVE)
        };
        portable(saved)?.check_same_machine(&portable(&given)?)?;
        Ok(given)
    }

    /// From a file to a guest that goes on; QEMU and all that went with it is gone if this fails.
    pub(super) async fn bring_back(
        self: &Arc<Self>,
        job: &mut AsyncJob<Start>,
        image: &Image,
        wishes: Wishes,
    ) -> Result<()> {
        let packer = Packer::find(image.prologue.format, self.search_path(), "save")?;
        let cookie = image.prologue.cookie()?;
        let plan = Plan {
            definition: &image.definition,
            owner: wishes.owner,
            // The next daemon ends it should this one die before all is there.
            beginning: Beginning::Incoming(Paused::StartingUp),
            exact_cpu: cookie.and_then(|cookie| cookie.cpu),
            variables: wishes.variables,
        };
        self.run(job, plan).await?;
        let brought = async {
            load(job, image, &wishes, packer.as_ref()).await?;
            self.let_run(job, &wishes).await
        };
        let brought = brought.await;
        if brought.is_err()
            && let Err(error) = job.stop(How::Forced, Ending::Failed).await
            && job.state().is_active()
        {
            tracing::error!(domain = %job.state().name, %error, "cannot end a guest that was not restored");
        }
        brought
    }

    /// Its state is there: clients hear of it, and its vCPUs go on if they are to.
    async fn let_run(&self, job: &mut AsyncJob<Start>, wishes: &Wishes) -> Result<()> {
        let object = Arc::clone(job.object());
        let ports = {
            let nested = job.nested().await?;
            let live = nested.live()?;
            live.monitor().events_handled().await;
            live.monitor().execute(QueryChardev {}).await?
        };
        if wishes.from == From::Kept {
            self.set_kept_aside(&object.state().name)?;
        }
        self.tell(&object, |state| {
            state.run = RunState::Paused(Paused::Migration);
            vec![DomainEvent::Lifecycle(Lifecycle::Started(Started::Restored))]
        });
        self.note_ports(&object, &ports);
        if wishes.runs && !wishes.paused {
            return self.let_go(job, Running::Restored).await;
        }
        let detail = if wishes.paused { Suspended::Paused } else { Suspended::Restored };
        self.tell(&object, |_| vec![DomainEvent::Lifecycle(Lifecycle::Suspended(detail))]);
        Ok(())
    }
}

/// The file's first part; the inner error is what is wrong with the file itself.
async fn read_prologue(
    path: &Path,
    user: Option<Ids>,
) -> Result<(File, std::result::Result<Prologue, SaveImageError>)> {
    let path = path.to_owned();
    blocking(move || {
        let mut file = save_file::open(&path, Cache::Used, user)?;
        let prologue = Prologue::read(&mut file);
        Ok((file, prologue))
    })
    .await
}

impl Image {
    fn open(&self, cache: Cache) -> Result<File> {
        Ok(save_file::open(&save_file::of_open(&self.file), cache, self.user)?)
    }
}

/// Has the QEMU that waits for it take the state in.
pub(super) async fn load<O: AsyncOp>(
    job: &mut AsyncJob<O>,
    image: &Image,
    wishes: &Wishes,
    packer: Option<&Packer>,
) -> Result<()> {
    let offset = image.prologue.stream_offset();
    let mut feed = None;
    let source = match image.prologue.format {
        SaveFormat::Sparse => {
            let mut files = vec![image.open(Cache::Used)?.into()];
            if wishes.cache == Cache::Bypassed {
                files.push(image.open(Cache::Bypassed)?.into());
            }
            Target::Mapped { files, offset }
        }
        _ => {
            let (source, opened) =
                Feed::open(image.open(wishes.cache)?, &image.path, offset, packer, wishes.cache).await?;
            feed = Some(opened);
            Target::Descriptor(source)
        }
    };
    {
        let nested = job.nested().await?;
        let live = nested.live()?;
        migrate::configure(&live, &wishes.settings).await?;
        migrate::receive(&live, source).await?;
    }
    migrate::wait(job, Until::default()).await?;
    if let Some(feed) = feed {
        feed.finish().await?;
    }
    let nested = job.nested().await?;
    migrate::forget(&nested.live()?).await;
    Ok(())
}
