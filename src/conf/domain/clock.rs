//! `<clock>`: what the guest's clocks show.

use crate::conf::xml::{Element, Form, Part, Value, Writer, YesNo, xml, xml_enum};
use crate::conf::{ConfError, Result};

xml! {
    #[derive(Default)]
    pub struct Clock {
        flat offset: ClockOffset;
        child timers: Vec<Timer> = "timer";
    }
}

/// What the clock starts from.
#[derive(Debug, Clone, PartialEq)]
pub enum ClockOffset {
    Utc {
        reset: bool,
    },
    Localtime {
        reset: bool,
    },
    /// Moves with the guest's own changes.
    Variable {
        adjustment_s: i64,
        basis: ClockBasis,
        /// What this run was started with: a change that QEMU reports is relative to it. In status files only.
        at_start_s: i64,
    },
    Timezone(Box<str>),
    /// Seconds since 1970.
    Absolute {
        start: u64,
    },
}

impl Default for ClockOffset {
    fn default() -> Self {
        Self::Utc { reset: false }
    }
}

xml_enum! {
    pub enum ClockBasis {
        Utc = "utc",
        Localtime = "localtime",
    }
    refuse |_place, text| ConfError::unsupported(format!("unknown clock basis '{text}'"))
}

impl ClockOffset {
    /// What a run begins with: in UTC from here on, so that a host whose time zone changes, or another host, does not
    /// move the guest's clock.
    pub fn begin(&mut self, local_offset_s: i64) {
        if let Self::Variable { adjustment_s, basis, at_start_s } = self {
            if *basis == ClockBasis::Localtime {
                *adjustment_s = adjustment_s.saturating_add(local_offset_s);
                *basis = ClockBasis::Utc;
            }
            *at_start_s = *adjustment_s;
        }
    }

    /// The guest has set its clock, `by_s` seconds from what it was started with; answers how far it is from its
    /// basis now.
    pub fn moved(&mut self, by_s: i64) -> i64 {
        match self {
            Self::Variable { adjustment_s, at_start_s, .. } => {
                *adjustment_s = by_s.saturating_add(*at_start_s);
                *adjustment_s
            }
            _ => by_s,
        }
    }

    /// `utc` and `localtime` may carry an adjustment, which makes them variable.
    fn read_fixed(element: Element<'_>, basis: ClockBasis) -> Result<Self> {
        let reset = match element.attribute("adjustment") {
            None | Some("") => false,
            Some("reset") => true,
            Some(text) => {
                let adjustment_s = <i64 as Value>::parse(text)
                    .ok_or_else(|| ConfError::xml(format!("unknown clock adjustment '{text}'")))?;
                return Ok(Self::Variable { adjustment_s, basis, at_start_s: 0 });
            }
        };
        Ok(match basis {
            ClockBasis::Utc => Self::Utc { reset },
            ClockBasis::Localtime => Self::Localtime { reset },
        })
    }
}

impl Part for ClockOffset {
    fn read(element: Element<'_>) -> Result<Self> {
        match element.attribute("offset").unwrap_or("utc") {
            "utc" => Self::read_fixed(element, ClockBasis::Utc),
            "localtime" => Self::read_fixed(element, ClockBasis::Localtime),
            "variable" => Ok(Self::Variable {
                adjustment_s: element.attribute("adjustment").and_then(Value::parse).unwrap_or(0),
                basis: element.value("basis")?.unwrap_or(ClockBasis::Utc),
                at_start_s: element.attribute("adjustment0").and_then(Value::parse).unwrap_or(0),
            }),
            "timezone" => match element.attribute("timezone").filter(|zone| !zone.is_empty()) {
                Some(zone) => Ok(Self::Timezone(zone.into())),
                None => {
                    Err(ConfError::internal("missing 'timezone' attribute for clock with offset='timezone'"))
                }
            },
            "absolute" => match element.attribute("start").and_then(Value::parse) {
                Some(start) => Ok(Self::Absolute { start }),
                None => {
                    Err(ConfError::internal("missing 'start' attribute for clock with offset='absolute'"))
                }
            },
            other => Err(ConfError::unsupported(format!("unknown clock offset '{other}'"))),
        }
    }

    fn write_attributes(&self, out: &mut Writer) {
        let reset_if = |out: &mut Writer, reset: bool| {
            if reset {
                out.attribute_str("adjustment", "reset");
            }
        };
        match self {
            Self::Utc { reset } => {
                out.attribute_str("offset", "utc");
                reset_if(out, *reset);
            }
            Self::Localtime { reset } => {
                out.attribute_str("offset", "localtime");
                reset_if(out, *reset);
            }
            Self::Variable { adjustment_s, basis, at_start_s } => {
                out.attribute_str("offset", "variable");
                out.attribute("adjustment", adjustment_s);
                out.attribute("basis", basis);
                if out.form().contains(Form::STATUS) && *at_start_s != 0 {
                    out.attribute("adjustment0", at_start_s);
                }
            }
            Self::Timezone(zone) => {
                out.attribute_str("offset", "timezone");
                out.attribute("timezone", zone);
            }
            Self::Absolute { start } => {
                out.attribute_str("offset", "absolute");
                out.attribute("start", start);
            }
        }
    }
}

xml_enum! {
    pub enum TimerName {
        Platform = "platform",
        Pit = "pit",
        Rtc = "rtc",
        Hpet = "hpet",
        Tsc = "tsc",
        Kvmclock = "kvmclock",
        Hypervclock = "hypervclock",
        Armvtimer = "armvtimer",
    }
}

xml_enum! {
    /// What happens to ticks the guest missed.
    pub enum TickPolicy {
        Delay = "delay",
        Catchup = "catchup",
        Merge = "merge",
        Discard = "discard",
    }
}

xml_enum! {
    pub enum TimerTrack {
        Boot = "boot",
        Guest = "guest",
        Wall = "wall",
        Realtime = "realtime",
    }
}

xml_enum! {
    pub enum TimerMode {
        Auto = "auto",
        Native = "native",
        Emulate = "emulate",
        Paravirt = "paravirt",
        Smpsafe = "smpsafe",
    }
}

xml! {
    pub struct Timer {
        attr name: TimerName = "name";
        attr present: Option<YesNo> = "present";
        attr tickpolicy: Option<TickPolicy> = "tickpolicy";
        attr track: Option<TimerTrack> = "track";
        /// Of the time stamp counter only.
        attr frequency_hz: Option<u64> = "frequency";
        attr mode: Option<TimerMode> = "mode";
        group catchup: Catchup = "catchup";
    }
}

xml! {
    #[derive(Copy, Eq, Default)]
    pub struct Catchup {
        attr threshold: Option<u64> = "threshold";
        attr slew: Option<u64> = "slew";
        attr limit: Option<u64> = "limit";
    }
}
