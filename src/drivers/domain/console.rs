//! A guest's serial lines and channels, each open to one client at a time.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::oneshot;

use super::flags::{CallFlags, ChannelFlags, ConsoleFlags};
use super::{Domains, reads};
use crate::conf::devices::{Channel, ChannelTarget, CharBackend, CharSource, DeviceInfo};
use crate::conf::domain::Domain;
use crate::error::{Error, Result};
use crate::qemu::job::DomainHandle;
use crate::util::device_lock::DeviceLock;
use crate::util::tty::Tty;
use crate::util::unix;

/// Who has which line open. Other programs of the host see that one is taken by its lock file.
#[derive(Debug)]
pub(super) struct Consoles {
    locks: PathBuf,
    sessions: Mutex<Sessions>,
}

#[derive(Debug, Default)]
struct Sessions {
    last: u64,
    open: HashMap<Box<str>, Session>,
}

/// Dropping `_evict` ends the client's stream.
#[derive(Debug)]
struct Session {
    number: u64,
    _evict: oneshot::Sender<()>,
    _lock: Option<DeviceLock>,
}

impl Consoles {
    pub(super) fn new(locks: PathBuf) -> Self {
        Self { locks, sessions: Mutex::default() }
    }

    /// Opens a line that nobody has open, or that is taken over; `busy` says that somebody has.
    fn open(
        self: &Arc<Self>,
        path: &str,
        takes_over: bool,
        busy: &'static str,
        open: impl FnOnce() -> Result<Box<dyn Line>>,
    ) -> Result<Console> {
        let mut sessions = self.sessions();
        if sessions.open.contains_key(path) && !takes_over {
            return Err(Error::operation_failed(busy));
        }
        sessions.open.remove(path);
        let lock = DeviceLock::take(&self.locks, path)?;
        let line = open()?;
        let (evict, evicted) = oneshot::channel();
        sessions.last += 1;
        let number = sessions.last;
        sessions.open.insert(path.into(), Session { number, _evict: evict, _lock: lock });
        Ok(Console { line, path: path.into(), number, evicted, consoles: Arc::clone(self) })
    }

    fn sessions(&self) -> MutexGuard<'_, Sessions> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Domains {
    /// A terminal of the guest, by the device's alias; the first one if none is named.
    pub fn open_console(&self, domain: &DomainHandle, device: Option<&str>, flags: u32) -> Result<Console> {
        let flags = ConsoleFlags::accept(flags)?;
        let state = domain.state();
        let live = reads::running(&state)?;
        let (source, info) = find(live, device).ok_or_else(|| {
            Error::internal_error(format!("cannot find character device {}", device.unwrap_or("<null>")))
        })?;
        let CharBackend::Pty(Some(path)) = &source.backend else {
            let alias = device.or(info.alias.as_deref()).unwrap_or("<null>");
            return Err(Error::internal_error(format!("character device {alias} is not using a PTY")));
        };
        let takes_over = flags.contains(ConsoleFlags::FORCE);
        let busy = "Active console session exists for this domain";
        self.consoles.open(path, takes_over, busy, || {
            let tty = Tty::open(Path::new(&**path))
                .map_err(|error| Error::io(format_args!("unable to open console path '{path}'"), error))?;
            Ok(Box::new(tty))
        })
    }

    /// A channel of the guest, by the device's alias or the name that the guest knows; the first one if none
    /// is named.
    pub fn open_channel(&self, domain: &DomainHandle, name: Option<&str>, flags: u32) -> Result<Console> {
        let flags = ChannelFlags::accept(flags)?;
        let state = domain.state();
        let channels = &reads::running(&state)?.devices.channels;
        let channel = channels.iter().find(|channel| name.is_none_or(|name| is_called(channel, name)));
        let channel = channel.ok_or_else(|| {
            Error::internal_error(format!("cannot find channel {}", name.unwrap_or("<null>")))
        })?;
        let path = match &channel.source.backend {
            CharBackend::Unix(socket) => socket.path.as_deref(),
            _ => None,
        };
        let path = path.ok_or_else(|| {
            let name = name.or(channel.info.alias.as_deref()).unwrap_or("<null>");
            Error::internal_error(format!("channel {name} is not using a UNIX socket"))
        })?;
        let takes_over = flags.contains(ChannelFlags::FORCE);
        self.consoles.open(path, takes_over, "Active channel stream exists for this domain", || {
            let socket = unix::connect(Path::new(path))
                .map_err(|error| Error::io(format_args!("unable to connect to socket '{path}'"), error))?;
            Ok(Box::new(socket))
        })
    }
}

fn is_called(channel: &Channel, called: &str) -> bool {
    let name = match &channel.target {
        ChannelTarget::Virtio { name, .. } => name.as_deref(),
        _ => None,
    };
    channel.info.alias.as_deref() == Some(called) || name == Some(called)
}

fn find<'a>(live: &'a Domain, device: Option<&str>) -> Option<(&'a CharSource, &'a DeviceInfo)> {
    let devices = &live.devices;
    let consoles = devices.consoles.iter().map(|it| (&it.source, &it.info));
    let serials = devices.serials.iter().map(|it| (&it.source, &it.info));
    let parallels = devices.parallels.iter().map(|it| (&it.source, &it.info));
    match device {
        None => consoles.chain(serials).next(),
        Some(alias) => {
            consoles.chain(serials).chain(parallels).find(|(_, info)| info.alias.as_deref() == Some(alias))
        }
    }
}

/// What carries bytes to and from the guest.
trait Line: AsyncRead + AsyncWrite + Send + Unpin + fmt::Debug {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin + fmt::Debug> Line for T {}

/// An open line. It ends when the guest does, or when another client takes it over.
#[derive(Debug)]
pub struct Console {
    line: Box<dyn Line>,
    path: Box<str>,
    number: u64,
    evicted: oneshot::Receiver<()>,
    consoles: Arc<Consoles>,
}

impl Console {
    fn is_evicted(&mut self, context: &mut Context<'_>) -> bool {
        Pin::new(&mut self.evicted).poll(context).is_ready()
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        let mut sessions = self.consoles.sessions();
        if sessions.open.get(&self.path).is_some_and(|session| session.number == self.number) {
            sessions.open.remove(&self.path);
        }
    }
}

impl AsyncRead for Console {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.is_evicted(context) {
            true => Poll::Ready(Ok(())),
            false => Pin::new(&mut self.line).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Console {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.is_evicted(context) {
            true => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            false => Pin::new(&mut self.line).poll_write(context, data),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.line).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.line).poll_shutdown(context)
    }
}
