//! What the agent inside a guest is asked.

use ferrovirt_protocol::qemu;
use ferrovirt_protocol::remote::procedure::*;
use ferrovirt_protocol::remote::*;

use super::domain::referred;
use crate::drivers::domain::agent_guest::GuestTime;
use crate::drivers::domain::flags::no_flags;
use crate::drivers::domain::stats::single::{self, InterfaceAddress};
use crate::drivers::params::Params;
use crate::error::{Error, Result};
use crate::qemu::agent::guest::{Interface, IpFamily};
use crate::rpc::convert;
use crate::rpc::router::{Call, Routes};

pub fn routes(r: &mut Routes) {
    r.on::<qemu::procedure::DomainAgentCommand>(agent_command);
    r.on::<DomainAgentSetResponseTimeout>(set_response_timeout);
    r.on::<DomainPmSuspendForDuration>(pm_suspend);
    r.on::<DomainGetHostname>(get_hostname);
    r.on::<DomainGetTime>(get_time);
    r.on::<DomainSetTime>(set_time);
    r.on::<DomainSetUserPassword>(set_user_password);
    r.on::<DomainAuthorizedSshKeysGet>(ssh_keys_get);
    r.on::<DomainAuthorizedSshKeysSet>(ssh_keys_set);
    r.on::<DomainFsfreeze>(freeze);
    r.on::<DomainFsthaw>(thaw);
    r.on::<DomainFstrim>(trim);
    r.on::<DomainGetFsinfo>(get_fsinfo);
    r.on::<DomainGetGuestInfo>(get_guest_info);
    r.on::<DomainInterfaceAddresses>(interface_addresses);
    r.on::<DomainGetGuestVcpus>(get_guest_vcpus);
    r.on::<DomainSetGuestVcpus>(set_guest_vcpus);
}

async fn agent_command(
    call: Call,
    args: qemu::DomainAgentCommandArgs,
) -> Result<qemu::DomainAgentCommandRet> {
    let domain = referred(&call, &args.dom)?;
    let (timeout, flags) = (args.timeout, args.flags);
    let result = call.drivers.domains.agent_command(domain, &args.cmd, timeout, flags).await?;
    Ok(qemu::DomainAgentCommandRet { result: Some(result) })
}

async fn set_response_timeout(
    call: Call,
    args: DomainAgentSetResponseTimeoutArgs,
) -> Result<DomainAgentSetResponseTimeoutRet> {
    let domain = referred(&call, &args.dom)?;
    call.drivers.domains.set_agent_timeout(&domain, args.timeout, args.flags)?;
    Ok(DomainAgentSetResponseTimeoutRet { result: 0 })
}

async fn pm_suspend(call: Call, args: DomainPmSuspendForDurationArgs) -> Result<()> {
    let domain = referred(&call, &args.dom)?;
    call.drivers.domains.pm_suspend(domain, args.target, args.duration, args.flags).await
}

async fn get_hostname(call: Call, args: DomainGetHostnameArgs) -> Result<DomainGetHostnameRet> {
    let domain = referred(&call, &args.dom)?;
    Ok(DomainGetHostnameRet { hostname: call.drivers.domains.guest_hostname(domain, args.flags).await? })
}

async fn get_time(call: Call, args: DomainGetTimeArgs) -> Result<DomainGetTimeRet> {
    let domain = referred(&call, &args.dom)?;
    let GuestTime { seconds, nanoseconds } = call.drivers.domains.guest_time(domain, args.flags).await?;
    Ok(DomainGetTimeRet { seconds, nseconds: nanoseconds })
}

async fn set_time(call: Call, args: DomainSetTimeArgs) -> Result<()> {
    let domain = referred(&call, &args.dom)?;
    let time = GuestTime { seconds: args.seconds, nanoseconds: args.nseconds };
    call.drivers.domains.set_guest_time(domain, time, args.flags).await
}

async fn set_user_password(call: Call, args: DomainSetUserPasswordArgs) -> Result<()> {
    let domain = referred(&call, &args.dom)?;
    fn given<'a>(text: Option<&'a String>, name: &'static str) -> Result<&'a str> {
        let sentence = || format!("{name} in virDomainSetUserPassword must not be NULL");
        let text = text.map(String::as_str);
        text.ok_or_else(|| Error::refused_argument("virDomainSetUserPassword", name, sentence()))
    }
    let (user, password) = (given(args.user.as_ref(), "user")?, given(args.password.as_ref(), "password")?);
    call.drivers.domains.set_user_password(domain, user, password, args.flags).await
}

async fn ssh_keys_get(
    call: Call,
    args: DomainAuthorizedSshKeysGetArgs,
) -> Result<DomainAuthorizedSshKeysGetRet> {
    let domain = referred(&call, &args.dom)?;
    let keys = call.drivers.domains.user_ssh_keys(domain, &args.user, args.flags).await?;
    Ok(DomainAuthorizedSshKeysGetRet { keys })
}

async fn ssh_keys_set(call: Call, args: DomainAuthorizedSshKeysSetArgs) -> Result<()> {
    let domain = referred(&call, &args.dom)?;
    call.drivers.domains.set_user_ssh_keys(domain, &args.user, &args.keys, args.flags).await
}

async fn freeze(call: Call, args: DomainFsfreezeArgs) -> Result<DomainFsfreezeRet> {
    let domain = referred(&call, &args.dom)?;
    let frozen = call.drivers.domains.freeze(domain, &args.mountpoints, args.flags, call.client.id).await;
    call.leave_nothing_behind();
    Ok(DomainFsfreezeRet { filesystems: frozen? })
}

async fn thaw(call: Call, args: DomainFsthawArgs) -> Result<DomainFsthawRet> {
    let domain = referred(&call, &args.dom)?;
    let filesystems = call.drivers.domains.thaw(domain, &args.mountpoints, args.flags).await?;
    Ok(DomainFsthawRet { filesystems })
}

async fn trim(call: Call, args: DomainFstrimArgs) -> Result<()> {
    let domain = referred(&call, &args.dom)?;
    call.drivers.domains.trim(domain, args.mount_point.as_deref(), args.minimum, args.flags).await
}

async fn get_fsinfo(call: Call, args: DomainGetFsinfoArgs) -> Result<DomainGetFsinfoRet> {
    let domain = referred(&call, &args.dom)?;
    let mounted = call.drivers.domains.filesystems(domain, args.flags).await?;
    let ret = u32::try_from(mounted.len()).unwrap_or(u32::MAX);
    let info = mounted.into_iter().map(|mounted| DomainFsinfo {
        mountpoint: mounted.filesystem.mountpoint,
        name: mounted.filesystem.name,
        fstype: mounted.filesystem.kind,
        dev_aliases: mounted.targets,
    });
    Ok(DomainGetFsinfoRet { info: info.collect(), ret })
}

async fn get_guest_info(call: Call, args: DomainGetGuestInfoArgs) -> Result<DomainGetGuestInfoRet> {
    let domain = referred(&call, &args.dom)?;
    let params = call.drivers.domains.guest_info(domain, args.types, args.flags).await?;
    Ok(DomainGetGuestInfoRet { params: convert::params(params) })
}

async fn interface_addresses(
    call: Call,
    args: DomainInterfaceAddressesArgs,
) -> Result<DomainInterfaceAddressesRet> {
    /// `VIR_DOMAIN_INTERFACE_ADDRESSES_SRC_AGENT`
    const AGENT: u32 = 1;
    no_flags(args.flags, "qemuDomainInterfaceAddresses")?;
    let domain = referred(&call, &args.dom)?;
    if args.source != AGENT {
        let seen = single::interface_addresses(&domain.state(), args.source)?.into_iter();
        return Ok(DomainInterfaceAddressesRet { ifaces: seen.map(seen_interface).collect() });
    }
    call.require_writable()?;
    let interfaces = call.drivers.domains.agent_interfaces(domain).await?;
    Ok(DomainInterfaceAddressesRet { ifaces: interfaces.into_iter().map(interface).collect() })
}

/// `virIPAddrType`
const V4: i32 = 0;
const V6: i32 = 1;

fn seen_interface(seen: InterfaceAddress) -> DomainInterface {
    let address = DomainIpAddr { r#type: V4, addr: seen.ipv4, prefix: 0 };
    DomainInterface { name: seen.interface, hwaddr: Some(seen.mac), addrs: vec![address] }
}

fn interface(found: Interface) -> DomainInterface {
    let addresses = found.addresses.into_iter().map(|address| DomainIpAddr {
        r#type: if address.family == IpFamily::V4 { V4 } else { V6 },
        addr: address.address,
        prefix: address.prefix,
    });
    DomainInterface { name: found.name, hwaddr: found.mac, addrs: addresses.collect() }
}

async fn get_guest_vcpus(call: Call, args: DomainGetGuestVcpusArgs) -> Result<DomainGetGuestVcpusRet> {
    let domain = referred(&call, &args.dom)?;
    let vcpus = call.drivers.domains.guest_vcpus(domain, args.flags).await?;
    let mut params = Params::default();
    for (name, set) in [("vcpus", vcpus.known), ("online", vcpus.online), ("offlinable", vcpus.offlinable)] {
        params.push(name, set.to_string());
    }
    Ok(DomainGetGuestVcpusRet { params: convert::params(params) })
}

async fn set_guest_vcpus(call: Call, args: DomainSetGuestVcpusArgs) -> Result<()> {
    let domain = referred(&call, &args.dom)?;
    call.drivers.domains.set_guest_vcpus(domain, &args.cpumap, args.state, args.flags).await
}
