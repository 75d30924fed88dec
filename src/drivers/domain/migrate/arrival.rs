//! Where this host waits for guests and for the contents of their disks.

use super::disks::{self, Server};
use super::place::{Target, everywhere, listening};
use super::request::Request;
use crate::conf::migration::{Cookie, Nbd};
use crate::drivers::domain::Domains;
use crate::error::{Error, Result};
use crate::qemu::job::{AsyncJob, Live, MigrationIn};
use crate::qemu::migrate::{self, is_loopback};
use crate::util::uuid::Uuid;

/// What comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Awaited {
    Guest,
    /// What is missing of a guest that runs already.
    Rest,
}

impl Domains {
    /// Where other hosts are listened for, if anybody has said it.
    fn listen_address<'a>(&'a self, request: &'a Request) -> Option<&'a str> {
        request.text("listen_address").or(self.rules.migration.address.as_deref())
    }

    /// Has QEMU listen; answers what the client is told of it.
    pub(super) async fn listen(
        &self,
        live: &Live<'_>,
        target: Target,
        (request, awaited): (&Request, Awaited),
    ) -> Result<Option<String>> {
        loop {
            let (place, chosen) = self.choose_port(target.clone(), live.state().uuid)?;
            let uri = listening(&place, self.listen_address(request));
            let listens = match awaited {
                Awaited::Guest => migrate::receive(live, migrate::Target::Uri(uri)).await,
                Awaited::Rest => migrate::recover(live, uri).await,
            };
            match listens.map_err(Error::from) {
                Err(error) if chosen.is_some() && is_taken(&error) => {}
                listens => return listens.map(|()| chosen),
            }
        }
    }

    /// Has the disks that come along written to by the source.
    pub(super) async fn serve_disks(
        &self,
        job: &mut AsyncJob<MigrationIn>,
        request: &Request,
        theirs: Option<&Cookie>,
    ) -> Result<Option<Nbd>> {
        let state = job.state();
        let (Some(live), Some(_)) = (&state.live, theirs.and_then(|cookie| cookie.nbd.as_ref())) else {
            return Ok(None);
        };
        let copied = disks::of(live, request)?;
        if copied.is_empty() {
            return Ok(None);
        }
        let wanted = match request.text("disks_uri") {
            Some(uri) => Server::named(uri)?,
            None => {
                let host =
                    self.listen_address(request).map_or_else(|| everywhere().to_owned(), str::to_owned);
                Server::Tcp { host, port: disks_port(request)? }
            }
        };
        let nested = job.nested().await?;
        let live = nested.live()?;
        loop {
            let (server, is_ours) = match wanted.clone() {
                Server::Tcp { host, port: 0 } => {
                    (Server::Tcp { host, port: self.arrival_port(state.uuid)? }, true)
                }
                named => (named, false),
            };
            match disks::serve(&live, &copied, &server, request).await {
                Err(error) if is_ours && is_taken(&error) => continue,
                served => served?,
            }
            let port = if let Server::Tcp { port, .. } = server { Some(port) } else { None };
            return Ok(Some(Nbd { port, disks: Vec::new() }));
        }
    }

    /// A port of ours, where the client leaves it to us; what the client is told then.
    pub(super) fn choose_port(&self, target: Target, guest: Uuid) -> Result<(Target, Option<String>)> {
        if !matches!(target, Target::Tcp { port: None, .. }) {
            return Ok((target, None));
        }
        let target = target.with_port(self.arrival_port(guest)?);
        let answer = target.to_string();
        Ok((target, Some(answer)))
    }

    fn arrival_port(&self, guest: Uuid) -> Result<u16> {
        let range = self.rules.migration.ports();
        let (first, last) = (*range.start(), *range.end());
        self.ports.for_arrival(range, guest).ok_or_else(|| {
            let sentence = format!("Unable to find an unused port in range 'migration' ({first}-{last})");
            Error::internal_error(sentence)
        })
    }

    /// This host, by a name that others can use.
    pub(super) fn own_address(&self) -> Result<Target> {
        let host = self.rules.migration.host.clone().unwrap_or_else(super::hostname);
        if is_loopback(&host) {
            let sentence = "hostname on destination resolved to localhost, but migration requires an FQDN";
            return Err(Error::internal_error(sentence));
        }
        Ok(Target::Tcp { host, port: None, old_form: true })
    }
}

/// Whether another process has got a port since it was looked at. Each that was chosen stays the guest's until it has
/// arrived, so that none is tried twice.
fn is_taken(error: &Error) -> bool {
    error.message().contains("Address already in use")
}

/// The one that a client wants disks to be written at; 0: the daemon chooses.
fn disks_port(request: &Request) -> Result<u16> {
    let port = request.number("disks_port").unwrap_or(0);
    u16::try_from(port).map_err(|_| Error::invalid_arg("nbd port must be in range 0-65535"))
}
