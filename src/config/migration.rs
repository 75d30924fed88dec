//! `qemu.conf`, as far as it is about guests that leave and guests that come.

use std::path::PathBuf;

use super::{flag, number, text};
use crate::qemu::migrate::{Policy, is_loopback};
use crate::util::conf_file::Setting;
use crate::util::uuid::Uuid;

/// Takes a setting that is about migration; what is about something else is handed back.
pub(super) fn apply(policy: &mut Policy, setting: Setting) -> Result<Option<Setting>, String> {
    match setting.key.as_str() {
        "migration_address" => policy.address = Some(reachable(setting)?),
        "migration_host" => policy.host = Some(reachable(setting)?),
        "migration_port_min" => match number(&setting)? {
            0 => return Err("migration_port_min: port must be greater than 0".to_owned()),
            port => policy.first_port = port,
        },
        "migration_port_max" => policy.last_port = number(&setting)?,
        "keepalive_interval" => policy.keepalive_interval = number(&setting)?,
        "keepalive_count" => policy.keepalive_count = number(&setting)?,
        "migrate_tls_force" => policy.force_tls = flag(&setting)?,
        "migrate_tls_x509_cert_dir" => policy.tls.directory = Some(directory(setting)?),
        "migrate_tls_x509_verify" => policy.tls.verify = Some(flag(&setting)?),
        "migrate_tls_x509_secret_uuid" => policy.tls.secret = Some(uuid(setting)?),
        "default_tls_x509_cert_dir" => policy.default_tls.directory = Some(directory(setting)?),
        "default_tls_x509_verify" => policy.default_tls.verify = Some(flag(&setting)?),
        "default_tls_x509_secret_uuid" => policy.default_tls.secret = Some(uuid(setting)?),
        _ => return Ok(Some(setting)),
    }
    Ok(None)
}

/// What shows only when all of the file has been read.
pub(super) fn check(policy: &Policy) -> Result<(), String> {
    match policy.ports().is_empty() {
        true => Err(format!(
            "migration_port_max: port must be between the minimal port {} and 65535",
            policy.first_port
        )),
        false => Ok(()),
    }
}

/// An address under which other hosts find this one.
fn reachable(setting: Setting) -> Result<String, String> {
    let key = setting.key.clone();
    let address = text(setting)?;
    let bare = address.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(&address);
    match is_loopback(bare) {
        true => Err(format!("{key} must not be the address of the local machine: {bare}")),
        false => Ok(bare.to_owned()),
    }
}

fn directory(setting: Setting) -> Result<PathBuf, String> {
    let key = setting.key.clone();
    let path = PathBuf::from(text(setting)?);
    match path.exists() {
        true => Ok(path),
        false => Err(format!("{key} directory '{}' does not exist", path.display())),
    }
}

fn uuid(setting: Setting) -> Result<Uuid, String> {
    let key = setting.key.clone();
    let uuid = text(setting)?;
    uuid.parse().map_err(|_| format!("malformed {key} '{uuid}'"))
}
