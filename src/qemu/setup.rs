//! What QEMU takes over QMP only, between its start and the guest's: passwords, limits, intervals.

use serde_json::{Map, Value, json};

use crate::conf::devices::{BalloonModel, Disk, DiskBus, Graphics, GraphicsAuth, IoTune, MemBalloon, Vnc};
use crate::conf::domain::{Domain, LifecycleAction};

/// A command's name and arguments.
pub type Setup = (&'static str, Value);

/// The commands that a started QEMU needs before its guest runs, in order. `now_s` is in seconds since 1970.
pub fn commands(domain: &Domain, now_s: i64) -> Vec<Setup> {
    let devices = &domain.devices;
    let mut list = Vec::new();
    for graphics in &devices.graphics {
        let (protocol, auth) = match graphics {
            Graphics::Vnc(vnc) => ("vnc", vnc.auth.as_deref()),
            Graphics::Spice(spice) => ("spice", spice.auth.as_deref()),
            _ => continue,
        };
        if let Some(auth) = auth {
            list.extend(password(protocol, auth, now_s));
        }
    }
    for disk in &devices.disks {
        if let (false, Some(id)) = (*disk.iotune == IoTune::default(), qom_id(disk)) {
            list.push(("block_set_io_throttle", throttle(id, &disk.iotune)));
        }
    }
    for balloon in devices.memballoons.iter().filter(|it| it.model != BalloonModel::None) {
        if balloon.stats_period_s > 0 {
            list.extend(balloon_period(balloon));
        }
    }
    if domain.on_reboot == LifecycleAction::Destroy {
        list.push(("set-action", json!({ "reboot": "shutdown" })));
    }
    list
}

/// How often the balloon's driver is to tell of the guest's memory.
pub fn balloon_period(balloon: &MemBalloon) -> Option<Setup> {
    let path = format!("/machine/peripheral/{}", balloon.info.alias.as_deref()?);
    let (property, value) = ("guest-stats-polling-interval", balloon.stats_period_s);
    Some(("qom-set", json!({ "path": path, "property": property, "value": value })))
}

/// Who may look at a screen.
pub fn vnc_password(vnc: &Vnc, now_s: i64) -> Vec<Setup> {
    vnc.auth.as_deref().map(|auth| password("vnc", auth, now_s)).unwrap_or_default()
}

fn password(protocol: &str, auth: &GraphicsAuth, now_s: i64) -> Vec<Setup> {
    let mut arguments = Map::new();
    arguments.insert("protocol".to_owned(), protocol.into());
    arguments.insert("password".to_owned(), (&*auth.passwd).into());
    if let Some(connected) = auth.connected {
        arguments.insert("connected".to_owned(), connected.as_str().into());
    }
    let password = ("set_password", Value::Object(arguments));
    let time = match auth.valid_to.map(|moment| moment.unix_s()) {
        // Nobody logs in without a password.
        _ if auth.passwd.is_empty() => "now".to_owned(),
        Some(moment) if moment <= now_s => "now".to_owned(),
        Some(moment) => moment.to_string(),
        None => "never".to_owned(),
    };
    vec![password, ("expire_password", json!({ "protocol": protocol, "time": time }))]
}

/// By which QEMU knows a disk's device.
pub fn qom_id(disk: &Disk) -> Option<String> {
    let alias = disk.info.alias.as_deref()?;
    match disk.target.bus? {
        DiskBus::Fdc | DiskBus::Ide | DiskBus::Sata | DiskBus::Scsi => Some(alias.to_owned()),
        DiskBus::Virtio => Some(format!("/machine/peripheral/{alias}/virtio-backend")),
        DiskBus::Usb => Some(format!("/machine/peripheral/{alias}/{alias}.0/legacy[0]")),
        DiskBus::Xen | DiskBus::Uml | DiskBus::Sd => None,
    }
}

/// The pace of a drive, as QEMU takes it.
pub fn throttle(id: String, limits: &IoTune) -> Value {
    let mut arguments = Map::new();
    arguments.insert("id".to_owned(), id.into());
    let plain = [
        ("bps", limits.total_bytes_sec),
        ("bps_rd", limits.read_bytes_sec),
        ("bps_wr", limits.write_bytes_sec),
        ("iops", limits.total_iops_sec),
        ("iops_rd", limits.read_iops_sec),
        ("iops_wr", limits.write_iops_sec),
        ("bps_max", limits.total_bytes_sec_max),
        ("bps_rd_max", limits.read_bytes_sec_max),
        ("bps_wr_max", limits.write_bytes_sec_max),
        ("iops_max", limits.total_iops_sec_max),
        ("iops_rd_max", limits.read_iops_sec_max),
        ("iops_wr_max", limits.write_iops_sec_max),
        ("iops_size", limits.size_iops_sec),
    ];
    for (name, value) in plain {
        arguments.insert(name.to_owned(), value.unwrap_or(0).into());
    }
    if let Some(group) = &limits.group_name {
        arguments.insert("group".to_owned(), (&**group).into());
    }
    let lengths = [
        ("bps_max_length", limits.total_bytes_sec_max_length),
        ("bps_rd_max_length", limits.read_bytes_sec_max_length),
        ("bps_wr_max_length", limits.write_bytes_sec_max_length),
        ("iops_max_length", limits.total_iops_sec_max_length),
        ("iops_rd_max_length", limits.read_iops_sec_max_length),
        ("iops_wr_max_length", limits.write_iops_sec_max_length),
    ];
    for (name, value) in lengths {
        if let Some(value) = value.filter(|value| *value > 0) {
            arguments.insert(name.to_owned(), value.into());
        }
    }
    Value::Object(arguments)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conf::xml::Form;

    #[test]
    fn passwords_limits_and_intervals_go_over_qmp() {
        let text = "<domain type='qemu'><name>x</name><os><type>hvm</type></os><devices>\
            <disk><target dev='vda' bus='virtio'/><alias name='virtio-disk0'/>\
            <iotune><total_iops_sec>7</total_iops_sec><group_name>g</group_name></iotune></disk>\
            <graphics type='vnc' passwd='s' passwdValidTo='2030-01-02T03:04:05'/>\
            <graphics type='spice' passwd='t' connected='disconnect'/>\
            <memballoon model='virtio'><stats period='5'/><alias name='balloon0'/></memballoon>\
            </devices></domain>";
        let domain = Domain::parse(text, Form::LIVE).unwrap();
        let sent = commands(&domain, 0);
        assert_eq!(sent[0], ("set_password", json!({ "protocol": "vnc", "password": "s" })));
        assert_eq!(sent[1].1["time"], "1893553445");
        assert_eq!(commands(&domain, 1_893_553_445)[1].1["time"], "now");
        let disconnects = json!({ "protocol": "spice", "password": "t", "connected": "disconnect" });
        assert_eq!(sent[2], ("set_password", disconnects));
        assert_eq!(sent[3], ("expire_password", json!({ "protocol": "spice", "time": "never" })));
        assert_eq!(sent[4].1["id"], "/machine/peripheral/virtio-disk0/virtio-backend");
        assert_eq!(
            (&sent[4].1["iops"], &sent[4].1["bps"], &sent[4].1["group"]),
            (&json!(7), &json!(0), &json!("g"))
        );
        assert_eq!(sent[5].1["value"], 5);
        assert_eq!(sent.len(), 6);
    }
}
