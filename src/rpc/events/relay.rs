//! One registration's way from an event to a message on the wire.

use std::sync::Arc;

use ferrovirt_protocol::frame::{FrameType, Header, Status};
use ferrovirt_protocol::procedure::Event as WireEvent;
use ferrovirt_protocol::qemu;
use ferrovirt_protocol::remote::event as wire;
use ferrovirt_protocol::remote::*;

use crate::drivers::domain::event::{DomainEvent, DomainRef, EventId, GraphicsAddress};
use crate::drivers::domain::job_info;
use crate::drivers::event_bus::{Event, Subscriber};
use crate::drivers::secret::event::{SecretEvent, SecretRef};
use crate::drivers::storage::event::{PoolEvent, PoolRef};
use crate::rpc::convert;
use crate::rpc::outbox::Outbox;

/// Which messages a registration gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Without a callback id; only the first sixteen kinds of events have such messages.
    Legacy,
    Callback(i32),
}

/// Which QMP events a registration gets, by name.
#[derive(Debug, Clone)]
pub enum Pattern {
    All,
    Exact(String),
    AnyCase(String),
    Regex(regex_lite::Regex),
}

impl Pattern {
    fn fits(&self, name: &str) -> bool {
        match self {
            Self::All => true,
            Self::Exact(wanted) => wanted == name,
            Self::AnyCase(wanted) => wanted.eq_ignore_ascii_case(name),
            Self::Regex(regex) => regex.is_match(name),
        }
    }
}

#[derive(Debug)]
enum Wanted {
    Domain {
        id: EventId,
        form: Form,
    },
    Monitor {
        pattern: Pattern,
        callback_id: i32,
    },
    /// Of what is no domain; which kind is the filter's matter.
    Object {
        callback_id: i32,
    },
}

/// Takes events from the bus to one client.
#[derive(Debug)]
pub(super) struct Relay {
    outbox: Arc<Outbox>,
    wanted: Wanted,
}

impl Subscriber for Relay {
    fn deliver(&self, event: &Arc<Event>) {
        let (domain, event) = match &**event {
            Event::Domain { domain, event } => (domain, event),
            Event::Pool { pool, event } => return self.send_pool(pool, *event),
            Event::Secret { secret, event } => return self.send_secret(secret, *event),
        };
        match (&self.wanted, event) {
            (Wanted::Monitor { pattern, callback_id }, DomainEvent::Monitor { event, .. })
                if !pattern.fits(event) =>
            {
                tracing::trace!(callback_id, event, "not asked for");
            }
            (
                Wanted::Monitor { callback_id, .. },
                DomainEvent::Monitor { event, seconds, micros, details },
            ) => {
                self.send::<qemu::event::DomainMonitorEvent>(&qemu::DomainMonitorEventMsg {
                    callback_id: *callback_id,
                    dom: convert::domain(domain),
                    event: event.clone(),
                    seconds: *seconds,
                    micros: *micros,
                    details: details.clone(),
                });
            }
            (Wanted::Monitor { .. } | Wanted::Object { .. }, _) => {}
            (&Wanted::Domain { id, form: Form::Legacy }, event) => self.send_legacy(id, domain, event),
            (&Wanted::Domain { id, form: Form::Callback(callback) }, event) => {
                self.send_callback(id, callback, domain, event);
            }
        }
    }
}

impl Relay {
    pub(super) fn domain(outbox: Arc<Outbox>, id: EventId, form: Form) -> Self {
        Self { outbox, wanted: Wanted::Domain { id, form } }
    }

    pub(super) fn monitor(outbox: Arc<Outbox>, pattern: Pattern, callback_id: i32) -> Self {
        Self { outbox, wanted: Wanted::Monitor { pattern, callback_id } }
    }

    /// Events of pools, secrets and the like.
    pub(super) fn object(outbox: Arc<Outbox>, callback_id: i32) -> Self {
        Self { outbox, wanted: Wanted::Object { callback_id } }
    }

    fn send_pool(&self, pool: &PoolRef, event: PoolEvent) {
        let Wanted::Object { callback_id } = self.wanted else { return };
        let pool = convert::pool(pool);
        match event {
            PoolEvent::Lifecycle(lifecycle) => {
                let event = lifecycle as i32;
                let message = StoragePoolEventLifecycleMsg { callback_id, pool, event, detail: 0 };
                self.send::<wire::StoragePoolEventLifecycle>(&message);
            }
            PoolEvent::Refresh => {
                let message = StoragePoolEventRefreshMsg { callback_id, pool };
                self.send::<wire::StoragePoolEventRefresh>(&message);
            }
        }
    }

    fn send_secret(&self, secret: &SecretRef, event: SecretEvent) {
        let Wanted::Object { callback_id } = self.wanted else { return };
        let secret = convert::secret(secret);
        match event {
            SecretEvent::Lifecycle(lifecycle) => {
                let event = lifecycle as i32;
                let message = SecretEventLifecycleMsg { callback_id, secret, event, detail: 0 };
                self.send::<wire::SecretEventLifecycle>(&message);
            }
            SecretEvent::ValueChanged => {
                let message = SecretEventValueChangedMsg { callback_id, secret };
                self.send::<wire::SecretEventValueChanged>(&message);
            }
        }
    }

    fn send<E: WireEvent>(&self, message: &E::Message) {
        let header = Header {
            program: E::PROGRAM.number,
            version: E::PROGRAM.version,
            procedure: E::NUMBER,
            kind: FrameType::MESSAGE,
            serial: 0,
            status: Status::OK,
        };
        // A client that is gone or does not read is the connection's matter, which says so in the log.
        let _ = self.outbox.put_event(&header, message);
    }

    fn send_legacy(&self, id: EventId, domain: &DomainRef, event: &DomainEvent) {
        macro_rules! legacy {
            ($($kind:ident)*) => {
                match Legacy::of(id, domain, event) {
                    $(Some(Legacy::$kind(message)) => self.send::<wire::$kind>(&message),)*
                    None => {}
                }
            };
        }
        legacy!(
            DomainEventLifecycle DomainEventReboot DomainEventRtcChange DomainEventWatchdog DomainEventIoError
            DomainEventGraphics DomainEventIoErrorReason DomainEventControlError DomainEventBlockJob
            DomainEventDiskChange DomainEventTrayChange DomainEventPmwakeup DomainEventPmsuspend
            DomainEventBalloonChange DomainEventPmsuspendDisk DomainEventDeviceRemoved
        );
    }

    /// The newer message wraps the older one, where there is an older one.
    fn send_callback(&self, id: EventId, callback_id: i32, domain: &DomainRef, event: &DomainEvent) {
        macro_rules! wrapped {
            ($($kind:ident => $event:ident $message:ident $({ $($extra:ident: $value:expr),* })?;)*) => {
                match Legacy::of(id, domain, event) {
                    $(Some(Legacy::$kind(msg)) => {
                        self.send::<wire::$event>(&$message { callback_id, $($($extra: $value,)*)? msg });
                    })*
                    None => self.send_newer(callback_id, domain, event),
                }
            };
        }
        wrapped! {
            DomainEventLifecycle => DomainEventCallbackLifecycle DomainEventCallbackLifecycleMsg;
            DomainEventReboot => DomainEventCallbackReboot DomainEventCallbackRebootMsg;
            DomainEventRtcChange => DomainEventCallbackRtcChange DomainEventCallbackRtcChangeMsg;
            DomainEventWatchdog => DomainEventCallbackWatchdog DomainEventCallbackWatchdogMsg;
            DomainEventIoError => DomainEventCallbackIoError DomainEventCallbackIoErrorMsg;
            DomainEventGraphics => DomainEventCallbackGraphics DomainEventCallbackGraphicsMsg;
            DomainEventIoErrorReason => DomainEventCallbackIoErrorReason DomainEventCallbackIoErrorReasonMsg;
            DomainEventControlError => DomainEventCallbackControlError DomainEventCallbackControlErrorMsg;
            DomainEventBlockJob => DomainEventCallbackBlockJob DomainEventCallbackBlockJobMsg;
            DomainEventDiskChange => DomainEventCallbackDiskChange DomainEventCallbackDiskChangeMsg;
            DomainEventTrayChange => DomainEventCallbackTrayChange DomainEventCallbackTrayChangeMsg;
            DomainEventPmwakeup => DomainEventCallbackPmwakeup DomainEventCallbackPmwakeupMsg { reason: 0 };
            DomainEventPmsuspend => DomainEventCallbackPmsuspend DomainEventCallbackPmsuspendMsg { reason: 0 };
            DomainEventBalloonChange => DomainEventCallbackBalloonChange DomainEventCallbackBalloonChangeMsg;
            DomainEventPmsuspendDisk =>
                DomainEventCallbackPmsuspendDisk DomainEventCallbackPmsuspendDiskMsg { reason: 0 };
            DomainEventDeviceRemoved => DomainEventCallbackDeviceRemoved DomainEventCallbackDeviceRemovedMsg;
        }
    }

    /// Kinds of events that came after callback ids.
    fn send_newer(&self, callback_id: i32, domain: &DomainRef, event: &DomainEvent) {
        let dom = convert::domain(domain);
        match event.clone() {
            DomainEvent::BlockJob { target: dst, kind, status, .. } => {
                let (r#type, status) = (kind.number(), status.number());
                self.send::<wire::DomainEventBlockJob2>(&DomainEventBlockJob2Msg {
                    callback_id,
                    dom,
                    dst,
                    r#type,
                    status,
                });
            }
            DomainEvent::AgentLifecycle { state, reason } => {
                let (state, reason) = (state.number(), reason.number());
                let message = DomainEventCallbackAgentLifecycleMsg { callback_id, dom, state, reason };
                self.send::<wire::DomainEventCallbackAgentLifecycle>(&message);
            }
            DomainEvent::DeviceAdded { alias: dev_alias } => {
                let message = DomainEventCallbackDeviceAddedMsg { callback_id, dom, dev_alias };
                self.send::<wire::DomainEventCallbackDeviceAdded>(&message);
            }
            DomainEvent::DeviceRemovalFailed { alias: dev_alias } => {
                let message = DomainEventCallbackDeviceRemovalFailedMsg { callback_id, dom, dev_alias };
                self.send::<wire::DomainEventCallbackDeviceRemovalFailed>(&message);
            }
            DomainEvent::MigrationIteration { iteration } => {
                let message = DomainEventCallbackMigrationIterationMsg { callback_id, dom, iteration };
                self.send::<wire::DomainEventCallbackMigrationIteration>(&message);
            }
            DomainEvent::JobCompleted { statistics } => {
                let Ok(params) = job_info::params(&statistics) else { return };
                let params = convert::params(params);
                let message = DomainEventCallbackJobCompletedMsg { callback_id, dom, params };
                self.send::<wire::DomainEventCallbackJobCompleted>(&message);
            }
            DomainEvent::MetadataChange { kind, uri: nsuri } => {
                let r#type = kind.number();
                let message = DomainEventCallbackMetadataChangeMsg { callback_id, dom, r#type, nsuri };
                self.send::<wire::DomainEventCallbackMetadataChange>(&message);
            }
            DomainEvent::BlockThreshold { device: dev, path, threshold, excess } => {
                let message = DomainEventBlockThresholdMsg { callback_id, dom, dev, path, threshold, excess };
                self.send::<wire::DomainEventBlockThreshold>(&message);
            }
            DomainEvent::MemoryFailure { recipient, action, flags } => {
                let (recipient, action) = (recipient.number(), action.number());
                let message = DomainEventMemoryFailureMsg { callback_id, dom, recipient, action, flags };
                self.send::<wire::DomainEventMemoryFailure>(&message);
            }
            DomainEvent::MemoryDeviceSizeChange { alias, size_kib: size } => {
                let message = DomainEventMemoryDeviceSizeChangeMsg { callback_id, dom, alias, size };
                self.send::<wire::DomainEventMemoryDeviceSizeChange>(&message);
            }
            DomainEvent::Tunable { params } => {
                let params = convert::params(params);
                let message = DomainEventCallbackTunableMsg { callback_id, dom, params };
                self.send::<wire::DomainEventCallbackTunable>(&message);
            }
            DomainEvent::NicMacChange { alias, old: old_mac, new: new_mac } => {
                let message = DomainEventNicMacChangeMsg { callback_id, dom, alias, old_mac, new_mac };
                self.send::<wire::DomainEventNicMacChange>(&message);
            }
            _ => {}
        }
    }
}

/// The older message of an event, by kind.
#[expect(clippy::enum_variant_names, reason = "named as the messages they hold")]
enum Legacy {
    DomainEventLifecycle(DomainEventLifecycleMsg),
    DomainEventReboot(DomainEventRebootMsg),
    DomainEventRtcChange(DomainEventRtcChangeMsg),
    DomainEventWatchdog(DomainEventWatchdogMsg),
    DomainEventIoError(DomainEventIoErrorMsg),
    DomainEventGraphics(DomainEventGraphicsMsg),
    DomainEventIoErrorReason(DomainEventIoErrorReasonMsg),
    DomainEventControlError(DomainEventControlErrorMsg),
    DomainEventBlockJob(DomainEventBlockJobMsg),
    DomainEventDiskChange(DomainEventDiskChangeMsg),
    DomainEventTrayChange(DomainEventTrayChangeMsg),
    DomainEventPmwakeup(DomainEventPmwakeupMsg),
    DomainEventPmsuspend(DomainEventPmsuspendMsg),
    DomainEventBalloonChange(DomainEventBalloonChangeMsg),
    DomainEventPmsuspendDisk(DomainEventPmsuspendDiskMsg),
    DomainEventDeviceRemoved(DomainEventDeviceRemovedMsg),
}

impl Legacy {
    fn of(id: EventId, domain: &DomainRef, event: &DomainEvent) -> Option<Self> {
        let dom = convert::domain(domain);
        Some(match event.clone() {
            DomainEvent::Lifecycle(lifecycle) => {
                let (event, detail) = lifecycle.numbers();
                Self::DomainEventLifecycle(DomainEventLifecycleMsg { dom, event, detail })
            }
            DomainEvent::Reboot => Self::DomainEventReboot(DomainEventRebootMsg { dom }),
            DomainEvent::RtcChange { offset_s: offset } => {
                Self::DomainEventRtcChange(DomainEventRtcChangeMsg { dom, offset })
            }
            DomainEvent::Watchdog(action) => {
                Self::DomainEventWatchdog(DomainEventWatchdogMsg { dom, action: action.number() })
            }
            DomainEvent::IoError { source: src_path, alias: dev_alias, action, reason } => {
                let action = action.number();
                match id {
                    EventId::IoError => {
                        Self::DomainEventIoError(DomainEventIoErrorMsg { dom, src_path, dev_alias, action })
                    }
                    _ => Self::DomainEventIoErrorReason(DomainEventIoErrorReasonMsg {
                        dom,
                        src_path,
                        dev_alias,
                        action,
                        reason,
                    }),
                }
            }
            DomainEvent::Graphics { phase, local, remote, auth_scheme, subject } => {
                let identity = |(r#type, name)| DomainEventGraphicsIdentity { r#type, name };
                Self::DomainEventGraphics(DomainEventGraphicsMsg {
                    dom,
                    phase: phase.number(),
                    local: address(local),
                    remote: address(remote),
                    auth_scheme,
                    subject: subject.into_iter().map(identity).collect(),
                })
            }
            DomainEvent::ControlError => Self::DomainEventControlError(DomainEventControlErrorMsg { dom }),
            DomainEvent::BlockJob { path: Some(path), kind, status, .. } if id == EventId::BlockJob => {
                let (r#type, status) = (kind.number(), status.number());
                Self::DomainEventBlockJob(DomainEventBlockJobMsg { dom, path, r#type, status })
            }
            DomainEvent::DiskChange { old_source, new_source, alias, reason } => {
                Self::DomainEventDiskChange(DomainEventDiskChangeMsg {
                    dom,
                    old_src_path: old_source,
                    new_src_path: new_source,
                    dev_alias: alias,
                    reason: reason.number(),
                })
            }
            DomainEvent::TrayChange { alias: dev_alias, change } => {
                let reason = change.number();
                Self::DomainEventTrayChange(DomainEventTrayChangeMsg { dom, dev_alias, reason })
            }
            DomainEvent::PmWakeup => Self::DomainEventPmwakeup(DomainEventPmwakeupMsg { dom }),
            DomainEvent::PmSuspend => Self::DomainEventPmsuspend(DomainEventPmsuspendMsg { dom }),
            DomainEvent::PmSuspendDisk => Self::DomainEventPmsuspendDisk(DomainEventPmsuspendDiskMsg { dom }),
            DomainEvent::BalloonChange { actual_kib: actual } => {
                Self::DomainEventBalloonChange(DomainEventBalloonChangeMsg { dom, actual })
            }
            DomainEvent::DeviceRemoved { alias: dev_alias } => {
                Self::DomainEventDeviceRemoved(DomainEventDeviceRemovedMsg { dom, dev_alias })
            }
            _ => return None,
        })
    }
}

fn address(address: GraphicsAddress) -> DomainEventGraphicsAddress {
    DomainEventGraphicsAddress { family: address.family, node: address.node, service: address.service }
}
