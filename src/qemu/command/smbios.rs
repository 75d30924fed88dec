//! What the firmware tells the guest: SMBIOS tables and named blobs.

use super::line::{Line, escape_comma};
use super::{Guest, Result, unsupported};
use crate::conf::domain::{SmbiosEntry, SmbiosMode, Sysinfo};

pub(super) fn build(guest: &Guest<'_>, line: &mut Line<'_>) -> Result<()> {
    match guest.domain.os.smbios {
        None | Some(SmbiosMode::Emulate) => return Ok(()),
        Some(SmbiosMode::Host) => return unsupported("Host SMBIOS information is not available"),
        Some(SmbiosMode::Sysinfo) => {}
    }
    let smbios = guest.domain.sysinfo.iter().find_map(|sysinfo| match sysinfo {
        Sysinfo::Smbios(smbios) => Some(smbios),
        Sysinfo::FwCfg(_) => None,
    });
    let Some(smbios) = smbios else {
        return unsupported(format!("Domain '{}' sysinfo are not available", guest.domain.name));
    };
    if !smbios.bios.is_empty() {
        line.option("-smbios", table(0, &smbios.bios));
    }
    if !smbios.system.is_empty() {
        line.option("-smbios", table(1, &smbios.system));
    }
    if smbios.base_boards.len() > 1 {
        return unsupported("qemu does not support more than one entry to Type 2 in SMBIOS table");
    }
    for board in &smbios.base_boards {
        line.option("-smbios", table(2, board));
    }
    if !smbios.chassis.is_empty() {
        let mut text = table(3, &smbios.chassis);
        // Once there is a chassis, it has a manufacturer.
        if !smbios.chassis.iter().any(|entry| entry.name == "manufacturer") {
            text = text.replacen("type=3", "type=3,manufacturer=", 1);
        }
        line.option("-smbios", text);
    }
    if !smbios.oem_strings.is_empty() {
        let values: String =
            smbios.oem_strings.iter().map(|text| format!(",value={}", escape_comma(text))).collect();
        line.option("-smbios", format!("type=11{values}"));
    }
    Ok(())
}

fn table(number: u8, entries: &[SmbiosEntry]) -> String {
    let values: String =
        entries.iter().map(|entry| format!(",{}={}", entry.name, escape_comma(&entry.value))).collect();
    format!("type={number}{values}")
}

pub(super) fn firmware_config(guest: &Guest<'_>, line: &mut Line<'_>) -> Result<()> {
    for sysinfo in &guest.domain.sysinfo {
        let Sysinfo::FwCfg(config) = sysinfo else { continue };
        for entry in &config.entries {
            let content = match (&entry.value, &entry.file) {
                (Some(value), _) => format!(",string={}", escape_comma(value)),
                (None, Some(file)) => format!(",file={}", escape_comma(file)),
                (None, None) => continue,
            };
            line.option("-fw_cfg", format!("name={}{content}", entry.name));
        }
    }
    Ok(())
}
