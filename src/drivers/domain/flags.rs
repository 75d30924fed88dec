//! The flag words of domain calls, as libvirt numbers them.

use crate::drivers::flags::flag_words;
pub use crate::drivers::flags::{CallFlags, no_flags};
use crate::error::{Error, Result};
use crate::qemu::job::State;

flag_words!(
    /// `virDomainDefineFlags`
    DefineFlags of "qemuDomainDefineXMLFlags" {
        VALIDATE = 1,
    }
    /// `virDomainUndefineFlagsValues`
    UndefineFlags of "qemuDomainUndefineFlags" {
        MANAGED_SAVE = 1,
        SNAPSHOTS_METADATA = 1 << 1,
        NVRAM = 1 << 2,
        KEEP_NVRAM = 1 << 3,
        CHECKPOINTS_METADATA = 1 << 4,
        TPM = 1 << 5,
        KEEP_TPM = 1 << 6,
    }
    /// `virDomainCreateFlags` of a domain that is there.
    StartFlags of "qemuDomainCreateWithFlags" {
        PAUSED = 1,
        AUTODESTROY = 1 << 1,
        BYPASS_CACHE = 1 << 2,
        FORCE_BOOT = 1 << 3,
        RESET_NVRAM = 1 << 5,
    }
    /// `virDomainCreateFlags` of a domain that comes with the call.
    CreateFlags of "qemuDomainCreateXML" {
        PAUSED = 1,
        AUTODESTROY = 1 << 1,
        VALIDATE = 1 << 4,
        RESET_NVRAM = 1 << 5,
    }
    /// `virDomainDestroyFlagsValues`
    DestroyFlags of "qemuDomainDestroyFlags" {
        GRACEFUL = 1,
        REMOVE_LOGS = 1 << 1,
    }
    /// `virDomainAbortJobFlagsValues`
    AbortFlags of "qemuDomainAbortJobFlags" {
        POSTCOPY = 1,
    }
    /// `virDomainSaveRestoreFlags` of a save.
    SaveFlags of "qemuDomainSaveFlags" {
        BYPASS_CACHE = 1,
        RUNNING = 1 << 1,
        PAUSED = 1 << 2,
    }
    /// The same of a restore.
    RestoreFlags of "qemuDomainRestoreInternal" {
        BYPASS_CACHE = 1,
        RUNNING = 1 << 1,
        PAUSED = 1 << 2,
        RESET_NVRAM = 1 << 3,
    }
    /// `virDomainSaveImageXMLFlags`
    ImageFlags of "qemuDomainSaveImageGetXMLDesc" {
        SECURE = 1,
    }
    /// What a saved guest is to do when it is restored.
    ImageStateFlags of "qemuDomainSaveImageDefineXML" {
        RUNNING = 1 << 1,
        PAUSED = 1 << 2,
    }
    /// `virDomainCoreDumpFlags`
    DumpFlags of "qemuDomainCoreDumpWithFormat" {
        CRASH = 1,
        LIVE = 1 << 1,
        BYPASS_CACHE = 1 << 2,
        RESET = 1 << 3,
        MEMORY_ONLY = 1 << 4,
    }
    /// `virDomainGetJobStatsFlags`
    JobStatsFlags of "qemuDomainGetJobStats" {
        COMPLETED = 1,
        KEEP_COMPLETED = 1 << 1,
    }
    /// `virDomainShutdownFlagValues`, as far as QEMU has them.
    ShutdownFlags of "qemuDomainShutdownFlags" {
        ACPI_POWER_BTN = 1,
        GUEST_AGENT = 1 << 1,
    }
    /// `virDomainRebootFlagValues`, as far as QEMU has them.
    RebootFlags of "qemuDomainReboot" {
        ACPI_POWER_BTN = 1,
        GUEST_AGENT = 1 << 1,
    }
    /// `virDomainBlockPullFlags`
    BlockPullFlags of "qemuDomainBlockPull" {
        BANDWIDTH_BYTES = 1 << 6,
    }
    /// `virDomainBlockRebaseFlags`
    BlockRebaseFlags of "qemuDomainBlockRebase" {
        SHALLOW = 1,
        REUSE_EXT = 1 << 1,
        COPY_RAW = 1 << 2,
        COPY = 1 << 3,
        RELATIVE = 1 << 4,
        COPY_DEV = 1 << 5,
        BANDWIDTH_BYTES = 1 << 6,
    }
    /// `virDomainBlockCopyFlags`
    BlockCopyFlags of "qemuDomainBlockCopy" {
        SHALLOW = 1,
        REUSE_EXT = 1 << 1,
        TRANSIENT_JOB = 1 << 2,
        SYNCHRONOUS_WRITES = 1 << 3,
    }
    /// `virDomainBlockCommitFlags`
    BlockCommitFlags of "qemuDomainBlockCommit" {
        SHALLOW = 1,
        DELETE = 1 << 1,
        ACTIVE = 1 << 2,
        RELATIVE = 1 << 3,
        BANDWIDTH_BYTES = 1 << 4,
    }
    /// `virDomainBlockJobAbortFlags`
    BlockJobAbortFlags of "qemuDomainBlockJobAbort" {
        ASYNC = 1,
        PIVOT = 1 << 1,
    }
    /// `virDomainBlockJobInfoFlags` and `virDomainBlockJobSetSpeedFlags`
    JobBandwidthFlags of "qemuDomainBlockJobSetSpeed" {
        BYTES = 1,
    }
    /// `virDomainXMLFlags`
    XmlFlags of "qemuDomainGetXMLDesc" {
        SECURE = 1,
        INACTIVE = 1 << 1,
        UPDATE_CPU = 1 << 2,
        MIGRATABLE = 1 << 3,
    }
    /// `virDomainMessageType`
    MessageFlags of "qemuDomainGetMessages" {
        DEPRECATION = 1,
        TAINTING = 1 << 1,
        IOERRORS = 1 << 2,
    }
    /// `virDomainConsoleFlags`
    ConsoleFlags of "qemuDomainOpenConsole" {
        FORCE = 1,
        SAFE = 1 << 1,
    }
    /// `virDomainChannelFlags`
    ChannelFlags of "qemuDomainOpenChannel" {
        FORCE = 1,
    }
    /// `virDomainOpenGraphicsFlags`
    OpenGraphicsFlags of "qemuDomainOpenGraphics" {
        SKIPAUTH = 1,
    }
    /// `virDomainFDAssociateFlags`
    FdAssociateFlags of "qemuDomainFDAssociate" {
        SECLABEL_RESTORE = 1,
        SECLABEL_WRITABLE = 1 << 1,
    }
    /// `virDomainQemuMonitorCommandFlags`
    MonitorCommandFlags of "qemuDomainQemuMonitorCommandWithFiles" {
        HMP = 1,
    }
    /// `virDomainGetHostnameFlags`
    HostnameFlags of "qemuDomainGetHostname" {
        LEASE = 1,
        AGENT = 1 << 1,
    }
    /// `virDomainSetTimeFlags`
    SetTimeFlags of "qemuDomainSetTime" {
        SYNC = 1,
    }
    /// `virDomainSetUserPasswordFlags`
    PasswordFlags of "qemuDomainSetUserPassword" {
        ENCRYPTED = 1,
    }
    /// `virDomainAuthorizedSSHKeysSetFlags`
    SshKeyFlags of "qemuDomainAuthorizedSSHKeysSet" {
        APPEND = 1,
        REMOVE = 1 << 1,
    }
    /// `virDomainModificationImpact`
    Impact of "virDomainObjGetMetadata" {
        LIVE = 1,
        CONFIG = 1 << 1,
    }
    /// `virDomainVcpuFlags`
    VcpuFlags of "qemuDomainGetVcpusFlags" {
        LIVE = 1,
        CONFIG = 1 << 1,
        MAXIMUM = 1 << 2,
        GUEST = 1 << 3,
    }
    /// `virConnectGetAllDomainStatsFlags`; the filters are those of [`ListFlags`].
    StatsFlags of "qemuConnectGetAllDomainStats" {
        FILTERS = 0xff,
        NOWAIT = 1 << 29,
        BACKING = 1 << 30,
        ENFORCE = 1 << 31,
    }
    /// `virDomainMemoryFlags`
    MemoryFlags of "qemuDomainMemoryPeek" {
        VIRTUAL = 1,
        PHYSICAL = 1 << 1,
    }
    /// `virDomainDeviceModifyFlags`
    UpdateFlags of "qemuDomainUpdateDeviceFlags" {
        LIVE = 1,
        CONFIG = 1 << 1,
        FORCE = 1 << 2,
    }
    /// `virDomainMemoryModFlags`
    SetMemoryFlags of "qemuDomainSetMemoryFlags" {
        LIVE = 1,
        CONFIG = 1 << 1,
        MAXIMUM = 1 << 2,
    }
    /// `virDomainVcpuFlags` of a change.
    SetVcpusFlags of "qemuDomainSetVcpusFlags" {
        LIVE = 1,
        CONFIG = 1 << 1,
        MAXIMUM = 1 << 2,
        GUEST = 1 << 3,
        HOTPLUGGABLE = 1 << 4,
    }
    /// `virDomainBlockResizeFlags`
    ResizeFlags of "qemuDomainBlockResize" {
        BYTES = 1,
        CAPACITY = 1 << 1,
    }
    /// `virDomainDirtyRateCalcFlags`
    DirtyRateFlags of "qemuDomainStartDirtyRateCalc" {
        BITMAP = 1,
        RING = 1 << 1,
    }
    /// `virConnectListAllDomainsFlags`: groups of alternatives; a group without a flag filters nothing.
    ListFlags of "qemuConnectListAllDomains" {
        ACTIVE = 1,
        INACTIVE = 1 << 1,
        PERSISTENT = 1 << 2,
        TRANSIENT = 1 << 3,
        RUNNING = 1 << 4,
        PAUSED = 1 << 5,
        SHUTOFF = 1 << 6,
        OTHER = 1 << 7,
        MANAGED_SAVE = 1 << 8,
        NO_MANAGED_SAVE = 1 << 9,
        AUTOSTART = 1 << 10,
        NO_AUTOSTART = 1 << 11,
        HAS_SNAPSHOT = 1 << 12,
        NO_SNAPSHOT = 1 << 13,
        HAS_CHECKPOINT = 1 << 14,
        NO_CHECKPOINT = 1 << 15,
    }
);

impl Impact {
    /// As [`CallFlags::accept`]: many calls have this word.
    pub fn of(bits: u32, function: &'static str) -> Result<Self> {
        match bits & !Self::all().bits() {
            0 => Ok(Self::from_bits_retain(bits)),
            unknown => Err(Error::unsupported_flags(unknown, function)),
        }
    }

    /// What no flag means of a domain in this state: the guest if it runs, else its definition.
    pub fn on(self, state: &State) -> Self {
        match (self.is_empty(), state.is_active()) {
            (false, _) => self,
            (true, true) => Self::LIVE,
            (true, false) => Self::CONFIG,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_bits_are_refused_by_value_and_function() {
        assert_eq!(DestroyFlags::accept(1).unwrap(), DestroyFlags::GRACEFUL);
        let error = DestroyFlags::accept(0x81).unwrap_err();
        assert_eq!(error.message(), "unsupported flags (0x80) in function qemuDomainDestroyFlags");
        assert!(no_flags(0, "f").is_ok());
        assert!(no_flags(4, "f").is_err());
    }
}
