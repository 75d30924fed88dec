//! Reaching the QEMU on the other host.

use std::io;
use std::path::Path;

use tokio::net::TcpStream;

use super::place::{Target, bracketed};
use super::request::{MigrateFlags, Request};
use crate::error::{Error, Result};
use crate::qemu::migrate;
use crate::util::unix;

/// The other end of the stream. QEMU connects itself where it needs several connections.
pub(super) async fn to(target: &Target, request: &Request) -> Result<migrate::Target> {
    let several = request.flags.intersects(MigrateFlags::PARALLEL | MigrateFlags::POSTCOPY);
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
