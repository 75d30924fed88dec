//! The daemon's own administration, as `virt-admin` asks for it.
//!
//! Calls of these look up users, open log files and read certificates: they run beside the tasks.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ferrovirt_protocol::admin::procedure::*;
use ferrovirt_protocol::admin::*;
use ferrovirt_protocol::procedure::{Plain, Procedure};
use ferrovirt_protocol::remote::TypedParam;

use crate::drivers::flags::{CallFlags, flag_words, no_flags};
use crate::drivers::params::{ParamType, Params};
use crate::error::{Error, Origin, Result};
use crate::logging::LogError;
use crate::rpc::administration::Administration;
use crate::rpc::auth::identity::Identity;
use crate::rpc::convert;
use crate::rpc::handlers::connect::LIB_VERSION;
use crate::rpc::router::{Call, Routes};
use crate::rpc::server::{Server as Served, Workers};
use crate::rpc::session::{Client as Connected, Peer};

/// `virClientTransport`
const UNIX: u32 = 0;
const TCP: u32 = 1;
const TLS: u32 = 2;

flag_words! {
    /// `virDaemonShutdownFlags`
    ShutdownFlags of "adminConnectDaemonShutdown" { PRESERVE = 1, }
}

pub fn routes(routes: &mut Routes, administration: &Arc<Administration>) {
    let mut r = Beside { routes, administration };
    r.routes.on::<ConnectOpen>(open);
    r.routes.on::<ConnectClose>(close);
    r.on::<ConnectGetLibVersion>(|_, ()| Ok(ConnectGetLibVersionRet { lib_ver: LIB_VERSION }));
    r.on::<ConnectListServers>(list_servers);
    r.on::<ConnectLookupServer>(lookup_server);
    r.on::<ServerGetThreadpoolParameters>(get_threadpool);
    r.on::<ServerSetThreadpoolParameters>(set_threadpool);
    r.on::<ServerListClients>(list_clients);
    r.on::<ServerLookupClient>(lookup_client);
    r.on::<ClientGetInfo>(client_info);
    r.on::<ClientClose>(client_close);
    r.on::<ServerGetClientLimits>(get_client_limits);
    r.on::<ServerSetClientLimits>(set_client_limits);
    r.on::<ConnectGetLoggingOutputs>(get_outputs);
    r.on::<ConnectGetLoggingFilters>(get_filters);
    r.on::<ConnectSetLoggingOutputs>(set_outputs);
    r.on::<ConnectSetLoggingFilters>(set_filters);
    r.on::<ServerUpdateTlsFiles>(update_tls_files);
    r.on::<ConnectSetDaemonTimeout>(set_timeout);
    r.on::<ConnectDaemonShutdown>(shutdown);
}

struct Beside<'a> {
    routes: &'a mut Routes,
    administration: &'a Arc<Administration>,
}

impl Beside<'_> {
    fn on<P: Procedure<Kind = Plain>>(&mut self, handler: fn(&Administration, P::Args) -> Result<P::Ret>) {
        let administration = Arc::clone(self.administration);
        self.routes.on::<P>(move |_: Call, args: P::Args| {
            let administration = Arc::clone(&administration);
            async move {
                let ended = |_| Error::internal_error("a task ended early").from_origin(Origin::ADMIN);
                let handled = tokio::task::spawn_blocking(move || handler(&administration, args));
                handled.await.map_err(ended)?
            }
        });
    }
}

async fn open(_: Call, args: ConnectOpenArgs) -> Result<()> {
    no_flags(args.flags, "adminDispatchConnectOpen").map_err(ours)
}

async fn close(call: Call, (): ()) -> Result<()> {
    call.client.close_after_reply();
    Ok(())
}

fn ours(error: Error) -> Error {
    error.from_origin(Origin::ADMIN)
}

fn flagless(flags: u32, function: &'static str) -> Result<()> {
    no_flags(flags, function).map_err(ours)
}

fn server(served: &Served) -> Server {
    Server { name: served.name.to_owned() }
}

fn client(served: &Served, client: &Connected) -> Client {
    let since = client.since.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Client {
        srv: server(served),
        id: client.id.0,
        timestamp: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        transport: match client.peer {
            Peer::Unix(_) => UNIX,
            Peer::Tcp { .. } => TCP,
            Peer::Tls { .. } => TLS,
        },
    }
}

fn find(administration: &Administration, meant: &Client) -> Result<Arc<Connected>> {
    let missing =
        || Error::no_client(format!("No client with matching ID '{}'", meant.id)).from_origin(Origin::RPC);
    administration.server(&meant.srv.name)?.client(meant.id).ok_or_else(missing)
}

/// A list and its length; without `need_results` the length alone.
fn counted<T>(items: Vec<T>, need_results: u32) -> (Vec<T>, u32) {
    let count = u32::try_from(items.len()).unwrap_or(u32::MAX);
    (if need_results == 0 { Vec::new() } else { items }, count)
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

fn list_servers(admin: &Administration, args: ConnectListServersArgs) -> Result<ConnectListServersRet> {
    flagless(args.flags, "adminConnectListServers")?;
    let servers = admin.servers().iter().map(|served| server(served)).collect();
    let (servers, ret) = counted(servers, args.need_results);
    Ok(ConnectListServersRet { servers, ret })
}

fn lookup_server(admin: &Administration, args: ConnectLookupServerArgs) -> Result<ConnectLookupServerRet> {
    flagless(args.flags, "adminConnectLookupServer")?;
    Ok(ConnectLookupServerRet { srv: server(&*admin.server(&args.name)?) })
}

fn get_threadpool(
    admin: &Administration,
    args: ServerGetThreadpoolParametersArgs,
) -> Result<ServerGetThreadpoolParametersRet> {
    let served = admin.server(&args.srv.name)?;
    flagless(args.flags, "adminServerGetThreadPoolParameters")?;
    let workers = served.workers();
    let running = count(served.running_calls());
    let now = running.max(workers.min);
    let mut params = Params::default();
    params.push("minWorkers", workers.min);
    params.push("maxWorkers", workers.max);
    params.push("nWorkers", now);
    params.push("freeWorkers", now - running);
    params.push("prioWorkers", workers.priority);
    params.push("jobQueueDepth", 0u32);
    Ok(ServerGetThreadpoolParametersRet { params: convert::params(params) })
}

fn given(params: Vec<TypedParam>, known: &[&str]) -> Result<Params> {
    let params = convert::from_params(params);
    let known: Vec<_> = known.iter().map(|name| (*name, ParamType::Uint)).collect();
    params.validate(&known)?;
    Ok(params)
}

fn invalid(sentence: &'static str, origin: Origin) -> Result<()> {
    Err(Error::invalid_arg(sentence).from_origin(origin))
}

fn set_threadpool(admin: &Administration, args: ServerSetThreadpoolParametersArgs) -> Result<()> {
    let served = admin.server(&args.srv.name)?;
    flagless(args.flags, "adminServerSetThreadPoolParameters")?;
    let params = given(args.params, &["minWorkers", "maxWorkers", "prioWorkers"])?;
    let now = served.workers();
    let value = |name, now| params.uint(name).copied().unwrap_or(now);
    let next = Workers {
        min: value("minWorkers", now.min),
        max: value("maxWorkers", now.max),
        priority: value("prioWorkers", now.priority),
    };
    if next.min > next.max {
        return invalid("minWorkers cannot be larger than maxWorkers", Origin::NONE);
    }
    if (next.max == 0) != (now.max == 0) {
        let sentence = "maxWorkers must not be switched from zero to non-zero and vice versa";
        return invalid(sentence, Origin::NONE);
    }
    served.set_workers(next);
    Ok(())
}

fn list_clients(admin: &Administration, args: ServerListClientsArgs) -> Result<ServerListClientsRet> {
    let served = admin.server(&args.srv.name)?;
    flagless(args.flags, "adminServerListClients")?;
    let clients = served.clients().iter().map(|connected| client(&served, connected)).collect();
    let (clients, ret) = counted(clients, args.need_results);
    Ok(ServerListClientsRet { clients, ret })
}

fn lookup_client(admin: &Administration, args: ServerLookupClientArgs) -> Result<ServerLookupClientRet> {
    let served = admin.server(&args.srv.name)?;
    flagless(args.flags, "adminServerLookupClient")?;
    let meant = Client { srv: args.srv, id: args.id, ..Client::default() };
    Ok(ServerLookupClientRet { clnt: client(&served, &*find(admin, &meant)?) })
}

fn client_info(admin: &Administration, args: ClientGetInfoArgs) -> Result<ClientGetInfoRet> {
    let connected = find(admin, &args.clnt)?;
    flagless(args.flags, "adminClientGetInfo")?;
    let mut params = Params::default();
    params.push("readonly", connected.is_read_only());
    let identity = connected.identity();
    let mut text = |name, value: Option<String>| value.into_iter().for_each(|value| params.push(name, value));
    let owned = |text: &Option<Box<str>>| text.as_deref().map(str::to_owned);
    text("sasl_user_name", owned(&identity.sasl_name));
    match &connected.peer {
        Peer::Unix(_) => identify(&mut params, &identity),
        Peer::Tcp { address } | Peer::Tls { address, .. } => {
            text("sock_addr", Some(place(*address)));
            text("tls_x509_dname", owned(&identity.x509_name));
        }
    }
    identity.selinux_context.iter().for_each(|context| params.push("selinux_context", &**context));
    Ok(ClientGetInfoRet { params: convert::params(params) })
}

/// libvirt's form of an address and a port.
fn place(address: SocketAddr) -> String {
    format!("{};{}", address.ip(), address.port())
}

/// Numbers as the kernel gave them, names where there are any.
fn identify(params: &mut Params, identity: &Identity) {
    identity.uid.iter().for_each(|uid| params.push("unix_user_id", uid.cast_signed()));
    identity.user_name().into_iter().for_each(|name| params.push("unix_user_name", name));
    identity.gid.iter().for_each(|gid| params.push("unix_group_id", gid.cast_signed()));
    identity.group_name().into_iter().for_each(|name| params.push("unix_group_name", name));
    identity.pid.iter().for_each(|pid| params.push("unix_process_id", *pid));
}

fn client_close(admin: &Administration, args: ClientCloseArgs) -> Result<()> {
    let connected = find(admin, &args.clnt)?;
    flagless(args.flags, "adminClientClose")?;
    connected.disconnect();
    Ok(())
}

fn get_client_limits(
    admin: &Administration,
    args: ServerGetClientLimitsArgs,
) -> Result<ServerGetClientLimitsRet> {
    let served = admin.server(&args.srv.name)?;
    flagless(args.flags, "adminServerGetClientLimits")?;
    let (clients, anonymous) = served.client_limits();
    let mut params = Params::default();
    params.push("nclients_max", count(clients));
    params.push("nclients", count(served.clients().len()));
    params.push("nclients_unauth_max", count(anonymous));
    params.push("nclients_unauth", count(served.anonymous_count()));
    Ok(ServerGetClientLimitsRet { params: convert::params(params) })
}

fn set_client_limits(admin: &Administration, args: ServerSetClientLimitsArgs) -> Result<()> {
    let served = admin.server(&args.srv.name)?;
    flagless(args.flags, "adminServerSetClientLimits")?;
    let params = given(args.params, &["nclients_max", "nclients_unauth_max"])?;
    let whole = |name| params.uint(name).map(|&number| usize::try_from(number).unwrap_or(usize::MAX));
    let (clients, anonymous) = served.client_limits();
    let clients = whole("nclients_max").unwrap_or(clients);
    let anonymous = whole("nclients_unauth_max").unwrap_or(anonymous);
    if clients < anonymous {
        let sentence = "The overall maximum number of clients must not be less than the number of clients waiting for authentication";
        return invalid(sentence, Origin::RPC);
    }
    served.set_client_limits(clients, anonymous);
    Ok(())
}

fn get_outputs(
    admin: &Administration,
    args: ConnectGetLoggingOutputsArgs,
) -> Result<ConnectGetLoggingOutputsRet> {
    flagless(args.flags, "adminConnectGetLoggingOutputs")?;
    let outputs = admin.logging.outputs();
    Ok(ConnectGetLoggingOutputsRet { noutputs: count(outputs.len()), outputs: outputs.join(" ") })
}

fn get_filters(
    admin: &Administration,
    args: ConnectGetLoggingFiltersArgs,
) -> Result<ConnectGetLoggingFiltersRet> {
    flagless(args.flags, "adminConnectGetLoggingFilters")?;
    let filters = admin.logging.filters();
    let nfilters = count(filters.len());
    // libvirt ends each with a blank.
    let text = filters.into_iter().map(|filter| filter + " ").collect();
    Ok(ConnectGetLoggingFiltersRet { filters: Some(text).filter(|_| nfilters > 0), nfilters })
}

fn refused(error: LogError) -> Error {
    match error {
        LogError::File { path, source } => {
            Error::io(format_args!("failed to open {}", path.display()), source).from_origin(Origin::NONE)
        }
        error => Error::invalid_arg(error.to_string()).from_origin(Origin::NONE),
    }
}

fn set_outputs(admin: &Administration, args: ConnectSetLoggingOutputsArgs) -> Result<()> {
    flagless(args.flags, "adminConnectSetLoggingOutputs")?;
    admin.logging.set_outputs(args.outputs.as_deref().unwrap_or_default()).map_err(refused)
}

fn set_filters(admin: &Administration, args: ConnectSetLoggingFiltersArgs) -> Result<()> {
    flagless(args.flags, "adminConnectSetLoggingFilters")?;
    admin.logging.set_filters(args.filters.as_deref().unwrap_or_default()).map_err(refused)
}

fn update_tls_files(admin: &Administration, args: ServerUpdateTlsFilesArgs) -> Result<()> {
    let served = admin.server(&args.srv.name)?;
    flagless(args.flags, "adminServerUpdateTlsFiles")?;
    let failed = |sentence: String| Error::internal_error(sentence).from_origin(Origin::RPC);
    let none = || failed("no tls service found, unable to update tls files".to_owned());
    served.tls().ok_or_else(none)?.reload().map_err(|error| failed(error.to_string()))
}

fn set_timeout(admin: &Administration, args: ConnectSetDaemonTimeoutArgs) -> Result<()> {
    flagless(args.flags, "adminConnectSetDaemonTimeout")?;
    let patience = Duration::from_secs(args.timeout.into());
    admin.set_idle(Some(patience).filter(|patience| !patience.is_zero()));
    Ok(())
}

/// Guests outlive the daemon with either kind of end.
fn shutdown(admin: &Administration, args: ConnectDaemonShutdownArgs) -> Result<()> {
    ShutdownFlags::accept(args.flags).map_err(ours)?;
    admin.stop();
    Ok(())
}
