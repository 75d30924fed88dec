//! The first console of a guest with serial ports is the first serial port.

use crate::conf::devices::{Console, ConsoleTarget, ConsoleType, Devices, Serial, SerialType};
use crate::conf::{ConfError, Result};

fn is_serial(console: &Console) -> bool {
    matches!(console.target.kind, None | Some(ConsoleType::Serial))
}

/// A definition may give either of the two; the other one follows.
pub(super) fn pair_with_serial(devices: &mut Devices) -> Result<()> {
    if devices.consoles.iter().skip(1).any(|console| console.target.kind == Some(ConsoleType::Serial)) {
        return Err(ConfError::unsupported("Only the first console can be a serial port"));
    }
    let alias = || Console {
        target: ConsoleTarget { kind: Some(ConsoleType::Serial), port: Some(0) },
        ..Console::default()
    };
    if devices.consoles.first().is_some_and(is_serial) {
        if devices.serials.is_empty() {
            let console = devices.consoles.remove(0);
            let mut serial = Serial { source: console.source, info: console.info, ..Serial::default() };
            serial.target.port = Some(0);
            devices.serials.push(serial);
            devices.consoles.insert(0, alias());
        }
        return Ok(());
    }
    let stands_for_console = devices.serials.first().is_some_and(|serial| {
        !matches!(serial.target.kind, Some(SerialType::Pci | SerialType::Usb | SerialType::IsaDebug))
    });
    if stands_for_console {
        devices.consoles.insert(0, alias());
        for (port, console) in (0..).zip(&mut devices.consoles) {
            console.target.port = Some(port);
        }
    }
    Ok(())
}

/// Shows the serial port's state in its console. To be called again when the serial port's source changes.
pub(super) fn mirror_serial(devices: &mut Devices) {
    for (console, serial) in devices.consoles.iter_mut().zip(&devices.serials) {
        if is_serial(console) {
            console.source = serial.source.clone();
            console.info = serial.info.clone();
            console.target = ConsoleTarget { kind: Some(ConsoleType::Serial), port: serial.target.port };
        }
    }
}

impl Devices {
    /// Brings the first console in line with the serial port behind it; for a running guest whose ptys
    /// became known.
    pub fn mirror_console(&mut self) {
        mirror_serial(self);
    }
}
