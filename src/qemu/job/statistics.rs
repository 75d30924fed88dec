//! How far a long operation is, and how it went.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::kinds::Operation;
use crate::qemu::monitor::{DumpInfo, DumpStatus, MigrationInfo, MigrationStatus, RamTraffic, XbzrleTraffic};

/// `virDomainJobOperation`: what a client asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JobOperation {
    Unknown = 0,
    Start = 1,
    Save = 2,
    Restore = 3,
    MigrationIn = 4,
    MigrationOut = 5,
    Snapshot = 6,
    SnapshotRevert = 7,
    Dump = 8,
    Backup = 9,
    SnapshotDelete = 10,
}

impl JobOperation {
    pub fn number(self) -> i32 {
        self as i32
    }
}

impl From<Operation> for JobOperation {
    fn from(operation: Operation) -> Self {
        match operation {
            Operation::Start => Self::Start,
            Operation::Save => Self::Save,
            Operation::Dump => Self::Dump,
            Operation::Snapshot => Self::Snapshot,
            Operation::Backup => Self::Backup,
            Operation::MigrationOut => Self::MigrationOut,
            Operation::MigrationIn => Self::MigrationIn,
        }
    }
}

/// Where a job stands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum JobStatus {
    None,
    /// Prepares, or is of a kind that QEMU tells nothing of.
    #[default]
    Active,
    Migrating,
    /// QEMU has done its part.
    HypervisorCompleted,
    Paused,
    Postcopy,
    PostcopyPaused,
    PostcopyRecover,
    Completed,
    Failed,
    Canceled,
}

impl JobStatus {
    /// `virDomainJobType`
    pub fn kind(self) -> i32 {
        match self {
            Self::None => 0,
            Self::Active
            | Self::Migrating
            | Self::HypervisorCompleted
            | Self::Paused
            | Self::Postcopy
            | Self::PostcopyPaused
            | Self::PostcopyRecover => 2,
            Self::Completed => 3,
            Self::Failed => 4,
            Self::Canceled => 5,
        }
    }

    /// What QEMU's own status makes of it.
    pub fn after(self, qemu: MigrationStatus) -> Self {
        match qemu {
            MigrationStatus::PostcopyActive => Self::Postcopy,
            MigrationStatus::PostcopyRecover | MigrationStatus::PostcopyRecoverSetup => Self::PostcopyRecover,
            MigrationStatus::PostcopyPaused => Self::PostcopyPaused,
            MigrationStatus::Completed => Self::HypervisorCompleted,
            MigrationStatus::Inactive => Self::None,
            MigrationStatus::Failed => Self::Failed,
            MigrationStatus::Cancelled => Self::Canceled,
            MigrationStatus::PreSwitchover => Self::Paused,
            MigrationStatus::Device => Self::Migrating,
            MigrationStatus::Setup
            | MigrationStatus::Active
            | MigrationStatus::Cancelling
            | MigrationStatus::WaitUnplug
            | MigrationStatus::Unknown => self,
        }
    }
}

/// Which of the numbers mean something.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum JobSubject {
    #[default]
    None,
    Migration,
    /// Memory and devices to or from a file.
    SaveDump,
    /// Memory only, as QEMU dumps it.
    MemoryDump,
    Backup,
}

/// Bytes, and bytes a second.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    pub total: u64,
    pub processed: u64,
    pub remaining: u64,
    pub rate: u64,
}

impl From<&RamTraffic> for Traffic {
    fn from(told: &RamTraffic) -> Self {
        Self {
            total: told.total,
            processed: told.transferred,
            remaining: told.remaining,
            rate: bytes_per_second(told.mbps),
        }
    }
}

/// Pages of the guest's memory on their way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pages {
    /// Of one byte over and over; None if QEMU does not count them.
    pub constant: Option<u64>,
    pub normal: u64,
    pub normal_bytes: u64,
    pub dirty_rate: u64,
    pub size: u64,
    /// How often all memory has been gone through.
    pub iteration: u64,
    pub postcopy_requests: u64,
}

/// `virDomainJobInfo` and all that its newer form has. Times in milliseconds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobStatistics {
    pub operation: JobOperation,
    pub subject: JobSubject,
    pub status: JobStatus,
    /// When it began, since 1970.
    pub started_ms: u64,
    /// When it stopped the vCPUs, since 1970.
    pub stopped_ms: Option<u64>,
    pub elapsed_ms: u64,
    /// How much further the clock of the other host is; known to the destination when all is over.
    pub clock_delta_ms: Option<i64>,
    pub downtime_ms: Option<u64>,
    pub setup_ms: Option<u64>,
    pub memory: Traffic,
    pub pages: Pages,
    pub disk: Traffic,
    /// Disks that are copied beside the memory.
    pub mirrors: Traffic,
    /// Temporary space that a backup takes: used, set aside.
    pub scratch: (u64, u64),
    pub xbzrle: Option<Xbzrle>,
    pub throttle_percent: u32,
    pub vfio_bytes: u64,
    pub error: Option<String>,
}

/// What came of sending differences instead of pages.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Xbzrle {
    pub cache: u64,
    pub bytes: u64,
    pub pages: u64,
    pub cache_misses: u64,
    pub overflow: u64,
}

impl From<XbzrleTraffic> for Xbzrle {
    fn from(told: XbzrleTraffic) -> Self {
        let XbzrleTraffic { cache_size, bytes, pages, cache_miss, overflow } = told;
        Self { cache: cache_size, bytes, pages, cache_misses: cache_miss, overflow }
    }
}

impl JobStatistics {
    /// Of a job that begins now.
    pub fn new(operation: JobOperation) -> Self {
        Self {
            operation,
            subject: JobSubject::None,
            status: JobStatus::Active,
            started_ms: now_ms(),
            stopped_ms: None,
            elapsed_ms: 0,
            clock_delta_ms: None,
            downtime_ms: None,
            setup_ms: None,
            memory: Traffic::default(),
            pages: Pages::default(),
            disk: Traffic::default(),
            mirrors: Traffic::default(),
            scratch: (0, 0),
            xbzrle: None,
            throttle_percent: 0,
            vfio_bytes: 0,
            error: None,
        }
    }

    /// Takes over what QEMU tells of a migration.
    pub fn take_migration(&mut self, info: &MigrationInfo) {
        self.status = self.status.after(info.status);
        let downtime = match info.status {
            MigrationStatus::Completed => info.downtime,
            _ => info.expected_downtime,
        };
        self.downtime_ms = downtime.or(self.downtime_ms);
        self.setup_ms = info.setup_time.or(self.setup_ms);
        self.throttle_percent = info.cpu_throttle_percentage;
        if let Some(ram) = &info.ram {
            self.memory = Traffic::from(ram);
            self.pages = Pages {
                constant: ram.duplicate,
                normal: ram.normal,
                normal_bytes: ram.normal_bytes,
                dirty_rate: ram.dirty_pages_rate,
                size: ram.page_size,
                iteration: ram.dirty_sync_count,
                postcopy_requests: ram.postcopy_requests,
            };
            self.disk = info.disk.as_ref().map(Traffic::from).unwrap_or_default();
            self.xbzrle = info.xbzrle_cache.map(Xbzrle::from);
            self.vfio_bytes = info.vfio.map_or(0, |vfio| vfio.transferred);
        }
        self.pass_time();
    }

    /// Takes over what QEMU tells of a dump of memory.
    pub fn take_dump(&mut self, info: &DumpInfo) {
        self.memory = Traffic {
            total: info.total,
            processed: info.completed,
            remaining: info.total.saturating_sub(info.completed),
            rate: 0,
        };
        match info.status {
            DumpStatus::Completed => self.status = JobStatus::Completed,
            DumpStatus::Failed => self.status = JobStatus::Failed,
            DumpStatus::Active | DumpStatus::None => {}
        }
        self.pass_time();
    }

    /// Counts the time up to now.
    pub fn pass_time(&mut self) {
        self.elapsed_ms = now_ms().saturating_sub(self.started_ms);
    }

    /// Notes that the vCPUs stand still from now on.
    pub fn note_stop(&mut self) {
        self.stopped_ms = Some(now_ms());
    }

    /// As it is kept when its operation has ended well.
    #[must_use]
    pub fn completed(&self) -> Self {
        let mut done = self.clone();
        done.pass_time();
        if let Some(stopped) = done.stopped_ms {
            done.downtime_ms = Some(now_ms().saturating_sub(stopped));
        }
        done.status = JobStatus::Completed;
        done
    }
}

/// QEMU counts in units of 10^6 bits.
fn bytes_per_second(mbps: f64) -> u64 {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "as saturates, which is meant"
    )]
    match mbps > 0.0 {
        true => (mbps * 125_000.0) as u64,
        false => 0,
    }
}

/// Milliseconds since 1970.
pub fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn qemus_numbers_are_taken_over_and_the_end_is_told_in_full() {
        let told = r#"{"status": "completed", "total-time": 90, "downtime": 4, "setup-time": 2,
            "ram": {"total": 100, "transferred": 60, "remaining": 0, "mbps": 8.0, "duplicate": 3, "normal": 5,
                    "normal-bytes": 20480, "dirty-pages-rate": 7, "page-size": 4096, "dirty-sync-count": 2,
                    "postcopy-requests": 0, "something-newer": {}},
            "xbzrle-cache": {"cache-size": 1, "bytes": 2, "pages": 3, "cache-miss": 4, "cache-miss-rate": 0.5,
                             "encoding-rate": 0.1, "overflow": 5}}"#;
        let mut statistics = JobStatistics::new(JobOperation::Save);
        statistics.started_ms -= 1000;
        statistics.take_migration(&serde_json::from_str(told).unwrap());
        assert_eq!(statistics.status, JobStatus::HypervisorCompleted);
        assert_eq!(statistics.memory, Traffic { total: 100, processed: 60, remaining: 0, rate: 1_000_000 });
        assert_eq!((statistics.pages.constant, statistics.pages.iteration), (Some(3), 2));
        assert_eq!(statistics.xbzrle.unwrap().cache_misses, 4);
        assert_eq!((statistics.downtime_ms, statistics.setup_ms), (Some(4), Some(2)));
        statistics.stopped_ms = Some(now_ms() - 500);
        let done = statistics.completed();
        assert_eq!((done.status, done.status.kind()), (JobStatus::Completed, 3));
        assert!(done.elapsed_ms >= 1000 && done.downtime_ms.unwrap() >= 500);
    }

    #[test]
    fn a_status_without_a_meaning_of_its_own_changes_nothing() {
        let status = JobStatus::Migrating;
        assert_eq!(status.after(MigrationStatus::Active), JobStatus::Migrating);
        assert_eq!(status.after(MigrationStatus::Unknown), JobStatus::Migrating);
        assert_eq!(status.after(MigrationStatus::PreSwitchover), JobStatus::Paused);
        assert_eq!(JobStatus::Paused.after(MigrationStatus::Device), JobStatus::Migrating);
    }
}
