//! The memory of a guest that panicked, kept before the guest ends or begins anew.

use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::Arc;

use jiff::Zoned;

use super::{Domains, blocking};
use crate::error::{Error, Result};
use crate::qemu::job::{AsyncJob, DomainHandle, Dump, State};
use crate::qemu::monitor::{DumpGuestMemory, Getfd};
use crate::qemu::process::short_name;
use crate::util::file;

/// By which QEMU knows the file.
const DESCRIPTOR: &str = "dump";

impl Domains {
    /// Writes the guest's memory to a file of its own; none is left of a dump that failed.
    pub(super) async fn dump_core(self: &Arc<Self>, domain: DomainHandle) -> Result<()> {
        let object = Arc::clone(domain.object());
        let path = self.core_file(&domain.state());
        let mut job = domain.begin_async::<Dump>().await?;
        self.save_status(&job.state());
        let dumped = self.dump_core_to(&mut job, path.clone()).await;
        drop(job);
        object.observe(|_| (), |state, ()| self.save_status(state));
        if dumped.is_err() {
            blocking(move || file::remove_if_there(&path).map_err(|error| Error::io(path.display(), error)))
                .await?;
        }
        dumped
    }

    async fn dump_core_to(&self, job: &mut AsyncJob<Dump>, path: PathBuf) -> Result<()> {
        let file = blocking(move || created(&path).map_err(|error| Error::io(path.display(), error))).await?;
        let nested = job.nested().await?;
        let live = nested.live()?;
        live.monitor().execute_with_fd(Getfd { fdname: DESCRIPTOR.to_owned() }, file.into()).await?;
        let protocol = format!("fd:{DESCRIPTOR}");
        live.monitor()
            .execute(DumpGuestMemory { paging: false, protocol, format: None, detach: None })
            .await?;
        Ok(())
    }

    /// `dump/ID-NAME-TIME`
    fn core_file(&self, state: &State) -> PathBuf {
        let short = short_name(state.id.unwrap_or(-1), &state.name);
        let now = Zoned::now().strftime("%Y-%m-%d-%H:%M:%S");
        self.paths.qemu_state().join("dump").join(format!("{short}-{now}"))
    }
}

fn created(path: &std::path::Path) -> std::io::Result<File> {
    if let Some(directory) = path.parent() {
        file::make_directory(directory, 0o755)?;
    }
    File::options().write(true).create_new(true).mode(0o600).open(path)
}
