//! What the kernel counts for network devices.

use std::collections::HashMap;

use crate::conf::devices::{Interface, InterfaceKind};

/// `virDomainInterfaceStats`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LinkStats {
    pub receive: Direction,
    pub transmit: Direction,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Direction {
    pub bytes: u64,
    pub packets: u64,
    pub errors: u64,
    pub dropped: u64,
}

/// All network devices of the host, read at once.
#[derive(Debug, Default)]
pub struct Links(HashMap<String, LinkStats>);

impl Links {
    pub fn read() -> Self {
        Self::parse(&std::fs::read_to_string("/proc/net/dev").unwrap_or_default())
    }

    fn parse(text: &str) -> Self {
        let link = |line: &str| {
            let (name, numbers) = line.rsplit_once(':')?;
            let numbers: Vec<u64> = numbers.split_ascii_whitespace().map_while(|n| n.parse().ok()).collect();
            let direction = |at: usize| match numbers.get(at..at + 4) {
                Some(&[bytes, packets, errors, dropped]) => {
                    Some(Direction { bytes, packets, errors, dropped })
                }
                _ => None,
            };
            let stats = LinkStats { receive: direction(0)?, transmit: direction(8)? };
            Some((name.trim_start().to_owned(), stats))
        };
        Self(text.lines().filter_map(link).collect())
    }

    /// What a guest's interface received and sent, seen from the guest.
    pub fn of(&self, interface: &Interface) -> Option<LinkStats> {
        let host = *self.0.get(interface.target.dev.as_deref()?)?;
        // A macvtap is on the guest's side of the wire; a tap is on the other.
        match interface.kind {
            InterfaceKind::Direct => Some(host),
            _ => Some(LinkStats { receive: host.transmit, transmit: host.receive }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conf::xml::{Form, read_document};

    const TABLE: &str = "Inter-|   Receive                                                |  Transmit\n \
        face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed\n\
        \x20   lo: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\n vnet0: 10 20 30 40 0 0 0 0 50 60 70 80 0 0 0 0\n";

    #[test]
    fn what_the_host_sends_a_guest_receives() {
        let links = Links::parse(TABLE);
        let stats = |kind: &str, dev: &str| {
            let text = format!(
                "<interface type='{kind}'><source dev='eth0' mode='vepa'/><target dev='{dev}' managed='no'/></interface>"
            );
            links.of(&read_document(&text, "interface", Form::LIVE).unwrap())
        };
        let tap = stats("ethernet", "vnet0").unwrap();
        assert_eq!(tap.receive, Direction { bytes: 50, packets: 60, errors: 70, dropped: 80 });
        assert_eq!(tap.transmit.bytes, 10);
        assert_eq!(stats("direct", "vnet0").unwrap().receive.bytes, 10);
        assert_eq!(stats("ethernet", "net0"), None);
    }
}
