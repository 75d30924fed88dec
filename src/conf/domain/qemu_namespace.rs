//! `qemu:` elements: arguments and environment handed through to QEMU, capabilities switched by hand.

use crate::conf::xml::{Element, Part, Writer};
use crate::conf::{ConfError, Result};

pub const QEMU_NAMESPACE: &str = "http://libvirt.org/schemas/domain/qemu/1.0";

/// All of a domain's `qemu:` elements; empty for nearly every guest.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct QemuNamespace(pub Option<Box<QemuExtras>>);

#[derive(Debug, Clone, PartialEq, Default)]
pub struct QemuExtras {
    pub args: Vec<Box<str>>,
    /// Name and value; without a value the variable is empty.
    pub env: Vec<(Box<str>, Option<Box<str>>)>,
    pub capabilities_added: Vec<Box<str>>,
    pub capabilities_removed: Vec<Box<str>>,
    pub overrides: Vec<DeviceOverride>,
    pub deprecation_behavior: Option<Box<str>>,
}

/// Properties of one device that are set past the model.
#[derive(Debug, Clone, PartialEq)]
pub struct DeviceOverride {
    pub alias: Box<str>,
    pub frontend: Vec<PropertyOverride>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct PropertyOverride {
    pub name: Box<str>,
    pub kind: OverrideType,
    pub value: Option<Box<str>>,
}

crate::conf::xml::xml_enum! {
    pub enum OverrideType {
        String = "string",
        Signed = "signed",
        Unsigned = "unsigned",
        Bool = "bool",
        Remove = "remove",
    }
}

fn children<'a>(element: Option<Element<'a>>, name: &'a str) -> impl Iterator<Item = Element<'a>> {
    element
        .into_iter()
        .flat_map(Element::children)
        .filter(move |child| child.name() == name && child.namespace() == Some(QEMU_NAMESPACE))
}

fn attribute(element: Element<'_>, name: &str, missing: &str) -> Result<Box<str>> {
    element.attribute(name).map(Into::into).ok_or_else(|| ConfError::internal(missing))
}

fn check_env_name(name: &str) -> Result<()> {
    if !name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') {
        let message = "Invalid environment name, it must begin with a letter or underscore";
        return Err(ConfError::internal(message));
    }
    if !name.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'_') {
        let message = "Invalid environment name, it must contain only alphanumerics and underscore";
        return Err(ConfError::internal(message));
    }
    Ok(())
}

impl PropertyOverride {
    fn read(element: Element<'_>) -> Result<Self> {
        let name: Box<str> = element
            .value("name")?
            .ok_or_else(|| ConfError::xml("missing 'name' attribute for qemu:property"))?;
        if name.as_ref() == "id" {
            return Err(ConfError::xml("property with name 'id' can't be overridden"));
        }
        let kind: OverrideType = element.required("type")?;
        let value = element.attribute("value");
        let legal = match (kind, value) {
            (OverrideType::Remove, None) | (OverrideType::String, Some(_)) => true,
            (OverrideType::Remove, Some(_)) => {
                let message =
                    "setting 'value' attribute of 'qemu:property' doesn't make sense with 'remove' type";
                return Err(ConfError::xml(message));
            }
            (_, None) => return Err(ConfError::xml("missing 'value' attribute for 'qemu:property'")),
            (OverrideType::Signed, Some(text)) => text.parse::<i64>().is_ok(),
            (OverrideType::Unsigned, Some(text)) => text.parse::<u64>().is_ok(),
            (OverrideType::Bool, Some(text)) => matches!(text, "true" | "false"),
        };
        if !legal {
            let value = value.unwrap_or_default();
            return Err(ConfError::xml(format!(
                "invalid value '{value}' of 'value' attribute of 'qemu:property'"
            )));
        }
        Ok(Self { name, kind, value: value.map(Into::into) })
    }
}

fn read_overrides(root: Element<'_>) -> Result<Vec<DeviceOverride>> {
    let mut overrides = Vec::new();
    for device in children(root.child_in(QEMU_NAMESPACE, "override"), "device") {
        let alias = device
            .value("alias")?
            .ok_or_else(|| ConfError::xml("missing 'alias' attribute for qemu:device"))?;
        let frontend = children(device.child_in(QEMU_NAMESPACE, "frontend"), "property")
            .map(PropertyOverride::read)
            .collect::<Result<_>>()?;
        overrides.push(DeviceOverride { alias, frontend });
    }
    Ok(overrides)
}

impl QemuNamespace {
    fn read_extras(element: Element<'_>) -> Result<Self> {
        let mut extras = QemuExtras::default();
        let commandline = element.child_in(QEMU_NAMESPACE, "commandline");
        for arg in children(commandline, "arg") {
            extras.args.push(attribute(arg, "value", "No qemu command-line argument specified")?);
        }
        for env in children(commandline, "env") {
            let name = attribute(env, "name", "No qemu environment name specified")?;
            check_env_name(&name)?;
            extras.env.push((name, env.value("value")?));
        }
        let capabilities = element.child_in(QEMU_NAMESPACE, "capabilities");
        for (name, list) in
            [("add", &mut extras.capabilities_added), ("del", &mut extras.capabilities_removed)]
        {
            for capability in children(capabilities, name) {
                list.push(attribute(capability, "capability", "missing capability name")?);
            }
        }
        extras.overrides = read_overrides(element)?;
        if let Some(deprecation) = element.child_in(QEMU_NAMESPACE, "deprecation") {
            extras.deprecation_behavior = deprecation.value("behavior")?;
        }
        let empty = extras == QemuExtras::default();
        Ok(Self((!empty).then(|| Box::new(extras))))
    }
}

impl Part for QemuNamespace {
    fn read(element: Element<'_>) -> Result<Self> {
        Self::read_extras(element).map_err(ConfError::by_qemu_driver)
    }

    fn write_attributes(&self, out: &mut Writer) {
        if self.0.is_some() {
            out.attribute_str("xmlns:qemu", QEMU_NAMESPACE);
        }
    }

    fn write_children(&self, out: &mut Writer) {
        let Some(extras) = &self.0 else { return };
        out.group("qemu:commandline", |out| {
            for arg in &extras.args {
                out.element("qemu:arg", |out| out.attribute("value", arg));
            }
            for (name, value) in &extras.env {
                out.element("qemu:env", |out| {
                    out.attribute("name", name);
                    if let Some(value) = value {
                        out.attribute("value", value);
                    }
                });
            }
        });
        out.group("qemu:capabilities", |out| {
            for name in &extras.capabilities_added {
                out.element("qemu:add", |out| out.attribute("capability", name));
            }
            for name in &extras.capabilities_removed {
                out.element("qemu:del", |out| out.attribute("capability", name));
            }
        });
        out.group("qemu:override", |out| {
            extras.overrides.iter().for_each(|device| write_override(device, out))
        });
        if let Some(behavior) = &extras.deprecation_behavior {
            out.element("qemu:deprecation", |out| out.attribute("behavior", behavior));
        }
    }
}

fn write_override(device: &DeviceOverride, out: &mut Writer) {
    out.element("qemu:device", |out| {
        out.attribute("alias", &device.alias);
        out.group("qemu:frontend", |out| {
            for property in &device.frontend {
                out.element("qemu:property", |out| {
                    out.attribute("name", &property.name);
                    out.attribute("type", &property.kind);
                    if let Some(value) = &property.value {
                        out.attribute("value", value);
                    }
                });
            }
        });
    });
}
