//! Storage pools: which there are, what becomes of them.

use std::sync::Arc;

use ferrovirt_protocol::remote::procedure::*;
use ferrovirt_protocol::remote::*;

use crate::drivers::storage::event::PoolEventId;
use crate::drivers::storage::pool::PoolState;
use crate::drivers::storage::reads::{self, Activity};
use crate::error::{Error, Origin, Result};
use crate::rpc::access::about;
use crate::rpc::convert;
use crate::rpc::router::{Call, Routes};
use crate::util::uuid::Uuid;

pub fn routes(r: &mut Routes) {
    r.on::<ConnectNumOfStoragePools>(num_of_active);
    r.on::<ConnectListStoragePools>(list_active);
    r.on::<ConnectNumOfDefinedStoragePools>(num_of_defined);
    r.on::<ConnectListDefinedStoragePools>(list_defined);
    r.on::<ConnectListAllStoragePools>(list_all);
    r.on::<ConnectFindStoragePoolSources>(find_sources);
    r.on::<ConnectGetStoragePoolCapabilities>(capabilities);
    r.on::<StoragePoolLookupByName>(lookup_by_name);
    r.on::<StoragePoolLookupByUuid>(lookup_by_uuid);
    r.on::<StoragePoolLookupByVolume>(lookup_by_volume);
    r.on::<StoragePoolLookupByTargetPath>(lookup_by_target_path);
    r.on::<StoragePoolCreateXml>(create_xml);
    r.on::<StoragePoolDefineXml>(define);
    r.on::<StoragePoolBuild>(build);
    r.on::<StoragePoolCreate>(create);
    r.on::<StoragePoolDestroy>(destroy);
    r.on::<StoragePoolDelete>(delete);
    r.on::<StoragePoolUndefine>(undefine);
    r.on::<StoragePoolRefresh>(refresh);
    r.on::<StoragePoolGetInfo>(get_info);
    r.on::<StoragePoolGetXmlDesc>(get_xml_desc);
    r.on::<StoragePoolGetAutostart>(get_autostart);
    r.on::<StoragePoolSetAutostart>(set_autostart);
    r.on::<StoragePoolIsActive>(is_active);
    r.on::<StoragePoolIsPersistent>(is_persistent);
    r.on::<ConnectStoragePoolEventRegisterAny>(register_events);
    r.on::<ConnectStoragePoolEventDeregisterAny>(deregister_events);
}

fn reference(state: &PoolState) -> StoragePool {
    convert::pool(&state.reference())
}

fn state(call: &Call, pool: &StoragePool) -> Result<Arc<PoolState>> {
    call.drivers.storage.state(Uuid(pool.uuid), &pool.name)
}

/// The names of the pools that the client may see.
async fn names(call: &Call, activity: Activity) -> Vec<String> {
    let seen = call.visible(call.drivers.storage.of_activity(activity), |state| about::pool(state)).await;
    seen.iter().map(|state| state.current.name.to_string()).collect()
}

fn count(names: &[String]) -> i32 {
    i32::try_from(names.len()).unwrap_or(i32::MAX)
}

fn at_most(mut names: Vec<String>, max: i32) -> Vec<String> {
    names.truncate(usize::try_from(max).unwrap_or(0));
    names
}

async fn num_of_active(call: Call, (): ()) -> Result<ConnectNumOfStoragePoolsRet> {
    Ok(ConnectNumOfStoragePoolsRet { num: count(&names(&call, Activity::Active).await) })
}

async fn list_active(call: Call, args: ConnectListStoragePoolsArgs) -> Result<ConnectListStoragePoolsRet> {
    let names = at_most(names(&call, Activity::Active).await, args.maxnames);
    Ok(ConnectListStoragePoolsRet { names })
}

async fn num_of_defined(call: Call, (): ()) -> Result<ConnectNumOfDefinedStoragePoolsRet> {
    Ok(ConnectNumOfDefinedStoragePoolsRet { num: count(&names(&call, Activity::Inactive).await) })
}

async fn list_defined(
    call: Call,
    args: ConnectListDefinedStoragePoolsArgs,
) -> Result<ConnectListDefinedStoragePoolsRet> {
    let names = at_most(names(&call, Activity::Inactive).await, args.maxnames);
    Ok(ConnectListDefinedStoragePoolsRet { names })
}

async fn list_all(call: Call, args: ConnectListAllStoragePoolsArgs) -> Result<ConnectListAllStoragePoolsRet> {
    let found = call.visible(call.drivers.storage.list_all(args.flags)?, |state| about::pool(state)).await;
    let ret = u32::try_from(found.len()).unwrap_or(u32::MAX);
    let wanted = found.iter().filter(|_| args.need_results != 0);
    Ok(ConnectListAllStoragePoolsRet { pools: wanted.map(|state| reference(state)).collect(), ret })
}

async fn find_sources(
    call: Call,
    args: ConnectFindStoragePoolSourcesArgs,
) -> Result<ConnectFindStoragePoolSourcesRet> {
    let storage = &call.drivers.storage;
    let xml = storage.find_sources(&args.r#type, args.src_spec.as_deref(), args.flags).await?;
    Ok(ConnectFindStoragePoolSourcesRet { xml })
}

async fn capabilities(
    call: Call,
    args: ConnectGetStoragePoolCapabilitiesArgs,
) -> Result<ConnectGetStoragePoolCapabilitiesRet> {
    let capabilities = call.drivers.storage.capabilities(args.flags)?;
    Ok(ConnectGetStoragePoolCapabilitiesRet { capabilities })
}

async fn lookup_by_name(call: Call, args: StoragePoolLookupByNameArgs) -> Result<StoragePoolLookupByNameRet> {
    let pool = reference(&*call.drivers.storage.by_name(&args.name)?);
    Ok(StoragePoolLookupByNameRet { pool })
}

async fn lookup_by_uuid(call: Call, args: StoragePoolLookupByUuidArgs) -> Result<StoragePoolLookupByUuidRet> {
    let pool = reference(&*call.drivers.storage.by_uuid(Uuid(args.uuid))?);
    Ok(StoragePoolLookupByUuidRet { pool })
}

async fn lookup_by_volume(
    call: Call,
    args: StoragePoolLookupByVolumeArgs,
) -> Result<StoragePoolLookupByVolumeRet> {
    let pool = reference(&*call.drivers.storage.by_name(&args.vol.pool)?);
    Ok(StoragePoolLookupByVolumeRet { pool })
}

async fn lookup_by_target_path(
    call: Call,
    args: StoragePoolLookupByTargetPathArgs,
) -> Result<StoragePoolLookupByTargetPathRet> {
    let pool = reference(&*call.drivers.storage.by_target_path(&args.path)?);
    Ok(StoragePoolLookupByTargetPathRet { pool })
}

async fn create_xml(call: Call, args: StoragePoolCreateXmlArgs) -> Result<StoragePoolCreateXmlRet> {
    let state = call.drivers.storage.create(&args.xml, args.flags).await?;
    Ok(StoragePoolCreateXmlRet { pool: reference(&state) })
}

async fn define(call: Call, args: StoragePoolDefineXmlArgs) -> Result<StoragePoolDefineXmlRet> {
    let state = call.drivers.storage.define(&args.xml, args.flags).await?;
    Ok(StoragePoolDefineXmlRet { pool: reference(&state) })
}

async fn build(call: Call, args: StoragePoolBuildArgs) -> Result<()> {
    call.drivers.storage.build(Uuid(args.pool.uuid), &args.pool.name, args.flags).await
}

async fn create(call: Call, args: StoragePoolCreateArgs) -> Result<()> {
    call.drivers.storage.start(Uuid(args.pool.uuid), &args.pool.name, args.flags).await
}

async fn destroy(call: Call, args: StoragePoolDestroyArgs) -> Result<()> {
    call.drivers.storage.destroy(Uuid(args.pool.uuid), &args.pool.name).await
}

async fn delete(call: Call, args: StoragePoolDeleteArgs) -> Result<()> {
    call.drivers.storage.delete(Uuid(args.pool.uuid), &args.pool.name, args.flags).await
}

async fn undefine(call: Call, args: StoragePoolUndefineArgs) -> Result<()> {
    call.drivers.storage.undefine(Uuid(args.pool.uuid), &args.pool.name).await
}

async fn refresh(call: Call, args: StoragePoolRefreshArgs) -> Result<()> {
    call.drivers.storage.refresh(Uuid(args.pool.uuid), &args.pool.name, args.flags).await
}

async fn get_info(call: Call, args: StoragePoolGetInfoArgs) -> Result<StoragePoolGetInfoRet> {
    /// `virStoragePoolState`
    const RUNNING: u8 = 2;
    let state = state(&call, &args.pool)?;
    let sizes = state.current.sizes;
    Ok(StoragePoolGetInfoRet {
        state: if state.is_active { RUNNING } else { 0 },
        capacity: sizes.capacity,
        allocation: sizes.allocation,
        available: sizes.available,
    })
}

async fn get_xml_desc(call: Call, args: StoragePoolGetXmlDescArgs) -> Result<StoragePoolGetXmlDescRet> {
    let xml = reads::xml(&*state(&call, &args.pool)?, args.flags)?;
    Ok(StoragePoolGetXmlDescRet { xml })
}

async fn get_autostart(call: Call, args: StoragePoolGetAutostartArgs) -> Result<StoragePoolGetAutostartRet> {
    Ok(StoragePoolGetAutostartRet { autostart: state(&call, &args.pool)?.autostart.into() })
}

async fn set_autostart(call: Call, args: StoragePoolSetAutostartArgs) -> Result<()> {
    let on = args.autostart != 0;
    call.drivers.storage.set_autostart(Uuid(args.pool.uuid), &args.pool.name, on).await
}

async fn is_active(call: Call, args: StoragePoolIsActiveArgs) -> Result<StoragePoolIsActiveRet> {
    Ok(StoragePoolIsActiveRet { active: state(&call, &args.pool)?.is_active.into() })
}

async fn is_persistent(call: Call, args: StoragePoolIsPersistentArgs) -> Result<StoragePoolIsPersistentRet> {
    Ok(StoragePoolIsPersistentRet { persistent: state(&call, &args.pool)?.is_persistent.into() })
}

async fn register_events(
    call: Call,
    args: ConnectStoragePoolEventRegisterAnyArgs,
) -> Result<ConnectStoragePoolEventRegisterAnyRet> {
    let id = PoolEventId::from_number(args.event_id).ok_or_else(|| {
        let sentence = format!("unsupported storage pool event ID {}", args.event_id);
        Error::internal_error(sentence).from_origin(Origin::RPC)
    })?;
    let pool = args.pool.map(|pool| Uuid(pool.uuid));
    let callback_id = call.client.subscriptions.register_pool(&call.drivers, id, pool)?;
    Ok(ConnectStoragePoolEventRegisterAnyRet { callback_id })
}

async fn deregister_events(call: Call, args: ConnectStoragePoolEventDeregisterAnyArgs) -> Result<()> {
    call.client.subscriptions.deregister_pool(&call.drivers, args.callback_id)
}
