//! Devices that need another one beside them, and those that suffer no second.

use super::by_qemu;
use crate::conf::Result;
use crate::conf::devices::{
    Address, Card, CcidAddress, CharKind, CharSource, Devices, Graphics, Smartcard, TpmModel,
};

pub(super) fn check_all(devices: &Devices) -> Result<()> {
    check_spice_streams(devices)?;
    devices.smartcards.iter().try_for_each(|card| check_smartcard(devices, card))?;
    check_tpms(devices)
}

/// What goes through a SPICE screen needs one.
fn check_spice_streams(devices: &Devices) -> Result<()> {
    if devices.graphics.iter().any(|graphics| matches!(graphics, Graphics::Spice(_))) {
        return Ok(());
    }
    let passed_through = devices.smartcards.iter().filter_map(|smartcard| match &smartcard.card {
        Card::Passthrough(source) => Some(source),
        Card::Host | Card::Certificates(_) => None,
    });
    let sources: [&mut dyn Iterator<Item = &CharSource>; 6] = [
        &mut { passed_through },
        &mut devices.serials.iter().map(|it| &it.source),
        &mut devices.parallels.iter().map(|it| &it.source),
        &mut devices.channels.iter().map(|it| &it.source),
        &mut devices.consoles.iter().map(|it| &it.source),
        &mut devices.redirdevs.iter().map(|it| &it.source),
    ];
    let kind = sources
        .into_iter()
        .flatten()
        .map(CharSource::kind)
        .find(|kind| matches!(kind, CharKind::Spicevmc | CharKind::Spiceport));
    match kind {
        Some(kind) => by_qemu(format!("chardev '{kind}' not supported without spice graphics")),
        None => Ok(()),
    }
}

fn check_smartcard(devices: &Devices, smartcard: &Smartcard) -> Result<()> {
    let first = CcidAddress { controller: 0, slot: 0 };
    let is_first = smartcard.info.address == Some(Address::Ccid(first));
    match devices.smartcards.len() == 1 && is_first {
        true => Ok(()),
        false => by_qemu("this QEMU binary lacks multiple smartcard support"),
    }
}

fn check_tpms(devices: &Devices) -> Result<()> {
    let is_proxy = |model: Option<TpmModel>| model == Some(TpmModel::SpaprProxy);
    let proxies = devices.tpms.iter().filter(|tpm| is_proxy(tpm.model)).count();
    match (proxies, devices.tpms.len() - proxies) {
        (2.., _) => by_qemu("only a single TPM Proxy device is supported"),
        (_, 2..) => by_qemu("only a single TPM non-proxy device is supported"),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use crate::conf::domain::defaults::tests::{complete, facts};

    fn refusal(devices: &str) -> Option<String> {
        let text = format!(
            "<domain type='qemu'><name>company</name><memory>1024</memory><os><type>hvm</type></os>\
             <devices>{devices}</devices></domain>"
        );
        let domain = complete(&text).unwrap();
        domain.validate(&facts(&domain)).err().map(|error| error.message)
    }

    #[test]
    fn devices_have_the_company_that_they_need() {
        let tpm = "<tpm model='tpm-crb'><backend type='emulator'/></tpm>";
        let card = "<smartcard mode='host'/>";
        let spice = "<graphics type='spice'/>";
        let stream = "<channel type='spicevmc'><target type='virtio' name='com.redhat.spice.0'/></channel>";
        let port = "<serial type='spiceport'><source channel='org.a.b'/></serial>";
        let usb = "<redirdev bus='usb' type='spicevmc'/>";
        for fine in [tpm, card, &format!("{spice}{stream}{port}{usb}")] {
            assert_eq!(refusal(fine), None, "{fine}");
        }
        for (alone, sentence) in [
            (tpm.repeat(2), "only a single TPM non-proxy device is supported"),
            (card.repeat(2), "this QEMU binary lacks multiple smartcard support"),
            (stream.to_owned(), "chardev 'spicevmc' not supported without spice graphics"),
            (port.to_owned(), "chardev 'spiceport' not supported without spice graphics"),
            (usb.to_owned(), "chardev 'spicevmc' not supported without spice graphics"),
        ] {
            let said = refusal(&alone).unwrap_or_default();
            assert!(said.ends_with(sentence), "{alone}: {said}");
        }
    }
}
