//! What clients hear, in which form, and until when.

use ferrovirt::drivers::domain::event::{
    DomainEvent, DomainRef, IoErrorAction, Lifecycle, Resumed, Started, Suspended,
};
use ferrovirt::drivers::event_bus::Event;
use ferrovirt::util::uuid::Uuid;
use ferrovirt_protocol::client::{Client, Events};
use ferrovirt_protocol::procedure::Event as WireEvent;
use ferrovirt_protocol::qemu;
use ferrovirt_protocol::remote::event::*;
use ferrovirt_protocol::remote::procedure::*;
use ferrovirt_protocol::remote::*;

use crate::world::{World, call, said, soon};

const STARTED: DomainEvent = DomainEvent::Lifecycle(Lifecycle::Started(Started::Booted));
const SUSPENDED: DomainEvent = DomainEvent::Lifecycle(Lifecycle::Suspended(Suspended::Paused));
const RESUMED: DomainEvent = DomainEvent::Lifecycle(Lifecycle::Resumed(Resumed::Unpaused));

fn publish(world: &World, uuid: u8, event: DomainEvent) {
    let domain = DomainRef { uuid: Uuid([uuid; 16]), name: "guest".into(), id: 4 };
    world.drivers.events.publish(Event::Domain { domain, event });
}

async fn next<E: WireEvent>(events: &mut Events) -> E::Message {
    let frame = soon(events.next()).await.expect("an event");
    frame.decode::<E>().expect("the other kind of event").unwrap()
}

async fn register(client: &Client, event_id: i32, dom: Option<Domain>) -> i32 {
    let args = ConnectDomainEventCallbackRegisterAnyArgs { event_id, dom };
    soon(client.call::<ConnectDomainEventCallbackRegisterAny>(&args)).await.unwrap().callback_id
}

#[tokio::test]
async fn each_registration_gets_its_form_in_order() {
    let world = World::new(|_| {});
    let (client, mut events) = world.client().await;
    soon(client.call::<ConnectDomainEventRegister>(&())).await.unwrap();
    publish(&world, 1, STARTED);
    let heard = next::<DomainEventLifecycle>(&mut events).await;
    assert_eq!((heard.dom.name.as_str(), heard.dom.uuid, heard.dom.id), ("guest", [1; 16], 4));
    assert_eq!((heard.event, heard.detail), (2, 0));
    soon(client.call::<ConnectDomainEventDeregister>(&())).await.unwrap();

    let callback_id = register(&client, 0, None).await;
    publish(&world, 1, SUSPENDED);
    publish(&world, 1, RESUMED);
    for number in [3, 4] {
        let heard = next::<DomainEventCallbackLifecycle>(&mut events).await;
        assert_eq!((heard.callback_id, heard.msg.event), (callback_id, number));
    }
    let args = ConnectDomainEventCallbackDeregisterAnyArgs { callback_id };
    soon(client.call::<ConnectDomainEventCallbackDeregisterAny>(&args)).await.unwrap();
    publish(&world, 1, STARTED);
    soon(client.call::<ConnectGetType>(&())).await.unwrap();
    assert!(events.try_next().is_none());
}

#[tokio::test]
async fn a_registration_for_one_domain_hears_of_no_other() {
    let world = World::new(|_| {});
    let (client, mut events) = world.client().await;
    let dom = Domain { name: "guest".to_owned(), uuid: [2; 16], id: -1 };
    let callback_id = register(&client, 1, Some(dom)).await;
    publish(&world, 1, DomainEvent::Reboot);
    publish(&world, 2, DomainEvent::Reboot);
    let heard = next::<DomainEventCallbackReboot>(&mut events).await;
    assert_eq!((heard.callback_id, heard.msg.dom.uuid), (callback_id, [2; 16]));
    assert!(events.try_next().is_none());
}

#[tokio::test]
async fn one_event_reaches_all_registrations_that_ask_for_it() {
    let world = World::new(|_| {});
    let (client, mut events) = world.client().await;
    let (old, new) = (register(&client, 4, None).await, register(&client, 6, None).await);
    assert_ne!(old, new);
    let (source, alias) = ("/disk".to_owned(), "virtio-disk0".to_owned());
    let reason = "enospc".to_owned();
    publish(&world, 1, DomainEvent::IoError { source, alias, action: IoErrorAction::Pause, reason });
    let heard = next::<DomainEventCallbackIoError>(&mut events).await;
    assert_eq!((heard.callback_id, heard.msg.action), (old, 1));
    let heard = next::<DomainEventCallbackIoErrorReason>(&mut events).await;
    assert_eq!((heard.callback_id, heard.msg.reason.as_str()), (new, "enospc"));
}

#[tokio::test]
async fn monitor_events_are_chosen_by_name() {
    const REGEX: u32 = 1;
    const NO_CASE: u32 = 2;
    let world = World::new(|_| {});
    for (pattern, flags, fits) in [
        (None, 0, true),
        (Some("POWERDOWN"), 0, true),
        (Some("powerdown"), 0, false),
        (Some("powerdown"), NO_CASE, true),
        (Some("^POWER"), REGEX, true),
        (Some("^DOWN"), REGEX, false),
    ] {
        let (client, mut events) = world.client().await;
        let event = pattern.map(str::to_owned);
        let args = qemu::ConnectDomainMonitorEventRegisterArgs { dom: None, event, flags };
        let registered = client.call::<qemu::procedure::ConnectDomainMonitorEventRegister>(&args);
        let callback_id = soon(registered).await.unwrap().callback_id;
        let event = "POWERDOWN".to_owned();
        let details = Some("{}".to_owned());
        publish(&world, 1, DomainEvent::Monitor { event, seconds: 5, micros: 6, details });
        soon(client.call::<ConnectGetType>(&())).await.unwrap();
        let heard = events.try_next().map(|frame| frame.decode::<qemu::event::DomainMonitorEvent>());
        let heard = heard.map(|message| message.unwrap().unwrap().callback_id);
        assert_eq!(heard, fits.then_some(callback_id), "{pattern:?} {flags}");
    }
}

#[tokio::test]
async fn the_same_registration_twice_is_a_mistake() {
    let world = World::new(|_| {});
    let (client, _events) = world.client().await;
    let tracked = (8, 0, "invalid argument: event callback already tracked".to_owned());
    call::<ConnectDomainEventRegister>(&client, ()).await.unwrap();
    assert_eq!(said(call::<ConnectDomainEventRegister>(&client, ()).await), tracked);
    let args = ConnectDomainEventCallbackRegisterAnyArgs { event_id: 0, dom: None };
    assert_eq!(said(call::<ConnectDomainEventCallbackRegisterAny>(&client, args.clone()).await), tracked);
    register(&client, 0, Some(Domain { uuid: [3; 16], ..Domain::default() })).await;
    call::<ConnectDomainEventDeregister>(&client, ()).await.unwrap();
    register(&client, 0, None).await;
}

#[tokio::test]
async fn what_was_not_registered_cannot_be_ended() {
    let world = World::new(|_| {});
    let (client, _events) = world.client().await;
    let internal = |text: &str| (1, 7, format!("internal error: {text}"));
    let legacy = call::<ConnectDomainEventDeregister>(&client, ()).await;
    assert_eq!(said(legacy), internal("domain event 0 not registered"));
    let any =
        call::<ConnectDomainEventDeregisterAny>(&client, ConnectDomainEventDeregisterAnyArgs { event_id: 3 })
            .await;
    assert_eq!(said(any), internal("domain event 3 not registered"));
    let callback = call::<ConnectDomainEventCallbackDeregisterAny>(
        &client,
        ConnectDomainEventCallbackDeregisterAnyArgs { callback_id: 9 },
    )
    .await;
    assert_eq!(said(callback), internal("domain event callback 9 not registered"));
    let newer =
        call::<ConnectDomainEventRegisterAny>(&client, ConnectDomainEventRegisterAnyArgs { event_id: 16 })
            .await;
    assert_eq!(said(newer), internal("unsupported event ID 16"));
}
