//! QEMU without the daemon: its command lines, and processes that somebody else started.

use ferrovirt_protocol::qemu;
use ferrovirt_protocol::remote::procedure::*;
use ferrovirt_protocol::remote::*;

use super::domain::reference;
use crate::error::Result;
use crate::rpc::router::{Call, Routes};

pub fn routes(r: &mut Routes) {
    r.on::<ConnectDomainXmlFromNative>(xml_from_native);
    r.on::<ConnectDomainXmlToNative>(xml_to_native);
    r.on::<qemu::procedure::DomainAttach>(attach);
}

async fn xml_from_native(
    call: Call,
    args: ConnectDomainXmlFromNativeArgs,
) -> Result<ConnectDomainXmlFromNativeRet> {
    let domains = &call.drivers.domains;
    let domain_xml = domains.xml_from_native(&args.native_format, &args.native_config, args.flags).await?;
    Ok(ConnectDomainXmlFromNativeRet { domain_xml })
}

async fn xml_to_native(
    call: Call,
    args: ConnectDomainXmlToNativeArgs,
) -> Result<ConnectDomainXmlToNativeRet> {
    let domains = &call.drivers.domains;
    let native_config = domains.xml_to_native(&args.native_format, &args.domain_xml, args.flags).await?;
    Ok(ConnectDomainXmlToNativeRet { native_config })
}

async fn attach(call: Call, args: qemu::DomainAttachArgs) -> Result<qemu::DomainAttachRet> {
    let state = call.drivers.domains.attach_process(args.pid_value, args.flags).await?;
    Ok(qemu::DomainAttachRet { dom: reference(&state) })
}
