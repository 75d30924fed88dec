//! `libvirtd.conf`: which keys count here, what they mean, what they are without a file.
//!
//! Keys of libvirt's that this daemon has no use for are accepted and named in the log, and so are
//! unknown ones: libvirt takes both in silence. Keys that would restrict access in a way this daemon
//! cannot are refused, because to ignore them would open what the administrator closed.

pub mod fuzz;
mod migration;
pub mod qemu;
pub mod secrets;

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::rpc::metrics::http::Place;
use crate::util::conf_file::{self, Setting, SyntaxError, Value};
use crate::util::reason::Reason;
use crate::util::uuid::Uuid;

#[derive(Debug, Error)]
pub enum ConfigError {
    #[error("cannot read configuration file {}: {}", path.display(), Reason(source))]
    Read { path: PathBuf, source: io::Error },
    #[error("configuration file syntax error: {}:{}: {}", path.display(), source.line, source.what)]
    Syntax { path: PathBuf, source: SyntaxError },
    #[error("{}:{line}: {what}", path.display())]
    Value { path: PathBuf, line: usize, what: String },
}

/// Where and for whom the daemon listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SocketConfig {
    pub directory: Option<PathBuf>,
    pub group: Option<String>,
    /// `None`: everybody's where polkit decides, else the daemon's user's.
    pub mode: Option<u32>,
    pub read_only_mode: u32,
    pub admin_mode: u32,
}

/// Where the daemon listens on the network, once `--listen` says that it does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetConfig {
    pub tcp: bool,
    pub tls: bool,
    /// `None`: all addresses of the host.
    pub address: Option<String>,
    pub tcp_port: u16,
    pub tls_port: u16,
    pub tcp_authentication: Scheme,
    pub tls_authentication: Scheme,
    pub key: Option<PathBuf>,
    pub certificate: Option<PathBuf>,
    pub authority: Option<PathBuf>,
    pub revoked: Option<PathBuf>,
    pub verify: bool,
    pub allowed_names: Option<Vec<String>>,
}

/// How clients show who they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    None,
    Sasl,
    Polkit,
}

/// Who is let in on the unix sockets, and who by SASL on any.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuthConfig {
    /// `None`: polkit decides about the system's daemon; a user's has no others anyway.
    pub read_write: Option<Scheme>,
    pub read_only: Option<Scheme>,
    /// Patterns of names; `None` lets everybody in.
    pub sasl_names: Option<Vec<String>>,
    /// How strong the encryption of plain TCP has to be.
    pub tcp_min_ssf: u32,
}

/// What the clients of one server may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServerConfig {
    pub max_clients: u32,
    pub max_queued_clients: u32,
    /// 0: no limit of their own.
    pub max_anonymous_clients: u32,
    pub max_client_requests: u32,
    /// Seconds; -1 or 0: no pings.
    pub keepalive_interval: i32,
    pub keepalive_count: u32,
    /// Told to administrators and without effect: there is no pool of threads.
    pub min_workers: u32,
    pub max_workers: u32,
    pub prio_workers: u32,
}

/// Whether the kernel's audit hears of guests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KernelAudit {
    Never,
    IfThere,
    /// Without it the daemon does not start.
    Always,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AuditConfig {
    pub kernel: KernelAudit,
    /// Whether the log hears of it as well.
    pub log: bool,
}

/// A way to decide what a client may do; see `rpc::access`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AccessDriverName {
    /// By the file `access-policy.toml` beside `libvirtd.conf`.
    Policy,
    /// By polkit's rules for libvirt's actions.
    Polkit,
}

/// What is logged, and where to; see `logging`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LogConfig {
    /// 1 debug, 2 info, 3 warning, 4 error; 0: the default.
    pub level: u32,
    pub filters: String,
    pub outputs: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    pub sockets: SocketConfig,
    pub net: NetConfig,
    pub auth: AuthConfig,
    pub server: ServerConfig,
    pub admin: ServerConfig,
    pub log: LogConfig,
    /// Where scrapes for Prometheus come in.
    pub metrics: Option<Place>,
    /// Who decides what clients may do; without any, everybody may do everything.
    pub access: Vec<AccessDriverName>,
    pub audit: AuditConfig,
    /// The host's own number, where the firmware's is not to count.
    pub host_uuid: Option<Uuid>,
    pub host_uuid_source: Option<String>,
    /// Lines worth a warning once logging works.
    pub remarks: Vec<String>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            sockets: SocketConfig {
                directory: None,
                group: None,
                mode: None,
                read_only_mode: 0o777,
                admin_mode: 0o700,
            },
            net: NetConfig {
                tcp: false,
                tls: true,
                address: None,
                tcp_port: 16509,
                tls_port: 16514,
                tcp_authentication: Scheme::Sasl,
                tls_authentication: Scheme::None,
                key: None,
                certificate: None,
                authority: None,
                revoked: None,
                verify: true,
                allowed_names: None,
            },
            auth: AuthConfig { read_write: None, read_only: None, sasl_names: None, tcp_min_ssf: MIN_SSF },
            server: ServerConfig {
                max_clients: 5000,
                max_queued_clients: 1000,
                max_anonymous_clients: 20,
                max_client_requests: 5,
                keepalive_interval: 5,
                keepalive_count: 5,
                min_workers: 5,
                max_workers: 20,
                prio_workers: 5,
            },
            admin: ServerConfig {
                max_clients: 5000,
                max_queued_clients: 20,
                max_anonymous_clients: 0,
                max_client_requests: 5,
                keepalive_interval: 5,
                keepalive_count: 5,
                min_workers: 5,
                max_workers: 20,
                prio_workers: 0,
            },
            log: LogConfig::default(),
            metrics: None,
            access: Vec::new(),
            audit: AuditConfig { kernel: KernelAudit::IfThere, log: false },
            host_uuid: None,
            host_uuid_source: None,
            remarks: Vec::new(),
        }
    }
}

/// The weakest encryption of plain TCP that may be asked for.
const MIN_SSF: u32 = 56;

/// Keys of libvirt's without a meaning here.
const WITHOUT_EFFECT: &[&str] = &[
    "admin_keepalive_required",
    "keepalive_required",
    "ovs_timeout",
    "tls_no_sanity_certificate",
    "tls_priority",
];

impl Config {
    /// Reads `path`, which has to exist.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        Self::read(path, &text)
    }

    /// As [`Config::load`]; what it is without a file if there is none.
    pub fn load_if_there(path: &Path) -> Result<Self, ConfigError> {
        match Self::load(path) {
            Err(ConfigError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                Ok(Self::default())
            }
            loaded => loaded,
        }
    }

    /// Reads the content of a file; `path` is for the errors.
    pub fn read(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let mut config = Self::default();
        read_settings(path, text, |setting| config.apply(setting))?;
        Ok(config)
    }

    /// Names what differs in `new` and cannot change while the daemon runs.
    pub fn only_at_start(&self, new: &Self) -> Vec<&'static str> {
        let sockets = |config: &Self| {
            let NetConfig { tcp, tls, address, tcp_port, tls_port, .. } = &config.net;
            (config.sockets.clone(), (*tcp, *tls, address.clone(), *tcp_port, *tls_port))
        };
        let schemes = |config: &Self| {
            let NetConfig { tcp_authentication, tls_authentication, .. } = config.net;
            let AuthConfig { read_write, read_only, tcp_min_ssf, .. } = config.auth;
            (tcp_authentication, tls_authentication, read_write, read_only, tcp_min_ssf)
        };
        let backlogs = |config: &Self| [&config.server, &config.admin].map(|it| it.max_queued_clients);
        let differing = [
            ("the sockets", sockets(self) != sockets(new) || backlogs(self) != backlogs(new)),
            ("how clients show who they are", schemes(self) != schemes(new)),
            ("metrics_listen", self.metrics != new.metrics),
            ("access_drivers", self.access != new.access),
            ("audit_level and audit_logging", self.audit != new.audit),
            ("host_uuid", self.host_uuid != new.host_uuid || self.host_uuid_source != new.host_uuid_source),
        ];
        differing.into_iter().filter_map(|(what, differs)| differs.then_some(what)).collect()
    }

    fn apply(&mut self, setting: Setting) -> Result<(), String> {
        let key = setting.key.as_str();
        let (server, key_of_server) = match key.strip_prefix("admin_") {
            Some(key) => (&mut self.admin, key),
            None => (&mut self.server, key),
        };
        match key_of_server {
            "max_clients" => server.max_clients = positive(&setting)?,
            "max_queued_clients" => server.max_queued_clients = number(&setting)?,
            "max_anonymous_clients" if key_of_server == key => {
                server.max_anonymous_clients = number(&setting)?
            }
            "max_client_requests" => server.max_client_requests = positive(&setting)?,
            "keepalive_interval" => server.keepalive_interval = number(&setting)?,
            "keepalive_count" => server.keepalive_count = number(&setting)?,
            "min_workers" => server.min_workers = number(&setting)?,
            "max_workers" => server.max_workers = positive(&setting)?,
            "prio_workers" if key_of_server == key => server.prio_workers = number(&setting)?,
            _ => self.apply_other(setting)?,
        }
        Ok(())
    }

    fn apply_net(&mut self, setting: Setting) -> Result<(), String> {
        let net = &mut self.net;
        let path =
            |setting| text(setting).map(|path| Some(PathBuf::from(path)).filter(|it| it != Path::new("")));
        match setting.key.as_str() {
            "listen_tcp" => net.tcp = flag(&setting)?,
            "listen_tls" => net.tls = flag(&setting)?,
            "listen_addr" => net.address = Some(text(setting)?),
            "tcp_port" => net.tcp_port = port(setting)?,
            "tls_port" => net.tls_port = port(setting)?,
            "auth_tcp" => net.tcp_authentication = scheme_of_remote(setting)?,
            "auth_tls" => net.tls_authentication = scheme_of_remote(setting)?,
            "key_file" => net.key = path(setting)?,
            "cert_file" => net.certificate = path(setting)?,
            "ca_file" => net.authority = path(setting)?,
            "crl_file" => net.revoked = path(setting)?,
            "tls_no_verify_certificate" => net.verify = !flag(&setting)?,
            "tls_allowed_dn_list" => net.allowed_names = Some(texts(setting)?),
            key => self.remarks.push(format!("line {}: unknown setting '{key}'", setting.line)),
        }
        Ok(())
    }

    fn apply_other(&mut self, setting: Setting) -> Result<(), String> {
        match setting.key.as_str() {
            "unix_sock_dir" => self.sockets.directory = Some(text(setting)?.into()),
            "unix_sock_group" => self.sockets.group = Some(text(setting)?),
            "unix_sock_rw_perms" => self.sockets.mode = Some(mode(setting)?),
            "unix_sock_ro_perms" => self.sockets.read_only_mode = mode(setting)?,
            "unix_sock_admin_perms" => self.sockets.admin_mode = mode(setting)?,
            "auth_unix_rw" => self.auth.read_write = Some(scheme(setting)?),
            "auth_unix_ro" => self.auth.read_only = Some(scheme(setting)?),
            "sasl_allowed_username_list" => self.auth.sasl_names = Some(texts(setting)?),
            "tcp_min_ssf" => self.auth.tcp_min_ssf = min_ssf(&setting)?,
            "access_drivers" => self.access = access_drivers(setting)?,
            "audit_level" => {
                self.audit.kernel = match number::<u32>(&setting)? {
                    0 => KernelAudit::Never,
                    1 => KernelAudit::IfThere,
                    _ => KernelAudit::Always,
                };
            }
            "audit_logging" => self.audit.log = flag(&setting)?,
            "log_level" => self.log.level = number(&setting)?,
            "log_filters" => self.log.filters = text(setting)?,
            "log_outputs" => self.log.outputs = text(setting)?,
            "metrics_listen" => {
                let refused = |error| format!("metrics_listen: {error}");
                self.metrics = Some(text(setting)?.parse().map_err(refused)?);
            }
            "host_uuid" => self.host_uuid = Some(host_uuid(setting)?),
            "host_uuid_source" => self.host_uuid_source = Some(text(setting)?),
            key if WITHOUT_EFFECT.contains(&key) => {
                self.remarks.push(format!("line {}: '{key}' has no effect here", setting.line));
            }
            _ => self.apply_net(setting)?,
        }
        Ok(())
    }
}

fn flag(setting: &Setting) -> Result<bool, String> {
    number::<i64>(setting).map(|number| number != 0)
}

/// Ports are texts, for services may be named; only numbers are taken here.
fn port(setting: Setting) -> Result<u16, String> {
    let key = setting.key.clone();
    let port = text(setting)?;
    port.parse().map_err(|_| format!("{key}: '{port}' is not the number of a port"))
}

fn texts(setting: Setting) -> Result<Vec<String>, String> {
    let refused = expected(&setting, "string list");
    let values = match setting.value {
        Value::List(values) => values,
        value => vec![value],
    };
    let text = |value| match value {
        Value::Text(text) => Ok(text),
        _ => Err(refused.clone()),
    };
    values.into_iter().map(text).collect()
}

/// Hands over the settings of a file one by one.
fn read_settings(
    path: &Path,
    text: &str,
    mut apply: impl FnMut(Setting) -> Result<(), String>,
) -> Result<(), ConfigError> {
    let settings =
        conf_file::parse(text).map_err(|source| ConfigError::Syntax { path: path.to_owned(), source })?;
    for setting in settings {
        let line = setting.line;
        apply(setting).map_err(|what| ConfigError::Value { path: path.to_owned(), line, what })?;
    }
    Ok(())
}

fn expected(setting: &Setting, what: &str) -> String {
    format!("expected a {what} for '{}' parameter, not a {}", setting.key, setting.value.kind())
}

fn number<N: TryFrom<i64>>(setting: &Setting) -> Result<N, String> {
    let Value::Integer(number) = setting.value else { return Err(expected(setting, "number")) };
    N::try_from(number).map_err(|_| format!("value {number} for '{}' parameter is out of range", setting.key))
}

fn positive(setting: &Setting) -> Result<u32, String> {
    match number(setting)? {
        0 => Err(format!("'{}' must be greater than 0", setting.key)),
        number => Ok(number),
    }
}

fn text(setting: Setting) -> Result<String, String> {
    match setting.value {
        Value::Text(text) => Ok(text),
        _ => Err(expected(&setting, "string")),
    }
}

fn host_uuid(setting: Setting) -> Result<Uuid, String> {
    let uuid = text(setting)?;
    uuid.parse().ok().filter(Uuid::is_plausible).ok_or_else(|| format!("invalid host UUID: {uuid}"))
}

fn mode(setting: Setting) -> Result<u32, String> {
    let mode = text(setting)?;
    match u32::from_str_radix(&mode, 8) {
        Ok(bits) if bits <= 0o7777 => Ok(bits),
        _ => Err(format!("Failed to parse mode '{mode}'")),
    }
}

fn scheme(setting: Setting) -> Result<Scheme, String> {
    let key = setting.key.clone();
    match text(setting)?.as_str() {
        "none" => Ok(Scheme::None),
        "sasl" => Ok(Scheme::Sasl),
        "polkit" => Ok(Scheme::Polkit),
        other => Err(format!("{key}: unsupported auth {other}")),
    }
}

/// polkit knows processes of this host, and no others.
fn scheme_of_remote(setting: Setting) -> Result<Scheme, String> {
    let key = setting.key.clone();
    match scheme(setting)? {
        Scheme::Polkit => Err(format!("{key}: unsupported auth polkit: it knows nobody from other hosts")),
        scheme => Ok(scheme),
    }
}

fn min_ssf(setting: &Setting) -> Result<u32, String> {
    match number(setting)? {
        weak if weak < MIN_SSF => Err(format!("minimum SSF levels lower than {MIN_SSF} are not supported")),
        strength => Ok(strength),
    }
}

fn access_drivers(setting: Setting) -> Result<Vec<AccessDriverName>, String> {
    let driver = |name: String| match name.as_str() {
        "none" => Ok(None),
        "policy" => Ok(Some(AccessDriverName::Policy)),
        "polkit" => Ok(Some(AccessDriverName::Polkit)),
        _ => Err(format!("Cannot find security driver '{name}'")),
    };
    texts(setting)?.into_iter().filter_map(|name| driver(name).transpose()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Config, String> {
        Config::read(Path::new("/x.conf"), text).map_err(|error| error.to_string())
    }

    #[test]
    fn settings_of_both_servers_and_of_the_sockets() {
        let config = read(
            "max_clients = 7\nadmin_max_clients = 3\nkeepalive_interval = -1\nadmin_keepalive_count = 9\n\
             unix_sock_rw_perms = \"0770\"\nunix_sock_group = \"kvm\"\nauth_unix_rw = \"none\"\n\
             access_drivers = [ \"none\" ]\nlog_filters = \"1:qemu\"\n",
        )
        .unwrap();
        assert_eq!((config.server.max_clients, config.admin.max_clients), (7, 3));
        assert_eq!((config.server.keepalive_interval, config.admin.keepalive_count), (-1, 9));
        assert_eq!((config.sockets.mode, config.sockets.group.as_deref()), (Some(0o770), Some("kvm")));
        assert_eq!((config.auth.read_write, config.auth.read_only), (Some(Scheme::None), None));
        assert_eq!(config.log.filters, "1:qemu");
        assert_eq!((config.access.len(), read("").unwrap().access.len()), (0, 0));
        assert_eq!(
            config.only_at_start(&read("max_clients = 9\n").unwrap()),
            ["the sockets", "how clients show who they are"]
        );
        assert_eq!(config.remarks, [""; 0]);
    }

    #[test]
    fn settings_of_the_network() {
        let config = read(
            "listen_tcp = 1\nlisten_tls = 0\nlisten_addr = '::1'\ntcp_port = '1'\nauth_tcp = 'none'\n\
             tls_allowed_dn_list = [ 'C=GB,*', \"CN=x\" ]\ntls_no_verify_certificate = 1\nca_file = ''\n",
        );
        let net = read("").unwrap().net;
        assert!(!net.tcp && net.tls && net.verify);
        assert_eq!((net.tcp_authentication, net.tls_authentication), (Scheme::Sasl, Scheme::None));
        let net = config.unwrap().net;
        assert!(net.tcp && !net.tls && !net.verify);
        assert_eq!((net.address.as_deref(), net.tcp_port, net.tls_port), (Some("::1"), 1, 16514));
        assert_eq!((net.tcp_authentication, net.authority), (Scheme::None, None));
        assert_eq!(net.allowed_names.unwrap(), ["C=GB,*", "CN=x"]);
    }

    #[test]
    fn what_has_no_effect_is_named() {
        let config = read("ovs_timeout = 3\n\ncolour = 'green'\nadmin_max_anonymous_clients = 1").unwrap();
        let remarks = [
            "line 1: 'ovs_timeout' has no effect here",
            "line 3: unknown setting 'colour'",
            "line 4: unknown setting 'admin_max_anonymous_clients'",
        ];
        assert_eq!(config.remarks, remarks);
    }

    #[test]
    fn mistakes_are_errors_with_file_and_line() {
        for (text, error) in [
            ("a =", "configuration file syntax error: /x.conf:1: expecting a value"),
            (
                "\nmax_clients = \"1\"",
                "/x.conf:2: expected a number for 'max_clients' parameter, not a string",
            ),
            ("max_clients = -1", "/x.conf:1: value -1 for 'max_clients' parameter is out of range"),
            ("max_clients = 0", "/x.conf:1: 'max_clients' must be greater than 0"),
            ("unix_sock_ro_perms = '0888'", "/x.conf:1: Failed to parse mode '0888'"),
            ("auth_unix_ro = 'x'", "/x.conf:1: auth_unix_ro: unsupported auth x"),
            ("tcp_min_ssf = 55", "/x.conf:1: minimum SSF levels lower than 56 are not supported"),
            ("tcp_port = 'http'", "/x.conf:1: tcp_port: 'http' is not the number of a port"),
            (
                "auth_tls = 'polkit'",
                "/x.conf:1: auth_tls: unsupported auth polkit: it knows nobody from other hosts",
            ),
            ("host_uuid = 'x'", "/x.conf:1: invalid host UUID: x"),
            (
                "host_uuid = '00000000-0000-0000-0000-000000000000'",
                "/x.conf:1: invalid host UUID: 00000000-0000-0000-0000-000000000000",
            ),
            ("access_drivers = ['selinux']", "/x.conf:1: Cannot find security driver 'selinux'"),
        ] {
            assert_eq!(read(text).err().as_deref(), Some(error), "{text:?}");
        }
    }
}
