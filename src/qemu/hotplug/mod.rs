//! Devices that are plugged into a running guest, and out again.
//!
//! ```text
//!  definition with the device ─┐                       ┌─► blockdev-add, netdev_add, …, device_add
//!                              ├─ command::plugged ─► steps
//!  definition without it ──────┘                       └─► device_del ─► gone ─► the rest, in reverse
//! ```
//!
//! What a device takes is what it adds to the command line, so a kind of device that can be started with can
//! be plugged: there is nothing about it here. Everything that was plugged before a step failed is taken out
//! again.

mod chardev;
pub mod vcpu;

use std::collections::BTreeMap;
use std::os::fd::{OwnedFd, RawFd};
use std::sync::Arc;

use serde_json::{Value, json};

use crate::qemu::monitor::{Getfd, Monitor, MonitorError, QomList};

/// What is plugged first or last: one command there, one back.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// A set of descriptors, by the number of the one in it.
    FdSet {
        set: u64,
        number: RawFd,
        opaque: String,
    },
    Chardev {
        id: String,
        backend: Value,
    },
    Object(Value),
    Blockdev(Value),
    Netdev(Value),
    Device(Value),
    WatchdogAction(String),
}

/// Why a device could not be plugged.
#[derive(Debug, thiserror::Error)]
pub enum PlugError {
    /// `VIR_ERR_OPERATION_UNSUPPORTED`
    #[error("{0}")]
    Unsupported(String),
    #[error(transparent)]
    Monitor(#[from] MonitorError),
}

/// The steps that the arguments stand for which a device adds to a command line.
pub fn steps(without: &[String], with: &[String]) -> Result<Vec<Step>, PlugError> {
    let mut before = without.chunks(2).peekable();
    let mut steps = Vec::new();
    for pair in with.chunks(2) {
        if before.peek() == Some(&pair) {
            before.next();
            continue;
        }
        let [option, value] = pair else { return Err(unsupported("without a value")) };
        steps.push(step(option, value)?);
    }
    // Devices come after what they stand on, also where the command line says it in another order.
    steps.sort_by_key(|step| step.device().is_some());
    Ok(steps)
}

fn unsupported(what: &str) -> PlugError {
    PlugError::Unsupported(format!("a device that needs the option {what} cannot be hotplugged"))
}

fn step(option: &str, value: &str) -> Result<Step, PlugError> {
    let json = || serde_json::from_str::<Value>(value).map_err(|_| unsupported(option));
    Ok(match option {
        "-object" => Step::Object(json()?),
        "-blockdev" => Step::Blockdev(json()?),
        "-netdev" => Step::Netdev(json()?),
        "-device" => Step::Device(json()?),
        "-watchdog-action" => Step::WatchdogAction(value.to_owned()),
        "-chardev" => {
            let (id, backend) = chardev::backend(value).ok_or_else(|| unsupported(option))?;
            Step::Chardev { id, backend }
        }
        "-add-fd" => {
            let part = |name: &str| {
                value
                    .split(',')
                    .find_map(|part| part.strip_prefix(name)?.strip_prefix('=').map(str::to_owned))
            };
            let number = |name| part(name).and_then(|text| text.parse().ok());
            let (set, fd) = number("set").zip(number("fd")).ok_or_else(|| unsupported(option))?;
            let fd = RawFd::try_from(fd).map_err(|_| unsupported(option))?;
            Step::FdSet { set, number: fd, opaque: part("opaque").unwrap_or_default() }
        }
        other => return Err(unsupported(other)),
    })
}

fn text(value: &Value, name: &str) -> String {
    value.get(name).and_then(Value::as_str).unwrap_or_default().to_owned()
}

impl Step {
    /// The device, by the name under which QEMU knows it.
    pub fn device(&self) -> Option<String> {
        match self {
            Self::Device(device) => Some(text(device, "id")),
            _ => None,
        }
    }

    async fn take(&self, monitor: &Monitor, opened: &mut Opened) -> Result<(), MonitorError> {
        let (name, arguments) = match self {
            Self::FdSet { set, number, opaque } => {
                let Some(file) = opened.0.remove(number) else { return Ok(()) };
                let command = crate::qemu::monitor::AddFd { fdset_id: *set, opaque: opaque.clone() };
                monitor.execute_with_fd(command, file).await?;
                return Ok(());
            }
            Self::Chardev { id, backend } => {
                let mut backend = backend.clone();
                if let Some(descriptor) = backend.pointer_mut("/data/addr/data/str") {
                    *descriptor = opened.hand_over(monitor, descriptor, id).await?.into();
                }
                ("chardev-add", json!({ "id": id, "backend": backend }))
            }
            Self::Object(object) => ("object-add", object.clone()),
            Self::Blockdev(node) => ("blockdev-add", node.clone()),
            Self::Netdev(netdev) => {
                let (mut netdev, id) = (netdev.clone(), text(netdev, "id"));
                opened.hand_over_all(monitor, &mut netdev, &id).await?;
                ("netdev_add", netdev)
            }
            Self::Device(device) => {
                let (mut device, id) = (device.clone(), text(device, "id"));
                opened.hand_over_all(monitor, &mut device, &id).await?;
                ("device_add", device)
            }
            Self::WatchdogAction(action) => ("watchdog-set-action", json!({ "action": action })),
        };
        monitor.execute_value(name, Some(arguments)).await.map(drop)
    }

    async fn give_back(&self, monitor: &Monitor) -> Result<(), MonitorError> {
        let (name, arguments) = match self {
            Self::FdSet { set, .. } => ("remove-fd", json!({ "fdset-id": set })),
            Self::Chardev { id, .. } => ("chardev-remove", json!({ "id": id })),
            Self::Object(object) => ("object-del", json!({ "id": text(object, "id") })),
            Self::Blockdev(node) => ("blockdev-del", json!({ "node-name": text(node, "node-name") })),
            Self::Netdev(netdev) => ("netdev_del", json!({ "id": text(netdev, "id") })),
            Self::Device(device) => ("device_del", json!({ "id": text(device, "id") })),
            Self::WatchdogAction(_) => return Ok(()),
        };
        monitor.execute_value(name, Some(arguments)).await.map(drop)
    }
}

/// Descriptors for QEMU, by the number that stands for them in the steps.
#[derive(Debug, Default)]
pub struct Opened(pub BTreeMap<RawFd, OwnedFd>);

impl Opened {
    /// Sends every descriptor that the arguments of a device name.
    async fn hand_over_all(
        &mut self,
        monitor: &Monitor,
        arguments: &mut Value,
        id: &str,
    ) -> Result<(), MonitorError> {
        for name in ["fd", "fds", "vhostfd", "vhostfds"] {
            if let Some(descriptors) = arguments.get_mut(name) {
                *descriptors = self.hand_over(monitor, descriptors, id).await?.into();
            }
        }
        Ok(())
    }

    /// Sends the descriptors of a list such as `7:8` and answers the names they have in QEMU.
    async fn hand_over(
        &mut self,
        monitor: &Monitor,
        numbers: &Value,
        id: &str,
    ) -> Result<String, MonitorError> {
        let mut names = Vec::new();
        for number in numbers.as_str().unwrap_or_default().split(':').filter_map(|text| text.parse().ok()) {
            let Some(file) = self.0.remove(&number) else { continue };
            let name = format!("{id}-fd{number}");
            monitor.execute_with_fd(Getfd { fdname: name.clone() }, file).await?;
            names.push(name);
        }
        Ok(names.join(":"))
    }
}

/// Plugs a device in; on failure nothing of it stays.
pub async fn plug(monitor: &Monitor, steps: &[Step], mut opened: Opened) -> Result<(), PlugError> {
    for (done, step) in steps.iter().enumerate() {
        if let Err(error) = step.take(monitor, &mut opened).await {
            let taken = steps.get(..done).unwrap_or_default();
            give_back(monitor, taken).await;
            return Err(error.into());
        }
    }
    Ok(())
}

/// The devices that QEMU has, by alias; nothing if it does not say.
pub async fn devices(monitor: &Monitor) -> Arc<[String]> {
    match monitor.execute(QomList { path: "/machine/peripheral" }).await {
        Ok(all) => all.into_iter().filter(|it| it.kind.starts_with("child<")).map(|it| it.name).collect(),
        Err(error) => {
            tracing::debug!(%error, "QEMU does not say which devices it has");
            Arc::default()
        }
    }
}

/// Asks the guest to let go of a device.
pub async fn unplug(monitor: &Monitor, steps: &[Step]) -> Result<(), MonitorError> {
    for step in steps.iter().rev().filter(|step| step.device().is_some()) {
        step.give_back(monitor).await?;
    }
    Ok(())
}

/// Removes what stood behind a device that is gone.
pub async fn clear_away(monitor: &Monitor, steps: &[Step]) {
    let behind: Vec<_> = steps.iter().filter(|step| step.device().is_none()).cloned().collect();
    give_back(monitor, &behind).await;
}

async fn give_back(monitor: &Monitor, steps: &[Step]) {
    for step in steps.iter().rev() {
        if let Err(error) = step.give_back(monitor).await {
            tracing::warn!(?step, %error, "cannot take a part of a device out again");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_device_adds_to_the_line_is_what_is_plugged() {
        let line = |parts: &[&str]| parts.iter().map(|part| (*part).to_owned()).collect::<Vec<_>>();
        let without = line(&["-device", r#"{"id":"a"}"#, "-device", r#"{"id":"b"}"#]);
        let mut with = without.clone();
        with.splice(2..2, line(&["-blockdev", r#"{"node-name":"n"}"#, "-device", r#"{"id":"c"}"#]));
        let found = steps(&without, &with).unwrap();
        assert_eq!(found, [Step::Blockdev(json!({ "node-name": "n" })), Step::Device(json!({ "id": "c" }))]);
        assert_eq!(found[1].device().as_deref(), Some("c"));
        assert!(steps(&[], &line(&["-global", "x.y=z"])).is_err());
        let set = steps(&[], &line(&["-add-fd", "set=3,fd=17,opaque=charserial0-source"])).unwrap();
        let opaque = "charserial0-source".to_owned();
        assert_eq!(set, [Step::FdSet { set: 3, number: 17, opaque }]);
    }
}
