//! What follows the guest's end, its power management, and the counters to keep.

use crate::conf::ConfError;
use crate::conf::xml::{YesNo, xml, xml_enum};

xml_enum! {
    pub enum LifecycleAction {
        Destroy = "destroy",
        Restart = "restart",
        RenameRestart = "rename-restart",
        Preserve = "preserve",
        CoredumpDestroy = "coredump-destroy",
        CoredumpRestart = "coredump-restart",
    }
    refuse |place, text| ConfError::unsupported(format!("unknown {} action: {text}", place.element))
}

xml_enum! {
    pub enum LockFailureAction {
        Poweroff = "poweroff",
        Restart = "restart",
        Pause = "pause",
        Ignore = "ignore",
    }
    refuse |place, text| ConfError::unsupported(format!("unknown {} action: {text}", place.element))
}

xml! {
    /// Which sleep states the guest's firmware offers.
    #[derive(Copy, Eq, Default)]
    pub struct Pm {
        child_attr suspend_to_mem: Option<YesNo> = "suspend-to-mem" / "enabled";
        child_attr suspend_to_disk: Option<YesNo> = "suspend-to-disk" / "enabled";
    }
}

xml_enum! {
    pub enum PerfEventName {
        Cmt = "cmt",
        Mbmt = "mbmt",
        Mbml = "mbml",
        CpuCycles = "cpu_cycles",
        Instructions = "instructions",
        CacheReferences = "cache_references",
        CacheMisses = "cache_misses",
        BranchInstructions = "branch_instructions",
        BranchMisses = "branch_misses",
        BusCycles = "bus_cycles",
        StalledCyclesFrontend = "stalled_cycles_frontend",
        StalledCyclesBackend = "stalled_cycles_backend",
        RefCpuCycles = "ref_cpu_cycles",
        CpuClock = "cpu_clock",
        TaskClock = "task_clock",
        PageFaults = "page_faults",
        ContextSwitches = "context_switches",
        CpuMigrations = "cpu_migrations",
        PageFaultsMin = "page_faults_min",
        PageFaultsMaj = "page_faults_maj",
        AlignmentFaults = "alignment_faults",
        EmulationFaults = "emulation_faults",
    }
}

xml! {
    pub struct PerfEvent {
        attr name: PerfEventName = "name";
        attr enabled: YesNo = "enabled";
    }
}
