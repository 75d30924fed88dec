//! The agent inside a guest: the real one on the sample guest, and one of the test's own for what a real one never does.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use ferrovirt_compat::{Daemon, Guest, LIMIT, Program, eventually, halting, linux};

use crate::{daemon, on_upstream};

const CHANNEL: &str = "<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>";

/// Prints what becomes of agents, as `NAME connected|disconnected started|channel`.
fn agent_events(daemon: &Daemon) -> Program {
    let mut watcher = daemon.python_beside(
        "def told(conn, domain, state, reason, opaque):\n\
         \x20   print(domain.name(), ('?', 'connected', 'disconnected')[state], ('?', 'started', 'channel')[reason])\n\
         conn.domainEventRegisterAny(None, libvirt.VIR_DOMAIN_EVENT_ID_AGENT_LIFECYCLE, told, None)\n\
         print('watching')\nrun_events()",
    );
    watcher.expect("watching\n");
    watcher
}

/// The sample guest with its agent.
fn with_agent(name: &str) -> Guest {
    linux(name, "guest.agent").device(CHANNEL)
}

/// Has agents waited for as long as a slow machine needs; by default that is 5 seconds.
fn be_patient(daemon: &Daemon, name: &str) {
    daemon.ok(&["guest-agent-timeout", name, "--timeout", "100"]);
}

/// A started guest whose agent is there.
fn run_with_agent(daemon: &Daemon, guest: &Guest) -> (Program, Program) {
    let mut events = agent_events(daemon);
    daemon.run(guest);
    be_patient(daemon, &guest.name);
    let mut console = daemon.console(&guest.name);
    console.expect("GUEST READY");
    events.expect(&format!("{} connected channel\n", guest.name));
    (events, console)
}

fn agent_command(daemon: &Daemon, name: &str, command: &str) -> String {
    daemon.ok(&["qemu-agent-command", name, &format!("{{\"execute\":\"{command}\"}}")]).trim().to_owned()
}

#[test]
fn the_channel_tells_whether_its_agent_is_there() {
    let mut daemon = daemon();
    let mut events = agent_events(&daemon);
    daemon.run(&with_agent("talker"));
    events.expect("talker disconnected started\n");
    assert!(
        daemon.ok(&["dumpxml", "talker"]).contains("name='org.qemu.guest_agent.0' state='disconnected'/>")
    );
    let error = daemon.virsh(&["domtime", "talker"]).fails();
    assert!(error.contains("Guest agent is not responding: QEMU guest agent is not connected"), "{error}");
    let mut console = daemon.console("talker");
    console.expect("GUEST READY");
    events.expect("talker connected channel\n");
    assert!(daemon.ok(&["dumpxml", "talker"]).contains("name='org.qemu.guest_agent.0' state='connected'/>"));
    assert!(!daemon.ok(&["dumpxml", "--inactive", "talker"]).contains("state='connected'"));
    be_patient(&daemon, "talker");
    assert_eq!(agent_command(&daemon, "talker", "guest-ping"), "{\"return\":{}}");

    // The next daemon finds it as it is.
    drop((events, console));
    daemon.kill();
    daemon.restart();
    eventually("the agent answers the next daemon", || {
        let ping = daemon.virsh(&["qemu-agent-command", "talker", "{\"execute\":\"guest-ping\"}"]);
        ping.success.then_some(())
    });
    assert!(status(&daemon, "talker").contains("<agentTimeout>100</agentTimeout>"));

    // An agent that ends closes its port; the next one opens it again.
    let mut events = agent_events(&daemon);
    let mut console = daemon.console("talker");
    console.send("\nkill $(cat /run/qemu-ga.pid)\n");
    events.expect("talker disconnected channel\n");
    assert!(daemon.ok(&["dumpxml", "talker"]).contains("state='disconnected'"));
    let error = daemon.virsh(&["qemu-agent-command", "talker", "{\"execute\":\"guest-ping\"}"]).fails();
    assert!(error.contains("QEMU guest agent is not connected"), "{error}");
    console.send("qemu-ga -d -m virtio-serial -p /dev/virtio-ports/org.qemu.guest_agent.0 -t /run\n");
    events.expect("talker connected channel\n");
    assert_eq!(agent_command(&daemon, "talker", "guest-ping"), "{\"return\":{}}");
}

fn status(daemon: &Daemon, name: &str) -> String {
    std::fs::read_to_string(daemon.path(&format!("run/libvirt/qemu/{name}.xml"))).unwrap()
}

#[test]
fn the_agent_reboots_and_shuts_down() {
    let daemon = daemon();
    // The button would do nothing.
    let mut guest = linux("talker", "guest.agent guest.button=ignore").device(CHANNEL);
    guest.name = "talker".to_owned();
    let (mut events, mut console) = run_with_agent(&daemon, &guest);
    let pid = daemon.qemu_pid("talker");
    daemon.ok(&["reboot", "talker", "--mode", "agent"]);
    events.expect("talker disconnected channel\n");
    console.expect("GUEST READY");
    events.expect("talker connected channel\n");
    assert_eq!((daemon.state("talker").as_str(), daemon.qemu_pid("talker")), ("running", pid));
    daemon.ok(&["suspend", "talker"]);
    for mode in [&[][..], &["--mode", "agent"]] {
        let error = daemon.virsh(&[&["shutdown", "talker"], mode].concat()).fails();
        assert!(error.contains("Requested operation is not valid: domain is not running"), "{error}");
    }
    assert_eq!(daemon.ok(&["domstate", "--reason", "talker"]).trim(), "paused (user)");
    daemon.ok(&["resume", "talker"]);
    // No mode: the agent first.
    let mut lifecycle = daemon.events();
    daemon.ok(&["shutdown", "talker"]);
    lifecycle.expect("talker stopped shutdown");
    assert_eq!(daemon.ok(&["domstate", "--reason", "talker"]).trim(), "shut off (shutdown)");
}

#[test]
fn a_guest_tells_of_itself_and_suspends() {
    let daemon = daemon();
    let guest = with_agent("talker").device("<interface type='user'><model type='virtio'/></interface>");
    let (_events, _console) = run_with_agent(&daemon, &guest);
    assert_eq!(daemon.ok(&["domhostname", "talker"]).trim(), "guest");
    let info = daemon.ok(&["guestinfo", "talker"]);
    for line in [
        "user.count          : 0",
        "os.machine          : x86_64",
        "hostname            : guest",
        "if.0.name           : lo",
    ] {
        assert!(info.contains(line), "{line}: {info}");
    }
    assert!(daemon.ok(&["domifaddr", "talker", "--source", "agent"]).contains("10.0.2.15/24"));
    assert_eq!(daemon.ok(&["vcpucount", "talker", "--guest"]).trim(), "1");
    let error = daemon.virsh(&["guestvcpus", "talker", "--cpulist", "0", "--disable"]).fails();
    assert!(error.contains("vCPU '0' is not offlinable"), "{error}");
    let time = daemon.ok(&["domtime", "talker"]);
    let time: i64 = time.trim().trim_start_matches("Time: ").parse().unwrap();
    assert!(time > 1_700_000_000, "{time}");
    let error = daemon.virsh(&["qemu-agent-command", "talker", "{\"execute\":\"x\"}"]).fails();
    let refused = "guest agent command failed: unable to execute QEMU agent command 'x': The command x has not been found";
    assert!(error.contains(refused), "{error}");
    daemon.ok(&["dompmsuspend", "talker", "mem"]);
    eventually("the guest sleeps", || (daemon.state("talker") == "pmsuspended").then_some(()));
    daemon.ok(&["destroy", "talker"]);
}

#[test]
fn file_systems_are_thawed_when_who_froze_them_is_lost() {
    let daemon = daemon();
    let mut fake = FakeAgent::new(&daemon, "frosty");
    let channel = fake.connect();
    channel.set_read_timeout(Some(LIMIT)).unwrap();
    be_patient(&daemon, "frosty");
    let answer = |value: &str| (&channel).write_all(format!("{{\"return\":{value}}}\n").as_bytes()).unwrap();
    // Who leaves in order means them to stay frozen.
    std::thread::scope(|scope| {
        let call = scope.spawn(|| daemon.ok(&["domfsfreeze", "frosty"]));
        assert_eq!(synchronize(&channel), "guest-fsfreeze-freeze");
        answer("2");
        call.join().unwrap();
        let call = scope.spawn(|| daemon.ok(&["domhostname", "frosty"]));
        assert_eq!(synchronize(&channel), "guest-get-host-name");
        answer("{\"host-name\":\"x\"}");
        assert_eq!(call.join().unwrap().trim(), "x");
    });
    if on_upstream() {
        // There they stay frozen whoever is lost.
        return;
    }
    let mut client =
        daemon.python_beside("conn.lookupByName('frosty').fsFreeze()\nprint('frozen')\nsys.stdin.read()");
    assert_eq!(synchronize(&channel), "guest-fsfreeze-freeze");
    answer("2");
    client.expect("frozen\n");
    drop(client);
    assert_eq!(synchronize(&channel), "guest-fsfreeze-thaw");
    answer("2");
}

#[test]
fn without_an_agent_it_is_the_button_or_nothing() {
    let daemon = daemon();
    daemon.run(&halting("plain"));
    let refused = |arguments: &[&str], code: &str| {
        let error = daemon.virsh(arguments).fails();
        assert!(error.contains(code), "{arguments:?}: {error}");
    };
    let unsupported = "argument unsupported: QEMU guest agent is not configured";
    for arguments in [
        &["shutdown", "plain", "--mode", "agent"][..],
        &["reboot", "plain", "--mode", "agent"],
        &["qemu-agent-command", "plain", "{}"],
        &["dompmsuspend", "plain", "mem"],
        &["vcpucount", "plain", "--guest"],
        &["setvcpus", "plain", "1", "--guest"],
        &["guestvcpus", "plain"],
        &["domtime", "plain"],
        &["domtime", "plain", "--now"],
        &["domhostname", "plain"],
        &["domifaddr", "plain", "--source", "agent"],
        &["guestinfo", "plain"],
        &["domfsinfo", "plain"],
        &["domfsfreeze", "plain"],
        &["domfsthaw", "plain"],
        &["domfstrim", "plain"],
        &["set-user-password", "plain", "root", "secret"],
        &["get-user-sshkeys", "plain", "root"],
        &["set-user-sshkeys", "plain", "root", "--reset"],
    ] {
        refused(arguments, unsupported);
    }
    refused(
        &["guest-agent-timeout", "plain", "--timeout", "-3"],
        "guest agent timeout '-3' is less than the minimum '-2'",
    );
    // Both ways: the button is left, and a guest that ignores it stays.
    daemon.ok(&["shutdown", "plain", "--mode", "agent,acpi"]);
    daemon.ok(&["shutdown", "plain"]);
    assert_eq!(daemon.ok(&["domstate", "--reason", "plain"]).trim(), "running (booted)");
    daemon.ok(&["destroy", "plain"]);
    for arguments in
        [&["domtime", "plain"][..], &["shutdown", "plain", "--mode", "agent"], &["guestinfo", "plain"]]
    {
        refused(arguments, "Requested operation is not valid: domain is not running");
    }
}

/// An agent of the test's own: a guest holds the port open, and what the daemon says arrives here.
struct FakeAgent {
    listener: UnixListener,
    /// QEMU's own end of the channel.
    _qemu: UnixStream,
    events: Program,
    console: Program,
}

impl FakeAgent {
    fn new(daemon: &Daemon, name: &str) -> Self {
        let path = daemon.path("fake-agent");
        let listener = UnixListener::bind(&path).unwrap();
        let channel = format!(
            "<channel type='unix'><source mode='connect' path='{}'/>\
             <target type='virtio' name='org.qemu.guest_agent.0'/></channel>",
            path.display()
        );
        let events = agent_events(daemon);
        daemon.run(&linux(name, "").device(&channel));
        let (qemu, _) = listener.accept().unwrap();
        let mut console = daemon.console(name);
        console.expect("GUEST READY");
        Self { listener, _qemu: qemu, events, console }
    }

    /// The guest opens the port, and the daemon connects.
    fn connect(&mut self) -> UnixStream {
        self.console.send("\nexec 9<>/dev/virtio-ports/org.qemu.guest_agent.0\n");
        self.events.expect(" connected channel\n");
        self.listener.accept().unwrap().0
    }

    fn disconnect(&mut self) {
        self.console.send("\nexec 9>&-\n");
        self.events.expect("disconnected channel\n");
    }
}

/// Answers synchronizations of both kinds until another command comes; its name is returned.
fn synchronize(mut stream: &UnixStream) -> String {
    let mut lines = BufReader::new(stream);
    loop {
        let mut line = Vec::new();
        lines.read_until(b'\n', &mut line).unwrap();
        let line = String::from_utf8_lossy(&line);
        let behind = |key: &str, end: char| line.split_once(key)?.1.split_once(end).map(|it| it.0.to_owned());
        let name = behind("\"execute\":\"", '"').unwrap_or_default();
        let answer = format!("{{\"return\":{}}}\n", behind("\"id\":", '}').unwrap_or_default());
        match name.as_str() {
            "guest-sync" => stream.write_all(answer.as_bytes()).unwrap(),
            "guest-sync-delimited" => stream.write_all(&[b"\xff", answer.as_bytes()].concat()).unwrap(),
            _ => return name,
        }
    }
}

#[test]
fn an_agent_that_misbehaves_costs_its_callers_and_nobody_else() {
    let daemon = daemon();
    let mut fake = FakeAgent::new(&daemon, "liar");
    let ping = ["qemu-agent-command", "liar", "{\"execute\":\"guest-ping\"}", "--timeout", "2"];

    // One that never answers. What needs no agent goes on meanwhile.
    let mute = fake.connect();
    std::thread::scope(|scope| {
        let call = scope.spawn(|| daemon.virsh(&ping).fails());
        let mut first = [0; 1];
        (&mute).read_exact(&mut first).unwrap();
        daemon.ok(&["suspend", "liar"]);
        daemon.ok(&["resume", "liar"]);
        let error = call.join().unwrap();
        let sentence = "guest agent didn't respond to synchronization within '2' seconds";
        assert!(error.contains(sentence), "{error}");
    });
    fake.disconnect();

    // One that synchronizes, for which there is the same time, and then says nothing; its limit is the domain's.
    let silent = fake.connect();
    daemon.ok(&["guest-agent-timeout", "liar", "--timeout", "6"]);
    std::thread::scope(|scope| {
        let call = scope.spawn(|| daemon.virsh(&["domtime", "liar"]).fails());
        assert_eq!(synchronize(&silent), "guest-get-time");
        let error = call.join().unwrap();
        let sentence =
            "guest agent command timed out: guest agent didn't respond to command within '6' seconds";
        assert!(error.contains(sentence), "{error}");
    });
    fake.disconnect();

    // One that goes away with the command.
    let leaver = fake.connect();
    std::thread::scope(|scope| {
        let call = scope.spawn(|| {
            daemon.virsh(&["qemu-agent-command", "liar", "{\"execute\":\"guest-ping\"}", "--block"]).fails()
        });
        synchronize(&leaver);
        fake.disconnect();
        let error = call.join().unwrap();
        assert!(error.contains("Guest agent disappeared while executing command"), "{error}");
    });

    // Noise without end: the call fails, and the daemon has not grown by it.
    let noisy = fake.connect();
    let before = resident_kib(daemon.pid());
    std::thread::scope(|scope| {
        let call = scope.spawn(|| daemon.virsh(&ping).fails());
        let noise = vec![b'['; 1 << 20];
        synchronize(&noisy);
        noisy.set_write_timeout(Some(Duration::from_millis(100))).unwrap();
        while !call.is_finished() {
            // Nobody reads any more once the call has failed.
            let _ = (&noisy).write(&noise);
        }
        call.join().unwrap();
    });
    let grown = resident_kib(daemon.pid()).saturating_sub(before);
    assert!(grown < 64 * 1024, "grown by {grown} KiB");
    assert_eq!(daemon.state("liar"), "running");
    daemon.ok(&["destroy", "liar"]);
}

fn resident_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}
