//! Peer to peer: the source itself goes through all phases, as a client of the destination.

use std::sync::Arc;

use ferrovirt_protocol::client::Stream;

use super::connect::OtherEnd;
use super::phases::{Outgoing, PERFORM_RESUME, PERFORMED, PERFORMING, POSTCOPY_FAILED, Vcpus};
use super::place::Target;
use super::postcopy::is_postcopy;
use super::remote::{Ability, Remote, Trouble};
use super::request::{MigrateFlags, Request};
use super::source::vcpus;
use super::transport::Means;
use super::{Outcome, allowed, tunnel};
use crate::drivers::ClientId;
use crate::drivers::domain::Domains;
use crate::drivers::params::Params;
use crate::error::{Code, Error, Origin, Result};
use crate::qemu::job::{AsyncJob, DomainHandle, MigrationOut};
use crate::qemu::run_state::RunState;

/// The other side, when its QEMU waits.
struct Prepared {
    remote: Remote,
    flags: u32,
    cookie: Vec<u8>,
    route: Route,
}

/// How the guest's state travels, once the destination is prepared.
enum Route {
    Direct(Target),
    Tunnel(Stream),
    /// There is none to travel.
    Offline,
}

impl Domains {
    /// Moves a guest to the daemon at `uri`, in one call.
    pub async fn migrate_to_peer(
        self: &Arc<Self>,
        domain: DomainHandle,
        request: &Request,
        (cookie, uri): (&[u8], &str),
        client: ClientId,
    ) -> Result<()> {
        self.accept(request)?;
        if !cookie.is_empty() {
            return Err(Error::operation_invalid("received unexpected cookie with P2P migration"));
        }
        check_tunnel(request)?;
        let again = request.has(MigrateFlags::POSTCOPY_RESUME);
        let mut job = match again {
            true => self.resume_failed(&domain, request, POSTCOPY_FAILED)?,
            false => {
                let job = self.leave(domain, request).await?;
                // Before anybody is connected to; once more with what QEMU says.
                allowed::check(&job.state(), request, &[])?;
                job
            }
        };
        let vcpus = if again { Vcpus::Ran } else { vcpus(&job.state()) };
        let mut outgoing = Outgoing { client, vcpus, before: None, screens: false, locked: None };
        let Prepared { remote, flags, cookie, route } = match self.prepare_peer(&mut job, request, uri).await
        {
            Ok(prepared) => prepared,
            Err(error) => {
                if again {
                    self.park_unattended(job);
                }
                return Err(error);
            }
        };
        let streamed = match (again, route) {
            (true, Route::Direct(target)) => self.stream_again(&mut job, request, (target, &cookie)).await,
            (_, route) => {
                self.write_down(&job, PERFORMING);
                self.stream_to(&mut job, request, (route, cookie, &remote), &mut outgoing).await
            }
        };
        let (ours, failure) = match streamed {
            Ok(cookie) => {
                self.write_down(&job, if again { PERFORM_RESUME } else { PERFORMED });
                (cookie, None)
            }
            Err(error) => (Vec::new(), Some(error)),
        };
        let name = job.state().name.clone();
        let named = request.destination_name().unwrap_or(&name).to_owned();
        let params = request.with(&[("destination_name", Some(named)), ("persistent_xml", None)]);
        let outcome = if failure.is_some() { Outcome::Canceled } else { Outcome::Good };
        let finished = remote.finish(params, flags, (ours, outcome)).await;
        match (finished, failure) {
            (Ok(cookie), None) => self.settle(job, request, &cookie, (Outcome::Good, Some(outgoing))).await,
            (finished, Some(failure)) => {
                self.settle(job, request, &[], (Outcome::Canceled, Some(outgoing))).await?;
                Err(both(failure, finished.err()))
            }
            (Err(Trouble::Refused(error)), None) => {
                self.settle(job, request, &[], (Outcome::Canceled, Some(outgoing))).await?;
                Err(error)
            }
            // QEMU will say whether all of it gets there.
            (Err(Trouble::Lost(error)), None) if is_postcopy(job.state().run) => {
                self.park_failed(job);
                Err(error)
            }
            (Err(Trouble::Lost(error)), None) => {
                // It may run there. Whoever looks there can let it go on here.
                tracing::error!(domain = %name, %error, "migrated, and nobody knows whether it runs on the other host");
                Err(error)
            }
        }
    }

    /// The phases before anything streams.
    async fn prepare_peer(
        self: &Arc<Self>,
        job: &mut AsyncJob<MigrationOut>,
        request: &Request,
        uri: &str,
    ) -> Result<Prepared> {
        let means = Means { pki: &self.paths.pki, search_path: self.search_path() };
        let remote = Remote::open(uri, &self.rules.migration, means).await?;
        check_peer(&remote, request).await?;
        let begun = match request.has(MigrateFlags::POSTCOPY_RESUME) {
            true => self.offer_again(job, request).await?,
            false => self.offer_within(job, request).await?,
        };
        let flags = flags_there(request, job);
        let params = request.with(&[("destination_xml", Some(begun.xml)), ("persistent_xml", None)]);
        let (cookie, route) = self.prepare_there(&remote, request, (params, flags, begun.cookie)).await?;
        Ok(Prepared { remote, flags, cookie, route })
    }

    async fn prepare_there(
        &self,
        remote: &Remote,
        request: &Request,
        (params, flags, cookie): (Params, u32, Vec<u8>),
    ) -> Result<(Vec<u8>, Route)> {
        if request.has(MigrateFlags::TUNNELLED) {
            let (cookie, stream) = remote.prepare_tunnel(params, flags, cookie).await?;
            return Ok((cookie, Route::Tunnel(stream)));
        }
        let (cookie, uri) = remote.prepare(params, flags, cookie).await?;
        if request.has(MigrateFlags::OFFLINE) {
            return Ok((Vec::new(), Route::Offline));
        }
        let uri = uri.as_deref().or(request.uri());
        let uri = uri.ok_or_else(|| Error::internal_error("domainMigratePrepare3 did not set uri"))?;
        Ok((cookie, Route::Direct(Target::parse(uri)?)))
    }

    /// The guest's state; ends early when the destination is gone.
    async fn stream_to(
        self: &Arc<Self>,
        job: &mut AsyncJob<MigrationOut>,
        request: &Request,
        (route, cookie, remote): (Route, Vec<u8>, &Remote),
        outgoing: &mut Outgoing,
    ) -> Result<Vec<u8>> {
        let aborts = job.state().operation.as_ref().map(|underway| Arc::clone(&underway.abort));
        let (other_end, tunnel, uri) = match route {
            Route::Offline => return Ok(Vec::new()),
            Route::Direct(target) => {
                let uri = target.to_string();
                (OtherEnd::at(target, request)?, None, Some(uri))
            }
            Route::Tunnel(stream) => {
                let (end, tunnel) = tunnel::open(stream)?;
                (OtherEnd::Open(end), Some(tunnel), None)
            }
        };
        let request = match uri {
            Some(uri) => &request.placed(&uri),
            None => request,
        };
        let streaming = self.stream_out(job, request, (other_end, &cookie), outgoing);
        tokio::pin!(streaming);
        let streamed = tokio::select! {
            streamed = &mut streaming => streamed,
            error = remote.closed() => {
                // The wish ends the stream in order, and with it the guest's standing still.
                if let Some(aborts) = aborts {
                    aborts.want();
                }
                let _ = streaming.await;
                Err(error)
            }
        };
        match tunnel {
            None => streamed,
            Some(tunnel) => {
                let sent =
                    tunnel.finish(if streamed.is_ok() { Outcome::Good } else { Outcome::Canceled }).await;
                streamed.and_then(|cookie| sent.map(|()| cookie))
            }
        }
    }
}

fn check_tunnel(request: &Request) -> Result<()> {
    if !request.has(MigrateFlags::TUNNELLED) {
        return Ok(());
    }
    for (name, what) in [
        ("migrate_uri", "migration URI"),
        ("listen_address", "listen address"),
        ("disks_port", "disk port address"),
    ] {
        if request.text(name).is_some() || request.whole(name).is_some_and(|value| value > 0) {
            return Err(Error::argument_unsupported(format!(
                "{what} is not supported by tunnelled migration"
            )));
        }
    }
    if request.has(MigrateFlags::PARALLEL) {
        return Err(Error::argument_unsupported(
            "parallel migration is not supported with tunnelled migration",
        ));
    }
    Ok(())
}

async fn check_peer(remote: &Remote, request: &Request) -> Result<()> {
    for ability in [Ability::PeerToPeer, Ability::Version3, Ability::Params] {
        if !remote.can(ability).await? {
            let sentence = "Destination libvirt does not support peer-to-peer migration protocol";
            return Err(Error::operation_failed(sentence));
        }
    }
    if request.has(MigrateFlags::OFFLINE) && !remote.can(Ability::Offline).await? {
        let sentence = "offline migration is not supported by the destination host";
        return Err(Error::argument_unsupported(sentence));
    }
    Ok(())
}

/// What the other side is told: not what concerns this side alone, and that a guest that stands still stays so.
fn flags_there(request: &Request, job: &AsyncJob<MigrationOut>) -> u32 {
    use MigrateFlags as Flags;
    let mut flags = request.flags - Flags::ABORT_ON_ERROR - Flags::AUTO_CONVERGE - Flags::CHANGE_PROTECTION;
    let goes_on = request.has(Flags::POSTCOPY_RESUME);
    if !goes_on && matches!(job.state().run, RunState::Paused(_)) {
        flags |= Flags::PAUSED;
    }
    flags.bits()
}

/// What both sides say, where both have something to say.
fn both(here: Error, there: Option<Trouble>) -> Error {
    let Some(there) = there.map(Error::from) else { return here };
    let telling = here.code == Code::OPERATION_FAILED
        && there.origin == Origin::QEMU
        && there.code != Code::MIGRATE_FINISH_OK;
    if !telling {
        return here;
    }
    Error::operation_failed(format!(
        "migration failed. Message from the source host: {}. Message from the destination host: {}",
        here.message(),
        there.message()
    ))
}
