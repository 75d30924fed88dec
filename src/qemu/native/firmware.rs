//! What the guest boots, and what its firmware tells it.

use super::draft::Draft;
use super::node::Node;
use super::options::Options;

/// Files that are named by an option of their own, and their element in `<os>`.
const FILES: &[(&str, &str)] =
    &[("kernel", "kernel"), ("initrd", "initrd"), ("shim", "shim"), ("dtb", "dtb")];

pub(super) fn boot(draft: &mut Draft<'_>) {
    draft.each("bios", |draft, value| {
        let path = draft.path(value)?;
        draft.domain.child_mut("os").push(Node::with_text("loader", path).set("type", "rom"));
        Some(())
    });
    for (option, element) in FILES {
        draft.each(option, |draft, value| {
            // Several files at once are one argument to QEMU.
            let path = if value.contains(',') { return None } else { draft.path(value)? };
            *draft.domain.child_mut("os").child_mut(element) = Node::with_text(element, path);
            Some(())
        });
    }
    draft.each("append", |draft, value| {
        *draft.domain.child_mut("os").child_mut("cmdline") = Node::with_text("cmdline", value);
        Some(())
    });
    let is_ordered = draft.has_boot_order();
    draft.each("boot", |draft, value| {
        let mut options = Options::parse(value, Some("order"));
        if !is_ordered && let Some(order) = options.get("order").map(str::to_owned) {
            let devices: Option<Vec<&str>> = order.chars().map(boot_device).collect();
            for device in devices.into_iter().flatten() {
                draft.domain.child_mut("os").push(Node::new("boot").set("dev", device));
                options.take("order");
            }
        }
        options.skip("strict", "on");
        let menu = options.take_yes_no("menu");
        let timeout = menu.and_then(|_| options.take("splash-time"));
        let node = Node::new("bootmenu").maybe("enable", menu).maybe("timeout", timeout);
        let os = draft.domain.child_mut("os");
        node.unless_empty().into_iter().for_each(|node| os.push(node));
        if let Some(timeout) = options.take("reboot-timeout") {
            os.child_mut("bios").put("rebootTimeout", timeout);
        }
        draft.pass_rest("boot", &options);
        Some(())
    });
    draft.each("acpitable", |draft, value| {
        let mut options = Options::parse(value, None);
        let kind = match options.take("sig").as_deref() {
            None => "raw",
            Some("SLIC") => "slic",
            Some("MSDM") => "msdm",
            Some(_) => return None,
        };
        let path = draft.path(&options.take("file")?)?;
        options.done()?;
        let table = Node::with_text("table", path).set("type", kind);
        draft.domain.child_mut("os").child_mut("acpi").push(table);
        Some(())
    });
}

fn boot_device(letter: char) -> Option<&'static str> {
    match letter {
        'a' => Some("fd"),
        'c' => Some("hd"),
        'd' => Some("cdrom"),
        'n' => Some("network"),
        _ => None,
    }
}

/// Entries that each table may have.
const TABLES: &[(&str, &str, &[&str])] = &[
    ("0", "bios", &["vendor", "version", "date", "release"]),
    ("1", "system", &["manufacturer", "product", "version", "serial", "uuid", "sku", "family"]),
    ("2", "baseBoard", &["manufacturer", "product", "version", "serial", "asset", "location"]),
    ("3", "chassis", &["manufacturer", "version", "serial", "asset", "sku"]),
];

/// `-smbios` and `-fw_cfg`
pub(super) fn tables(draft: &mut Draft<'_>) {
    let mut smbios = Node::new("sysinfo");
    draft.each("smbios", |_, value| {
        let mut options = Options::parse(value, None);
        let number = options.take("type")?;
        if number == "11" {
            let values = options.take_all("value");
            options.done()?;
            let entries = values.into_iter().map(|value| Node::with_text("entry", value));
            smbios.push(Node::new("oemStrings").with_any(entries));
            return Some(());
        }
        let (_, element, known) = TABLES.iter().find(|(table, ..)| *table == number)?;
        let mut table = Node::new(element);
        for name in *known {
            // An empty manufacturer is what a chassis without one has.
            if let Some(value) = options.take(name).filter(|value| !value.is_empty()) {
                table.push(Node::with_text("entry", value).set("name", name));
            }
        }
        options.done()?;
        smbios.push(table);
        Some(())
    });
    if let Some(smbios) = smbios.unless_empty() {
        draft.domain.push(smbios.set("type", "smbios"));
        draft.domain.child_mut("os").child_mut("smbios").put("mode", "sysinfo");
    }
    let mut config = Node::new("sysinfo");
    draft.each("fw_cfg", |draft, value| {
        let mut options = Options::parse(value, Some("name"));
        let name = options.take("name").filter(|name| name.starts_with("opt/"))?;
        let entry = match (options.take("string"), options.take("file")) {
            (Some(text), None) => Node::with_text("entry", text),
            (None, Some(file)) => Node::new("entry").set("file", draft.path(&file)?),
            _ => return None,
        };
        options.done()?;
        config.push(entry.set("name", name));
        Some(())
    });
    draft.domain.extend(config.unless_empty().map(|config| config.set("type", "fwcfg")));
}
