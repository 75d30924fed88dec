//! Streams: both directions, their ends, their limits.

use std::sync::Arc;

use bytes::Bytes;
use ferrovirt::error::{Error, Result};
use ferrovirt::rpc::router::{Call, Routes, Streamed};
use ferrovirt::rpc::stream::{Closing, Piece, Pipe, Silent, Sink, Source};
use ferrovirt_protocol::client::{Chunk, Client};
use ferrovirt_protocol::remote::procedure::*;
use ferrovirt_protocol::remote::*;
use tokio::sync::{Semaphore, mpsc};

use crate::world::{World, domain, refusal, soon};

fn console() -> DomainOpenConsoleArgs {
    DomainOpenConsoleArgs { dom: domain("x"), dev_name: None, flags: 0 }
}

fn upload() -> StorageVolUploadArgs {
    StorageVolUploadArgs::default()
}

/// Answers every upload with `pipe()`.
fn on_upload(r: &mut Routes, pipe: impl Fn() -> Pipe + Send + Sync + 'static) {
    r.on_stream::<StorageVolUpload>(move |_: Call, _| {
        let pipe = pipe();
        async move { Ok(Streamed { ret: (), pipe }) }
    });
}

async fn lives(client: &Client) {
    soon(client.call::<ConnectGetType>(&())).await.unwrap();
}

#[tokio::test]
async fn a_console_talks_both_ways() {
    let world = World::new(|r| {
        r.on_stream::<DomainOpenConsole>(|_: Call, _| async {
            let (ours, mut guest) = tokio::io::duplex(64);
            tokio::spawn(async move {
                let (mut read, mut write) = tokio::io::split(&mut guest);
                tokio::io::copy(&mut read, &mut write).await
            });
            Ok(Streamed { ret: (), pipe: Pipe::duplex(ours) })
        });
    });
    let (client, _events) = world.client().await;
    let ((), mut stream) = soon(client.open_stream::<DomainOpenConsole>(&console())).await.unwrap();
    let text = "every word comes back ".repeat(100);
    soon(stream.send(text.as_bytes())).await.unwrap();
    let mut heard = Vec::new();
    while heard.len() < text.len() {
        match soon(stream.recv()).await.unwrap() {
            Some(Chunk::Data(data)) => heard.extend_from_slice(&data),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(heard, text.as_bytes());
    soon(stream.abort()).await.unwrap();
    lives(&client).await;
}

/// Notes what it takes; fails where the test says so.
struct Notes(mpsc::UnboundedSender<Option<Piece>>);

impl Sink for Notes {
    async fn take(&mut self, piece: Piece) -> Result<()> {
        if piece == Piece::Data(Bytes::from_static(b"poison")) {
            return Err(Error::operation_failed("poisoned"));
        }
        self.0.send(Some(piece)).map_err(|_| Error::internal_error("test over"))
    }

    async fn finish(&mut self) -> Result<()> {
        self.0.send(None).map_err(|_| Error::internal_error("test over"))
    }
}

#[tokio::test]
async fn an_upload_is_data_and_holes_until_it_is_finished() {
    let (notes, mut noted) = mpsc::unbounded_channel();
    let world = World::new(|r| on_upload(r, move || Pipe::new(Silent, Notes(notes.clone()))));
    let (client, _events) = world.client().await;
    let ((), stream) = soon(client.open_stream::<StorageVolUpload>(&upload())).await.unwrap();
    soon(stream.send(b"begin")).await.unwrap();
    soon(stream.send_hole(1 << 40)).await.unwrap();
    soon(stream.send(b"end")).await.unwrap();
    soon(stream.finish()).await.unwrap();
    let data = |text: &'static [u8]| Some(Piece::Data(Bytes::from_static(text)));
    for expected in [data(b"begin"), Some(Piece::Hole(1 << 40)), data(b"end"), None] {
        assert_eq!(noted.recv().await.unwrap(), expected);
    }
    // An aborted one is never finished.
    let ((), stream) = soon(client.open_stream::<StorageVolUpload>(&upload())).await.unwrap();
    soon(stream.send(b"begin")).await.unwrap();
    soon(stream.abort()).await.unwrap();
    assert_eq!(noted.recv().await.unwrap(), data(b"begin"));
    lives(&client).await;
    assert!(noted.is_empty());
}

#[tokio::test]
async fn a_sink_that_fails_tells_the_client_why() {
    let (notes, _noted) = mpsc::unbounded_channel();
    let world = World::new(|r| on_upload(r, move || Pipe::new(Silent, Notes(notes.clone()))));
    let (client, _events) = world.client().await;
    let ((), stream) = soon(client.open_stream::<StorageVolUpload>(&upload())).await.unwrap();
    soon(stream.send(b"poison")).await.unwrap();
    let error = refusal(soon(stream.finish()).await);
    assert_eq!(error.text(), "operation failed: poisoned");
    lives(&client).await;
}

#[tokio::test]
async fn a_writer_takes_no_holes() {
    let world = World::new(|r| on_upload(r, || Pipe::up(tokio::io::sink())));
    let (client, _events) = world.client().await;
    let ((), stream) = soon(client.open_stream::<StorageVolUpload>(&upload())).await.unwrap();
    soon(stream.send_hole(10)).await.unwrap();
    assert_eq!(refusal(soon(stream.finish()).await).text(), "Unexpected stream hole");
}

/// Takes nothing until there is a permit.
struct Slow(Arc<Semaphore>);

impl Sink for Slow {
    async fn take(&mut self, _: Piece) -> Result<()> {
        self.0.acquire().await.map_err(|_| Error::internal_error("closed"))?.forget();
        Ok(())
    }

    async fn finish(&mut self) -> Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn a_slow_sink_holds_its_client_back_and_no_other() {
    let gate = Arc::new(Semaphore::new(0));
    let sink_gate = Arc::clone(&gate);
    let world = World::new(|r| on_upload(r, move || Pipe::new(Silent, Slow(Arc::clone(&sink_gate)))));
    let (client, _events) = world.client().await;
    let ((), stream) = soon(client.open_stream::<StorageVolUpload>(&upload())).await.unwrap();
    const PIECE: usize = 64 * 1024;
    const PIECES: usize = 512;
    let sending = tokio::spawn(async move {
        for _ in 0..PIECES {
            stream.send(&[0; PIECE]).await.unwrap();
        }
        stream.finish().await
    });
    // 32 MiB do not fit: the client's next call is not read before the sink takes some.
    let behind = client.clone();
    let behind = tokio::spawn(async move { behind.call::<ConnectGetType>(&()).await });
    let (other, _other_events) = world.client().await;
    for _ in 0..200 {
        lives(&other).await;
    }
    assert!(!sending.is_finished() && !behind.is_finished());
    gate.add_permits(2 * PIECES);
    soon(sending).await.unwrap().unwrap();
    soon(behind).await.unwrap().unwrap();
}

/// Data, a hole, more data than a client's buffers hold, and the end.
struct Disk {
    pieces: std::vec::IntoIter<Piece>,
}

impl Source for Disk {
    async fn next(&mut self) -> Result<Option<Piece>> {
        match self.pieces.next() {
            Some(Piece::Hole(0)) => Err(Error::operation_failed("bad sector")),
            piece => Ok(piece),
        }
    }
}

fn download(pieces: Vec<Piece>) -> World {
    World::new(|r| {
        r.on_stream::<StorageVolDownload>(move |_: Call, _| {
            let pipe = Pipe::new(Disk { pieces: pieces.clone().into_iter() }, Closing);
            async move { Ok(Streamed { ret: (), pipe }) }
        });
    })
}

#[tokio::test]
async fn a_download_is_data_and_holes_until_its_end() {
    let block = Bytes::from(vec![7; 200_000]);
    let mut pieces = vec![Piece::Hole(4096)];
    pieces.extend(std::iter::repeat_n(Piece::Data(block.clone()), 100));
    let world = download(pieces);
    let (client, _events) = world.client().await;
    let args = StorageVolDownloadArgs::default();
    let ((), mut stream) = soon(client.open_stream::<StorageVolDownload>(&args)).await.unwrap();
    assert_eq!(soon(stream.recv()).await.unwrap(), Some(Chunk::Hole(4096)));
    for _ in 0..100 {
        assert_eq!(soon(stream.recv()).await.unwrap(), Some(Chunk::Data(block.clone())));
    }
    assert_eq!(soon(stream.recv()).await.unwrap(), None);
    soon(stream.finish()).await.unwrap();
    lives(&client).await;
}

#[tokio::test]
async fn a_source_that_fails_tells_the_client_why() {
    let world = download(vec![Piece::Hole(0)]);
    let (client, _events) = world.client().await;
    let args = StorageVolDownloadArgs::default();
    let ((), mut stream) = soon(client.open_stream::<StorageVolDownload>(&args)).await.unwrap();
    let error = refusal(soon(stream.recv()).await);
    assert_eq!(error.text(), "operation failed: bad sector");
    lives(&client).await;
}

#[tokio::test]
async fn a_stream_ends_with_its_connection() {
    let (notes, mut noted) = mpsc::unbounded_channel();
    let world = World::new(move |r| {
        let notes = notes;
        on_upload(r, move || Pipe::new(Silent, Notes(notes.clone())));
    });
    let (client, events) = world.client().await;
    let ((), stream) = soon(client.open_stream::<StorageVolUpload>(&upload())).await.unwrap();
    soon(stream.send(b"begin")).await.unwrap();
    assert!(soon(noted.recv()).await.unwrap().is_some());
    client.close();
    drop((stream, client, events));
    // The sink is dropped: only the route holds a sender, and it goes with the server.
    soon(world.server.client_count().wait_for(|&clients| clients == 0)).await.unwrap();
    drop(world);
    assert!(soon(noted.recv()).await.is_none());
}
