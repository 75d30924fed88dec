//! How far the host's own clock on the wall is from UTC.

use jiff::Timestamp;
use jiff::tz::TimeZone;

/// Seconds to add to UTC at the moment `now_s`, by the daemon's `$TZ` or `/etc/localtime`.
pub fn offset_s(now_s: i64) -> i64 {
    offset_in(&TimeZone::system(), now_s)
}

fn offset_in(zone: &TimeZone, now_s: i64) -> i64 {
    // A moment that no calendar knows has no summer time either.
    let moment = Timestamp::from_second(now_s).unwrap_or(Timestamp::UNIX_EPOCH);
    zone.to_offset(moment).seconds().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_offset_is_that_of_the_season() {
        const JANUARY: i64 = 1_768_478_400;
        const JULY: i64 = 1_784_116_800;
        for (zone, january, july) in [
            ("UTC0", 0, 0),
            ("IST-5:30", 19_800, 19_800),
            ("CET-1CEST,M3.5.0,M10.5.0/3", 3_600, 7_200),
            ("EST5EDT,M3.2.0,M11.1.0", -18_000, -14_400),
        ] {
            let zone = TimeZone::posix(zone).unwrap();
            assert_eq!((offset_in(&zone, JANUARY), offset_in(&zone, JULY)), (january, july), "{zone:?}");
        }
        assert_eq!(offset_in(&TimeZone::UTC, i64::MAX), 0);
    }
}
