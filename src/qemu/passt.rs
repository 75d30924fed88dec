//! passt, which gives a guest the host's network without rights of its own: its arguments, and that it is ready.

use std::fs;
use std::path::Path;
use std::time::Duration;

use crate::conf::devices::{Interface, InterfaceKind, InterfaceSource, Raw};
use crate::util::process::Process;

/// What passt is told for an interface.
pub(super) fn arguments(interface: &Interface, socket: &Path) -> Vec<String> {
    let mut arguments = Vec::new();
    let mut say = |words: &[&str]| arguments.extend(words.iter().map(|word| (*word).to_owned()));
    if interface.kind == InterfaceKind::Vhostuser {
        say(&["--vhost-user"]);
    }
    say(&["--one-off", "--foreground", "--socket", &socket.display().to_string()]);
    if let Some(mtu) = interface.mtu {
        say(&["--mtu", &mtu.to_string()]);
    }
    if let InterfaceSource::Passt(device) = &interface.source {
        say(&["--interface", device]);
    }
    if let Some(log) = interface.backend.log_file.as_deref() {
        say(&["--log-file", log]);
    }
    for ip in &interface.ips {
        say(&["--address", &ip.address.to_string()]);
        if let Some(prefix) = ip.prefix.filter(|prefix| *prefix > 0 && ip.address.is_ipv4()) {
            say(&["--netmask", &prefix.to_string()]);
        }
    }
    for forward in &interface.port_forwards {
        let is_tcp = forward.attribute("proto") == Some("tcp");
        say(&[if is_tcp { "--tcp-ports" } else { "--udp-ports" }, &ports(forward)]);
    }
    arguments
}

/// `ADDRESS%DEVICE/PORTS`
fn ports(forward: &Raw) -> String {
    let address = forward.attribute("address").unwrap_or_default();
    let device = forward.attribute("dev").map(|device| format!("%{device}")).unwrap_or_default();
    let slash = if address.is_empty() && device.is_empty() { "" } else { "/" };
    let ranges: Vec<String> = forward.children_named("range").map(range).collect();
    let ranges = if ranges.is_empty() { "all".to_owned() } else { ranges.join(",") };
    format!("{address}{device}{slash}{ranges}")
}

fn range(range: &Raw) -> String {
    let number = |name: &str| range.attribute(name).and_then(|text| text.parse::<u32>().ok());
    let except = if range.attribute("exclude") == Some("yes") { "~" } else { "" };
    let (start, end) = (number("start").unwrap_or(0), number("end"));
    let mut text = format!("{except}{start}");
    if let Some(end) = end {
        text.push_str(&format!("-{end}"));
    }
    if let Some(to) = number("to") {
        text.push_str(&format!(":{to}"));
        if let Some(end) = end {
            text.push_str(&format!("-{}", end.saturating_add(to).saturating_sub(start)));
        }
    }
    text
}

/// Waits until somebody listens at `socket`; false if its process ends before, or takes too long.
pub(super) async fn listens(process: &Process, socket: &Path) -> bool {
    const LIMIT: Duration = Duration::from_secs(10);
    const PAUSE: Duration = Duration::from_millis(5);
    let ready = async {
        while !is_listening(socket) {
            tokio::time::sleep(PAUSE).await;
        }
    };
    tokio::select! {
        ready = tokio::time::timeout(LIMIT, ready) => ready.is_ok(),
        _ = process.exited() => false,
    }
}

/// That the file is there says nothing yet: it comes before the first connection is accepted.
fn is_listening(socket: &Path) -> bool {
    /// `__SO_ACCEPTCON`
    const ACCEPTS: &str = "00010000";
    let (Ok(sockets), Some(path)) = (fs::read_to_string("/proc/net/unix"), socket.to_str()) else {
        return false;
    };
    let mut lines = sockets.lines().map(|line| line.split_ascii_whitespace().collect::<Vec<_>>());
    lines.any(|words| words.get(3) == Some(&ACCEPTS) && words.last() == Some(&path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conf::xml::{Form, read_document};

    #[test]
    fn passt_is_told_what_the_interface_says() {
        let text = "<interface type='user'><source dev='eth7'/><ip family='ipv4' address='172.17.2.1' prefix='24'/>\
                    <ip family='ipv6' address='2001:db8::2'/><mtu size='1400'/>\
                    <portForward proto='tcp' address='10.0.0.1' dev='eth0'><range start='80'/>\
                    <range start='2000' end='2010' to='3000'/><range start='2005' exclude='yes'/></portForward>\
                    <portForward proto='udp'/><backend type='passt' logFile='/log'/></interface>";
        let interface: Interface = read_document(text, "interface", Form::INACTIVE).unwrap();
        assert_eq!(
            arguments(&interface, Path::new("/s")).join(" "),
            "--one-off --foreground --socket /s --mtu 1400 --interface eth7 --log-file /log --address 172.17.2.1 \
             --netmask 24 --address 2001:db8::2 --tcp-ports 10.0.0.1%eth0/80,2000-2010:3000-3010,~2005 \
             --udp-ports all"
        );
    }

    #[test]
    fn a_socket_is_ready_when_it_accepts() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        assert!(!is_listening(&path));
        let _listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        assert!(is_listening(&path));
    }
}
