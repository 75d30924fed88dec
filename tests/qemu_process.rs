//! Guests' processes: started, adopted and stopped, with real QEMU and with one that misbehaves.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that fails says where")]

#[path = "fake_qemu/mod.rs"]
mod fake_qemu;

use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use fake_qemu::Behaviour;
use ferrovirt::qemu::log;
use ferrovirt::qemu::monitor::{
    Cont, EventKind, MonitorError, MonitorEvent, QueryCpusFast, QueryName, QueryStatus, QueryUuid,
};
use ferrovirt::qemu::process::{
    AdoptError, Adopted, Claim, Directories, How, Launch, Prepared, Running, StartError, Started, StopError,
    adopt, stop,
};
use ferrovirt::util::paths::Paths;
use ferrovirt::util::process::{Command, Exit, Process, Signal};
use tokio::sync::mpsc;

const QEMU: &str = "/usr/bin/qemu-system-x86_64";
const UUID: &str = "331057f5-326a-436f-8b69-e986c867a9df";
const LIMIT: Duration = Duration::from_secs(180);

/// A private root, with an emulator in it.
struct World {
    root: tempfile::TempDir,
    emulator: PathBuf,
}

struct Guest {
    running: Running,
    events: mpsc::Receiver<MonitorEvent>,
    killer: Killer,
}

/// Ends a guest whatever becomes of the test.
struct Killer(Process);

impl Drop for Killer {
    fn drop(&mut self) {
        let _ = self.0.signal(Signal::KILL);
    }
}

impl Guest {
    /// What remains when the daemon that started it is gone.
    fn left_alone(self) -> Killer {
        self.killer
    }
}

impl World {
    fn real() -> Self {
        Self { root: tempfile::tempdir().unwrap(), emulator: PathBuf::from(QEMU) }
    }

    fn fake(behaviour: &Behaviour) -> Self {
        let root = tempfile::tempdir().unwrap();
        let emulator = behaviour.install(root.path());
        Self { root, emulator }
    }

    fn directories(&self) -> Directories {
        Directories::new(&Paths::system(self.root.path()))
    }

    fn prepare(&self) -> Prepared {
        Prepared::new(&self.directories(), 1, "guest").unwrap()
    }

    fn launch(&self, prepared: &Prepared, more: &[&str]) -> Launch {
        let chardev = format!("socket,id=charmonitor,fd={},server=on,wait=off", prepared.monitor_fd());
        let args = ["-name", "guest=guest,debug-threads=on", "-S", "-uuid", UUID, "-machine", "none"];
        let monitor = ["-chardev", &chardev, "-mon", "chardev=charmonitor,id=monitor,mode=control"];
        let quiet = ["-display", "none", "-no-user-config", "-nodefaults"];
        let args = args.iter().chain(&monitor).chain(&quiet).chain(more);
        Launch {
            program: self.emulator.clone(),
            args: args.map(|arg| (*arg).to_owned()).collect(),
            env: vec![("PATH".to_owned(), "/usr/bin:/bin".to_owned())],
            versions: "libvirt version: 11.3.0".to_owned(),
            taints: vec!["Domain id=1 is tainted: custom-argv".to_owned()],
            limit: LIMIT,
            run_as: None,
            may_lock: None,
        }
    }

    async fn try_start(&self, more: &[&str]) -> Result<Started, StartError> {
        let prepared = self.prepare();
        let launch = self.launch(&prepared, more);
        prepared.start(launch).await
    }

    async fn start(&self) -> Guest {
        let mut started = self.try_start(&[]).await.unwrap();
        let events = started.events.take().unwrap();
        let running = started.keep();
        let killer = Killer(running.process.clone());
        Guest { running, events, killer }
    }

    fn claim(&self, running: &Running) -> Claim {
        Claim {
            name: "guest".to_owned(),
            uuid: UUID.parse().unwrap(),
            pid: running.process.pid(),
            start_time: Some(running.process.start_time()),
            files: running.files.clone(),
        }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.directories().log.join("guest.log")).unwrap()
    }

    /// The files of guests that are there, without logs.
    fn left_over(&self) -> Vec<PathBuf> {
        let Directories { state, runtime, .. } = self.directories();
        let mut found = Vec::new();
        let mut open = vec![state, runtime];
        while let Some(directory) = open.pop() {
            for entry in std::fs::read_dir(directory).into_iter().flatten() {
                let path = entry.unwrap().path();
                match path.is_dir() && path.file_name() == Some("channel".as_ref()) {
                    true => open.push(path),
                    false => found.push(path),
                }
            }
        }
        found
    }
}

async fn next(events: &mut mpsc::Receiver<MonitorEvent>) -> MonitorEvent {
    tokio::time::timeout(LIMIT, events.recv()).await.unwrap().unwrap()
}

fn die_at(command: &str) -> Behaviour {
    Behaviour {
        die_at: Some(command.to_owned()),
        last_words: "qemu: no luck".to_owned(),
        ..Behaviour::default()
    }
}

#[tokio::test]
async fn a_real_guest_starts_answers_and_stops() {
    let world = World::real();
    let mut guest = world.start().await;
    let monitor = &guest.running.monitor;
    let (status, name, uuid) =
        (monitor.submit(QueryStatus {}), monitor.submit(QueryName {}), monitor.submit(QueryUuid {}));
    assert_eq!(status.reply().await.unwrap().status, "prelaunch");
    assert_eq!(name.reply().await.unwrap().name.as_deref(), Some("guest"));
    assert_eq!(uuid.reply().await.unwrap().uuid, UUID);
    assert!(monitor.execute(QueryCpusFast {}).await.unwrap().is_empty());
    let raw = monitor.execute_raw(r#"{"execute": "query-status"}"#, None).await.unwrap();
    assert!(
        raw.starts_with(r#"{"return":{"status":"prelaunch","#) && raw.contains(r#""id":"libvirt-"#),
        "{raw}"
    );
    assert!(monitor.execute_human("info status").await.unwrap().starts_with("VM status: paused"));
    monitor.execute(Cont {}).await.unwrap();
    let MonitorEvent::Guest(event) = next(&mut guest.events).await else { panic!() };
    assert_eq!(event.kind(), EventKind::Resume);

    let files = guest.running.files.clone();
    let pid = std::fs::read_to_string(&files.pidfile).unwrap();
    assert_eq!(pid, guest.running.process.pid().to_string());
    assert_eq!(stop(&guest.running.process, How::Graceful).await.unwrap(), Exit::Code(0));
    let mut seen = Vec::new();
    while let MonitorEvent::Guest(event) = next(&mut guest.events).await {
        seen.push(event.kind());
    }
    let shutdown = EventKind::Shutdown { guest: Some(false), reason: Some("host-signal".to_owned()) };
    assert!(seen.contains(&shutdown), "{seen:?}");
    files.remove().unwrap();
    assert_eq!(world.left_over(), Vec::<PathBuf>::new());
}

#[tokio::test]
async fn the_log_shows_how_to_run_it_by_hand() {
    let world = World::real();
    let guest = world.start().await;
    let log = world.log();
    let (header, rest) = log.split_once('\n').unwrap();
    assert!(header.ends_with("+0000: starting up libvirt version: 11.3.0"), "{header}");
    assert!(rest.starts_with("PATH=/usr/bin:/bin \\\n/usr/bin/qemu-system-x86_64 \\\n-name guest=guest,"));
    assert!(rest.contains(" \\\n-S \\\n-uuid "), "{rest}");
    assert!(rest.contains("+0000: Domain id=1 is tainted: custom-argv\n"), "{rest}");
    log::note(&world.directories().log, "guest", "shutting down, reason=destroyed").unwrap();
    assert!(world.log().ends_with("+0000: shutting down, reason=destroyed\n"));
    drop(guest);
}

#[tokio::test]
async fn a_qemu_that_dies_at_start_has_the_last_word() {
    let world = World::real();
    let error = world.try_start(&["-device", "bogus"]).await.unwrap_err().to_string();
    assert!(error.starts_with("QEMU unexpectedly closed the monitor (vm='guest'): "), "{error}");
    assert!(error.ends_with("-device bogus: 'bogus' is not a valid device model name"), "{error}");
    assert_eq!(world.left_over(), Vec::<PathBuf>::new());
    assert!(world.log().ends_with("+0000: shutting down, reason=failed\n"), "{}", world.log());

    for moment in ["start", "qmp_capabilities"] {
        let world = World::fake(&die_at(moment));
        let error = world.try_start(&[]).await.unwrap_err().to_string();
        assert_eq!(error, "QEMU unexpectedly closed the monitor (vm='guest'): qemu: no luck");
        assert_eq!(world.left_over(), Vec::<PathBuf>::new());
    }
}

#[tokio::test]
async fn a_qemu_that_dies_in_a_later_step_of_the_start_has_it_too() {
    let world = World::fake(&die_at("query-cpus-fast"));
    let started = world.try_start(&[]).await.unwrap();
    let error = started.monitor.execute(QueryCpusFast {}).await.unwrap_err();
    let error = started.explain(error).await;
    assert_eq!(error.to_string(), "QEMU unexpectedly closed the monitor (vm='guest'): qemu: no luck");
    started.abandon().await;
    assert_eq!(world.left_over(), Vec::<PathBuf>::new());
}

#[tokio::test]
async fn a_refused_command_is_no_death() {
    let refuse = [("cont".to_owned(), "not today".to_owned())].into();
    let world = World::fake(&Behaviour { refuse, ..Behaviour::default() });
    let started = world.try_start(&[]).await.unwrap();
    let error = started.monitor.execute(Cont {}).await.unwrap_err();
    let error = started.explain(error).await;
    assert_eq!(error.to_string(), "unable to execute QEMU command 'cont': not today");
    let process = Process::find(started.pid()).unwrap();
    started.abandon().await;
    assert!(process.is_gone().unwrap());
}

#[tokio::test]
async fn a_program_that_is_missing_is_named() {
    let mut world = World::real();
    world.emulator = PathBuf::from("/no/such/qemu");
    let error = world.try_start(&[]).await.unwrap_err().to_string();
    assert_eq!(error, "cannot execute binary /no/such/qemu: No such file or directory");
    assert_eq!(world.left_over(), Vec::<PathBuf>::new());
}

#[tokio::test]
async fn a_start_that_is_given_up_leaves_nothing() {
    let world =
        World::fake(&Behaviour { hang_at: Some("qmp_capabilities".to_owned()), ..Behaviour::default() });
    let prepared = world.prepare();
    let pidfile = prepared.files().pidfile.clone();
    let mut launch = world.launch(&prepared, &[]);
    launch.limit = Duration::from_millis(300);
    let error = prepared.start(launch).await.unwrap_err();
    assert!(matches!(error, StartError::Monitor(MonitorError::Timeout { .. })), "{error}");
    assert_eq!(world.left_over(), Vec::<PathBuf>::new());

    // The same, with the future dropped as soon as QEMU is there.
    let prepared = world.prepare();
    let launch = world.launch(&prepared, &[]);
    let mut start = Box::pin(prepared.start(launch));
    let pid = loop {
        tokio::select! {
            _ = &mut start => panic!("it hangs"),
            () = tokio::task::yield_now() => {}
        }
        if let Some(pid) = ferrovirt::util::pidfile::read(&pidfile) {
            break pid;
        }
    };
    let process = Process::find(pid).unwrap();
    drop(start);
    process.exited_within(LIMIT).await.unwrap().unwrap();
    assert_eq!(world.left_over(), Vec::<PathBuf>::new());
}

#[tokio::test]
async fn who_ignores_sigterm_is_killed_only_by_force() {
    let world = World::fake(&Behaviour { ignore_sigterm: true, ..Behaviour::default() });
    let guest = world.start().await;
    let begun = Instant::now();
    assert_eq!(stop(&guest.running.process, How::Forced).await.unwrap(), Exit::Signal(9));
    // Less would cost a guest what QEMU has still to write out; a device of the host takes longer to give back.
    // Who is only asked to go has fifteen seconds.
    assert!(begun.elapsed() >= Duration::from_millis(1500) && begun.elapsed() < Duration::from_secs(12));
    let guest = world.start().await;
    let begun = Instant::now();
    let how = How::ForcedWith { host_devices: 1 };
    assert_eq!(stop(&guest.running.process, how).await.unwrap(), Exit::Signal(9));
    assert!(begun.elapsed() >= Duration::from_millis(3500));
}

#[tokio::test(start_paused = true)]
async fn who_ignores_sigterm_and_is_not_forced_stays() {
    let (mut says, said) = std::io::pipe().unwrap();
    let child = ferrovirt::util::process::Command::new("/bin/sh")
        .args(["-c", "trap '' TERM; echo deaf; exec sleep 1000"])
        .stdout(said.into())
        .start()
        .await
        .unwrap();
    let mut word = [0; 5];
    says.read_exact(&mut word).unwrap();
    let error = stop(child.process(), How::Graceful).await.unwrap_err();
    assert!(matches!(error, StopError::Stays { .. }));
    let pid = child.process().pid();
    let sentence = format!("Failed to terminate process {pid} with SIGTERM: Device or resource busy");
    assert_eq!(error.to_string(), sentence);
    assert!(!child.process().is_gone().unwrap());
    // On the way to something else it is waited for as long, and does not stand in the way for ever.
    let begun = tokio::time::Instant::now();
    // The clock of this test runs ahead of the kernel, which may take its time to end it.
    let ended = stop(child.process(), How::Patient).await;
    assert!(matches!(ended, Ok(Exit::Signal(9)) | Err(StopError::Stays { signal: "KILL", .. })), "{ended:?}");
    assert!(begun.elapsed() >= Duration::from_secs(15));
}

#[tokio::test]
async fn a_hung_monitor_keeps_nobody() {
    let world = World::fake(&Behaviour { hang_at: Some("query-status".to_owned()), ..Behaviour::default() });
    let guest = world.start().await;
    let monitor = guest.running.monitor.clone();
    let stuck = monitor.submit(QueryStatus {});
    monitor.fail_all(&MonitorError::Closed);
    assert!(matches!(stuck.reply().await, Err(MonitorError::Closed)));
    assert_eq!(stop(&guest.running.process, How::Graceful).await.unwrap(), Exit::Code(0));
}

#[tokio::test]
async fn garbage_ends_the_conversation_with_a_reason() {
    let world =
        World::fake(&Behaviour { garbage_at: Some("query-status".to_owned()), ..Behaviour::default() });
    let mut guest = world.start().await;
    let error = guest.running.monitor.execute(QueryStatus {}).await.unwrap_err();
    assert_eq!(error.to_string(), "Unknown JSON reply '\"garbage\"'");
    assert!(matches!(next(&mut guest.events).await, MonitorEvent::End(MonitorError::Garbage { .. })));
}

#[tokio::test]
async fn a_running_guest_is_adopted_and_watched() {
    let world = World::real();
    let guest = world.start().await;
    let claim = Claim { start_time: None, ..world.claim(&guest.running) };
    let killer = guest.left_alone();

    let adopted = adopt(claim).await.unwrap();
    adopted.introduction.heard().await.unwrap();
    let status = adopted.running.monitor.execute(QueryStatus {}).await.unwrap();
    assert_eq!(status.status, "prelaunch");
    let watched = adopted.running.process.clone();
    let (exit, stopped) = tokio::join!(watched.exited(), stop(&killer.0, How::Graceful));
    stopped.unwrap();
    exit.unwrap();
    let Running { files, .. } = adopted.running;
    files.remove().unwrap();
    assert_eq!(world.left_over(), Vec::<PathBuf>::new());
}

#[tokio::test]
async fn a_guest_that_ends_or_hangs_while_it_is_asked_is_told_apart() {
    for (behaviour, gone) in [
        (die_at("query-name"), true),
        (Behaviour { hang_at: Some("query-name".to_owned()), ..Behaviour::default() }, false),
    ] {
        let world = World::fake(&behaviour);
        let guest = world.start().await;
        let claim = world.claim(&guest.running);
        let _killer = guest.left_alone();
        let Adopted { introduction, running, events: _events } = adopt(claim).await.unwrap();
        let limit = if gone { LIMIT } else { Duration::from_millis(300) };
        match tokio::time::timeout(limit, introduction.heard()).await {
            Ok(heard) => assert!(gone && matches!(heard, Err(AdoptError::Ended { .. }))),
            // It may say so at any later time.
            Err(_) => assert!(!gone && !running.process.is_gone().unwrap()),
        }
    }
}

#[tokio::test]
async fn what_is_not_the_guest_is_not_adopted() {
    let world = World::fake(&Behaviour::default());
    let guest = world.start().await;
    let claim = world.claim(&guest.running);
    let other_start = Claim { start_time: claim.start_time.map(|time| time + 1), ..claim.clone() };
    assert!(matches!(adopt(other_start).await, Err(AdoptError::Gone { .. })));

    // The original notes no start time; whoever has the number by now is not its guest.
    let stranger = Command::new("/bin/sleep").arg("1000").start().await.unwrap();
    let reused = Claim { start_time: None, pid: stranger.process().pid(), ..claim.clone() };
    assert!(matches!(adopt(reused).await, Err(AdoptError::Gone { .. })));

    let second = World::fake(&Behaviour::default());
    let stranger = second.start().await;
    let strange = Claim {
        uuid: "00000000-0000-0000-0000-000000000001".parse().unwrap(),
        ..second.claim(&stranger.running)
    };
    let _killer = stranger.left_alone();
    let adopted = adopt(strange).await.unwrap();
    assert!(matches!(adopted.introduction.heard().await, Err(AdoptError::Other { .. })));

    stop(&guest.running.process, How::Forced).await.unwrap();
    assert!(matches!(adopt(claim).await, Err(AdoptError::Gone { .. })));
}

#[tokio::test]
async fn many_guests_start_at_once() {
    let worlds: Vec<World> = (0..5).map(|_| World::fake(&Behaviour::default())).collect();
    let mut started = tokio::task::JoinSet::new();
    for world in worlds {
        started.spawn(async move {
            let guest = world.start().await;
            stop(&guest.running.process, How::Forced).await.unwrap();
        });
    }
    while let Some(done) = started.join_next().await {
        done.unwrap();
    }
}

#[test]
fn a_socket_is_handed_over_listening() {
    let world = World::real();
    let mut prepared = world.prepare();
    let path = prepared.files().channels.join("org.qemu.guest_agent.0");
    assert_ne!(prepared.listen(&path).unwrap(), prepared.monitor_fd());
    std::os::unix::net::UnixStream::connect(&path).unwrap();
    assert!(Path::exists(&prepared.files().monitor()));
}
