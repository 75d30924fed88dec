//! Bytes between QEMU and a file: in and out, packed or not, with the host's cache or past it.
//!
//! ```text
//!  out:  QEMU ──pipe──► (gzip, … ──pipe──►) writer ──► FILE.UUID.partial ──commit──► FILE
//!  in:   FILE ─────────────────────────────────────────────────────► QEMU
//!             └─► gzip -dc, … ──pipe──────────────────────────────► QEMU
//!             └─► reader (past the cache) ──pipe──► (gzip -dc, … ──pipe──►) QEMU
//! ```
//!
//! QEMU gets one end of a pipe and never blocks on a disk. The daemon opens every file: a guest's process needs no
//! right to the directory. Where a server squashes root, the daemon opens it as the guest's user. A file stands under its name only when it is whole.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{MemfdFlags, OFlags};
use rustix::pipe::PipeFlags;
use thiserror::Error;
use tokio::task::JoinHandle;

use super::save_image::SaveFormat;
use crate::util::accounts::{Ids, or_as_user};
use crate::util::file;
use crate::util::process::{Child, Command, Exit, ProcessError};
use crate::util::reason::Reason;

/// What is moved at once; a multiple of any disk's block.
const CHUNK: usize = 1024 * 1024;
/// Addresses and sizes of what bypasses the cache are multiples of this.
const BLOCK: usize = 4096;
/// Of what a helper says when it fails, this much.
const MAX_WORDS: u64 = 4096;

/// Whether the host keeps what passes in its page cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cache {
    Used,
    Bypassed,
}

/// libvirt's code is `VIR_ERR_SYSTEM_ERROR` unless a variant says otherwise.
#[derive(Debug, Error)]
pub enum SaveFileError {
    #[error("Failed to {verb} file '{}': {}", path.display(), Reason(source))]
    Open { verb: &'static str, path: PathBuf, source: io::Error },
    #[error("cannot write to '{}': {}", path.display(), Reason(source))]
    Write { path: PathBuf, source: io::Error },
    #[error("cannot read from '{}': {}", path.display(), Reason(source))]
    Read { path: PathBuf, source: io::Error },
    #[error("cannot make a pipe: {}", Reason(source))]
    Pipe { source: io::Error },
    /// libvirt's code: `VIR_ERR_OPERATION_FAILED`.
    #[error("Compression program for {style} image format in configuration file isn't available")]
    NoProgram { style: &'static str },
    #[error(transparent)]
    Start(#[from] ProcessError),
    /// libvirt's code: `VIR_ERR_INTERNAL_ERROR`.
    #[error("Child process ({line}) unexpected {exit}: {words}")]
    Helper { line: String, exit: String, words: String },
}

/// A program that packs or unpacks.
#[derive(Debug, Clone)]
pub struct Packer {
    program: PathBuf,
    format: SaveFormat,
    search_path: String,
}

impl Packer {
    /// None where no program is needed. `style` is what the file is, for the error: a save, a dump, a snapshot.
    pub fn find(
        format: SaveFormat,
        search_path: &str,
        style: &'static str,
    ) -> Result<Option<Self>, SaveFileError> {
        let Some(name) = format.program() else { return Ok(None) };
        let program = search_path.split(':').map(|directory| Path::new(directory).join(name));
        let program =
            program.into_iter().find(|path| path.is_file()).ok_or(SaveFileError::NoProgram { style })?;
        Ok(Some(Self { program, format, search_path: search_path.to_owned() }))
    }

    fn pack(&self) -> Command {
        let command = Command::new(&self.program).arg("-c");
        if self.format == SaveFormat::Xz { command.arg("-3") } else { command }
    }

    fn unpack(&self) -> Command {
        let command = Command::new(&self.program).arg("-dc");
        if self.format == SaveFormat::Lzop { command.arg("--ignore-warn") } else { command }
    }

    async fn run(&self, command: Command, from: OwnedFd, to: OwnedFd) -> Result<Helper, SaveFileError> {
        let failed = |error: rustix::io::Errno| SaveFileError::Pipe { source: error.into() };
        let words = rustix::fs::memfd_create("words", MemfdFlags::CLOEXEC).map_err(failed)?;
        let words = File::from(words);
        let heard = words.try_clone().map_err(|source| SaveFileError::Pipe { source })?;
        let line = command.line();
        let command = command.env("PATH", &self.search_path).env("LC_ALL", "C");
        let child = command.stdin(from).stdout(to).stderr(words.into()).start().await?;
        Ok(Helper { child, words: heard, line })
    }
}

/// A running packer; killed when dropped.
#[derive(Debug)]
struct Helper {
    child: Child,
    words: File,
    line: String,
}

impl Helper {
    async fn finish(mut self) -> Result<(), SaveFileError> {
        let exit = self.child.process().exited().await;
        let exit = match exit {
            Ok(exit) if exit.success() => return Ok(()),
            Ok(Exit::Code(code)) => format!("exit status {code}"),
            Ok(Exit::Signal(signal)) => format!("fatal signal {signal}"),
            Ok(Exit::Unknown) => "exit".to_owned(),
            Err(error) => error.to_string(),
        };
        let mut words = Vec::new();
        let read = self.words.rewind().and_then(|()| self.words.take(MAX_WORDS).read_to_end(&mut words));
        let words = read.map(|_| String::from_utf8_lossy(&words).trim_end().to_owned()).unwrap_or_default();
        Err(SaveFileError::Helper { line: self.line, exit, words })
    }
}

/// A file that is being written, and gone again unless it is [committed](Growing::commit).
#[derive(Debug)]
pub struct Growing {
    target: PathBuf,
    /// The name that it has meanwhile. None: it is written where it is, as a disk is.
    partial: Option<PathBuf>,
    file: File,
    /// Who may where this daemon may not.
    user: Option<Ids>,
}

impl Growing {
    /// Opens what is to be `path`. `mark` is in the name that it has meanwhile, so that two do not meet. What root may
    /// not do there, as on a server that squashes it, is done as `user`.
    pub fn create(path: &Path, mark: &str, cache: Cache, user: Option<Ids>) -> Result<Self, SaveFileError> {
        let failed = |source| SaveFileError::Open { verb: "create", path: path.to_owned(), source };
        let is_file = match or_as_user(user, || fs::metadata(path)) {
            Ok(found) => found.file_type().is_file(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => true,
            Err(error) => return Err(failed(error)),
        };
        let direct = if cache == Cache::Bypassed { OFlags::DIRECT } else { OFlags::empty() };
        let flags = direct.bits().cast_signed();
        if !is_file {
            // A pipe without a reader would keep whoever opens it for ever.
            let flags = flags | OFlags::NONBLOCK.bits().cast_signed();
            let options = OpenOptions::new().write(true).custom_flags(flags).clone();
            let file = or_as_user(user, || options.open(path)).map_err(failed)?;
            rustix::fs::fcntl_getfl(&file)
                .and_then(|flags| rustix::fs::fcntl_setfl(&file, flags - OFlags::NONBLOCK))
                .map_err(|error| failed(error.into()))?;
            return Ok(Self { target: path.to_owned(), partial: None, file, user });
        }
        // A link stays one, and what it leads to is replaced.
        let (target, partial) = names(path, mark, user);
        let mut options = OpenOptions::new();
        options.write(true).create_new(true).mode(0o600).custom_flags(flags);
        let opened = or_as_user(user, || {
            file::remove_if_there(&partial)?;
            options.open(&partial)
        });
        Ok(Self { target, file: opened.map_err(failed)?, partial: Some(partial), user })
    }

    /// The file as the writer of it has it.
    pub fn file(&self) -> Result<File, SaveFileError> {
        self.file.try_clone().map_err(|source| self.broken(source))
    }

    /// The same past the host's cache, for what wants both.
    pub fn bypassing(&self) -> Result<File, SaveFileError> {
        let path = self.partial.as_ref().unwrap_or(&self.target);
        let flags = OFlags::DIRECT.bits().cast_signed();
        let options = OpenOptions::new().write(true).custom_flags(flags).clone();
        or_as_user(self.user, || options.open(path)).map_err(|source| self.broken(source))
    }

    /// Writes what comes first, over what stood there.
    pub fn write_head(&self, head: &[u8]) -> Result<(), SaveFileError> {
        let written = use_cache(&self.file).and_then(|()| self.file.write_all_at(head, 0));
        written.map_err(|source| self.broken(source))
    }

    /// Everything that was written is on the disk.
    pub fn sync(&self) -> Result<(), SaveFileError> {
        match self.file.sync_data() {
            // A pipe has no disk.
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::INVAL.raw_os_error()) => Ok(()),
            synced => synced.map_err(|source| self.broken(source)),
        }
    }

    /// The file has its name from now on, and keeps it when the power goes.
    pub fn commit(mut self) -> Result<(), SaveFileError> {
        self.sync()?;
        if let Some(partial) = &self.partial {
            or_as_user(self.user, || fs::rename(partial, &self.target))
                .map_err(|source| self.broken(source))?;
            self.partial = None;
            let directory = self.target.parent().map(|path| or_as_user(self.user, || File::open(path)));
            // The file is there; at worst its name is not after a power cut.
            if let Some(Err(error)) = directory.map(|opened| opened.and_then(|it| it.sync_all())) {
                tracing::warn!(path = %self.target.display(), %error, "cannot sync the directory");
            }
        }
        Ok(())
    }

    fn broken(&self, source: io::Error) -> SaveFileError {
        SaveFileError::Write { path: self.target.clone(), source }
    }
}

/// What a file is called when it is whole, and before.
fn names(path: &Path, mark: &str, user: Option<Ids>) -> (PathBuf, PathBuf) {
    let target = or_as_user(user, || fs::canonicalize(path)).unwrap_or_else(|_| path.to_owned());
    let mut partial = target.clone().into_os_string();
    partial.push(format!(".{mark}{PARTIAL}"));
    (target, partial.into())
}

/// Removes what somebody who is gone was [creating](Growing::create).
pub fn remove_partial(path: &Path, mark: &str, user: Option<Ids>) -> io::Result<()> {
    let (_, partial) = names(path, mark, user);
    or_as_user(user, || file::remove_if_there(&partial))
}

/// What a file's name ends with while it is written.
pub const PARTIAL: &str = ".partial";

impl Drop for Growing {
    fn drop(&mut self) {
        if let Some(partial) = &self.partial
            && let Err(error) = or_as_user(self.user, || file::remove_if_there(partial))
        {
            tracing::warn!(path = %partial.display(), %error, "cannot remove what is not whole");
        }
    }
}

/// What takes a stream from QEMU into a file. Dropped: the packer is killed, and QEMU's writing fails.
#[derive(Debug)]
pub struct Drain {
    path: PathBuf,
    writer: JoinHandle<io::Result<()>>,
    /// How the writer ended, once it has.
    written: Option<io::Result<()>>,
    helper: Option<Helper>,
    /// The end that QEMU's bytes come out of, kept while somebody else takes them.
    spare: Option<OwnedFd>,
}

impl Drain {
    /// Begins; QEMU gets the returned end. `head` is written first, as it is.
    pub async fn open(
        into: &Growing,
        head: Vec<u8>,
        packer: Option<&Packer>,
    ) -> Result<(OwnedFd, Self), SaveFileError> {
        let file = into.file()?;
        let (mut source, end) = pipe()?;
        let spare = source.try_clone().map_err(|source| SaveFileError::Pipe { source })?;
        let mut helper = None;
        if let Some(packer) = packer {
            let (packed, packed_end) = pipe()?;
            helper = Some(packer.run(packer.pack(), source, packed_end).await?);
            source = packed;
        }
        let writer = tokio::task::spawn_blocking(move || pump(&head, &File::from(source), &file));
        let path = into.target.clone();
        Ok((end, Self { path, writer, written: None, helper, spare: Some(spare) }))
    }

    /// Waits for what makes QEMU write. Should nobody take QEMU's bytes any more, QEMU hears of it; once `unwanted` is
    /// ready they are thrown away, so that QEMU is not kept by a file that takes nothing.
    pub async fn beside<T>(
        &mut self,
        work: impl Future<Output = T>,
        unwanted: impl Future<Output = ()>,
    ) -> T {
        tokio::pin!(work, unwanted);
        let mut wanted = true;
        loop {
            tokio::select! {
                done = &mut work => {
                    self.spare = None;
                    return done;
                }
                written = &mut self.writer, if self.written.is_none() => {
                    self.written = Some(flat(written));
                    self.spare = None;
                }
                () = &mut unwanted, if wanted => {
                    wanted = false;
                    if let Some(spare) = self.spare.take() {
                        tokio::task::spawn_blocking(move || io::copy(&mut File::from(spare), &mut io::sink()));
                    }
                }
            }
        }
    }

    /// Returns when QEMU has closed its end and all that it wrote is in the file.
    pub async fn finish(self) -> Result<(), SaveFileError> {
        let Self { path, writer, written, helper, spare } = self;
        drop(spare);
        let written = match written {
            Some(written) => written,
            None => flat(writer.await),
        };
        written.map_err(|source| SaveFileError::Write { path, source })?;
        match helper {
            Some(helper) => helper.finish().await,
            None => Ok(()),
        }
    }
}

/// What brings a stream from a file to QEMU. Dropped: the unpacker is killed, and QEMU's reading ends.
#[derive(Debug)]
pub struct Feed {
    helper: Option<Helper>,
    path: PathBuf,
    reader: Option<JoinHandle<io::Result<()>>>,
}

impl Feed {
    /// Begins behind the first `offset` bytes of a file that was opened with this `cache`; QEMU gets the returned end.
    /// `path` is for the errors.
    pub async fn open(
        mut file: File,
        path: &Path,
        offset: u64,
        packer: Option<&Packer>,
        cache: Cache,
    ) -> Result<(OwnedFd, Self), SaveFileError> {
        let broken = |source| SaveFileError::Read { path: path.to_owned(), source };
        let (mut source, reader) = match cache {
            Cache::Used => {
                file.seek(io::SeekFrom::Start(offset)).map_err(broken)?;
                (OwnedFd::from(file), None)
            }
            Cache::Bypassed => {
                let (source, end) = pipe()?;
                let reader = move || unpump(&file, offset, &mut File::from(end));
                (source, Some(tokio::task::spawn_blocking(reader)))
            }
        };
        let mut helper = None;
        if let Some(packer) = packer {
            let (unpacked, end) = pipe()?;
            helper = Some(packer.run(packer.unpack(), source, end).await?);
            source = unpacked;
        }
        Ok((source, Self { helper, path: path.to_owned(), reader }))
    }

    /// Once QEMU has all it wants: whether it got all there is.
    pub async fn finish(self) -> Result<(), SaveFileError> {
        if let Some(reader) = self.reader {
            let read = flat(reader.await);
            // QEMU may know where the end is before it has read it.
            if let Err(source) = read
                && source.kind() != io::ErrorKind::BrokenPipe
            {
                return Err(SaveFileError::Read { path: self.path, source });
            }
        }
        match self.helper {
            Some(helper) => helper.finish().await,
            None => Ok(()),
        }
    }
}

fn flat(ended: Result<io::Result<()>, tokio::task::JoinError>) -> io::Result<()> {
    ended.unwrap_or_else(|error| Err(io::Error::other(error)))
}

/// A file that is read only; opened as `user` if this daemon may not.
pub fn open(path: &Path, cache: Cache, user: Option<Ids>) -> Result<File, SaveFileError> {
    let direct = if cache == Cache::Bypassed { OFlags::DIRECT } else { OFlags::empty() };
    let options = OpenOptions::new().read(true).custom_flags(direct.bits().cast_signed()).clone();
    or_as_user(user, || options.open(path)).map_err(|source| SaveFileError::Open {
        verb: "open",
        path: path.to_owned(),
        source,
    })
}

/// The path of an open file, whatever its name leads to meanwhile.
pub fn of_open(file: &File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

fn pipe() -> Result<(OwnedFd, OwnedFd), SaveFileError> {
    let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)
        .map_err(|error| SaveFileError::Pipe { source: error.into() })?;
    // A larger one means fewer turns; without the right to one, it stays as it is.
    let _ = rustix::pipe::fcntl_setpipe_size(&write, CHUNK);
    Ok((read, write))
}

/// Room for a chunk that begins at a multiple of [`BLOCK`], and where that is.
fn room() -> (Vec<u8>, usize) {
    let room = vec![0; CHUNK + BLOCK];
    let start = room.as_ptr().align_offset(BLOCK).min(BLOCK);
    (room, start)
}

fn use_cache(file: &File) -> io::Result<()> {
    let flags = rustix::fs::fcntl_getfl(file)?;
    if flags.contains(OFlags::DIRECT) {
        rustix::fs::fcntl_setfl(file, flags - OFlags::DIRECT)?;
    }
    Ok(())
}

/// Everything up to the end of `from` into a file; only the last chunk may be shorter, as a file past the cache needs
/// it.
fn pump(head: &[u8], from: &File, mut into: &File) -> io::Result<()> {
    let (mut room, start) = room();
    let mut source = head.chain(from);
    loop {
        let chunk = room.get_mut(start..start + CHUNK).unwrap_or_default();
        let mut filled = 0;
        while let Some(rest) = chunk.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match source.read(rest) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        if filled < CHUNK {
            use_cache(into)?;
        }
        into.write_all(chunk.get(..filled).unwrap_or_default())?;
        if filled < CHUNK {
            return Ok(());
        }
    }
}

/// A file from `offset` on, read in whole chunks, into a pipe.
fn unpump(mut from: &File, offset: u64, into: &mut File) -> io::Result<()> {
    let (mut room, start) = room();
    let mut skipped = usize::try_from(offset).map_err(io::Error::other)?;
    loop {
        let chunk = room.get_mut(start..start + CHUNK).unwrap_or_default();
        let count = match from.read(chunk) {
            Ok(0) => return Ok(()),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        let skip = skipped.min(count);
        skipped -= skip;
        into.write_all(chunk.get(skip..count).unwrap_or_default())?;
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    use rustix::thread::CapabilitySet;

    use super::*;

    /// No multiple of anything.
    fn content() -> Vec<u8> {
        (0..3_000_017_u32).map(|at| (at * 7 + at / 251) as u8).collect()
    }

    async fn through(format: SaveFormat, cache: Cache) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("saved");
        let search_path = std::env::var("PATH").unwrap();
        let Ok(packer) = Packer::find(format, &search_path, "save") else { return };
        let growing = Growing::create(&path, "mark", cache, None).unwrap();
        let (end, drain) = Drain::open(&growing, b"head".to_vec(), packer.as_ref()).await.unwrap();
        let writing = tokio::task::spawn_blocking(move || File::from(end).write_all(&content()));
        drain.finish().await.unwrap();
        writing.await.unwrap().unwrap();
        assert!(!path.exists());
        growing.write_head(b"HEAD").unwrap();
        growing.commit().unwrap();
        assert_eq!(&fs::read(&path).unwrap()[..4], b"HEAD");
        let (end, feed) =
            Feed::open(open(&path, cache, None).unwrap(), &path, 4, packer.as_ref(), cache).await.unwrap();
        let reading = tokio::task::spawn_blocking(move || {
            let mut read = Vec::new();
            File::from(end).read_to_end(&mut read).map(|_| read)
        });
        assert!(reading.await.unwrap().unwrap() == content(), "{format:?} {cache:?}");
        feed.finish().await.unwrap();
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[tokio::test]
    async fn what_goes_in_comes_out() {
        for cache in [Cache::Used, Cache::Bypassed] {
            for format in ["raw", "gzip", "bzip2", "xz", "lzop", "zstd"] {
                through(SaveFormat::from_name(format).unwrap(), cache).await;
            }
        }
    }

    #[tokio::test]
    async fn nothing_stays_of_a_file_that_is_not_whole() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("saved");
        fs::write(&path, "the one before").unwrap();
        let growing = Growing::create(&path, "mark", Cache::Used, None).unwrap();
        growing.write_head(b"half").unwrap();
        drop(growing);
        assert_eq!(fs::read_to_string(&path).unwrap(), "the one before");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[tokio::test]
    async fn a_packer_that_fails_says_why() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("saved");
        fs::write(&path, "this is nothing that gzip made").unwrap();
        let search_path = std::env::var("PATH").unwrap();
        let packer = Packer::find(SaveFormat::Gzip, &search_path, "save").unwrap();
        let (end, feed) =
            Feed::open(File::open(&path).unwrap(), &path, 0, packer.as_ref(), Cache::Used).await.unwrap();
        drop(tokio::task::spawn_blocking(move || File::from(end).read_to_end(&mut Vec::new())).await);
        let error = feed.finish().await.unwrap_err().to_string();
        assert!(
            error.contains("gzip -dc) unexpected exit status 1: ") && error.contains("format"),
            "{error}"
        );
        let missing = Packer::find(SaveFormat::Xz, "/nonexistent", "save").unwrap_err().to_string();
        assert_eq!(
            missing,
            "Compression program for save image format in configuration file isn't available"
        );
    }

    #[tokio::test]
    async fn a_full_disk_ends_the_stream() {
        let growing = Growing::create(Path::new("/dev/full"), "mark", Cache::Used, None).unwrap();
        let (end, drain) = Drain::open(&growing, Vec::new(), None).await.unwrap();
        let writing = tokio::task::spawn_blocking(move || File::from(end).write_all(&vec![1; 8 * CHUNK]));
        let error = drain.finish().await.unwrap_err().to_string();
        assert_eq!(error, "cannot write to '/dev/full': No space left on device");
        assert_eq!(writing.await.unwrap().unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }

    /// What is done as root is refused as a server refuses it that takes root for nobody.
    fn squash_root() {
        let squashed = CapabilitySet::DAC_OVERRIDE | CapabilitySet::DAC_READ_SEARCH;
        let mut own = rustix::thread::capabilities(None).unwrap();
        own.effective -= squashed;
        own.permitted -= squashed;
        rustix::thread::set_capabilities(None, own).unwrap();
    }

    #[test]
    fn where_root_is_squashed_the_guest_s_user_reads_and_writes() {
        if Ids::own().user != 0 {
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let share = directory.path().join("share");
        fs::create_dir(&share).unwrap();
        fs::set_permissions(&share, fs::Permissions::from_mode(0o700)).unwrap();
        let ids = Ids { user: 64_999, group: 64_998 };
        std::os::unix::fs::chown(&share, Some(ids.user), Some(ids.group)).unwrap();
        let path = share.join("saved");
        // Capabilities are a thread's own, and this one does nothing else.
        let squashed = std::thread::spawn({
            let path = path.clone();
            move || {
                squash_root();
                Growing::create(&path, "mark", Cache::Used, None).unwrap_err();
                drop(Growing::create(&path, "mark", Cache::Used, Some(ids)).unwrap());
                let growing = Growing::create(&path, "mark", Cache::Used, Some(ids)).unwrap();
                growing.bypassing().unwrap();
                growing.write_head(b"HEAD").unwrap();
                growing.commit().unwrap();
                open(&path, Cache::Used, None).unwrap_err();
                let mut read = String::new();
                open(&path, Cache::Used, Some(ids)).unwrap().read_to_string(&mut read).unwrap();
                read
            }
        });
        assert_eq!(squashed.join().unwrap(), "HEAD");
        assert_eq!(fs::metadata(&path).unwrap().uid(), ids.user);
        assert_eq!(fs::read_dir(&share).unwrap().count(), 1);
    }
}
