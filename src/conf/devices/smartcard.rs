//! `<smartcard>`: a card in the guest's reader.

use super::chardev::CharSource;
use super::info::DeviceInfo;
use crate::conf::Result;
use crate::conf::xml::{Element, Part, TextField, Writer, xml};

xml! {
    pub struct Smartcard {
        flat card: Card;
        flat info: DeviceInfo;
    }
}

xml! {
    pub enum Card by "mode" {
        /// The one in the host's reader.
        "host" => Host,
        "host-certificates" => Certificates(Certificates),
        "passthrough" => Passthrough(CharSource),
    }
}

/// A card made up of certificates in a database of the host.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Certificates {
    pub names: Vec<Box<str>>,
    pub database: Option<Box<str>>,
}

impl Part for Certificates {
    fn read(element: Element<'_>) -> Result<Self> {
        let names = element.children_named("certificate").map(|child| child.text().into()).collect();
        Ok(Self { names, database: TextField::read(element, "database")? })
    }

    fn write_children(&self, out: &mut Writer) {
        for name in &self.names {
            out.text_element("certificate", name);
        }
        if let Some(database) = &self.database {
            out.text_element("database", database);
        }
    }
}
