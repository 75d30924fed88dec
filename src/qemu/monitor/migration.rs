//! What QEMU says of a stream of its guest's state: to another host, to a file, or from there.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::command::{Command, Done};

/// How far a migration is. As libvirt takes it, "no migration" is a status too.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MigrationStatus {
    #[default]
    #[serde(alias = "none")]
    Inactive,
    Setup,
    Active,
    PreSwitchover,
    Device,
    PostcopyActive,
    PostcopyPaused,
    PostcopyRecover,
    PostcopyRecoverSetup,
    Completed,
    Failed,
    Cancelling,
    Cancelled,
    WaitUnplug,
    /// A newer QEMU's; something goes on.
    #[serde(other)]
    Unknown,
}

impl MigrationStatus {
    /// Whether QEMU is done with it, one way or the other.
    pub fn is_over(self) -> bool {
        matches!(self, Self::Inactive | Self::Completed | Self::Failed | Self::Cancelled)
    }
}

/// `query-migrate`; sizes in bytes, times in milliseconds.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct MigrationInfo {
    pub status: MigrationStatus,
    pub total_time: u64,
    /// Known when it is over.
    pub downtime: Option<u64>,
    pub expected_downtime: Option<u64>,
    pub setup_time: Option<u64>,
    pub cpu_throttle_percentage: u32,
    pub error_desc: Option<String>,
    /// Why this guest cannot be migrated at all.
    pub blocked_reasons: Vec<String>,
    pub ram: Option<RamTraffic>,
    pub disk: Option<RamTraffic>,
    pub xbzrle_cache: Option<XbzrleTraffic>,
    pub vfio: Option<VfioTraffic>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct RamTraffic {
    pub transferred: u64,
    pub remaining: u64,
    pub total: u64,
    /// In units of 10^6 bits a second.
    pub mbps: f64,
    pub duplicate: Option<u64>,
    pub normal: u64,
    pub normal_bytes: u64,
    pub dirty_pages_rate: u64,
    pub page_size: u64,
    pub dirty_sync_count: u64,
    pub postcopy_requests: u64,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct XbzrleTraffic {
    pub cache_size: u64,
    pub bytes: u64,
    pub pages: u64,
    pub cache_miss: u64,
    pub overflow: u64,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct VfioTraffic {
    pub transferred: u64,
}

/// `query-dump`, and the end of a dump.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
pub struct DumpInfo {
    pub status: DumpStatus,
    pub completed: u64,
    pub total: u64,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DumpStatus {
    #[default]
    None,
    Active,
    Completed,
    Failed,
}

/// Something that a migration can do, on or off.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MigrationCapability {
    #[serde(rename = "capability")]
    pub name: String,
    #[serde(rename = "state")]
    pub on: bool,
}

/// What a migration is told; what is absent stays as it is. Sizes in bytes (a second), times in milliseconds.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct MigrationParameters {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_throttle_initial: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_throttle_increment: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_creds: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_hostname: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_bandwidth: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub downtime_limit: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub xbzrle_cache_size: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_postcopy_bandwidth: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub multifd_channels: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub multifd_compression: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub multifd_zlib_level: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub multifd_zstd_level: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub avail_switchover_bandwidth: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub direct_io: Option<bool>,
    /// Which dirty bitmaps travel, and under which names.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub block_bitmap_mapping: Option<Value>,
}

impl Command for MigrationParameters {
    const NAME: &'static str = "migrate-set-parameters";
    type Reply = Done;
}

/// The formats in which QEMU dumps memory.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct DumpFormats {
    pub formats: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_under_way_is_inactive_and_newer_words_are_no_error() {
        for (reply, status) in [
            ("{}", MigrationStatus::Inactive),
            (r#"{"status": "none"}"#, MigrationStatus::Inactive),
            (r#"{"status": "postcopy-recover-setup"}"#, MigrationStatus::PostcopyRecoverSetup),
            (r#"{"status": "levitating", "levity": 3}"#, MigrationStatus::Unknown),
        ] {
            assert_eq!(serde_json::from_str::<MigrationInfo>(reply).unwrap().status, status, "{reply}");
        }
    }

    #[test]
    fn only_what_is_set_is_sent() {
        let some = MigrationParameters { max_bandwidth: Some(7), ..MigrationParameters::default() };
        assert_eq!(serde_json::to_string(&some).unwrap(), r#"{"max-bandwidth":7}"#);
    }
}
