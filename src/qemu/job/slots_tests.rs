//! The slots against a model that knows only the rules: sets of holders, and "nobody waits who may start".

use proptest::prelude::*;

use super::*;

const LIMIT: usize = 6;

#[derive(Debug, Clone, Copy)]
enum Step {
    Ask(Want),
    EndNormal,
    EndAgent,
    EndAsync,
    Allow(Allowed),
    Park,
    Resume(Operation),
    DropParked,
    GiveUp(usize),
}

fn kind() -> impl Strategy<Value = Kind> {
    proptest::sample::select(Kind::ALL.to_vec())
}

fn allowed() -> impl Strategy<Value = Allowed> {
    proptest::collection::vec(kind(), 0..4).prop_map(|kinds| Allowed::of(&kinds))
}

fn operation() -> impl Strategy<Value = Operation> {
    proptest::sample::select(vec![Operation::Start, Operation::Save, Operation::MigrationOut])
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => kind().prop_map(|kind| Step::Ask(Want::Normal(kind))),
        2 => Just(Step::Ask(Want::Nested)),
        2 => Just(Step::Ask(Want::Agent)),
        2 => (operation(), allowed()).prop_map(|(op, allowed)| Step::Ask(Want::Async(op, allowed))),
        4 => Just(Step::EndNormal),
        2 => Just(Step::EndAgent),
        2 => Just(Step::EndAsync),
        1 => allowed().prop_map(Step::Allow),
        1 => Just(Step::Park),
        1 => operation().prop_map(Step::Resume),
        1 => Just(Step::DropParked),
        2 => (0..LIMIT).prop_map(Step::GiveUp),
    ]
}

/// The rules, stated once more without queues or clocks.
#[derive(Debug, Default)]
struct Model {
    normal: Option<u32>,
    agent: Option<u32>,
    operation: Option<(Operation, Allowed, bool)>,
    waiting: Vec<(u32, Want, Ticket)>,
}

impl Model {
    fn free_for(&self, want: Want) -> bool {
        match want {
            Want::Agent => self.agent.is_none(),
            Want::Nested => self.normal.is_none(),
            Want::Normal(kind) => {
                self.normal.is_none() && self.operation.is_none_or(|(_, allowed, _)| allowed.contains(kind))
            }
            Want::Async(..) => self.normal.is_none() && self.operation.is_none(),
        }
    }

    fn take(&mut self, who: u32, want: Want) {
        match want {
            Want::Agent => self.agent = Some(who),
            Want::Normal(_) | Want::Nested => self.normal = Some(who),
            Want::Async(operation, allowed) => self.operation = Some((operation, allowed, false)),
        }
    }

    /// Every waiter that the slots say has begun could begin, in queue order.
    fn begin(&mut self, begun: &[u32]) -> Result<(), TestCaseError> {
        for who in begun {
            let at = self.waiting.iter().position(|(it, ..)| it == who);
            let Some(at) = at else {
                return Err(TestCaseError::fail(format!("{who} began without waiting")));
            };
            for (earlier, want, _) in &self.waiting[..at] {
                prop_assert!(!self.free_for(*want), "{} overtook {}", who, earlier);
            }
            let (who, want, _) = self.waiting.remove(at);
            prop_assert!(self.free_for(want), "{} began on a taken slot", who);
            self.take(who, want);
        }
        Ok(())
    }
}

proptest! {
    #[test]
    fn nobody_waits_who_may_start_and_nobody_starts_who_may_not(steps in proptest::collection::vec(step(), 1..80)) {
        let now = Instant::now();
        let mut slots = Slots::new(LIMIT);
        let mut model = Model::default();
        for (who, step) in (0u32..).zip(steps) {
            let begun = match step {
                Step::Ask(want) => {
                    let free = model.free_for(want);
                    match slots.ask(want, who, now) {
                        Answer::Begun => {
                            prop_assert!(free);
                            model.take(who, want);
                        }
                        Answer::Queued(ticket) if want == Want::Normal(Kind::Destroy) => {
                            prop_assert!(!free);
                            model.waiting.insert(0, (who, want, ticket));
                        }
                        Answer::Queued(ticket) => {
                            prop_assert!(!free && model.waiting.len() < LIMIT);
                            model.waiting.push((who, want, ticket));
                        }
                        Answer::Full(_) => prop_assert!(!free && model.waiting.len() >= LIMIT),
                    }
                    Vec::new()
                }
                Step::EndNormal => {
                    model.normal = None;
                    slots.end_normal(now)
                }
                Step::EndAgent => {
                    model.agent = None;
                    slots.end_agent(now)
                }
                Step::EndAsync => {
                    model.operation = None;
                    slots.end_async(now)
                }
                Step::Allow(allowed) => {
                    model.operation = model.operation.map(|(operation, _, parked)| (operation, allowed, parked));
                    slots.allow(allowed, now)
                }
                Step::Park => {
                    model.operation = model.operation.map(|(operation, allowed, _)| (operation, allowed, true));
                    slots.park(Phase("begin3"));
                    Vec::new()
                }
                Step::Resume(operation) => {
                    prop_assert!(!slots.resume(operation, Phase("perform3")));
                    let expected = model.operation.is_some_and(|(it, _, parked)| it == operation && parked);
                    prop_assert_eq!(slots.resume(operation, Phase("begin3")), expected);
                    if expected {
                        model.operation = model.operation.map(|(operation, allowed, _)| (operation, allowed, false));
                    }
                    Vec::new()
                }
                Step::DropParked => {
                    model.operation = model.operation.filter(|(.., parked)| !parked);
                    slots.drop_parked(now)
                }
                Step::GiveUp(at) => {
                    if at < model.waiting.len() {
                        let (_, _, ticket) = model.waiting.remove(at);
                        prop_assert!(slots.give_up(ticket));
                        prop_assert!(!slots.give_up(ticket));
                    }
                    Vec::new()
                }
            };
            model.begin(&begun)?;
            for (who, want, _) in &model.waiting {
                prop_assert!(!model.free_for(*want), "{} waits although {:?} is free", who, want);
                prop_assert!(slots.blocker(*want, now).is_some());
            }
            prop_assert_eq!(slots.operation(now).map(|(it, _)| it), model.operation.map(|(it, ..)| it));
        }
    }
}

#[test]
fn an_operation_lets_through_what_it_allows_and_always_destroy() {
    for (allowed, through) in [
        (Allowed::DESTROY_ONLY, &[Kind::Destroy][..]),
        (Allowed::USUAL, &[Kind::Query, Kind::Abort, Kind::Destroy]),
        (Allowed::USUAL.and(&[Kind::Suspend]), &[Kind::Query, Kind::Suspend, Kind::Abort, Kind::Destroy]),
    ] {
        for kind in Kind::ALL {
            let now = Instant::now();
            let mut slots = Slots::new(LIMIT);
            assert_eq!(slots.ask(Want::Async(Operation::Start, allowed), (), now), Answer::Begun);
            let begun = slots.ask(Want::Normal(kind), (), now) == Answer::Begun;
            assert_eq!(begun, through.contains(&kind), "{kind:?}");
        }
    }
}

#[test]
fn a_waiter_learns_who_is_in_its_way_and_for_how_long() {
    let start = Instant::now();
    let later = start + Duration::from_secs(31);
    let mut slots = Slots::new(LIMIT);
    let save = Want::Async(Operation::Save, Allowed::USUAL);
    slots.ask(save, (), start);
    slots.ask(Want::Nested, (), start + Duration::from_secs(1));
    for (want, by, age) in [
        (Want::Normal(Kind::Modify), "save", 31),
        (Want::Normal(Kind::Query), "save", 30),
        (save, "save", 31),
    ] {
        let expected = Blocker { by, age: Duration::from_secs(age), slot: SlotName::Monitor, percent: None };
        assert_eq!(slots.blocker(want, later), Some(expected), "{want:?}");
    }
    assert_eq!(slots.blocker(Want::Agent, later), None);
}
