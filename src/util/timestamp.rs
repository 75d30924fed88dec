//! The time of day as libvirt writes it into logs.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A moment, printed as `2026-11-21 10:20:22.559+0000`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp(pub SystemTime);

impl Timestamp {
    pub fn now() -> Self {
        Self(SystemTime::now())
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let since = self.0.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        let (days, rest) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
        let (year, month, day) = date(days);
        let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
        let millis = since.subsec_millis();
        write!(f, "{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}.{millis:03}+0000")
    }
}

/// The date that lies so many days after 1970-01-01.
fn date(days: u64) -> (u64, u64, u64) {
    // Years are counted from a first of March, which puts the leap day at their end; 400 of them always have
    // the same number of days.
    const DAYS_OF_400_YEARS: u64 = 146_097;
    let days = days + 719_468;
    let of_cycle = days % DAYS_OF_400_YEARS;
    let year_of_cycle = (of_cycle - of_cycle / 1460 + of_cycle / 36_524 - of_cycle / 146_096) / 365;
    let of_year = of_cycle - (365 * year_of_cycle + year_of_cycle / 4 - year_of_cycle / 100);
    let month_from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = days / DAYS_OF_400_YEARS * 400 + year_of_cycle + u64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_print_as_libvirt_writes_them() {
        for (millis, text) in [
            (0, "1970-01-01 00:00:00.000+0000"),
            (951_782_400_000, "2000-02-29 00:00:00.000+0000"),
            (951_868_799_999, "2000-02-29 23:59:59.999+0000"),
            (1_709_251_200_001, "2024-03-01 00:00:00.001+0000"),
            (1_795_256_422_559, "2026-11-21 10:20:22.559+0000"),
            (4_107_542_399_000, "2100-02-28 23:59:59.000+0000"),
            (4_107_542_400_000, "2100-03-01 00:00:00.000+0000"),
        ] {
            assert_eq!(Timestamp(UNIX_EPOCH + Duration::from_millis(millis)).to_string(), text);
        }
    }
}
