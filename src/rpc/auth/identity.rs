//! Who a client is, as far as its socket, its certificate and its authentication vouch for it.
//!
//! Put together when a client is accepted; replaced as a whole when it shows more of itself.

use std::fmt;
use std::os::fd::AsFd;

use rustix::process::Pid;

use crate::rpc::session::Peer;
use crate::util::{fds, process};

/// The process at the other end of a unix socket, as the kernel names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerProcess {
    pub uid: u32,
    pub gid: u32,
    pub pid: i32,
    /// In clock ticks since the host's boot; `None` if it was gone already.
    pub start_time: Option<u64>,
    pub selinux_context: Option<Box<str>>,
}

impl PeerProcess {
    /// The process that connected a socket.
    pub fn of(socket: impl AsFd) -> Option<Self> {
        let peer = rustix::net::sockopt::socket_peercred(&socket).ok()?;
        Some(Self {
            uid: peer.uid.as_raw(),
            gid: peer.gid.as_raw(),
            pid: peer.pid.as_raw_nonzero().get(),
            start_time: process::start_time(peer.pid).ok(),
            selinux_context: fds::peer_context(socket.as_fd()).map(Into::into),
        })
    }

    /// Whether its number still means the process that connected.
    pub fn is_still_there(&self) -> bool {
        let now = Pid::from_raw(self.pid).and_then(|pid| process::start_time(pid).ok());
        now.is_some() && now == self.start_time
    }
}

/// What a client comes through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    Unix,
    Tcp,
    Tls,
}

/// What is known of a client; a part is there only where something vouches for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    pub way: Way,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub pid: Option<i32>,
    /// In clock ticks since the host's boot; with the pid it means one process for ever.
    pub start_time: Option<u64>,
    /// As a proxy said it; see [`Identity::user_name`].
    pub user: Option<Box<str>>,
    pub group: Option<Box<str>>,
    pub sasl_name: Option<Box<str>>,
    /// The distinguished name of its certificate.
    pub x509_name: Option<Box<str>>,
    pub selinux_context: Option<Box<str>>,
}

impl Identity {
    /// What the socket tells.
    pub fn of(peer: &Peer) -> Self {
        let mut identity = Self {
            way: Way::Unix,
            uid: None,
            gid: None,
            pid: None,
            start_time: None,
            user: None,
            group: None,
            sasl_name: None,
            x509_name: None,
            selinux_context: None,
        };
        match peer {
            Peer::Unix(None) => {}
            Peer::Unix(Some(process)) => {
                identity.uid = Some(process.uid);
                identity.gid = Some(process.gid);
                identity.pid = Some(process.pid);
                identity.start_time = process.start_time;
                identity.selinux_context.clone_from(&process.selinux_context);
            }
            Peer::Tcp { .. } => identity.way = Way::Tcp,
            Peer::Tls { name, .. } => {
                identity.way = Way::Tls;
                identity.x509_name.clone_from(name);
            }
        }
        identity
    }

    /// The user's name. May ask a directory on the network: not for the async threads.
    pub fn user_name(&self) -> Option<String> {
        let look_up = || nix::unistd::User::from_uid(self.uid?.into()).ok()?.map(|user| user.name);
        self.user.as_deref().map(str::to_owned).or_else(look_up)
    }

    /// The group's name, as [`Identity::user_name`].
    pub fn group_name(&self) -> Option<String> {
        let look_up = || nix::unistd::Group::from_gid(self.gid?.into()).ok()?.map(|group| group.name);
        self.group.as_deref().map(str::to_owned).or_else(look_up)
    }
}

/// For log lines: what is known, in the order of how little it can be changed.
impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = |name, value: Option<String>| value.map(|value| format!("{name} {value}"));
        let text = |name, value: &Option<Box<str>>| value.as_ref().map(|value| format!("{name} '{value}'"));
        let known = [
            number("uid", self.uid.map(|uid| uid.to_string())),
            number("gid", self.gid.map(|gid| gid.to_string())),
            number("pid", self.pid.map(|pid| pid.to_string())),
            text("user", &self.user),
            text("SASL name", &self.sasl_name),
            text("x509 name", &self.x509_name),
            text("SELinux context", &self.selinux_context),
        ];
        let known: Vec<_> = known.into_iter().flatten().collect();
        if known.is_empty() { f.write_str("nobody known") } else { f.write_str(&known.join(", ")) }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_socket_tells_who_connected_it() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let process = PeerProcess::of(&ours).unwrap();
        assert_eq!(process.pid.cast_unsigned(), std::process::id());
        assert!(process.start_time.is_some() && process.is_still_there());
        let another =
            PeerProcess { start_time: process.start_time.map(|ticks| ticks + 1), ..process.clone() };
        assert!(!another.is_still_there(), "the same number, another process");
        let identity = Identity::of(&Peer::Unix(Some(process)));
        assert_eq!(identity.uid, Some(nix::unistd::getuid().as_raw()));
        let user = nix::unistd::User::from_uid(nix::unistd::getuid()).unwrap().map(|user| user.name);
        assert_eq!(identity.user_name(), user);
    }

    #[test]
    fn log_lines_say_what_is_known() {
        let address = "127.0.0.1:1".parse().unwrap();
        assert_eq!(Identity::of(&Peer::Tcp { address }).to_string(), "nobody known");
        let mut identity = Identity::of(&Peer::Tls { address, name: Some("CN=x".into()), key_bits: 256 });
        identity.sasl_name = Some("fred@host".into());
        assert_eq!(identity.to_string(), "SASL name 'fred@host', x509 name 'CN=x'");
    }
}
