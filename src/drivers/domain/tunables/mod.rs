//! How much of the host a domain may use: read, and changed for the next start.
//!
//! | file | |
//! |---|---|
//! | `limits` | processor time, block I/O, memory, NUMA nodes: of the definition, and of a running guest where it has a cgroup |
//! | `bandwidth` | an interface's share of the network, which the host's kernel keeps |
//! | `throttle`, `groups` | the pace of a disk, or of several together, which QEMU itself keeps |
//!
//! Guests have no cgroup here, so their limits cannot be changed or measured while they run.

mod bandwidth;
mod groups;
mod limits;
mod throttle;

use std::sync::Arc;

pub use self::bandwidth::bandwidth;
pub use self::limits::Limits;
pub(super) use self::limits::refuse_unkept;

use super::flags::Impact;
use super::reads::{persistent, running};
use super::{Domains, blocking};
use crate::conf::domain::Domain;
use crate::drivers::params::Params;
use crate::error::{Error, Result};
use crate::qemu::job::{DomainHandle, DomainObject, Modify, State};

/// The flag word of a call that reads one definition.
fn one(state: &State, flags: u32, function: &'static str) -> Result<Impact> {
    let impact = Impact::of(flags & !super::stats::single::STRING_OKAY, function)?;
    if impact.contains(Impact::LIVE | Impact::CONFIG) {
        let flags = "Flags 'VIR_DOMAIN_AFFECT_LIVE' and 'VIR_DOMAIN_AFFECT_CONFIG' are mutually exclusive";
        return Err(Error::refused_argument("virDomainObjGetOneDefState", "flags", flags));
    }
    Ok(impact.on(state))
}

/// A domain's limits of one kind.
pub fn limits(state: &State, limits: Limits, flags: u32) -> Result<Params> {
    match one(state, flags, limits.reader())? {
        Impact::LIVE => {
            let definition = running(state)?;
            limits.check_readable()?;
            Ok(limits.read(definition))
        }
        _ => Ok(limits.read(persistent(state)?)),
    }
}

/// How many of a kind there are: known whether or not the host can tell them.
pub fn count(state: &State, limits: Limits, flags: u32) -> Result<i32> {
    if one(state, flags, limits.reader())? == Impact::LIVE {
        running(state)?;
    }
    Ok(i32::try_from(limits.known().len()).unwrap_or(i32::MAX))
}

impl Domains {
    /// Changes a domain's limits of one kind: those it starts with the next time.
    pub async fn set_limits(
        self: &Arc<Self>,
        mut domain: DomainHandle,
        limits: Limits,
        params: Params,
        flags: u32,
    ) -> Result<()> {
        let impact = Impact::of(flags, limits.writer())?;
        params.validate(limits.known())?;
        let object = Arc::clone(domain.object());
        let _job = domain.begin::<Modify>().await?;
        let state = object.state();
        let impact = impact.on(&state);
        if impact.contains(Impact::LIVE) {
            running(&state)?;
            return Err(Error::operation_invalid(limits.missing()));
        }
        self.edit_inactive(&object, move |definition| limits.write(definition, &params)).await
    }

    /// Changes what a domain starts with the next time, in its file and here.
    pub(super) async fn edit_inactive(
        self: &Arc<Self>,
        object: &Arc<DomainObject>,
        edit: impl FnOnce(&mut Domain) -> Result<()> + Send + 'static,
    ) -> Result<()> {
        let (domains, object) = (Arc::clone(self), Arc::clone(object));
        blocking(move || {
            let configuration = object.configure();
            let state = configuration.state();
            domains.check_there(&state)?;
            let mut definition = Domain::clone(persistent(&state)?);
            edit(&mut definition)?;
            domains.definitions.save(&definition).map_err(|error| {
                Error::io(format_args!("cannot save the definition of domain '{}'", state.name), error)
            })?;
            configuration.update(|state| state.inactive = Some(Arc::new(definition)), |_, ()| ());
            Ok(())
        })
        .await
    }
}
