//! Where the stream of a guest's state goes: `tcp://host:port`, `tcp:host:port` as older daemons write it, or
//! `unix:///path`.

use std::fmt;
use std::net::Ipv6Addr;

use crate::error::{Error, Result};

/// Where the destination's QEMU listens, as a client names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Target {
    Tcp {
        host: String,
        /// None: the destination chooses.
        port: Option<u16>,
        /// `tcp:host`, to be answered in kind.
        old_form: bool,
    },
    Unix(String),
}

impl Target {
    pub(super) fn parse(uri: &str) -> Result<Self> {
        let Some((scheme, rest)) = uri.split_once(':') else {
            return Err(Error::invalid_arg(format!("missing scheme in migration URI: {uri}")));
        };
        let (rest, old_form) = match rest.strip_prefix("//") {
            Some(rest) => (rest, false),
            None => (rest, true),
        };
        match scheme {
            "unix" => Ok(Self::Unix(path(rest).to_owned())),
            "tcp" => {
                let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
                let (host, port) = split_port(authority).ok_or_else(|| unparsable(uri))?;
                match host {
                    "" => Err(Error::invalid_arg(format!("missing host in migration URI: {uri}"))),
                    host => Ok(Self::Tcp { host: host.to_owned(), port, old_form }),
                }
            }
            "rdma" => Err(Error::argument_unsupported(
                "migration over RDMA needs memory that this daemon does not lock; use tcp or unix",
            )),
            _ => Err(Error::argument_unsupported(format!(
                "unsupported scheme {scheme} in migration URI {uri}"
            ))),
        }
    }

    /// The same with the port that the destination chose.
    pub(super) fn with_port(self, chosen: u16) -> Self {
        match self {
            Self::Tcp { host, old_form, .. } => Self::Tcp { host, port: Some(chosen), old_form },
            unix => unix,
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix://{path}"),
            Self::Tcp { host, port, old_form } => {
                let slashes = if *old_form { "" } else { "//" };
                let host = bracketed(host);
                match port {
                    Some(port) => write!(f, "tcp:{slashes}{host}:{port}"),
                    None => write!(f, "tcp:{slashes}{host}"),
                }
            }
        }
    }
}

/// Where QEMU is to listen, as `migrate-incoming` takes it.
pub(super) fn listening(target: &Target, address: Option<&str>) -> String {
    match target {
        Target::Unix(path) => format!("unix:{path}"),
        Target::Tcp { port, .. } => {
            let port = port.unwrap_or(0);
            let everywhere = everywhere();
            format!("tcp:{}:{port}", bracketed(address.unwrap_or(everywhere)))
        }
    }
}

/// An IPv6 address in the brackets it needs before a port.
pub(super) fn bracketed(host: &str) -> String {
    match host.parse::<Ipv6Addr>() {
        Ok(_) => format!("[{host}]"),
        Err(_) => host.to_owned(),
    }
}

/// All addresses of this host.
pub(super) fn everywhere() -> &'static str {
    let has_ipv6 = std::net::TcpListener::bind((Ipv6Addr::UNSPECIFIED, 0)).is_ok();
    if has_ipv6 { "::" } else { "0.0.0.0" }
}

fn path(rest: &str) -> &str {
    // What stands before the path would be a host, and a socket has none.
    let rest = rest.find('/').map_or("", |at| rest.split_at(at).1);
    rest.split(['?', '#']).next().unwrap_or_default()
}

fn split_port(authority: &str) -> Option<(&str, Option<u16>)> {
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (host, rest) = rest.split_once(']')?;
            (host, rest.strip_prefix(':'))
        }
        None => match authority.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        },
    };
    match port {
        None | Some("") => Some((host, None)),
        Some(port) => Some((host, Some(port.parse().ok()?).filter(|port| *port > 0))),
    }
}

fn unparsable(uri: &str) -> Error {
    Error::internal_error(format!("Unable to parse URI {uri}")).from_origin(crate::error::Origin::URI)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uris_of_both_forms_are_read_and_answered_in_kind() {
        for (uri, with_port) in [
            ("tcp://host", "tcp://host:7"),
            ("tcp://host:", "tcp://host:7"),
            ("tcp:host", "tcp:host:7"),
            ("tcp://[::1]:0", "tcp://[::1]:7"),
            ("tcp://192.0.2.1/ignored", "tcp://192.0.2.1:7"),
            ("unix:///run/x.sock", "unix:///run/x.sock"),
        ] {
            assert_eq!(Target::parse(uri).unwrap().with_port(7).to_string(), with_port);
        }
        let Target::Tcp { port, .. } = Target::parse("tcp:host:49152").unwrap() else { panic!() };
        assert_eq!(port, Some(49152));
        assert_eq!(Target::parse("unix:///a?b").unwrap(), Target::Unix("/a".to_owned()));
    }

    #[test]
    fn other_uris_are_refused_in_libvirts_words() {
        for (uri, refusal) in [
            ("host", "invalid argument: missing scheme in migration URI: host"),
            ("tcp://:49152", "invalid argument: missing host in migration URI: tcp://:49152"),
            ("fd:3", "argument unsupported: unsupported scheme fd in migration URI fd:3"),
            ("tcp://host:99999", "internal error: Unable to parse URI tcp://host:99999"),
        ] {
            assert_eq!(Target::parse(uri).unwrap_err().message(), refusal);
        }
    }

    #[test]
    fn qemu_listens_where_it_is_reached() {
        let tcp = Target::parse("tcp://host:9").unwrap();
        assert_eq!(listening(&tcp, Some("::1")), "tcp:[::1]:9");
        assert_eq!(listening(&tcp, Some("192.0.2.1")), "tcp:192.0.2.1:9");
        assert_eq!(listening(&Target::Unix("/a".to_owned()), None), "unix:/a");
    }
}
