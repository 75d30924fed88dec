//! A guest's state into a file, and its process away.
//!
//! ```text
//!  vCPUs stop ─► file grows beside its name ─► head, QEMU's stream ─► whole, synced, named ─► QEMU ends
//!       ▲                 │ out of space, no packer, aborted, daemon gone
//!       └──── vCPUs go ◄──┘ nothing is left of the file
//! ```

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::block_jobs::check_all_idle;
use super::flags::{CallFlags, SaveFlags};
use super::reads::running;
use super::{Domains, blocking};
use crate::conf::domain::Domain;
use crate::conf::xml::Form;
use crate::drivers::params::{ParamType, Params};
use crate::error::{Error, Origin, Result};
use crate::qemu::job::{AsyncJob, AsyncOp, DomainHandle, Ending, JobSubject, Save, State};
use crate::qemu::migrate::{self, MigrateError, Settings, Target, Until};
use crate::qemu::monitor::{Cont, MigrationParameters, QueryMigrate, Stop};
use crate::qemu::process::How;
use crate::qemu::run_state::{Paused, RunState, Running};
use crate::qemu::save_file::{Cache, Drain, Growing, Packer};
use crate::qemu::save_image::{Prologue, SaveCookie, SaveFormat, Whole};
use crate::util::accounts::Ids;

/// As fast as the file takes it: libvirt's largest number of MiB a second.
const UNLIMITED: u64 = (i64::MAX as u64 >> 20) << 20;

/// What a client wants saved, and how.
#[derive(Debug)]
pub(super) struct Request {
    pub path: PathBuf,
    pub format: SaveFormat,
    /// A definition to go on with instead of the guest's own.
    pub xml: Option<String>,
    /// How many write at once; of sparse files only.
    pub channels: Option<i32>,
    pub flags: SaveFlags,
}

impl Domains {
    /// `virDomainSaveFlags`
    pub async fn save(
        self: &Arc<Self>,
        domain: DomainHandle,
        path: &str,
        xml: Option<String>,
        flags: u32,
    ) -> Result<()> {
        let flags = SaveFlags::accept(flags)?;
        let format = self.rules.saving.save_format;
        self.save_to(domain, Request { path: path.into(), format, xml, channels: None, flags }).await
    }

    /// The same with parameters; without a file it is a managed save.
    pub async fn save_with(self: &Arc<Self>, domain: DomainHandle, params: Params, flags: u32) -> Result<()> {
        let flags = SaveFlags::accept(flags)?;
        params.validate(&[
            ("file", ParamType::Text),
            ("dxml", ParamType::Text),
            ("image_format", ParamType::Text),
            ("parallel.channels", ParamType::Int),
        ])?;
        let xml = params.text("dxml").cloned();
        let Some(path) = params.text("file") else {
            return self.save_managed(domain, xml, flags).await;
        };
        let format = match params.text("image_format") {
            None => self.rules.saving.save_format,
            Some(name) => SaveFormat::from_name(name)
                .ok_or_else(|| Error::operation_failed(format!("Invalid image_format '{name}'")))?,
        };
        let channels = params.int("parallel.channels").copied();
        self.save_to(domain, Request { path: path.into(), format, xml, channels, flags }).await
    }

    /// Returns when the guest is off and its state in the file.
    pub(super) async fn save_to(self: &Arc<Self>, domain: DomainHandle, request: Request) -> Result<()> {
        if request.flags.contains(SaveFlags::RUNNING | SaveFlags::PAUSED) {
            return Err(exclusive("VIR_DOMAIN_SAVE_RUNNING", "VIR_DOMAIN_SAVE_PAUSED"));
        }
        let packer = Packer::find(request.format, self.search_path(), "save")?;
        running(&domain.state())?;
        let object = Arc::clone(domain.object());
        let mut job = domain.begin_async::<Save>().await?;
        job.describe(request.flags.bits(), JobSubject::SaveDump);
        job.writes(&request.path);
        self.save_status(&job.state());
        let saved = self.save_in(&mut job, &request, packer.as_ref()).await;
        drop(job);
        object.observe(|_| (), |state, ()| self.save_status(state));
        saved
    }

    async fn save_in(
        self: &Arc<Self>,
        job: &mut AsyncJob<Save>,
        request: &Request,
        packer: Option<&Packer>,
    ) -> Result<()> {
        let settings = settings(request.format, request.channels, request.flags)?;
        check_may_stream(job).await?;
        let ran = self.stop_vcpus(job, Paused::Save).await?;
        let saved = async {
            let prologue = self.prologue(&job.state(), request, ran)?;
            self.save_image(job, request, prologue, settings, packer).await?;
            self.publish_completed(job);
            job.stop(How::Patient, Ending::Saved).await?;
            Ok(())
        };
        let saved: Result<()> = saved.await;
        if saved.is_err() {
            // QEMU may have done its part.
            job.update(|state| state.completed = None);
            if ran {
                self.let_go_again(job, Running::SaveCanceled).await;
            }
        }
        saved
    }

    /// What comes before the guest's state in the file.
    pub(super) fn prologue(&self, state: &State, request: &Request, ran: bool) -> Result<Prologue> {
        let live = running(state)?;
        let defined_cpu = state.launched.as_ref().and_then(|launched| launched.defined_cpu.clone());
        let cookie = SaveCookie { cpu: defined_cpu.as_ref().and_then(|_| live.cpu.clone()) };
        let mut own = Domain::parse(&live.to_xml(Form::SECURE), Form::INACTIVE)?;
        if let Some(cpu) = defined_cpu {
            own.cpu = Some(cpu);
        }
        let portable = match &request.xml {
            Some(xml) => {
                let given = Domain::parse(xml, Form::INACTIVE)?;
                own.check_same_machine(&given)?;
                given
            }
            None => own,
        };
        let xml = portable.to_xml(Form::SECURE | Form::MIGRATABLE);
        let mut prologue = Prologue::new(request.format, xml, &cookie);
        prologue.runs = wants_to_run(request.flags, ran);
        Ok(prologue)
    }

    pub(super) async fn save_image<O: AsyncOp>(
        &self,
        job: &mut AsyncJob<O>,
        request: &Request,
        prologue: Prologue,
        settings: Settings,
        packer: Option<&Packer>,
    ) -> Result<()> {
        let cache = cache(request.flags.contains(SaveFlags::BYPASS_CACHE));
        let mark = job.state().uuid.to_string();
        let user = self.user_of_files(&job.state())?;
        let half = prologue.encode(Whole::NotYet)?;
        let whole = prologue.encode(Whole::Yes)?;
        let growing = if request.format == SaveFormat::Sparse {
            let growing = create(&request.path, mark, Cache::Used, user).await?;
            let offset = half.len() as u64;
            growing.write_head(&half)?;
            let mut files = vec![growing.file()?.into()];
            if cache == Cache::Bypassed {
                files.push(growing.bypassing()?.into());
            }
            stream_out(job, settings, Target::Mapped { files, offset }).await?;
            growing
        } else {
            let growing = create(&request.path, mark, cache, user).await?;
            self.drain(job, settings, &growing, half, packer).await?;
            growing
        };
        blocking(move || {
            // The first bytes say that it is whole, so they come last.
            growing.sync()?;
            growing.write_head(&whole)?;
            Ok(growing.commit()?)
        })
        .await
    }

    /// Who may write a guest's files where root may not.
    pub(super) fn user_of_files(&self, state: &State) -> Result<Option<Ids>> {
        Ok(self.rules.security.images_are_of(running(state)?)?)
    }

    /// A guest's state into a file that QEMU gets a pipe to.
    pub(super) async fn drain<O: AsyncOp>(
        &self,
        job: &mut AsyncJob<O>,
        settings: Settings,
        into: &Growing,
        head: Vec<u8>,
        packer: Option<&Packer>,
    ) -> Result<()> {
        let (end, mut drain) = Drain::open(into, head, packer).await?;
        let abort = job.state().operation.as_ref().map(|underway| Arc::clone(&underway.abort));
        let stream = stream_out(job, settings, Target::Descriptor(end));
        let streamed = drain.beside(stream, migrate::wish(&abort)).await;
        match streamed {
            // Why QEMU could not write is known better at the other end of the pipe.
            Ok(()) | Err(MigrateError::Failed { .. }) => {
                tokio::select! {
                    biased;
                    () = migrate::wish(&abort) => {
                        Err(MigrateError::Canceled { job: migrate::job_name(O::OPERATION) }.into())
                    }
                    written = drain.finish() => {
                        written?;
                        Ok(streamed?)
                    }
                }
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Has the vCPUs stand still; whether they did not.
    pub(super) async fn stop_vcpus<O: AsyncOp>(&self, job: &mut AsyncJob<O>, reason: Paused) -> Result<bool> {
        let object = Arc::clone(job.object());
        let nested = job.nested().await?;
        let live = nested.live()?;
        if !matches!(object.state().run, RunState::Running(_)) {
            return Ok(false);
        }
        nested.update(|state| state.pausing = reason);
        let stopped = live.monitor().execute(Stop {}).await;
        live.monitor().events_handled().await;
        match stopped {
            Ok(_) => self.note_stop(&object),
            Err(error) => {
                nested.update(|state| state.pausing = Paused::Unknown);
                return Err(error.into());
            }
        }
        Ok(true)
    }

    /// Lets the vCPUs go on that were stopped for an operation. A guest that cannot says so by its state.
    pub(super) async fn let_go_again<O: AsyncOp>(&self, job: &mut AsyncJob<O>, reason: Running) {
        let object = Arc::clone(job.object());
        if let Err(error) = self.let_go(job, reason).await
            && object.state().is_active()
        {
            tracing::warn!(domain = %object.state().name, %error, "the guest stays paused");
            self.note_left_paused(&object);
        }
    }

    pub(super) async fn let_go<O: AsyncOp>(&self, job: &mut AsyncJob<O>, reason: Running) -> Result<()> {
        let object = Arc::clone(job.object());
        let nested = job.nested().await?;
        let live = nested.live()?;
        nested.update(|state| state.resuming = reason);
        let resumed = live.monitor().execute(Cont {}).await;
        live.monitor().events_handled().await;
        match resumed {
            Ok(_) => self.note_resume(&object),
            Err(error) => {
                nested.update(|state| state.resuming = Running::Unknown);
                return Err(error.into());
            }
        }
        Ok(())
    }
}

/// Begins a stream and follows it to its end; a stream that failed is given up.
pub(super) async fn stream_out<O: AsyncOp>(
    job: &mut AsyncJob<O>,
    settings: Settings,
    target: Target,
) -> std::result::Result<(), MigrateError> {
    let before = {
        let nested = job.nested().await?;
        let live = nested.live()?;
        let before = migrate::parameters(&live).await?.max_bandwidth;
        migrate::configure(&live, &settings).await?;
        before
    };
    let streamed = async {
        {
            let nested = job.nested().await?;
            migrate::start(&nested.live()?, target).await?;
        }
        migrate::wait(job, Until::default()).await
    };
    let streamed = streamed.await;
    if streamed.is_err()
        && let Err(error) = migrate::cancel(job).await
    {
        tracing::debug!(%error, "QEMU does not give the stream up");
    }
    if let Ok(nested) = job.nested().await
        && let Ok(live) = nested.live()
    {
        migrate::forget(&live).await;
        // The next migration may be to another host.
        let back = MigrationParameters { max_bandwidth: before, ..MigrationParameters::default() };
        let _ = live.monitor().execute(back).await;
    }
    streamed.map(drop)
}

/// Refuses what QEMU would only find out half-way.
pub(super) async fn check_may_stream<O: AsyncOp>(job: &mut AsyncJob<O>) -> Result<()> {
    check_all_idle(&job.state())?;
    let nested = job.nested().await?;
    let told = nested.live()?.monitor().execute(QueryMigrate {}).await?;
    match told.blocked_reasons.is_empty() {
        true => Ok(()),
        false => {
            let reasons = told.blocked_reasons.join("; ");
            Err(Error::operation_invalid(format!("cannot migrate domain: {reasons}")))
        }
    }
}

/// How a stream to or from a file is to be.
pub(super) fn settings(format: SaveFormat, channels: Option<i32>, flags: SaveFlags) -> Result<Settings> {
    let mut settings = Settings::default();
    settings.parameters.max_bandwidth = Some(UNLIMITED);
    if format != SaveFormat::Sparse {
        return match channels {
            None => Ok(settings),
            Some(_) => {
                Err(Error::invalid_arg("Parallel save is only supported with the 'sparse' save image format"))
            }
        };
    }
    let channels = channels.unwrap_or(1);
    if channels < 1 {
        return Err(Error::invalid_arg("number of parallel save channels cannot be less than 1"));
    }
    settings.capabilities = vec!["mapped-ram", "multifd"];
    settings.parameters.multifd_channels = Some(u8::try_from(channels).unwrap_or(u8::MAX));
    // Said either way: QEMU keeps what it was told for the last stream, and dies of it.
    settings.parameters.direct_io = Some(flags.contains(SaveFlags::BYPASS_CACHE));
    Ok(settings)
}

/// Whether a guest is to run when it is restored: as the client says, else as it did.
pub(super) fn wants_to_run(flags: SaveFlags, ran: bool) -> bool {
    match flags {
        flags if flags.contains(SaveFlags::RUNNING) => true,
        flags if flags.contains(SaveFlags::PAUSED) => false,
        _ => ran,
    }
}

pub(super) fn cache(bypassed: bool) -> Cache {
    if bypassed { Cache::Bypassed } else { Cache::Used }
}

/// Files are on disks, which may take their time.
pub(super) async fn create(path: &Path, mark: String, cache: Cache, user: Option<Ids>) -> Result<Growing> {
    let path = path.to_owned();
    blocking(move || Ok(Growing::create(&path, &mark, cache, user)?)).await
}

pub(super) fn exclusive(one: &str, other: &str) -> Error {
    Error::invalid_arg(format!("Flags '{one}' and '{other}' are mutually exclusive"))
        .from_origin(Origin::DOMAIN)
}
