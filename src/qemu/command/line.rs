//! The growing command line, and objects written as JSON.

use serde_json::{Map, Value};

use crate::conf::domain::{OverrideType, QemuExtras};
use crate::conf::xml::OnOff;

/// Arguments and environment so far.
pub(crate) struct Line<'a> {
    pub(super) args: Vec<String>,
    pub(super) env: Vec<(String, String)>,
    /// Whether QEMU allocates all memory at once.
    pub(super) mem_prealloc: bool,
    /// Numbers given to sets of descriptors.
    pub(super) fd_sets: u32,
    extras: Option<&'a QemuExtras>,
}

impl<'a> Line<'a> {
    pub(super) fn new(extras: Option<&'a QemuExtras>) -> Self {
        Self { args: Vec::new(), env: Vec::new(), mem_prealloc: false, fd_sets: 0, extras }
    }

    /// An option that stands alone.
    pub(super) fn flag(&mut self, name: &str) {
        self.args.push(name.to_owned());
    }

    /// An option and its value.
    pub(super) fn option(&mut self, name: &str, value: impl Into<String>) {
        self.args.push(name.to_owned());
        self.args.push(value.into());
    }

    pub(super) fn json(&mut self, name: &str, props: Props) {
        self.option(name, props.to_string());
    }

    pub(super) fn object(&mut self, props: Props) {
        self.json("-object", props);
    }

    /// A device, with the properties that the definition sets by hand.
    pub(super) fn device(&mut self, mut props: Props) {
        let overrides = self.extras.map(|extras| extras.overrides.as_slice()).unwrap_or_default();
        let id = props.0.get("id").and_then(Value::as_str).map(str::to_owned);
        for device in overrides.iter().filter(|device| Some(&*device.alias) == id.as_deref()) {
            for property in &device.frontend {
                props.0.shift_remove(&*property.name);
                let text = property.value.as_deref().unwrap_or_default();
                // The definition's reader has checked that the text fits the type.
                let value = match property.kind {
                    OverrideType::Remove => continue,
                    OverrideType::String => Value::from(text),
                    OverrideType::Signed => Value::from(text.parse::<i64>().unwrap_or_default()),
                    OverrideType::Unsigned => Value::from(text.parse::<u64>().unwrap_or_default()),
                    OverrideType::Bool => Value::from(text == "true"),
                };
                props.0.insert(property.name.to_string(), value);
            }
        }
        self.json("-device", props);
    }
}

/// A JSON object; the order of its members is the order they were set in.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Props(Map<String, Value>);

impl Props {
    pub(super) fn new() -> Self {
        Self::default()
    }

    pub(super) fn driver(name: impl Into<String>) -> Self {
        Self::new().set("driver", name.into())
    }

    pub(super) fn object(qom_type: &str, id: impl Into<String>) -> Self {
        Self::new().set("qom-type", qom_type).set("id", id.into())
    }

    pub(super) fn set(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.0.insert(name.to_owned(), value.into());
        self
    }

    pub(super) fn maybe(self, name: &str, value: Option<impl Into<Value>>) -> Self {
        match value {
            Some(value) => self.set(name, value),
            None => self,
        }
    }

    /// A number, unless it is zero.
    pub(super) fn nonzero(self, name: &str, value: impl Into<u64>) -> Self {
        match value.into() {
            0 => self,
            value => self.set(name, value),
        }
    }

    pub(super) fn switch(self, name: &str, value: Option<OnOff>) -> Self {
        self.maybe(name, value.map(bool::from))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn into_value(self) -> Value {
        Value::Object(self.0)
    }
}

impl std::fmt::Display for Props {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match serde_json::to_string(&self.0) {
            Ok(text) => f.write_str(&text),
            Err(_) => Err(std::fmt::Error),
        }
    }
}

/// Text as a value in QEMU's older `name=value,…` notation, where a comma is written twice.
pub(super) fn escape_comma(text: &str) -> String {
    text.replace(',', ",,")
}
