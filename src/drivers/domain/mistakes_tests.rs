//! A mistake of ours over one guest costs what was done at that moment and no more: the guest is still watched, and
//! its end is still seen. A subscriber that panics stands for the mistake, since every change is published.

use std::io::Write;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::time::Duration;

use crate::conf::domain::Domain;
use crate::conf::xml::Form;
use crate::config::qemu::QemuConfig;
use crate::config::secrets::SecretsConfig;
use crate::drivers::domain::event::EventId;
use crate::drivers::domain::list::Existing;
use crate::drivers::event_bus::{Event, Filter, Subscriber};
use crate::drivers::{ClientId, Drivers};
use crate::qemu::job::{DomainHandle, DomainObject, Ending, Machine, State};
use crate::qemu::monitor::{Monitor, Reopened};
use crate::qemu::process::{Directories, Files, How, Running};
use crate::qemu::run_state::{Paused, RunState, Running as Runs};
use crate::util::paths::Paths;
use crate::util::process::{Command, Process, Signal};

const XML: &str = "<domain type='qemu'><name>guest</name><uuid>8d2ea3f2-66bd-4fb5-8b7c-2a2ac6f8d1b1</uuid>\
     <memory>16384</memory><os><type>hvm</type></os></domain>";
const LIMIT: Duration = Duration::from_secs(60);

/// Panics at events whose text has this word in it.
struct Clumsy(&'static str);

impl Subscriber for Clumsy {
    fn deliver(&self, event: &Arc<Event>) {
        assert!(!format!("{event:?}").contains(self.0), "a mistake on purpose");
    }
}

/// Nobody has prepared directories for another user here.
fn as_root() -> QemuConfig {
    let mut config = QemuConfig::default();
    (config.security.user, config.security.group) = (Some(0), Some(0));
    config
}

fn drivers(root: &std::path::Path, mistake: &'static str) -> Arc<Drivers> {
    let path = std::env::var_os("PATH").unwrap();
    let drivers =
        Drivers::new(Paths::system(root), path, &as_root(), &SecretsConfig::default(), None).unwrap();
    let filter = Filter::Domain { domain: None, id: EventId::Lifecycle };
    drivers.events.subscribe(filter, Arc::new(Clumsy(mistake)));
    Arc::new(drivers)
}

/// A guest whose process sleeps and whose monitor is the test's.
async fn followed(drivers: &Drivers) -> (Arc<DomainObject>, Process, std::os::unix::net::UnixStream) {
    let domains = &drivers.domains;
    let live = Domain::parse(XML, Form::LIVE).unwrap();
    let fresh = || DomainObject::new(State::new(&*live.name, live.uuid), domains.limits);
    let object = domains.list.add((&live.name, live.uuid), Existing::Redefine, fresh).unwrap().object;
    let process = Command::new("/bin/sleep").arg("1000").start().await.unwrap().release();
    let files = Files::new(&Directories::new(&drivers.paths), 1, "guest");
    std::fs::create_dir_all(&files.directory).unwrap();
    let listener = UnixListener::bind(files.monitor()).unwrap();
    let Reopened { monitor, events, .. } = Monitor::reopen(&files.monitor(), "guest").unwrap();
    let (qemu, _) = listener.accept().unwrap();
    let machine = Machine::new(Running { process: process.clone(), monitor, files });
    let attach = |state: &mut State| {
        state.live = Some(Arc::new(live));
        state.id = Some(1);
        state.run = RunState::Running(Runs::Booted);
        state.attach(machine);
    };
    object.observe(attach, |_, ()| ());
    domains.follow(&object, process.clone(), events);
    (object, process, qemu)
}

fn report(qemu: &mut std::os::unix::net::UnixStream, event: &str) {
    writeln!(qemu, r#"{{"timestamp": {{"seconds": 1, "microseconds": 0}}, "event": "{event}"}}"#).unwrap();
}

async fn eventually(what: &str, holds: impl Fn() -> bool) {
    let wait = async {
        while !holds() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(LIMIT, wait).await.unwrap_or_else(|_| panic!("never happened: {what}"));
}

#[tokio::test]
async fn a_mistake_over_one_event_costs_that_event() {
    let root = tempfile::tempdir().unwrap();
    let drivers = drivers(root.path(), "Suspended");
    let (object, _process, mut qemu) = followed(&drivers).await;
    report(&mut qemu, "STOP");
    eventually("the guest is paused", || object.state().run == RunState::Paused(Paused::Unknown)).await;
    report(&mut qemu, "RESUME");
    eventually("the guest goes on", || object.state().run == RunState::Running(Runs::Unpaused)).await;
    let mut domain = DomainHandle::new(Arc::clone(&object));
    tokio::time::timeout(LIMIT, domain.stop(How::Forced, Ending::Destroyed)).await.unwrap().unwrap();
    assert!(drivers.domains.list.all().is_empty());
}

#[tokio::test]
async fn a_mistake_over_the_end_leaves_no_guest_behind() {
    let root = tempfile::tempdir().unwrap();
    let drivers = drivers(root.path(), "Stopped");
    let (object, process, _qemu) = followed(&drivers).await;
    let mut domain = DomainHandle::new(Arc::clone(&object));
    tokio::time::timeout(LIMIT, domain.stop(How::Forced, Ending::Destroyed)).await.unwrap().unwrap();
    assert!(process.is_gone().unwrap() && !object.state().is_active());
    eventually("it is forgotten", || drivers.domains.list.all().is_empty()).await;
    // Nor does a process that ends by itself.
    let (object, process, _qemu) = followed(&drivers).await;
    process.signal(Signal::KILL).unwrap();
    eventually("its end is seen", || !object.state().is_active()).await;
}

#[tokio::test]
async fn a_mistake_in_a_start_leaves_no_qemu_behind() {
    let root = tempfile::tempdir().unwrap();
    for mistake in ["Started", "Resumed"] {
        let drivers = drivers(root.path(), mistake);
        let domains = Arc::clone(&drivers.domains);
        let start = tokio::spawn(async move { domains.create(XML, 0, ClientId(1)).await.map(drop) });
        assert!(tokio::time::timeout(LIMIT, start).await.unwrap().is_err_and(|error| error.is_panic()));
        let domains = &drivers.domains;
        // What it held is free again, and the next one starts.
        let quiet = Arc::new(
            Drivers::new(
                Paths::system(root.path()),
                std::env::var_os("PATH").unwrap(),
                &as_root(),
                &SecretsConfig::default(),
                None,
            )
            .unwrap(),
        );
        assert!(domains.list.by_id(1).is_err());
        let status = root.path().join("run/libvirt/qemu/guest.xml");
        assert!(!status.exists());
        let needle = root.path().join("var/lib/libvirt/qemu/domain-");
        let needle = needle.as_os_str().as_encoded_bytes();
        eventually("QEMU is gone", || Process::with_arguments(needle).unwrap().is_empty()).await;
        let state = quiet.domains.create(XML, 0, ClientId(1)).await.unwrap();
        assert!(state.is_active());
        let mut domain = quiet.domains.list.by_name("guest").unwrap();
        domain.stop(How::Forced, Ending::Destroyed).await.unwrap();
    }
}
