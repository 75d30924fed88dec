//! What an installation and the package bring beside the program: units, accounts, examples, the manual.

use std::fs;
use std::path::{Path, PathBuf};

use ferrovirt::config::Config;
use ferrovirt::rpc::access::policy::Policy;
use ferrovirt_compat::{command, install_script, run};

use crate::on_upstream;
use crate::session::install;

fn packaging(below: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging").join(below)
}

/// Whether a test has to be left out for want of a program of the host's.
pub(crate) fn lacks(program: &str) -> bool {
    let is_there = command("sh").args(["-c", &format!("command -v {program}")]).output().unwrap();
    if !is_there.status.success() {
        eprintln!("left out: there is no {program} here");
    }
    !is_there.status.success()
}

#[test]
fn systemd_accepts_the_units_accounts_and_directories() {
    if on_upstream() || lacks("systemd-analyze") || lacks("systemd-sysusers") {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    install(root.path());
    let place = format!("--root={}", root.path().display());
    let units = root.path().join("usr/lib/systemd/system");
    // What it does not find is the host's, not the installation's.
    for other in ["sysinit.target", "sockets.target", "basic.target", "shutdown.target", "network.target"] {
        fs::write(units.join(other), "[Unit]\nDescription=x\n").unwrap();
    }
    fs::create_dir(root.path().join("bin")).unwrap();
    install_script(&root.path().join("bin/kill"), "#!/bin/sh\n");
    for unit in ["ferrovirtd.service", "ferrovirtd.socket", "ferrovirtd-ro.socket", "ferrovirtd-admin.socket"]
    {
        let said = run("systemd-analyze", &["verify", "--man=no", &place, unit]);
        assert!(said.success && !said.err.contains("ferrovirtd"), "{unit}: {}", said.err);
    }
    run("systemd-sysusers", &[&place, "ferrovirt.conf"]).ok();
    let users = fs::read_to_string(root.path().join("etc/passwd")).unwrap();
    assert!(users.contains("libvirt-qemu:x:64055:"), "{users}");
    let groups = fs::read_to_string(root.path().join("etc/group")).unwrap();
    assert!(groups.contains("libvirt-qemu:x:64055:libvirt-qemu\n"), "{groups}");
    fs::remove_dir_all(root.path().join("var")).unwrap();
    run("systemd-tmpfiles", &[&place, "--create", "ferrovirt.conf"]).ok();
    assert!(root.path().join("var/lib/libvirt/images").is_dir());
}

#[test]
fn lintian_accepts_the_package() {
    if on_upstream() || lacks("lintian") || lacks("dh") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let place = format!("DEB={}", directory.path().display());
    // Any program will do: it is the files around it that are judged.
    run("make", &["-s", "-C", env!("CARGO_MANIFEST_DIR"), "deb", &place, "BINARY=/bin/true"]).ok();
    let changes = directory.path().join("ferrovirt_0.1.0_amd64.changes");
    let said = run(
        "lintian",
        &["--no-cfg", "--allow-root", "--fail-on", "error,warning", changes.to_str().unwrap()],
    );
    assert!(said.success && said.out.is_empty(), "{}{}", said.out, said.err);
    let package = directory.path().join("ferrovirt_0.1.0_amd64.deb");
    let about = run("dpkg-deb", &["--field", package.to_str().unwrap()]).ok();
    assert!(about.contains("Conflicts: libvirt-daemon\n"), "{about}");
    let files = run("dpkg-deb", &["--contents", package.to_str().unwrap()]).ok();
    for file in ["man8/ferrovirtd.8.gz", "examples/access-policy.toml", "ferrovirtd-admin.socket"] {
        assert!(files.contains(file), "{files}");
    }
}

#[test]
fn the_manual_names_every_option() {
    if on_upstream() {
        return;
    }
    let manual = fs::read_to_string(packaging("man/ferrovirtd.8")).unwrap().replace('\\', "");
    let help = run(env!("CARGO_BIN_EXE_ferrovirtd"), &["--help"]).ok();
    let options: Vec<_> = help.split([' ', ',', '\n']).filter(|word| word.starts_with("--")).collect();
    assert!(options.contains(&"--check-config"), "{help}");
    for option in options {
        assert!(manual.contains(option), "{option}");
    }
}

#[test]
fn the_examples_are_the_defaults_and_have_no_mistakes() {
    if on_upstream() {
        return;
    }
    let path = packaging("examples/libvirtd.conf");
    let text = fs::read_to_string(&path).unwrap();
    let (example, default) = (Config::read(&path, &text).unwrap(), Config::default());
    // What these are without a line depends on the user, and is said beside it.
    let (auth, sockets) = (default.auth.clone(), default.sockets.clone());
    assert_eq!(Config { auth, sockets, ..example }, default);
    let everything: String = text
        .lines()
        .map(|line| match line.strip_prefix('#').filter(|line| !line.starts_with(' ')) {
            Some(setting) => format!("{setting}\n"),
            None => format!("{line}\n"),
        })
        .collect();
    assert_ne!(everything, text);
    let all = Config::read(&path, &everything).unwrap();
    assert!(all.remarks.is_empty() && all.metrics.is_some(), "{:?}", all.remarks);
    Policy::load(&packaging("examples/access-policy.toml")).unwrap();
}
