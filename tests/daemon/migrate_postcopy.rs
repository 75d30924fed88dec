//! Guests that run on the other host before all of them is there, and what happens when the rest does not come.

use ferrovirt_compat::{Daemon, eventually};

use crate::migrate::{Hosts, counting, next_count};
use crate::migrate_failures::Migration;
use crate::on_upstream;

const OPTIONS: [&str; 4] = ["--live", "--postcopy", "--postcopy-bandwidth", "1"];

fn reason(daemon: &Daemon) -> String {
    daemon.virsh(&["domstate", "--reason", "penguin"]).out.trim().to_owned()
}

fn expect(hosts: &Hosts, source: &str, destination: &str) {
    let wanted = (source.to_owned(), destination.to_owned());
    let reasons = || (reason(&hosts.source), reason(&hosts.destination));
    let mut last = reasons();
    eventually(&format!("{wanted:?}, not {last:?}"), || {
        last = reasons();
        (last == wanted).then_some(())
    });
}

/// One that is in its second half: the guest runs at the destination, and most of it is still at the source.
fn halfway(hosts: &Hosts, options: &[&str]) -> Migration {
    hosts.source.ok(&["migrate-setspeed", "penguin", "1"]);
    let to = hosts.destination.uri();
    let arguments = [&["penguin", &to, "--migrateuri", "tcp://127.0.0.1"], &OPTIONS[..], options].concat();
    let mut migration = Migration::begin(&hosts.source, &arguments);
    eventually("memory is sent", || {
        migration.expect_running();
        let told = hosts.source.virsh(&["domjobinfo", "penguin"]).out;
        told.lines()
            .any(|line| line.starts_with("Memory processed") && !line.contains(" 0.000 B"))
            .then_some(())
    });
    // Slower than virsh can ask for: half an hour, however long the test takes for its steps.
    let slowly = r#"{"execute": "migrate-set-parameters", "arguments": {"max-postcopy-bandwidth": 50000}}"#;
    hosts.source.ok(&["qemu-monitor-command", "penguin", slowly]);
    hosts.source.ok(&["migrate-postcopy", "penguin"]);
    expect(hosts, "paused (post-copy)", "running (post-copy)");
    migration
}

/// Goes on with what has failed, at full speed.
fn go_on(hosts: &Hosts, options: &[&str]) -> ferrovirt_compat::Ran {
    let to = hosts.destination.uri();
    let base = ["migrate", "penguin", &to, "--live", "--postcopy", "--postcopy-resume"];
    let fast = ["--postcopy-bandwidth", "1000", "--migrateuri", "tcp://127.0.0.1"];
    hosts.source.virsh(&[&base[..], &fast, options].concat())
}

/// The same where daemons have just begun: they take the migration up once they have asked QEMU how it stands.
fn go_on_after_restart(hosts: &Hosts) -> ferrovirt_compat::Ran {
    eventually("both daemons know of it", || {
        let ran = go_on(hosts, &[]);
        let unknown = ["is not being migrated", "is not processing incoming migration"];
        (!unknown.iter().any(|sentence| ran.err.contains(sentence))).then_some(ran)
    })
}

#[test]
fn a_broken_post_copy_migration_stands_on_both_hosts_and_is_gone_on_with() {
    for p2p in [&[][..], &["--p2p"]] {
        let hosts = Hosts::new();
        hosts.source.create(&counting());
        let counted = next_count(&mut hosts.source.console("penguin"));
        let (mut leaving, mut arriving) = (hosts.source.events(), hosts.destination.events());
        let migration = halfway(&hosts, p2p);
        let there = next_count(&mut hosts.destination.console("penguin"));
        assert!(there > counted, "counted to {counted}, and now {there}");
        let running = go_on(&hosts, p2p).fails();
        assert!(running.contains("has not failed") || running.contains("actively monitored"), "{running}");
        let simple = hosts.source.virsh(&["domjobabort", "penguin"]).fails();
        assert!(simple.contains("cannot abort migration in post-copy mode"), "{simple}");
        hosts.source.ok(&["domjobabort", "penguin", "--postcopy"]);
        let (success, said) = migration.wait();
        assert!(!success && said.contains("job 'migration in' failed in post-copy phase"), "{said}");
        expect(&hosts, "paused (post-copy failed)", "running (post-copy failed)");
        leaving.expect("penguin suspended postcopy\n");
        leaving.expect("penguin suspended postcopy-failed\n");
        arriving.expect("penguin resumed postcopy\n");
        arriving.expect("penguin resumed postcopy-failed\n");
        if on_upstream() {
            // libvirt 11.3 crashes over one of the next calls.
            return;
        }
        // What is there of the guest goes on only with the rest of it.
        let without = ["migrate", "penguin", &hosts.destination.uri(), "--live", "--postcopy"];
        let again = hosts.source.virsh(&[&without[..], p2p].concat()).fails();
        assert!(again.contains("another migration job is already running for domain 'penguin'"), "{again}");
        let ran = go_on(&hosts, p2p);
        ran.ok();
        expect(&hosts, "", "running (migrated)");
        leaving.expect("penguin suspended postcopy\n");
        leaving.expect("penguin stopped migrated\n");
        arriving.expect("penguin resumed postcopy\n");
        arriving.expect("penguin resumed migrated\n");
        let then = next_count(&mut hosts.destination.console("penguin"));
        assert!(then > there, "counted to {there}, and now {then}");
        assert_eq!((hosts.source.qemu_pids().len(), hosts.destination.qemu_pids().len()), (0, 1));
        assert_eq!(hosts.destination.ok(&["domjobinfo", "penguin"]).split_whitespace().last(), Some("None"));
    }
}

#[test]
fn what_cannot_be_gone_on_with_is_refused() {
    let hosts = Hosts::new();
    hosts.source.create(&counting());
    let none = go_on(&hosts, &[]).fails();
    assert!(none.contains("domain 'penguin' is not being migrated"), "{none}");
    let to = hosts.destination.uri();
    let paused = hosts.source.virsh(&["migrate", "penguin", &to, "--postcopy"]).fails();
    let sentence = "post-copy migration is not supported with non-live or paused migration";
    assert!(paused.contains(sentence), "{paused}");
    let switched = hosts.source.virsh(&["migrate-postcopy", "penguin"]).fails();
    assert!(switched.contains("post-copy can only be started while outgoing migration"), "{switched}");
}

#[test]
fn a_post_copy_migration_outlives_whoever_watched_it() {
    if on_upstream() {
        return;
    }
    let mut hosts = Hosts::new();
    hosts.source.create(&counting());
    next_count(&mut hosts.source.console("penguin"));
    // The client: both daemons go on, and QEMU comes to the end by itself.
    drop(halfway(&hosts, &[]));
    expect(&hosts, "paused (post-copy failed)", "running (post-copy)");
    hosts.source.ok(&["migrate-setspeed", "penguin", "--postcopy", "1000"]);
    expect(&hosts, "", "running (migrated)");
    let counted = next_count(&mut hosts.destination.console("penguin"));
    hosts.migrate_back("penguin", &["--live"]).ok();
    // Either daemon: what it left goes on, and is gone on with.
    let migration = halfway(&hosts, &[]);
    hosts.destination.kill();
    assert!(!migration.wait().0);
    hosts.destination.restart();
    expect(&hosts, "paused (post-copy failed)", "running (post-copy)");
    hosts.source.kill();
    hosts.source.restart();
    expect(&hosts, "paused (post-copy failed)", "running (post-copy)");
    let early = go_on_after_restart(&hosts).fails();
    assert!(early.contains("QEMU reports migration is still running"), "{early}");
    hosts.source.ok(&["domjobabort", "penguin", "--postcopy"]);
    hosts.source.kill();
    hosts.destination.kill();
    hosts.source.restart();
    hosts.destination.restart();
    expect(&hosts, "paused (post-copy failed)", "running (post-copy failed)");
    go_on_after_restart(&hosts).ok();
    expect(&hosts, "", "running (migrated)");
    let then = next_count(&mut hosts.destination.console("penguin"));
    assert!(then > counted, "counted to {counted}, and now {then}");
}
