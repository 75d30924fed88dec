//! A job's statistics in the form of a cookie, and back.

use crate::conf::migration::Statistics;
use crate::qemu::job::{JobOperation, JobStatistics, JobStatus, JobSubject, Pages, Traffic, Xbzrle, now_ms};

/// For the other host, as of now.
pub(super) fn told(job: &JobStatistics) -> Statistics {
    let JobStatistics { memory, pages, disk, xbzrle, .. } = job;
    let compression = |number: fn(&Xbzrle) -> u64| xbzrle.as_ref().map(number);
    let counted = |number: u64| pages.constant.map(|_| number);
    Statistics {
        started: job.started_ms,
        stopped: job.stopped_ms.unwrap_or(0),
        sent: now_ms(),
        delta: job.clock_delta_ms,
        time_elapsed: job.elapsed_ms,
        downtime: job.downtime_ms,
        setup_time: job.setup_ms,
        memory_total: memory.total,
        memory_processed: memory.processed,
        memory_remaining: memory.remaining,
        memory_bps: memory.rate,
        memory_constant: pages.constant,
        memory_normal: counted(pages.normal),
        memory_normal_bytes: counted(pages.normal_bytes),
        memory_dirty_rate: pages.dirty_rate,
        memory_iteration: pages.iteration,
        memory_postcopy_requests: pages.postcopy_requests,
        memory_page_size: pages.size,
        disk_total: disk.total,
        disk_processed: disk.processed,
        disk_remaining: disk.remaining,
        disk_bps: disk.rate,
        compression_cache: compression(|it| it.cache),
        compression_bytes: compression(|it| it.bytes),
        compression_pages: compression(|it| it.pages),
        compression_cache_misses: compression(|it| it.cache_misses),
        compression_overflow: compression(|it| it.overflow),
        auto_converge_throttle: u64::from(job.throttle_percent),
    }
}

/// What the source told, as the destination keeps it: `received_ms` is when it came, the guest runs from now on.
pub(super) fn received(told: &Statistics, received_ms: u64) -> JobStatistics {
    let mut job = JobStatistics::new(JobOperation::MigrationIn);
    job.subject = JobSubject::Migration;
    job.status = JobStatus::Completed;
    job.started_ms = told.started;
    job.stopped_ms = Some(told.stopped).filter(|stopped| *stopped > 0);
    job.clock_delta_ms = told.delta;
    if told.sent > 0 {
        job.clock_delta_ms = Some(difference(received_ms, told.sent));
    }
    job.setup_ms = told.setup_time;
    job.memory = Traffic {
        total: told.memory_total,
        processed: told.memory_processed,
        remaining: told.memory_remaining,
        rate: told.memory_bps,
    };
    job.pages = Pages {
        constant: told.memory_constant,
        normal: told.memory_normal.unwrap_or(0),
        normal_bytes: told.memory_normal_bytes.unwrap_or(0),
        dirty_rate: told.memory_dirty_rate,
        size: told.memory_page_size,
        iteration: told.memory_iteration,
        postcopy_requests: told.memory_postcopy_requests,
    };
    job.disk = Traffic {
        total: told.disk_total,
        processed: told.disk_processed,
        remaining: told.disk_remaining,
        rate: told.disk_bps,
    };
    job.xbzrle = told.compression_cache.map(|cache| Xbzrle {
        cache,
        bytes: told.compression_bytes.unwrap_or(0),
        pages: told.compression_pages.unwrap_or(0),
        cache_misses: told.compression_cache_misses.unwrap_or(0),
        overflow: told.compression_overflow.unwrap_or(0),
    });
    job.throttle_percent = u32::try_from(told.auto_converge_throttle).unwrap_or(u32::MAX);
    job.pass_time();
    job.downtime_ms = job.stopped_ms.map(|stopped| now_ms().saturating_sub(stopped)).or(told.downtime);
    job
}

/// What only the destination knows.
pub(super) fn take_over(job: &mut JobStatistics, told: &Statistics) {
    job.clock_delta_ms = told.delta;
    job.downtime_ms = told.downtime;
    job.pass_time();
}

fn difference(late: u64, early: u64) -> i64 {
    i64::try_from(i128::from(late) - i128::from(early)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_side_tells_the_other_side_keeps() {
        let mut job = JobStatistics::new(JobOperation::MigrationOut);
        job.stopped_ms = Some(job.started_ms + 5);
        job.memory = Traffic { total: 9, processed: 8, remaining: 1, rate: 7 };
        job.pages = Pages { constant: Some(1), normal: 2, normal_bytes: 3, iteration: 4, ..Pages::default() };
        job.xbzrle = Some(Xbzrle { cache: 1, bytes: 2, pages: 3, cache_misses: 4, overflow: 5 });
        let sent = told(&job);
        let kept = received(&sent, sent.sent + 30);
        assert_eq!((kept.memory, kept.pages, kept.xbzrle), (job.memory, job.pages, job.xbzrle));
        assert_eq!((kept.started_ms, kept.clock_delta_ms), (job.started_ms, Some(30)));
        assert_eq!((kept.operation, kept.status), (JobOperation::MigrationIn, JobStatus::Completed));
        let mut source = job.clone();
        take_over(&mut source, &told(&kept));
        assert_eq!((source.clock_delta_ms, source.downtime_ms), (Some(30), kept.downtime_ms));
    }
}
