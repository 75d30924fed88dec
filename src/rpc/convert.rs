//! Between the wire's types and ours.

use ferrovirt_protocol::remote::{TypedParam, TypedParamValue};
use ferrovirt_protocol::{net, remote};

use crate::drivers::domain::event::DomainRef;
use crate::drivers::params::{ParamValue, Params};
use crate::drivers::secret::event::SecretRef;
use crate::drivers::storage::VolumeRef;
use crate::drivers::storage::event::PoolRef;
use crate::error::Error;
use crate::util::uuid::Uuid;

/// An error as libvirt's clients expect it: the whole sentence, and its parts.
pub(super) fn error(error: &Error) -> net::Error {
    let parts = error.parts();
    net::Error {
        code: error.code.0,
        domain: error.origin.0,
        message: Some(printable(&error.message())),
        level: error.level as i32,
        str1: Some(parts.str1.into_owned()),
        str2: parts.str2.map(printable),
        int1: parts.int1,
        int2: parts.int2,
        ..net::Error::default()
    }
}

/// A sentence may quote what a guest or a client said; the wire has no NUL bytes.
fn printable(text: &str) -> String {
    text.replace('\0', "\u{fffd}")
}

/// A domain as clients know it.
pub fn domain(domain: &DomainRef) -> remote::Domain {
    remote::Domain { name: domain.name.to_string(), uuid: domain.uuid.0, id: domain.id }
}

/// The uuid by which a client names a domain: it is what counts, names and ids may have changed since.
pub fn uuid(domain: &remote::Domain) -> Uuid {
    Uuid(domain.uuid)
}

/// A storage pool as clients know it.
pub fn pool(pool: &PoolRef) -> remote::StoragePool {
    remote::StoragePool { name: pool.name.to_string(), uuid: pool.uuid.0 }
}

/// A storage volume as clients know it.
pub fn volume(volume: VolumeRef) -> remote::StorageVol {
    remote::StorageVol { pool: volume.pool, name: volume.name, key: volume.key }
}

/// The volume that a client names.
pub fn volume_ref(volume: remote::StorageVol) -> VolumeRef {
    VolumeRef { pool: volume.pool, name: volume.name, key: volume.key }
}

/// A secret as clients know it.
pub fn secret(secret: &SecretRef) -> remote::Secret {
    remote::Secret { uuid: secret.uuid.0, usage_type: secret.usage, usage_id: secret.usage_id.to_string() }
}

/// Named values for a client.
pub fn params(params: Params) -> Vec<TypedParam> {
    let value = |value| match value {
        ParamValue::Int(value) => TypedParamValue::Int(value),
        ParamValue::Uint(value) => TypedParamValue::Uint(value),
        ParamValue::Llong(value) => TypedParamValue::Llong(value),
        ParamValue::Ullong(value) => TypedParamValue::Ullong(value),
        ParamValue::Double(value) => TypedParamValue::Double(value),
        ParamValue::Boolean(value) => TypedParamValue::Boolean(value.into()),
        ParamValue::Text(value) => TypedParamValue::String(printable(&value)),
    };
    params.into_iter().map(|(field, found)| TypedParam { field, value: value(found) }).collect()
}

/// Named values from a client.
pub fn from_params(params: Vec<TypedParam>) -> Params {
    let value = |value| match value {
        TypedParamValue::Int(value) => ParamValue::Int(value),
        TypedParamValue::Uint(value) => ParamValue::Uint(value),
        TypedParamValue::Llong(value) => ParamValue::Llong(value),
        TypedParamValue::Ullong(value) => ParamValue::Ullong(value),
        TypedParamValue::Double(value) => ParamValue::Double(value),
        TypedParamValue::Boolean(value) => ParamValue::Boolean(value != 0),
        TypedParamValue::String(value) => ParamValue::Text(value),
    };
    Params(params.into_iter().map(|param| (param.field, value(param.value))).collect())
}
