//! Clients that show by Kerberos who they are, with a key distribution centre of the test's own.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Stdio;

use ferrovirt_compat::{Daemon, Kind, Program, Ran, command, eventually, halting, install_script, run};
use tempfile::TempDir;

use crate::access::rule;
use crate::migrate_ways::Network;
use crate::packaging::lacks;
use crate::{kind, on_upstream};

/// The host's own, which is the default one, and another that it trusts.
const REALMS: [&str; 2] = ["EXAMPLE.ORG", "PARTNER.ORG"];

/// A realm on a network where nobody else is, so its ports are free.
struct Realm {
    directory: TempDir,
    network: Network,
    _centre: Program,
}

impl Realm {
    fn new(what: &str, users: &[&str]) -> Self {
        let directory = tempfile::Builder::new().prefix("fv").tempdir_in("/tmp").unwrap();
        let network = Network::new(what);
        let place = directory.path().display();
        let write = |name: &str, text: &str| fs::write(directory.path().join(name), text).unwrap();
        write(
            "krb5.conf",
            "[libdefaults]\ndefault_realm = EXAMPLE.ORG\ndns_lookup_kdc = false\ndns_canonicalize_hostname = false\n\
             rdns = false\nignore_acceptor_hostname = true\n[realms]\nEXAMPLE.ORG = {\nkdc = 127.0.0.1:88\n}\n\
             PARTNER.ORG = {\nkdc = 127.0.0.1:88\n}\n[domain_realm]\nlocalhost = EXAMPLE.ORG\n",
        );
        let files = REALMS.map(|realm| {
            let files = format!("{place}/{realm}");
            format!(
                "{realm} = {{\ndatabase_name = {files}\nkey_stash_file = {files}.stash\nacl_file = {files}.acl\n}}\n"
            )
        });
        write(
            "kdc.conf",
            &format!(
                "[kdcdefaults]\nkdc_listen = 127.0.0.1:88\nkdc_tcp_listen = 127.0.0.1:88\n[realms]\n{}\
                 [logging]\nkdc = FILE:{place}/kdc.log\n",
                files.concat()
            ),
        );
        let realm = |program: &str, arguments: &[&str]| {
            let mut command = inside(&network, directory.path(), program);
            command.args(arguments);
            command
        };
        let done = |program: &str, arguments: &[&str]| {
            let ran = realm(program, arguments).output().unwrap();
            assert!(
                ran.status.success(),
                "{program} {arguments:?}: {}",
                String::from_utf8_lossy(&ran.stderr)
            );
        };
        let [own, partner] = REALMS;
        for name in REALMS {
            done("kdb5_util", &["-r", name, "create", "-s", "-P", "master"]);
            // Users of the partner's may ask for what is in ours.
            done("kadmin.local", &["-r", name, "-q", &format!("addprinc -pw trust krbtgt/{own}@{partner}")]);
        }
        for user in users {
            let realm = user.split_once('@').map_or(own, |(_, realm)| realm);
            done("kadmin.local", &["-r", realm, "-q", &format!("addprinc -pw secret-{user} {user}")]);
        }
        done("kadmin.local", &["-q", "addprinc -randkey libvirt/localhost"]);
        done("kadmin.local", &["-q", &format!("ktadd -k {place}/keytab libvirt/localhost")]);
        let centre = Program::start(realm("krb5kdc", &["-n", "-r", own, "-r", partner]));
        eventually("keys are given out", || {
            let log = fs::read_to_string(directory.path().join("kdc.log")).unwrap_or_default();
            log.contains("commencing operation").then_some(())
        });
        Self { directory, network, _centre: centre }
    }

    fn path(&self, name: &str) -> String {
        self.directory.path().join(name).display().to_string()
    }

    /// A daemon that asks for Kerberos, and whose own environment is the realm's.
    fn daemon(&self, ours: &str, more: &str) -> Daemon {
        let (krb5, keytab, sasl) = (self.path("krb5.conf"), self.path("keytab"), self.path("sasl.conf"));
        fs::write(&sasl, format!("mech_list: gssapi\nkeytab: {keytab}\n")).unwrap();
        let script = self.path("ferrovirtd");
        let text = format!(
            "#!/bin/sh\nexport KRB5_CONFIG={krb5}\nfor root; do :; done\nmkdir -p \"$root/etc/sasl2\"\n\
             cp {sasl} \"$root/etc/sasl2/libvirt.conf\"\nexec {ours} \"$@\"\n"
        );
        install_script(Path::new(&script), &text);
        let config = format!(
            "listen_addr = '127.0.0.1'\nlisten_tls = 0\nlisten_tcp = 1\ntcp_min_ssf = 128\nlog_level = 2\n{more}"
        );
        let guests = "user = \"root\"\ngroup = \"root\"\nremember_owner = 0\n";
        Daemon::start_in(
            Some(&self.network.0),
            Kind::Ours(Box::leak(script.into_boxed_str())),
            &config,
            guests,
        )
    }

    /// Somebody who has a ticket from now on.
    fn log_in(&self, user: &str) {
        let mut kinit = inside(&self.network, self.directory.path(), "kinit");
        let mut kinit = kinit.arg(user).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        writeln!(kinit.stdin.take().unwrap(), "secret-{user}").unwrap();
        assert!(kinit.wait().unwrap().success());
    }

    fn virsh(&self, arguments: &[&str]) -> Ran {
        let (krb5, tickets) = (self.path("krb5.conf"), self.path("tickets"));
        let set = [format!("KRB5_CONFIG={krb5}"), format!("KRB5CCNAME=FILE:{tickets}")];
        let client = ["netns", "exec", &self.network.0, "env", &set[0], &set[1], "virsh", "-q", "-c"];
        run("ip", &[&client[..], &["qemu+tcp://localhost/system"], arguments].concat())
    }
}

/// A program of the realm's.
fn inside(network: &Network, directory: &Path, program: &str) -> std::process::Command {
    let mut command = command("ip");
    command.args(["netns", "exec", &network.0, program]);
    for (name, file) in [("KRB5_CONFIG", "krb5.conf"), ("KRB5_KDC_PROFILE", "kdc.conf")] {
        command.env(name, directory.join(file));
    }
    command.env("KRB5CCNAME", format!("FILE:{}", directory.join("tickets").display()));
    command
}

/// The daemon to test, where there is all that a realm needs.
fn ours() -> Option<&'static str> {
    let programs = ["kdb5_util", "kadmin.local", "krb5kdc", "kinit"];
    let lacking = on_upstream() || programs.iter().any(|program| lacks(program)) || lacks_mechanism();
    match kind() {
        Kind::Ours(ours) if !lacking => Some(ours),
        _ => None,
    }
}

#[test]
fn who_has_a_ticket_comes_in_and_what_follows_is_encrypted() {
    let Some(ours) = ours() else { return };
    let realm = Realm::new("krb", &["alice", "bob"]);
    let daemon = realm.daemon(ours, "sasl_allowed_username_list = [ 'alice' ]\n");
    let said = realm.virsh(&["uri"]).fails();
    assert!(said.contains("authentication failed"), "{said}");
    realm.log_in("alice");
    assert_eq!(realm.virsh(&["uri"]).ok().trim(), "qemu+tcp://localhost/system");
    // More than one packet in both directions.
    let text = "much to tell ".repeat(20_000);
    let xml = format!(
        "<secret><description>{text}</description><usage type='volume'><volume>x</volume></usage></secret>"
    );
    daemon.with_xml(&xml, |path| realm.virsh(&["secret-define", path]).ok());
    let uuid = realm.virsh(&["secret-list"]).ok();
    let uuid = uuid.split_whitespace().next().unwrap().to_owned();
    assert!(realm.virsh(&["secret-dumpxml", &uuid]).ok().contains(text.trim_end()));
    assert!(daemon.log().contains("SASL name 'alice'"), "{}", daemon.log());
    // Known, and not on the list.
    realm.log_in("bob");
    let said = realm.virsh(&["uri"]).fails();
    assert!(said.contains("authentication failed"), "{said}");
    assert!(daemon.log().contains("'bob' not allowed"), "{}", daemon.log());
}

/// The rules of the example that go by names of SASL's.
#[test]
fn the_example_of_a_policy_means_users_of_kerberos() {
    let Some(ours) = ours() else { return };
    let users = ["alice/web", "alice/db", "carol/web@PARTNER.ORG"];
    let realm = Realm::new("kpol", &users);
    let list = "sasl_allowed_username_list = [ 'alice/*', '*@PARTNER.ORG' ]\n";
    let daemon = realm.daemon(ours, &format!("access_drivers = [ \"policy\" ]\n{list}"));
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/packaging/examples/access-policy.toml");
    rule(&daemon, &fs::read_to_string(example).unwrap());
    eventually("the policy is in force", || daemon.virsh(&["list"]).success.then_some(()));
    daemon.define(&halting("other"));
    let team = "<metadata><team:name xmlns:team='https://example.org/team'>web</team:name></metadata>";
    let xml = halting("site").xml().replace("</name>", &format!("</name>{team}"));
    daemon.with_xml(&xml, |file| daemon.ok(&["define", file]));
    for (user, seen) in users.into_iter().zip(["site", "", "site"]) {
        realm.log_in(user);
        assert_eq!(realm.virsh(&["list", "--all", "--name"]).ok().trim(), seen, "{user}");
        assert!(daemon.log().contains(&format!("SASL name '{user}'")), "{user}: {}", daemon.log());
    }
}

/// Whether the library has the mechanism, which is a package of its own.
fn lacks_mechanism() -> bool {
    let said = run("saslpluginviewer", &["-s", "-m", "GSSAPI"]);
    let there = said.out.contains("GSSAPI");
    if !there {
        eprintln!("left out: SASL has no GSSAPI here");
    }
    !there
}
