//! Images that other hosts serve, in the words of QEMU's block drivers.

use serde_json::Value;

use super::blockdev::Image;
use super::line::{Line, Props};
use super::{Guest, Result, internal, unsupported};
use crate::conf::devices::{NetworkProtocol, RemoteSource, StorageHost, StorageTransport};
use crate::conf::storage::EncryptionFormat;
use crate::conf::xml::YesNo;

/// QEMU's block driver for an image of another host.
pub(super) fn backend(image: &Image<'_>, source: &RemoteSource) -> Result<Props> {
    match source.protocol {
        NetworkProtocol::Nbd => nbd(image, source),
        NetworkProtocol::Rbd => rbd(image, source),
        NetworkProtocol::Iscsi => {
            let secret = format!("{}-auth-secret0", image.storage_name()?);
            iscsi(source, image.auth.map(|auth| (&*auth.username, &*secret)))
        }
        NetworkProtocol::Gluster => gluster(source),
        NetworkProtocol::Ssh => ssh(image, source),
        NetworkProtocol::Nfs => nfs(source),
        NetworkProtocol::Http
        | NetworkProtocol::Https
        | NetworkProtocol::Ftp
        | NetworkProtocol::Ftps
        | NetworkProtocol::Tftp => curl(image, source),
        NetworkProtocol::Sheepdog | NetworkProtocol::Vxhs => unsupported(format!(
            "'{}' protocol is no longer supported by any hypervisor driver",
            source.protocol
        )),
    }
}

/// What QEMU shows servers that want to know who asks.
pub(super) fn credentials(guest: &Guest<'_>, line: &mut Line<'_>, image: &Image<'_>) -> Result<()> {
    let Some(source) = image.storage.remote().filter(|source| source.uses_tls()) else { return Ok(()) };
    if source.protocol != NetworkProtocol::Nbd {
        return unsupported(format!("TLS for '{}' is not supported", source.protocol));
    }
    let id = tls_object(image)?;
    let mut props = Props::object("tls-creds-x509", id)
        .set("dir", guest.context.settings.nbd_tls_dir.as_deref().unwrap_or("/etc/pki/qemu"))
        .set("endpoint", "client");
    props = props.set("verify-peer", true);
    line.object(props);
    Ok(())
}

fn tls_object(image: &Image<'_>) -> Result<String> {
    Ok(format!("obj{}_tls0", image.storage_name()?))
}

fn one_host<'a>(source: &'a RemoteSource, protocol: &str) -> Result<&'a StorageHost> {
    match source.hosts.as_slice() {
        [host] => Ok(host),
        _ => internal(format!("{protocol} protocol accepts only one host")),
    }
}

fn name_and_port(host: &StorageHost) -> Result<(&str, u32)> {
    match host {
        StorageHost::Inet { name, port, transport: StorageTransport::Tcp } => Ok((name, *port)),
        _ => internal("only TCP protocol can be converted to InetSocketAddress"),
    }
}

fn inet_address(host: &StorageHost) -> Result<Value> {
    let (name, port) = name_and_port(host)?;
    Ok(Props::new().set("host", name).set("port", port.to_string()).into_value())
}

fn socket_address(host: &StorageHost) -> Result<Value> {
    let props = match host {
        StorageHost::Inet { transport: StorageTransport::Tcp, name, port } => {
            Props::new().set("type", "inet").set("host", &**name).set("port", port.to_string())
        }
        StorageHost::Unix { socket } => Props::new().set("type", "unix").set("path", &**socket),
        StorageHost::Inet { transport, .. } => {
            return internal(format!("transport protocol '{transport}' is not yet supported"));
        }
    };
    Ok(props.into_value())
}

fn nbd(image: &Image<'_>, source: &RemoteSource) -> Result<Props> {
    let tls = if source.uses_tls() { Some(tls_object(image)?) } else { None };
    let delay = source.reconnect.map_or(0, |reconnect| reconnect.seconds);
    Ok(Props::driver("nbd")
        .set("server", socket_address(one_host(source, "nbd")?)?)
        .maybe("export", source.name.as_deref())
        .maybe("tls-creds", tls)
        .maybe("tls-hostname", source.tls_hostname.as_deref())
        .nonzero("reconnect-delay", delay))
}

fn rbd(image: &Image<'_>, source: &RemoteSource) -> Result<Props> {
    let (pool, path) = source.volume_and_path();
    let servers = source.hosts.iter().map(inet_address).collect::<Result<Vec<_>>>()?;
    let auth = image.auth.map(|auth| &*auth.username);
    let storage = image.storage_name()?;
    Ok(Props::driver("rbd")
        .set("pool", pool.unwrap_or_default())
        .set("image", path.unwrap_or_default())
        .maybe("snapshot", source.snapshot.as_deref())
        .maybe("conf", source.config.as_deref())
        .maybe("server", Some(servers).filter(|servers| !servers.is_empty()))
        .maybe("encrypt", rbd_encryption(image)?)
        .maybe("user", auth)
        .maybe("auth-client-required", auth.map(|_| vec!["cephx", "none"]))
        .maybe("key-secret", auth.map(|_| format!("{storage}-auth-secret0"))))
}

/// Layers of encryption that the cluster's own library takes off, outermost first.
fn rbd_encryption(image: &Image<'_>) -> Result<Option<Value>> {
    let Some(encryption) = image.encryption.filter(|encryption| encryption.is_by_librbd()) else {
        return Ok(None);
    };
    let format = match encryption.format {
        EncryptionFormat::Luks => "luks",
        EncryptionFormat::Luks2 => "luks2",
        EncryptionFormat::LuksAny => "luks-any",
        other => return unsupported(format!("the librbd encryption engine does not support '{other}'")),
    };
    let keys = image.secrets()?;
    let mut keys: Vec<_> = keys.into_iter().filter(|need| need.id.contains("-encryption-secret")).collect();
    let mut layers: Option<Value> = None;
    while let Some(key) = keys.pop() {
        let layer = Props::new().set("format", format).set("key-secret", key.id);
        layers = Some(layer.maybe("parent", layers).into_value());
    }
    Ok(layers)
}

/// A unit of an iSCSI target, with a user and the secret that has the password.
pub(super) fn iscsi(source: &RemoteSource, login: Option<(&str, &str)>) -> Result<Props> {
    let (host, port) = name_and_port(one_host(source, "iSCSI")?)?;
    let name = source.name.as_deref().unwrap_or_default();
    let (target, unit) = name.split_once('/').unwrap_or((name, "0"));
    let Ok(unit) = unit.parse::<u32>() else {
        return internal(format!("cannot parse target for lunStr '{target}'"));
    };
    let portal = match host.parse::<std::net::Ipv6Addr>() {
        Ok(_) => format!("[{host}]:{port}"),
        Err(_) => format!("{host}:{port}"),
    };
    Ok(Props::driver("iscsi")
        .set("portal", portal)
        .set("target", target)
        .set("lun", unit)
        .set("transport", "tcp")
        .maybe("user", login.map(|(user, _)| user))
        .maybe("password-secret", login.map(|(_, secret)| secret))
        .maybe("initiator-name", source.initiator.first().map(|iqn| &*iqn.name)))
}

fn gluster(source: &RemoteSource) -> Result<Props> {
    let (volume, path) = source.volume_and_path();
    let servers = source.hosts.iter().map(socket_address).collect::<Result<Vec<_>>>()?;
    Ok(Props::driver("gluster")
        .set("volume", volume.unwrap_or_default())
        .set("path", path.unwrap_or_default())
        .set("server", servers)
        // How much the cluster's library tells QEMU's log.
        .set("debug", 4))
}

fn ssh(image: &Image<'_>, source: &RemoteSource) -> Result<Props> {
    // Files with keys and known hosts are for nbdkit; QEMU's own driver asks the agent of its user.
    let user = image.auth.map(|auth| &*auth.username).or(source.ssh.username.as_deref());
    Ok(Props::driver("ssh")
        .set("path", source.name.as_deref().unwrap_or_default())
        .set("server", inet_address(one_host(source, "ssh")?)?)
        .maybe("user", user))
}

fn nfs(source: &RemoteSource) -> Result<Props> {
    let (name, _) = name_and_port(one_host(source, "nfs")?)?;
    let id = |what: &str, given: Option<&str>| match given.map(|text| text.trim_start_matches('+').parse()) {
        None => Ok(None),
        Some(Ok(id)) => Ok(Some(id)),
        Some(Err::<u32, _>(_)) => unsupported(format!("the {what} of an nfs disk must be a number")),
    };
    let server = Props::new().set("host", name).set("type", "inet").into_value();
    Ok(Props::driver("nfs")
        .set("server", server)
        .maybe("path", source.name.as_deref())
        .maybe("user", id("user", source.nfs.user.as_deref())?)
        .maybe("group", id("group", source.nfs.group.as_deref())?))
}

fn curl(image: &Image<'_>, source: &RemoteSource) -> Result<Props> {
    let protocol = source.protocol.as_str();
    let host = one_host(source, &format!("protocol '{protocol}'"));
    let host = host.or_else(|_| internal(format!("protocol '{protocol}' accepts only one host")))?;
    let (name, port) = name_and_port(host)?;
    let storage = image.storage_name()?;
    let verify = source.ssl_verify.map(|verify| verify == YesNo::Yes);
    Ok(Props::driver(protocol)
        .set("url", url(source, name, port))
        .maybe("username", image.auth.map(|auth| &*auth.username))
        .maybe("password-secret", image.auth.map(|_| format!("{storage}-auth-secret0")))
        .maybe("sslverify", verify)
        .maybe("cookie-secret", (!source.cookies.is_empty()).then(|| format!("{storage}-httpcookie-secret0")))
        .nonzero("timeout", source.timeout_s.unwrap_or_default())
        .nonzero("readahead", source.readahead.unwrap_or_default()))
}

fn url(source: &RemoteSource, host: &str, port: u32) -> String {
    let path = source.name.as_deref().unwrap_or_default();
    let slash = if path.starts_with('/') { "" } else { "/" };
    let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
    let query = source.query.as_deref().map(|query| format!("?{query}")).unwrap_or_default();
    format!("{}://{host}:{port}{slash}{}{query}", source.protocol, escaped(path))
}

/// A path as it stands in a URL.
fn escaped(path: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@/".contains(&byte);
    let mut text = String::with_capacity(path.len());
    for byte in path.bytes() {
        match plain(byte) {
            true => text.push(byte.into()),
            false => text.push_str(&format!("%{byte:02X}")),
        }
    }
    text
}
