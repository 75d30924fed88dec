//! Saves, restores and dumps where the host has too little, or the client wants more than the usual.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use ferrovirt_compat::{Daemon, counting, halting, part, run};

use crate::migrate::next_count;
use crate::migrate_failures::Small;
use crate::{daemon, kind, on_upstream};

fn names_in(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

#[test]
fn a_disk_that_is_full_leaves_the_guest_running_and_no_half_file() {
    if on_upstream() {
        // It does not see what is mounted here.
        return;
    }
    let daemon = daemon();
    let small = Small::new(&daemon.path("small"), "64k");
    let kept = Small::new(&daemon.path("var/lib/libvirt/qemu/save"), "64k");
    let file = small.0.join("saved");
    let file = file.to_str().unwrap();
    daemon.run(&counting("penguin"));
    let mut console = daemon.console("penguin");
    let mut counted = next_count(&mut console);
    for arguments in [
        &["save", "penguin", file][..],
        &["save", "penguin", file, "--image-format", "zstd"],
        &["save", "penguin", file, "--image-format", "sparse"],
        &["save", "penguin", file, "--bypass-cache"],
        &["managedsave", "penguin"],
        &["dump", "penguin", file],
        &["dump", "penguin", file, "--memory-only"],
        &["dump", "penguin", file, "--memory-only", "--format", "kdump-zlib"],
    ] {
        let error = daemon.virsh(arguments).fails();
        assert!(error.contains("No space left on device"), "{arguments:?}: {error}");
        assert_eq!(daemon.state("penguin"), "running", "{arguments:?}");
        let count = next_count(&mut console);
        assert!(count > counted, "{arguments:?}");
        counted = count;
        assert!(names_in(&small.0).is_empty() && names_in(&kept.0).is_empty(), "{arguments:?}");
        assert!(daemon.ok(&["domjobinfo", "penguin"]).contains("None"), "{arguments:?}");
    }
}

#[test]
fn a_program_that_packs_and_is_not_there_is_missed_before_anything_is_touched() {
    if on_upstream() {
        return;
    }
    let mut daemon = daemon();
    daemon.run(&halting("h"));
    let file = daemon.path("saved");
    let name = file.to_str().unwrap();
    daemon.ok(&["save", "h", name, "--image-format", "zstd"]);
    daemon.kill();
    daemon.restart_searching("/nonexistent");
    let sentence = "operation failed: Compression program for save image format";
    let error = daemon.virsh(&["restore", name]).fails();
    assert!(error.contains(sentence), "{error}");
    assert!(file.exists() && daemon.qemu_pids().is_empty());
    daemon.ok(&["start", "h"]);
    let mut events = daemon.events();
    let other = daemon.path("other");
    let error = daemon.virsh(&["save", "h", other.to_str().unwrap(), "--image-format", "lzop"]).fails();
    assert!(error.contains(sentence), "{error}");
    assert!(!other.exists());
    assert_eq!(daemon.state("h"), "running");
    // It did not even stand still.
    daemon.ok(&["destroy", "h"]);
    let seen = events.expect("h stopped destroyed");
    assert!(!seen.contains("suspended") && !seen.contains("resumed"), "{seen}");
}

#[test]
fn a_restore_may_begin_with_fresh_variables_of_the_firmware() {
    let daemon = daemon();
    let (template, variables, file) =
        (daemon.path("template"), daemon.path("variables"), daemon.path("saved"));
    fs::write(&template, vec![0xff; 64 << 10]).unwrap();
    let code = part("halt.rom");
    let rom = format!("<loader type='rom'>{}</loader>", code.display());
    let flash = format!(
        "<loader readonly='yes' type='pflash' format='raw'>{}</loader>\
         <nvram template='{}' templateFormat='raw' format='raw'>{}</nvram>",
        code.display(),
        template.display(),
        variables.display()
    );
    let xml = halting("h").tcg().xml().replace(&rom, &flash);
    daemon.with_xml(&xml, |xml| daemon.ok(&["define", xml]));
    daemon.ok(&["start", "h"]);
    // QEMU writes what it has into either; that the file is another one shows beside the one before.
    let before = daemon.path("before");
    let keep = || {
        let _ = fs::remove_file(&before);
        fs::hard_link(&variables, &before).unwrap();
    };
    let is_fresh = || fs::metadata(&variables).unwrap().ino() != fs::metadata(&before).unwrap().ino();
    let name = file.to_str().unwrap();
    for (arguments, fresh) in [(&[][..], false), (&["--reset-nvram"], true)] {
        daemon.ok(&["save", "h", name]);
        keep();
        daemon.ok(&[&["restore", name], arguments].concat());
        assert_eq!(is_fresh(), fresh, "restore {arguments:?}");
        daemon.ok(&["managedsave", "h"]);
        keep();
        daemon.ok(&[&["start", "h"], arguments].concat());
        assert_eq!(is_fresh(), fresh, "start {arguments:?}");
    }
    // Those of a guest that runs are its own.
    keep();
    let refused = daemon.virsh(&["restore", name, "--reset-nvram"]).fails();
    assert!(refused.contains("already active") && !is_fresh(), "{refused}");
}

#[test]
fn a_definition_in_an_image_is_edited() {
    let daemon = daemon();
    daemon.run(&halting("h"));
    let file = daemon.path("saved");
    daemon.ok(&["save", "h", file.to_str().unwrap()]);
    daemon.run(&halting("k"));
    daemon.ok(&["managedsave", "k"]);
    let edit = |arguments: &[&str]| {
        let editor = "EDITOR=sed -i -e 's,<memory unit,<title>edited</title><memory unit,'";
        run("env", &[&[editor, "virsh", "-c", &daemon.uri()], arguments].concat()).ok()
    };
    assert!(edit(&["save-image-edit", file.to_str().unwrap()]).contains("edited"));
    edit(&["managedsave-edit", "k"]);
    daemon.ok(&["restore", file.to_str().unwrap()]);
    daemon.ok(&["start", "k"]);
    for guest in ["h", "k"] {
        assert_eq!(daemon.ok(&["desc", guest, "--title"]).trim(), "edited");
    }
}

#[test]
fn what_is_saved_of_a_user_s_guest_belongs_to_root_and_comes_back() {
    let conf = "user = \"+64999\"\ngroup = \"+64998\"\nsecurity_driver = \"none\"\n\
                cgroup_controllers = []\nnamespaces = []\n";
    let daemon = Daemon::start_with(kind(), "", conf);
    daemon.run(&halting("h").tcg());
    let shelf = daemon.path("shelf");
    fs::create_dir(&shelf).unwrap();
    // Its user cannot get there; it has no need to.
    fs::set_permissions(&shelf, fs::Permissions::from_mode(0o700)).unwrap();
    let file = shelf.join("saved");
    let name = file.to_str().unwrap();
    for format in ["raw", "zstd", "sparse"] {
        daemon.ok(&["save", "h", name, "--image-format", format]);
        let found = fs::metadata(&file).unwrap();
        assert_eq!((found.uid(), found.gid(), found.mode() & 0o777), (0, 0, 0o600), "{format}");
        daemon.ok(&["restore", name]);
        assert_eq!(daemon.state("h"), "running");
        assert_eq!(fs::metadata(&file).unwrap().uid(), 0, "{format}");
    }
    daemon.ok(&["dump", "h", name, "--memory-only"]);
    assert_eq!(fs::metadata(&file).unwrap().uid(), 0);
    daemon.ok(&["managedsave", "h"]);
    daemon.ok(&["start", "h"]);
    let qemu = fs::metadata(format!("/proc/{}", daemon.qemu_pid("h"))).unwrap();
    assert_eq!(qemu.uid(), 64_999);
}

#[test]
fn every_format_of_a_dump_is_known_to_those_who_read_them() {
    let daemon = daemon();
    daemon.run(&counting("penguin"));
    let file = daemon.path("core");
    let name = file.to_str().unwrap();
    for (format, told) in [
        (&[][..], "ELF 64-bit LSB core file"),
        (&["--format", "elf"], "ELF 64-bit LSB core file"),
        (&["--format", "kdump-zlib"], "Flattened kdump compressed dump"),
        (&["--format", "kdump-lzo"], "Flattened kdump compressed dump"),
        (&["--format", "kdump-snappy"], "Flattened kdump compressed dump"),
    ] {
        let dumped = daemon.virsh(&[&["dump", "penguin", name, "--memory-only"], format].concat());
        if !dumped.success {
            // This QEMU was built without it, and says so.
            assert!(dumped.err.contains("unsupported dumpformat"), "{format:?}: {}", dumped.err);
            continue;
        }
        let named = run("file", &["-b", name]).ok();
        assert!(named.contains(told), "{format:?}: {named}");
    }
}

#[test]
fn a_watchdog_that_runs_out_has_the_guest_dumped() {
    let daemon = daemon();
    let mut events = daemon.events();
    daemon.run(&counting("penguin").device("<watchdog model='ib700' action='dump'/>"));
    events.expect("penguin suspended watchdog");
    events.expect("penguin resumed");
    assert_eq!(daemon.state("penguin"), "running");
    let dumps = daemon.path("var/lib/libvirt/qemu/dump");
    let names = names_in(&dumps);
    assert!(names.len() == 1 && names[0].contains("-penguin-"), "{names:?}");
    assert!(fs::metadata(dumps.join(&names[0])).unwrap().len() > 1 << 20);
}
