//! As much of HTTP/1.1 as a scrape needs: one question on each connection, one answer, the end.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::BufMut;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, UnixListener};
use tokio::task::{AbortHandle, JoinSet};

use super::Metrics;
use crate::error::{Error, Result};
use crate::util::{file, unix};

/// A question is short; what is longer is none.
const MAX_HEAD: usize = 8192;
/// From the connection to the end of the answer.
const LIMIT: Duration = Duration::from_secs(10);
/// Scrapes at once; for one more the oldest goes, so that nobody who is slow keeps others waiting.
const SCRAPES: usize = 32;

/// Where scrapes come in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// `unix:/path`
    Path(PathBuf),
    /// `127.0.0.1:9177`
    Address(SocketAddr),
}

impl std::str::FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_prefix("unix:") {
            Some(path) if path.starts_with('/') => Ok(Self::Path(path.into())),
            Some(path) => Err(format!("'{path}' is no absolute path")),
            None => text
                .parse()
                .map(Self::Address)
                .map_err(|_| format!("'{text}' is neither 'unix:' and a path nor an address with its port")),
        }
    }
}

/// A socket for scrapes.
#[derive(Debug)]
pub enum Listener {
    Path(UnixListener, PathBuf),
    Address(TcpListener),
}

impl Listener {
    pub async fn bind(place: &Place) -> Result<Self> {
        match place {
            Place::Path(path) => {
                let failed =
                    |error| Error::io(format_args!("Failed to bind socket to '{}'", path.display()), error);
                remove_stale(path).map_err(failed)?;
                let socket = unix::listen(path).map_err(failed)?;
                socket.set_nonblocking(true).map_err(failed)?;
                Ok(Self::Path(UnixListener::from_std(socket).map_err(failed)?, path.clone()))
            }
            Place::Address(address) => {
                let failed = |error| Error::io(format_args!("Unable to bind to {address}"), error);
                Ok(Self::Address(TcpListener::bind(address).await.map_err(failed)?))
            }
        }
    }

    /// Answers scrapes for as long as it is polled.
    pub async fn answer_all(self, metrics: Arc<Metrics>) {
        let mut scrapes = Scrapes::default();
        loop {
            let metrics = Arc::clone(&metrics);
            let accepted = match &self {
                Self::Path(socket, _) => {
                    socket.accept().await.map(|(peer, _)| scrapes.begin(scrape(peer, metrics)))
                }
                Self::Address(socket) => {
                    socket.accept().await.map(|(peer, _)| scrapes.begin(scrape(peer, metrics)))
                }
            };
            if let Err(error) = accepted {
                tracing::warn!(%error, "cannot take in a scrape");
                // Until one of those under way has given its descriptor back.
                let _ = tokio::time::timeout(LIMIT, scrapes.running.join_next()).await;
            }
        }
    }
}

/// What is under way, oldest first.
#[derive(Default)]
struct Scrapes {
    running: JoinSet<()>,
    order: VecDeque<AbortHandle>,
}

impl Scrapes {
    fn begin(&mut self, scrape: impl Future<Output = ()> + Send + 'static) {
        while self.running.try_join_next().is_some() {}
        self.order.retain(|scrape| !scrape.is_finished());
        if self.order.len() >= SCRAPES {
            self.order.pop_front().into_iter().for_each(|oldest| oldest.abort());
        }
        self.order.push_back(self.running.spawn(scrape));
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Self::Path(_, path) = self
            && let Err(error) = file::remove_if_there(path)
        {
            tracing::warn!(socket = %path.display(), %error, "cannot remove");
        }
    }
}

/// The socket of a daemon that was killed; what is no socket stays, and the name is taken.
fn remove_stale(path: &Path) -> io::Result<()> {
    match std::fs::symlink_metadata(path) {
        Ok(about) if about.file_type().is_socket() => file::remove_if_there(path),
        _ => Ok(()),
    }
}

async fn scrape(peer: impl AsyncRead + AsyncWrite + Unpin, metrics: Arc<Metrics>) {
    match tokio::time::timeout(LIMIT, answer(peer, &metrics)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "a scrape ended early"),
        Err(_) => tracing::debug!("a scrape took too long"),
    }
}

async fn answer(mut peer: impl AsyncRead + AsyncWrite + Unpin, metrics: &Metrics) -> io::Result<()> {
    let head = head(&mut peer).await?;
    let line = head.lines().next().unwrap_or_default();
    let mut words = line.split(' ');
    let path = match (words.next(), words.next(), words.next()) {
        (Some("GET"), Some(path), Some(version)) if version.starts_with("HTTP/1.") => {
            Ok(path.split('?').next().unwrap_or_default())
        }
        (Some(_), Some(_), Some(version)) if version.starts_with("HTTP/1.") => Err("405 Method Not Allowed"),
        _ => Err("400 Bad Request"),
    };
    let (status, text) = match path {
        Ok("/metrics") => ("200 OK", metrics.text().await),
        Ok("/healthz") => ("200 OK", "ok\n".to_owned()),
        Ok(_) => ("404 Not Found", "/metrics and /healthz are here\n".to_owned()),
        Err(status) => (status, format!("{status}\n")),
    };
    let answer = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n{text}",
        text.len()
    );
    peer.write_all(answer.as_bytes()).await?;
    peer.shutdown().await
}

/// All up to the empty line; too much of it is no question.
async fn head(peer: &mut (impl AsyncRead + Unpin)) -> io::Result<String> {
    let mut head = Vec::new();
    while !head.windows(4).any(|end| end == b"\r\n\r\n") && head.len() < MAX_HEAD {
        if peer.read_buf(&mut (&mut head).limit(MAX_HEAD)).await? == 0 {
            break;
        }
    }
    Ok(String::from_utf8_lossy(&head).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_paths_or_addresses() {
        assert_eq!("unix:/run/m".parse(), Ok(Place::Path("/run/m".into())));
        assert_eq!("[::1]:9177".parse(), Ok(Place::Address("[::1]:9177".parse().unwrap())));
        for wrong in ["unix:m", "localhost", "127.0.0.1", ""] {
            assert!(wrong.parse::<Place>().is_err(), "{wrong}");
        }
    }
}
