//! `<sysinfo>`: what the guest's firmware tables say.

use crate::conf::xml::{Element, Part, Writer, read_body, xml};
use crate::conf::{ConfError, ErrorKind, Result};

xml! {
    pub enum Sysinfo by "type" {
        "smbios" => Smbios(Box<Smbios>),
        "fwcfg" => FwCfg(FwCfg),
    }
}

xml! {
    #[derive(Default)]
    pub struct FwCfg {
        child entries: Vec<FwCfgEntry> = "entry";
    }
}

/// A blob for the guest's firmware: inline, or from a file.
#[derive(Debug, Clone, PartialEq)]
pub struct FwCfgEntry {
    pub name: Box<str>,
    pub file: Option<Box<str>>,
    pub value: Option<Box<str>>,
}

impl Part for FwCfgEntry {
    fn read(element: Element<'_>) -> Result<Self> {
        let name = element
            .value("name")?
            .ok_or_else(|| ConfError::xml("Firmware entry is missing 'name' attribute"))?;
        let file: Option<Box<str>> = element.value("file")?;
        let value: Option<Box<str>> = read_body(element)?;
        match (&file, &value) {
            (Some(_), Some(_)) | (None, None) => {
                Err(ConfError::xml("Firmware entry must have either value or 'file' attribute"))
            }
            _ => Ok(Self { name, file, value }),
        }
    }

    fn write_attributes(&self, out: &mut Writer) {
        out.attribute("name", &self.name);
        if let Some(file) = &self.file {
            out.attribute("file", file);
        }
    }

    fn write_children(&self, out: &mut Writer) {
        if let Some(value) = &self.value {
            out.body(value);
        }
    }
}

/// The SMBIOS tables, each a list of named entries.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Smbios {
    pub bios: Vec<SmbiosEntry>,
    pub system: Vec<SmbiosEntry>,
    pub base_boards: Vec<Vec<SmbiosEntry>>,
    pub chassis: Vec<SmbiosEntry>,
    pub oem_strings: Vec<Box<str>>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct SmbiosEntry {
    pub name: &'static str,
    pub value: Box<str>,
}

/// The names a table knows, in the order they are printed; others are dropped.
const BIOS: &[&str] = &["vendor", "version", "date", "release"];
const SYSTEM: &[&str] = &["manufacturer", "product", "version", "serial", "uuid", "sku", "family"];
const BASE_BOARD: &[&str] = &["manufacturer", "product", "version", "serial", "asset", "location"];
const CHASSIS: &[&str] = &["manufacturer", "version", "serial", "asset", "sku"];

fn read_table(table: Element<'_>, names: &'static [&'static str]) -> Vec<SmbiosEntry> {
    let value_of = |name: &str| {
        let entry = table.children_named("entry").find(|entry| entry.attribute("name") == Some(name))?;
        Some(entry.text()).filter(|text| !text.is_empty())
    };
    names.iter().filter_map(|name| Some(SmbiosEntry { name, value: value_of(name)?.into() })).collect()
}

/// `mm/dd/yyyy`, or a year of the last century in two digits.
fn is_date(text: &str) -> bool {
    let mut numbers = text.split('/').map(|number| number.trim_start().parse::<i32>().ok());
    let (month, day, year) = (numbers.next(), numbers.next(), numbers.next());
    let (Some(Some(month)), Some(Some(day)), Some(Some(year)), None) = (month, day, year, numbers.next())
    else {
        return false;
    };
    (1..=12).contains(&month) && (1..=31).contains(&day) && (matches!(year, 0..=99) || year >= 1900)
}

fn write_table(table: &[SmbiosEntry], out: &mut Writer, name: &str) {
    out.group(name, |out| {
        for entry in table {
            out.element("entry", |out| {
                out.attribute_str("name", entry.name);
                out.body(&entry.value);
            });
        }
    });
}

impl Smbios {
    /// The uuid the tables show, where they name one.
    pub fn system_uuid(&self) -> Option<&str> {
        self.system.iter().find(|entry| entry.name == "uuid").map(|entry| entry.value.as_ref())
    }
}

impl Part for Smbios {
    fn read(element: Element<'_>) -> Result<Self> {
        let table =
            |name, names| element.child(name).map(|table| read_table(table, names)).unwrap_or_default();
        let oem_strings = element.child("oemStrings");
        let bios = table("bios", BIOS);
        let date = bios.iter().find(|entry| entry.name == "date");
        if date.is_some_and(|date| !is_date(&date.value)) {
            return Err(ConfError::new(ErrorKind::XmlDetail, "Invalid BIOS 'date' format"));
        }
        Ok(Self {
            bios,
            system: table("system", SYSTEM),
            base_boards: element
                .children_named("baseBoard")
                .map(|table| read_table(table, BASE_BOARD))
                .collect(),
            chassis: table("chassis", CHASSIS),
            oem_strings: oem_strings
                .into_iter()
                .flat_map(|list| list.children_named("entry"))
                .map(|entry| entry.text().into())
                .collect(),
        })
    }

    fn write_children(&self, out: &mut Writer) {
        write_table(&self.bios, out, "bios");
        write_table(&self.system, out, "system");
        for table in &self.base_boards {
            write_table(table, out, "baseBoard");
        }
        write_table(&self.chassis, out, "chassis");
        out.group("oemStrings", |out| {
            for text in &self.oem_strings {
                out.text_element("entry", text);
            }
        });
    }
}
