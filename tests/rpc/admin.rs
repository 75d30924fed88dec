//! The administration: servers, clients, limits, logging, the end of the daemon.

use std::time::Duration;

use ferrovirt_protocol::admin::procedure::*;
use ferrovirt_protocol::admin::*;
use ferrovirt_protocol::client::CallError;
use ferrovirt_protocol::procedure::Procedure;
use ferrovirt_protocol::remote::procedure::ConnectGetType;
use ferrovirt_protocol::remote::{TypedParam, TypedParamValue};

use ferrovirt::daemon::Daemon;
use tempfile::TempDir;

use crate::daemon::{connect, serve, setup};
use crate::world::{open, refusal, soon};

type Protocol = ferrovirt_protocol::client::Client;

struct Administrator(Protocol);

impl Administrator {
    async fn ok<P: Procedure>(&self, args: P::Args) -> P::Ret {
        soon(self.0.call::<P>(&args)).await.unwrap()
    }

    /// The code and the sentence of a refusal.
    async fn refused<P: Procedure>(&self, args: P::Args) -> (i32, String) {
        let error = refusal(soon(self.0.call::<P>(&args)).await.map(drop));
        (error.code, error.text().to_owned())
    }
}

fn libvirtd() -> Server {
    Server { name: "libvirtd".to_owned() }
}

fn number(name: &str, value: u32) -> TypedParam {
    TypedParam { field: name.to_owned().into(), value: TypedParamValue::Uint(value) }
}

fn text(params: &[TypedParam]) -> String {
    let one = |param: &TypedParam| match &param.value {
        TypedParamValue::Uint(value) => format!("{}={value}", param.field),
        TypedParamValue::Int(value) => format!("{}={value}", param.field),
        TypedParamValue::Boolean(value) => format!("{}={value}", param.field),
        TypedParamValue::String(value) => format!("{}={value}", param.field),
        other => format!("{}={other:?}", param.field),
    };
    params.iter().map(one).collect::<Vec<_>>().join(" ")
}

/// A daemon, who administers it, and one of its clients.
async fn world(settings: &str) -> (TempDir, tokio::task::JoinHandle<()>, Administrator, Protocol) {
    let root = TempDir::new().unwrap();
    let daemon = Daemon::start(setup(root.path(), settings)).await.unwrap();
    let administration = std::sync::Arc::clone(daemon.administration());
    let serving = tokio::spawn(async move { daemon.serve(administration.stopped()).await });
    let administrator = connect(root.path(), "libvirt-admin-sock").await;
    soon(administrator.call::<ConnectOpen>(&ConnectOpenArgs::default())).await.unwrap();
    let client = connect(root.path(), "libvirt-sock-ro").await;
    soon(open(&client, 1)).await.unwrap();
    (root, serving, Administrator(administrator), client)
}

#[tokio::test]
async fn servers_and_clients_are_shown_and_a_client_is_sent_away() {
    let (_root, _serving, admin, client) = world("").await;
    let servers = admin.ok::<ConnectListServers>(ConnectListServersArgs { need_results: 1, flags: 0 }).await;
    let names: Vec<_> = servers.servers.iter().map(|server| server.name.as_str()).collect();
    assert_eq!((names, servers.ret), (vec!["libvirtd", "admin"], 2));
    let list = ServerListClientsArgs { srv: libvirtd(), need_results: 1, flags: 0 };
    let clients = admin.ok::<ServerListClients>(list.clone()).await.clients;
    assert_eq!(clients.len(), 1);
    let info = ClientGetInfoArgs { clnt: clients[0].clone(), flags: 0 };
    let info = text(&admin.ok::<ClientGetInfo>(info).await.params);
    let (uid, pid) = (rustix::process::getuid().as_raw(), std::process::id());
    assert!(info.starts_with(&format!("readonly=1 unix_user_id={uid} ")), "{info}");
    assert!(info.ends_with(&format!("unix_process_id={pid}")), "{info}");

    admin.ok::<ClientClose>(ClientCloseArgs { clnt: clients[0].clone(), flags: 0 }).await;
    assert!(matches!(soon(client.call::<ConnectGetType>(&())).await, Err(CallError::Closed(_))));
    let missing = admin.refused::<ClientClose>(ClientCloseArgs { clnt: clients[0].clone(), flags: 0 }).await;
    assert_eq!(missing, (96, "Client not found: No client with matching ID '1'".to_owned()));
    let nobody = ServerListClientsArgs { srv: Server { name: "nope".to_owned() }, ..list };
    let missing = admin.refused::<ServerListClients>(nobody).await;
    assert_eq!(missing, (95, "Server not found: No server named 'nope'".to_owned()));
}

#[tokio::test]
async fn limits_are_shown_and_changed() {
    let (root, _serving, admin, client) = world("max_clients = 50").await;
    let get = ServerGetClientLimitsArgs { srv: libvirtd(), flags: 0 };
    let limits = text(&admin.ok::<ServerGetClientLimits>(get.clone()).await.params);
    assert_eq!(limits, "nclients_max=50 nclients=1 nclients_unauth_max=20 nclients_unauth=0");
    let set = |params| ServerSetClientLimitsArgs { srv: libvirtd(), params, flags: 0 };
    let (code, sentence) = admin.refused::<ServerSetClientLimits>(set(vec![number("nclients_max", 1)])).await;
    assert!(code == 8 && sentence.contains("must not be less than"), "{sentence}");
    let one = vec![number("nclients_max", 1), number("nclients_unauth_max", 1)];
    admin.ok::<ServerSetClientLimits>(set(one)).await;

    let second = connect(root.path(), "libvirt-sock").await;
    let waiting = tokio::spawn(async move { open(&second, 0).await.map(|_| second) });
    for _ in 0..100 {
        soon(client.call::<ConnectGetType>(&())).await.unwrap();
    }
    assert!(!waiting.is_finished(), "there is room for one");
    admin.ok::<ServerSetClientLimits>(set(vec![number("nclients_max", 2)])).await;
    soon(waiting).await.unwrap().unwrap();
}

#[tokio::test]
async fn workers_are_numbers_that_are_kept() {
    let (_root, _serving, admin, _client) = world("min_workers = 6").await;
    let set = |params| ServerSetThreadpoolParametersArgs { srv: libvirtd(), params, flags: 0 };
    admin.ok::<ServerSetThreadpoolParameters>(set(vec![number("maxWorkers", 30)])).await;
    let get = ServerGetThreadpoolParametersArgs { srv: libvirtd(), flags: 0 };
    let workers = text(&admin.ok::<ServerGetThreadpoolParameters>(get).await.params);
    assert_eq!(workers, "minWorkers=6 maxWorkers=30 nWorkers=6 freeWorkers=6 prioWorkers=5 jobQueueDepth=0");
    for (name, value, sentence) in [
        ("minWorkers", 31, "invalid argument: minWorkers cannot be larger than maxWorkers"),
        ("nWorkers", 1, "argument unsupported: parameter 'nWorkers' not supported"),
    ] {
        let refusal = admin.refused::<ServerSetThreadpoolParameters>(set(vec![number(name, value)])).await;
        assert_eq!(refusal.1, sentence);
    }
}

#[tokio::test]
async fn logging_is_shown_and_changed() {
    let (root, _serving, admin, _client) = world("").await;
    let file = root.path().join("log");
    let outputs = format!("1:file:{} 3:stderr", file.display());
    let set = |outputs: &str| ConnectSetLoggingOutputsArgs { outputs: Some(outputs.to_owned()), flags: 0 };
    admin.ok::<ConnectSetLoggingOutputs>(set(&outputs)).await;
    let set_filters = |text: &str| ConnectSetLoggingFiltersArgs { filters: Some(text.to_owned()), flags: 0 };
    admin.ok::<ConnectSetLoggingFilters>(set_filters("1:qemu 3:rpc")).await;
    let now = admin.ok::<ConnectGetLoggingOutputs>(ConnectGetLoggingOutputsArgs { flags: 0 }).await;
    assert_eq!((now.outputs, now.noutputs), (outputs, 2));
    let now = admin.ok::<ConnectGetLoggingFilters>(ConnectGetLoggingFiltersArgs { flags: 0 }).await;
    assert_eq!((now.filters.as_deref(), now.nfilters), (Some("1:*qemu* 3:*rpc* "), 2));
    assert!(file.exists());
    let refusal = admin.refused::<ConnectSetLoggingFilters>(set_filters("9:qemu")).await;
    assert_eq!(refusal, (8, "invalid argument: Invalid priority '9' for filter '9:qemu'".to_owned()));
    let refusal = admin.refused::<ConnectSetLoggingOutputs>(set("1:file:/nowhere/x")).await;
    assert_eq!(refusal, (38, "failed to open /nowhere/x: No such file or directory".to_owned()));
}

#[tokio::test]
async fn an_administrator_ends_the_daemon() {
    let (_root, serving, admin, client) = world("").await;
    let unknown = admin.refused::<ConnectDaemonShutdown>(ConnectDaemonShutdownArgs { flags: 2 }).await;
    assert_eq!(unknown.0, 8);
    soon(client.call::<ConnectGetType>(&())).await.unwrap();
    admin.ok::<ConnectDaemonShutdown>(ConnectDaemonShutdownArgs { flags: 0 }).await;
    soon(serving).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_administrator_says_how_long_an_idle_daemon_goes_on() {
    let root = TempDir::new().unwrap();
    let daemon = Daemon::start(setup(root.path(), "")).await.unwrap();
    let idle = tokio::spawn(daemon.idle());
    let (_stop, _serving) = serve(daemon);
    let admin = connect(root.path(), "libvirt-admin-sock").await;
    admin.call::<ConnectOpen>(&ConnectOpenArgs::default()).await.unwrap();
    let timeout = ConnectSetDaemonTimeoutArgs { timeout: 60, flags: 0 };
    admin.call::<ConnectSetDaemonTimeout>(&timeout).await.unwrap();
    let left = tokio::time::Instant::now();
    admin.close();
    idle.await.unwrap();
    assert!(left.elapsed() >= Duration::from_secs(60));
}
