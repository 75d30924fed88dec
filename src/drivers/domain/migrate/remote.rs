//! The daemon on the other host, to which this one is a client. The only place in `drivers` that speaks the protocol.

use std::io;
use std::path::Path;
use std::time::Duration;

use ferrovirt_protocol::client::{CallError, Client, Stream};
use ferrovirt_protocol::remote::procedure::{
    AuthList, ConnectOpen, ConnectSupportsFeature, DomainMigrateFinish3Params, DomainMigratePrepare3Params,
    DomainMigratePrepareTunnel3Params,
};
use ferrovirt_protocol::remote::{
    AuthType, ConnectOpenArgs, ConnectSupportsFeatureArgs, DomainMigrateFinish3ParamsArgs,
    DomainMigratePrepare3ParamsArgs, DomainMigratePrepareTunnel3ParamsArgs, TypedParam, TypedParamValue,
};
use tokio::net::TcpStream;
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};

use super::Outcome;
use crate::drivers::params::{ParamValue, Params};
use crate::error::{Code, Error, Origin, Result};
use crate::qemu::migrate::Policy;
use crate::util::unix;

/// Where libvirt listens for plain connections.
const PORT: u16 = 16509;
const CONNECT_LIMIT: Duration = Duration::from_secs(30);
/// How long one call may take; a guest of much memory takes a while to prepare.
const CALL_LIMIT: Duration = Duration::from_secs(600);

/// What the other daemon has to be able to do, by libvirt's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ability {
    PeerToPeer = 4,
    Version3 = 6,
    Keepalive = 10,
    Offline = 12,
    Params = 13,
}

/// Why a call has no answer.
#[derive(Debug)]
pub(super) enum Trouble {
    /// The other daemon says no.
    Refused(Error),
    /// Nobody knows what the other daemon did.
    Lost(Error),
}

impl From<Trouble> for Error {
    fn from(trouble: Trouble) -> Self {
        let (Trouble::Refused(error) | Trouble::Lost(error)) = trouble;
        error
    }
}

/// A connection.
#[derive(Debug)]
pub(super) struct Remote {
    client: Client,
    pinging: Option<AbortHandle>,
}

impl Drop for Remote {
    fn drop(&mut self) {
        if let Some(pinging) = &self.pinging {
            pinging.abort();
        }
        self.client.close();
    }
}

impl Remote {
    /// Connects to the daemon that a client named.
    pub(super) async fn open(uri: &str, policy: &Policy) -> Result<Self> {
        let Address { place, name } = Address::parse(uri)?;
        let connected = timeout(CONNECT_LIMIT, connect(&place)).await;
        let failed =
            |error| Error::io(format_args!("unable to connect to {place}"), error).from_origin(Origin::RPC);
        let (client, mut events) = match connected {
            Ok(connected) => connected.map_err(failed)?,
            Err(_) => return Err(failed(io::ErrorKind::TimedOut.into())),
        };
        // Nothing is asked to be told; what comes all the same is not kept.
        tokio::spawn(async move { while events.next().await.is_some() {} });
        let client = client.with_timeout(CALL_LIMIT);
        let remote = Self { pinging: ping(client.clone(), policy), client };
        remote.introduce(name).await?;
        Ok(remote)
    }

    async fn introduce(&self, name: String) -> Result<()> {
        let ways = self.client.call::<AuthList>(&()).await.map_err(trouble)?.types;
        if !ways.is_empty() && !ways.contains(&AuthType::NONE) {
            let sentence = "the destination asks for authentication, which this daemon does not do";
            return Err(Error::auth_failed(sentence).from_origin(Origin::RPC));
        }
        // To ask for it is to want it; a daemon without it answers pings as well or says no.
        let _ = self.can(Ability::Keepalive).await;
        let args = ConnectOpenArgs { name: Some(name), flags: 0 };
        Ok(self.client.call::<ConnectOpen>(&args).await.map_err(trouble)?)
    }

    pub(super) async fn can(&self, ability: Ability) -> Result<bool> {
        let args = ConnectSupportsFeatureArgs { feature: ability as i32 };
        let answer = self.client.call::<ConnectSupportsFeature>(&args).await.map_err(trouble)?;
        Ok(answer.supported != 0)
    }

    /// Has a QEMU wait; answers its cookie and where it waits.
    pub(super) async fn prepare(
        &self,
        params: Params,
        flags: u32,
        cookie_in: Vec<u8>,
    ) -> Result<(Vec<u8>, Option<String>), Trouble> {
        let args = DomainMigratePrepare3ParamsArgs { params: wire(params), cookie_in, flags };
        let answer = self.client.call::<DomainMigratePrepare3Params>(&args).await.map_err(trouble)?;
        Ok((answer.cookie_out, answer.uri_out))
    }

    /// The same for a QEMU that gets its guest through this connection.
    pub(super) async fn prepare_tunnel(
        &self,
        params: Params,
        flags: u32,
        cookie_in: Vec<u8>,
    ) -> Result<(Vec<u8>, Stream), Trouble> {
        let args = DomainMigratePrepareTunnel3ParamsArgs { params: wire(params), cookie_in, flags };
        let opened = self.client.open_stream::<DomainMigratePrepareTunnel3Params>(&args).await;
        let (answer, stream) = opened.map_err(trouble)?;
        Ok((answer.cookie_out, stream))
    }

    /// Has the guest run there, or not; answers a cookie if it runs.
    pub(super) async fn finish(
        &self,
        params: Params,
        flags: u32,
        (cookie_in, outcome): (Vec<u8>, Outcome),
    ) -> Result<Vec<u8>, Trouble> {
        let cancelled = i32::from(outcome == Outcome::Canceled);
        let args = DomainMigrateFinish3ParamsArgs { params: wire(params), cookie_in, flags, cancelled };
        let answer = self.client.call::<DomainMigrateFinish3Params>(&args).await.map_err(trouble)?;
        Ok(answer.cookie_out)
    }

    /// Returns when the connection is gone.
    pub(super) async fn closed(&self) -> Error {
        let reason = self.client.closed().await;
        Error::operation_failed(format!("Lost connection to destination host: {reason}"))
    }
}

/// Ends a connection whose other end is silent, unless the host wants it otherwise.
fn ping(client: Client, policy: &Policy) -> Option<AbortHandle> {
    let every = u64::try_from(policy.keepalive_interval).ok().filter(|&seconds| seconds > 0)?;
    let every = Duration::from_secs(every);
    let silence_limit = every * policy.keepalive_count.max(1);
    let pinging = tokio::spawn(async move {
        loop {
            sleep(every).await;
            match timeout(silence_limit, client.ping()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return,
                Err(_) => return client.close(),
            }
        }
    });
    Some(pinging.abort_handle())
}

fn trouble(error: CallError) -> Trouble {
    match error {
        CallError::Remote(error) => {
            let message = error.message.clone().unwrap_or_default();
            Trouble::Refused(Error::quoted(Code(error.code), Origin(error.domain), &message))
        }
        other => {
            Trouble::Lost(Error::operation_failed(format!("Lost connection to destination host: {other}")))
        }
    }
}

fn wire(params: Params) -> Vec<TypedParam> {
    let value = |value| match value {
        ParamValue::Int(value) => TypedParamValue::Int(value),
        ParamValue::Uint(value) => TypedParamValue::Uint(value),
        ParamValue::Llong(value) => TypedParamValue::Llong(value),
        ParamValue::Ullong(value) => TypedParamValue::Ullong(value),
        ParamValue::Double(value) => TypedParamValue::Double(value),
        ParamValue::Boolean(value) => TypedParamValue::Boolean(value.into()),
        ParamValue::Text(value) => TypedParamValue::String(value),
    };
    params.into_iter().map(|(field, found)| TypedParam { field, value: value(found) }).collect()
}

/// Where a daemon is, and what it is asked to open.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Address {
    place: Place,
    name: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    Unix(String),
    Tcp(String, u16),
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "socket '{path}'"),
            Self::Tcp(host, port) => write!(f, "'{host}:{port}'"),
        }
    }
}

async fn connect(place: &Place) -> io::Result<(Client, ferrovirt_protocol::client::Events)> {
    match place {
        Place::Unix(path) => Ok(Client::unix(unix::connect(Path::new(path))?)),
        Place::Tcp(host, port) => {
            let stream = TcpStream::connect((host.as_str(), *port)).await?;
            stream.set_nodelay(true)?;
            Ok(Client::new(stream))
        }
    }
}

impl Address {
    /// `qemu+unix:///system?socket=PATH`, `qemu+tcp://host:port/system`
    fn parse(uri: &str) -> Result<Self> {
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
        let socket = query.split('&').find_map(|pair| pair.strip_prefix("socket="));
        let place = match transport {
            None if authority.is_empty() => Place::Unix(LOCAL.to_owned()),
            Some("unix") => Place::Unix(socket.map_or_else(|| LOCAL.to_owned(), unescaped)),
            Some("tcp") => {
                let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
                let (host, port) = host_and_port(host).ok_or_else(unparsable)?;
                Place::Tcp(host, port)
            }
            other => {
                let transport = other.unwrap_or("tls");
                return Err(Error::operation_unsupported(format!(
                    "migration from daemon to daemon over '{transport}' is not supported; use unix or tcp"
                )));
            }
        };
        Ok(Self { place, name })
    }
}

/// The system daemon of this host.
const LOCAL: &str = "/run/libvirt/libvirt-sock";

fn host_and_port(authority: &str) -> Option<(String, u16)> {
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (host, rest) = rest.split_once(']')?;
            (host, rest.strip_prefix(':'))
        }
        None => authority.split_once(':').map_or((authority, None), |(host, port)| (host, Some(port))),
    };
    let port = match port {
        None | Some("") => PORT,
        Some(port) => port.parse().ok()?,
    };
    (!host.is_empty()).then(|| (host.to_owned(), port))
}

/// `%2F` and the like.
fn unescaped(text: &str) -> String {
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
        for (uri, place, name) in [
            ("qemu:///system", unix(LOCAL), "qemu:///system"),
            ("qemu+unix:///system?socket=/tmp/a%20b", unix("/tmp/a b"), "qemu:///system"),
            ("qemu+unix:///system?x=1&socket=/tmp/s", unix("/tmp/s"), "qemu:///system"),
            ("qemu+tcp://host/system", tcp("host", 16509), "qemu:///system"),
            ("qemu+tcp://me@[::1]:17000/system", tcp("::1", 17000), "qemu:///system"),
        ] {
            let expected = Address { place, name: name.to_owned() };
            assert_eq!(Address::parse(uri).unwrap(), expected, "{uri}");
        }
        for uri in ["qemu", "qemu+tcp:///system", "qemu+ssh://host/system", "qemu://host/system"] {
            assert!(Address::parse(uri).is_err(), "{uri}");
        }
    }
}
