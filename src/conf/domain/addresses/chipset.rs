//! Devices whose places the machine's chipset fixes.

use super::pci::{Pass, is_wanted, present};
use super::{Chooser, Connect, PciSet};
use crate::conf::devices::{
    Address, Controller, ControllerKind, Devices, PciAddress, PciModel, SoundModel, UsbModel, VideoKind,
};
use crate::conf::domain::Domain;
use crate::conf::domain::defaults::is_usb2;
use crate::conf::xml::OnOff;
use crate::conf::{ConfError, Result};

const PIIX3_IDE: PciAddress = PciAddress::new(0, 1, 1);
const PIIX3_USB: PciAddress = PciAddress::new(0, 1, 2);
const ICH9_SATA: PciAddress = PciAddress::new(0, 0x1f, 2);

/// Takes the places of built-in devices and gives the first video card and some others their usual ones.
pub(super) fn settle(domain: &mut Domain, set: &mut PciSet, pass: Pass, express: Connect) -> Result<()> {
    if domain.is_i440fx() {
        settle_i440fx(&mut domain.devices, set, pass)?;
    }
    if domain.is_q35() {
        settle_q35(&mut domain.devices, set, pass, express)?;
    }
    Ok(())
}

/// Controllers inside the PIIX3, which are there without being plugged in.
pub(super) fn is_piix3(kind: &ControllerKind, index: u32, address: &PciAddress) -> bool {
    let same_place = |place: PciAddress| PciAddress { multifunction: None, ..*address } == place;
    match kind {
        _ if index != 0 => false,
        ControllerKind::Ide(_) => same_place(PIIX3_IDE),
        ControllerKind::Usb(options) => {
            matches!(options.model, Some(UsbModel::Piix3Uhci) | None) && same_place(PIIX3_USB)
        }
        _ => false,
    }
}

/// Puts a built-in controller where it is, or refuses another place for it.
fn fix(controller: &mut Controller, place: PciAddress, refusal: &'static str) -> Result<PciAddress> {
    match present(&controller.info) {
        Some(given) if (PciAddress { multifunction: None, ..given }) != place => {
            Err(ConfError::internal(refusal).by_qemu_driver())
        }
        Some(given) => Ok(given),
        None => {
            controller.info.address = Some(Address::Pci(place));
            Ok(place)
        }
    }
}

fn settle_i440fx(devices: &mut Devices, set: &mut PciSet, pass: Pass) -> Result<()> {
    let flags = Connect::CHOSEN_PCI;
    for controller in devices.controllers.iter_mut().filter(|controller| controller.index() == 0) {
        let place = match &controller.kind {
            ControllerKind::Ide(_) => {
                fix(controller, PIIX3_IDE, "Primary IDE controller must have PCI address 0:0:1.1")?
            }
            ControllerKind::Usb(options) if matches!(options.model, Some(UsbModel::Piix3Uhci) | None) => {
                fix(controller, PIIX3_USB, "PIIX3 USB controller at index 0 must have PCI address 0:0:1.2")?
            }
            _ => continue,
        };
        set.reserve(place, flags)?;
    }
    // The ISA bridge and the power management.
    set.reserve(PciAddress::new(0, 1, 0), flags)?;
    set.reserve(PciAddress::new(0, 1, 3), flags)?;
    settle_video(devices, set, pass, VideoPlace { slot: 2, built_in: flags, needs: None })
}

fn settle_q35(devices: &mut Devices, set: &mut PciSet, pass: Pass, express: Connect) -> Result<()> {
    let flags = Connect::PCIE;
    for controller in &mut devices.controllers {
        match &controller.kind {
            ControllerKind::Sata if controller.index() == 0 => {
                fix(controller, ICH9_SATA, "Primary SATA controller must have PCI address 0:0:1f.2")?;
            }
            ControllerKind::Usb(options)
                if options.model == Some(UsbModel::Ich9Uhci1) && controller.info.address.is_none() =>
            {
                let slot = [0x1d, 0x1a].into_iter().find(|slot| !set.slot_in_use(0, *slot));
                if let Some(slot) = slot {
                    let place = PciAddress::new(0, slot, 0);
                    set.reserve(place, flags)?;
                    let place = PciAddress { multifunction: Some(OnOff::On), ..place };
                    controller.info.address = Some(Address::Pci(place));
                }
            }
            ControllerKind::Pci(options)
                if options.model == Some(PciModel::DmiToPciBridge)
                    && controller.info.address.is_none()
                    && !set.slot_in_use(0, 0x1e) =>
            {
                let place = PciAddress::new(0, 0x1e, 0);
                set.reserve(place, flags)?;
                controller.info.address = Some(Address::Pci(place));
            }
            _ => {}
        }
    }
    // The ISA bridge and the SMBus.
    set.reserve(PciAddress::new(0, 0x1f, 0), flags)?;
    set.reserve(PciAddress::new(0, 0x1f, 3), flags)?;
    settle_video(devices, set, pass, VideoPlace { slot: 1, built_in: flags, needs: Some(express) })?;
    settle_sound(devices, set)
}

/// Where QEMU puts the first video card when it is left alone.
struct VideoPlace {
    slot: u8,
    built_in: Connect,
    /// What Express cards need when the slot is taken; `None`: there are none.
    needs: Option<Connect>,
}

fn settle_video(devices: &mut Devices, set: &mut PciSet, pass: Pass, usual: VideoPlace) -> Result<()> {
    let Some(video) = devices.videos.first_mut() else { return Ok(()) };
    let on_pci = !matches!(video.model.kind, VideoKind::None | VideoKind::Ramfb);
    if !on_pci || !is_wanted(&video.info) {
        return Ok(());
    }
    let place = PciAddress::new(0, usual.slot, 0);
    set.check(&place, usual.built_in, Chooser::User)?;
    if !set.slot_in_use(0, usual.slot) {
        set.reserve(place, usual.built_in)?;
        video.info.address = Some(Address::Pci(place));
        return Ok(());
    }
    let needs = super::connect::Needs { express: usual.needs.unwrap_or(Connect::CHOSEN_PCI) };
    super::pci::place(set, &mut video.info, needs.video(video.model.kind), pass)
}

/// Real q35 boards have their sound there.
fn settle_sound(devices: &mut Devices, set: &mut PciSet) -> Result<()> {
    if set.slot_in_use(0, 0x1b) {
        return Ok(());
    }
    let wanted =
        |sound: &&mut crate::conf::devices::Sound| sound.model == SoundModel::Ich9 && is_wanted(&sound.info);
    if let Some(sound) = devices.sounds.iter_mut().find(wanted) {
        let place = PciAddress::new(0, 0x1b, 0);
        set.reserve(place, Connect::PCIE)?;
        sound.info.address = Some(Address::Pci(place));
    }
    Ok(())
}

/// The place of a USB 2 controller: all of a group share a slot.
pub(super) fn usb2_place(devices: &Devices, at: usize) -> Option<(PciAddress, Option<PciAddress>)> {
    let controller = devices.controllers.get(at).filter(|controller| is_usb2(controller))?;
    let (function, multifunction) = match controller.usb_model() {
        Some(UsbModel::Ich9Ehci1) => (7, None),
        Some(UsbModel::Ich9Uhci1) => (0, Some(OnOff::On)),
        Some(UsbModel::Ich9Uhci2) => (1, None),
        _ => (2, None),
    };
    let shape = PciAddress { function, multifunction, ..PciAddress::default() };
    let group = devices.controllers.iter().filter(|other| is_usb2(other) && other.index == controller.index);
    let found = group.filter_map(|other| present(&other.info)).next();
    Some((shape, found.map(|found| PciAddress { function, multifunction, ..found })))
}
