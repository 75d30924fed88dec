//! The guest's clocks.

use super::line::Line;
use super::{Guest, Result, unsupported};
use crate::conf::domain::{ClockBasis, ClockOffset, TickPolicy, Timer, TimerName, TimerTrack};
use crate::conf::xml::YesNo;
use crate::qemu::capabilities::Cap;

pub(super) fn build(guest: &Guest<'_>, line: &mut Line<'_>) -> Result<()> {
    let clock = &guest.domain.clock;
    let mut text = match &clock.offset {
        ClockOffset::Utc { .. } => "base=utc".to_owned(),
        ClockOffset::Localtime { .. } => "base=localtime".to_owned(),
        ClockOffset::Timezone(zone) => {
            line.env.push(("TZ".to_owned(), zone.to_string()));
            "base=localtime".to_owned()
        }
        ClockOffset::Variable { adjustment_s, basis, .. } => {
            let local = match basis {
                ClockBasis::Utc => 0,
                ClockBasis::Localtime => guest.context.local_offset_s,
            };
            let moment = guest.context.now_s.saturating_add(*adjustment_s).saturating_add(local);
            format!("base={}", date_time(moment))
        }
        ClockOffset::Absolute { start } => {
            format!("base={}", date_time(i64::try_from(*start).unwrap_or(i64::MAX)))
        }
    };
    if let Some(rtc) = clock.timers.iter().find(|timer| timer.name == TimerName::Rtc) {
        match rtc.track {
            None => {}
            Some(TimerTrack::Guest) => text.push_str(",clock=vm"),
            Some(TimerTrack::Wall) => text.push_str(",clock=host"),
            Some(TimerTrack::Realtime) => text.push_str(",clock=rt"),
            Some(TimerTrack::Boot) => return unsupported("unsupported rtc timer track 'boot'"),
        }
        match rtc.tickpolicy {
            None | Some(TickPolicy::Delay) => {}
            Some(TickPolicy::Catchup) => text.push_str(",driftfix=slew"),
            Some(policy) => {
                return unsupported(format!("unsupported rtc timer tickpolicy '{policy}'"));
            }
        }
    }
    line.option("-rtc", text);
    for timer in &clock.timers {
        match timer.name {
            TimerName::Pit => pit(guest, line, timer)?,
            // Others say it with the machine.
            TimerName::Hpet if timer.present == Some(YesNo::No) && !guest.supports(Cap::MachineHpet) => {
                line.flag("-no-hpet");
            }
            _ => {}
        }
    }
    Ok(())
}

fn pit(guest: &Guest<'_>, line: &mut Line<'_>, timer: &Timer) -> Result<()> {
    let policy = match timer.tickpolicy {
        None | Some(TickPolicy::Delay) => "delay",
        Some(TickPolicy::Discard) => "discard",
        Some(TickPolicy::Catchup) => return Ok(()),
        Some(TickPolicy::Merge) => return unsupported("unsupported pit tickpolicy 'merge'"),
    };
    if guest.supports(Cap::KvmPitTickPolicy) {
        line.option("-global", format!("kvm-pit.lost_tick_policy={policy}"));
    }
    Ok(())
}

/// Seconds since 1970 as a date and a time of day, in UTC.
fn date_time(seconds: i64) -> String {
    let (days, rest) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    // Years that begin in March have their leap day at the end; 400 of them are one cycle.
    let shifted = days + 719_468;
    let (cycle, day_of_cycle) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year_of_cycle =
        (day_of_cycle - day_of_cycle / 1460 + day_of_cycle / 36_524 - day_of_cycle / 146_096) / 365;
    let day_of_year = day_of_cycle - (365 * year_of_cycle + year_of_cycle / 4 - year_of_cycle / 100);
    let march_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    let year = cycle * 400 + year_of_cycle + i64::from(month <= 2);
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}")
}

#[cfg(test)]
mod tests {
    use super::date_time;

    #[test]
    fn moments_become_dates() {
        for (seconds, date) in [
            (0, "1970-01-01T00:00:00"),
            (951_782_400, "2000-02-29T00:00:00"),
            (1_000_000_000, "2001-09-09T01:46:40"),
            (1_709_164_799, "2024-02-28T23:59:59"),
            (4_107_542_400, "2100-03-01T00:00:00"),
            (-1, "1969-12-31T23:59:59"),
        ] {
            assert_eq!(date_time(seconds), date);
        }
    }
}
