//! What QEMU's questions about numbers answer.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::command::{Command, Done};

/// A frontend or a block node, with what lies below it.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct BlockStats {
    /// The frontend's path or alias.
    pub qdev: Option<String>,
    pub node_name: Option<String>,
    pub stats: BlockCounters,
    /// The node that holds this one's bytes.
    pub parent: Option<Box<BlockStats>>,
    /// The image below.
    pub backing: Option<Box<BlockStats>>,
}

/// Since the guest began; times in nanoseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
pub struct BlockCounters {
    pub rd_bytes: u64,
    pub wr_bytes: u64,
    pub rd_operations: u64,
    pub wr_operations: u64,
    #[serde(default)]
    pub flush_operations: u64,
    #[serde(default)]
    pub rd_total_time_ns: u64,
    #[serde(default)]
    pub wr_total_time_ns: u64,
    #[serde(default)]
    pub flush_total_time_ns: u64,
    #[serde(default)]
    pub wr_highest_offset: u64,
}

/// A drive of the guest.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct BlockDevice {
    pub qdev: Option<String>,
    /// `ok`, `failed` or `nospace`.
    pub io_status: Option<String>,
    /// The image in it.
    pub inserted: Option<Inserted>,
}

/// The image in a device.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Inserted {
    /// As it was given to QEMU.
    #[serde(default)]
    pub file: String,
    /// Its format.
    #[serde(default)]
    pub drv: String,
}

impl BlockDevice {
    /// Whether it is the device with this alias.
    pub fn is(&self, alias: &str) -> bool {
        self.qdev.as_deref().is_some_and(|qdev| is_device(qdev, alias))
    }
}

/// QEMU tells a device's alias, or a path that ends in it or goes on below it.
pub fn is_device(qdev: &str, alias: &str) -> bool {
    let below = qdev.strip_prefix("/machine/peripheral/").unwrap_or(qdev).strip_prefix(alias);
    below.is_some_and(|below| below.is_empty() || below.starts_with('/'))
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct BlockNode {
    pub node_name: Option<String>,
    /// Where a write makes QEMU report; 0: nowhere.
    #[serde(rename = "write_threshold", default)]
    pub write_threshold: u64,
    pub image: BlockImage,
}

/// Bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct BlockImage {
    pub virtual_size: u64,
    pub actual_size: Option<u64>,
    pub cluster_size: Option<u64>,
    #[serde(default)]
    pub format_specific: FormatSpecific,
}

/// What only images of some formats have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub struct FormatSpecific {
    pub data: FormatData,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct FormatData {
    /// Allocated by halves of clusters.
    pub extended_l2: bool,
}

/// The numbers of one vCPU, or of the whole guest.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct StatsSource {
    pub qom_path: Option<String>,
    pub stats: Vec<Stat>,
}

/// A number, a truth or a histogram.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Stat {
    pub name: String,
    pub value: Value,
}

/// What the names of one target mean.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct StatsSchema {
    pub target: String,
    pub stats: Vec<StatMeaning>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct StatMeaning {
    pub name: String,
    /// `cumulative`, `instant`, `peak` or a histogram.
    #[serde(rename = "type")]
    pub kind: String,
    pub unit: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct IoThreadStats {
    pub id: String,
    pub thread_id: u32,
    #[serde(default)]
    pub poll_max_ns: i64,
    #[serde(default)]
    pub poll_grow: i64,
    #[serde(default)]
    pub poll_shrink: i64,
}

/// How fast the guest dirties its memory, by the last measurement.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct DirtyRate {
    /// `unstarted`, `measuring` or `measured`.
    pub status: String,
    /// MiB per second.
    pub dirty_rate: Option<i64>,
    pub start_time: i64,
    pub calc_time: i32,
    pub mode: Option<String>,
    #[serde(default)]
    pub vcpu_dirty_rate: Vec<VcpuDirtyRate>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct VcpuDirtyRate {
    pub id: i32,
    pub dirty_rate: u64,
}

/// The pace of a drive, by its path; 0 for no limit. Older than QMP's way to write names.
#[derive(Debug, Clone, Default, Serialize)]
pub struct BlockSetIoThrottle {
    pub id: String,
    pub bps: u64,
    pub bps_rd: u64,
    pub bps_wr: u64,
    pub iops: u64,
    pub iops_rd: u64,
    pub iops_wr: u64,
    pub bps_max: u64,
    pub bps_rd_max: u64,
    pub bps_wr_max: u64,
    pub iops_max: u64,
    pub iops_rd_max: u64,
    pub iops_wr_max: u64,
    pub iops_size: u64,
    #[serde(flatten)]
    pub lengths: BurstLengths,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
}

/// Seconds that a burst may last.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct BurstLengths {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bps_max_length: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bps_rd_max_length: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bps_wr_max_length: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub iops_max_length: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub iops_rd_max_length: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub iops_wr_max_length: Option<u64>,
}

impl Command for BlockSetIoThrottle {
    const NAME: &'static str = "block_set_io_throttle";
    type Reply = Done;
}
