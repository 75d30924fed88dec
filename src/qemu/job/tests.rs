//! The guards over real waiting: limits, cancelled waiters, parking.

use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::qemu::process::How;
use crate::util::uuid::Uuid;

fn domain(wait: Duration) -> Arc<DomainObject> {
    let state = State::new("guest", Uuid([7; 16]));
    Arc::new(DomainObject::new(state, Limits { wait, max_queued: 2 }))
}

fn handle(domain: &Arc<DomainObject>) -> DomainHandle {
    DomainHandle::new(Arc::clone(domain))
}

const LONG: Duration = Duration::from_secs(3600);

#[tokio::test(start_paused = true)]
async fn a_wait_ends_with_the_limit_and_names_the_holder() {
    let domain = domain(Duration::from_secs(30));
    let mut holder = handle(&domain);
    let mut waiter = handle(&domain);
    let job = holder.begin::<Modify>().await.unwrap();
    let error = waiter.begin::<Query>().await.unwrap_err();
    assert!(matches!(error, JobError::Timeout(Some(Blocker { by: "modify", .. }))));
    let sentence =
        "cannot acquire state change lock (held by monitor=modify for 0 s; destroying the guest ends it)";
    assert_eq!(error.to_string(), sentence);
    drop(job);
    assert!(waiter.begin::<Query>().await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn who_is_refused_learns_how_far_the_operation_is() {
    let domain = domain(Duration::from_secs(30));
    let operation = handle(&domain).begin_async::<Save>().await.unwrap();
    operation.update(|state| {
        if let Some(underway) = &mut state.operation {
            underway.note(|statistics| (statistics.memory.total, statistics.memory.processed) = (200, 50));
        }
    });
    let error = handle(&domain).begin::<Modify>().await.unwrap_err();
    let sentence = "(held by monitor=save for 0 s, 25 % done; aborting the job ends it)";
    assert!(error.to_string().ends_with(sentence), "{error}");
}

#[tokio::test]
async fn waiters_begin_in_order() {
    let domain = domain(LONG);
    let mut holder = handle(&domain);
    let job = holder.begin::<Modify>().await.unwrap();
    let order = Arc::new(std::sync::Mutex::new(Vec::new()));
    let mut tasks = Vec::new();
    for who in 0..2 {
        let (mut waiter, order) = (handle(&domain), Arc::clone(&order));
        tasks.push(tokio::spawn(async move {
            let _job = waiter.begin::<Modify>().await.unwrap();
            order.lock().unwrap().push(who);
        }));
        tokio::task::yield_now().await;
    }
    let mut third = handle(&domain);
    assert!(matches!(third.begin::<Modify>().await, Err(JobError::TooManyWaiting(Some(_)))));
    drop(job);
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(*order.lock().unwrap(), [0, 1]);
}

#[tokio::test]
async fn a_waiter_that_leaves_holds_nobody_up() {
    let domain = domain(LONG);
    let (mut holder, mut leaver, mut next) = (handle(&domain), handle(&domain), handle(&domain));
    let job = holder.begin::<Modify>().await.unwrap();
    {
        // Polled once, so that it stands in the queue; woken by the drop below; never polled again.
        let mut waiting = Box::pin(leaver.begin::<Modify>());
        assert!(futures_poll_once(&mut waiting).await.is_none());
        drop(job);
    }
    assert!(next.begin::<Modify>().await.is_ok());
}

async fn futures_poll_once<F: Future + Unpin>(future: &mut F) -> Option<F::Output> {
    std::future::poll_fn(|context| match std::pin::Pin::new(&mut *future).poll(context) {
        std::task::Poll::Ready(output) => std::task::Poll::Ready(Some(output)),
        std::task::Poll::Pending => std::task::Poll::Ready(None),
    })
    .await
}

#[tokio::test(start_paused = true)]
async fn an_operation_keeps_others_out_between_its_nested_jobs() {
    let domain = domain(Duration::from_secs(30));
    let mut operation = handle(&domain).begin_async::<Save>().await.unwrap();
    operation.nested().await.unwrap().update(|state| state.id = Some(1));
    let mut other = handle(&domain);
    assert!(matches!(
        other.begin::<Modify>().await,
        Err(JobError::Timeout(Some(Blocker { by: "save", .. })))
    ));
    assert!(other.begin::<Query>().await.is_ok());
    assert!(other.begin_agent().await.is_ok());
    operation.allow(Allowed::DESTROY_ONLY);
    assert!(other.begin::<Query>().await.is_err());
    assert!(other.begin::<Destroy>().await.is_ok());
    drop(operation);
    assert!(other.begin::<Modify>().await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_parked_operation_waits_for_its_next_phase() {
    const BEGIN: Phase = Phase("begin3");
    let domain = domain(Duration::from_secs(30));
    handle(&domain).begin_async::<MigrationOut>().await.unwrap().park(BEGIN);
    assert!(handle(&domain).begin::<Modify>().await.is_err());
    assert!(matches!(handle(&domain).resume::<Save>(BEGIN), Err(JobError::NotParked)));
    let resumed = handle(&domain).resume::<MigrationOut>(BEGIN).unwrap();
    assert!(matches!(handle(&domain).resume::<MigrationOut>(BEGIN), Err(JobError::NotParked)));
    drop(resumed);
    assert!(handle(&domain).begin::<Modify>().await.is_ok());
}

#[tokio::test]
async fn no_job_begins_on_a_domain_that_is_gone() {
    let domain = domain(LONG);
    let mut last = handle(&domain);
    last.begin::<Modify>().await.unwrap().update(|state| state.gone = true);
    let error = handle(&domain).begin::<Query>().await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "no domain with matching uuid '07070707-0707-0707-0707-070707070707' (guest)"
    );
    assert!(matches!(handle(&domain).begin_async::<Start>().await, Err(JobError::Gone { .. })));
    assert!(handle(&domain).state().gone);
}

#[tokio::test]
async fn a_guest_that_is_being_taken_hold_of_is_stopped_after_that() {
    let domain = domain(LONG);
    let taking_hold = handle(&domain).begin_async::<Start>().await.unwrap();
    let definition = crate::conf::domain::Domain::parse(
        "<domain type='qemu'><name>guest</name><memory>1024</memory><os><type>hvm</type></os></domain>",
        crate::conf::xml::Form::INACTIVE,
    );
    taking_hold.update(|state| state.live = Some(Arc::new(definition.unwrap())));
    let mut stopper = handle(&domain);
    let stop = tokio::spawn(async move { stopper.stop(How::Forced, Ending::Destroyed).await });
    tokio::task::yield_now().await;
    assert!(!stop.is_finished(), "it runs, so nobody may be told that it does not");
    drop(taking_hold);
    assert!(matches!(stop.await.unwrap(), Err(JobError::NotRunning)));
}
