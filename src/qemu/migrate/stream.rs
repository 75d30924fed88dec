//! Where a stream goes, and where it comes from.

use std::os::fd::OwnedFd;

use super::MigrateError;
use crate::qemu::capabilities::Cap;
use crate::qemu::job::Live;
use crate::qemu::monitor::{
    AddFd, CloseFd, Getfd, Migrate, MigrateIncoming, MigrateRecover, QueryFdsets, RemoveFd,
};

/// Under which QEMU keeps the descriptor of a stream.
const DESCRIPTOR: &str = "migrate";
/// By which a set of descriptors is found again, also by libvirt.
const FDSET: &str = "libvirt-outgoing-migrate";

/// The other end of a stream, on either side.
#[derive(Debug)]
pub enum Target {
    /// A pipe, a socket, a file at its end.
    Descriptor(OwnedFd),
    /// In QEMU's words.
    Uri(String),
    /// A file in which every page has its place, behind the first `offset` bytes; the second descriptor, if any,
    /// bypasses the host's cache.
    Mapped { files: Vec<OwnedFd>, offset: u64 },
}

/// Begins to stream a guest's state out.
pub async fn start(live: &Live<'_>, target: Target) -> Result<(), MigrateError> {
    stream(live, target, None).await
}

/// Goes on with a stream that broke after the guest had begun to run on the other side.
pub async fn restart(live: &Live<'_>, target: Target) -> Result<(), MigrateError> {
    stream(live, target, Some(true)).await
}

async fn stream(live: &Live<'_>, target: Target, resume: Option<bool>) -> Result<(), MigrateError> {
    live.monitor().forget_progress();
    let uri = hand_over(live, target).await?;
    let begun = live.monitor().execute(Migrate { uri, detach: true, resume }).await;
    if begun.is_err() {
        forget(live).await;
    }
    Ok(begun.map(drop)?)
}

/// Begins to take a guest's state in. QEMU was started with `-incoming defer`; where it can, it stays when this
/// fails and says why.
pub async fn receive(live: &Live<'_>, source: Target) -> Result<(), MigrateError> {
    live.monitor().forget_progress();
    let uri = hand_over(live, source).await?;
    let launched = live.state().launched.as_ref();
    let stays = launched.is_some_and(|it| it.capabilities.contains(Cap::MigrateIncomingExitOnError));
    let incoming = MigrateIncoming { uri, exit_on_error: stays.then_some(false) };
    Ok(live.monitor().execute(incoming).await.map(drop)?)
}

/// Waits for the rest of a guest whose stream broke.
pub async fn recover(live: &Live<'_>, uri: String) -> Result<(), MigrateError> {
    live.monitor().forget_progress();
    Ok(live.monitor().execute(MigrateRecover { uri }).await.map(drop)?)
}

/// Takes back what a stream that has ended may have left with QEMU.
pub async fn forget(live: &Live<'_>) {
    // QEMU has taken the descriptor if the stream began.
    let _ = live.monitor().execute(CloseFd { fdname: DESCRIPTOR.to_owned() }).await;
    let sets = live.monitor().execute(QueryFdsets {}).await.unwrap_or_default();
    for set in sets.iter().filter(|set| set.is(FDSET)) {
        let _ = live.monitor().execute(RemoveFd { fdset_id: set.fdset_id }).await;
    }
}

/// Gives QEMU the other end, and says it in QEMU's words.
async fn hand_over(live: &Live<'_>, target: Target) -> Result<String, MigrateError> {
    match target {
        Target::Uri(uri) => Ok(uri),
        Target::Descriptor(descriptor) => {
            let fdname = DESCRIPTOR.to_owned();
            live.monitor().execute_with_fd(Getfd { fdname }, descriptor).await?;
            Ok(format!("fd:{DESCRIPTOR}"))
        }
        Target::Mapped { files, offset } => {
            let sets = live.monitor().execute(QueryFdsets {}).await?;
            let fdset_id = sets.iter().map(|set| set.fdset_id + 1).max().unwrap_or(0);
            for file in files {
                let add = AddFd { fdset_id: fdset_id.into(), opaque: FDSET.to_owned() };
                live.monitor().execute_with_fd(add, file).await?;
            }
            Ok(format!("file:/dev/fdset/{fdset_id},offset={offset:#x}"))
        }
    }
}
