//! The machine: board, memory, clock, what it does at its end.

use super::draft::Draft;
use super::node::Node;
use super::options::{Options, bytes};

/// What a machine has that is told nothing, in MiB.
const DEFAULT_MEMORY_MIB: u64 = 128;

/// How the guest is executed, and on what.
pub(super) fn machine(draft: &mut Draft<'_>) {
    let mut accelerator = draft.has("enable-kvm").then(|| "kvm".to_owned());
    let mut has_acpi = !draft.has("no-acpi") && draft.machine != "isapc" && draft.machine != "none";
    let mut usb = draft.has("usb");
    for name in ["machine", "M"] {
        draft.each(name, |draft, value| {
            let mut options = Options::parse(value, Some("type"));
            options.take("type");
            if let Some(named) = options.take("accel") {
                accelerator = named.split(':').next().map(str::to_owned);
            }
            if let Some(acpi) = options.take_switch("acpi") {
                has_acpi = acpi == "on";
            }
            usb |= options.take_switch("usb") == Some("on");
            board_options(draft, &mut options);
            draft.pass_rest("machine", &options);
            Some(())
        });
    }
    draft.each("accel", |draft, value| {
        let mut options = Options::parse(value, Some("accel"));
        let name = options.take("accel")?;
        // QEMU tries them in turn.
        accelerator.get_or_insert_with(|| name.clone());
        if let (Some(size), "kvm") = (options.take("dirty-ring-size"), name.as_str()) {
            *draft.feature("kvm").child_mut("dirty-ring") =
                Node::new("dirty-ring").set("state", "on").set("size", size);
        }
        if let (Some(size), "tcg") = (options.take("tb-size"), name.as_str()) {
            draft.feature("tcg").push(Node::with_text("tb-cache", size).set("unit", "MiB"));
        }
        draft.pass_rest("accel", &options);
        Some(())
    });
    let is_kvm = draft.surroundings.kvm.unwrap_or(accelerator.as_deref() == Some("kvm"));
    draft.domain.put("type", if is_kvm { "kvm" } else { "qemu" });
    if has_acpi {
        draft.feature("acpi");
    }
    usb_of_the_board(draft, usb);
    draft.take_all(&["enable-kvm", "no-acpi", "usb"]);
}

fn board_options(draft: &mut Draft<'_>, options: &mut Options) {
    options.skip("dump-guest-core", "off");
    if let Some(state) = options.take_switch("dump-guest-core") {
        draft.domain.child_mut("memory").put("dumpCore", state);
    }
    options.skip("mem-merge", "on");
    if options.take_switch("mem-merge").is_some() {
        draft.domain.child_mut("memoryBacking").child_mut("nosharepages");
    }
    for (option, feature) in [("vmport", "vmport"), ("smm", "smm"), ("i8042", "ps2")] {
        if let Some(state) = options.take_switch(option) {
            draft.feature(feature).put("state", state);
        }
    }
    for (value, driver) in [("split", "qemu"), ("on", "kvm")] {
        if options.get("kernel_irqchip") == Some(value) {
            options.take("kernel_irqchip");
            draft.feature("ioapic").put("driver", driver);
        }
    }
    if let Some(state) = options.take_yes_no("hpet") {
        draft.timer(Node::new("timer").set("name", "hpet").set("present", state));
    }
    options.skip("graphics", "on");
    if options.take_switch("graphics").is_some() {
        draft.domain.child_mut("os").child_mut("bios").put("useserial", "yes");
    }
    let speaker =
        options.get("pcspk-audiodev").and_then(|id| draft.audios.iter().find(|(name, _)| name == id));
    if let Some((_, number)) = speaker {
        let sound = Node::new("sound").set("model", "pcspk").with(Node::new("audio").set("id", number));
        draft.devices.push(sound);
        options.take("pcspk-audiodev");
    }
    if let Some(id) = options.get("memory-backend").map(str::to_owned)
        && memory_backend(draft, &id).is_some()
    {
        options.take("memory-backend");
    }
}

/// The pages behind the whole memory.
fn memory_backend(draft: &mut Draft<'_>, id: &str) -> Option<()> {
    let (at, mut object) = draft.backend("object", "id", id)?;
    object.take("id");
    let kind = object.take("qom-type")?;
    object.take("size");
    object.take("x-use-canonical-path-for-ramblock-id");
    let share = object.take_switch("share");
    let prealloc = object.take_switch("prealloc") == Some("on");
    let threads = object.take("prealloc-threads");
    let source = match kind.as_str() {
        "memory-backend-ram" => None,
        "memory-backend-memfd" => Some("memfd"),
        _ => return None,
    };
    object.done()?;
    if kind == "memory-backend-ram" && (share.is_some() || prealloc) {
        return None;
    }
    let nodes = [
        source.map(|source| Node::new("source").set("type", source)),
        share.map(|share| Node::new("access").set("mode", if share == "on" { "shared" } else { "private" })),
        prealloc.then(|| Node::new("allocation").set("mode", "immediate").maybe("threads", threads)),
    ];
    let nodes: Vec<Node> = nodes.into_iter().flatten().collect();
    if !nodes.is_empty() {
        let backing = draft.domain.child_mut("memoryBacking");
        nodes.into_iter().for_each(|node| backing.push(node));
    }
    draft.take(at);
    Some(())
}

/// The USB controllers that QEMU puts on the board when it is told to.
fn usb_of_the_board(draft: &mut Draft<'_>, wanted: bool) {
    if !wanted && !draft.has("usbdevice") {
        return;
    }
    let models: &[(&str, Option<u32>)] = match draft.is_q35() {
        true => {
            &[("ich9-ehci1", None), ("ich9-uhci1", Some(0)), ("ich9-uhci2", Some(2)), ("ich9-uhci3", Some(4))]
        }
        false => &[("piix3-uhci", None)],
    };
    draft.add_controller("usb", "usb-bus", models.first().map_or("", |(model, _)| model));
    for (model, start) in models {
        let node = Node::new("controller").set("type", "usb").set("index", 0).set("model", model);
        draft.devices.push(node.with_any(start.map(|start| Node::new("master").set("startport", start))));
    }
}

/// `-usbdevice`
pub(super) fn usb_devices(draft: &mut Draft<'_>) {
    draft.each("usbdevice", |draft, value| {
        let kind = match value {
            "tablet" | "mouse" | "keyboard" => value,
            _ => return None,
        };
        draft.devices.push(Node::new("input").set("type", kind).set("bus", "usb"));
        Some(())
    });
}

/// `-m` and `-overcommit`
pub(super) fn memory(draft: &mut Draft<'_>) {
    let mut total = DEFAULT_MEMORY_MIB << 10;
    draft.each("m", |draft, value| {
        let mut options = Options::parse(value, Some("size"));
        let mebibyte = 1 << 20;
        let size = options.take("size").map_or(Some(total << 10), |size| bytes(&size, mebibyte))?;
        let max = options.take("maxmem").map_or(Some(None), |size| bytes(&size, mebibyte).map(Some))?;
        let slots = options.take("slots");
        options.done()?;
        total = size >> 10;
        if let Some(max) = max {
            let node = Node::with_text("maxMemory", (max >> 10).to_string()).maybe("slots", slots);
            *draft.domain.child_mut("maxMemory") = node.set("unit", "KiB");
        }
        Some(())
    });
    let dump =
        draft.domain.child("memory").and_then(|memory| memory.attribute("dumpCore")).map(str::to_owned);
    *draft.domain.child_mut("memory") =
        Node::with_text("memory", total.to_string()).set("unit", "KiB").maybe("dumpCore", dump);
    draft.each("overcommit", |draft, value| {
        let mut options = Options::parse(value, None);
        options.skip("mem-lock", "off");
        if options.take_switch("mem-lock") == Some("on") {
            draft.domain.child_mut("memoryBacking").child_mut("locked");
        }
        options.done()
    });
}

/// `-object iothread`
pub(super) fn iothreads(draft: &mut Draft<'_>) {
    let (mut threads, mut count) = (Vec::new(), 0);
    draft.each("object", |draft, value| {
        let mut options = Options::parse(value, Some("qom-type"));
        (options.take("qom-type")? == "iothread").then_some(())?;
        let number = draft.iothread(&options.take("id")?)?;
        let node = Node::new("iothread")
            .set("id", number)
            .maybe("thread_pool_min", options.take("thread-pool-min"))
            .maybe("thread_pool_max", options.take("thread-pool-max"));
        let poll = Node::new("poll")
            .maybe("max", options.take("poll-max-ns"))
            .maybe("grow", options.take("poll-grow"))
            .maybe("shrink", options.take("poll-shrink"));
        options.done()?;
        threads.push(node.with_any(poll.unless_empty()));
        count += 1;
        Some(())
    });
    if count > 0 {
        *draft.domain.child_mut("iothreads") = Node::with_text("iothreads", count.to_string());
        *draft.domain.child_mut("iothreadids") = Node::new("iothreadids").with_any(threads);
    }
}

/// `-rtc`
pub(super) fn clock(draft: &mut Draft<'_>) {
    draft.domain.child_mut("clock").put("offset", "utc");
    draft.each("rtc", |draft, value| {
        let mut options = Options::parse(value, None);
        let track = match options.take("clock").as_deref() {
            None => None,
            Some("vm") => Some("guest"),
            Some("host") => Some("wall"),
            Some("rt") => Some("realtime"),
            Some(_) => return None,
        };
        options.skip("driftfix", "none");
        let policy = match options.take("driftfix").as_deref() {
            None => None,
            Some("slew") => Some("catchup"),
            Some(_) => return None,
        };
        let base = options.take("base").unwrap_or_else(|| "utc".to_owned());
        options.done()?;
        let start = match base.as_str() {
            "utc" | "localtime" => None,
            date => Some(seconds(date)?),
        };
        let clock = draft.domain.child_mut("clock");
        clock.put("offset", if start.is_some() { "absolute" } else { &base });
        start.into_iter().for_each(|start| clock.put("start", start));
        let timer = Node::new("timer").maybe("tickpolicy", policy).maybe("track", track);
        if let Some(timer) = timer.unless_empty() {
            draft.timer(timer.set("name", "rtc"));
        }
        Some(())
    });
}

/// A date and a time of day as seconds since 1970.
fn seconds(text: &str) -> Option<i64> {
    let (date, time) = text.split_once('T').unwrap_or((text, "00:00:00"));
    let numbers = |text: &str, separator| -> Option<[i64; 3]> {
        let numbers: Vec<i64> = text.split(separator).map(|part| part.parse().ok()).collect::<Option<_>>()?;
        numbers.try_into().ok()
    };
    let ([year, month, day], [hour, minute, second]) = (numbers(date, '-')?, numbers(time, ':')?);
    let is_date = (1970..=9999).contains(&year) && (1..=12).contains(&month) && (1..=31).contains(&day);
    let is_time = (0..24).contains(&hour) && (0..60).contains(&minute) && (0..=60).contains(&second);
    (is_date && is_time).then_some(())?;
    // Years that begin in March have their leap day at the end.
    let year = if month <= 2 { year - 1 } else { year };
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let days = year * 365 + year / 4 - year / 100 + year / 400 + day_of_year - 719_468;
    Some(days * 86_400 + hour * 3600 + minute * 60 + second)
}

/// An option of a device that is part of the board.
pub(super) fn global(draft: &mut Draft<'_>, text: &str) -> Option<()> {
    let (name, value) = text.split_once('=')?;
    match (name, value) {
        ("kvm-pit.lost_tick_policy", "delay" | "discard") => {
            draft.timer(Node::new("timer").set("name", "pit").set("tickpolicy", value));
        }
        ("ICH9-LPC.noreboot", "off" | "false") => {
            draft.devices.push(Node::new("watchdog").set("model", "itco"));
        }
        ("PIIX4_PM.disable_s3" | "ICH9-LPC.disable_s3", "0" | "1") => {
            draft.domain.child_mut("pm").child_mut("suspend-to-mem").put("enabled", yes_if(value == "0"));
        }
        ("PIIX4_PM.disable_s4" | "ICH9-LPC.disable_s4", "0" | "1") => {
            draft.domain.child_mut("pm").child_mut("suspend-to-disk").put("enabled", yes_if(value == "0"));
        }
        ("mch.extended-tseg-mbytes", size) => {
            draft.feature("smm").push(Node::with_text("tseg", size).set("unit", "MiB"));
        }
        ("isa-fdc.bootindexA", order) => draft.floppy_boot.push(("fda", order.to_owned())),
        ("isa-fdc.bootindexB", order) => draft.floppy_boot.push(("fdb", order.to_owned())),
        _ => return None,
    }
    Some(())
}

fn yes_if(condition: bool) -> &'static str {
    if condition { "yes" } else { "no" }
}

/// What happens when the guest powers off, reboots, or its watchdog barks.
pub(super) fn endings(draft: &mut Draft<'_>) {
    if draft.has("no-reboot") {
        *draft.domain.child_mut("on_reboot") = Node::with_text("on_reboot", "destroy");
    }
    draft.take_all(&["no-reboot"]);
    draft.each("watchdog-action", |draft, action| {
        let known = ["reset", "shutdown", "poweroff", "inject-nmi", "pause", "none"];
        let watchdogs = draft.devices.iter_mut().filter(|node| node.is("watchdog"));
        let mut any = false;
        for watchdog in watchdogs.filter(|_| known.contains(&action)) {
            watchdog.put("action", action);
            any = true;
        }
        any.then_some(())
    });
}
