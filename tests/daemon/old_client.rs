//! The clients of Debian 12 itself (libvirt 9.0) beside those of its backports.

use std::path::PathBuf;

use ferrovirt_compat::{Ran, command, halting, run};

use crate::daemon;

/// The packages that scripts/deps puts aside where the installed clients are newer ones.
fn packages() -> Option<Vec<PathBuf>> {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let store = cache
        .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")))?
        .join("ferrovirt/packages");
    let files: Vec<PathBuf> = std::fs::read_dir(store).ok()?.flatten().map(|entry| entry.path()).collect();
    ["libvirt-clients_9.", "libvirt0_9.", "libyajl2_"]
        .iter()
        .map(|start| {
            files.iter().find(|file| file.file_name().is_some_and(|n| n.to_string_lossy().starts_with(start)))
        })
        .map(|file| file.cloned())
        .collect()
}

#[test]
fn virsh_of_libvirt_9_works_as_well() {
    let Some(packages) = packages() else {
        // Then the installed virsh is the release's own, and every other test is about it.
        let backports = run("dpkg-query", &["-W", "-f=${Version}", "libvirt0"]).out.contains("~bpo");
        assert!(!backports, "scripts/deps test downloads the older clients");
        return;
    };
    let unpacked = tempfile::tempdir().unwrap();
    for package in packages {
        assert!(command("dpkg-deb").arg("-x").arg(package).arg(unpacked.path()).status().unwrap().success());
    }
    let daemon = daemon();
    let virsh = |arguments: &[&str]| {
        let output = command("timeout")
            .arg("150")
            .arg(unpacked.path().join("usr/bin/virsh"))
            .args(["-q", "-c", &daemon.uri()])
            .args(arguments)
            .env("LD_LIBRARY_PATH", unpacked.path().join("usr/lib/x86_64-linux-gnu"))
            .output()
            .unwrap();
        let [out, err] =
            [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
        Ran { success: output.status.success(), code: output.status.code(), out, err }
    };
    assert!(virsh(&["version"]).ok().contains("Using library: libvirt 9.0.0"));
    daemon.with_xml(&halting("tiny").xml(), |file| virsh(&["define", file]).ok());
    virsh(&["start", "tiny"]).ok();
    assert!(virsh(&["list"]).ok().contains("running"));
    assert!(virsh(&["dominfo", "tiny"]).ok().contains("Persistent:     yes"));
    assert!(virsh(&["dumpxml", "tiny"]).ok().contains("<name>tiny</name>"));
    // It asks how many there are first, which needs no control group.
    assert!(virsh(&["memtune", "tiny"]).fails().contains("error: Unable to get memory parameters"));
    assert!(virsh(&["destroy", "absent"]).fails().contains("failed to get domain 'absent'"));
    virsh(&["destroy", "tiny"]).ok();
    virsh(&["undefine", "tiny"]).ok();
    assert_eq!(virsh(&["list", "--all", "--name"]).ok().trim(), "");
}
