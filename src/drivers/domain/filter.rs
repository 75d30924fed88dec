//! Which domains a list call answers with.

use super::flags::ListFlags;
use crate::qemu::job::State;
use crate::qemu::run_state::RunState;

/// Whether `filter` lets the domain through: in every group of alternatives in which it names any, the
/// domain must be one of those named. `is_kept` looks for a managed save; it is asked if that counts.
pub(super) fn matches(filter: ListFlags, state: &State, is_kept: impl FnOnce() -> bool) -> bool {
    if filter.is_empty() {
        return true;
    }
    let is = |condition: bool, yes: ListFlags, no: ListFlags| if condition { yes } else { no };
    let run = match state.run {
        RunState::Running(_) => ListFlags::RUNNING,
        RunState::Paused(_) => ListFlags::PAUSED,
        RunState::Shutoff(_) => ListFlags::SHUTOFF,
        _ => ListFlags::OTHER,
    };
    let by_kept = ListFlags::MANAGED_SAVE | ListFlags::NO_MANAGED_SAVE;
    let is_kept = filter.intersects(by_kept) && is_kept();
    let groups = [
        (
            is(state.is_active(), ListFlags::ACTIVE, ListFlags::INACTIVE),
            ListFlags::ACTIVE | ListFlags::INACTIVE,
        ),
        (
            is(state.is_persistent(), ListFlags::PERSISTENT, ListFlags::TRANSIENT),
            ListFlags::PERSISTENT | ListFlags::TRANSIENT,
        ),
        (run, ListFlags::RUNNING | ListFlags::PAUSED | ListFlags::SHUTOFF | ListFlags::OTHER),
        (is(is_kept, ListFlags::MANAGED_SAVE, ListFlags::NO_MANAGED_SAVE), by_kept),
        (
            is(state.autostart, ListFlags::AUTOSTART, ListFlags::NO_AUTOSTART),
            ListFlags::AUTOSTART | ListFlags::NO_AUTOSTART,
        ),
        (ListFlags::NO_SNAPSHOT, ListFlags::HAS_SNAPSHOT | ListFlags::NO_SNAPSHOT),
        (ListFlags::NO_CHECKPOINT, ListFlags::HAS_CHECKPOINT | ListFlags::NO_CHECKPOINT),
    ];
    groups.iter().all(|(has, group)| !filter.intersects(*group) || filter.intersects(*has))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::util::uuid::Uuid;

    #[test]
    fn groups_are_alternatives_and_all_groups_must_agree() {
        let mut state = State::new("a", Uuid([1; 16]));
        state.autostart = true;
        let check = |filter, expected| assert_eq!(matches(filter, &state, || true), expected, "{filter:?}");
        check(ListFlags::empty(), true);
        check(ListFlags::INACTIVE, true);
        check(ListFlags::ACTIVE, false);
        check(ListFlags::ACTIVE | ListFlags::INACTIVE, true);
        check(ListFlags::INACTIVE | ListFlags::AUTOSTART | ListFlags::SHUTOFF, true);
        check(ListFlags::INACTIVE | ListFlags::NO_AUTOSTART, false);
        check(ListFlags::RUNNING | ListFlags::SHUTOFF, true);
        check(ListFlags::RUNNING | ListFlags::OTHER, false);
        check(ListFlags::HAS_SNAPSHOT, false);
        check(ListFlags::NO_CHECKPOINT | ListFlags::MANAGED_SAVE, true);
        check(ListFlags::NO_MANAGED_SAVE, false);
    }
}
