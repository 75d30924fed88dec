//! Volumes as streams: what a client uploads, what it downloads.
//!
//! Files are read and written in large pieces beside the tasks, and one piece ahead of the stream. Holes
//! travel as holes where the client asked for that.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::Bytes;
use tokio::task::JoinHandle;

use super::flags::{CallFlags, DownloadFlags, UploadFlags};
use super::pool::{PoolObject, Use, free, whole};
use super::volumes::VolumeRef;
use super::{Storage, errors};
use crate::error::{Error, Origin, Result};
use crate::qemu::storage::{self as image, Refusal, VolumeError};

/// What is read or written at once.
const PIECE: usize = 1 << 20;
/// Frames that are written at once: a client may send small ones.
const MAX_PARTS: usize = 64;

/// Part of a volume on its way to a client.
#[derive(Debug, PartialEq, Eq)]
pub enum Part {
    Data(Vec<u8>),
    Hole(u64),
}

impl Storage {
    /// A volume from `offset` on, `length` bytes of it or all (0).
    pub async fn download(
        &self,
        name: &VolumeRef,
        (offset, length): (u64, u64),
        flags: u32,
    ) -> Result<Download> {
        let flags = DownloadFlags::accept(flags)?;
        let object = self.list.by_name(&name.pool)?;
        // What is open can be read whatever happens to its name, so it is in use only until it is open.
        let (_reading, volume) = Use::begin(&object, &name.name, whole)?;
        let path: Arc<str> = volume.target.path.into();
        let shown = Arc::clone(&path);
        let opened = object.blocking(move || {
            let cannot = |error| failed(format_args!("Unable to open stream for '{path}'"), error);
            let file = match image::open(&path) {
                Err(VolumeError::Refused { kind: Refusal::NoVolume, .. }) => {
                    return Err(cannot(rustix::io::Errno::NOENT.into()));
                }
                opened => opened?,
            };
            let size = size(&file).map_err(cannot)?;
            Ok((file, size))
        });
        let (file, size) = opened.await?;
        let end = match length {
            0 => size,
            length => offset.saturating_add(length).min(size),
        };
        let sparse = flags.contains(DownloadFlags::SPARSE);
        let plan = Plan { object, file: Arc::new(file), path: shown, end, sparse };
        Ok(Download { ahead: Some(plan.read(offset)), plan, at: offset })
    }

    /// Overwrites a volume from `offset` on with at most `length` bytes, or as many as come (0).
    pub async fn upload(
        self: &Arc<Self>,
        name: &VolumeRef,
        (offset, length): (u64, u64),
        flags: u32,
    ) -> Result<Upload> {
        UploadFlags::accept(flags)?;
        let object = self.list.by_name(&name.pool)?;
        let (writing, volume) = Use::begin(&object, &name.name, free)?;
        let path: Arc<str> = volume.target.path.into();
        let shown = Arc::clone(&path);
        let file = object.blocking(move || {
            let cannot = |error| failed(format_args!("Unable to open stream for '{path}'"), error);
            image::open_to_change(&path).map_err(cannot)
        });
        Ok(Upload {
            file: Arc::new(file.await?),
            path: shown,
            at: offset,
            left: if length == 0 { u64::MAX } else { length },
            gathered: Vec::new(),
            gathered_len: 0,
            under_way: None,
            refresh: RefreshAfter { storage: Arc::clone(self), object, used: Some(writing) },
        })
    }
}

/// In the name of streams, as libvirt has it.
fn failed(what: impl std::fmt::Display, error: io::Error) -> Error {
    Error::io(what, error).from_origin(Origin::STREAMS)
}

fn size(file: &File) -> io::Result<u64> {
    Ok(rustix::fs::seek(file, rustix::fs::SeekFrom::End(0))?)
}

/// What is to be read of a file.
#[derive(Debug, Clone)]
struct Plan {
    object: Arc<PoolObject>,
    file: Arc<File>,
    path: Arc<str>,
    end: u64,
    sparse: bool,
}

impl Plan {
    /// Begins to read what stands at `at`.
    fn read(&self, at: u64) -> JoinHandle<Result<Option<Part>>> {
        let plan = self.clone();
        tokio::spawn(async move {
            let object = Arc::clone(&plan.object);
            let path = Arc::clone(&plan.path);
            let cannot = move |error| failed(format_args!("Unable to read {path}"), error);
            object.copying(move || plan.next(at).map_err(cannot)).await
        })
    }

    fn next(&self, at: u64) -> io::Result<Option<Part>> {
        if at >= self.end {
            return Ok(None);
        }
        let mut end = self.end;
        if self.sparse {
            match image::next_data(&self.file, at, self.end)? {
                None => return Ok(Some(Part::Hole(self.end - at))),
                Some((start, _)) if start > at => return Ok(Some(Part::Hole(start - at))),
                Some((_, data_end)) => end = data_end,
            }
        }
        let len = usize::try_from(end - at).unwrap_or(PIECE).min(PIECE);
        let mut data = Vec::with_capacity(len);
        while data.len() < len {
            let from = at + data.len() as u64;
            match rustix::io::pread(&self.file, rustix::buffer::spare_capacity(&mut data), from) {
                Ok(0) => break,
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        // A little more than asked for may have had room.
        data.truncate(len);
        let filled = data.len();
        Ok(Some(Part::Data(data)).filter(|_| filled > 0))
    }
}

/// A volume on its way to a client.
#[derive(Debug)]
pub struct Download {
    plan: Plan,
    ahead: Option<JoinHandle<Result<Option<Part>>>>,
    at: u64,
}

impl Download {
    /// The next part; none at the end.
    pub async fn next(&mut self) -> Result<Option<Part>> {
        let Some(ahead) = self.ahead.take() else { return Ok(None) };
        let ended = |error| Err(failed("cannot read from stream", io::Error::other(error)));
        let part = ahead.await.unwrap_or_else(ended)?;
        let len = match &part {
            None => return Ok(None),
            Some(Part::Data(data)) => data.len() as u64,
            Some(Part::Hole(len)) => *len,
        };
        self.at += len;
        self.ahead = Some(self.plan.read(self.at));
        Ok(part)
    }
}

/// A volume on its way from a client.
#[derive(Debug)]
pub struct Upload {
    file: Arc<File>,
    path: Arc<str>,
    at: u64,
    left: u64,
    gathered: Vec<Bytes>,
    gathered_len: usize,
    under_way: Option<JoinHandle<Result<()>>>,
    refresh: RefreshAfter,
}

impl Upload {
    /// Takes data; it is on its way to the disk when this returns, at the latest with [`Upload::finish`].
    pub async fn write(&mut self, data: Bytes) -> Result<()> {
        self.take_room(data.len() as u64)?;
        self.gathered_len += data.len();
        self.gathered.push(data);
        let is_enough = self.gathered_len >= PIECE || self.gathered.len() >= MAX_PARTS;
        if is_enough { self.flush().await } else { Ok(()) }
    }

    /// Takes zeroes that need not travel nor be stored.
    pub async fn skip(&mut self, len: u64) -> Result<()> {
        self.take_room(len)?;
        self.flush().await?;
        let at = self.at;
        self.at = at.saturating_add(len);
        self.begin(move |file| make_hole(file, at, len)).await
    }

    /// All has come, and is in the file.
    pub async fn finish(&mut self) -> Result<()> {
        self.flush().await?;
        self.wait().await
    }

    fn take_room(&mut self, len: u64) -> Result<()> {
        let full = || failed("cannot write to stream", rustix::io::Errno::NOSPC.into());
        self.left = self.left.checked_sub(len).ok_or_else(full)?;
        Ok(())
    }

    async fn flush(&mut self) -> Result<()> {
        if self.gathered.is_empty() {
            return Ok(());
        }
        let (parts, at) = (std::mem::take(&mut self.gathered), self.at);
        self.at = at.saturating_add(std::mem::take(&mut self.gathered_len) as u64);
        self.begin(move |file| write_parts(file, parts, at)).await
    }

    /// Does something with the file beside the tasks, when what came before is done.
    async fn begin(&mut self, work: impl FnOnce(&File) -> io::Result<()> + Send + 'static) -> Result<()> {
        self.wait().await?;
        let (object, file) = (Arc::clone(&self.refresh.object), Arc::clone(&self.file));
        let path = Arc::clone(&self.path);
        let cannot = move |error| failed(format_args!("Unable to write {path}"), error);
        let work = move || work(&file).map_err(cannot);
        self.under_way = Some(tokio::spawn(async move { object.copying(work).await }));
        Ok(())
    }

    async fn wait(&mut self) -> Result<()> {
        let Some(under_way) = self.under_way.take() else { return Ok(()) };
        let ended = |error| Err(failed("cannot write to stream", io::Error::other(error)));
        under_way.await.unwrap_or_else(ended)
    }
}

/// Writes what came in several frames, as it came.
fn write_parts(file: &File, mut parts: Vec<Bytes>, mut at: u64) -> io::Result<()> {
    let mut first = 0;
    while let Some(rest) = parts.get_mut(first..).filter(|rest| !rest.is_empty()) {
        let slices: Vec<_> = rest.iter().map(|part| io::IoSlice::new(part)).collect();
        let mut written = match rustix::io::pwritev(file, &slices, at) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => written,
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        };
        at += written as u64;
        for part in rest {
            let whole = written.min(part.len());
            drop(part.split_to(whole));
            written -= whole;
            first += usize::from(part.is_empty());
        }
    }
    Ok(())
}

/// Whatever was there reads as zeroes after this.
fn make_hole(file: &File, at: u64, len: u64) -> io::Result<()> {
    use rustix::fs::FallocateFlags;
    use rustix::io::Errno;
    let (end, size) = (at.saturating_add(len), size(file)?);
    let inside = end.min(size).saturating_sub(at);
    if inside > 0 {
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match rustix::fs::fallocate(file, punch, at, inside) {
            Ok(()) => {}
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => write_zeroes(file, at, inside)?,
            Err(error) => return Err(error.into()),
        }
    }
    if end > size && file.metadata()?.is_file() { file.set_len(end) } else { Ok(()) }
}

fn write_zeroes(file: &File, mut at: u64, mut len: u64) -> io::Result<()> {
    let zeroes = vec![0; PIECE];
    while len > 0 {
        let now = usize::try_from(len).unwrap_or(PIECE).min(PIECE);
        file.write_all_at(zeroes.get(..now).unwrap_or_default(), at)?;
        at += now as u64;
        len -= now as u64;
    }
    Ok(())
}

/// However an upload ends, the pool then says what the volume has become.
#[derive(Debug)]
struct RefreshAfter {
    storage: Arc<Storage>,
    object: Arc<PoolObject>,
    used: Option<Use>,
}

impl Drop for RefreshAfter {
    fn drop(&mut self) {
        drop(self.used.take());
        let (storage, object) = (Arc::clone(&self.storage), Arc::clone(&self.object));
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        runtime.spawn(async move {
            if let Err(error) = storage.refresh_object(&object).await {
                let error: Error = errors::ours(error);
                tracing::warn!(%error, "no refresh after an upload");
            }
        });
    }
}
