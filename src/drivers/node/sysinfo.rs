//! What the host's firmware says of the host, as the kernel passes it on.

use super::files::HostFiles;
use crate::conf::xml::{Form, Writer};
use crate::error::{Error, Result};

/// A block of libvirt's text, and from which of the kernel's files its entries come.
type Table = (&'static str, &'static [(&'static str, &'static str)]);

const TABLES: &[Table] = &[
    (
        "bios",
        &[
            ("vendor", "bios_vendor"),
            ("version", "bios_version"),
            ("date", "bios_date"),
            ("release", "bios_release"),
        ],
    ),
    (
        "system",
        &[
            ("manufacturer", "sys_vendor"),
            ("product", "product_name"),
            ("version", "product_version"),
            ("serial", "product_serial"),
            ("uuid", "product_uuid"),
            ("sku", "product_sku"),
            ("family", "product_family"),
        ],
    ),
    (
        "baseBoard",
        &[
            ("manufacturer", "board_vendor"),
            ("product", "board_name"),
            ("version", "board_version"),
            ("serial", "board_serial"),
            ("asset", "board_asset_tag"),
        ],
    ),
    (
        "chassis",
        &[
            ("manufacturer", "chassis_vendor"),
            ("version", "chassis_version"),
            ("serial", "chassis_serial"),
            ("asset", "chassis_asset_tag"),
        ],
    ),
];

/// `<sysinfo>` of the host. A host without such firmware is refused.
pub(super) fn xml(files: &HostFiles) -> Result<String> {
    let mut known = Vec::new();
    for (table, entries) in TABLES {
        let mut found = Vec::new();
        for (name, file) in *entries {
            let text = files.text_if_there(&format!("/sys/class/dmi/id/{file}"))?;
            let text = text.map(|text| text.trim().to_owned()).filter(|text| !text.is_empty());
            found.extend(text.map(|text| (*name, text)));
        }
        if !found.is_empty() {
            known.push((*table, found));
        }
    }
    if known.is_empty() {
        return Err(Error::config_unsupported("Host SMBIOS information is not available"));
    }
    let mut out = Writer::new(Form::INACTIVE);
    out.element("sysinfo", |out| {
        out.attribute_str("type", "smbios");
        for (table, entries) in &known {
            out.group(table, |out| {
                for (name, text) in entries {
                    out.element("entry", |out| {
                        out.attribute_str("name", name);
                        out.body(text);
                    });
                }
            });
        }
    });
    Ok(out.finish())
}
