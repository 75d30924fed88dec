//! Checkpoints of domains, and backups.

use ferrovirt_protocol::remote::procedure::*;
use ferrovirt_protocol::remote::*;

use super::domain::{referred, state};
use crate::drivers::domain::{backup, checkpoint};
use crate::drivers::flags::no_flags;
use crate::error::Result;
use crate::rpc::router::{Call, Routes};

pub fn routes(r: &mut Routes) {
    r.on::<DomainCheckpointCreateXml>(create);
    r.on::<DomainCheckpointGetXmlDesc>(xml);
    r.on::<DomainListAllCheckpoints>(list_all);
    r.on::<DomainCheckpointListAllChildren>(list_all_children);
    r.on::<DomainCheckpointLookupByName>(lookup);
    r.on::<DomainCheckpointGetParent>(parent);
    r.on::<DomainCheckpointDelete>(delete);
    r.on::<DomainBackupBegin>(begin);
    r.on::<DomainBackupGetXmlDesc>(backup_xml);
}

fn named(dom: Domain, name: impl Into<String>) -> DomainCheckpoint {
    DomainCheckpoint { name: name.into(), dom }
}

async fn create(call: Call, args: DomainCheckpointCreateXmlArgs) -> Result<DomainCheckpointCreateXmlRet> {
    let domain = referred(&call, &args.dom)?;
    let name = call.drivers.domains.checkpoint_create(domain, &args.xml_desc, args.flags).await?;
    Ok(DomainCheckpointCreateXmlRet { checkpoint: named(args.dom, name) })
}

async fn xml(call: Call, args: DomainCheckpointGetXmlDescArgs) -> Result<DomainCheckpointGetXmlDescRet> {
    if args.flags & 1 != 0 {
        call.require_writable_for("virDomainCheckpointGetXMLDesc with secure flag")?;
    }
    let domain = referred(&call, &args.checkpoint.dom)?;
    let xml = call.drivers.domains.checkpoint_xml(domain, &args.checkpoint.name, args.flags).await?;
    Ok(DomainCheckpointGetXmlDescRet { xml })
}

/// All of them, if the client wants more than their number.
fn all(dom: &Domain, names: Vec<String>, need_results: i32) -> (Vec<DomainCheckpoint>, i32) {
    let number = i32::try_from(names.len()).unwrap_or(i32::MAX);
    match need_results {
        0 => (Vec::new(), number),
        _ => (names.into_iter().map(|name| named(dom.clone(), name)).collect(), number),
    }
}

async fn list_all(call: Call, args: DomainListAllCheckpointsArgs) -> Result<DomainListAllCheckpointsRet> {
    let state = state(&call, &args.dom)?;
    let names = checkpoint::list(&state, None, args.flags, "qemuDomainListAllCheckpoints")?;
    let (checkpoints, ret) = all(&args.dom, names, args.need_results);
    Ok(DomainListAllCheckpointsRet { checkpoints, ret })
}

async fn list_all_children(
    call: Call,
    args: DomainCheckpointListAllChildrenArgs,
) -> Result<DomainCheckpointListAllChildrenRet> {
    let DomainCheckpoint { dom, name } = args.checkpoint;
    let state = state(&call, &dom)?;
    let names = checkpoint::list(&state, Some(&name), args.flags, "qemuDomainCheckpointListAllChildren")?;
    let (checkpoints, ret) = all(&dom, names, args.need_results);
    Ok(DomainCheckpointListAllChildrenRet { checkpoints, ret })
}

async fn lookup(
    call: Call,
    args: DomainCheckpointLookupByNameArgs,
) -> Result<DomainCheckpointLookupByNameRet> {
    no_flags(args.flags, "qemuDomainCheckpointLookupByName")?;
    checkpoint::find(&*state(&call, &args.dom)?, &args.name)?;
    Ok(DomainCheckpointLookupByNameRet { checkpoint: named(args.dom, args.name) })
}

async fn parent(call: Call, args: DomainCheckpointGetParentArgs) -> Result<DomainCheckpointGetParentRet> {
    no_flags(args.flags, "qemuDomainCheckpointGetParent")?;
    let state = state(&call, &args.checkpoint.dom)?;
    let name = checkpoint::parent(&state, &args.checkpoint.name)?;
    Ok(DomainCheckpointGetParentRet { parent: named(args.checkpoint.dom, name) })
}

async fn delete(call: Call, args: DomainCheckpointDeleteArgs) -> Result<()> {
    let domain = referred(&call, &args.checkpoint.dom)?;
    call.drivers.domains.checkpoint_delete(domain, &args.checkpoint.name, args.flags).await
}

async fn begin(call: Call, args: DomainBackupBeginArgs) -> Result<()> {
    let domain = referred(&call, &args.dom)?;
    let checkpoint = args.checkpoint_xml.as_deref();
    call.drivers.domains.backup_begin(domain, &args.backup_xml, checkpoint, args.flags).await
}

async fn backup_xml(call: Call, args: DomainBackupGetXmlDescArgs) -> Result<DomainBackupGetXmlDescRet> {
    let xml = backup::xml(&*state(&call, &args.dom)?, args.flags)?;
    Ok(DomainBackupGetXmlDescRet { xml })
}
