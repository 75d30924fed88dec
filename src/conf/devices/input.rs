//! `<input>`: keyboards, mice and tablets.

use super::info::{DeviceInfo, VirtioOptions};
use crate::conf::xml::{Element, Form, OnOff, Part, Value, Writer, xml, xml_enum};
use crate::conf::{ConfError, Result};

#[derive(Debug, Clone, PartialEq)]
pub struct Input {
    pub kind: InputKind,
    /// There once the definition was completed.
    pub bus: Option<InputBus>,
    pub model: Option<InputModel>,
    pub driver: VirtioOptions,
    /// Of kinds that hand on a device of the host.
    pub source: Option<Box<InputSource>>,
    pub info: DeviceInfo,
}

xml_enum! {
    pub enum InputKind {
        Mouse = "mouse",
        Tablet = "tablet",
        Keyboard = "keyboard",
        Passthrough = "passthrough",
        Evdev = "evdev",
    }
}

xml_enum! {
    pub enum InputBus {
        Ps2 = "ps2",
        Usb = "usb",
        Xen = "xen",
        Parallels = "parallels",
        Virtio = "virtio",
        /// The host's devices have none.
        None = "none",
    }
}

xml_enum! {
    pub enum InputModel {
        Virtio = "virtio",
        VirtioTransitional = "virtio-transitional",
        VirtioNonTransitional = "virtio-non-transitional",
    }
}

xml! {
    pub struct InputSource {
        attr dev: Option<Box<str>> = "dev";
        attr evdev: Option<Box<str>> = "evdev";
        attr grab: Option<InputGrab> = "grab";
        attr grab_toggle: Option<GrabToggle> = "grabToggle";
        attr repeat: Option<OnOff> = "repeat";
    }
}

xml_enum! {
    /// Which devices the guest takes over together.
    pub enum InputGrab {
        All = "all",
    }
}

xml_enum! {
    /// The keys that give the devices to the guest and take them back.
    pub enum GrabToggle {
        CtrlCtrl = "ctrl-ctrl",
        AltAlt = "alt-alt",
        ShiftShift = "shift-shift",
        MetaMeta = "meta-meta",
        Scrolllock = "scrolllock",
        CtrlScrolllock = "ctrl-scrolllock",
    }
}

impl Input {
    pub fn new(kind: InputKind, bus: InputBus) -> Self {
        Self {
            kind,
            bus: Some(bus),
            model: None,
            driver: VirtioOptions::default(),
            source: None,
            info: DeviceInfo::default(),
        }
    }
}

fn word<V: Value>(element: Element<'_>, name: &str, what: &str) -> Result<Option<V>> {
    let Some(word) = element.attribute(name) else { return Ok(None) };
    V::parse(word).map(Some).ok_or_else(|| ConfError::unsupported(format!("unknown input {what} '{word}'")))
}

impl Part for Input {
    fn read(element: Element<'_>) -> Result<Self> {
        let Some(kind) = word(element, "type", "device type")? else {
            return Err(ConfError::internal("missing input device type"));
        };
        let source = match kind {
            InputKind::Passthrough | InputKind::Evdev => element.child("source"),
            InputKind::Mouse | InputKind::Tablet | InputKind::Keyboard => None,
        };
        let driver = element.child("driver").map(VirtioOptions::read).transpose()?;
        Ok(Self {
            kind,
            bus: word(element, "bus", "bus type")?,
            model: word(element, "model", "model")?,
            driver: driver.unwrap_or_default(),
            source: source.map(InputSource::read).transpose()?.map(Box::new),
            info: DeviceInfo::read(element)?,
        })
    }

    fn write_attributes(&self, out: &mut Writer) {
        out.attribute("type", &self.kind);
        if let Some(bus) = self.bus.filter(|bus| *bus != InputBus::None) {
            out.attribute("bus", &bus);
        }
        if let Some(model) = &self.model {
            out.attribute("model", model);
        }
    }

    fn write_children(&self, out: &mut Writer) {
        self.driver.write_group(out, "driver");
        if let Some(source) = &self.source {
            Part::write(source, out, "source");
        }
        self.info.write_children(out);
    }

    fn write(&self, out: &mut Writer, name: &str) {
        // Every guest with PS/2 has this keyboard; older versions do not know that it can be named.
        let implied = self.kind == InputKind::Keyboard && self.bus == Some(InputBus::Ps2);
        if implied && out.form().contains(Form::MIGRATABLE) {
            return;
        }
        out.element(name, |out| {
            self.write_attributes(out);
            self.write_children(out);
        });
    }
}
