//! What a stream can do and how fast it may be, before it begins.

use super::MigrateError;
use crate::qemu::job::Live;
use crate::qemu::monitor::{
    MigrateSetCapabilities, MigrationCapability, MigrationParameters, QueryMigrateCapabilities,
    QueryMigrateParameters,
};

/// The capabilities that are off unless somebody wants them, in the order in which libvirt tells other hosts of them.
pub const KNOWN: [&str; 14] = [
    "xbzrle",
    "auto-converge",
    "rdma-pin-all",
    "postcopy-ram",
    "compress",
    "pause-before-switchover",
    "late-block-activate",
    "multifd",
    "dirty-bitmaps",
    "return-path",
    "zero-copy-send",
    "postcopy-preempt",
    "switchover-ack",
    "mapped-ram",
];

/// Always on: [`wait`](super::wait) lives on it.
const EVENTS: &str = "events";

/// How a stream is to be. Capabilities that are not named are turned off.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Settings {
    pub capabilities: Vec<&'static str>,
    /// Turned on if this QEMU has them.
    pub optional: Vec<&'static str>,
    pub parameters: MigrationParameters,
}

/// Which capabilities a guest's QEMU has.
pub async fn supported(live: &Live<'_>) -> Result<Vec<String>, MigrateError> {
    let capabilities = live.monitor().execute(QueryMigrateCapabilities {}).await?;
    Ok(capabilities.into_iter().map(|capability| capability.name).collect())
}

/// The parameters as they are, for putting them back.
pub async fn parameters(live: &Live<'_>) -> Result<MigrationParameters, MigrateError> {
    Ok(live.monitor().execute(QueryMigrateParameters {}).await?)
}

/// Prepares the next stream.
pub async fn configure(live: &Live<'_>, settings: &Settings) -> Result<(), MigrateError> {
    let supported = supported(live).await?;
    let has = |name: &str| supported.iter().any(|supported| supported == name);
    if let Some(missing) = settings.capabilities.iter().find(|name| !has(name)) {
        return Err(MigrateError::Unsupported { option: (*missing).to_owned() });
    }
    let wanted = |name: &str| {
        name == EVENTS || settings.capabilities.contains(&name) || settings.optional.contains(&name)
    };
    let capabilities = KNOWN
        .into_iter()
        .chain([EVENTS])
        .filter(|name| has(name))
        .map(|name| MigrationCapability { name: name.to_owned(), on: wanted(name) })
        .collect();
    live.monitor().execute(MigrateSetCapabilities { capabilities }).await?;
    if settings.parameters != MigrationParameters::default() {
        live.monitor().execute(settings.parameters.clone()).await?;
    }
    Ok(())
}
