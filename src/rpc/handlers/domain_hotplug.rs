//! Devices attached, changed and detached, running or not.

use ferrovirt_protocol::remote::procedure::*;
use ferrovirt_protocol::remote::*;

use super::domain::referred;
use crate::drivers::domain::flags::Impact;
use crate::error::Result;
use crate::rpc::router::{Call, Routes};

/// The calls without flags mean the running guest.
pub fn routes(r: &mut Routes) {
    r.on::<DomainAttachDeviceFlags>(attach_device);
    r.older::<DomainAttachDevice, DomainAttachDeviceFlags>(|args| DomainAttachDeviceFlagsArgs {
        dom: args.dom,
        xml: args.xml,
        flags: Impact::LIVE.bits(),
    });
    r.on::<DomainDetachDeviceFlags>(detach_device);
    r.older::<DomainDetachDevice, DomainDetachDeviceFlags>(|args| DomainDetachDeviceFlagsArgs {
        dom: args.dom,
        xml: args.xml,
        flags: Impact::LIVE.bits(),
    });
    r.on::<DomainUpdateDeviceFlags>(update_device);
    r.on::<DomainDetachDeviceAlias>(detach_device_alias);
}

async fn attach_device(call: Call, args: DomainAttachDeviceFlagsArgs) -> Result<()> {
    let domain = referred(&call, &args.dom)?;
    call.drivers.domains.attach_device(domain, &args.xml, args.flags).await
}

async fn detach_device(call: Call, args: DomainDetachDeviceFlagsArgs) -> Result<()> {
    let domain = referred(&call, &args.dom)?;
    call.drivers.domains.detach_device(domain, &args.xml, args.flags).await
}

async fn detach_device_alias(call: Call, args: DomainDetachDeviceAliasArgs) -> Result<()> {
    let domain = referred(&call, &args.dom)?;
    call.drivers.domains.detach_device_alias(domain, &args.alias, args.flags).await
}

async fn update_device(call: Call, args: DomainUpdateDeviceFlagsArgs) -> Result<()> {
    let domain = referred(&call, &args.dom)?;
    call.drivers.domains.update_device(domain, &args.xml, args.flags).await
}
