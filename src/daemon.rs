//! A whole daemon in one value: pid files, sockets, drivers, servers.
//!
//! `main` runs one of it; tests run several in one process, each on a root of its own.

use std::ffi::OsString;
use std::future::Future;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::task::JoinSet;

use crate::config::qemu::QemuConfig;
use crate::config::secrets::SecretsConfig;
use crate::config::{
    AccessDriverName, AuditConfig, AuthConfig, Config, KernelAudit, NetConfig, Scheme, ServerConfig,
};
use crate::drivers::Drivers;
use crate::error::Error;
use crate::logging::Logging;
use crate::qemu::log_limit;
use crate::reload::Reload;
use crate::rpc::access;
use crate::rpc::access::driver::AccessDriver;
use crate::rpc::access::policy::PolicyDriver;
use crate::rpc::access::polkit::PolkitDriver;
use crate::rpc::administration::Administration;
use crate::rpc::auth::polkit::Polkit;
use crate::rpc::auth::sasl::{self, SaslError};
use crate::rpc::auth::{Authentication, SaslRules};
use crate::rpc::keepalive::Patience;
use crate::rpc::listen::{self, Access, Listener, Service};
use crate::rpc::listen_net::{Conditions, NetListener, Protection};
use crate::rpc::metrics::{Metrics, http};
use crate::rpc::router::RouteError;
use crate::rpc::routes;
use crate::rpc::server::{Limits, Server, Workers};
use crate::rpc::session::Rights;
use crate::rpc::tls::{Clients, Tls, TlsError, TlsSettings};
use crate::util::audit::Audit;
use crate::util::fds::Activated;
use crate::util::file;
use crate::util::paths::{Paths, Scope};
use crate::util::pidfile::{PidFile, PidFileError};
use crate::util::reason::Reason;

/// How long running calls may take to finish when the daemon stops.
const STOP_PATIENCE: Duration = Duration::from_secs(15);
/// `VIR_CONNECT_LIST_DOMAINS_ACTIVE`
const LIST_ACTIVE: u32 = 1;
/// The names that libvirt's own daemons for QEMU lock: neither may serve the same directories.
const PID_FILES: [&str; 2] = ["libvirtd.pid", "virtqemud.pid"];

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("cannot create directory {}: {}", path.display(), Reason(source))]
    Directory { path: PathBuf, source: std::io::Error },
    #[error("another daemon serves this directory: {0}")]
    PidFile(#[from] PidFileError),
    #[error("cannot find group '{0}'")]
    Group(String),
    #[error(transparent)]
    Failed(#[from] crate::error::Error),
    #[error("audit_level: cannot open the kernel's audit: {}", Reason(.0))]
    Audit(std::io::Error),
    #[error(transparent)]
    Sasl(#[from] SaslError),
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error(transparent)]
    Routes(#[from] RouteError),
}

/// What a daemon is started with.
#[derive(Debug)]
pub struct Setup {
    pub paths: Paths,
    pub config: Config,
    pub qemu: QemuConfig,
    pub secrets: SecretsConfig,
    /// $PATH: where QEMU and other helpers are.
    pub search_path: OsString,
    /// A pid file beside the standard ones.
    pub pid_file: Option<PathBuf>,
    pub logging: Logging,
    /// How long it goes on without anybody who needs it; `None` is for ever.
    pub idle: Option<Duration>,
    /// Sockets that a service manager has bound; without any, the daemon binds its own.
    pub activated: Vec<Activated>,
    /// Whether the network sockets of the configuration are opened.
    pub listen: bool,
}

#[derive(Debug)]
pub struct Daemon {
    listeners: Vec<(Listener, Service, Authentication)>,
    net_listeners: Vec<NetListener>,
    metrics: Option<(http::Listener, Arc<Metrics>)>,
    hypervisor: Arc<Server>,
    admin: Arc<Server>,
    administration: Arc<Administration>,
    drivers: Arc<Drivers>,
    reload: Arc<Reload>,
    /// Ends with the daemon.
    _housekeeping: JoinSet<()>,
    /// Last: whoever gets the lock next finds nothing of ours any more.
    _pid_files: Vec<PidFile>,
}

impl Daemon {
    /// Takes the directories, binds the sockets, loads what is there. Clients wait in the backlog meanwhile.
    pub async fn start(setup: Setup) -> Result<Self, StartError> {
        let Setup { paths, config, qemu, secrets, search_path, pid_file, logging, idle, activated, listen } =
            setup;
        let directory = |path: PathBuf, mode| {
            file::make_directory(&path, mode).map_err(|source| StartError::Directory { path, source })
        };
        let mode = match paths.scope {
            Scope::System => 0o755,
            Scope::Session => 0o700,
        };
        let sockets = config.sockets.directory.clone().unwrap_or_else(|| paths.runtime.clone());
        for path in [&paths.pidfile, &paths.runtime, &sockets] {
            directory(path.clone(), mode)?;
        }
        let standard = PID_FILES.map(|name| paths.pidfile.join(name));
        let extra = pid_file.filter(|path| !standard.contains(path));
        let pid_files = standard.iter().chain(&extra).map(|path| PidFile::acquire(path));
        let pid_files = pid_files.collect::<Result<_, _>>()?;

        let schemes = Schemes::new(&config, &paths);
        let Given { local, network } = by_family(activated, &config.net)?;
        let listeners = bind_unix(&config, &paths, local, &schemes)?;

        let is_protected = |(_, way): &(Activated, Way)| *way == Way::Tls;
        let tls = match (listen && config.net.tls) || network.iter().any(is_protected) {
            true => Some(Arc::new(Tls::load(tls(&config.net, &paths))?)),
            false => None,
        };
        let net_listeners = match listen && network.is_empty() {
            true => bind_net(&config, tls.as_ref(), &schemes).await?,
            false => adopt_net(network, &config, tls.as_ref(), &schemes)?,
        };

        let access = schemes.access(&config, &paths);
        let logs = paths.qemu_log();
        let drivers = Arc::new(Drivers::new(paths, search_path, &qemu, &secrets, config.host_uuid)?);
        open_audit(config.audit)?.into_iter().for_each(|audit| drivers.domains.set_audit(audit));
        drivers.secrets.load()?;
        drivers.storage.load().await?;
        drivers.domains.load().await?;
        let server = |name, router, limits| Server::new(name, router, Arc::clone(&drivers), limits);
        let hypervisor = server("libvirtd", routes::hypervisor()?, limits(&config.server));
        tls.into_iter().for_each(|tls| hypervisor.set_tls(tls));
        access.into_iter().for_each(|access| hypervisor.set_access(access));
        let administration = Administration::new(logging, idle);
        let admin = server("admin", routes::administration(&administration)?, limits(&config.admin));
        administration.introduce([&hypervisor, &admin]);
        let reload = Arc::new(Reload {
            drivers: Arc::clone(&drivers),
            hypervisor: Arc::clone(&hypervisor),
            admin: Arc::clone(&admin),
            logging: administration.logging.clone(),
            sasl: Arc::clone(&schemes.sasl),
            config: Mutex::new(config.clone()),
        });
        let scraped = || Metrics::new(Arc::clone(&drivers), [&hypervisor, &admin]);
        let metrics = match &config.metrics {
            Some(place) => Some((http::Listener::bind(place).await?, scraped())),
            None => None,
        };
        Ok(Self {
            listeners,
            net_listeners,
            metrics,
            hypervisor,
            admin,
            administration,
            _housekeeping: housekeeping(logs, Arc::clone(&drivers.domains.written)),
            drivers,
            reload,
            _pid_files: pid_files,
        })
    }

    /// The server for hypervisors.
    pub fn hypervisor(&self) -> &Arc<Server> {
        &self.hypervisor
    }

    pub fn drivers(&self) -> &Arc<Drivers> {
        &self.drivers
    }

    /// What SIGHUP asks for.
    pub fn reload(&self) -> &Arc<Reload> {
        &self.reload
    }

    /// Serves until `stop` is ready, then lets running calls finish.
    pub async fn serve(self, stop: impl Future<Output = ()>) {
        let Self { listeners, net_listeners, metrics, hypervisor, admin, .. } = self;
        let mut accepting = JoinSet::new();
        for (listener, service, asked) in listeners {
            let (server, rights) = match service {
                Service::ReadWrite => (&hypervisor, Rights::ReadWrite),
                Service::ReadOnly => (&hypervisor, Rights::ReadOnly),
                Service::Admin => (&admin, Rights::ReadWrite),
            };
            let server = Arc::clone(server);
            accepting.spawn(async move { listener.accept_all(server, rights, asked).await });
        }
        for listener in net_listeners {
            let server = Arc::clone(&hypervisor);
            accepting.spawn(async move { listener.accept_all(server).await });
        }
        if let Some((listener, metrics)) = metrics {
            accepting.spawn(listener.answer_all(metrics));
        }
        stop.await;
        accepting.shutdown().await;
        tokio::join!(hypervisor.stop(STOP_PATIENCE), admin.stop(STOP_PATIENCE));
    }

    /// The network sockets that are open.
    pub fn net_listeners(&self) -> &[NetListener] {
        &self.net_listeners
    }

    /// What administrators see and change of it.
    pub fn administration(&self) -> &Arc<Administration> {
        &self.administration
    }

    /// Ready once nobody has been connected and no guest has run for as long as the daemon waits for any.
    pub fn idle(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut counts = [self.hypervisor.client_count(), self.admin.client_count()];
        let mut patience = self.administration.idle();
        let drivers = Arc::clone(&self.drivers);
        let guests_run =
            move || drivers.domains.list_all(LIST_ACTIVE, |_| ()).is_ok_and(|guests| !guests.is_empty());
        async move {
            loop {
                for count in &mut counts {
                    if count.wait_for(|&clients| clients == 0).await.is_err() {
                        return;
                    }
                }
                let [first, second] = &mut counts;
                let limit = patience.borrow_and_update().unwrap_or(Duration::MAX);
                let anything = async {
                    tokio::select! {
                        _ = first.wait_for(|&clients| clients > 0) => {}
                        _ = second.wait_for(|&clients| clients > 0) => {}
                        _ = patience.changed() => {}
                    }
                };
                if tokio::time::timeout(limit, anything).await.is_err() && !guests_run() {
                    return;
                }
            }
        }
    }
}

/// What is seen to beside the clients, for as long as the answer is kept.
fn housekeeping(logs: PathBuf, files: Arc<log_limit::Files>) -> JoinSet<()> {
    let mut housekeeping = JoinSet::new();
    housekeeping.spawn(async move {
        if let Err(error) = log_limit::keep_bounded(logs, files).await {
            tracing::warn!(%error, "the logs of running guests are not kept bounded");
        }
    });
    housekeeping
}

fn open_audit(config: AuditConfig) -> Result<Option<Audit>, StartError> {
    let (audit, opened) = Audit::open(config.kernel != KernelAudit::Never, config.log);
    match (opened, config.kernel) {
        (Err(error), KernelAudit::Always) => return Err(StartError::Audit(error)),
        (Err(error), _) => tracing::info!(%error, "the kernel has no audit"),
        (Ok(()), _) => {}
    }
    Ok(audit)
}

/// What the schemes of the configuration mean, each made once.
struct Schemes {
    sasl: Arc<SaslRules>,
    sasl_directory: Option<PathBuf>,
    polkit: Arc<Polkit>,
}

impl Schemes {
    fn new(config: &Config, paths: &Paths) -> Self {
        let AuthConfig { sasl_names, tcp_min_ssf, .. } = &config.auth;
        // The library's own places are more than the one that a private root stands for.
        let is_private = paths.sasl != Path::new("/etc/sasl2");
        Self {
            sasl: Arc::new(SaslRules::new(sasl_names.clone(), *tcp_min_ssf)),
            sasl_directory: is_private.then(|| paths.sasl.clone()),
            polkit: Arc::default(),
        }
    }

    /// Who decides what clients may do.
    fn access(&self, config: &Config, paths: &Paths) -> Option<Arc<access::Access>> {
        let driver = |name: &AccessDriverName| -> Arc<dyn AccessDriver> {
            match name {
                AccessDriverName::Policy => {
                    Arc::new(PolicyDriver::load(paths.config.join("access-policy.toml")))
                }
                AccessDriverName::Polkit => Arc::new(PolkitDriver::new(Arc::clone(&self.polkit))),
            }
        };
        access::Access::new(config.access.iter().map(driver).collect())
    }

    /// The library is made ready when the first socket needs it.
    fn authentication(&self, scheme: Scheme) -> Result<Authentication, StartError> {
        match scheme {
            Scheme::None => Ok(Authentication::None),
            Scheme::Polkit => Ok(Authentication::Polkit(Arc::clone(&self.polkit))),
            Scheme::Sasl => {
                sasl::prepare(self.sasl_directory.as_deref())?;
                Ok(Authentication::Sasl(Arc::clone(&self.sasl)))
            }
        }
    }
}

/// The unix sockets: a service manager's if it has bound any, else our own.
fn bind_unix(
    config: &Config,
    paths: &Paths,
    activated: Vec<Activated>,
    schemes: &Schemes,
) -> Result<Vec<(Listener, Service, Authentication)>, StartError> {
    let group = config.sockets.group.as_deref().map(group_id).transpose()?;
    let directory = config.sockets.directory.as_ref().unwrap_or(&paths.runtime);
    let adopted = activated.into_iter().map(|it| Listener::adopt(it.socket));
    let mut listeners = adopted.collect::<Result<Vec<_>, _>>()?;
    let own = if listeners.is_empty() { listen::names(paths.scope) } else { &[] };
    for &(name, service) in own {
        let access = Access { mode: socket_mode(config, service, paths.scope), group };
        let backlog = server_config(config, service).max_queued_clients;
        listeners.push((Listener::bind(&directory.join(name), access, backlog)?, service));
    }
    let with_scheme = |(listener, service)| {
        let asked = schemes.authentication(scheme(config, service, paths.scope))?;
        Ok((listener, service, asked))
    };
    listeners.into_iter().map(with_scheme).collect()
}

async fn bind_net(
    config: &Config,
    tls: Option<&Arc<Tls>>,
    schemes: &Schemes,
) -> Result<Vec<NetListener>, StartError> {
    let net = &config.net;
    let address = net.address.as_deref();
    let mut bound = Vec::new();
    if net.tcp {
        bound.extend(NetListener::bind(address, net.tcp_port, &conditions(config, None, schemes)?).await?);
    }
    if let Some(tls) = tls {
        bound.extend(
            NetListener::bind(address, net.tls_port, &conditions(config, Some(tls), schemes)?).await?,
        );
    }
    Ok(bound)
}

fn conditions(config: &Config, tls: Option<&Arc<Tls>>, schemes: &Schemes) -> Result<Conditions, StartError> {
    let (protection, scheme) = match tls {
        None => (Protection::None, config.net.tcp_authentication),
        Some(tls) => (Protection::Tls(Arc::clone(tls)), config.net.tls_authentication),
    };
    let authentication = schemes.authentication(scheme)?;
    Ok(Conditions { backlog: config.server.max_queued_clients, protection, authentication })
}

/// What comes through a network socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Tcp,
    Tls,
}

/// A service manager's sockets.
#[derive(Default)]
struct Given {
    local: Vec<Activated>,
    network: Vec<(Activated, Way)>,
}

/// Tells a service manager's network sockets, by their units' names or their ports, from those of the host.
fn by_family(activated: Vec<Activated>, net: &NetConfig) -> Result<Given, StartError> {
    let mut given = Given::default();
    for it in activated {
        let address = rustix::net::getsockname(&it.socket).ok();
        let address = address.and_then(|address| SocketAddr::try_from(address).ok());
        let Some(address) = address else {
            given.local.push(it);
            continue;
        };
        let way = match it.name.as_str() {
            name if name.ends_with("-tls.socket") => Way::Tls,
            name if name.ends_with("-tcp.socket") => Way::Tcp,
            _ if address.port() == net.tls_port => Way::Tls,
            _ if address.port() == net.tcp_port => Way::Tcp,
            name => {
                return Err(Error::config_unsupported(format!(
                    "socket '{name}' of the service manager has no name or port of ours"
                ))
                .into());
            }
        };
        given.network.push((it, way));
    }
    Ok(given)
}

fn adopt_net(
    sockets: Vec<(Activated, Way)>,
    config: &Config,
    tls: Option<&Arc<Tls>>,
    schemes: &Schemes,
) -> Result<Vec<NetListener>, StartError> {
    let adopt = |(it, way): (Activated, Way)| {
        let tls = tls.filter(|_| way == Way::Tls);
        Ok(NetListener::adopt(it.socket, conditions(config, tls, schemes)?)?)
    };
    sockets.into_iter().map(adopt).collect()
}

/// The places that libvirt documents, where the configuration names no other.
pub(crate) fn tls(net: &NetConfig, paths: &Paths) -> TlsSettings {
    let place = |given: &Option<PathBuf>, usual: &str| given.clone().unwrap_or_else(|| paths.pki.join(usual));
    TlsSettings {
        authority: place(&net.authority, "CA/cacert.pem"),
        revoked: place(&net.revoked, "CA/cacrl.pem"),
        certificate: place(&net.certificate, "libvirt/servercert.pem"),
        key: place(&net.key, "libvirt/private/serverkey.pem"),
        clients: if net.verify { Clients::Verified } else { Clients::Anyone },
        allowed: net.allowed_names.clone(),
    }
}

fn server_config(config: &Config, service: Service) -> &ServerConfig {
    match service {
        Service::ReadWrite | Service::ReadOnly => &config.server,
        Service::Admin => &config.admin,
    }
}

/// How clients of a unix socket show who they are.
fn scheme(config: &Config, service: Service, scope: Scope) -> Scheme {
    let usual = match scope {
        Scope::System => Scheme::Polkit,
        Scope::Session => Scheme::None,
    };
    match service {
        Service::ReadWrite => config.auth.read_write.unwrap_or(usual),
        Service::ReadOnly => config.auth.read_only.unwrap_or(usual),
        Service::Admin => Scheme::None,
    }
}

fn socket_mode(config: &Config, service: Service, scope: Scope) -> u32 {
    let usual = || match scheme(config, service, scope) {
        Scheme::Polkit => 0o777,
        Scheme::None | Scheme::Sasl => 0o700,
    };
    match service {
        Service::ReadWrite => config.sockets.mode.unwrap_or_else(usual),
        Service::ReadOnly => config.sockets.read_only_mode,
        Service::Admin => config.sockets.admin_mode,
    }
}

pub(crate) fn limits(config: &ServerConfig) -> Limits {
    let whole = |number: u32| usize::try_from(number).unwrap_or(usize::MAX);
    let interval = u64::try_from(config.keepalive_interval).ok().filter(|&seconds| seconds > 0);
    Limits {
        clients: whole(config.max_clients),
        anonymous_clients: Some(whole(config.max_anonymous_clients)).filter(|&places| places > 0),
        queued_clients: whole(config.max_queued_clients),
        requests_per_client: whole(config.max_client_requests),
        keepalive: Patience { interval: interval.map(Duration::from_secs), count: config.keepalive_count },
        workers: Workers { min: config.min_workers, max: config.max_workers, priority: config.prio_workers },
    }
}

fn group_id(name: &str) -> Result<u32, StartError> {
    let unknown = || StartError::Group(name.to_owned());
    match nix::unistd::Group::from_name(name) {
        Ok(Some(group)) => Ok(group.gid.as_raw()),
        _ => name.parse().map_err(|_| unknown()),
    }
}
