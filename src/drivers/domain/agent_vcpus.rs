//! The vCPUs as the guest's own system uses them: its agent takes them in and out of use.

use serde_json::{Value, json};

use super::Domains;
use super::agent::live_agent;
use super::flags::{CallFlags, VcpuFlags, no_flags};
use super::reads::running;
use crate::error::{Error, Result};
use crate::qemu::agent::{Request, Vcpu};
use crate::qemu::job::{DomainHandle, LiveAgent};
use crate::util::bitmap::Bitmap;

/// Guests number no vCPU from here on.
const MAX_VCPUS: usize = 4096;

/// The vCPUs that a guest's system knows, those it uses, those it can do without.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GuestVcpus {
    pub known: Bitmap,
    pub online: Bitmap,
    pub offlinable: Bitmap,
}

impl Domains {
    /// How many vCPUs the guest's system uses, or may use.
    pub async fn guest_vcpu_count(&self, mut domain: DomainHandle, flags: u32) -> Result<u32> {
        let flags = VcpuFlags::accept(flags)?;
        let state = domain.state();
        if flags.contains(VcpuFlags::LIVE) {
            running(&state)?;
        }
        let job = domain.begin_agent().await?;
        if !state.is_active() {
            return Err(Error::invalid_arg(
                "vCPU count provided by the guest agent can only be requested for live domains",
            ));
        }
        let vcpus = Vcpu::all(&live_agent(&state, &job)?).await?;
        let counted = vcpus.iter().filter(|vcpu| vcpu.online || flags.contains(VcpuFlags::MAXIMUM));
        Ok(u32::try_from(counted.count()).unwrap_or(u32::MAX))
    }

    /// Which vCPUs the guest's system uses.
    pub async fn guest_vcpus(&self, mut domain: DomainHandle, flags: u32) -> Result<GuestVcpus> {
        no_flags(flags, "qemuDomainGetGuestVcpus")?;
        let state = domain.state();
        let job = domain.begin_agent().await?;
        let mut sets = GuestVcpus::default();
        for vcpu in Vcpu::all(&live_agent(&state, &job)?).await? {
            let id = usize::try_from(vcpu.id).ok().filter(|id| *id < MAX_VCPUS).ok_or_else(|| {
                let sentence = format!("vcpu id '{}' reported by guest agent is out of range", vcpu.id);
                Error::internal_error(sentence)
            })?;
            sets.known.insert(id);
            if vcpu.online {
                sets.online.insert(id);
            }
            if vcpu.offlinable {
                sets.offlinable.insert(id);
            }
        }
        Ok(sets)
    }

    /// Takes some vCPUs in or out of the guest's use; `state` is 0 or 1.
    pub async fn set_guest_vcpus(
        &self,
        mut domain: DomainHandle,
        vcpus: &str,
        state: i32,
        flags: u32,
    ) -> Result<()> {
        no_flags(flags, "qemuDomainSetGuestVcpus")?;
        let online = match state {
            0 => false,
            1 => true,
            _ => {
                return Err(Error::refused_argument(
                    "qemuDomainSetGuestVcpus",
                    "state",
                    "unsupported state value",
                ));
            }
        };
        let mut wanted =
            Bitmap::parse(vcpus, MAX_VCPUS).map_err(|error| Error::invalid_arg(error.to_string()))?;
        let state = domain.state();
        let job = domain.begin_agent().await?;
        let agent = live_agent(&state, &job)?;
        let mut changes = Vec::new();
        for vcpu in Vcpu::all(&agent).await? {
            let id = usize::try_from(vcpu.id).unwrap_or(usize::MAX);
            if !wanted.contains(id) {
                continue;
            }
            if !online && !vcpu.offlinable {
                return Err(Error::operation_unsupported(format!("vCPU '{id}' is not offlinable")));
            }
            wanted.remove(id);
            changes.push(Change { id: vcpu.id, online });
        }
        if !wanted.is_empty() {
            return Err(Error::invalid_arg(format!("guest is missing vCPUs '{wanted}'")));
        }
        apply(&agent, changes).await
    }

    /// Lets the guest's system use so many vCPUs.
    pub async fn set_guest_vcpu_count(&self, mut domain: DomainHandle, count: u32) -> Result<()> {
        let state = domain.state();
        let job = domain.begin_agent().await?;
        let plugged = running(&state)?.vcpus.online();
        let agent = live_agent(&state, &job)?;
        if count > plugged {
            return Err(Error::invalid_arg(format!(
                "requested vcpu count is greater than the count of enabled vcpus in the domain: {count} > {plugged}"
            )));
        }
        let changes = changes_to(count, Vcpu::all(&agent).await?)?;
        apply(&agent, changes).await
    }
}

/// A vCPU that is to be used or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Change {
    id: u64,
    online: bool,
}

/// An agent may do a part of what it is asked, and says how much.
async fn apply(agent: &LiveAgent<'_>, mut changes: Vec<Change>) -> Result<()> {
    while !changes.is_empty() {
        let vcpus: Vec<Value> = changes
            .iter()
            .map(|change| json!({ "logical-id": change.id, "online": change.online }))
            .collect();
        let done: i64 =
            agent.ask(&Request::new("guest-set-vcpus", json!({ "vcpus": vcpus })).works()).await?;
        match usize::try_from(done) {
            Ok(done) if (1..=changes.len()).contains(&done) => drop(changes.drain(..done)),
            _ => {
                let sentence = "guest agent returned malformed or invalid return value";
                return Err(Error::internal_error(sentence));
            }
        }
    }
    Ok(())
}

/// What makes so many of the vCPUs used, the first ones first. vCPU 0 stays.
fn changes_to(count: u32, mut vcpus: Vec<Vcpu>) -> Result<Vec<Change>> {
    if vcpus.iter().any(|vcpu| !vcpu.online && !vcpu.offlinable) {
        return Err(Error::internal_error("Invalid data provided by guest agent"));
    }
    let mut online = vcpus.iter().filter(|vcpu| vcpu.online).count();
    let spare = vcpus.iter().filter(|vcpu| vcpu.online && vcpu.offlinable).count();
    // Linux could do without it, but not sleep without it.
    if spare == online
        && let Some(first) = vcpus.iter_mut().find(|vcpu| vcpu.id == 0 && vcpu.online)
    {
        first.offlinable = false;
    }
    let fixed = vcpus.iter().filter(|vcpu| vcpu.online && !vcpu.offlinable).count();
    let count = usize::try_from(count).unwrap_or(usize::MAX);
    if count > vcpus.len() {
        return Err(Error::internal_error("guest agent reports less cpu than requested"));
    }
    if count < fixed {
        return Err(Error::invalid_arg("Cannot offline enough CPUs"));
    }
    let mut changes = Vec::new();
    for vcpu in vcpus {
        if count < online && vcpu.online && vcpu.offlinable {
            online -= 1;
            changes.push(Change { id: vcpu.id, online: false });
        } else if count > online && !vcpu.online {
            online += 1;
            changes.push(Change { id: vcpu.id, online: true });
        }
    }
    Ok(changes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `+`: in use, `-`: not; a `!` behind it: stays so.
    fn vcpus(text: &str) -> Vec<Vcpu> {
        let words = text.split(' ').zip(0..);
        words
            .map(|(word, id)| Vcpu { id, online: word.starts_with('+'), offlinable: !word.ends_with('!') })
            .collect()
    }

    #[test]
    fn a_count_becomes_changes_that_leave_the_first_vcpu() {
        let change = |id, online| Change { id, online };
        for (now, count, expected) in [
            ("+! + + +", 2, Ok(vec![change(1, false), change(2, false)])),
            ("+ + + +", 1, Ok(vec![change(1, false), change(2, false), change(3, false)])),
            ("+! - - +", 4, Ok(vec![change(1, true), change(2, true)])),
            ("+! + -", 2, Ok(Vec::new())),
            ("+! +! +", 1, Err("invalid argument: Cannot offline enough CPUs")),
            ("+! +", 3, Err("internal error: guest agent reports less cpu than requested")),
            ("+! -!", 1, Err("internal error: Invalid data provided by guest agent")),
        ] {
            let changes = changes_to(count, vcpus(now)).map_err(|error| error.message());
            assert_eq!(changes, expected.map_err(str::to_owned), "{now} to {count}");
        }
    }
}
