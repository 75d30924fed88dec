//! One daemon in a root of its own, and the clients that talk to it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, geteuid, kill_process, pidfd_open};
use tempfile::TempDir;

use super::guest::Guest;
use super::program::{LIMIT, Program, Ran, command, eventually, run};

/// Whose daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The binary at this path.
    Ours(&'static str),
    /// libvirt's, through `compat/upstream`.
    Upstream,
    /// The binary at this path where libvirt's own daemon would be, through `compat/upstream`.
    Instead(&'static str),
}

impl Kind {
    /// Ours, unless `FERROVIRT_TEST_DAEMON=upstream` asks for the original.
    pub fn for_tests(ours: &'static str) -> Self {
        match std::env::var("FERROVIRT_TEST_DAEMON") {
            Ok(daemon) if daemon == "upstream" => Self::Upstream,
            _ => Self::Ours(ours),
        }
    }

    /// The `ferrovirtd` that was built beside this program.
    pub fn built() -> Self {
        let this = std::env::current_exe().expect("a running program has a path");
        let path = this.with_file_name("ferrovirtd");
        assert!(path.exists(), "{} is not built: cargo build --workspace --bins", path.display());
        Self::Ours(Box::leak(path.to_string_lossy().into_owned().into_boxed_str()))
    }
}

/// Whether libvirt's own daemon can be started: its programs are installed, and this runs as root.
pub fn upstream_is_here() -> bool {
    geteuid().is_root() && ["libvirtd", "virtlogd"].iter().all(|name| run("which", &[name]).success)
}

/// A running daemon. Dropping it ends it and every guest it left.
#[derive(Debug)]
pub struct Daemon {
    kind: Kind,
    root: TempDir,
    /// The network namespace that it is in, if not the test's own.
    network: Option<String>,
    child: Child,
}

impl Daemon {
    /// A daemon with nothing defined, ready for connections; `config` is lines of `libvirtd.conf`.
    pub fn start(kind: Kind, config: &str) -> Self {
        // As `compat/upstream` has it: files of the sample guest are shared by tests, so nobody notes their owners.
        Self::start_with(kind, config, "user = \"root\"\ngroup = \"root\"\nremember_owner = 0\n")
    }

    /// The same with `guests` as `qemu.conf`, below a root that every user can reach.
    pub fn start_with(kind: Kind, config: &str, guests: &str) -> Self {
        Self::start_in(None, kind, config, guests)
    }

    /// The same in a network namespace, by its name, where ours listens as its configuration says.
    pub fn start_in(network: Option<&str>, kind: Kind, config: &str, guests: &str) -> Self {
        // Short: the sockets of a guest lie deep below and have 107 bytes.
        let root = tempfile::Builder::new().prefix("fv").tempdir_in("/tmp").expect("/tmp takes a directory");
        let etc = root.path().join("etc/libvirt");
        fs::create_dir_all(&etc).expect("the directory is ours");
        fs::write(etc.join("libvirtd.conf"), config).expect("the directory is ours");
        let everybody = fs::Permissions::from_mode(0o755);
        fs::set_permissions(root.path(), everybody).expect("the directory is ours");
        fs::write(etc.join("qemu.conf"), guests).expect("the directory is ours");
        let network = network.map(str::to_owned);
        let child = Self::spawn(kind, root.path(), network.as_deref(), None);
        let mut daemon = Self { kind, root, network, child };
        daemon.wait_ready();
        daemon
    }

    fn spawn(kind: Kind, root: &Path, network: Option<&str>, search: Option<&str>) -> Child {
        let mut daemon = match kind {
            Kind::Upstream => {
                let mut upstream = command(concat!(env!("CARGO_MANIFEST_DIR"), "/upstream"));
                upstream.arg(root);
                upstream
            }
            Kind::Instead(path) => {
                let mut instead = command(concat!(env!("CARGO_MANIFEST_DIR"), "/upstream"));
                instead.arg(root).env("FERROVIRT_INSTEAD", path);
                instead
            }
            Kind::Ours(path) => {
                let mut ours = match network {
                    Some(network) => {
                        let mut inside = command("ip");
                        inside.args(["netns", "exec", network, path, "--listen"]);
                        inside
                    }
                    None => command(path),
                };
                ours.arg("--root").arg(root);
                // The host's polkit has nothing to say here; libvirt's own daemon looks here for it as well.
                let bus = root.join("run/dbus/system_bus_socket");
                ours.env("DBUS_SYSTEM_BUS_ADDRESS", format!("unix:path={}", bus.display()));
                ours
            }
        };
        // What a test puts there stands before the host's own tools.
        let tools = std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()).collect::<Vec<_>>();
        let tools = std::env::join_paths([root.join("tools")].into_iter().chain(tools)).expect("it was one");
        daemon.env("PATH", tools);
        if let Some(search) = search {
            daemon.env("PATH", search);
        }
        let log = fs::File::options().create(true).append(true).open(root.join("daemon.log")).expect("ours");
        daemon.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().expect("the daemon is built")
    }

    fn wait_ready(&mut self) {
        eventually("the daemon listens", || {
            if let Some(status) = self.child.try_wait().expect("it is our child") {
                panic!("the daemon ended with {status}: {}", self.log());
            }
            UnixStream::connect(self.socket()).ok()
        });
    }

    /// What the daemon logged so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.path("daemon.log")).unwrap_or_default()
    }

    pub fn path(&self, below: &str) -> PathBuf {
        self.root.path().join(below)
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn socket(&self) -> PathBuf {
        self.path("run/libvirt/libvirt-sock")
    }

    pub fn uri(&self) -> String {
        format!("qemu+unix:///system?socket={}", self.socket().display())
    }

    pub fn read_only_uri(&self) -> String {
        format!("qemu+unix:///system?socket={}", self.path("run/libvirt/libvirt-sock-ro").display())
    }

    // ---- clients ----

    pub fn virsh(&self, arguments: &[&str]) -> Ran {
        let uri = self.uri();
        let all = [&["virsh", "-q", "-c", &uri], arguments].concat();
        match arguments.first().is_some_and(|command| WATCHED.contains(command)) {
            true => run_watched(&all),
            false => run(all[0], &all[1..]),
        }
    }

    /// A virsh that must succeed; its output.
    #[track_caller]
    pub fn ok(&self, arguments: &[&str]) -> String {
        self.virsh(arguments).ok()
    }

    /// Runs a script in libvirt-python, with `conn` open.
    pub fn python(&self, script: &str) -> Ran {
        let script =
            format!("{}\nconn = libvirt.open('{}')\n{script}", include_str!("prelude.py"), self.uri());
        run("/usr/bin/python3", &["-c", &script])
    }

    /// The same beside the test.
    pub fn python_beside(&self, script: &str) -> Program {
        let mut python = command("/usr/bin/python3");
        let script =
            format!("{}\nconn = libvirt.open('{}')\n{script}", include_str!("prelude.py"), self.uri());
        python.args(["-u", "-c", &script]);
        Program::start(python)
    }

    /// Prints every lifecycle event as `NAME event detail`, from now on.
    pub fn events(&self) -> Program {
        let mut watcher = self.python_beside("watch_events(conn)");
        watcher.expect("watching\n");
        watcher
    }

    /// A guest's console through a stream: what is sent to it is typed, what it prints is read.
    pub fn console(&self, name: &str) -> Program {
        let mut console = self.python_beside(&format!("console(conn, '{name}')"));
        console.expect("connected\n");
        console
    }

    // ---- guests ----

    pub fn define(&self, guest: &Guest) {
        self.with_xml(&guest.xml(), |file| self.ok(&["define", file]));
    }

    /// Runs a transient guest.
    pub fn create(&self, guest: &Guest) {
        self.with_xml(&guest.xml(), |file| self.ok(&["create", file]));
    }

    /// Defines and starts.
    pub fn run(&self, guest: &Guest) {
        self.define(guest);
        self.ok(&["start", &guest.name]);
    }

    /// Puts a description where a client finds it.
    pub fn with_xml<T>(&self, xml: &str, use_it: impl FnOnce(&str) -> T) -> T {
        let file = tempfile::NamedTempFile::new_in(self.root.path()).expect("the directory is ours");
        fs::write(file.path(), xml).expect("the file is ours");
        use_it(file.path().to_str().expect("a path of ASCII"))
    }

    pub fn state(&self, name: &str) -> String {
        self.ok(&["domstate", name]).trim().to_owned()
    }

    /// The process of a running guest, by its pid file.
    pub fn qemu_pid(&self, name: &str) -> i32 {
        let file = self.path(&format!("run/libvirt/qemu/{name}.pid"));
        let text = fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        text.trim().parse().expect("a pid file has a number")
    }

    /// All guests' processes that are still there.
    pub fn qemu_pids(&self) -> Vec<i32> {
        let Ok(files) = fs::read_dir(self.path("run/libvirt/qemu")) else { return Vec::new() };
        files
            .filter_map(|file| Some(file.ok()?.path()))
            .filter(|path| path.extension().is_some_and(|extension| extension == "pid"))
            .filter_map(|path| fs::read_to_string(path).ok()?.trim().parse().ok())
            .filter(|pid| self.is_guest(*pid))
            .collect()
    }

    /// A pid file may be stale and its number another's: only a QEMU that names this root is a guest. One that is
    /// played does so in its environment.
    fn is_guest(&self, pid: i32) -> bool {
        let read = |file: &str| fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
        let names = |text: &[u8], part: &str| String::from_utf8_lossy(text).contains(part);
        let root = self.root.path().to_string_lossy();
        match self.kind {
            Kind::Ours(_) => names(&[read("cmdline"), read("environ")].concat(), &root),
            _ => names(&read("cmdline"), "qemu"),
        }
    }

    // ---- ends and beginnings ----

    /// Ends the daemon as `kill -9` does; guests stay.
    pub fn kill(&mut self) {
        self.child.kill().expect("it is our child");
        self.child.wait().expect("it is our child");
    }

    /// Ends the daemon as an administrator does, and waits for it.
    pub fn terminate(&mut self) -> std::process::ExitStatus {
        signal(self.pid().cast_signed(), Signal::TERM);
        eventually("the daemon ends on SIGTERM", || self.child.try_wait().expect("it is our child"))
    }

    /// Who the next daemon on this root is.
    pub fn hand_over_to(&mut self, kind: Kind) {
        self.kind = kind;
    }

    /// Starts the next daemon on the same root; answers how long it took to listen.
    pub fn restart(&mut self) -> Duration {
        self.restart_with(None)
    }

    /// The same, with this path for programs.
    pub fn restart_searching(&mut self, path: &str) -> Duration {
        self.restart_with(Some(path))
    }

    fn restart_with(&mut self, search: Option<&str>) -> Duration {
        assert!(self.child.try_wait().expect("it is our child").is_some(), "the one before still runs");
        let begin = Instant::now();
        // A killed daemon leaves its socket file, on which nobody listens.
        self.child = Self::spawn(self.kind, self.root.path(), self.network.as_deref(), search);
        self.wait_ready();
        begin.elapsed()
    }
}

/// What virsh has a second thread do. It misses the end of what ends before it has begun to wait, and waits for ever.
const WATCHED: [&str; 4] = ["dump", "managedsave", "migrate", "save"];

/// On one processor, and by long turns, its first thread waits before its second one begins. Turns have an end: a
/// third thread spins when a connection is lost, until the first one has run. Who may not ask for that takes the chance.
fn run_watched(program: &[&str]) -> Ran {
    static TURNS: OnceLock<bool> = OnceLock::new();
    let turns = ["chrt", "--rr", "1", "taskset", "--cpu-list", "0"];
    let may = *TURNS.get_or_init(|| run(turns[0], &[&turns[1..], &["true"]].concat()).success);
    let all = [if may { &turns[..] } else { &[] }, program].concat();
    run(all[0], &all[1..])
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("---- daemon log ----\n{}---- {:?} ----", self.log(), self.root.path());
        }
        // The number of one that has ended may be another's by now.
        if self.child.try_wait().is_ok_and(|ended| ended.is_none()) {
            signal(self.pid().cast_signed(), Signal::TERM);
            // Its sockets are gone or it is stuck; neither may outlive the test.
            if !gone_within(self.pid().cast_signed(), Duration::from_secs(20)) {
                let _ = self.child.kill();
            }
            let _ = self.child.wait();
        }
        for pid in self.qemu_pids() {
            signal(pid, Signal::KILL);
            gone_within(pid, LIMIT);
        }
        if let Some(pid) =
            fs::read_to_string(self.path("run/virtlogd.pid")).ok().and_then(|pid| pid.trim().parse().ok())
        {
            signal(pid, Signal::TERM);
        }
    }
}

/// To a process that may be gone already.
pub fn signal(pid: i32, signal: Signal) {
    if let Some(pid) = Pid::from_raw(pid) {
        let _ = kill_process(pid, signal);
    }
}

/// Waits for a process by its pidfd.
pub fn gone_within(pid: i32, limit: Duration) -> bool {
    let Some(pid) = Pid::from_raw(pid) else { return true };
    let Ok(pidfd) = pidfd_open(pid, PidfdFlags::empty()) else { return true };
    let limit = Timespec { tv_sec: limit.as_secs().cast_signed(), tv_nsec: limit.subsec_nanos().into() };
    poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&limit)).is_ok_and(|ready| ready == 1)
}
