//! Devices that encrypt for the guest.

use super::address::Generation;
use super::line::{Line, Props};
use super::{Guest, Result};
use crate::conf::devices::CryptoBackend;

pub(super) fn build(guest: &Guest<'_>, line: &mut Line<'_>) -> Result<()> {
    for crypto in &guest.domain.devices.cryptos {
        let alias = guest.alias(&crypto.info)?;
        let backend = format!("obj{alias}");
        let kind = match crypto.backend {
            CryptoBackend::Builtin => "cryptodev-backend-builtin",
            CryptoBackend::Lkcf => "cryptodev-backend-lkcf",
        };
        line.object(Props::object(kind, &*backend).nonzero("queues", crypto.queues));
        let props = guest.virtio("virtio-crypto", Generation::Any, &crypto.info, &crypto.driver)?;
        let props = props.set("cryptodev", backend).set("id", alias);
        line.device(guest.at(props, &crypto.info)?);
    }
    Ok(())
}
