//! How a migration went, as the source tells the destination and, with the downtime known, the other way round.

use crate::conf::xml::xml;

xml! {
    /// `<statistics>`: times are milliseconds, amounts bytes.
    #[derive(Default)]
    pub struct Statistics {
        /// By the clock of whoever wrote them; milliseconds since 1970.
        text started: u64 = "started", or 0;
        /// When the vCPUs stood still.
        text stopped: u64 = "stopped", or 0;
        /// When these statistics were sent.
        text sent: u64 = "sent", or 0;
        /// How far the destination's clock is ahead, transfer included.
        text delta: Option<i64> = "delta";
        text time_elapsed: u64 = "time_elapsed", or 0;
        text downtime: Option<u64> = "downtime";
        text setup_time: Option<u64> = "setup_time";
        text memory_total: u64 = "memory_total", or 0;
        text memory_processed: u64 = "memory_processed", or 0;
        text memory_remaining: u64 = "memory_remaining", or 0;
        text memory_bps: u64 = "memory_bps", or 0;
        /// Pages of one byte repeated.
        text memory_constant: Option<u64> = "memory_constant";
        text memory_normal: Option<u64> = "memory_normal";
        text memory_normal_bytes: Option<u64> = "memory_normal_bytes";
        text memory_dirty_rate: u64 = "memory_dirty_rate", or 0;
        text memory_iteration: u64 = "memory_iteration", or 0;
        text memory_postcopy_requests: u64 = "memory_postcopy_requests", or 0;
        text memory_page_size: u64 = "memory_page_size", or 0;
        text disk_total: u64 = "disk_total", or 0;
        text disk_processed: u64 = "disk_processed", or 0;
        text disk_remaining: u64 = "disk_remaining", or 0;
        text disk_bps: u64 = "disk_bps", or 0;
        text compression_cache: Option<u64> = "compression_cache";
        text compression_bytes: Option<u64> = "compression_bytes";
        text compression_pages: Option<u64> = "compression_pages";
        text compression_cache_misses: Option<u64> = "compression_cache_misses";
        text compression_overflow: Option<u64> = "compression_overflow";
        text auto_converge_throttle: u64 = "auto_converge_throttle", or 0;
    }
}
