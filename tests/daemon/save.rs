//! Guests whose state goes into a file and comes back.

use std::fs;
use std::path::Path;

use ferrovirt_compat::{
    Daemon, Kind, Program, Signal, counting, eventually, halting, install_script, linux, signal,
};

use crate::readopt::rewrite_interrupted;
use crate::{daemon, on_upstream};

const OURS: &str = env!("CARGO_BIN_EXE_ferrovirtd");

fn reason(daemon: &Daemon, name: &str) -> String {
    daemon.ok(&["domstate", "--reason", name]).trim().to_owned()
}

/// A virsh that runs beside the test, with all that it says.
pub(crate) fn beside(daemon: &Daemon, arguments: &[&str]) -> Program {
    let mut virsh = ferrovirt_compat::command("sh");
    virsh.args(["-c", "exec virsh -c \"$@\" 2>&1", "sh", &daemon.uri()]).args(arguments);
    Program::start(virsh)
}

/// What lies in a directory, without what a test put there itself.
fn names_in(directory: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(directory)
        .expect("the directory is there")
        .map(|entry| entry.expect("it can be read").file_name().to_string_lossy().into_owned())
        .collect();
    names.sort_unstable();
    names
}

/// A directory for saved guests.
fn shelf(daemon: &Daemon) -> std::path::PathBuf {
    let shelf = daemon.path("shelf");
    fs::create_dir(&shelf).expect("the directory is ours");
    shelf
}

#[test]
fn a_guest_comes_back_as_it_was_saved() {
    let daemon = daemon();
    let file = shelf(&daemon).join("saved");
    let file = file.to_str().unwrap();
    daemon.run(&halting("h"));
    let mut events = daemon.events();
    daemon.ok(&["save", "h", file]);
    events.expect("h suspended paused\n");
    events.expect("h stopped saved\n");
    assert_eq!(reason(&daemon, "h"), "shut off (saved)");
    let header = fs::read(file).unwrap();
    assert_eq!(&header[..16], b"LibvirtQemudSave");
    let told = daemon.ok(&["domjobinfo", "h", "--completed", "--keep-completed"]);
    for line in ["Job type:         Completed", "Operation:        Save", "Memory remaining: 0.000 B"] {
        assert!(told.contains(line), "{line:?} is not in {told}");
    }
    assert!(daemon.ok(&["domjobinfo", "h", "--completed"]).contains("Total downtime:"));
    assert!(daemon.ok(&["domjobinfo", "h", "--completed"]).contains("Job type:         None"));

    daemon.ok(&["restore", file]);
    events.expect("h started restored\nh resumed snapshot\n");
    for (saved, restored, state, event) in [
        ("", "", "running (restored)", "h started restored\nh resumed snapshot\n"),
        ("--paused", "", "paused (migrating)", "h started restored\nh suspended restored\n"),
        ("--paused", "--running", "running (restored)", "h started restored\nh resumed snapshot\n"),
        ("--running", "--paused", "paused (migrating)", "h started restored\nh suspended restored\n"),
        ("--running", "", "running (restored)", "h started restored\nh resumed snapshot\n"),
    ] {
        let given = |flag| Some(flag).filter(|flag: &&str| !flag.is_empty());
        daemon.ok(&["save", "h", file].into_iter().chain(given(saved)).collect::<Vec<_>>());
        daemon.ok(&["restore", file].into_iter().chain(given(restored)).collect::<Vec<_>>());
        events.expect(event);
        assert_eq!(reason(&daemon, "h"), state, "{saved:?} {restored:?}");
    }
    assert_eq!(names_in(&daemon.path("shelf")), ["saved"]);
}

#[test]
fn every_format_is_restored() {
    let daemon = daemon();
    let file = shelf(&daemon).join("saved");
    let file = file.to_str().unwrap();
    daemon.create(&halting("h"));
    for format in ["raw", "gzip", "bzip2", "xz", "lzop", "zstd", "sparse"] {
        for cache in [None, Some("--bypass-cache")] {
            let save = ["save", "h", file, "--image-format", format];
            daemon.ok(&save.into_iter().chain(cache).collect::<Vec<_>>());
            assert_eq!(daemon.ok(&["list", "--all", "--name"]).trim(), "");
            daemon.ok(&["restore", file].into_iter().chain(cache).collect::<Vec<_>>());
            assert_eq!(reason(&daemon, "h"), "running (restored)", "{format} {cache:?}");
        }
    }
    let refused = |arguments: &[&str]| daemon.virsh(&[&["save", "h", file], arguments].concat()).fails();
    assert!(refused(&["--image-format", "lha"]).contains("operation failed: Invalid image_format 'lha'"));
    let channels = refused(&["--image-format", "gzip", "--parallel-channels", "2"]);
    assert!(channels.contains("Parallel save is only supported with the 'sparse' save image format"));
    daemon.ok(&["save", "h", file, "--image-format", "sparse", "--parallel-channels", "2"]);
    daemon.ok(&["restore", file, "--parallel-channels", "2"]);
    assert_eq!(names_in(&daemon.path("shelf")), ["saved"]);
}

/// The next number that the guest counts to.
fn next_count(console: &mut Program) -> u64 {
    console.expect("count ");
    let line = console.expect("\n");
    line.trim().parse().unwrap_or_else(|_| panic!("no number: {line:?}"))
}

#[test]
fn the_host_says_how_guests_are_saved() {
    let mut daemon = daemon();
    let file = shelf(&daemon).join("saved");
    daemon.kill();
    let conf = daemon.path("etc/libvirt/qemu.conf");
    let others = fs::read_to_string(&conf).unwrap_or_default();
    fs::write(&conf, format!("{others}\nsave_image_format = \"zstd\"\n")).unwrap();
    if on_upstream() {
        // What starts it there writes this file anew.
        return;
    }
    daemon.restart();
    daemon.create(&halting("h"));
    daemon.ok(&["save", "h", file.to_str().unwrap()]);
    let image = fs::read(&file).unwrap();
    assert_eq!(image[28..32], 5_u32.to_ne_bytes());
    daemon.ok(&["restore", file.to_str().unwrap()]);
}

#[test]
fn a_save_that_fails_leaves_the_guest_running_and_no_file() {
    let daemon = daemon();
    let shelf = shelf(&daemon);
    daemon.run(&halting("h"));
    let mut events = daemon.events();
    for (target, sentence) in [
        ("/dev/full", "No space left on device"),
        ("/nonexistent/saved", "Failed to create file '/nonexistent/saved': No such file or directory"),
    ] {
        let error = daemon.virsh(&["save", "h", target]).fails();
        assert!(error.contains(sentence), "{error}");
        events.expect("h suspended paused\nh resumed unpaused\n");
        assert_eq!(reason(&daemon, "h"), "running (save canceled)");
    }
    fs::write(shelf.join("given.xml"), halting("other").xml()).unwrap();
    let given = shelf.join("given.xml");
    let saved = shelf.join("saved");
    let arguments = ["save", "h", saved.to_str().unwrap(), "--xml", given.to_str().unwrap()];
    assert!(daemon.virsh(&arguments).fails().contains("does not match source"));
    assert_eq!(daemon.state("h"), "running");
    assert_eq!(names_in(&shelf), ["given.xml"]);
    assert!(daemon.virsh(&["domjobabort", "h"]).fails().contains("no job is active on the domain"));
}

/// Takes 64 KiB twenty times a second, until there is no more.
const SLOW_XZ: &str = r"#!/usr/bin/python3
import os, select
left = select.poll()
left.register(0, 0)
while os.read(0, 65536):
    left.poll(50)
";

/// A save that takes long, in its middle.
fn begin_long_save(daemon: &Daemon, file: &Path) -> Program {
    let tools = daemon.path("tools");
    fs::create_dir_all(&tools).unwrap();
    install_script(&tools.join("xz"), SLOW_XZ);
    // A minute and more of that.
    daemon.run(&counting("penguin").memory_mib(96));
    next_count(&mut daemon.console("penguin"));
    let save = beside(daemon, &["save", "penguin", file.to_str().unwrap(), "--image-format", "xz"]);
    eventually("some of it is there", || {
        let told = daemon.ok(&["domjobinfo", "penguin"]);
        let done = told.split_once("Memory processed: ").filter(|(_, done)| !done.starts_with("0.000 B"));
        (told.contains("Operation:        Save") && done.is_some()).then_some(())
    });
    save
}

#[test]
fn a_save_is_aborted() {
    let daemon = daemon();
    let shelf = shelf(&daemon);
    let file = shelf.join("saved");
    fs::write(&file, "the one before").unwrap();
    let mut save = begin_long_save(&daemon, &file);
    assert_eq!(reason(&daemon, "penguin"), "paused (saving)");
    let told = daemon.ok(&["domjobinfo", "penguin"]);
    assert!(told.contains("Job type:         Unbounded"), "{told}");
    assert!(told.contains("Memory total:     ") && told.contains("Time elapsed:"), "{told}");
    daemon.ok(&["domjobabort", "penguin"]);
    save.expect("operation aborted: job 'domain save' canceled by client");
    assert_eq!(reason(&daemon, "penguin"), "running (save canceled)");
    next_count(&mut daemon.console("penguin"));
    assert!(daemon.ok(&["domjobinfo", "penguin"]).contains("Job type:         None"));
    if !on_upstream() {
        // The original writes over what was there, and removes what it made.
        assert_eq!(fs::read_to_string(&file).unwrap(), "the one before");
        assert_eq!(names_in(&shelf), ["saved"]);
    }
}

#[test]
fn a_daemon_that_dies_over_a_save_leaves_a_guest_that_goes_on() {
    let mut daemon = daemon();
    let file = shelf(&daemon).join("saved");
    let mut save = begin_long_save(&daemon, &file);
    daemon.kill();
    daemon.restart();
    save.rest();
    eventually("it goes on", || (daemon.state("penguin") == "running").then_some(()));
    assert_eq!(reason(&daemon, "penguin"), "running (save canceled)");
    next_count(&mut daemon.console("penguin"));
    if !on_upstream() {
        assert!(!file.exists());
    }
    eventually("the job is over", || {
        daemon.ok(&["domjobinfo", "penguin"]).contains("Job type:         None").then_some(())
    });
    // Whatever was under way is over, so that the next one works.
    daemon.ok(&["save", "penguin", file.to_str().unwrap()]);
    daemon.ok(&["restore", file.to_str().unwrap()]);
    next_count(&mut daemon.console("penguin"));
}

#[test]
fn a_restore_that_fails_keeps_the_image_and_leaves_nothing() {
    let daemon = daemon();
    let shelf = shelf(&daemon);
    let file = shelf.join("saved");
    let name = file.to_str().unwrap();
    daemon.create(&halting("h"));
    let mut events = daemon.events();
    daemon.ok(&["save", "h", name]);
    let whole = fs::read(&file).unwrap();
    let broken = |bytes: &[u8], sentence: &str| {
        fs::write(&file, bytes).unwrap();
        let error = daemon.virsh(&["restore", name]).fails();
        assert!(error.contains(sentence), "{error}");
        assert_eq!(fs::read(&file).unwrap(), bytes, "the image has changed");
        assert_eq!(daemon.ok(&["list", "--all", "--name"]).trim(), "");
        assert!(daemon.qemu_pids().is_empty());
    };
    broken(b"nothing", "operation failed: failed to read qemu header");
    broken(&[b'x'; 4096], "operation failed: image magic is incorrect");
    broken(&[b"LibvirtQemudPart", &whole[16..]].concat(), "operation failed: save image is incomplete");
    let head = 92 + u32::from_ne_bytes(whole[20..24].try_into().unwrap()) as usize;
    broken(&[&whole[..head], &[0xa5; 100_000]].concat(), "load of migration failed");
    broken(&whole[..head + 50_000], "load of migration failed");
    fs::write(&file, &whole).unwrap();
    daemon.ok(&["restore", name]);
    let twice = daemon.virsh(&["restore", name]).fails();
    assert!(twice.contains("domain 'h' is already active"), "{twice}");
    // Of those that came to nothing nobody has heard.
    let heard = events.expect("started restored").replace("h shutdown host\n", "");
    assert!(heard.starts_with("h suspended paused\nh stopped saved\nh "), "{heard}");
}

#[test]
fn a_definition_in_an_image_is_read_and_changed() {
    let daemon = daemon();
    let file = shelf(&daemon).join("saved");
    let name = file.to_str().unwrap();
    daemon.create(&halting("h"));
    daemon.ok(&["save", "h", name]);
    let xml = daemon.ok(&["save-image-dumpxml", name]);
    assert!(xml.starts_with("<domain type=") && xml.contains("<name>h</name>"));
    let changed = xml.replace("<name>h</name>", "<name>h</name>\n  <title>changed</title>");
    let length = fs::metadata(&file).unwrap().len();
    daemon.with_xml(&changed, |given| daemon.ok(&["save-image-define", name, given, "--paused"]));
    assert_eq!(fs::metadata(&file).unwrap().len(), length);
    assert!(daemon.ok(&["save-image-dumpxml", name]).contains("<title>changed</title>"));
    // What the guest sees of its machine stays, down to its devices.
    for (from, to) in [
        ("<memory unit='KiB'>16384<", "<memory unit='KiB'>32768<"),
        ("<input type='mouse' bus='ps2'/>", "<input type='tablet' bus='virtio'/>"),
    ] {
        assert!(xml.contains(from), "{xml}");
        daemon.with_xml(&xml.replace(from, to), |given| {
            let error = daemon.virsh(&["save-image-define", name, given]).fails();
            assert!(error.contains("does not match source"), "{error}");
            let error = daemon.virsh(&["restore", name, "--xml", given]).fails();
            assert!(error.contains("does not match source"), "{error}");
        });
    }
    let long = xml.replace("<name>h</name>", &format!("<name>h</name><title>{}</title>", "x".repeat(70_000)));
    daemon.with_xml(&long, |given| {
        let error = daemon.virsh(&["save-image-define", name, given]).fails();
        assert!(error.contains("new xml too large to fit in file"), "{error}");
    });
    daemon.ok(&["restore", name]);
    assert_eq!(reason(&daemon, "h"), "paused (migrating)");
    assert_eq!(daemon.ok(&["desc", "h", "--title"]).trim(), "changed");
}

#[test]
fn a_managed_save_is_where_the_next_start_goes_on() {
    let daemon = daemon();
    daemon.run(&halting("h"));
    let image = daemon.path("var/lib/libvirt/qemu/save/h.save");
    let mut events = daemon.events();
    daemon.ok(&["managedsave", "h"]);
    assert_eq!(reason(&daemon, "h"), "shut off (saved)");
    assert!(image.exists());
    assert_eq!(daemon.ok(&["list", "--with-managed-save", "--all", "--name"]).trim(), "h");
    assert!(daemon.ok(&["dominfo", "h"]).contains("Managed save:   yes"));
    let refused = daemon.virsh(&["undefine", "h"]).fails();
    assert!(refused.contains("Refusing to undefine while domain managed save image exists"), "{refused}");
    daemon.ok(&["start", "h"]);
    events.expect("h stopped saved\nh started restored\nh resumed snapshot\n");
    assert_eq!(reason(&daemon, "h"), "running (restored)");
    assert!(!image.exists());

    daemon.ok(&["managedsave", "h", "--paused"]);
    let xml = daemon.ok(&["managedsave-dumpxml", "h"]);
    let titled = xml.replace("<name>h</name>", "<name>h</name>\n  <title>kept</title>");
    daemon.with_xml(&titled, |given| daemon.ok(&["managedsave-define", "h", given, "--running"]));
    daemon.ok(&["start", "h", "--paused"]);
    events.expect("h started restored\nh suspended paused\n");
    assert_eq!(daemon.ok(&["desc", "h", "--title"]).trim(), "kept");
    daemon.ok(&["resume", "h"]);

    daemon.ok(&["managedsave", "h"]);
    daemon.ok(&["start", "h", "--force-boot"]);
    events.expect("h started booted");
    assert!(!image.exists());
    assert_eq!(reason(&daemon, "h"), "running (booted)");

    daemon.ok(&["managedsave", "h"]);
    daemon.ok(&["managedsave-remove", "h"]);
    assert!(!image.exists());
    let none = daemon.virsh(&["managedsave-dumpxml", "h"]).fails();
    assert!(none.contains("domain does not have managed save image"), "{none}");
    daemon.ok(&["start", "h"]);
    daemon.ok(&["managedsave", "h"]);
    daemon.ok(&["undefine", "h", "--managed-save"]);
    assert!(!image.exists());
    daemon.create(&halting("t"));
    let transient = daemon.virsh(&["managedsave", "t"]).fails();
    assert!(transient.contains("cannot do managed save for transient domain"), "{transient}");
}

#[test]
fn a_kept_state_that_cannot_be_restored_stays_until_a_boot_is_forced() {
    let daemon = daemon();
    daemon.run(&halting("h"));
    let image = daemon.path("var/lib/libvirt/qemu/save/h.save");
    daemon.ok(&["managedsave", "h"]);
    let whole = fs::read(&image).unwrap();
    let head = 92 + u32::from_ne_bytes(whole[20..24].try_into().unwrap()) as usize;
    fs::write(&image, [&whole[..head], &[0xa5; 100_000]].concat()).unwrap();
    let error = daemon.virsh(&["start", "h"]).fails();
    assert!(error.contains("load of migration failed"), "{error}");
    assert_eq!(reason(&daemon, "h"), "shut off (failed)");
    assert_eq!(fs::metadata(&image).unwrap().len(), head as u64 + 100_000);
    // Somebody else's.
    daemon.define(&halting("other"));
    fs::copy(&image, daemon.path("var/lib/libvirt/qemu/save/other.save")).unwrap();
    let error = daemon.virsh(&["start", "other"]).fails();
    assert!(error.contains("from a file which belongs to domain 'h'"), "{error}");
    // Nothing will ever come of one that was never finished. libvirt forgets it and boots.
    fs::write(&image, [b"LibvirtQemudPart", &whole[16..]].concat()).unwrap();
    if !on_upstream() {
        let error = daemon.virsh(&["start", "h"]).fails();
        assert!(error.contains("save image is incomplete") && image.exists(), "{error}");
    }
    daemon.ok(&["start", "h", "--force-boot"]);
    assert_eq!(reason(&daemon, "h"), "running (booted)");
    assert!(!image.exists());
}

#[test]
fn a_kept_guest_starts_with_the_host_where_it_was() {
    let mut daemon = daemon();
    daemon.run(&halting("h"));
    daemon.ok(&["autostart", "h"]);
    daemon.ok(&["managedsave", "h"]);
    daemon.kill();
    let _ = fs::remove_file(daemon.path("run/libvirt/qemu/autostarted"));
    daemon.restart();
    eventually("it is started", || (daemon.state("h") == "running").then_some(()));
    assert_eq!(reason(&daemon, "h"), "running (restored)");
}

#[test]
fn clients_hear_of_jobs_that_are_done() {
    let daemon = daemon();
    let file = shelf(&daemon).join("saved");
    daemon.run(&halting("h"));
    let mut watcher = daemon.python_beside(
        "def done(conn, domain, params, opaque):\n    \
             print(domain.name(), params['operation'], 'memory_total' in params, 'disk_total' in params)\n\
         conn.domainEventRegisterAny(None, libvirt.VIR_DOMAIN_EVENT_ID_JOB_COMPLETED, done, None)\n\
         print('watching')\nrun_events()",
    );
    watcher.expect("watching\n");
    daemon.ok(&["save", "h", file.to_str().unwrap()]);
    watcher.expect("h 2 True False\n");
}

#[test]
fn a_monitor_that_is_busy_says_so() {
    let daemon = daemon();
    daemon.run(&halting("h"));
    assert_eq!(daemon.ok(&["domcontrol", "h"]).trim(), "ok");
    let pid = daemon.qemu_pid("h");
    signal(pid, Signal::STOP);
    let suspend = beside(&daemon, &["suspend", "h"]);
    eventually("it is occupied", || daemon.ok(&["domcontrol", "h"]).starts_with("occupied (").then_some(()));
    signal(pid, Signal::CONT);
    drop(suspend);
    eventually("it is free", || (daemon.ok(&["domcontrol", "h"]).trim() == "ok").then_some(()));
}

/// Whether libvirt's daemon is there to exchange images with.
fn has_upstream() -> bool {
    let found = Path::new("/usr/sbin/libvirtd").exists();
    if !found {
        eprintln!("left out: libvirt's own daemon is not installed (scripts/deps upstream)");
    }
    found
}

/// What one daemon saves, the other restores.
fn passed_on(from: Kind, to: Kind) {
    let mut daemon = Daemon::start(from, "");
    let shelf = shelf(&daemon);
    let mut counted = 0;
    daemon.run(&linux("penguin", "guest.count=0.5").device(
        "<interface type='user'/><rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>",
    ));
    for (format, next) in [("raw", to), ("zstd", from), ("sparse", to), ("gzip", from)] {
        let count = next_count(&mut daemon.console("penguin"));
        assert!(count > counted, "counted to {counted}, and now {count}");
        counted = count;
        let file = shelf.join(format);
        daemon.ok(&["save", "penguin", file.to_str().unwrap(), "--image-format", format]);
        daemon.kill();
        daemon.hand_over_to(next);
        daemon.restart();
        assert!(daemon.ok(&["save-image-dumpxml", file.to_str().unwrap()]).contains("<name>penguin</name>"));
        daemon.ok(&["restore", file.to_str().unwrap()]);
        assert_eq!(reason(&daemon, "penguin"), "running (restored)");
    }
    assert!(next_count(&mut daemon.console("penguin")) > counted);
    // What is kept for the next start is kept for either of them.
    daemon.ok(&["managedsave", "penguin"]);
    daemon.kill();
    daemon.hand_over_to(to);
    daemon.restart();
    daemon.ok(&["start", "penguin"]);
    assert_eq!(reason(&daemon, "penguin"), "running (restored)");
    assert!(next_count(&mut daemon.console("penguin")) > counted);
}

#[test]
fn images_go_to_libvirt_and_back() {
    if has_upstream() && !on_upstream() {
        passed_on(Kind::Instead(OURS), Kind::Upstream);
    }
}

/// A guest that the daemon has kept, started again, with a copy of the file that was kept.
fn with_an_old_memory(daemon: &Daemon, name: &str) -> (std::path::PathBuf, std::path::PathBuf) {
    daemon.run(&halting(name));
    daemon.ok(&["managedsave", name]);
    let kept = daemon.path(&format!("var/lib/libvirt/qemu/save/{name}.save"));
    let copy = daemon.path(&format!("{name}.copy"));
    fs::copy(&kept, &copy).unwrap();
    daemon.ok(&["start", name]);
    assert!(!kept.exists());
    (kept, copy)
}

fn save_job(file: &Path) -> String {
    format!("<job type='none' async='save' flags='0x0' file='{}'/>", file.display())
}

#[test]
fn a_managed_save_that_only_lacked_qemus_end_is_ended_by_the_next_daemon() {
    if on_upstream() {
        return; // it lets the guest go on
    }
    let mut daemon = daemon();
    let (kept, copy) = with_an_old_memory(&daemon, "whole");
    let (stale, old) = with_an_old_memory(&daemon, "broken");
    for name in ["whole", "broken"] {
        daemon.ok(&["suspend", name]);
    }
    let stream = format!(
        r#"{{"execute":"migrate","arguments":{{"uri":"file:{}"}}}}"#,
        daemon.path("var/lib/libvirt/qemu/stream").display()
    );
    daemon.ok(&["qemu-monitor-command", "whole", &stream]);
    eventually("all of it has left QEMU", || {
        let told = daemon.ok(&["qemu-monitor-command", "whole", r#"{"execute":"query-status"}"#]);
        told.contains("postmigrate").then_some(())
    });
    daemon.kill();
    for (name, kept, copy) in [("whole", &kept, &copy), ("broken", &stale, &old)] {
        fs::copy(copy, kept).unwrap();
        rewrite_interrupted(&daemon, name, ("paused", "save"), &save_job(kept));
    }
    daemon.restart();
    eventually("the guest is off", || (daemon.state("whole") == "shut off").then_some(()));
    assert_eq!(reason(&daemon, "whole"), "shut off (saved)");
    assert!(kept.exists());
    daemon.ok(&["start", "whole"]);
    assert_eq!(reason(&daemon, "whole"), "running (restored)");
    // What is there cannot be of a guest whose QEMU still has all of it.
    eventually("the guest goes on", || {
        (reason(&daemon, "broken") == "running (save canceled)").then_some(())
    });
    assert!(!stale.exists());
}

#[test]
fn a_memory_that_a_guest_has_gone_on_from_is_not_restored_again() {
    if on_upstream() {
        return; // it restores it
    }
    let mut daemon = daemon();
    let (kept, copy) = with_an_old_memory(&daemon, "runs");
    let (halfway, other) = with_an_old_memory(&daemon, "halfway");
    let aside = |kept: &Path| std::path::PathBuf::from(format!("{}.resumed.partial", kept.display()));
    assert!(!aside(&kept).exists());
    daemon.kill();
    fs::copy(&copy, &kept).unwrap();
    fs::copy(&copy, aside(&kept)).unwrap();
    // The other one was not yet let go.
    fs::copy(&other, aside(&halfway)).unwrap();
    rewrite_interrupted(&daemon, "halfway", ("paused", "starting up"), "");
    daemon.restart();
    eventually("the half-started guest is off", || (daemon.state("halfway") == "shut off").then_some(()));
    daemon.ok(&["start", "halfway"]);
    assert_eq!(reason(&daemon, "halfway"), "running (restored)");
    // Waits for the guest's adoption.
    daemon.ok(&["destroy", "runs"]);
    assert!(!kept.exists() && !aside(&kept).exists());
    daemon.ok(&["start", "runs"]);
    assert_eq!(reason(&daemon, "runs"), "running (booted)");
}
