//! What QEMU reports on its own.

use bytes::Bytes;
use serde::Deserialize;
use serde_json::Value;

use super::migration::{DumpInfo, MigrationStatus};

/// When QEMU saw it happen, on the host's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct Timestamp {
    pub seconds: i64,
    pub microseconds: i64,
}

/// One event, known or not.
#[derive(Debug, Clone)]
pub struct Event {
    pub name: String,
    pub timestamp: Timestamp,
    line: Bytes,
}

#[derive(Deserialize)]
struct Head {
    event: String,
    timestamp: Timestamp,
}

impl Event {
    pub(super) fn parse(line: &Bytes) -> Option<Self> {
        let Head { event, timestamp } = serde_json::from_slice(line).ok()?;
        Some(Self { name: event, timestamp, line: line.clone() })
    }

    /// What it means to a guest.
    pub fn kind(&self) -> EventKind {
        serde_json::from_slice(&self.line).unwrap_or(EventKind::Other)
    }

    /// Its data as libvirt passes it to users: JSON without blanks.
    pub fn data(&self) -> Option<String> {
        let event: Value = serde_json::from_slice(&self.line).ok()?;
        event.get("data").map(Value::to_string)
    }
}

/// The events that change what the daemon knows. Fields that QEMU adds later are ignored, values that it
/// adds later are kept as text.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(
    tag = "event",
    content = "data",
    rename_all = "SCREAMING_SNAKE_CASE",
    rename_all_fields = "kebab-case"
)]
pub enum EventKind {
    /// `guest` is absent in QEMU before 2.10; `reason` is `guest-shutdown`, `host-signal`, …
    Shutdown {
        guest: Option<bool>,
        reason: Option<String>,
    },
    Reset {
        guest: Option<bool>,
        reason: Option<String>,
    },
    Powerdown,
    Stop,
    Resume,
    Suspend,
    SuspendDisk,
    Wakeup,
    RtcChange {
        /// Seconds to the clock the guest was started with.
        offset: i64,
    },
    Watchdog {
        action: String,
    },
    GuestPanicked {
        action: String,
        info: Option<Value>,
    },
    GuestCrashloaded {
        action: String,
        info: Option<Value>,
    },
    BlockIoError {
        device: Option<String>,
        #[serde(rename = "qom-path")]
        qom_path: Option<String>,
        #[serde(rename = "node-name")]
        node_name: Option<String>,
        operation: Option<String>,
        action: String,
        nospace: Option<bool>,
        reason: Option<String>,
    },
    BlockWriteThreshold {
        node_name: String,
        amount_exceeded: u64,
        write_threshold: u64,
    },
    DeviceDeleted {
        device: Option<String>,
        path: String,
    },
    DeviceUnplugGuestError {
        device: Option<String>,
        path: String,
    },
    DeviceTrayMoved {
        device: Option<String>,
        id: Option<String>,
        tray_open: bool,
    },
    BalloonChange {
        /// Bytes.
        actual: u64,
    },
    /// The host's memory failed where the guest has its own.
    MemoryFailure {
        recipient: String,
        action: String,
        #[serde(default)]
        flags: MemoryFailureFlags,
    },
    MemoryDeviceSizeChange {
        id: Option<String>,
        size: u64,
    },
    NicRxFilterChanged {
        name: Option<String>,
        path: String,
    },
    VserportChange {
        id: String,
        open: bool,
    },
    JobStatusChange {
        id: String,
        status: String,
    },
    BlockJobCompleted(BlockJob),
    BlockJobCancelled(BlockJob),
    BlockJobReady(BlockJob),
    BlockJobError {
        device: String,
        operation: String,
        action: String,
    },
    Migration {
        status: MigrationStatus,
    },
    /// All viewers of a SPICE screen have gone to the other host.
    SpiceMigrateCompleted,
    MigrationPass {
        pass: u64,
    },
    DumpCompleted {
        result: DumpInfo,
        error: Option<String>,
    },
    VncConnected(VncClient),
    VncInitialized(VncClient),
    VncDisconnected(VncClient),
    #[serde(other)]
    Other,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct MemoryFailureFlags {
    pub action_required: bool,
    pub recursive: bool,
}

/// A job on a block node that changed its state.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct BlockJob {
    pub device: String,
    #[serde(rename = "type")]
    pub kind: String,
    pub len: i64,
    pub offset: i64,
    pub speed: i64,
    pub error: Option<String>,
}

/// Who talks to the VNC server, from where.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct VncClient {
    pub server: VncEnd,
    pub client: VncEnd,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct VncEnd {
    pub host: String,
    pub service: String,
    pub family: String,
    /// How the server wants to be authenticated to.
    pub auth: Option<String>,
    pub x509_dname: Option<String>,
    pub sasl_username: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(text: &'static str) -> Event {
        Event::parse(&Bytes::from_static(text.as_bytes())).unwrap()
    }

    macro_rules! stamped {
        ($rest:literal) => {
            event(concat!(r#"{"timestamp": {"seconds": 1401385907, "microseconds": 422329}, "#, $rest, "}"))
        };
    }

    #[test]
    fn known_events_are_typed_and_newer_fields_ignored() {
        for (event, kind) in [
            (
                stamped!(
                    r#""event": "SHUTDOWN", "data": {"guest": true, "reason": "guest-shutdown", "x": 1}"#
                ),
                EventKind::Shutdown { guest: Some(true), reason: Some("guest-shutdown".to_owned()) },
            ),
            (stamped!(r#""event": "STOP""#), EventKind::Stop),
            (
                stamped!(r#""event": "RTC_CHANGE", "data": {"offset": -3}"#),
                EventKind::RtcChange { offset: -3 },
            ),
            (
                stamped!(
                    r#""event": "DEVICE_TRAY_MOVED", "data": {"device": "", "id": "cd", "tray-open": true}"#
                ),
                EventKind::DeviceTrayMoved {
                    device: Some(String::new()),
                    id: Some("cd".to_owned()),
                    tray_open: true,
                },
            ),
            (stamped!(r#""event": "SOMETHING_NEW", "data": {"a": [1]}"#), EventKind::Other),
            (stamped!(r#""event": "SOMETHING_NEW""#), EventKind::Other),
            (stamped!(r#""event": "RTC_CHANGE", "data": {"offset": "soon"}"#), EventKind::Other),
        ] {
            assert_eq!(event.kind(), kind);
        }
    }

    #[test]
    fn users_get_name_time_and_data_as_libvirt_prints_it() {
        let event = stamped!(r#""event": "X", "data": {"b": 1, "a": [ true ]}"#);
        assert_eq!((event.name.as_str(), event.data().unwrap().as_str()), ("X", r#"{"b":1,"a":[true]}"#));
        assert_eq!(event.timestamp, Timestamp { seconds: 1_401_385_907, microseconds: 422_329 });
        assert_eq!(stamped!(r#""event": "STOP""#).data(), None);
    }

    #[test]
    fn an_event_without_a_time_is_none() {
        assert!(Event::parse(&Bytes::from_static(br#"{"event": "STOP"}"#)).is_none());
    }
}
