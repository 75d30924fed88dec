//! Snapshots of domains.

use ferrovirt_protocol::remote::procedure::*;
use ferrovirt_protocol::remote::*;

use super::domain::{referred, state};
use crate::drivers::domain::snapshot;
use crate::drivers::flags::no_flags;
use crate::error::{Error, Result};
use crate::rpc::router::{Call, Routes};

/// More names than a reply has room for.
const MAX_NAMES: i32 = 16384;

pub fn routes(r: &mut Routes) {
    r.on::<DomainSnapshotCreateXml>(create);
    r.on::<DomainSnapshotGetXmlDesc>(xml);
    r.on::<DomainSnapshotNum>(num);
    r.on::<DomainSnapshotListNames>(list_names);
    r.on::<DomainListAllSnapshots>(list_all);
    r.on::<DomainSnapshotNumChildren>(num_children);
    r.on::<DomainSnapshotListChildrenNames>(list_children_names);
    r.on::<DomainSnapshotListAllChildren>(list_all_children);
    r.on::<DomainSnapshotLookupByName>(lookup);
    r.on::<DomainHasCurrentSnapshot>(has_current);
    r.on::<DomainSnapshotCurrent>(current);
    r.on::<DomainSnapshotIsCurrent>(is_current);
    r.on::<DomainSnapshotHasMetadata>(has_metadata);
    r.on::<DomainSnapshotGetParent>(parent);
    r.on::<DomainRevertToSnapshot>(revert);
    r.on::<DomainSnapshotDelete>(delete);
}

fn named(dom: Domain, name: impl Into<String>) -> DomainSnapshot {
    DomainSnapshot { name: name.into(), dom }
}

async fn create(call: Call, args: DomainSnapshotCreateXmlArgs) -> Result<DomainSnapshotCreateXmlRet> {
    let domain = referred(&call, &args.dom)?;
    let name = call.drivers.domains.snapshot_create(domain, &args.xml_desc, args.flags).await?;
    Ok(DomainSnapshotCreateXmlRet { snap: named(args.dom, name) })
}

async fn xml(call: Call, args: DomainSnapshotGetXmlDescArgs) -> Result<DomainSnapshotGetXmlDescRet> {
    if args.flags & 1 != 0 {
        call.require_writable_for("virDomainSnapshotGetXMLDesc with secure flag")?;
    }
    let xml = snapshot::xml(&*state(&call, &args.snap.dom)?, &args.snap.name, args.flags)?;
    Ok(DomainSnapshotGetXmlDescRet { xml })
}

fn number(names: &[String]) -> i32 {
    i32::try_from(names.len()).unwrap_or(i32::MAX)
}

/// As many as the client has room for.
fn first(mut names: Vec<String>, max: i32) -> Result<Vec<String>> {
    if max > MAX_NAMES {
        return Err(Error::rpc(format!("too many domain snapshots '{max}' for limit '{MAX_NAMES}'")));
    }
    names.truncate(usize::try_from(max).unwrap_or(0));
    Ok(names)
}

async fn num(call: Call, args: DomainSnapshotNumArgs) -> Result<DomainSnapshotNumRet> {
    let names = snapshot::list(&*state(&call, &args.dom)?, None, args.flags, "qemuDomainSnapshotNum")?;
    Ok(DomainSnapshotNumRet { num: number(&names) })
}

async fn list_names(call: Call, args: DomainSnapshotListNamesArgs) -> Result<DomainSnapshotListNamesRet> {
    let state = state(&call, &args.dom)?;
    let names = snapshot::list(&state, None, args.flags, "qemuDomainSnapshotListNames")?;
    Ok(DomainSnapshotListNamesRet { names: first(names, args.maxnames)? })
}

async fn list_all(call: Call, args: DomainListAllSnapshotsArgs) -> Result<DomainListAllSnapshotsRet> {
    let state = state(&call, &args.dom)?;
    let names = snapshot::list(&state, None, args.flags, "qemuDomainListAllSnapshots")?;
    let ret = number(&names);
    Ok(DomainListAllSnapshotsRet { snapshots: all(&args.dom, names, args.need_results), ret })
}

fn all(dom: &Domain, names: Vec<String>, need_results: i32) -> Vec<DomainSnapshot> {
    match need_results {
        0 => Vec::new(),
        _ => names.into_iter().map(|name| named(dom.clone(), name)).collect(),
    }
}

async fn num_children(
    call: Call,
    args: DomainSnapshotNumChildrenArgs,
) -> Result<DomainSnapshotNumChildrenRet> {
    let (state, from) = (state(&call, &args.snap.dom)?, Some(&*args.snap.name));
    let names = snapshot::list(&state, from, args.flags, "qemuDomainSnapshotNumChildren")?;
    Ok(DomainSnapshotNumChildrenRet { num: number(&names) })
}

async fn list_children_names(
    call: Call,
    args: DomainSnapshotListChildrenNamesArgs,
) -> Result<DomainSnapshotListChildrenNamesRet> {
    let (state, from) = (state(&call, &args.snap.dom)?, Some(&*args.snap.name));
    let names = snapshot::list(&state, from, args.flags, "qemuDomainSnapshotListChildrenNames")?;
    Ok(DomainSnapshotListChildrenNamesRet { names: first(names, args.maxnames)? })
}

async fn list_all_children(
    call: Call,
    args: DomainSnapshotListAllChildrenArgs,
) -> Result<DomainSnapshotListAllChildrenRet> {
    let DomainSnapshot { dom, name } = args.snapshot;
    let state = state(&call, &dom)?;
    let names = snapshot::list(&state, Some(&name), args.flags, "qemuDomainSnapshotListAllChildren")?;
    let ret = number(&names);
    Ok(DomainSnapshotListAllChildrenRet { snapshots: all(&dom, names, args.need_results), ret })
}

async fn lookup(call: Call, args: DomainSnapshotLookupByNameArgs) -> Result<DomainSnapshotLookupByNameRet> {
    no_flags(args.flags, "qemuDomainSnapshotLookupByName")?;
    snapshot::find(&*state(&call, &args.dom)?, &args.name)?;
    Ok(DomainSnapshotLookupByNameRet { snap: named(args.dom, args.name) })
}

async fn has_current(call: Call, args: DomainHasCurrentSnapshotArgs) -> Result<DomainHasCurrentSnapshotRet> {
    no_flags(args.flags, "qemuDomainHasCurrentSnapshot")?;
    let result = state(&call, &args.dom)?.snapshots.current().is_some().into();
    Ok(DomainHasCurrentSnapshotRet { result })
}

async fn current(call: Call, args: DomainSnapshotCurrentArgs) -> Result<DomainSnapshotCurrentRet> {
    no_flags(args.flags, "qemuDomainSnapshotCurrent")?;
    let state = state(&call, &args.dom)?;
    let name = snapshot::current(&state)?.name.as_deref().unwrap_or_default();
    Ok(DomainSnapshotCurrentRet { snap: named(args.dom, name) })
}

async fn is_current(call: Call, args: DomainSnapshotIsCurrentArgs) -> Result<DomainSnapshotIsCurrentRet> {
    no_flags(args.flags, "qemuDomainSnapshotIsCurrent")?;
    let state = state(&call, &args.snap.dom)?;
    snapshot::find(&state, &args.snap.name)?;
    Ok(DomainSnapshotIsCurrentRet { current: state.snapshots.is_current(&args.snap.name).into() })
}

async fn has_metadata(
    call: Call,
    args: DomainSnapshotHasMetadataArgs,
) -> Result<DomainSnapshotHasMetadataRet> {
    no_flags(args.flags, "qemuDomainSnapshotHasMetadata")?;
    snapshot::find(&*state(&call, &args.snap.dom)?, &args.snap.name)?;
    Ok(DomainSnapshotHasMetadataRet { metadata: 1 })
}

async fn parent(call: Call, args: DomainSnapshotGetParentArgs) -> Result<DomainSnapshotGetParentRet> {
    no_flags(args.flags, "qemuDomainSnapshotGetParent")?;
    let state = state(&call, &args.snap.dom)?;
    let name = snapshot::parent(&state, &args.snap.name)?;
    Ok(DomainSnapshotGetParentRet { snap: named(args.snap.dom, name) })
}

async fn revert(call: Call, args: DomainRevertToSnapshotArgs) -> Result<()> {
    let domain = referred(&call, &args.snap.dom)?;
    call.drivers.domains.snapshot_revert(domain, &args.snap.name, args.flags).await
}

async fn delete(call: Call, args: DomainSnapshotDeleteArgs) -> Result<()> {
    let domain = referred(&call, &args.snap.dom)?;
    call.drivers.domains.snapshot_delete(domain, &args.snap.name, args.flags).await
}
