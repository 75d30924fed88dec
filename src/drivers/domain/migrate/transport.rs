//! Ways to another daemon: a socket of this host, TCP, TLS, or `ssh` and a helper that speaks for us on the other host.

use std::fmt;
use std::io;
use std::net::Ipv6Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;

use super::tunnel;
use crate::error::{Error, Origin, Result};
use crate::util::process::{Child, Command};
use crate::util::unix;

/// Where libvirt listens: for plain connections, and for those with TLS.
const TCP_PORT: u16 = 16509;
const TLS_PORT: u16 = 16514;
/// The system daemon of a host.
const LOCAL: &str = "/run/libvirt/libvirt-sock";
/// What a server says to a client whose certificate is good.
const WELCOME: u8 = 1;
/// How much of what `ssh` says is kept.
const MAX_WORDS: u64 = 4096;

/// Where a daemon is, and what it is asked to open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Address {
    place: Place,
    pub(super) name: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    Unix(String),
    Tcp(String, u16),
    Tls {
        host: String,
        port: u16,
        /// Where the certificates are, if not where they usually are.
        keys: Option<String>,
    },
    Ssh(Box<Ssh>),
}

/// A host that is reached by `ssh`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Ssh {
    program: Option<String>,
    user: Option<String>,
    host: String,
    port: Option<u16>,
    key: Option<String>,
    trusts_anybody: bool,
    /// What speaks for us there; libvirt's own helper, if nothing is said.
    netcat: Option<String>,
    proxy: Option<String>,
    socket: Option<String>,
    /// What the helper is asked for.
    uri: String,
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Place::Unix(path) => write!(f, "socket '{path}'"),
            Place::Tcp(host, port) | Place::Tls { host, port, .. } => write!(f, "'{host}:{port}'"),
            Place::Ssh(ssh) => write!(f, "'{}' by ssh", ssh.host),
        }
    }
}

/// What this host has for connecting to others.
#[derive(Debug, Clone, Copy)]
pub(super) struct Means<'a> {
    /// The directory of the host's certificates.
    pub pki: &'a Path,
    /// Where programs are looked for.
    pub search_path: &'a str,
}

/// Bytes in both directions.
pub(super) trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// To the other daemon.
pub(super) enum Line {
    /// On this host.
    Unix(UnixStream),
    /// With the process that it goes through, if any.
    Stream(Box<dyn Duplex>, Option<Child>),
}

impl Address {
    /// `qemu+unix:///system?socket=PATH`, `qemu+tcp://host:port/system`, `qemu+tls://…`, `qemu+ssh://user@host/system`
    pub(super) fn parse(uri: &str) -> Result<Self> {
        let unparsable =
            || Error::internal_error(format!("Unable to parse URI {uri}")).from_origin(Origin::URI);
        let (scheme, rest) = uri.split_once("://").ok_or_else(unparsable)?;
        let (driver, transport) = match scheme.split_once('+') {
            Some((driver, transport)) => (driver, Some(transport)),
            None => (scheme, None),
        };
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let name = format!("{driver}://{}", if path.is_empty() { "/" } else { path });
        let value =
            |name: &str| query.split('&').filter_map(|pair| pair.split_once('=')).find(|(it, _)| *it == name);
        let option = |name: &str| value(name).map(|(_, value)| unescaped(value));
        let (user, host) = match authority.rsplit_once('@') {
            Some((user, host)) => (Some(unescaped(user)), host),
            None => (None, authority),
        };
        let (host, port) = host_and_port(host).ok_or_else(unparsable)?;
        let is_remote = !host.is_empty();
        let refuses = |name: &str| option(name).is_some_and(|value| value != "0");
        let place = match transport {
            None | Some("unix") if !is_remote => {
                Place::Unix(option("socket").unwrap_or_else(|| LOCAL.to_owned()))
            }
            Some("tcp") if is_remote => Place::Tcp(host, port.unwrap_or(TCP_PORT)),
            None | Some("tls") if is_remote && refuses("no_verify") => {
                let sentence =
                    "migration to a daemon whose certificate is not to be verified is not supported";
                return Err(Error::operation_unsupported(sentence));
            }
            None | Some("tls") if is_remote => {
                Place::Tls { host, port: port.unwrap_or(TLS_PORT), keys: option("pkipath") }
            }
            Some("ssh") if is_remote => Place::Ssh(Box::new(Ssh {
                program: option("command"),
                user,
                host,
                port,
                key: option("keyfile"),
                trusts_anybody: refuses("no_verify"),
                netcat: option("netcat"),
                proxy: option("proxy"),
                uri: match value("socket") {
                    Some((_, socket)) => format!("{name}?socket={socket}"),
                    None => name.clone(),
                },
                socket: option("socket"),
            })),
            Some("unix" | "tcp" | "tls" | "ssh") | None => return Err(unparsable()),
            Some(other) => {
                return Err(Error::operation_unsupported(format!(
                    "migration from daemon to daemon over '{other}' is not supported; use unix, tcp, tls or ssh"
                )));
            }
        };
        Ok(Self { place, name })
    }

    pub(super) async fn connect(&self, means: Means<'_>) -> Result<Line> {
        let failed =
            |error| Error::io(format_args!("unable to connect to {self}"), error).from_origin(Origin::RPC);
        match &self.place {
            Place::Unix(path) => Ok(Line::Unix(unix::connect(Path::new(path)).map_err(failed)?)),
            Place::Tcp(host, port) => {
                Ok(Line::Stream(Box::new(tcp(host, *port).await.map_err(failed)?), None))
            }
            Place::Tls { host, port, keys } => {
                let stream = tcp(host, *port).await.map_err(failed)?;
                let config = credentials(means.pki, keys.as_deref())?;
                let name = ServerName::try_from(host.clone())
                    .map_err(|_| Error::invalid_arg(format!("'{host}' is not the name of a host")))?;
                let refused = |error: io::Error| {
                    Error::system_error(format!("TLS handshake with {self} failed: {error}"))
                        .from_origin(Origin::RPC)
                };
                let mut stream = TlsConnector::from(config).connect(name, stream).await.map_err(refused)?;
                if stream.read_u8().await.map_err(refused)? != WELCOME {
                    let sentence = "server verification (of our certificate or IP address) failed";
                    return Err(Error::auth_failed(sentence).from_origin(Origin::RPC));
                }
                Ok(Line::Stream(Box::new(stream), None))
            }
            Place::Ssh(ssh) => {
                let (ours, theirs) = tunnel::pair().map_err(failed)?;
                let child = ssh.start(theirs, means.search_path).await?;
                Ok(Line::Stream(Box::new(ours), Some(child)))
            }
        }
    }
}

async fn tcp(host: &str, port: u16) -> io::Result<TcpStream> {
    let stream = TcpStream::connect((host, port)).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Who we are, and whom we trust: libvirt's files for clients.
fn credentials(pki: &Path, keys: Option<&str>) -> Result<Arc<ClientConfig>> {
    let [authority, certificate, key] = match keys {
        Some(keys) => {
            ["cacert.pem", "clientcert.pem", "clientkey.pem"].map(|name| Path::new(keys).join(name))
        }
        None => ["CA/cacert.pem", "libvirt/clientcert.pem", "libvirt/private/clientkey.pem"]
            .map(|name| pki.join(name)),
    };
    let wrong = |path: &PathBuf, why: &dyn fmt::Display| {
        Error::system_error(format!("Unable to use '{}': {why}", path.display())).from_origin(Origin::RPC)
    };
    let mut roots = RootCertStore::empty();
    let trusted = CertificateDer::pem_file_iter(&authority).map_err(|error| wrong(&authority, &error))?;
    for trusted in trusted {
        let trusted = trusted.map_err(|error| wrong(&authority, &error))?;
        roots.add(trusted).map_err(|error| wrong(&authority, &error))?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| wrong(&authority, &error))?
        .with_root_certificates(roots);
    // A server may let in whoever comes.
    if !certificate.exists() && !key.exists() {
        return Ok(Arc::new(config.with_no_client_auth()));
    }
    let chain =
        CertificateDer::pem_file_iter(&certificate).and_then(Iterator::collect::<std::result::Result<_, _>>);
    let chain = chain.map_err(|error| wrong(&certificate, &error))?;
    let secret = PrivateKeyDer::from_pem_file(&key).map_err(|error| wrong(&key, &error))?;
    let config = config.with_client_auth_cert(chain, secret).map_err(|error| wrong(&certificate, &error))?;
    Ok(Arc::new(config))
}

impl Ssh {
    /// The process whose stdin and stdout are the connection.
    async fn start(&self, end: std::os::fd::OwnedFd, search_path: &str) -> Result<Child> {
        let failed = |error| Error::io("cannot create the pipes of ssh", error);
        let (words, stderr) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
            .map_err(io::Error::from)
            .map_err(failed)?;
        let program = self.program.as_deref().unwrap_or("ssh");
        let command = Command::new(program)
            .args(self.arguments()?)
            .env("PATH", search_path)
            .stdin(end.try_clone().map_err(failed)?)
            .stdout(end)
            .stderr(stderr);
        let child = command.start().await.map_err(|error| Error::internal_error(error.to_string()))?;
        let host = self.host.clone();
        if let Ok(words) = tokio::net::unix::pipe::Receiver::from_owned_fd(words) {
            tokio::spawn(async move {
                let mut said = String::new();
                let read = words.take(MAX_WORDS).read_to_string(&mut said).await;
                if read.is_ok() && !said.is_empty() {
                    tracing::warn!(host, said = said.trim(), "ssh");
                }
            });
        }
        Ok(child)
    }

    fn arguments(&self) -> Result<Vec<String>> {
        let mut arguments = Vec::new();
        let port = self.port.map(|port| port.to_string());
        for (option, value) in [("-p", &port), ("-l", &self.user), ("-i", &self.key)] {
            if let Some(value) = value {
                arguments.extend([option.to_owned(), value.clone()]);
            }
        }
        // There is nobody here to answer a question.
        arguments.extend(["-T", "-e", "none", "-o", "BatchMode=yes"].map(str::to_owned));
        if self.trusts_anybody {
            arguments.extend(["-o", "StrictHostKeyChecking=no"].map(str::to_owned));
        }
        let script = format!("sh -c {}", quoted(&self.script()?));
        arguments.extend(["--".to_owned(), self.host.clone(), script]);
        Ok(arguments)
    }

    /// What connects to the daemon there.
    fn script(&self) -> Result<String> {
        let helper = format!("virt-ssh-helper {}", quoted(&self.uri));
        let netcat = quoted(self.netcat.as_deref().unwrap_or("nc"));
        let socket = quoted(self.socket.as_deref().unwrap_or(LOCAL));
        let netcat = format!(
            "if {netcat} -q 2>&1 | grep \"requires an argument\" >/dev/null 2>&1; then ARG=-q0; else ARG=; fi; \
             {netcat} $ARG -U {socket}"
        );
        match (self.proxy.as_deref(), &self.netcat) {
            (Some("native"), Some(_)) => {
                Err(Error::invalid_arg("netcat path not valid with native proxy mode"))
            }
            (Some("native"), None) => Ok(helper),
            (Some("netcat"), _) | (None | Some("auto"), Some(_)) => Ok(netcat),
            (None | Some("auto"), None) => {
                Ok(format!("if which virt-ssh-helper >/dev/null 2>&1; then {helper}; else {netcat}; fi"))
            }
            (Some(other), _) => Err(Error::invalid_arg(format!("unknown proxy mode '{other}'"))),
        }
    }
}

/// One word of a shell's.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

pub(super) fn host_and_port(authority: &str) -> Option<(String, Option<u16>)> {
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (host, rest) = rest.split_once(']')?;
            host.parse::<Ipv6Addr>().ok()?;
            (host, rest.strip_prefix(':'))
        }
        None => authority.split_once(':').map_or((authority, None), |(host, port)| (host, Some(port))),
    };
    // What begins like an option of ssh's is no host.
    let port = match port {
        None | Some("") => None,
        Some(port) => Some(port.parse().ok()?),
    };
    (!host.starts_with('-')).then(|| (host.to_owned(), port))
}

/// `%2F` and the like.
pub(super) fn unescaped(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let escaped = match (first, after.get(..2)) {
            (b'%', Some(digits)) => {
                std::str::from_utf8(digits).ok().and_then(|it| u8::from_str_radix(it, 16).ok())
            }
            _ => None,
        };
        bytes.push(escaped.unwrap_or(first));
        rest = if escaped.is_some() { after.get(2..).unwrap_or_default() } else { after };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uris_say_where_and_what() {
        let unix = |path: &str| Place::Unix(path.to_owned());
        let tcp = |host: &str, port| Place::Tcp(host.to_owned(), port);
        let tls = |keys: Option<&str>| Place::Tls {
            host: "host".to_owned(),
            port: 16514,
            keys: keys.map(str::to_owned),
        };
        for (uri, place, name) in [
            ("qemu:///system", unix(LOCAL), "qemu:///system"),
            ("qemu+unix:///system?socket=/tmp/a%20b", unix("/tmp/a b"), "qemu:///system"),
            ("qemu+unix:///system?x=1&socket=/tmp/s", unix("/tmp/s"), "qemu:///system"),
            ("qemu+tcp://host/system", tcp("host", 16509), "qemu:///system"),
            ("qemu+tcp://me@[::1]:17000/system", tcp("::1", 17000), "qemu:///system"),
            ("qemu://host/system", tls(None), "qemu:///system"),
            ("qemu+tls://host/system?pkipath=/k", tls(Some("/k")), "qemu:///system"),
        ] {
            let expected = Address { place, name: name.to_owned() };
            assert_eq!(Address::parse(uri).unwrap(), expected, "{uri}");
        }
        for uri in [
            "qemu",
            "qemu+tcp:///system",
            "qemu+tls:///system",
            "qemu+ssh://-oProxyCommand=x/system",
            "qemu+libssh2://host/system",
            "qemu+tls://host/system?no_verify=1",
        ] {
            assert!(Address::parse(uri).is_err(), "{uri}");
        }
    }

    #[test]
    fn ssh_runs_the_helper_or_what_the_uri_names() {
        let arguments = |uri: &str| {
            let Place::Ssh(ssh) = Address::parse(uri).unwrap().place else { panic!("{uri}") };
            ssh.arguments().map_err(|error| error.message())
        };
        let given = arguments("qemu+ssh://me@host:22/system?keyfile=/k&socket=/s&proxy=native").unwrap();
        let line = r"-p 22 -l me -i /k -T -e none -o BatchMode=yes -- host sh -c 'virt-ssh-helper '\''qemu:///system?socket=/s'\'''";
        assert_eq!(given.join(" "), line);
        let netcat = arguments("qemu+ssh://host/system?netcat=/n&no_verify=1").unwrap().join(" ");
        assert!(netcat.contains("-o StrictHostKeyChecking=no -- host sh -c "), "{netcat}");
        assert!(netcat.contains(r"'\''/n'\'' $ARG -U '\''/run/libvirt/libvirt-sock'\''"), "{netcat}");
        let both = arguments("qemu+ssh://host/system?netcat=/n&proxy=native").unwrap_err();
        assert_eq!(both, "invalid argument: netcat path not valid with native proxy mode");
    }
}
