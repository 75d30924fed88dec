//! What `scripts/deps` asks apt for, on machines of which only their packages and sources are made up.

#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

use std::fs;
use std::path::Path;

use ferrovirt_compat::{command, install_script};

/// A machine, what is asked of it, and what has to be among the commands it would run.
struct Case {
    /// `PACKAGE VERSION` for each that is installed.
    installed: &'static str,
    /// The version of libvirt-daemon that apt would install.
    candidate: &'static str,
    groups: &'static [&'static str],
    said: &'static [&'static str],
    unsaid: &'static [&'static str],
}

const STABLE: &str = "9.0.0-4+deb12u2";
const CLIENTS_OF_STABLE: &str =
    "qemu-utils 1:7.2+dfsg-7\nqemu-system-x86 1:7.2+dfsg-7\nlibvirt0 9.0.0-4\nlibvirt-clients 9.0.0-4";

const CASES: &[Case] = &[
    // An older libvirt is not what is compared with: all of it from backports, what is here too.
    Case {
        installed: CLIENTS_OF_STABLE,
        candidate: STABLE,
        groups: &["upstream"],
        said: &[
            "libvirt 9.0.0-4+deb12u2 of CODENAME is older than 11: adding CODENAME-backports as ETC/sources.list.d/ferrovirt-backports.sources",
            "installing -t CODENAME-backports libvirt-daemon libvirt-daemon-log libvirt-daemon-driver-qemu",
            " qemu-system-x86",
            " libvirt-clients",
        ],
        unsaid: &["swtpm"],
    },
    Case {
        installed: "",
        candidate: "11.3.0-3",
        groups: &["upstream"],
        said: &["installing libvirt-daemon libvirt-daemon-log libvirt-daemon-driver-qemu"],
        unsaid: &["backports"],
    },
    // Tests need no more than what the release has.
    Case {
        installed: "",
        candidate: STABLE,
        groups: &["test"],
        said: &["installing qemu-system-x86", "libvirt-clients"],
        unsaid: &["backports", "libvirt-daemon"],
    },
    // What came from backports has its like from there.
    Case {
        installed: "qemu-utils 1:10.0.2~bpo12+1",
        candidate: STABLE,
        groups: &["test"],
        said: &["installing -t CODENAME-backports qemu-system-x86", "would download libvirt-clients"],
        unsaid: &["libvirt-daemon"],
    },
    Case {
        installed: "",
        candidate: STABLE,
        groups: &["clients"],
        said: &["virtinst", "virtnbdbackup"],
        unsaid: &["backports", "libvirt-daemon"],
    },
];

#[test]
fn what_is_missing_comes_from_where_it_fits_together() {
    for case in CASES {
        let said = dry_run(case);
        let groups = case.groups;
        for line in case.said {
            assert!(said.contains(line), "{groups:?} lacks {line:?}:\n{said}");
        }
        for line in case.unsaid {
            assert!(!said.contains(line), "{groups:?} has {line:?}:\n{said}");
        }
    }
}

fn dry_run(case: &Case) -> String {
    let machine = tempfile::tempdir().unwrap();
    let at = |path: &str| machine.path().join(path);
    for directory in ["scripts", "tools", "etc/sources.list.d"] {
        fs::create_dir_all(at(directory)).unwrap();
    }
    fs::copy(Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/deps"), at("scripts/deps")).unwrap();
    let release =
        command("sh").args(["-c", ". /etc/os-release && printf %s \"$VERSION_CODENAME\""]).output().unwrap();
    let release = String::from_utf8(release.stdout).unwrap();
    fs::write(at("etc/sources.list"), format!("deb http://deb.debian.org/debian {release} main\n")).unwrap();
    fs::write(at("installed"), case.installed).unwrap();
    // `dpkg-query -W -f=FORMAT NAME…`: the two forms that are asked for.
    let query = format!(
        "#!/bin/sh\nformat=$2; shift 2\nfor name; do awk -v name=\"$name\" -v format=\"$format\" \
         '$1 == name {{ print format ~ /Status/ ? \"installed \" $1 : $2 }}' {}; done\n",
        at("installed").display()
    );
    let policy = format!(
        "#!/bin/sh\n[ \"$1\" = policy ] || exit 0\nshift; for name; do echo \"$name:\"; echo '  Candidate: {}'; done\n",
        case.candidate
    );
    for (tool, text) in [("dpkg-query", &*query), ("apt-cache", &policy), ("apt-get", "#!/bin/sh\nexit 1\n")]
    {
        install_script(&at("tools").join(tool), text);
    }
    let path = format!("{}:{}", at("tools").display(), std::env::var("PATH").unwrap());
    let ran = command("bash")
        .arg(at("scripts/deps"))
        .arg("--dry-run")
        .args(case.groups)
        .env("PATH", path)
        .env("DEPS_ETC_APT", at("etc"))
        .env("XDG_CACHE_HOME", at("cache"))
        .output()
        .unwrap();
    let said = String::from_utf8(ran.stderr).unwrap();
    assert!(ran.status.success(), "{:?}: {said}", case.groups);
    said.replace(&format!("{}", at("etc").display()), "ETC").replace(&release, "CODENAME")
}
