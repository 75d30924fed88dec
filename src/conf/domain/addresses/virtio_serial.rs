//! Ports on virtio-serial controllers for channels and consoles.

use std::collections::BTreeMap;

use crate::conf::devices::{
    Address, ChannelTarget, ConsoleType, ControllerKind, DeviceInfo, Devices, VirtioSerialAddress,
    VirtioSerialOptions,
};
use crate::conf::domain::defaults::add_controller;
use crate::conf::{ConfError, Result};

/// Ports of a controller that does not say how many.
const DEFAULT_PORTS: u32 = 31;
/// As many as QEMU's controller takes.
const MAX_PORTS: u32 = 511;

/// Ports in use, by controller.
#[derive(Default)]
struct Ports(BTreeMap<u32, Vec<bool>>);

impl Ports {
    fn add(&mut self, controller: u32, ports: Option<u32>) {
        let count = ports.unwrap_or(DEFAULT_PORTS).min(MAX_PORTS);
        self.0.insert(controller, vec![false; count as usize]);
    }

    fn reserve(&mut self, place: &VirtioSerialAddress) -> Result<()> {
        let VirtioSerialAddress { controller, port, .. } = *place;
        let Some(ports) = self.0.get_mut(&controller) else {
            return Err(ConfError::xml(format!("virtio serial controller {controller} is missing")));
        };
        match ports.get_mut(port as usize) {
            Some(used @ false) => *used = true,
            Some(true) => {
                let message =
                    format!("virtio serial port {port} on controller {controller} is already occupied");
                return Err(ConfError::xml(message));
            }
            None => {
                let message = format!("virtio serial controller {controller} does not have port {port}");
                return Err(ConfError::xml(message));
            }
        }
        Ok(())
    }

    /// The lowest free port from `first` on, of `controller` or of any.
    fn free(&self, controller: Option<u32>, first: u32) -> Option<VirtioSerialAddress> {
        self.0.iter().filter(|(index, _)| controller.is_none_or(|only| only == **index)).find_map(
            |(index, ports)| {
                let port = (first..).zip(ports.iter().skip(first as usize)).find(|(_, used)| !**used)?.0;
                Some(VirtioSerialAddress { controller: *index, bus: 0, port })
            },
        )
    }
}

pub(super) fn assign(devices: &mut Devices) -> Result<()> {
    let mut ports = Ports::default();
    for controller in &devices.controllers {
        if let ControllerKind::VirtioSerial(options) = &controller.kind {
            ports.add(controller.index(), options.ports);
        }
    }
    let given =
        devices.channels.iter().map(|channel| &channel.info).chain(devices.consoles.iter().map(|c| &c.info));
    for info in given {
        if let Some(Address::VirtioSerial(place)) = &info.address
            && place.port != 0
        {
            ports.reserve(place)?;
        }
    }
    // Port 0 is for consoles, whose places are not printed.
    let consoles = devices.consoles.iter().filter(|console| console.target.kind == Some(ConsoleType::Virtio));
    let open: Vec<_> = consoles.map(|console| wish(&console.info)).collect();
    for wanted in open.into_iter().filter(|wish| *wish != Wish::Granted) {
        choose(devices, &mut ports, wanted, 0)?;
    }
    for at in 0..devices.channels.len() {
        let Some(channel) = devices.channels.get(at) else { break };
        let wanted = wish(&channel.info);
        if !matches!(channel.target, ChannelTarget::Virtio { .. }) || wanted == Wish::Granted {
            continue;
        }
        let place = choose(devices, &mut ports, wanted, 1)?;
        if let Some(channel) = devices.channels.get_mut(at) {
            channel.info.address = Some(Address::VirtioSerial(place));
        }
    }
    Ok(())
}

/// What a device's address leaves open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wish {
    Granted,
    AnyPortOf(u32),
    Anywhere,
}

fn wish(info: &DeviceInfo) -> Wish {
    match &info.address {
        Some(Address::VirtioSerial(place)) if place.port != 0 => Wish::Granted,
        Some(Address::VirtioSerial(place)) => Wish::AnyPortOf(place.controller),
        _ => Wish::Anywhere,
    }
}

fn choose(devices: &mut Devices, ports: &mut Ports, wish: Wish, first: u32) -> Result<VirtioSerialAddress> {
    let place = match wish {
        Wish::AnyPortOf(controller) => ports.free(Some(controller), 1).ok_or_else(|| {
            ConfError::xml(format!("Unable to find a free port on virtio-serial controller {controller}"))
        })?,
        Wish::Anywhere | Wish::Granted => match ports.free(None, first) {
            Some(place) => place,
            None => {
                let index = (0..).find(|index| !ports.0.contains_key(index)).unwrap_or(0);
                add_controller(devices, ControllerKind::VirtioSerial(VirtioSerialOptions::default()), index);
                ports.add(index, None);
                VirtioSerialAddress { controller: index, bus: 0, port: first }
            }
        },
    };
    ports.reserve(&place)?;
    Ok(place)
}
