//! Which domains there are, and what they start with: lookups, lists, define, undefine, autostart.

use std::sync::Arc;

use ferrovirt_protocol::remote::procedure::*;
use ferrovirt_protocol::remote::*;

use crate::drivers::domain::flags::{DefineFlags, ListFlags};
use crate::drivers::domain::metadata::NewMetadata;
use crate::error::Result;
use crate::qemu::job::{DomainHandle, State};
use crate::rpc::access::about;
use crate::rpc::convert;
use crate::rpc::router::{Call, Routes};
use crate::util::uuid::Uuid;

pub fn routes(r: &mut Routes) {
    r.on::<ConnectListAllDomains>(list_all);
    r.on::<ConnectNumOfDomains>(num_of_domains);
    r.on::<ConnectListDomains>(list_domains);
    r.on::<ConnectNumOfDefinedDomains>(num_of_defined);
    r.on::<ConnectListDefinedDomains>(list_defined);
    r.on::<DomainLookupById>(lookup_by_id);
    r.on::<DomainLookupByUuid>(lookup_by_uuid);
    r.on::<DomainLookupByName>(lookup_by_name);
    r.on::<DomainDefineXmlFlags>(define);
    r.older_with::<DomainDefineXml, DomainDefineXmlFlags>(
        |args| DomainDefineXmlFlagsArgs { xml: args.xml, flags: DefineFlags::empty().bits() },
        |ret| DomainDefineXmlRet { dom: ret.dom },
    );
    r.on::<DomainUndefineFlags>(undefine);
    r.older::<DomainUndefine, DomainUndefineFlags>(|args| DomainUndefineFlagsArgs {
        dom: args.dom,
        flags: 0,
    });
    r.on::<DomainGetAutostart>(get_autostart);
    r.on::<DomainSetAutostart>(set_autostart);
    r.on::<DomainGetAutostartOnce>(get_autostart_once);
    r.on::<DomainSetAutostartOnce>(set_autostart_once);
    r.on::<DomainSetMetadata>(set_metadata);
    r.on::<DomainRename>(rename);
}

/// The domain that a client's reference means.
pub(super) fn referred(call: &Call, dom: &Domain) -> Result<DomainHandle> {
    call.drivers.domains.list.referred(convert::uuid(dom), &dom.name)
}

/// The state of the domain that a client's reference means.
pub(super) fn state(call: &Call, dom: &Domain) -> Result<Arc<State>> {
    Ok(referred(call, dom)?.state())
}

pub(super) fn reference(state: &State) -> Domain {
    Domain { name: state.name.to_string(), uuid: state.uuid.0, id: state.id.unwrap_or(-1) }
}

/// What `pick` takes of each domain that `flags` let through and that the client may see.
async fn listed<R: Send>(call: &Call, flags: u32, pick: fn(&State) -> R) -> Result<Vec<R>> {
    let domains = &call.drivers.domains;
    if !call.is_judged() {
        return domains.list_all(flags, pick);
    }
    let all = domains.list_all(flags, |state| (about::of(state), pick(state)))?;
    let seen = call.visible(all, |(object, _)| object.clone()).await;
    Ok(seen.into_iter().map(|(_, picked)| picked).collect())
}

async fn list_all(call: Call, args: ConnectListAllDomainsArgs) -> Result<ConnectListAllDomainsRet> {
    let mut domains = listed(&call, args.flags, reference).await?;
    let ret = u32::try_from(domains.len()).unwrap_or(u32::MAX);
    if args.need_results == 0 {
        domains.clear();
    }
    Ok(ConnectListAllDomainsRet { domains, ret })
}

async fn num_of_domains(call: Call, (): ()) -> Result<ConnectNumOfDomainsRet> {
    let active = listed(&call, ListFlags::ACTIVE.bits(), |_| ()).await?;
    Ok(ConnectNumOfDomainsRet { num: count(active.len()) })
}

async fn list_domains(call: Call, args: ConnectListDomainsArgs) -> Result<ConnectListDomainsRet> {
    let mut ids = listed(&call, ListFlags::ACTIVE.bits(), |state| state.id.unwrap_or(-1)).await?;
    ids.truncate(at_most(args.maxids));
    Ok(ConnectListDomainsRet { ids })
}

async fn num_of_defined(call: Call, (): ()) -> Result<ConnectNumOfDefinedDomainsRet> {
    let inactive = listed(&call, ListFlags::INACTIVE.bits(), |_| ()).await?;
    Ok(ConnectNumOfDefinedDomainsRet { num: count(inactive.len()) })
}

async fn list_defined(
    call: Call,
    args: ConnectListDefinedDomainsArgs,
) -> Result<ConnectListDefinedDomainsRet> {
    let mut names = listed(&call, ListFlags::INACTIVE.bits(), |state| state.name.to_string()).await?;
    names.truncate(at_most(args.maxnames));
    Ok(ConnectListDefinedDomainsRet { names })
}

async fn lookup_by_id(call: Call, args: DomainLookupByIdArgs) -> Result<DomainLookupByIdRet> {
    let domain = call.drivers.domains.list.by_id(args.id)?;
    Ok(DomainLookupByIdRet { dom: reference(&domain.state()) })
}

async fn lookup_by_uuid(call: Call, args: DomainLookupByUuidArgs) -> Result<DomainLookupByUuidRet> {
    let domain = call.drivers.domains.list.by_uuid(Uuid(args.uuid))?;
    Ok(DomainLookupByUuidRet { dom: reference(&domain.state()) })
}

async fn lookup_by_name(call: Call, args: DomainLookupByNameArgs) -> Result<DomainLookupByNameRet> {
    let domain = call.drivers.domains.list.by_name(&args.name)?;
    Ok(DomainLookupByNameRet { dom: reference(&domain.state()) })
}

async fn define(call: Call, args: DomainDefineXmlFlagsArgs) -> Result<DomainDefineXmlFlagsRet> {
    let state = call.drivers.domains.define(&args.xml, args.flags).await?;
    Ok(DomainDefineXmlFlagsRet { dom: reference(&state) })
}

async fn undefine(call: Call, args: DomainUndefineFlagsArgs) -> Result<()> {
    let domain = referred(&call, &args.dom)?;
    call.drivers.domains.undefine(domain, args.flags).await
}

async fn get_autostart(call: Call, args: DomainGetAutostartArgs) -> Result<DomainGetAutostartRet> {
    Ok(DomainGetAutostartRet { autostart: state(&call, &args.dom)?.autostart.into() })
}

async fn set_autostart(call: Call, args: DomainSetAutostartArgs) -> Result<()> {
    let domain = referred(&call, &args.dom)?;
    call.drivers.domains.set_autostart(domain, args.autostart != 0).await
}

async fn set_autostart_once(call: Call, args: DomainSetAutostartOnceArgs) -> Result<()> {
    let domain = referred(&call, &args.dom)?;
    call.drivers.domains.set_autostart_once(domain, args.autostart != 0).await
}

async fn get_autostart_once(
    call: Call,
    args: DomainGetAutostartOnceArgs,
) -> Result<DomainGetAutostartOnceRet> {
    let domain = referred(&call, &args.dom)?;
    let once = call.drivers.domains.autostart_once(domain).await?;
    Ok(DomainGetAutostartOnceRet { autostart: once.into() })
}

async fn rename(call: Call, args: DomainRenameArgs) -> Result<DomainRenameRet> {
    let domain = referred(&call, &args.dom)?;
    call.drivers.domains.rename(domain, args.new_name.unwrap_or_default(), args.flags).await?;
    Ok(DomainRenameRet { retcode: 0 })
}

async fn set_metadata(call: Call, args: DomainSetMetadataArgs) -> Result<()> {
    let domain = referred(&call, &args.dom)?;
    let new = NewMetadata { kind: args.r#type, text: args.metadata, prefix: args.key, uri: args.uri };
    call.drivers.domains.set_metadata(domain, new, args.flags).await
}

fn count(len: usize) -> i32 {
    i32::try_from(len).unwrap_or(i32::MAX)
}

fn at_most(max: i32) -> usize {
    usize::try_from(max).unwrap_or(0)
}
