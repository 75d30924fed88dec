//! Cards in the guest's reader.

use super::line::{Line, Props};
use super::{Guest, Result};
use crate::conf::devices::{Address, Card, ControllerType};

/// Where libnss keeps certificates unless told otherwise.
const DATABASE: &str = "/etc/pki/nssdb";

pub(super) fn build(guest: &Guest<'_>, line: &mut Line<'_>) -> Result<()> {
    for smartcard in &guest.domain.devices.smartcards {
        let alias = guest.alias(&smartcard.info)?;
        let props = match &smartcard.card {
            Card::Host => Props::driver("ccid-card-emulated").set("backend", "nss-emulated"),
            Card::Certificates(certificates) => {
                let mut props = Props::driver("ccid-card-emulated").set("backend", "certificates");
                for (number, name) in (1..).zip(&certificates.names) {
                    props = props.set(&format!("cert{number}"), &**name);
                }
                props.set("db", certificates.database.as_deref().unwrap_or(DATABASE))
            }
            Card::Passthrough(source) => {
                let chardev = guest.chardev(line, source, alias)?;
                Props::driver("ccid-card-passthru").set("chardev", chardev)
            }
        };
        let mut props = props.set("id", alias);
        if let Some(Address::Ccid(place)) = &smartcard.info.address {
            let bus = guest.controller_alias(ControllerType::Ccid, place.controller)?;
            props = props.set("bus", format!("{bus}.0"));
        }
        line.device(props);
    }
    Ok(())
}
