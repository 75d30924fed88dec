//! `<watchdog>`: a timer that the guest must wind.

use super::info::DeviceInfo;
use crate::conf::xml::{xml, xml_enum};

xml! {
    pub struct Watchdog {
        attr model: WatchdogModel = "model";
        attr action: WatchdogAction = "action", or WatchdogAction::Reset;
        flat info: DeviceInfo;
    }
}

xml_enum! {
    pub enum WatchdogModel {
        I6300esb = "i6300esb",
        Ib700 = "ib700",
        Diag288 = "diag288",
        Itco = "itco",
    }
}

xml_enum! {
    /// What happens when it runs out.
    pub enum WatchdogAction {
        Reset = "reset",
        Shutdown = "shutdown",
        Poweroff = "poweroff",
        Pause = "pause",
        Dump = "dump",
        None = "none",
        InjectNmi = "inject-nmi",
    }
}
