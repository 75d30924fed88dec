//! `<permissions>`: mode, owner, group and label of a file; what is absent is left to the system.

use super::lookup;
use crate::conf::xml::{Element, Writer};
use crate::conf::{ConfError, Result};

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Permissions {
    pub mode: Option<u32>,
    pub owner: Option<u32>,
    pub group: Option<u32>,
    pub label: Option<Box<str>>,
}

impl Permissions {
    /// Reads the `<permissions>` that may stand in `parent`.
    pub(super) fn read_in(parent: Option<Element<'_>>) -> Result<Self> {
        let Some(element) = parent.and_then(|parent| parent.child("permissions")) else {
            return Ok(Self::default());
        };
        let mode = lookup::text(element, &["mode"]);
        let mode = mode.map(|text| {
            let mode = u32::from_str_radix(text.trim(), 8).ok().filter(|mode| mode & !0o777 == 0);
            mode.ok_or_else(|| ConfError::xml("malformed octal mode"))
        });
        Ok(Self {
            mode: mode.transpose()?,
            owner: id(element, "owner")?,
            group: id(element, "group")?,
            label: lookup::text(element, &["label"]),
        })
    }

    pub(super) fn write(&self, out: &mut Writer) {
        out.group("permissions", |out| {
            if let Some(mode) = self.mode {
                out.text_element("mode", &format!("0{mode:o}"));
            }
            if let Some(owner) = self.owner {
                out.text_element("owner", &owner.cast_signed());
            }
            if let Some(group) = self.group {
                out.text_element("group", &group.cast_signed());
            }
            if let Some(label) = &self.label {
                out.text_element("label", label);
            }
        });
    }
}

/// An id; -1, which older versions printed, is none.
fn id(element: Element<'_>, name: &str) -> Result<Option<u32>> {
    let Some(child) = element.child(name) else { return Ok(None) };
    let malformed = || ConfError::xml(format!("malformed {name} element"));
    match child.text().trim().parse::<i64>().map_err(|_| malformed())? {
        -1 => Ok(None),
        id => u32::try_from(id).map(Some).map_err(|_| malformed()),
    }
}
