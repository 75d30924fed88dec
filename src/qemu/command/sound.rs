//! Sound cards.

use super::address::Generation;
use super::line::{Line, Props};
use super::{Guest, Result, unsupported};
use crate::conf::devices::{CodecKind, Sound, SoundModel};

pub(super) fn build(guest: &Guest<'_>, line: &mut Line<'_>) -> Result<()> {
    for sound in &guest.domain.devices.sounds {
        let (driver, has_codecs) = match sound.model {
            // A part of the machine.
            SoundModel::Pcspk => continue,
            SoundModel::Es1370 => ("ES1370", false),
            SoundModel::Ac97 => ("AC97", false),
            SoundModel::Ich6 => ("intel-hda", true),
            SoundModel::Ich9 => ("ich9-intel-hda", true),
            SoundModel::Usb => ("usb-audio", false),
            SoundModel::Sb16 => ("sb16", false),
            SoundModel::Virtio => ("virtio-sound", false),
            SoundModel::Ich7 => return unsupported("sound card model 'ich7' is not supported by qemu"),
        };
        let alias = guest.alias(&sound.info)?;
        let props = match sound.model {
            SoundModel::Virtio => guest.virtio(driver, Generation::Any, &sound.info, &sound.driver)?,
            _ => Props::driver(driver),
        };
        let mut props = props.set("id", alias);
        if !has_codecs {
            props = props.set("audiodev", guest.audiodev(sound.audio)?);
        }
        props = match sound.model {
            SoundModel::Usb => props.maybe("multi", sound.multichannel.map(bool::from)),
            SoundModel::Virtio => props.nonzero("streams", sound.streams.unwrap_or_default()),
            _ => props,
        };
        line.device(guest.at(props, &sound.info)?);
        if has_codecs {
            codecs(guest, line, sound, alias)?;
        }
    }
    Ok(())
}

fn codecs(guest: &Guest<'_>, line: &mut Line<'_>, sound: &Sound, alias: &str) -> Result<()> {
    let mut kinds: Vec<CodecKind> = sound.codecs.iter().map(|codec| codec.kind).collect();
    if kinds.is_empty() {
        kinds.push(CodecKind::Duplex);
    }
    for (number, kind) in kinds.into_iter().enumerate() {
        let driver = match kind {
            CodecKind::Duplex => "hda-duplex",
            CodecKind::Micro => "hda-micro",
            CodecKind::Output => "hda-output",
        };
        let props = Props::driver(driver)
            .set("id", format!("{alias}-codec{number}"))
            .set("bus", format!("{alias}.0"))
            .set("cad", number)
            .set("audiodev", guest.audiodev(sound.audio)?);
        line.device(props);
    }
    Ok(())
}
