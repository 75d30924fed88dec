//! A guest's memory in a file, for whoever looks at it afterwards.
//!
//! Two kinds: memory only, in a format that debuggers know, written by QEMU's own dump; and all of the guest's state,
//! as it is streamed to another host. The same serves clients, guests that panicked and watchdogs that ran out.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::Zoned;

use super::flags::{CallFlags, DumpFlags, SaveFlags};
use super::save::{cache, check_may_stream, create, exclusive, settings};
use super::{Domains, blocking};
use crate::error::{Error, Result};
use crate::qemu::job::{AsyncJob, DomainHandle, Dump, Ending, JobStatus, JobSubject, State};
use crate::qemu::monitor::{
    DumpGuestMemory, DumpInfo, DumpStatus, Getfd, QueryDump, QueryDumpGuestMemoryCapability, SystemReset,
};
use crate::qemu::process::{How, short_name};
use crate::qemu::run_state::{Paused, RunState, Running};
use crate::qemu::save_file::{Drain, Growing, Packer};
use crate::qemu::save_image::SaveFormat;
use crate::util::file;

/// By which QEMU knows the file.
const DESCRIPTOR: &str = "dump";
/// How long nothing may be reported before QEMU is asked.
const POLL: Duration = Duration::from_secs(1);
/// QEMU's names of `virDomainCoreDumpFormat`.
const FORMATS: [&str; 5] = ["elf", "kdump-zlib", "kdump-lzo", "kdump-snappy", "win-dmp"];

impl Domains {
    /// `virDomainCoreDumpWithFormat`
    pub async fn core_dump(
        self: &Arc<Self>,
        domain: DomainHandle,
        path: &str,
        format: u32,
        flags: u32,
    ) -> Result<()> {
        let flags = DumpFlags::accept(flags)?;
        let number = usize::try_from(format).unwrap_or(usize::MAX);
        let Some(format) = FORMATS.get(number).copied() else {
            return Err(Error::invalid_arg(format!("dumpformat '{format}' is not supported")));
        };
        for (one, other) in [("CRASH", "LIVE"), ("CRASH", "RESET"), ("LIVE", "RESET")] {
            let named = |name| DumpFlags::from_name(name).unwrap_or(DumpFlags::empty());
            if flags.contains(named(one) | named(other)) {
                return Err(exclusive(&format!("VIR_DUMP_{one}"), &format!("VIR_DUMP_{other}")));
            }
        }
        let object = Arc::clone(domain.object());
        let mut job = domain.begin_async::<Dump>().await?;
        job.describe(flags.bits(), JobSubject::SaveDump);
        job.writes(Path::new(path));
        self.save_status(&job.state());
        let dumped = self.dump(&mut job, Path::new(path), format, flags).await;
        drop(job);
        object.observe(|_| (), |state, ()| self.save_status(state));
        dumped
    }

    async fn dump(
        self: &Arc<Self>,
        job: &mut AsyncJob<Dump>,
        path: &Path,
        format: &'static str,
        flags: DumpFlags,
    ) -> Result<()> {
        super::reads::running(&job.state())?;
        let ran = matches!(job.state().run, RunState::Running(_));
        let mut stopped = !flags.contains(DumpFlags::LIVE) && self.stop_vcpus(job, Paused::Dump).await?;
        let mut dumped = self.write_dump(job, path, format, flags).await;
        // A stream of all state leaves the guest standing still, however it began.
        stopped |= dumped.is_ok();
        if dumped.is_ok() && flags.contains(DumpFlags::CRASH) {
            return Ok(job.stop(How::Patient, Ending::Crashed).await?);
        }
        if !job.state().is_active() {
            return dumped;
        }
        if dumped.is_ok() && flags.contains(DumpFlags::RESET) {
            dumped = reset(job).await;
        }
        if ran
            && (stopped || flags.contains(DumpFlags::RESET))
            && let Err(error) = self.let_go(job, Running::Unpaused).await
        {
            tracing::warn!(domain = %job.state().name, %error, "the guest stays paused");
            self.note_left_paused(job.object());
            dumped = dumped.and(Err(error));
        }
        dumped
    }

    async fn write_dump(
        self: &Arc<Self>,
        job: &mut AsyncJob<Dump>,
        path: &Path,
        format: &'static str,
        flags: DumpFlags,
    ) -> Result<()> {
        // Mapped pages are no form of a dump.
        let packing = Some(self.rules.saving.dump_format).filter(|format| *format != SaveFormat::Sparse);
        let packer = Packer::find(packing.unwrap_or_default(), self.search_path(), "dump")?;
        let mark = job.state().uuid.to_string();
        let user = self.user_of_files(&job.state())?;
        let growing = create(path, mark, cache(flags.contains(DumpFlags::BYPASS_CACHE)), user).await?;
        if flags.contains(DumpFlags::MEMORY_ONLY) {
            dump_memory(job, &growing, format).await?;
        } else {
            if format != "elf" {
                let sentence = "kdump-compressed format is only supported with memory-only dump";
                return Err(Error::operation_unsupported(sentence));
            }
            check_may_stream(job).await?;
            let settings = settings(SaveFormat::Raw, None, SaveFlags::empty())?;
            self.drain(job, settings, &growing, Vec::new(), packer.as_ref()).await?;
            self.publish_completed(job);
        }
        blocking(move || Ok(growing.commit()?)).await
    }

    /// Writes the memory of a guest that panicked, or was stopped by its watchdog, to a file of its own.
    pub(super) async fn dump_core(self: &Arc<Self>, domain: DomainHandle) -> Result<()> {
        let object = Arc::clone(domain.object());
        let path = self.core_file(&domain.state());
        let mut job = domain.begin_async::<Dump>().await?;
        let mut flags = DumpFlags::MEMORY_ONLY;
        flags.set(DumpFlags::BYPASS_CACHE, self.rules.saving.auto_dump_bypass_cache);
        job.describe(flags.bits(), JobSubject::SaveDump);
        job.writes(&path);
        self.save_status(&job.state());
        let directory = path.parent().map(Path::to_owned).unwrap_or_default();
        let dumped = async {
            blocking(move || {
                file::make_directory(&directory, 0o755).map_err(|error| {
                    Error::io(format_args!("cannot create '{}'", directory.display()), error)
                })
            })
            .await?;
            self.write_dump(&mut job, &path, "elf", flags).await
        };
        let dumped = dumped.await;
        drop(job);
        object.observe(|_| (), |state, ()| self.save_status(state));
        dumped
    }

    /// A watchdog's `dump`: the guest goes on behind it.
    pub(super) async fn dump_after_watchdog(self: Arc<Self>, domain: DomainHandle) {
        let object = Arc::clone(domain.object());
        if let Err(error) = self.dump_core(domain).await {
            tracing::error!(domain = %object.state().name, %error, "cannot dump the guest's memory");
        }
        if let Err(error) = self.resume(DomainHandle::new(Arc::clone(&object))).await {
            tracing::error!(domain = %object.state().name, %error, "the guest stays paused");
        }
    }

    /// `AUTO_DUMP_PATH/ID-NAME-TIME`
    fn core_file(&self, state: &State) -> PathBuf {
        let short = short_name(state.id.unwrap_or(-1), &state.name);
        let now = Zoned::now().strftime("%Y-%m-%d-%H:%M:%S");
        let directory = self.rules.saving.auto_dump_path.clone();
        directory.unwrap_or_else(|| self.paths.qemu_state().join("dump")).join(format!("{short}-{now}"))
    }
}

async fn reset(job: &mut AsyncJob<Dump>) -> Result<()> {
    let nested = job.nested().await?;
    nested.live()?.monitor().execute(SystemReset {}).await?;
    Ok(())
}

/// QEMU's own dump, through a pipe, so that a slow disk does not hold the guest's QEMU up.
async fn dump_memory(job: &mut AsyncJob<Dump>, into: &Growing, format: &'static str) -> Result<()> {
    job.note(|statistics| statistics.subject = JobSubject::MemoryDump);
    let (end, mut drain) = Drain::open(into, Vec::new(), None).await?;
    let dump = run_dump(job, end, format);
    let (info, error) = drain.beside(dump, std::future::pending()).await?;
    job.note(|statistics| statistics.take_dump(&info));
    let written = drain.finish().await;
    if info.status == DumpStatus::Failed {
        // Why QEMU could not write is known better at the other end of the pipe.
        written?;
        let reason = error.map_or_else(|| " for unknown reason".to_owned(), |error| format!(": {error}"));
        return Err(Error::operation_failed(format!("memory-only dump failed{reason}")));
    }
    Ok(written?)
}

/// Has QEMU dump to a descriptor; how that ended, and why if it failed.
async fn run_dump(
    job: &mut AsyncJob<Dump>,
    end: OwnedFd,
    format: &'static str,
) -> Result<(DumpInfo, Option<String>)> {
    let mut progress = {
        let nested = job.nested().await?;
        let live = nested.live()?;
        if format != FORMATS[0] {
            let has = live.monitor().execute(QueryDumpGuestMemoryCapability {}).await?;
            if !has.formats.iter().any(|has| has == format) {
                let sentence = format!("unsupported dumpformat '{format}' for this QEMU binary");
                return Err(Error::invalid_arg(sentence));
            }
        }
        live.monitor().forget_progress();
        live.monitor().execute_with_fd(Getfd { fdname: DESCRIPTOR.to_owned() }, end).await?;
        let dump = DumpGuestMemory {
            paging: false,
            protocol: format!("fd:{DESCRIPTOR}"),
            format: (format != FORMATS[0]).then(|| format.to_owned()),
            detach: Some(true),
        };
        live.monitor().execute(dump).await?;
        live.monitor().progress()
    };
    loop {
        let reported = progress.borrow_and_update().clone();
        if let Some(dumped) = reported.dumped {
            return Ok(dumped);
        }
        if reported.lost {
            return Err(Error::operation_failed("domain is not running"));
        }
        if tokio::time::timeout(POLL, progress.changed()).await.is_err() {
            let info = ask(job).await?;
            if matches!(info.status, DumpStatus::Completed | DumpStatus::Failed) {
                return Ok((info, None));
            }
        }
    }
}

async fn ask(job: &mut AsyncJob<Dump>) -> Result<DumpInfo> {
    let info = job.nested().await?.live()?.monitor().execute(QueryDump {}).await?;
    job.note(|statistics| {
        statistics.take_dump(&info);
        // It is over when its file is there.
        statistics.status = JobStatus::Active;
    });
    Ok(info)
}
