//! Guests' states in files: saved, restored, kept, dumped.

use ferrovirt_protocol::remote::procedure::*;
use ferrovirt_protocol::remote::*;

use super::domain::referred;
use crate::error::Result;
use crate::rpc::convert;
use crate::rpc::router::{Call, Routes};

pub fn routes(r: &mut Routes) {
    r.on::<DomainSaveFlags>(save);
    r.older::<DomainSave, DomainSaveFlags>(|args| DomainSaveFlagsArgs {
        dom: args.dom,
        to: args.to,
        dxml: None,
        flags: 0,
    });
    r.on::<DomainSaveParams>(save_params);
    r.on::<DomainRestoreFlags>(restore);
    r.older::<DomainRestore, DomainRestoreFlags>(|args| DomainRestoreFlagsArgs {
        from: args.from,
        dxml: None,
        flags: 0,
    });
    r.on::<DomainRestoreParams>(restore_params);
    r.on::<DomainSaveImageGetXmlDesc>(save_image_get_xml_desc);
    r.on::<DomainSaveImageDefineXml>(save_image_define_xml);
    r.on::<DomainManagedSave>(managed_save);
    r.on::<DomainManagedSaveRemove>(managed_save_remove);
    r.on::<DomainManagedSaveGetXmlDesc>(managed_save_get_xml_desc);
    r.on::<DomainManagedSaveDefineXml>(managed_save_define_xml);
    r.on::<DomainCoreDumpWithFormat>(core_dump);
    r.older::<DomainCoreDump, DomainCoreDumpWithFormat>(|args| DomainCoreDumpWithFormatArgs {
        dom: args.dom,
        to: args.to,
        dumpformat: 0,
        flags: args.flags,
    });
}

async fn save(call: Call, args: DomainSaveFlagsArgs) -> Result<()> {
    let domain = referred(&call, &args.dom)?;
    call.drivers.domains.save(domain, &args.to, args.dxml, args.flags).await
}

async fn save_params(call: Call, args: DomainSaveParamsArgs) -> Result<()> {
    let domain = referred(&call, &args.dom)?;
    call.drivers.domains.save_with(domain, convert::from_params(args.params), args.flags).await
}

async fn restore(call: Call, args: DomainRestoreFlagsArgs) -> Result<()> {
    let judge = |saved: &_| call.judged(saved);
    call.drivers.domains.restore(&args.from, args.dxml.as_deref(), args.flags, &judge).await
}

async fn restore_params(call: Call, args: DomainRestoreParamsArgs) -> Result<()> {
    let judge = |saved: &_| call.judged(saved);
    call.drivers.domains.restore_with(convert::from_params(args.params), args.flags, &judge).await
}

async fn save_image_get_xml_desc(
    call: Call,
    args: DomainSaveImageGetXmlDescArgs,
) -> Result<DomainSaveImageGetXmlDescRet> {
    let xml =
        call.drivers.domains.save_image_xml(&args.file, args.flags, &|saved| call.judged(saved)).await?;
    Ok(DomainSaveImageGetXmlDescRet { xml })
}

async fn save_image_define_xml(call: Call, args: DomainSaveImageDefineXmlArgs) -> Result<()> {
    let judge = |saved: &_| call.judged(saved);
    call.drivers.domains.define_save_image(&args.file, &args.dxml, args.flags, &judge).await
}

async fn managed_save(call: Call, args: DomainManagedSaveArgs) -> Result<()> {
    let domain = referred(&call, &args.dom)?;
    call.drivers.domains.managed_save_now(domain, args.flags).await
}

async fn managed_save_remove(call: Call, args: DomainManagedSaveRemoveArgs) -> Result<()> {
    let domain = referred(&call, &args.dom)?;
    call.drivers.domains.drop_managed(domain, args.flags).await
}

async fn managed_save_get_xml_desc(
    call: Call,
    args: DomainManagedSaveGetXmlDescArgs,
) -> Result<DomainManagedSaveGetXmlDescRet> {
    let domain = referred(&call, &args.dom)?;
    let xml = call.drivers.domains.managed_save_xml(domain, args.flags).await?;
    Ok(DomainManagedSaveGetXmlDescRet { xml })
}

async fn managed_save_define_xml(call: Call, args: DomainManagedSaveDefineXmlArgs) -> Result<()> {
    let domain = referred(&call, &args.dom)?;
    let xml = args.dxml.unwrap_or_default();
    call.drivers.domains.define_managed_save(domain, &xml, args.flags).await
}

async fn core_dump(call: Call, args: DomainCoreDumpWithFormatArgs) -> Result<()> {
    let domain = referred(&call, &args.dom)?;
    call.drivers.domains.core_dump(domain, &args.to, args.dumpformat, args.flags).await
}
