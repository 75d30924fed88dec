//! What clients learn of a long operation: how far it is, and how the last one went.

use std::sync::Arc;
use std::time::Duration;

use super::event::DomainEvent;
use super::flags::{CallFlags, JobStatsFlags};
use super::reads::running;
use super::{Domains, backup};
use crate::drivers::params::Params;
use crate::error::{Error, Result};
use crate::qemu::job::{
    AsyncJob, AsyncOp, DomainHandle, JobOperation, JobStatistics, JobStatus, JobSubject, Operation, Query,
    State, Traffic,
};
use crate::qemu::monitor::{QueryDump, QueryMigrate};

/// How long a guest's monitor may take to say how far it is; what it said last will do.
const PATIENCE: Duration = Duration::from_millis(500);

/// `virDomainJobInfo`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct JobInfo {
    pub kind: i32,
    pub elapsed_ms: u64,
    pub data: Traffic,
    pub memory: Traffic,
    pub file: Traffic,
}

impl Domains {
    /// The older form: numbers of the operation under way.
    pub async fn job_info(&self, domain: DomainHandle) -> Result<JobInfo> {
        Ok(self.underway(domain).await?.map_or_else(JobInfo::default, |statistics| info(&statistics)))
    }

    /// The newer form, with its `virDomainJobType`.
    pub async fn job_stats(&self, domain: DomainHandle, flags: u32) -> Result<(i32, Params)> {
        let flags = JobStatsFlags::accept(flags)?;
        let told = match flags.contains(JobStatsFlags::COMPLETED) {
            false => self.underway(domain).await?,
            true => last(&domain, flags),
        };
        match told {
            None => Ok((0, Params::default())),
            Some(statistics) => Ok((statistics.status.kind(), params(&statistics)?)),
        }
    }

    /// Tells subscribers how an operation went that has come to its end.
    pub(super) fn publish_completed<O: AsyncOp>(&self, job: &AsyncJob<O>) {
        job.update_then(
            |_| (),
            |state, ()| {
                if let Some(statistics) = state.completed.clone() {
                    self.publish(state, DomainEvent::JobCompleted { statistics });
                }
            },
        );
    }

    async fn underway(&self, mut domain: DomainHandle) -> Result<Option<Arc<JobStatistics>>> {
        if let Some((Operation::MigrationIn, _)) = domain.operation() {
            let sentence = "migration statistics are available only on the source host";
            return Err(Error::operation_unsupported(sentence));
        }
        running(&domain.state())?;
        let asked = tokio::time::timeout(PATIENCE, ask(&mut domain)).await;
        if let Ok(Err(error)) = asked {
            tracing::debug!(domain = %domain.state().name, %error, "the guest does not say how far it is");
        }
        let state = domain.state();
        running(&state)?;
        if let Some(underway) = &state.operation {
            let mut statistics = JobStatistics::clone(&underway.statistics);
            statistics.pass_time();
            return Ok((statistics.status != JobStatus::None).then(|| Arc::new(statistics)));
        }
        // A start is not written down.
        Ok(domain.operation().map(|(operation, age)| {
            let mut statistics = JobStatistics::new(JobOperation::from(operation));
            statistics.elapsed_ms = u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
            Arc::new(statistics)
        }))
    }
}

/// Has the statistics of the operation under way brought up to date.
async fn ask(domain: &mut DomainHandle) -> Result<()> {
    let state = domain.state();
    let Some(underway) = &state.operation else { return Ok(()) };
    let object = Arc::clone(domain.object());
    let started = underway.statistics.started_ms;
    let note = |note: &dyn Fn(&mut JobStatistics)| {
        let change = |state: &mut State| {
            let same = state.operation.as_mut().filter(|it| it.statistics.started_ms == started);
            if let Some(underway) = same {
                underway.note(|statistics| note(statistics));
            }
        };
        object.observe(change, |_, ()| ());
    };
    match (underway.statistics.subject, underway.statistics.status) {
        (JobSubject::Backup, _) => {
            let job = domain.begin::<Query>().await?;
            let told = backup::progress(&job.live()?).await?;
            note(&told);
        }
        (_, JobStatus::Active) if underway.statistics.subject != JobSubject::MemoryDump => {}
        (JobSubject::Migration | JobSubject::SaveDump, _) => {
            let job = domain.begin::<Query>().await?;
            let told = job.live()?.monitor().execute(QueryMigrate {}).await?;
            note(&|statistics| statistics.take_migration(&told));
        }
        (JobSubject::MemoryDump, _) => {
            let job = domain.begin::<Query>().await?;
            let told = job.live()?.monitor().execute(QueryDump {}).await?;
            note(&|statistics| statistics.take_dump(&told));
        }
        (JobSubject::None, _) => {}
    }
    Ok(())
}

/// How the last operation went; who asks takes it with him, unless he says otherwise.
fn last(domain: &DomainHandle, flags: JobStatsFlags) -> Option<Arc<JobStatistics>> {
    let take = |state: &mut State| match state.operation {
        Some(_) => None,
        None if flags.contains(JobStatsFlags::KEEP_COMPLETED) => state.completed.clone(),
        None => state.completed.take(),
    };
    domain.object().observe(take, |_, _| ())
}

/// One of memory, one of disks, and their sum.
fn info(statistics: &JobStatistics) -> JobInfo {
    let memory = Traffic { rate: 0, ..statistics.memory };
    let disks = sum(statistics.disk, statistics.mirrors);
    let (memory, file) = match statistics.subject {
        JobSubject::Migration => (memory, disks),
        JobSubject::SaveDump | JobSubject::MemoryDump => (memory, Traffic::default()),
        JobSubject::Backup => (Traffic::default(), disks),
        JobSubject::None => (Traffic::default(), Traffic::default()),
    };
    JobInfo {
        kind: statistics.status.kind(),
        elapsed_ms: statistics.elapsed_ms,
        data: sum(memory, file),
        memory,
        file,
    }
}

fn sum(one: Traffic, other: Traffic) -> Traffic {
    Traffic {
        total: one.total.saturating_add(other.total),
        processed: one.processed.saturating_add(other.processed),
        remaining: one.remaining.saturating_add(other.remaining),
        rate: one.rate,
    }
}

/// All numbers that mean something, under libvirt's names and in its order.
pub fn params(statistics: &JobStatistics) -> Result<Params> {
    let mut params = Params::default();
    params.push("operation", statistics.operation.number());
    params.push("time_elapsed", statistics.elapsed_ms);
    match statistics.subject {
        JobSubject::Migration | JobSubject::SaveDump => migration_params(statistics, &mut params),
        JobSubject::MemoryDump => traffic_params("memory", statistics.memory, &mut params),
        JobSubject::Backup => backup_params(statistics, &mut params),
        JobSubject::None => return Err(Error::internal_error("invalid job statistics type")),
    }
    Ok(params)
}

fn traffic_params(what: &str, traffic: Traffic, params: &mut Params) {
    params.push(format!("{what}_total"), traffic.total);
    params.push(format!("{what}_processed"), traffic.processed);
    params.push(format!("{what}_remaining"), traffic.remaining);
}

fn migration_params(statistics: &JobStatistics, params: &mut Params) {
    let JobStatistics { elapsed_ms, clock_delta_ms, downtime_ms, memory, pages, .. } = statistics;
    let net = |time: u64| {
        let delta = (*clock_delta_ms)?;
        let net = i128::from(time) - i128::from(delta);
        (net > 0).then(|| u64::try_from(net).unwrap_or(u64::MAX))
    };
    if let Some(net) = net(*elapsed_ms) {
        params.push("time_elapsed_net", net);
    }
    if let Some(downtime) = *downtime_ms {
        params.push("downtime", downtime);
        if let Some(net) = net(downtime) {
            params.push("downtime_net", net);
        }
    }
    if let Some(setup) = statistics.setup_ms {
        params.push("setup_time", setup);
    }
    let disks = sum(statistics.disk, statistics.mirrors);
    traffic_params("data", sum(*memory, disks), params);
    traffic_params("memory", *memory, params);
    if memory.rate > 0 {
        params.push("memory_bps", memory.rate);
    }
    if let Some(constant) = pages.constant {
        params.push("memory_constant", constant);
        params.push("memory_normal", pages.normal);
        params.push("memory_normal_bytes", pages.normal_bytes);
    }
    params.push("memory_dirty_rate", pages.dirty_rate);
    params.push("memory_iteration", pages.iteration);
    params.push("memory_postcopy_requests", pages.postcopy_requests);
    if pages.size > 0 {
        params.push("memory_page_size", pages.size);
    }
    if statistics.subject == JobSubject::SaveDump {
        return;
    }
    traffic_params("disk", disks, params);
    if statistics.disk.rate > 0 {
        params.push("disk_bps", statistics.disk.rate);
    }
    if let Some(xbzrle) = statistics.xbzrle {
        params.push("compression_cache", xbzrle.cache);
        params.push("compression_bytes", xbzrle.bytes);
        params.push("compression_pages", xbzrle.pages);
        params.push("compression_cache_misses", xbzrle.cache_misses);
        params.push("compression_overflow", xbzrle.overflow);
    }
    if statistics.throttle_percent > 0 {
        params.push("auto_converge_throttle", i32::try_from(statistics.throttle_percent).unwrap_or(i32::MAX));
    }
    if statistics.vfio_bytes > 0 {
        params.push("vfio_data_transferred", statistics.vfio_bytes);
    }
}

fn backup_params(statistics: &JobStatistics, params: &mut Params) {
    if statistics.disk.total > 0 || statistics.disk.processed > 0 {
        traffic_params("disk", statistics.disk, params);
    }
    let (used, total) = statistics.scratch;
    if used > 0 || total > 0 {
        params.push("disk_temp_used", used);
        params.push("disk_temp_total", total);
    }
    if statistics.status != JobStatus::Active {
        params.push("success", statistics.status == JobStatus::Completed);
    }
    if let Some(error) = &statistics.error {
        params.push("errmsg", &**error);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(statistics: &JobStatistics) -> Vec<String> {
        params(statistics).unwrap().into_iter().map(|(name, _)| name.into_owned()).collect()
    }

    #[test]
    fn each_subject_has_its_own_numbers() {
        let mut statistics = JobStatistics::new(JobOperation::MigrationOut);
        assert!(params(&statistics).is_err());
        statistics.subject = JobSubject::MemoryDump;
        assert_eq!(
            names(&statistics),
            ["operation", "time_elapsed", "memory_total", "memory_processed", "memory_remaining"]
        );
        statistics.subject = JobSubject::SaveDump;
        assert!(!names(&statistics).iter().any(|name| name.starts_with("disk")));
        statistics.subject = JobSubject::Migration;
        statistics.clock_delta_ms = Some(-40);
        statistics.elapsed_ms = 100;
        statistics.disk = Traffic { total: 10, processed: 4, remaining: 6, rate: 0 };
        statistics.mirrors = Traffic { total: 1, processed: 1, remaining: 0, rate: 0 };
        let found = params(&statistics).unwrap();
        assert_eq!(found.ullong("time_elapsed_net"), Some(&140));
        assert_eq!(found.ullong("data_total"), Some(&11));
        assert_eq!(found.ullong("disk_remaining"), Some(&6));
        statistics.subject = JobSubject::Backup;
        statistics.status = JobStatus::Completed;
        assert!(names(&statistics).ends_with(&["success".to_owned()]));
    }

    #[test]
    fn the_older_form_has_sums() {
        let mut statistics = JobStatistics::new(JobOperation::MigrationOut);
        statistics.subject = JobSubject::Migration;
        statistics.memory = Traffic { total: 100, processed: 60, remaining: 40, rate: 9 };
        statistics.disk = Traffic { total: 10, processed: 4, remaining: 6, rate: 3 };
        let info = info(&statistics);
        assert_eq!((info.kind, info.data.total, info.data.processed, info.data.remaining), (2, 110, 64, 46));
        assert_eq!((info.memory.total, info.file.remaining), (100, 6));
    }
}
