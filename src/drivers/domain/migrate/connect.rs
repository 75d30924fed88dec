//! Reaching the QEMU on the other host.

use std::io;
use std::path::Path;

use tokio::net::TcpStream;

use super::place::{Target, bracketed};
use super::request::{MigrateFlags, Request};
use crate::error::{Error, Result};
use crate::qemu::migrate;
use crate::util::unix;

/// QEMU connects itself where it needs several connections.
fn has_several(request: &Request) -> bool {
    request.flags.intersects(MigrateFlags::PARALLEL | MigrateFlags::POSTCOPY)
}

/// Whom QEMU gets a connection to without hearing his name.
pub(super) fn unseen_host<'a>(target: &'a Target, request: &Request) -> Option<&'a str> {
    match target {
        Target::Tcp { host, .. } if !has_several(request) => Some(host),
        _ => None,
    }
}

/// The other end of a stream, before the stream begins.
#[derive(Debug)]
pub(super) enum OtherEnd {
    /// To be connected to at the last moment: a QEMU that somebody has connected to does nothing but wait for him.
    At(Target),
    /// Of a tunnel.
    Open(migrate::Target),
}

impl OtherEnd {
    pub(super) fn at(target: Target, request: &Request) -> Result<Self> {
        if request.has(MigrateFlags::TLS)
            && !request.has(MigrateFlags::POSTCOPY_RESUME)
            && matches!(target, Target::Unix(_))
            && request.text("tls.destination").is_none_or(str::is_empty)
        {
            let sentence = "Explicit destination hostname is required for TLS migration over UNIX socket";
            return Err(Error::operation_unsupported(sentence));
        }
        Ok(Self::At(target))
    }

    pub(super) async fn open(self, request: &Request) -> Result<migrate::Target> {
        match self {
            Self::Open(open) => Ok(open),
            Self::At(target) => to(&target, has_several(request)).await,
        }
    }
}

async fn to(target: &Target, several: bool) -> Result<migrate::Target> {
    match target {
        Target::Tcp { host, port, .. } => {
            let port = port
                .ok_or_else(|| Error::internal_error(format!("missing port in migration URI: {target}")))?;
            match several {
                true => Ok(migrate::Target::Uri(format!("tcp:{}:{port}", bracketed(host)))),
                false => tcp(host, port).await.map_err(|error| unreachable(target, error)),
            }
        }
        Target::Unix(path) if several => Ok(migrate::Target::Uri(format!("unix:{path}"))),
        Target::Unix(path) => {
            let connected = unix::connect(Path::new(path)).and_then(tokio::net::UnixStream::into_std);
            let stream = connected.map_err(|error| unreachable(target, error))?;
            stream.set_nonblocking(false).map_err(|error| unreachable(target, error))?;
            Ok(migrate::Target::Descriptor(stream.into()))
        }
    }
}

async fn tcp(host: &str, port: u16) -> io::Result<migrate::Target> {
    let stream = TcpStream::connect((host, port)).await?;
    stream.set_nodelay(true)?;
    let stream = stream.into_std()?;
    stream.set_nonblocking(false)?;
    Ok(migrate::Target::Descriptor(stream.into()))
}

fn unreachable(target: &Target, error: io::Error) -> Error {
    match target {
        Target::Tcp { host, port, .. } => {
            let port = port.unwrap_or(0);
            Error::io(format_args!("unable to connect to server at '{host}:{port}'"), error)
        }
        Target::Unix(path) => Error::io(format_args!("Failed to connect to '{path}'"), error),
    }
}
