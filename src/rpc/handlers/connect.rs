//! Opening, closing and describing a connection.

use ferrovirt_protocol::remote::procedure::*;
use ferrovirt_protocol::remote::*;

use crate::drivers::params::ParamType;
use crate::error::{Error, Origin, Result};
use crate::rpc::auth::identity::Identity;
use crate::rpc::convert;
use crate::rpc::router::{Call, Routes};
use crate::rpc::session::Rights;
use crate::util::paths::Scope;

/// The version of libvirt whose behaviour this daemon has: 11.3.0.
pub const LIB_VERSION: u64 = 11_003_000;
/// The flag with which a client asks for a read-only connection.
const OPEN_READ_ONLY: u32 = 1;

pub fn routes(r: &mut Routes) {
    r.on::<ConnectOpen>(open);
    r.on::<ConnectClose>(close);
    r.on::<ConnectSupportsFeature>(supports_feature);
    r.on::<ConnectGetType>(get_type);
    r.on::<ConnectGetLibVersion>(get_lib_version);
    r.on::<ConnectGetHostname>(get_hostname);
    r.on::<ConnectGetUri>(get_uri);
    r.on::<ConnectIsSecure>(is_secure);
    r.on::<ConnectSetIdentity>(set_identity);
    r.on::<ConnectRegisterCloseCallback>(register_close_callback);
    r.on::<ConnectUnregisterCloseCallback>(unregister_close_callback);
}

async fn open(call: Call, args: ConnectOpenArgs) -> Result<()> {
    let uri = resolve(args.name.as_deref().unwrap_or_default(), call.drivers.paths.scope)?;
    let rights = match args.flags & OPEN_READ_ONLY {
        0 => Rights::ReadWrite,
        _ => Rights::ReadOnly,
    };
    call.client.open(uri, rights)
}

async fn close(call: Call, (): ()) -> Result<()> {
    call.drivers.domains.client_says_goodbye(call.client.id);
    call.client.close_after_reply();
    Ok(())
}

/// What this daemon and the protocol's client can do together.
async fn supports_feature(call: Call, args: ConnectSupportsFeatureArgs) -> Result<ConnectSupportsFeatureRet> {
    const MIGRATION_V2: i32 = 3;
    const MIGRATION_P2P: i32 = 4;
    const MIGRATION_V3: i32 = 6;
    const MIGRATION_CHANGE_PROTECTION: i32 = 7;
    const FD_PASSING: i32 = 8;
    const TYPED_PARAM_STRING: i32 = 9;
    const PROGRAM_KEEPALIVE: i32 = 10;
    const XML_MIGRATABLE: i32 = 11;
    const MIGRATION_OFFLINE: i32 = 12;
    const MIGRATION_PARAMS: i32 = 13;
    const REMOTE_EVENT_CALLBACK: i32 = 14;
    const REMOTE_CLOSE_CALLBACK: i32 = 15;
    const NETWORK_UPDATE_HAS_CORRECT_ORDER: i32 = 16;
    let supported = match args.feature {
        // Asked before the connection is open; to ask is to want it.
        PROGRAM_KEEPALIVE => {
            call.client.start_keepalive();
            true
        }
        _ if !call.client.is_open() => {
            return Err(Error::internal_error("hypervisor connection not open").from_origin(Origin::RPC));
        }
        MIGRATION_V2
        | MIGRATION_P2P
        | MIGRATION_V3
        | MIGRATION_CHANGE_PROTECTION
        | FD_PASSING
        | TYPED_PARAM_STRING
        | XML_MIGRATABLE
        | MIGRATION_OFFLINE
        | MIGRATION_PARAMS
        | REMOTE_EVENT_CALLBACK
        | REMOTE_CLOSE_CALLBACK
        | NETWORK_UPDATE_HAS_CORRECT_ORDER => true,
        _ => false,
    };
    Ok(ConnectSupportsFeatureRet { supported: supported.into() })
}

async fn get_type(_: Call, (): ()) -> Result<ConnectGetTypeRet> {
    Ok(ConnectGetTypeRet { r#type: "QEMU".to_owned() })
}

async fn get_lib_version(_: Call, (): ()) -> Result<ConnectGetLibVersionRet> {
    Ok(ConnectGetLibVersionRet { lib_ver: LIB_VERSION })
}

async fn get_hostname(_: Call, (): ()) -> Result<ConnectGetHostnameRet> {
    let hostname = rustix::system::uname().nodename().to_string_lossy().into_owned();
    Ok(ConnectGetHostnameRet { hostname })
}

async fn get_uri(call: Call, (): ()) -> Result<ConnectGetUriRet> {
    Ok(ConnectGetUriRet { uri: call.client.uri().unwrap_or_default() })
}

/// Seen from the daemon; what lies between the two the client judges itself.
async fn is_secure(_: Call, (): ()) -> Result<ConnectIsSecureRet> {
    Ok(ConnectIsSecureRet { secure: 1 })
}

/// A proxy says on whose behalf it calls.
async fn set_identity(call: Call, args: ConnectSetIdentityArgs) -> Result<()> {
    const KNOWN: &[(&str, ParamType)] = &[
        ("user-name", ParamType::Text),
        ("unix-user-id", ParamType::Ullong),
        ("group-name", ParamType::Text),
        ("unix-group-id", ParamType::Ullong),
        ("process-id", ParamType::Llong),
        ("process-time", ParamType::Ullong),
        ("sasl-user-name", ParamType::Text),
        ("x509-distinguished-name", ParamType::Text),
        ("selinux-context", ParamType::Text),
    ];
    let params = convert::from_params(args.params);
    params.validate(KNOWN)?;
    let text = |name| params.text(name).map(|text| text.as_str().into());
    let id = |name| params.ullong(name).and_then(|&id| u32::try_from(id).ok());
    let forwarded = Identity {
        way: call.client.identity().way,
        uid: id("unix-user-id"),
        gid: id("unix-group-id"),
        pid: params.llong("process-id").and_then(|&pid| i32::try_from(pid).ok()),
        start_time: params.ullong("process-time").copied(),
        user: text("user-name"),
        group: text("group-name"),
        sasl_name: text("sasl-user-name"),
        x509_name: text("x509-distinguished-name"),
        selinux_context: text("selinux-context"),
    };
    let (client, own) = (call.client.id.0, call.client.identity());
    if call.client.is_read_only() {
        // libvirt lets it say so; nothing may follow from its word.
        tracing::debug!(client, %own, %forwarded, "the word of a read-only client does not count");
    } else {
        tracing::info!(client, %own, %forwarded, "identity forwarded");
        call.client.set_identity(forwarded);
    }
    Ok(())
}

async fn register_close_callback(call: Call, (): ()) -> Result<()> {
    call.client.set_close_callback(true);
    Ok(())
}

async fn unregister_close_callback(call: Call, (): ()) -> Result<()> {
    call.client.set_close_callback(false);
    Ok(())
}

/// The URI of the connection that `name` asks for; an empty name takes what is there.
fn resolve(name: &str, scope: Scope) -> Result<String> {
    let own = match scope {
        Scope::System => "/system",
        Scope::Session => "/session",
    };
    if name.is_empty() {
        return Ok(format!("qemu://{own}"));
    }
    let none = |detail: String| Error::no_connect(detail).from_origin(Origin::NONE);
    let internal = |detail: String| Error::internal_error(detail).from_origin(Origin::NONE);
    if name.starts_with([':', '/', '?', '#']) {
        return Err(Error::internal_error(format!("Unable to parse URI {name}")).from_origin(Origin::URI));
    }
    let Some((scheme, rest)) = name.split_once(':') else {
        return Err(none(format!("URI '{name}' does not include a driver name")));
    };
    let (server, path) = match rest.strip_prefix("//") {
        Some(rest) => rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len())),
        None => ("", rest),
    };
    let path = path.split(['?', '#']).next().unwrap_or_default();
    match (scheme, server) {
        ("qemu", "system" | "session") if path.is_empty() => {
            Err(internal(format!("invalid URI {name} (maybe you want {scheme}:///{server})")))
        }
        ("qemu", "") if path == own => Ok(name.to_owned()),
        // Root may ask the system daemon for a session.
        ("qemu", "") if scope == Scope::System && path == "/session" => Ok(name.to_owned()),
        ("qemu", "") => Err(internal(format!("unexpected qemu URI path '{path}', try qemu://{own}"))),
        _ => Err(none(name.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_to_this_daemon_or_to_libvirts_refusals() {
        let unexpected = "internal error: unexpected qemu URI path";
        let cases = [
            (Scope::System, "", Ok("qemu:///system")),
            (Scope::Session, "", Ok("qemu:///session")),
            (Scope::System, "qemu:///system", Ok("qemu:///system")),
            (Scope::System, "qemu:///session", Ok("qemu:///session")),
            (Scope::System, "qemu:///system?no_tty=1", Ok("qemu:///system?no_tty=1")),
            (Scope::Session, "qemu:///system", Err(format!("{unexpected} '/system', try qemu:///session"))),
            (Scope::System, "qemu:///x", Err(format!("{unexpected} '/x', try qemu:///system"))),
            (Scope::System, "qemu:", Err(format!("{unexpected} '', try qemu:///system"))),
            (
                Scope::System,
                "qemu://system",
                Err("internal error: invalid URI qemu://system (maybe you want qemu:///system)".to_owned()),
            ),
            (Scope::System, "://", Err("internal error: Unable to parse URI ://".to_owned())),
            (
                Scope::System,
                "nonsense",
                Err("no connection driver available for URI 'nonsense' does not include a driver name"
                    .to_owned()),
            ),
            (
                Scope::System,
                "test:///default",
                Err("no connection driver available for test:///default".to_owned()),
            ),
        ];
        for (scope, name, expected) in cases {
            let resolved = resolve(name, scope).map_err(|error| error.message());
            assert_eq!(resolved, expected.map(str::to_owned), "{name}");
        }
    }
}
