//! The one place that starts processes, and the one way to wait for them.
//!
//! A process is held by its pidfd: it becomes readable the moment the process is gone, whoever its parent
//! is, and a signal sent through it never reaches another process that got the same number.
//!
//! ```text
//! Command ──start──▶ Child ──release──▶ Process ──exited──▶ Exit
//!    │                 └─drop: killed      └─drop: lives on
//!    └─────capture──▶ Captured
//! Process::open (a process that an earlier daemon started) ─▶ Process
//! ```

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, WaitId, WaitIdOptions};
use thiserror::Error;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::accounts::Ids;
use super::reason::Reason;

pub use rustix::process::Signal;
use rustix::process::{Resource, Rlimit, setrlimit};

/// Why a helper did not give its output.
#[derive(Debug, Error)]
pub enum ProcessError {
    #[error("cannot execute binary {}: {}", program.display(), Reason(source))]
    Start { program: PathBuf, source: io::Error },
    #[error("{} did not finish within {} ms", program.display(), limit.as_millis())]
    Timeout { program: PathBuf, limit: Duration },
    #[error("{} printed more than {limit} bytes", program.display())]
    TooMuchOutput { program: PathBuf, limit: usize },
    #[error("cannot read from {}: {}", program.display(), Reason(source))]
    Io { program: PathBuf, source: io::Error },
}

/// A process about to be started: its own session, `/` as directory, an empty environment, /dev/null on
/// the three standard descriptors and no other descriptor, until something else is asked for.
#[derive(Debug)]
pub struct Command {
    program: PathBuf,
    args: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    directory: PathBuf,
    stdin: Option<OwnedFd>,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
    passed: Vec<OwnedFd>,
    umask: u32,
    may_lock: Option<LockLimit>,
    credentials: Option<Credentials>,
}

/// Whom a process runs as.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Credentials {
    user: rustix::process::Uid,
    group: rustix::process::Gid,
    groups: Vec<rustix::process::Gid>,
}

impl Command {
    pub fn new(program: impl Into<PathBuf>) -> Self {
        Self {
            program: program.into(),
            args: Vec::new(),
            env: Vec::new(),
            directory: PathBuf::from("/"),
            stdin: None,
            stdout: None,
            stderr: None,
            passed: Vec::new(),
            umask: 0o022,
            may_lock: None,
            credentials: None,
        }
    }

    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    pub fn args<A: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.args.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.env.push((name.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }

    pub fn directory(mut self, directory: impl Into<PathBuf>) -> Self {
        self.directory = directory.into();
        self
    }

    pub fn stdin(mut self, descriptor: OwnedFd) -> Self {
        self.stdin = Some(descriptor);
        self
    }

    pub fn stdout(mut self, descriptor: OwnedFd) -> Self {
        self.stdout = Some(descriptor);
        self
    }

    pub fn stderr(mut self, descriptor: OwnedFd) -> Self {
        self.stderr = Some(descriptor);
        self
    }

    /// Lets the process inherit a descriptor, under the number it has here (its `as_raw_fd`).
    ///
    /// Keeping the number keeps it clear of descriptors that starting a process itself needs.
    pub fn pass(mut self, descriptor: OwnedFd) -> Self {
        self.passed.push(descriptor);
        self
    }

    pub fn umask(mut self, umask: u32) -> Self {
        self.umask = umask;
        self
    }

    /// Lets the process lock so much memory, where this one may allow that: [`Process::lock_limit`] tells.
    pub fn may_lock(mut self, limit: LockLimit) -> Self {
        self.may_lock = Some(limit);
        self
    }

    /// Runs the process as another user with all groups of his, which only root can.
    pub fn run_as(mut self, ids: Ids) -> Self {
        use rustix::process::{Gid, Uid};
        self.credentials = (ids != Ids::own()).then(|| Credentials {
            user: Uid::from_raw(ids.user),
            group: Gid::from_raw(ids.group),
            groups: ids.groups().into_iter().map(Gid::from_raw).collect(),
        });
        self
    }

    /// Program and arguments for a sentence about them.
    pub fn line(&self) -> String {
        let words =
            std::iter::once(self.program.as_os_str()).chain(self.args.iter().map(OsString::as_os_str));
        words.map(OsStr::to_string_lossy).collect::<Vec<_>>().join(" ")
    }

    /// Starts the process; ready when the program has been executed. Dropping the future kills it.
    pub async fn start(self) -> Result<Child, ProcessError> {
        let program = self.program.clone();
        let started = tokio::task::spawn_blocking(move || spawn(self)).await;
        started
            .unwrap_or_else(|error| Err(io::Error::other(error)))
            .map_err(|source| ProcessError::Start { program, source })
    }

    /// Runs a helper to its end and takes what it prints on stdout and stderr, at most `max_output` bytes
    /// each. It is killed when it takes longer than `limit`, or prints more.
    pub async fn capture(self, limit: Duration, max_output: usize) -> Result<Captured, ProcessError> {
        let program = self.program.clone();
        tokio::time::timeout(limit, self.capture_all(max_output))
            .await
            .unwrap_or(Err(ProcessError::Timeout { program, limit }))
    }

    async fn capture_all(self, max_output: usize) -> Result<Captured, ProcessError> {
        let program = self.program.clone();
        let failed = |source| ProcessError::Io { program: program.clone(), source };
        let (stdout, stdout_end) = tokio_pipe().map_err(failed)?;
        let (stderr, stderr_end) = tokio_pipe().map_err(failed)?;
        let child = self.stdout(stdout_end).stderr(stderr_end).start().await?;
        let read = tokio::try_join!(read_all(stdout, max_output), read_all(stderr, max_output));
        let (stdout, stderr) = read.map_err(|error| match error {
            ReadError::TooMuch => ProcessError::TooMuchOutput { program: program.clone(), limit: max_output },
            ReadError::Io(error) => failed(error),
        })?;
        let exit = child.process().exited().await.map_err(failed)?;
        Ok(Captured { exit, stdout, stderr })
    }
}

/// What a helper left behind.
#[derive(Debug, Clone)]
pub struct Captured {
    pub exit: Exit,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
}

enum ReadError {
    TooMuch,
    Io(io::Error),
}

async fn read_all(pipe: tokio::net::unix::pipe::Receiver, max: usize) -> Result<Vec<u8>, ReadError> {
    use tokio::io::AsyncReadExt;
    let mut output = Vec::new();
    pipe.take(max as u64 + 1).read_to_end(&mut output).await.map_err(ReadError::Io)?;
    if output.len() > max { Err(ReadError::TooMuch) } else { Ok(output) }
}

fn tokio_pipe() -> io::Result<(tokio::net::unix::pipe::Receiver, OwnedFd)> {
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    Ok((tokio::net::unix::pipe::Receiver::from_owned_fd(read)?, write))
}

#[expect(clippy::disallowed_methods, reason = "the one place that starts processes")]
#[allow(unsafe_code)]
fn spawn(command: Command) -> io::Result<Child> {
    use std::os::unix::process::CommandExt;

    let stdio = |descriptor: Option<OwnedFd>| descriptor.map_or_else(Stdio::null, Stdio::from);
    let passed = command.passed;
    let (umask, may_lock, credentials) = (command.umask, command.may_lock, command.credentials);
    let numbers: Vec<_> = passed.iter().map(AsRawFd::as_raw_fd).collect();
    let mut starter = std::process::Command::new(&command.program);
    starter
        .args(&command.args)
        .env_clear()
        .envs(command.env)
        .current_dir(&command.directory)
        .stdin(stdio(command.stdin))
        .stdout(stdio(command.stdout))
        .stderr(stdio(command.stderr));
    // SAFETY: the closure runs in the new process between fork and exec and makes system calls only; it
    // neither allocates nor takes a lock.
    unsafe {
        starter.pre_exec(move || {
            prepare(&numbers, umask)?;
            if let Some(LockLimit { current, maximum }) = may_lock {
                let _ = setrlimit(Resource::Memlock, Rlimit { current, maximum });
            }
            credentials.as_ref().map_or(Ok(()), become_another)
        })
    };
    let mut child = starter.spawn()?;
    drop(passed);
    // The process cannot vanish before the pidfd is open: nobody waits for it but us.
    match Process::find(child.id()) {
        Ok(process) => Ok(Child { process: Some(process) }),
        Err(error) => {
            let _ = child.kill();
            let _ = child.wait();
            Err(error)
        }
    }
}

/// In the new process, before exec.
#[allow(unsafe_code)]
fn prepare(passed: &[i32], umask: u32) -> io::Result<()> {
    use rustix::io::{FdFlags, fcntl_setfd};
    use std::os::fd::BorrowedFd;

    rustix::process::setsid()?;
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(umask));
    be_no_better_off();
    // Whatever a library opened without close-on-exec stays here. A kernel before 5.11 lacks the call; there
    // the close-on-exec flag that all of ours carry has to do.
    //
    // SAFETY: marking descriptors touches no memory.
    let _ = unsafe { nix::libc::close_range(3, u32::MAX, nix::libc::CLOSE_RANGE_CLOEXEC as i32) };
    for number in passed {
        // SAFETY: `spawn` holds the owner of each number until the process has been started.
        let descriptor = unsafe { BorrowedFd::borrow_raw(*number) };
        fcntl_setfd(descriptor, FdFlags::empty())?;
    }
    Ok(())
}

/// In the new process, before exec: a daemon may be spared when memory runs out, and what it starts is not.
fn be_no_better_off() {
    use rustix::fs::{Mode, OFlags, open};

    let Ok(score) = open(c"/proc/self/oom_score_adj", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()) else {
        return;
    };
    let mut said = [0; 1];
    // Where there is none to be read there is none to be changed.
    if rustix::io::read(&score, &mut said).is_ok() && said == *b"-" {
        let _ = rustix::io::pwrite(&score, b"0", 0);
    }
}

/// In the new process, before exec: it has one thread, so this concerns all of it.
fn become_another(credentials: &Credentials) -> io::Result<()> {
    rustix::thread::set_thread_groups(&credentials.groups)?;
    rustix::thread::set_thread_gid(credentials.group)?;
    rustix::thread::set_thread_uid(credentials.user)?;
    Ok(())
}

/// A process that was just started and is killed when this is dropped.
#[derive(Debug)]
pub struct Child {
    process: Option<Process>,
}

impl Child {
    pub fn process(&self) -> &Process {
        #[expect(clippy::expect_used, reason = "taken by `release` and `drop` only, which end the Child")]
        self.process.as_ref().expect("a child holds its process")
    }

    /// Lets the process live on its own; it is not killed any more.
    pub fn release(mut self) -> Process {
        #[expect(clippy::expect_used, reason = "taken here and in `drop` only, which end the Child")]
        self.process.take().expect("a child holds its process")
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let Some(process) = self.process.take() else { return };
        let _ = process.signal(Signal::KILL);
        // Someone has to wait for it, or it stays a zombie as long as the daemon lives.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move { process.exited().await });
        }
    }
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    Code(i32),
    Signal(i32),
    /// It was another process's child; only its parent learns how it ended.
    Unknown,
}

impl Exit {
    pub fn success(self) -> bool {
        self == Self::Code(0)
    }
}

/// How many bytes of memory a process may keep from being swapped, and how far it can raise that itself; None: any.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LockLimit {
    pub current: Option<u64>,
    pub maximum: Option<u64>,
}

impl LockLimit {
    pub fn of(bytes: u64) -> Self {
        Self { current: Some(bytes), maximum: Some(bytes) }
    }
}

/// A process, ours or another's, running or gone. Clones are the same process.
#[derive(Debug, Clone)]
pub struct Process {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    pid: Pid,
    start_time: u64,
    pidfd: AsyncFd<OwnedFd>,
    exit: Mutex<Option<Exit>>,
}

/// See [`Process::give_way`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    Given,
    Equal,
}

impl Process {
    /// Takes hold of a running process that started at `start_time` (see [`Process::start_time`]). Fails
    /// with [`io::ErrorKind::NotFound`] when it is gone, also when another one has its number now.
    pub fn open(pid: u32, start_time: u64) -> io::Result<Self> {
        let process = Self::find(pid)?;
        if process.inner.start_time != start_time || process.is_gone()? {
            return Err(io::ErrorKind::NotFound.into());
        }
        Ok(process)
    }

    /// Takes hold of whatever process has this number now; one that is gone but not yet waited for, too.
    #[allow(unsafe_code)]
    pub fn find(pid: u32) -> io::Result<Self> {
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidInput)?;
        let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty()).map_err(|error| match error {
            rustix::io::Errno::SRCH => io::ErrorKind::NotFound.into(),
            error => io::Error::from(error),
        })?;
        // SAFETY: an OwnedFd answers the same open descriptor for as long as it lives.
        let pidfd = unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE) }?;
        // Read after the pidfd was opened: if it is the expected one, the pidfd is of that process too.
        let start_time = start_time(pid)?;
        Ok(Self { inner: Arc::new(Inner { pid, start_time, pidfd, exit: Mutex::new(None) }) })
    }

    /// All processes whose arguments have these bytes somewhere, as far as this one may see them.
    pub fn with_arguments(part: &[u8]) -> io::Result<Vec<Self>> {
        let has_it = |arguments: &[u8]| arguments.windows(part.len()).any(|bytes| bytes == part);
        let mut found = Vec::new();
        for entry in std::fs::read_dir("/proc")? {
            let entry = entry?;
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            // Looked at before it is held, because most are others; and again then, because it may be another by now.
            if !std::fs::read(entry.path().join("cmdline")).is_ok_and(|line| has_it(&line)) {
                continue;
            }
            let Ok(process) = Self::find(pid) else { continue };
            if process.arguments().is_ok_and(|arguments| has_it(&arguments.join(&0))) {
                found.push(process);
            }
        }
        Ok(found)
    }

    pub fn pid(&self) -> u32 {
        self.inner.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// Has the scheduler prefer other sessions to this process's own, or not any more. Only root can take it
    /// back, so for others nothing changes; nor where the kernel does not group processes by session.
    pub fn give_way(&self, way: Way) {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let nice = match way {
            // A third of the others' share.
            Way::Given => "5",
            Way::Equal => "0",
        };
        match std::fs::write(format!("/proc/{}/autogroup", self.pid()), nice) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::debug!(pid = self.pid(), %error, "cannot set how a session is scheduled");
            }
            _ => {}
        }
    }

    /// Lets it lock so much memory; answers how much it could lock before.
    pub fn limit_locked(&self, limit: LockLimit) -> io::Result<LockLimit> {
        use rustix::process::prlimit;
        let LockLimit { current, maximum } = limit;
        let before = prlimit(Some(self.inner.pid), Resource::Memlock, Rlimit { current, maximum })?;
        Ok(LockLimit { current: before.current, maximum: before.maximum })
    }

    /// How much memory it may lock.
    pub fn lock_limit(&self) -> io::Result<LockLimit> {
        let limits = std::fs::read_to_string(format!("/proc/{}/limits", self.pid()))?;
        // Max locked memory         8388608              unlimited            bytes
        let line = limits.lines().find_map(|line| line.strip_prefix("Max locked memory"));
        let mut amounts = line.unwrap_or_default().split_whitespace().map(|amount| amount.parse().ok());
        match (amounts.next(), amounts.next()) {
            (Some(current), Some(maximum)) => Ok(LockLimit { current, maximum }),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    /// The arguments it was started with; none once it is gone.
    pub fn arguments(&self) -> io::Result<Vec<Vec<u8>>> {
        let line = std::fs::read(format!("/proc/{}/cmdline", self.pid()))?;
        // Read before this look: if the process is still there, they are not those of a later one.
        if self.is_gone()? {
            return Err(io::ErrorKind::NotFound.into());
        }
        Ok(line.split(|byte| *byte == 0).map(<[u8]>::to_vec).collect())
    }

    /// What is known of how it was started. Fails with [`io::ErrorKind::PermissionDenied`] for a process of
    /// another user that this one has no right to.
    pub fn origin(&self) -> io::Result<Origin> {
        let entry = |name: &str| Path::new("/proc").join(self.pid().to_string()).join(name);
        let origin = Origin {
            program: std::fs::read_link(entry("exe"))?,
            directory: std::fs::read_link(entry("cwd"))?,
            env: split_zero(&std::fs::read(entry("environ"))?),
            // The last one ends with a zero, too.
            args: split_zero(&std::fs::read(entry("cmdline"))?),
        };
        match self.is_gone()? {
            true => Err(io::ErrorKind::NotFound.into()),
            false => Ok(origin),
        }
    }

    /// Whom it runs as.
    pub fn owner(&self) -> io::Result<Ids> {
        use std::os::unix::fs::MetadataExt;
        let found = std::fs::metadata(format!("/proc/{}", self.pid()))?;
        match self.is_gone()? {
            true => Err(io::ErrorKind::NotFound.into()),
            false => Ok(Ids { user: found.uid(), group: found.gid() }),
        }
    }

    /// Clock ticks from boot to its start; with the pid this names one process for good.
    pub fn start_time(&self) -> u64 {
        self.inner.start_time
    }

    /// Whether both mean the same process.
    pub fn is(&self, other: &Self) -> bool {
        (self.inner.pid, self.inner.start_time) == (other.inner.pid, other.inner.start_time)
    }

    /// Sends a signal. A process that is already gone is no error.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        match rustix::process::pidfd_send_signal(self.inner.pidfd.get_ref(), signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Whether it ended, asked without waiting.
    pub fn is_gone(&self) -> io::Result<bool> {
        let mut waiting = [PollFd::new(&self.inner.pidfd, PollFlags::IN)];
        Ok(poll(&mut waiting, Some(&rustix::event::Timespec::default()))? > 0)
    }

    /// Waits for its end. Any number of tasks may wait, and each may give up.
    pub async fn exited(&self) -> io::Result<Exit> {
        loop {
            let mut ready = self.inner.pidfd.readable().await?;
            if self.is_gone()? {
                return self.collect();
            }
            ready.clear_ready();
        }
    }

    /// Waits for its end for at most `limit`; `None` when it is still there then.
    pub async fn exited_within(&self, limit: Duration) -> io::Result<Option<Exit>> {
        tokio::time::timeout(limit, self.exited()).await.map_or(Ok(None), |exit| exit.map(Some))
    }

    /// Takes the exit status of a process that is gone, so that it does not stay a zombie.
    fn collect(&self) -> io::Result<Exit> {
        let mut known = self.inner.exit.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(exit) = *known {
            return Ok(exit);
        }
        let id = WaitId::PidFd(self.inner.pidfd.get_ref().as_fd());
        let exit = match rustix::process::waitid(id, WaitIdOptions::EXITED | WaitIdOptions::NOHANG) {
            Ok(Some(status)) => match (status.exit_status(), status.terminating_signal()) {
                (Some(code), _) => Exit::Code(code),
                (None, Some(signal)) => Exit::Signal(signal),
                (None, None) => Exit::Unknown,
            },
            Ok(None) | Err(rustix::io::Errno::CHILD) => Exit::Unknown,
            Err(error) => return Err(error.into()),
        };
        *known = Some(exit);
        Ok(exit)
    }
}

/// How a process was started.
#[derive(Debug, Clone)]
pub struct Origin {
    pub program: PathBuf,
    pub directory: PathBuf,
    /// `NAME=value` each.
    pub env: Vec<String>,
    /// The first is what the program was called as.
    pub args: Vec<String>,
}

fn split_zero(text: &[u8]) -> Vec<String> {
    let text = text.strip_suffix(b"\0").unwrap_or(text);
    text.split(|byte| *byte == 0).map(|part| String::from_utf8_lossy(part).into_owned()).collect()
}

/// When a process started, in clock ticks since the host's boot: the 22nd field of /proc/PID/stat.
pub fn start_time(pid: Pid) -> io::Result<u64> {
    let path = format!("/proc/{}/stat", pid.as_raw_nonzero());
    parse_start_time(&std::fs::read_to_string(Path::new(&path))?)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("no start time in {path}")))
}

fn parse_start_time(stat: &str) -> Option<u64> {
    // The second field is the command's name in parentheses, which may itself hold blanks and parentheses.
    let (_, after_name) = stat.rsplit_once(')')?;
    after_name.split_ascii_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::fd::AsRawFd;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(20);

    fn shell(script: &str) -> Command {
        Command::new("/bin/sh").args(["-c", script])
    }

    async fn output_of(command: Command) -> String {
        let captured = command.capture(LIMIT, 1 << 20).await.unwrap();
        assert!(captured.exit.success(), "{captured:?}");
        String::from_utf8(captured.stdout).unwrap()
    }

    #[tokio::test]
    async fn a_process_has_its_own_session_and_only_what_it_was_given() {
        let (mut end, leaked) = std::io::pipe().unwrap();
        rustix::io::fcntl_setfd(&leaked, rustix::io::FdFlags::empty()).unwrap();
        let (mut kept, passed) = std::io::pipe().unwrap();
        let number = passed.as_raw_fd();
        let script = format!(
            "echo $A $(pwd) $(umask); env | grep -c PATH=; echo given >/proc/$$/fd/{number}; \
             test $$ = $(cut -d' ' -f6 /proc/$$/stat) && echo session; set -- /proc/$$/fd/*; echo $#"
        );
        let command = shell(&script).env("A", "b").directory("/tmp").umask(0o027).pass(passed.into());
        // 0, 1, 2, the passed one, and the directory being listed.
        let printed = output_of(command.env("PATH", "/usr/bin:/bin")).await;
        assert_eq!(printed, "b /tmp 0027\n1\nsession\n5\n");
        let mut text = String::new();
        kept.read_to_string(&mut text).unwrap();
        assert_eq!(text, "given\n");
        drop(leaked);
        assert_eq!(end.read_to_string(&mut text).unwrap(), 0);
    }

    #[tokio::test]
    async fn a_process_runs_as_whom_it_is_told_to() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let ids = Ids { user: 64_999, group: 64_998 };
        let printed =
            output_of(shell("id -u; id -g; id -G; cat /proc/self/status | grep ^CapEff").run_as(ids));
        assert_eq!(printed.await, "64999\n64998\n64998\nCapEff:\t0000000000000000\n");
    }

    #[tokio::test]
    async fn every_waiter_learns_how_it_ended() {
        for (script, expected) in [("exit 3", Exit::Code(3)), ("kill -9 $$", Exit::Signal(9))] {
            let process = shell(script).start().await.unwrap().release();
            let (one, two) = tokio::join!(process.exited(), process.exited());
            assert_eq!((one.unwrap(), two.unwrap()), (expected, expected));
            assert_eq!(process.exited_within(Duration::ZERO).await.unwrap(), Some(expected));
            process.signal(Signal::TERM).unwrap();
        }
    }

    #[tokio::test]
    async fn a_dropped_child_is_killed_and_collected() {
        let child = shell("exec sleep 1000").start().await.unwrap();
        let process = child.process().clone();
        assert_eq!(process.exited_within(Duration::from_millis(1)).await.unwrap(), None);
        drop(child);
        assert_eq!(process.exited().await.unwrap(), Exit::Signal(9));
    }

    #[tokio::test]
    async fn a_program_that_is_not_there_says_so() {
        let error = Command::new("/no/such/program").start().await.unwrap_err();
        assert_eq!(error.to_string(), "cannot execute binary /no/such/program: No such file or directory");
    }

    #[tokio::test]
    async fn helpers_are_bounded_in_time_and_output() {
        let slow = shell("exec sleep 1000").capture(Duration::from_millis(20), 10).await.unwrap_err();
        assert!(matches!(slow, ProcessError::Timeout { .. }), "{slow}");
        let loud = shell("while :; do echo loud; done").capture(LIMIT, 1000).await.unwrap_err();
        assert!(matches!(loud, ProcessError::TooMuchOutput { .. }), "{loud}");
        let both = shell("echo out; echo err >&2; exit 7").capture(LIMIT, 100).await.unwrap();
        assert_eq!((both.stdout, both.stderr, both.exit), (b"out\n".into(), b"err\n".into(), Exit::Code(7)));
    }

    #[tokio::test]
    async fn a_process_is_taken_hold_of_by_number_and_start_time() {
        let child = shell("exec sleep 1000").start().await.unwrap();
        let (pid, start_time) = (child.process().pid(), child.process().start_time());
        let opened = Process::open(pid, start_time).unwrap();
        assert_eq!(Process::open(pid, start_time + 1).unwrap_err().kind(), io::ErrorKind::NotFound);
        opened.signal(Signal::TERM).unwrap();
        assert_eq!(child.process().exited().await.unwrap(), Exit::Signal(15));
        assert_eq!(Process::open(pid, start_time).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[tokio::test]
    async fn the_end_of_another_process_s_child_is_seen() {
        // The grandchild goes to another parent when the shell that started it ends.
        let printed = output_of(shell("sleep 1000 >/dev/null 2>&1 & echo $!")).await;
        let pid: u32 = printed.trim().parse().unwrap();
        let process = Process::find(pid).unwrap();
        assert!(!process.is_gone().unwrap());
        process.signal(Signal::KILL).unwrap();
        assert_eq!(process.exited().await.unwrap(), Exit::Unknown);
    }

    #[tokio::test]
    async fn processes_are_found_by_what_they_were_started_with() {
        let (stdin, _open) = std::io::pipe().unwrap();
        let waits = shell("read line # by-this-very-word").stdin(stdin.into());
        let child = waits.start().await.unwrap();
        let found = Process::with_arguments(b"by-this-very-word").unwrap();
        assert!(found.len() == 1 && found[0].is(child.process()), "{found:?}");
    }

    #[test]
    fn a_name_cannot_disturb_the_start_time() {
        let tail = "S 1 1 1 0 -1 4194368 4546 5224 0 6 7 7 2 1 20 0 19 0 162582 1244405760";
        for name in ["(qemu)", "(a b) c)", "() R 1 2 3)"] {
            assert_eq!(parse_start_time(&format!("42 {name} {tail}")), Some(162_582));
        }
        assert_eq!(parse_start_time("42 (x) S 1"), None);
    }
}
