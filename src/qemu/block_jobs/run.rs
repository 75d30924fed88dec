//! Jobs that somebody waits for.

use std::time::Duration;

use serde_json::{Value, json};
use thiserror::Error;

use crate::qemu::monitor::{JobDismiss, JobInfo, Monitor, MonitorError, QueryJobs};

/// How long nothing may be reported before QEMU is asked.
const POLL: Duration = Duration::from_millis(500);

/// Why a job did not do its work.
#[derive(Debug, Error)]
pub enum RunError {
    #[error(transparent)]
    Monitor(#[from] MonitorError),
    #[error("{0}")]
    Failed(String),
}

/// Begins a job named `id` by `command` and returns when its work is done.
pub async fn run(monitor: &Monitor, id: &str, command: &str, mut arguments: Value) -> Result<(), RunError> {
    if let Some(arguments) = arguments.as_object_mut() {
        arguments.insert("job-id".to_owned(), json!(id));
    }
    monitor.execute_value(command, Some(arguments)).await?;
    let ended = wait_for(monitor, id, |job| job.status == "concluded").await?;
    monitor.execute(JobDismiss { id: id.to_owned() }).await?;
    match ended.and_then(|job| job.error) {
        Some(error) => Err(RunError::Failed(error)),
        None => Ok(()),
    }
}

/// Returns when a job is as wanted, or is no more.
pub async fn wait_for(
    monitor: &Monitor,
    id: &str,
    wanted: impl Fn(&JobInfo) -> bool,
) -> Result<Option<JobInfo>, MonitorError> {
    let mut progress = monitor.progress();
    loop {
        progress.borrow_and_update();
        let job = monitor.execute(QueryJobs {}).await?.into_iter().find(|job| job.id == id);
        match job {
            Some(job) if !wanted(&job) => {}
            found => return Ok(found),
        }
        // A change that was missed is found by asking.
        let _ = tokio::time::timeout(POLL, progress.changed()).await;
    }
}
