//! An interface's share of the network, kept by the host's kernel: its `tc` is told what holds.
//!
//! ```text
//!  to the guest   ─► qdisc 1: (htb) ─► class 1:1 with rate, peak and burst ─► qdisc 2: (sfq)
//!  from the guest ─► qdisc ingress ──► a policeman who drops what is too much
//! ```

use std::time::Duration;

use thiserror::Error;

use super::helpers;
use crate::conf::devices::{Bandwidth, Interface, InterfaceKind, Rate};
use crate::conf::domain::Domain;
use crate::util::process::{Command, Exit, ProcessError};

/// Each talks to the kernel once.
const LIMIT: Duration = Duration::from_secs(30);
const MAX_OUTPUT: usize = 64 * 1024;

/// Why an interface does not get its share. The texts are libvirt's.
#[derive(Debug, Error)]
pub enum TrafficError {
    #[error("Cannot find 'tc' in path: No such file or directory")]
    Missing,
    #[error("Child process ({command}) unexpected {exit}: {words}")]
    Failed { command: String, exit: String, words: String },
    #[error(transparent)]
    Process(#[from] ProcessError),
}

/// Whether the host has a device for interfaces of a kind whose traffic it can limit.
pub fn limits(kind: InterfaceKind) -> bool {
    use InterfaceKind::{Bridge, Direct, Ethernet, Network};
    matches!(kind, Bridge | Network | Direct | Ethernet)
}

/// Gives every interface of a guest that is about to run its share.
pub async fn limit_all(domain: &Domain, search_path: &str) -> Result<(), TrafficError> {
    let interfaces = domain.devices.interfaces.iter();
    for interface in interfaces.filter(|interface| !interface.bandwidth.is_empty()) {
        let mac = interface.mac.address;
        match device(interface) {
            Some(name) => limit(name, &interface.bandwidth, search_path).await?,
            None => tracing::warn!(?mac, kind = %interface.kind, "nothing limits an interface of this type"),
        }
    }
    Ok(())
}

/// The host's end of an interface, where its traffic can be limited.
pub fn device(interface: &Interface) -> Option<&str> {
    interface.target.dev.as_deref().filter(|_| limits(interface.kind))
}

/// Gives a device its share in the place of the one it had.
pub async fn limit(device: &str, bandwidth: &Bandwidth, search_path: &str) -> Result<(), TrafficError> {
    let tc = helpers::find("tc", search_path).ok_or(TrafficError::Missing)?;
    for place in ["root", "ingress"] {
        // There may be nothing.
        let clear = Command::new(&tc).args(["qdisc", "del", "dev", device, place]);
        clear.capture(LIMIT, MAX_OUTPUT).await?;
    }
    for arguments in commands(device, bandwidth) {
        let told = Command::new(&tc).args(&arguments).capture(LIMIT, MAX_OUTPUT).await?;
        if !told.exit.success() {
            return Err(TrafficError::Failed {
                command: format!("{} {}", tc.display(), arguments.join(" ")),
                exit: describe(told.exit),
                words: String::from_utf8_lossy(&told.stderr).into_owned(),
            });
        }
    }
    Ok(())
}

fn describe(exit: Exit) -> String {
    match exit {
        Exit::Code(code) => format!("exit status {code}"),
        Exit::Signal(signal) => format!("fatal signal {signal}"),
        Exit::Unknown => "end".to_owned(),
    }
}

/// What `tc` is told. What comes in for the guest goes out of the host's end.
fn commands(device: &str, bandwidth: &Bandwidth) -> Vec<Vec<String>> {
    let mut commands = Vec::new();
    let mut tell = |line: String| commands.push(line.split(' ').map(str::to_owned).collect());
    if let Some(rate) = bandwidth.inbound.filter(|rate| rate.average > 0) {
        let Rate { average, peak, burst, .. } = rate;
        let peak = if peak > 0 { format!(" ceil {peak}kbps") } else { String::new() };
        let burst = if burst > 0 { format!(" burst {burst}kb") } else { String::new() };
        let quantum = quantum(average);
        tell(format!("qdisc add dev {device} root handle 1: htb default 1"));
        tell(format!(
            "class add dev {device} parent 1: classid 1:1 htb rate {average}kbps{peak}{burst} quantum {quantum}"
        ));
        tell(format!("qdisc add dev {device} parent 1:1 handle 2: sfq perturb 10"));
        tell(format!("filter add dev {device} parent 1:0 protocol all prio 1 handle 1 fw flowid 1"));
    }
    if let Some(Rate { average, burst, .. }) = bandwidth.outbound {
        // Its burst is kept in bytes by the kernel, in 32 bits.
        let burst = if burst > 0 { burst } else { average.min(u64::from(u32::MAX) / 1024) };
        tell(format!("qdisc add dev {device} ingress"));
        tell(format!(
            "filter add dev {device} parent ffff: protocol all u32 match u32 0 0 police rate {average}kbps \
             burst {burst}kb mtu 64kb drop flowid :1"
        ));
    }
    commands
}

/// How many bytes a class sends before another one may.
fn quantum(average: u64) -> u64 {
    const MTU: u64 = 1500;
    (average.saturating_mul(1024) / 8 / MTU).clamp(1, u32::MAX.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_guest_gets_and_what_it_sends_is_limited() {
        let inbound = Rate { average: 1000, peak: 5000, burst: 5120, floor: 0 };
        let outbound = Rate { average: 128, ..Rate::default() };
        let said =
            |bandwidth| commands("vnet0", &bandwidth).iter().map(|line| line.join(" ")).collect::<Vec<_>>();
        assert_eq!(
            said(Bandwidth { inbound: Some(inbound), outbound: Some(outbound) }),
            [
                "qdisc add dev vnet0 root handle 1: htb default 1",
                "class add dev vnet0 parent 1: classid 1:1 htb rate 1000kbps ceil 5000kbps burst 5120kb quantum 85",
                "qdisc add dev vnet0 parent 1:1 handle 2: sfq perturb 10",
                "filter add dev vnet0 parent 1:0 protocol all prio 1 handle 1 fw flowid 1",
                "qdisc add dev vnet0 ingress",
                "filter add dev vnet0 parent ffff: protocol all u32 match u32 0 0 police rate 128kbps burst 128kb \
                 mtu 64kb drop flowid :1",
            ]
        );
        let floor = Rate { floor: 10, ..Rate::default() };
        assert!(said(Bandwidth { inbound: Some(floor), outbound: None }).is_empty());
    }
}
