//! How a call travels: order, limits, refusals, descriptors.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use ferrovirt::error::Result;
use ferrovirt::rpc::auth::Authentication;
use ferrovirt::rpc::places::Newcomer;
use ferrovirt::rpc::router::{Call, Routes, WithDescriptors};
use ferrovirt::rpc::session::Rights;
use ferrovirt_protocol::client::Client;
use ferrovirt_protocol::frame::{FrameType, Status};
use ferrovirt_protocol::procedure::{Procedure, Program};
use ferrovirt_protocol::remote::procedure::*;
use ferrovirt_protocol::remote::*;
use ferrovirt_protocol::xdr;
use tokio::sync::Semaphore;

use crate::world::{World, call, domain, open, refusal, said, soon};

/// Calls that wait for the test: `virDomainSuspend` takes a permit of `gate` and counts itself done.
#[derive(Clone)]
struct Gate {
    gate: Arc<Semaphore>,
    done: Arc<Semaphore>,
    started: Arc<AtomicUsize>,
}

impl Gate {
    fn new() -> Self {
        Self { gate: Arc::new(Semaphore::new(0)), done: Arc::new(Semaphore::new(0)), started: Arc::default() }
    }

    fn world(&self) -> World {
        let gate = self.clone();
        World::new(|r| {
            r.on::<DomainSuspend>(move |_: Call, _| {
                let gate = gate.clone();
                gate.started.fetch_add(1, Ordering::SeqCst);
                async move {
                    gate.gate.acquire().await.unwrap().forget();
                    gate.done.add_permits(1);
                    Ok(())
                }
            });
        })
    }
}

async fn suspend(client: Client) -> Result<(), ferrovirt_protocol::client::CallError> {
    client.call::<DomainSuspend>(&DomainSuspendArgs { dom: domain("x") }).await
}

async fn lib_version(client: &Client) -> u64 {
    client.call::<ConnectGetLibVersion>(&()).await.unwrap().lib_ver
}

#[tokio::test]
async fn a_waiting_call_does_not_hold_up_the_next() {
    let gate = Gate::new();
    let world = gate.world();
    let (client, _events) = world.client().await;
    let waiting = tokio::spawn(suspend(client.clone()));
    while gate.started.load(Ordering::SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(soon(lib_version(&client)).await, 11_003_000);
    assert!(!waiting.is_finished());
    gate.gate.add_permits(1);
    soon(waiting).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_client_runs_so_many_calls_at_once_and_no_more() {
    let gate = Gate::new();
    let world = gate.world();
    let (client, _events) = world.client().await;
    let waiting: Vec<_> = (0..5).map(|_| tokio::spawn(suspend(client.clone()))).collect();
    let sixth = tokio::spawn(suspend(client.clone()));
    while gate.started.load(Ordering::SeqCst) < 5 {
        tokio::task::yield_now().await;
    }
    // Another client is not held up, and takes long enough for the sixth to show itself.
    let (other, _other_events) = world.client().await;
    for _ in 0..100 {
        soon(lib_version(&other)).await;
    }
    assert_eq!(gate.started.load(Ordering::SeqCst), 5);
    // Its pings are answered nevertheless.
    soon(client.ping()).await.unwrap();
    gate.gate.add_permits(6);
    for call in waiting.into_iter().chain([sixth]) {
        soon(call).await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_call_finishes_although_its_client_left() {
    let gate = Gate::new();
    let world = gate.world();
    let (client, events) = world.client().await;
    let waiting = tokio::spawn(suspend(client.clone()));
    while gate.started.load(Ordering::SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
    client.close();
    drop((client, events));
    assert!(soon(waiting).await.unwrap().is_err());
    soon(world.server.client_count().wait_for(|&clients| clients == 0)).await.unwrap();
    gate.gate.add_permits(1);
    soon(gate.done.acquire()).await.unwrap().forget();
}

#[tokio::test]
async fn stopping_waits_for_calls_whose_client_left() {
    let gate = Gate::new();
    let world = gate.world();
    let (client, events) = world.client().await;
    let waiting = tokio::spawn(suspend(client.clone()));
    while gate.started.load(Ordering::SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
    client.close();
    drop((client, events));
    assert!(soon(waiting).await.unwrap().is_err());
    let server = Arc::clone(&world.server);
    let stopping = tokio::spawn(async move { server.stop(std::time::Duration::from_secs(60)).await });
    while world.server.line_up(Newcomer::Root, &Authentication::None).is_ok() {
        tokio::task::yield_now().await;
    }
    soon(world.server.client_count().wait_for(|&clients| clients == 0)).await.unwrap();
    assert!(!stopping.is_finished());
    gate.gate.add_permits(1);
    soon(stopping).await.unwrap();
    assert_eq!(gate.done.available_permits(), 1);
}

#[tokio::test]
async fn stopping_lets_running_calls_answer() {
    let gate = Gate::new();
    let world = gate.world();
    let (client, _events) = world.client().await;
    let waiting = tokio::spawn(suspend(client.clone()));
    while gate.started.load(Ordering::SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
    let server = Arc::clone(&world.server);
    let stopping = tokio::spawn(async move { server.stop(std::time::Duration::from_secs(60)).await });
    while world.server.line_up(Newcomer::Root, &Authentication::None).is_ok() {
        tokio::task::yield_now().await;
    }
    gate.gate.add_permits(1);
    soon(waiting).await.unwrap().unwrap();
    soon(stopping).await.unwrap();
    soon(client.closed()).await;
}

#[tokio::test]
async fn a_panic_answers_its_call_and_nobody_else_notices() {
    let world = World::new(|r| {
        r.on::<DomainSuspend>(|_: Call, _| async { panic!("on the spot") });
        r.on::<DomainResume>(|_: Call, _| async {
            tokio::task::yield_now().await;
            panic!("later")
        });
    });
    let (client, _events) = world.client().await;
    let (code, _, _) = said(soon(suspend(client.clone())).await);
    assert_eq!(code, 1);
    let resumed = call::<DomainResume>(&client, DomainResumeArgs { dom: domain("x") }).await;
    assert_eq!(said(resumed).0, 1);
    assert_eq!(lib_version(&client).await, 11_003_000);
}

#[tokio::test]
async fn refusals_have_libvirts_codes_and_words() {
    let world = World::new(|_| {});
    let raw = async |client: &Client, program: Program, procedure: i32, payload: &[u8]| {
        let reply = soon(client.call_raw(program, procedure, payload)).await.unwrap();
        assert_eq!((reply.header.kind, reply.header.status), (FrameType::REPLY, Status::ERROR));
        let error: ferrovirt_protocol::net::Error = xdr::decode(&reply.payload).unwrap();
        (error.code, error.domain, error.text().to_owned())
    };
    let (stranger, _events) = world.stranger().await;
    let not_open = "internal error: hypervisor connection not open";
    assert_eq!(raw(&stranger, PROGRAM, ConnectGetType::NUMBER, &[]).await, (1, 7, not_open.to_owned()));
    let (client, _events) = world.client().await;
    let unknown = Program { number: 0x1234_5678, ..PROGRAM };
    let newer = Program { version: 2, ..PROGRAM };
    let unsupported = "this function is not supported by the connection driver: ";
    for (program, procedure, payload, expected) in [
        (PROGRAM, 9999, &[][..], (39, 7, "unknown procedure: 9999".to_owned())),
        (PROGRAM, -1, &[], (39, 7, "unknown procedure: -1".to_owned())),
        (PROGRAM, 107, &[], (39, 7, "unknown procedure: 107".to_owned())),
        (unknown, 1, &[], (39, 7, "Cannot find program 305419896 version 1".to_owned())),
        (newer, 1, &[], (39, 7, "Cannot find program 536903814 version 2".to_owned())),
        (PROGRAM, ConnectGetType::NUMBER, &[0; 4], (39, 7, "Unable to decode message payload".to_owned())),
        (
            PROGRAM,
            ConnectSupportsFeature::NUMBER,
            &[0; 3],
            (39, 7, "Unable to decode message payload".to_owned()),
        ),
        (PROGRAM, DomainCreate::NUMBER, &[], (3, 20, format!("{unsupported}virDomainCreate"))),
        (PROGRAM, StoragePoolCreate::NUMBER, &[], (3, 18, format!("{unsupported}virStoragePoolCreate"))),
        (
            ferrovirt_protocol::qemu::PROGRAM,
            1,
            &[],
            (3, 0, format!("{unsupported}virDomainQemuMonitorCommand")),
        ),
    ] {
        assert_eq!(raw(&client, program, procedure, payload).await, expected);
    }
    let again = (1, 7, "internal error: connection already open".to_owned());
    assert_eq!(said(soon(open(&client, 0)).await), again);
}

#[tokio::test]
async fn a_read_only_client_may_look_and_not_touch() {
    let routes = |r: &mut Routes| {
        r.on::<DomainSuspend>(|_: Call, _| async { Ok(()) });
        r.on::<DomainGetOsType>(|_: Call, _| async { Ok(DomainGetOsTypeRet { r#type: "hvm".to_owned() }) });
        r.on::<DomainGetVcpusFlags>(|call: Call, _| async move {
            call.require_writable()?;
            Ok(DomainGetVcpusFlagsRet { num: 1 })
        });
    };
    let world = World::new(routes);
    let by_flag = world.client_with(Rights::ReadWrite, 1).await;
    let by_socket = world.client_with(Rights::ReadOnly, 0).await;
    for client in [by_flag, by_socket] {
        let os_type = call::<DomainGetOsType>(&client, DomainGetOsTypeArgs { dom: domain("x") }).await;
        assert_eq!(os_type.unwrap().r#type, "hvm");
        let forbidden = |api| (29, 20, format!("operation forbidden: read only access prevents {api}"));
        assert_eq!(said(soon(suspend(client.clone())).await), forbidden("virDomainSuspend"));
        let vcpus =
            call::<DomainGetVcpusFlags>(&client, DomainGetVcpusFlagsArgs { dom: domain("x"), flags: 8 })
                .await;
        assert_eq!(said(vcpus), forbidden("virDomainGetVcpusFlags"));
        let create = call::<DomainCreate>(&client, DomainCreateArgs { dom: domain("x") }).await;
        assert_eq!(said(create), forbidden("virDomainCreate"));
    }
}

#[tokio::test]
async fn an_older_call_is_the_newer_one_with_other_arguments() {
    let world = World::new(|r| {
        r.on::<DomainCreateWithFlags>(|_: Call, args: DomainCreateWithFlagsArgs| async move {
            Ok(DomainCreateWithFlagsRet { dom: remote_domain(&args.dom, args.flags) })
        });
        r.older_with::<DomainCreate, DomainCreateWithFlags>(
            |args| DomainCreateWithFlagsArgs { dom: args.dom, flags: 0 },
            |_| (),
        );
    });
    let (client, _events) = world.client().await;
    call::<DomainCreate>(&client, DomainCreateArgs { dom: domain("x") }).await.unwrap();
    let args = DomainCreateWithFlagsArgs { dom: domain("x"), flags: 3 };
    assert_eq!(soon(client.call::<DomainCreateWithFlags>(&args)).await.unwrap().dom.id, 3);
}

fn remote_domain(domain: &Domain, id: u32) -> Domain {
    Domain { id: id.try_into().unwrap(), ..domain.clone() }
}

#[test]
fn routes_that_do_not_fit_are_mistakes() {
    let router = || ferrovirt::rpc::router::Router::builder().program(PROGRAM, ENTRIES);
    let twice = |r: &mut Routes| {
        r.on::<DomainSuspend>(|_: Call, _| async { Ok(()) });
        r.on::<DomainSuspend>(|_: Call, _| async { Ok(()) });
    };
    let early = |r: &mut Routes| {
        r.older::<DomainDestroy, DomainDestroyFlags>(|args| DomainDestroyFlagsArgs {
            dom: args.dom,
            flags: 0,
        });
    };
    for (built, mistake) in [
        (router().routes(twice).build(), "domain_suspend routed twice"),
        (
            router().routes(early).build(),
            "domain_destroy leads to domain_destroy_flags, which has no handler yet",
        ),
    ] {
        assert_eq!(built.unwrap_err().to_string(), format!("routes: {mistake}"));
    }
}

#[tokio::test]
async fn a_reply_that_has_no_form_on_the_wire_is_an_error() {
    let world = World::new(|r| {
        r.on::<DomainGetOsType>(|_: Call, _| async {
            Ok(DomainGetOsTypeRet { r#type: "x".repeat(STRING_MAX + 1) })
        });
    });
    let (client, _events) = world.client().await;
    let os_type = call::<DomainGetOsType>(&client, DomainGetOsTypeArgs { dom: domain("x") }).await;
    assert_eq!(refusal(os_type).code, 39);
    assert_eq!(lib_version(&client).await, 11_003_000);
}

#[tokio::test]
async fn descriptors_travel_both_ways() {
    let world = World::new(|r| {
        // Writes into what came with the call, answers with a file of its own.
        r.on_fds::<DomainOpenGraphicsFd>(|_: Call, _| async {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(b"from the daemon").unwrap();
            Ok(WithDescriptors { ret: (), fds: vec![OwnedFd::from(file)] })
        });
        r.on_fds::<DomainFdAssociate>(|mut call: Call, args: DomainFdAssociateArgs| async move {
            for (index, fd) in call.take_fds().into_iter().enumerate() {
                write!(File::from(fd), "{} {index}", args.name).unwrap();
            }
            Ok(WithDescriptors { ret: (), fds: Vec::new() })
        });
    });
    let (client, _events) = world.client().await;
    let files: Vec<_> = (0..3).map(|_| tempfile::tempfile().unwrap()).collect();
    let fds = files.iter().map(|file| OwnedFd::from(file.try_clone().unwrap())).collect();
    let args = DomainFdAssociateArgs { dom: domain("x"), name: "disk".to_owned(), flags: 0 };
    let ((), none) = soon(client.call_with_fds::<DomainFdAssociate>(&args, fds)).await.unwrap();
    assert!(none.is_empty());
    for (index, file) in files.into_iter().enumerate() {
        assert_eq!(content(file), format!("disk {index}"));
    }
    let args = DomainOpenGraphicsFdArgs { dom: domain("x"), idx: 0, flags: 0 };
    let ((), fds) = soon(client.call_with_fds::<DomainOpenGraphicsFd>(&args, Vec::new())).await.unwrap();
    let contents: Vec<_> = fds.into_iter().map(|fd| content(File::from(fd))).collect();
    assert_eq!(contents, ["from the daemon"]);
    assert_eq!(lib_version(&client).await, 11_003_000);
}

fn content(mut file: File) -> String {
    let mut text = String::new();
    file.rewind().unwrap();
    file.read_to_string(&mut text).unwrap();
    text
}
