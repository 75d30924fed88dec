//! Disks that go along: the destination's QEMU serves them to be written to, the source's writes them.
//!
//! ```text
//!  prepare: server, an export for each disk
//!  perform: mirror ─► all alike ─► memory streams ─► stands still ─► mirrors ended ─► the rest of the guest
//!  finish:  server ended, the guest owns its disks
//! ```

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::sleep;

use super::allowed;
use super::request::{MigrateFlags, Request};
use crate::conf::devices::{Disk, StorageFormat};
use crate::conf::domain::Domain;
use crate::conf::migration::NbdDisk;
use crate::error::{Error, Result};
use crate::qemu::block::Nodes;
use crate::qemu::capabilities::Cap;
use crate::qemu::job::{AsyncJob, AsyncOp, Live, MigrationOut, Traffic};
use crate::qemu::migrate::CREDENTIALS;
use crate::qemu::monitor::{
    BlockJobCancel, BlockdevMirror, JobDismiss, MonitorError, QueryJobs, QueryNamedBlockNodes,
};

/// How often QEMU is asked how far its mirrors are; it reports only that they are alike.
const POLL: Duration = Duration::from_millis(100);

/// A disk on its way, by its names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Copied {
    target: String,
    /// Of the mirror, and of the export on the other side.
    name: String,
    /// The block node that the guest sees.
    node: String,
}

/// How a mirror ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    Alike,
    GivenUp,
}

/// What mirrors are waited to come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Until {
    Ready,
    Concluded,
    /// The same, whether they have failed or not.
    GivenUp,
}

/// Where the destination's QEMU serves disks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Server {
    Tcp { host: String, port: u16 },
    Unix(String),
}

impl Server {
    /// In the form of `SocketAddressLegacy`, which has what it needs one level deeper.
    fn legacy_address(&self) -> Value {
        let (kind, place) = self.parts();
        json!({ "type": kind, "data": place })
    }

    fn address(&self) -> Value {
        let (kind, mut place) = self.parts();
        put(&mut place, "type", kind);
        place
    }

    fn parts(&self) -> (&'static str, Value) {
        match self {
            Self::Tcp { host, port } => ("inet", json!({ "host": host, "port": port.to_string() })),
            Self::Unix(path) => ("unix", json!({ "path": path })),
        }
    }

    /// What a client says in `disks_uri`: `unix:///path` or `tcp://host:port`.
    pub(super) fn named(uri: &str) -> Result<Self> {
        match super::place::Target::parse(uri)? {
            super::place::Target::Unix(path) => Ok(Self::Unix(path)),
            super::place::Target::Tcp { host, port, .. } => Ok(Self::Tcp { host, port: port.unwrap_or(0) }),
        }
    }
}

/// Those of a running guest that go along.
pub(super) fn of(live: &Domain, request: &Request) -> Result<Vec<Copied>> {
    allowed::copied(live, request).into_iter().map(one).collect()
}

/// Those of which an earlier daemon may have copied some.
pub(super) fn all(live: &Domain) -> Vec<Copied> {
    live.devices.disks.iter().filter_map(|disk| one(disk).ok()).collect()
}

fn one(disk: &Disk) -> Result<Copied> {
    let target = disk.target.dev.as_deref().unwrap_or_default().to_owned();
    if disk.readonly {
        return Err(Error::operation_unsupported(format!("Cannot migrate empty or read-only disk {target}")));
    }
    let nodes = Nodes::of(&disk.storage, disk.driver.format.unwrap_or(StorageFormat::Raw));
    match (nodes, &disk.info.alias) {
        (Some(nodes), Some(alias)) => Ok(Copied { target, name: format!("drive-{alias}"), node: nodes.top }),
        _ => Err(Error::internal_error(format!("disk {target} has no block node"))),
    }
}

/// How large they are, for the other side.
pub(super) async fn sizes(live: &Live<'_>, disks: &[Copied]) -> Result<Vec<NbdDisk>> {
    let nodes = live.monitor().execute(QueryNamedBlockNodes { flat: true }).await?;
    let size = |disk: &Copied| {
        let node = nodes.iter().find(|node| node.node_name.as_deref() == Some(&disk.node));
        node.map_or(0, |node| node.image.virtual_size)
    };
    Ok(disks.iter().map(|disk| NbdDisk { target: disk.target.clone(), capacity: size(disk) }).collect())
}

/// Has the destination's QEMU serve them.
pub(super) async fn serve(
    live: &Live<'_>,
    disks: &[Copied],
    server: &Server,
    request: &Request,
) -> Result<()> {
    let mut start = json!({ "addr": server.legacy_address() });
    if request.has(MigrateFlags::TLS) {
        put(&mut start, "tls-creds", CREDENTIALS);
    }
    live.monitor().execute_value("nbd-server-start", Some(start)).await?;
    for Copied { node, name, .. } in disks {
        let export = json!({
            "type": "nbd", "id": format!("libvirt-nbd-{node}"), "node-name": node, "writable": true, "name": name,
        });
        live.monitor().execute_value("block-export-add", Some(export)).await?;
    }
    Ok(())
}

/// Ends what [`serve`] began.
pub(super) async fn end_serving(live: &Live<'_>) -> Result<(), MonitorError> {
    live.monitor().execute_value("nbd-server-stop", None).await.map(drop)
}

fn put(object: &mut Value, name: &str, value: impl Into<Value>) {
    if let Value::Object(object) = object {
        object.insert(name.to_owned(), value.into());
    }
}

fn remote_node(disk: &Copied) -> String {
    format!("migration-{}-storage", disk.target)
}

/// Begins to write them; returns when each is the same on both sides and stays so.
pub(super) async fn mirror(
    job: &mut AsyncJob<MigrationOut>,
    disks: &[Copied],
    server: &Server,
    (request, speed): (&Request, u64),
) -> Result<()> {
    let knows_names = job
        .state()
        .launched
        .as_ref()
        .is_some_and(|launched| launched.capabilities.contains(Cap::BlockdevNbdTlsHostname));
    for disk in disks {
        let (node, zeroes) = (remote_node(disk), request.disks_with_zeroes().contains(&disk.target.as_str()));
        let mut remote = json!({
            "driver": "nbd", "server": server.address(), "export": disk.name, "node-name": node,
            "read-only": false, "discard": "unmap",
        });
        if zeroes {
            put(&mut remote, "detect-zeroes", "unmap");
        }
        if request.has(MigrateFlags::TLS) {
            put(&mut remote, "tls-creds", CREDENTIALS);
            if let Some(name) = request.text("tls.destination").filter(|_| knows_names) {
                put(&mut remote, "tls-hostname", name);
            }
        }
        let synchronous = request.has(MigrateFlags::NON_SHARED_SYNCHRONOUS_WRITES);
        let mirror = BlockdevMirror {
            job_id: disk.name.clone(),
            device: disk.node.clone(),
            target: node,
            speed: Some(speed),
            sync: if request.has(MigrateFlags::NON_SHARED_INC) { "top" } else { "full" },
            copy_mode: synchronous.then_some("write-blocking"),
            auto_finalize: true,
            auto_dismiss: false,
            ..BlockdevMirror::default()
        };
        let nested = job.nested().await?;
        let live = nested.live()?;
        live.monitor().execute_value("blockdev-add", Some(remote)).await?;
        live.monitor().execute(mirror).await?;
    }
    follow(job, disks, Until::Ready).await
}

/// Ends the mirrors of a guest that stands still: both sides are the same.
pub(super) async fn complete(job: &mut AsyncJob<MigrationOut>, disks: &[Copied]) -> Result<()> {
    end(job, disks, Ending::Alike).await?;
    follow(job, disks, Until::Concluded).await?;
    clear_away(job, disks).await;
    Ok(())
}

/// Gives them up, however far they are.
pub(super) async fn give_up<O: AsyncOp>(job: &mut AsyncJob<O>, disks: &[Copied]) {
    let ended = async {
        end(job, disks, Ending::GivenUp).await?;
        follow(job, disks, Until::GivenUp).await
    };
    if let Err(error) = ended.await {
        tracing::warn!(domain = %job.state().name, %error, "a copy of a disk did not end in order");
    }
    clear_away(job, disks).await;
}

async fn end<O: AsyncOp>(job: &mut AsyncJob<O>, disks: &[Copied], how: Ending) -> Result<()> {
    let nested = job.nested().await?;
    let live = nested.live()?;
    for disk in disks {
        let cancel = BlockJobCancel { device: disk.name.clone(), force: how == Ending::GivenUp };
        // One that has ended by itself is not there any more.
        let _ = live.monitor().execute(cancel).await;
    }
    Ok(())
}

async fn clear_away<O: AsyncOp>(job: &mut AsyncJob<O>, disks: &[Copied]) {
    let Ok(nested) = job.nested().await else { return };
    let Ok(live) = nested.live() else { return };
    for disk in disks {
        // What never began is not there.
        let _ = live.monitor().execute(JobDismiss { id: disk.name.clone() }).await;
        let _ = live
            .monitor()
            .execute_value("blockdev-del", Some(json!({ "node-name": remote_node(disk) })))
            .await;
    }
}

/// Returns when all have come to `until`.
async fn follow<O: AsyncOp>(job: &mut AsyncJob<O>, disks: &[Copied], until: Until) -> Result<()> {
    let status = if until == Until::Ready { "ready" } else { "concluded" };
    loop {
        let told = job.nested().await?.live()?.monitor().execute(QueryJobs {}).await?;
        let ours: Vec<_> = told.iter().filter(|it| disks.iter().any(|disk| disk.name == it.id)).collect();
        job.note(|statistics| {
            let (total, processed) = ours
                .iter()
                .fold((0, 0), |(all, done), it| (all + it.total_progress, done + it.current_progress));
            statistics.mirrors =
                Traffic { total, processed, remaining: total.saturating_sub(processed), rate: 0 };
        });
        if until != Until::GivenUp
            && let Some(failed) = ours.iter().find(|it| it.error.is_some())
        {
            let reason = failed.error.as_deref().unwrap_or_default();
            return Err(Error::operation_failed(format!(
                "migration of disk {} failed: {reason}",
                target(disks, &failed.id)
            )));
        }
        if let Some(ended) = ours.iter().find(|it| it.status == "concluded" && until == Until::Ready) {
            return Err(Error::operation_failed(format!(
                "migration of disk {} failed",
                target(disks, &ended.id)
            )));
        }
        // Gone is concluded too.
        if ours.iter().all(|it| it.status == status) && (until != Until::Ready || ours.len() == disks.len()) {
            return Ok(());
        }
        let aborted = job.state().operation.as_ref().is_some_and(|underway| underway.abort.is_wanted());
        if aborted && until == Until::Ready {
            return Err(Error::operation_aborted("job 'migration out' canceled by client"));
        }
        sleep(POLL).await;
    }
}

fn target<'a>(disks: &'a [Copied], name: &'a str) -> &'a str {
    disks.iter().find(|disk| disk.name == name).map_or(name, |disk| &disk.target)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_named_as_qemu_wants_them() {
        let tcp = Server::Tcp { host: "h".to_owned(), port: 7 };
        assert_eq!(tcp.legacy_address(), json!({ "type": "inet", "data": { "host": "h", "port": "7" } }));
        assert_eq!(tcp.address(), json!({ "type": "inet", "host": "h", "port": "7" }));
        assert_eq!(Server::named("unix:///x").unwrap().address(), json!({ "type": "unix", "path": "/x" }));
    }
}
