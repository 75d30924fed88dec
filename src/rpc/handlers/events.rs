//! Asking to hear of what happens to domains, in each of the forms that clients use.

use ferrovirt_protocol::qemu::procedure::{
    ConnectDomainMonitorEventDeregister, ConnectDomainMonitorEventRegister,
};
use ferrovirt_protocol::qemu::{
    ConnectDomainMonitorEventDeregisterArgs, ConnectDomainMonitorEventRegisterArgs,
    ConnectDomainMonitorEventRegisterRet,
};
use ferrovirt_protocol::remote::procedure::*;
use ferrovirt_protocol::remote::*;

use crate::drivers::domain::event::EventId;
use crate::error::{Error, Origin, Result};
use crate::rpc::convert;
use crate::rpc::events::{Form, Pattern};
use crate::rpc::router::{Call, Routes};

pub fn routes(r: &mut Routes) {
    r.on::<ConnectDomainEventRegister>(register_lifecycle);
    r.on::<ConnectDomainEventDeregister>(deregister_lifecycle);
    r.on::<ConnectDomainEventRegisterAny>(register_any);
    r.on::<ConnectDomainEventDeregisterAny>(deregister_any);
    r.on::<ConnectDomainEventCallbackRegisterAny>(register_callback);
    r.on::<ConnectDomainEventCallbackDeregisterAny>(deregister_callback);
    r.on::<ConnectDomainMonitorEventRegister>(register_monitor);
    r.on::<ConnectDomainMonitorEventDeregister>(deregister_monitor);
}

async fn register_lifecycle(call: Call, (): ()) -> Result<ConnectDomainEventRegisterRet> {
    call.client.subscriptions.register(&call.drivers, EventId::Lifecycle, None, |_| Form::Legacy)?;
    Ok(ConnectDomainEventRegisterRet { cb_registered: 0 })
}

async fn deregister_lifecycle(call: Call, (): ()) -> Result<ConnectDomainEventDeregisterRet> {
    call.client.subscriptions.deregister_event(&call.drivers, EventId::Lifecycle)?;
    Ok(ConnectDomainEventDeregisterRet { cb_registered: 0 })
}

async fn register_any(call: Call, args: ConnectDomainEventRegisterAnyArgs) -> Result<()> {
    let id = legacy_event(args.event_id)?;
    call.client.subscriptions.register(&call.drivers, id, None, |_| Form::Legacy)?;
    Ok(())
}

async fn deregister_any(call: Call, args: ConnectDomainEventDeregisterAnyArgs) -> Result<()> {
    call.client.subscriptions.deregister_event(&call.drivers, legacy_event(args.event_id)?)
}

async fn register_callback(
    call: Call,
    args: ConnectDomainEventCallbackRegisterAnyArgs,
) -> Result<ConnectDomainEventCallbackRegisterAnyRet> {
    let id = EventId::from_number(args.event_id).ok_or_else(|| unsupported(args.event_id))?;
    let domain = args.dom.as_ref().map(convert::uuid);
    let callback_id = call.client.subscriptions.register(&call.drivers, id, domain, Form::Callback)?;
    Ok(ConnectDomainEventCallbackRegisterAnyRet { callback_id })
}

async fn deregister_callback(call: Call, args: ConnectDomainEventCallbackDeregisterAnyArgs) -> Result<()> {
    call.client.subscriptions.deregister(&call.drivers, args.callback_id)
}

async fn register_monitor(
    call: Call,
    args: ConnectDomainMonitorEventRegisterArgs,
) -> Result<ConnectDomainMonitorEventRegisterRet> {
    let pattern = pattern(args.event, args.flags)?;
    let domain = args.dom.as_ref().map(convert::uuid);
    let callback_id = call.client.subscriptions.register_monitor(&call.drivers, domain, pattern)?;
    Ok(ConnectDomainMonitorEventRegisterRet { callback_id })
}

async fn deregister_monitor(call: Call, args: ConnectDomainMonitorEventDeregisterArgs) -> Result<()> {
    call.client.subscriptions.deregister_monitor(&call.drivers, args.callback_id)
}

/// Only the first sixteen events have messages without a callback id.
fn legacy_event(number: i32) -> Result<EventId> {
    let id = EventId::from_number(number).filter(|_| number <= EventId::DeviceRemoved.number());
    id.ok_or_else(|| unsupported(number))
}

fn unsupported(number: i32) -> Error {
    Error::internal_error(format!("unsupported event ID {number}")).from_origin(Origin::RPC)
}

fn pattern(event: Option<String>, flags: u32) -> Result<Pattern> {
    const REGEX: u32 = 1;
    const NO_CASE: u32 = 2;
    if flags & !(REGEX | NO_CASE) != 0 {
        let function = "virDomainQemuMonitorEventStateRegisterID";
        return Err(Error::unsupported_flags(flags & !(REGEX | NO_CASE), function).from_origin(Origin::NONE));
    }
    let Some(event) = event else { return Ok(Pattern::All) };
    match (flags & REGEX != 0, flags & NO_CASE != 0) {
        (false, false) => Ok(Pattern::Exact(event)),
        (false, true) => Ok(Pattern::AnyCase(event)),
        (true, no_case) => regex_lite::RegexBuilder::new(&event)
            .case_insensitive(no_case)
            .build()
            .map(Pattern::Regex)
            .map_err(|error| {
                let detail = format!("failed to compile regex '{event}': {error}");
                Error::invalid_arg(detail).from_origin(Origin::NONE)
            }),
    }
}
