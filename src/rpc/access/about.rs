//! Which objects a call is about.
//!
//! Most arguments name theirs, and the interface's annotations say where (`Procedure::SUBJECT`). For the
//! others a line here says how it is found. A route that is checked by object and has neither is a mistake
//! that the daemon's start reports. What is not found is answered as the call itself would answer it.

use std::future::{Future, ready};
use std::pin::Pin;
use std::sync::Arc;

use ferrovirt_protocol::procedure::{Procedure, Subject};
use ferrovirt_protocol::qemu::procedure::DomainAttach;
use ferrovirt_protocol::remote::procedure::*;
use ferrovirt_protocol::remote::{StoragePool, TypedParam, TypedParamValue};

use super::driver::Object;
use crate::conf::domain::Domain;
use crate::conf::secret::Secret;
use crate::conf::storage::{Capacity, Pool, Volume};
use crate::drivers::Drivers;
use crate::drivers::domain::event::DomainRef;
use crate::drivers::secret::event::SecretRef;
use crate::drivers::storage::VolumeRef;
use crate::drivers::storage::pool::PoolState;
use crate::error::{Error, Result};
use crate::qemu::job::State;
use crate::rpc::convert;
use crate::rpc::router::Routes;
use crate::util::uuid::Uuid;

/// The objects that a call is about, once they are found.
pub type Found<'a> = Pin<Box<dyn Future<Output = Result<Vec<Object>>> + Send + 'a>>;

/// Finds the objects of a call whose arguments do not name them.
pub type About<P> = for<'a> fn(&'a Drivers, &'a <P as Procedure>::Args) -> Found<'a>;

/// How the objects of each such call are found.
pub fn routes(r: &mut Routes) {
    r.about::<DomainLookupById>(|it, args| {
        now(it.domains.list.by_id(args.id).map(|found| of(&found.state())))
    });
    r.about::<DomainLookupByName>(|it, args| {
        now(it.domains.list.by_name(&args.name).map(|found| of(&found.state())))
    });
    r.about::<DomainLookupByUuid>(|it, args| {
        now(it.domains.list.by_uuid(Uuid(args.uuid)).map(|found| of(&found.state())))
    });
    r.about::<DomainDefineXml>(|it, args| definition(it, &args.xml, None));
    r.about::<DomainDefineXmlFlags>(|it, args| definition(it, &args.xml, None));
    r.about::<DomainCreateXml>(|it, args| definition(it, &args.xml_desc, None));
    r.about::<DomainRestore>(|it, args| saved(it, Some(&args.from)));
    r.about::<DomainRestoreFlags>(|it, args| saved(it, Some(&args.from)));
    r.about::<DomainRestoreParams>(|it, args| saved(it, text(&args.params, "file")));
    r.about::<DomainSaveImageGetXmlDesc>(|it, args| saved(it, Some(&args.file)));
    r.about::<DomainSaveImageDefineXml>(|it, args| saved(it, Some(&args.file)));
    r.about::<DomainMigratePrepare2>(|it, args| definition(it, &args.dom_xml, args.dname.as_deref()));
    r.about::<DomainMigratePrepareTunnel>(|it, args| definition(it, &args.dom_xml, args.dname.as_deref()));
    r.about::<DomainMigratePrepare3>(|it, args| definition(it, &args.dom_xml, args.dname.as_deref()));
    r.about::<DomainMigratePrepareTunnel3>(|it, args| definition(it, &args.dom_xml, args.dname.as_deref()));
    r.about::<DomainMigratePrepare3Params>(|it, args| arrival(it, &args.params));
    r.about::<DomainMigratePrepareTunnel3Params>(|it, args| arrival(it, &args.params));
    r.about::<DomainMigrateFinish2>(|it, args| now(arrived(it, Some(&args.dname))));
    r.about::<DomainMigrateFinish3>(|it, args| now(arrived(it, Some(&args.dname))));
    r.about::<DomainMigrateFinish3Params>(|it, args| {
        now(arrived(it, text(&args.params, "destination_name")))
    });
    // What it is called shows when its process is looked at: only who may do so with any guest takes it over.
    r.about::<DomainAttach>(|_, _| {
        now(Ok(Object::Domain { name: Arc::from(""), uuid: Uuid([0; 16]), definition: None }))
    });
    r.about::<StoragePoolLookupByName>(|it, args| {
        now(it.storage.by_name(&args.name).map(|state| pool(&state)))
    });
    r.about::<StoragePoolLookupByUuid>(|it, args| {
        now(it.storage.by_uuid(Uuid(args.uuid)).map(|state| pool(&state)))
    });
    r.about::<StoragePoolLookupByVolume>(|it, args| {
        now(it.storage.by_name(&args.vol.pool).map(|state| pool(&state)))
    });
    r.about::<StoragePoolLookupByTargetPath>(|it, args| {
        now(it.storage.by_target_path(&args.path).map(|state| pool(&state)))
    });
    r.about::<StoragePoolCreateXml>(|it, args| now_all(new_pool(it, &args.xml)));
    r.about::<StoragePoolDefineXml>(|it, args| now_all(new_pool(it, &args.xml)));
    r.about::<StorageVolLookupByName>(|it, args| {
        let found = it.storage.volume_by_name((Uuid(args.pool.uuid), &args.pool.name), &args.name);
        now(found.and_then(|found| volume(it, found)))
    });
    r.about::<StorageVolLookupByKey>(|it, args| {
        now(it.storage.volume_by_key(&args.key).and_then(|found| volume(it, found)))
    });
    r.about::<StorageVolLookupByPath>(|it, args| {
        now(it.storage.volume_by_path(&args.path).and_then(|found| volume(it, found)))
    });
    r.about::<StorageVolCreateXml>(|it, args| now(new_volume(it, &args.pool, &args.xml)));
    // Upstream asks for nothing on the volume that is copied, so one could copy what one may not read.
    r.about::<StorageVolCreateXmlFrom>(|it, args| {
        let copied = named(it, Subject::StorageVol(&args.clonevol));
        let both = copied.and_then(|copied| Ok(vec![copied, new_volume(it, &args.pool, &args.xml)?]));
        now_all(both)
    });
    r.about::<SecretLookupByUuid>(|it, args| {
        now(it.secrets.by_uuid(Uuid(args.uuid)).map(|found| secret(&found)))
    });
    r.about::<SecretLookupByUsage>(|it, args| {
        now(it.secrets.by_usage(args.usage_type, &args.usage_id).map(|found| secret(&found)))
    });
    r.about::<SecretDefineXml>(|it, args| now_all(new_secret(it, &args.xml)));
}

/// What a call is about: found as its route says, or named by its arguments. Routes of calls with checks about
/// something have either; the others are refused when the daemon starts.
pub fn objects<'a, P: Procedure>(
    drivers: &'a Drivers,
    about: Option<About<P>>,
    args: &'a P::Args,
) -> Found<'a> {
    match (about, P::SUBJECT) {
        (Some(about), _) => about(drivers, args),
        (None, Some(subject)) => now(named(drivers, subject(args))),
        (None, None) => now_all(Ok(Vec::new())),
    }
}

/// The object that a client's reference means.
fn named(drivers: &Drivers, subject: Subject<'_>) -> Result<Object> {
    Ok(match subject {
        Subject::Domain(dom) => of(&drivers.domains.list.referred(convert::uuid(dom), &dom.name)?.state()),
        Subject::StoragePool(it) => pool(&*drivers.storage.state(Uuid(it.uuid), &it.name)?),
        Subject::StorageVol(it) => {
            let state = drivers.storage.by_name(&it.pool)?;
            let key = state.volume(&it.name).map(|record| record.volume.key.to_string());
            let (pool, name) = (it.pool.clone(), it.name.clone());
            let volume = VolumeRef { pool, name, key: key.unwrap_or_default() };
            Object::StorageVol { volume, pool: state.current.uuid }
        }
        Subject::Secret(it) => secret(&*drivers.secrets.by_uuid(Uuid(it.uuid))?),
    })
}

pub fn of(state: &State) -> Object {
    let definition = state.definition().map(Arc::clone);
    Object::Domain { name: Arc::clone(&state.name), uuid: state.uuid, definition }
}

/// A domain that an event or a record of numbers is about.
pub fn reported(drivers: &Drivers, domain: &DomainRef) -> Object {
    match drivers.domains.list.by_uuid(domain.uuid) {
        Ok(found) => of(&found.state()),
        Err(_) => Object::Domain { name: Arc::clone(&domain.name), uuid: domain.uuid, definition: None },
    }
}

pub fn pool(state: &PoolState) -> Object {
    Object::StoragePool(state.reference())
}

pub fn volume(drivers: &Drivers, volume: VolumeRef) -> Result<Object> {
    let pool = drivers.storage.by_name(&volume.pool)?.current.uuid;
    Ok(Object::StorageVol { volume, pool })
}

pub fn secret(secret: &Secret) -> Object {
    Object::Secret(crate::drivers::secret::reference(secret))
}

fn now<'a>(found: Result<Object>) -> Found<'a> {
    now_all(found.map(|object| vec![object]))
}

fn now_all<'a>(found: Result<Vec<Object>>) -> Found<'a> {
    Box::pin(ready(found))
}

fn text<'a>(params: &'a [TypedParam], field: &str) -> Option<&'a str> {
    params.iter().find(|param| param.field == field).and_then(|param| match &param.value {
        TypedParamValue::String(text) => Some(text.as_str()),
        _ => None,
    })
}

/// What a definition makes, and what it replaces: the domain of this uuid, or of this name.
fn definition<'a>(drivers: &'a Drivers, xml: &'a str, name: Option<&'a str>) -> Found<'a> {
    Box::pin(async move {
        let parsed = crate::drivers::domain::parse(xml).await?;
        let name = Arc::from(name.unwrap_or(&parsed.name));
        Ok(with_existing(drivers, name, parsed))
    })
}

fn with_existing(drivers: &Drivers, name: Arc<str>, parsed: Domain) -> Vec<Object> {
    let list = &drivers.domains.list;
    let mut existing: Vec<_> =
        [list.by_uuid(parsed.uuid), list.by_name(&name)].into_iter().flatten().collect();
    existing.dedup_by_key(|found| found.object().state().uuid);
    let mut objects: Vec<_> = existing.iter().map(|found| of(&found.state())).collect();
    objects.push(Object::Domain { name, uuid: parsed.uuid, definition: Some(Arc::new(parsed)) });
    objects
}

/// The guest in a saved state.
fn saved<'a>(drivers: &'a Drivers, path: Option<&'a str>) -> Found<'a> {
    Box::pin(async move {
        let path = path.ok_or_else(|| Error::invalid_arg("missing path to restore from"))?;
        let parsed = drivers.domains.saved_definition(path).await?;
        Ok(with_existing(drivers, Arc::from(&*parsed.name), parsed))
    })
}

/// A guest that is to come from another host.
fn arrival<'a>(drivers: &'a Drivers, params: &'a [TypedParam]) -> Found<'a> {
    let xml = text(params, "destination_xml").unwrap_or_default();
    definition(drivers, xml, text(params, "destination_name"))
}

/// A guest that has come from another host.
fn arrived(drivers: &Drivers, name: Option<&str>) -> Result<Object> {
    let name = name.ok_or_else(|| Error::no_domain("missing domain name"))?;
    Ok(of(&drivers.domains.list.by_name(name)?.state()))
}

/// The one that the handler gives it as well.
fn number() -> Result<Uuid> {
    Uuid::of_new().map_err(|error| Error::io("cannot get random numbers", error))
}

fn new_pool(drivers: &Drivers, xml: &str) -> Result<Vec<Object>> {
    let parsed = Pool::parse(xml, number()?)?;
    let existing = [drivers.storage.by_uuid(parsed.uuid), drivers.storage.by_name(&parsed.name)];
    let mut existing: Vec<_> = existing.into_iter().flatten().collect();
    existing.dedup_by_key(|state| state.current.uuid);
    let mut objects: Vec<_> = existing.iter().map(|state| pool(state)).collect();
    objects.push(Object::StoragePool(crate::drivers::storage::event::PoolRef {
        uuid: parsed.uuid,
        name: Arc::from(&*parsed.name),
    }));
    Ok(objects)
}

fn new_volume(drivers: &Drivers, pool: &StoragePool, xml: &str) -> Result<Object> {
    let state = drivers.storage.state(Uuid(pool.uuid), &pool.name)?;
    let parsed = Volume::parse(xml, state.current.kind, Capacity::Optional)?;
    let (pool, name) = (state.current.name.to_string(), parsed.name.to_string());
    let volume = VolumeRef { pool, name, key: String::new() };
    Ok(Object::StorageVol { volume, pool: state.current.uuid })
}

fn new_secret(drivers: &Drivers, xml: &str) -> Result<Vec<Object>> {
    let parsed = Secret::parse(xml, number()?)?;
    let existing = drivers.secrets.by_uuid(parsed.uuid);
    let mut objects: Vec<_> = existing.iter().map(|found| secret(found)).collect();
    let SecretRef { uuid, usage, usage_id } = crate::drivers::secret::reference(&parsed);
    objects.push(Object::Secret(SecretRef { uuid, usage, usage_id }));
    Ok(objects)
}
