//! A guest's screen for a client on this host, through a descriptor and past every port.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use super::flags::{CallFlags, OpenGraphicsFlags, no_flags};
use super::{Domains, reads};
use crate::conf::devices::GraphicsKind;
use crate::conf::domain::Domain;
use crate::error::{Error, Result};
use crate::qemu::job::{DomainHandle, Modify};
use crate::qemu::monitor::{AddClient, CloseFd, DisplayReload, Getfd};

/// What QEMU knows the descriptor by until the client is added.
const DESCRIPTOR: &str = "graphicsfd";

impl Domains {
    /// Has QEMU serve the screen with this number on a client's own socket.
    pub async fn open_graphics(
        &self,
        mut domain: DomainHandle,
        index: u32,
        socket: OwnedFd,
        flags: u32,
    ) -> Result<()> {
        let flags = OpenGraphicsFlags::accept(flags)?;
        let job = domain.begin::<Modify>().await?;
        let live = job.live()?;
        let protocol = protocol(reads::running(live.state())?, index)?;
        let monitor = live.monitor();
        monitor.execute_with_fd(Getfd { fdname: DESCRIPTOR.to_owned() }, socket).await?;
        let client = AddClient {
            protocol: protocol.to_owned(),
            fdname: DESCRIPTOR.to_owned(),
            skipauth: flags.contains(OpenGraphicsFlags::SKIPAUTH),
        };
        if let Err(error) = monitor.execute(client).await {
            if let Err(error) = monitor.execute(CloseFd { fdname: DESCRIPTOR.to_owned() }).await {
                tracing::warn!(%error, "QEMU keeps the socket of a client that it refused");
            }
            return Err(error.into());
        }
        Ok(())
    }

    /// Has the VNC server read its certificates again; any server is the VNC server, if there is one.
    pub async fn reload_graphics(&self, mut domain: DomainHandle, kind: u32, flags: u32) -> Result<()> {
        const ANY: u32 = 0;
        const KINDS: u32 = 2;
        no_flags(flags, "qemuDomainGraphicsReload")?;
        if kind >= KINDS {
            let sentence = format!("type must be less than {KINDS}");
            return Err(Error::refused_argument("qemuDomainGraphicsReload", "type", sentence));
        }
        let state = domain.state();
        let mut screens = reads::definition(&state)?.devices.graphics.iter();
        if kind == ANY && !screens.any(|screen| screen.kind() == GraphicsKind::Vnc) {
            return Ok(());
        }
        let job = domain.begin::<Modify>().await?;
        let live = job.live()?;
        live.monitor().execute(DisplayReload { r#type: "vnc", tls_certs: true }).await?;
        Ok(())
    }

    /// As [`Domains::open_graphics`], on a socket that is made for it: the answer is the client's end.
    pub async fn open_graphics_fd(&self, domain: DomainHandle, index: u32, flags: u32) -> Result<OwnedFd> {
        no_flags(flags & !OpenGraphicsFlags::all().bits(), "qemuDomainOpenGraphicsFD")?;
        let (ours, theirs) =
            UnixStream::pair().map_err(|error| Error::io("unable to create socket pair", error))?;
        self.open_graphics(domain, index, ours.into(), flags).await?;
        Ok(theirs.into())
    }
}

/// What QEMU calls the protocol of a screen.
fn protocol(live: &Domain, index: u32) -> Result<&'static str> {
    let graphics = usize::try_from(index).ok().and_then(|index| live.devices.graphics.get(index));
    let graphics =
        graphics.ok_or_else(|| Error::internal_error(format!("No graphics backend with index {index}")))?;
    match graphics.kind() {
        GraphicsKind::Vnc => Ok("vnc"),
        GraphicsKind::Spice => Ok("spice"),
        GraphicsKind::Dbus => Ok("@dbus-display"),
        kind => Err(Error::config_unsupported(format!(
            "Can only open VNC, SPICE or D-Bus p2p graphics backends, not {}",
            kind.as_str()
        ))),
    }
}
