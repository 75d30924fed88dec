//! What can be changed about a migration before and while it runs.

use super::phases::MAX_MIB_PER_SECOND;
use super::request::MigrateFlags;
use crate::drivers::domain::Domains;
use crate::drivers::flags::{CallFlags, flag_words, no_flags};
use crate::error::{Error, Result};
use crate::qemu::job::{DomainHandle, MigrationOp, Operation, Query, State};
use crate::qemu::migrate;
use crate::qemu::monitor::{MigrateStartPostcopy, MigrationParameters};

flag_words!(
    /// `virDomainMigrateMaxSpeedFlags`
    SpeedFlags of "qemuDomainMigrateSetMaxSpeed" {
        POSTCOPY = 1,
    }
);

impl Domains {
    /// How fast a guest may leave, in MiB a second: now, if it is leaving, and the next time.
    pub async fn migrate_set_speed(&self, mut domain: DomainHandle, mib: u64, flags: u32) -> Result<()> {
        let postcopy = SpeedFlags::accept(flags)?.contains(SpeedFlags::POSTCOPY);
        if mib > MAX_MIB_PER_SECOND {
            return Err(Error::overflow(format!("bandwidth must be less than {}", MAX_MIB_PER_SECOND + 1)));
        }
        let state = domain.state();
        if !state.is_active() && !postcopy {
            keep_speed(&domain, mib << 20);
            return Ok(());
        }
        let parameters = match postcopy {
            true => MigrationParameters {
                max_postcopy_bandwidth: Some(mib << 20),
                ..MigrationParameters::default()
            },
            false => MigrationParameters { max_bandwidth: Some(mib << 20), ..MigrationParameters::default() },
        };
        tell(&mut domain, parameters).await?;
        if !postcopy {
            keep_speed(&domain, mib << 20);
        }
        Ok(())
    }

    pub async fn migrate_speed(&self, mut domain: DomainHandle, flags: u32) -> Result<u64> {
        match SpeedFlags::accept_in(flags, "qemuDomainMigrateGetMaxSpeed")?.contains(SpeedFlags::POSTCOPY) {
            false => Ok(speed(&domain.state()) >> 20),
            true => Ok(told(&mut domain).await?.max_postcopy_bandwidth.unwrap_or(0) >> 20),
        }
    }

    /// How long the guest may stand still at the end.
    pub async fn migrate_set_downtime(&self, mut domain: DomainHandle, ms: u64, flags: u32) -> Result<()> {
        no_flags(flags, "qemuDomainMigrateSetMaxDowntime")?;
        tell(&mut domain, MigrationParameters { downtime_limit: Some(ms), ..MigrationParameters::default() })
            .await
    }

    pub async fn migrate_downtime(&self, mut domain: DomainHandle, flags: u32) -> Result<u64> {
        no_flags(flags, "qemuDomainMigrateGetMaxDowntime")?;
        let limit = told(&mut domain).await?.downtime_limit;
        limit.ok_or_else(|| Error::operation_invalid("Unable to get migration downtime"))
    }

    /// How much memory QEMU keeps for sending differences.
    pub async fn migrate_set_cache(&self, mut domain: DomainHandle, bytes: u64, flags: u32) -> Result<()> {
        no_flags(flags, "qemuDomainMigrateSetCompressionCache")?;
        tell(
            &mut domain,
            MigrationParameters { xbzrle_cache_size: Some(bytes), ..MigrationParameters::default() },
        )
        .await
    }

    pub async fn migrate_cache(&self, mut domain: DomainHandle, flags: u32) -> Result<u64> {
        no_flags(flags, "qemuDomainMigrateGetCompressionCache")?;
        Ok(told(&mut domain).await?.xbzrle_cache_size.unwrap_or(0))
    }

    /// Has the guest run on the other side from now on; what it needs of its memory follows.
    pub async fn migrate_start_postcopy(&self, mut domain: DomainHandle, flags: u32) -> Result<()> {
        no_flags(flags, "qemuDomainMigrateStartPostCopy")?;
        let job = domain.begin::<MigrationOp>().await?;
        let live = job.live()?;
        let state = job.state();
        let leaving =
            state.operation.as_ref().filter(|underway| underway.operation == Operation::MigrationOut);
        let invalid = |sentence: &'static str| Error::operation_invalid(sentence);
        let leaving = leaving.ok_or_else(|| {
            invalid("post-copy can only be started while outgoing migration is in progress")
        })?;
        if leaving.flags & MigrateFlags::POSTCOPY.bits() == 0 {
            return Err(invalid(
                "switching to post-copy requires migration to be started with VIR_MIGRATE_POSTCOPY flag",
            ));
        }
        Ok(live.monitor().execute(MigrateStartPostcopy {}).await.map(drop)?)
    }
}

/// How fast a guest may leave, in bytes a second.
pub(super) fn speed(state: &State) -> u64 {
    state.migration_speed.unwrap_or(MAX_MIB_PER_SECOND << 20)
}

fn keep_speed(domain: &DomainHandle, bytes_per_second: u64) {
    domain.object().observe(|state| state.migration_speed = Some(bytes_per_second), |_, ()| ());
}

async fn tell(domain: &mut DomainHandle, parameters: MigrationParameters) -> Result<()> {
    let job = domain.begin::<MigrationOp>().await?;
    Ok(job.live()?.monitor().execute(parameters).await.map(drop)?)
}

async fn told(domain: &mut DomainHandle) -> Result<MigrationParameters> {
    let job = domain.begin::<Query>().await?;
    Ok(migrate::parameters(&job.live()?).await?)
}
