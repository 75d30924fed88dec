//! The daemon `ferrovirtd`: options, configuration, signals.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::{ArgAction, Parser};
use ferrovirt::config::qemu::QemuConfig;
use ferrovirt::config::secrets::SecretsConfig;
use ferrovirt::config::{Config, ConfigError};
use ferrovirt::daemon::{Daemon, Setup};
use ferrovirt::logging;
use ferrovirt::service;
use ferrovirt::util::fds;
use ferrovirt::util::paths::{Paths, Scope};
use ferrovirt::util::process::Command;
use rustix::process::{DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit};
use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};

/// How long work that nobody waits for may hold up the exit.
const EXIT_PATIENCE: Duration = Duration::from_secs(1);
/// Where programs are looked for when the environment does not say.
const SEARCH_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Threads for calls that block: file system work.
const BLOCKING_THREADS: usize = 64;
/// How long such a thread waits for more, before it ends. What nobody needs neither wakes up later nor holds memory.
const BLOCKING_PATIENCE: Duration = Duration::from_millis(500);

/// Open files the daemon asks for, where the hard limit lets it.
const DESCRIPTORS: u64 = 65_536;

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// A daemon that speaks libvirt's RPC protocol and runs QEMU guests.
#[derive(Debug, Parser)]
#[command(name = "ferrovirtd", disable_version_flag = true)]
struct Options {
    /// Keep everything below this directory: configuration, state, sockets
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// Log what happens, not only what goes wrong
    #[arg(short, long)]
    verbose: bool,
    /// Run in the background once ready
    #[arg(short, long)]
    daemon: bool,
    /// Listen on the network as well, as the configuration file says
    #[arg(short, long)]
    listen: bool,
    /// Exit when nobody was connected for so many seconds
    #[arg(short, long, value_name = "SECONDS")]
    timeout: Option<u32>,
    /// Read the configuration files, say what is wrong or has no effect, and exit
    #[arg(long)]
    check_config: bool,
    /// Configuration file
    #[arg(short = 'f', long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Another pid file beside the standard ones
    #[arg(short, long, value_name = "FILE")]
    pid_file: Option<PathBuf>,
    /// Display version information
    #[arg(short = 'V', long, action = ArgAction::SetTrue)]
    version: bool,
    /// This is the process that `--daemon` started: its standard output is the parent that waits
    #[arg(long, hide = true)]
    in_background: bool,
}

fn main() -> ExitCode {
    let options = Options::parse();
    if options.version {
        println!("ferrovirtd (ferrovirt) {}", env!("CARGO_PKG_VERSION"));
        return ExitCode::SUCCESS;
    }
    let done = match options {
        Options { check_config: true, .. } => check(&options),
        Options { daemon: true, .. } => background(),
        _ => foreground(options),
    };
    match done {
        Ok(code) => code,
        Err(error) => {
            eprintln!("ferrovirtd: {error}");
            ExitCode::FAILURE
        }
    }
}

fn configuration(file: Option<&Path>, paths: &Paths) -> Result<Config, ConfigError> {
    match file {
        Some(path) => Config::load(path),
        None => Config::load_if_there(&paths.config.join("libvirtd.conf")),
    }
}

fn other_configuration(paths: &Paths) -> Result<(QemuConfig, SecretsConfig), ConfigError> {
    let qemu = QemuConfig::load_if_there(&paths.config.join("qemu.conf"))?;
    Ok((qemu, SecretsConfig::load_if_there(&paths.config.join("secret.conf"))?))
}

fn check(options: &Options) -> Result<ExitCode, Failure> {
    let paths = Environment::read().paths(options.root.as_deref())?;
    let config = configuration(options.config.as_deref(), &paths)?;
    let (qemu, secrets) = other_configuration(&paths)?;
    for remark in &config.remarks {
        println!("libvirtd.conf: {remark}");
    }
    for remark in &qemu.remarks {
        println!("qemu.conf: {remark}");
    }
    for remark in &secrets.remarks {
        println!("secret.conf: {remark}");
    }
    Ok(ExitCode::SUCCESS)
}

fn foreground(options: Options) -> Result<ExitCode, Failure> {
    let environment = Environment::read();
    let paths = environment.paths(options.root.as_deref())?;
    let (verbose, in_background) = (options.verbose, options.in_background);
    if in_background {
        std::fs::create_dir_all(&paths.log)?;
    }
    // By the name it was given first: that is what an error should call it.
    configuration(options.config.as_deref(), &paths)?;
    // A daemon that has gone to the background has left its directory.
    let config_file = options.config.map(std::path::absolute).transpose()?;
    let (search_path, places) = (environment.search_path.clone(), paths.clone());
    let read_config = move || {
        let mut config = configuration(config_file.as_deref(), &places)?;
        environment.override_logging(&mut config, verbose);
        if in_background && config.log.outputs.is_empty() {
            config.log.outputs = format!("1:file:{}", places.log.join("ferrovirtd.log").display());
        }
        Ok(config)
    };
    let mut config = read_config()?;
    let (qemu, secrets) = other_configuration(&paths)?;
    let logging = logging::start(&config.log)?;
    for remark in std::mem::take(&mut config.remarks) {
        tracing::warn!("configuration: {remark}");
    }
    for remark in &secrets.remarks {
        tracing::warn!("configuration of secrets: {remark}");
    }
    for remark in &qemu.remarks {
        tracing::warn!("configuration of guests: {remark}");
    }
    let pid_file = options.pid_file.map(std::path::absolute).transpose()?;
    let idle =
        options.timeout.filter(|&seconds| seconds > 0).map(|seconds| Duration::from_secs(seconds.into()));
    let setup = Setup {
        paths,
        config,
        qemu,
        secrets,
        search_path,
        pid_file,
        logging,
        idle,
        activated: fds::activated()?,
        listen: options.listen,
    };
    let ready = if in_background { report_ready } else { || Ok(()) };
    keep_memory_private();
    raise_descriptor_limit();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(std::thread::available_parallelism().map_or(2, usize::from).max(2))
        .max_blocking_threads(BLOCKING_THREADS)
        .thread_keep_alive(BLOCKING_PATIENCE)
        .enable_all()
        .build()?;
    let served = runtime.block_on(serve(setup, read_config, ready));
    runtime.shutdown_timeout(EXIT_PATIENCE);
    served.map(|()| ExitCode::SUCCESS)
}

/// Passphrases are in this process's memory: no core file is written of it, and no debugger of its user's gets in.
/// What it starts is not concerned.
fn keep_memory_private() {
    if let Err(error) = set_dumpable_behavior(DumpableBehavior::NotDumpable) {
        tracing::warn!(%error, "a core file would show secrets");
    }
}

/// Every client and every guest takes descriptors; the usual soft limit is meant for programs without many.
fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    let wanted = limit.maximum.map_or(DESCRIPTORS, |maximum| maximum.min(DESCRIPTORS));
    if limit.current.is_some_and(|current| current < wanted)
        && let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), ..limit })
    {
        tracing::warn!(%error, "cannot raise the limit on open files");
    }
}

/// `config` reads the configuration again.
async fn serve(
    setup: Setup,
    config: impl Fn() -> Result<Config, ConfigError>,
    ready: fn() -> io::Result<()>,
) -> Result<(), Failure> {
    // Before anything is started: a signal must find its handler.
    let mut ends = [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::quit()]
        .map(signal)
        .into_iter()
        .collect::<io::Result<Vec<_>>>()?;
    let mut hangup = signal(SignalKind::hangup())?;
    let daemon = Daemon::start(setup).await?;
    ready()?;
    service::tell(NotifyState::Ready);
    let _alive = service::stay_alive();
    tracing::info!("ready");
    let reload = Arc::clone(daemon.reload());
    let (idle, administration) = (daemon.idle(), Arc::clone(daemon.administration()));
    let stop = async move {
        let [terminate, interrupt, quit] = ends.as_mut_slice() else { return };
        let reload = async {
            while hangup.recv().await.is_some() {
                service::tell_reloading();
                reload.run(config()).await;
                service::tell(NotifyState::Ready);
            }
            std::future::pending().await
        };
        let reason = tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
            _ = quit.recv() => "SIGQUIT",
            () = idle => "idle",
            () = administration.stopped() => "an administrator",
            () = reload => "SIGHUP",
        };
        service::tell(NotifyState::Stopping);
        tracing::info!(reason, "stopping");
    };
    daemon.serve(stop).await;
    Ok(())
}

/// What the daemon takes from its environment, read once.
#[derive(Debug)]
struct Environment {
    is_root: bool,
    home: Option<PathBuf>,
    config_home: Option<PathBuf>,
    cache_home: Option<PathBuf>,
    runtime_dir: Option<PathBuf>,
    debug: Option<String>,
    log_filters: Option<String>,
    log_outputs: Option<String>,
    search_path: OsString,
}

impl Environment {
    fn read() -> Self {
        let text = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        let path = |name| text(name).map(PathBuf::from).filter(|path| path.is_absolute());
        Self {
            is_root: rustix::process::geteuid().is_root(),
            home: path("HOME"),
            config_home: path("XDG_CONFIG_HOME"),
            cache_home: path("XDG_CACHE_HOME"),
            runtime_dir: path("XDG_RUNTIME_DIR"),
            debug: text("LIBVIRT_DEBUG"),
            log_filters: text("LIBVIRT_LOG_FILTERS"),
            log_outputs: text("LIBVIRT_LOG_OUTPUTS"),
            search_path: std::env::var_os("PATH").unwrap_or_else(|| SEARCH_PATH.into()),
        }
    }

    /// A user's daemon has no runtime directory of the system's: clients then look in the cache directory.
    fn paths(&self, root: Option<&Path>) -> Result<Paths, Failure> {
        if let Some(root) = root {
            return Ok(Paths::system(&std::path::absolute(root)?));
        }
        if self.is_root {
            return Ok(Paths::system(Path::new("/")));
        }
        let below_home = |given: &Option<PathBuf>, name: &str| {
            given.clone().or_else(|| self.home.as_ref().map(|home| home.join(name)))
        };
        let config = below_home(&self.config_home, ".config");
        let cache = below_home(&self.cache_home, ".cache");
        let (Some(config), Some(cache)) = (config, cache) else {
            return Err("neither HOME nor the XDG base directories are set".into());
        };
        let paths = Paths::session(&config, &cache, self.runtime_dir.as_deref().unwrap_or(&cache));
        debug_assert_eq!(paths.scope, Scope::Session);
        Ok(paths)
    }

    fn override_logging(&self, config: &mut Config, verbose: bool) {
        const INFO: u32 = 2;
        if verbose && config.log.level == 0 {
            config.log.level = INFO;
        }
        match self.debug.as_deref() {
            None => {}
            Some("1" | "debug") => config.log.level = 1,
            Some("2" | "info") => config.log.level = INFO,
            Some("3" | "warning") => config.log.level = 3,
            Some("4" | "error") => config.log.level = 4,
            Some(other) => config.remarks.push(format!("LIBVIRT_DEBUG: unknown level '{other}'")),
        }
        if let Some(filters) = &self.log_filters {
            config.log.filters.clone_from(filters);
        }
        if let Some(outputs) = &self.log_outputs {
            config.log.outputs.clone_from(outputs);
        }
    }
}

/// Starts the same program in the background and returns once that one is ready or has failed.
fn background() -> Result<ExitCode, Failure> {
    let (hears, says) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    let is_daemon = |arg: &OsString| arg == "-d" || arg == "--daemon";
    let command = Command::new(std::env::current_exe()?)
        .args(std::env::args_os().skip(1).filter(|arg| !is_daemon(arg)))
        .arg("--in-background")
        .directory(std::env::current_dir()?)
        .stdout(says)
        .stderr(io::stderr().as_fd().try_clone_to_owned()?);
    let command = std::env::vars_os().fold(command, |command, (name, value)| command.env(name, value));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async { command.start().await.map(|child| child.release()) })?;
    let mut ready = Vec::new();
    File::from(hears).read_to_end(&mut ready)?;
    Ok(if ready.is_empty() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Tells the waiting parent, and lets go of its terminal and directory.
fn report_ready() -> io::Result<()> {
    let mut stdout = io::stdout();
    stdout.write_all(b"ready\n")?;
    stdout.flush()?;
    let null = OpenOptions::new().write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdout(&null)?;
    rustix::stdio::dup2_stderr(&null)?;
    rustix::process::chdir("/")?;
    Ok(())
}
