//! What a guest's system is asked through its agent: its name and time, its users, its disks and networks.

use serde_json::{Value, json};

use super::Domains;
use super::agent::live_agent;
use super::flags::{CallFlags, HostnameFlags, PasswordFlags, SetTimeFlags, SshKeyFlags, no_flags};
use super::reads::running;
use crate::error::{Error, Result};
use crate::qemu::agent::guest::{self, Interface};
use crate::qemu::agent::{Done, Request};
use crate::qemu::capabilities::Cap;
use crate::qemu::job::{DomainHandle, Modify};
use crate::qemu::monitor::RtcResetReinjection;

/// A point in time, in two parts as clients pass it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GuestTime {
    /// Since 1970.
    pub seconds: i64,
    pub nanoseconds: u32,
}

impl Domains {
    pub async fn guest_hostname(&self, mut domain: DomainHandle, flags: u32) -> Result<String> {
        let flags = HostnameFlags::accept(flags)?;
        if flags.contains(HostnameFlags::LEASE | HostnameFlags::AGENT) {
            let sentence = "Flags 'VIR_DOMAIN_GET_HOSTNAME_LEASE' and 'VIR_DOMAIN_GET_HOSTNAME_AGENT' \
                            are mutually exclusive";
            return Err(Error::refused_argument("qemuDomainGetHostname", "ctl", sentence));
        }
        let state = domain.state();
        if flags.contains(HostnameFlags::LEASE) {
            running(&state)?;
            let sentence = format!("no hostname found for domain {}", state.name);
            return Err(Error::no_hostname(sentence));
        }
        let job = domain.begin_agent().await?;
        Ok(guest::hostname(&live_agent(&state, &job)?).await?)
    }

    pub async fn guest_time(&self, mut domain: DomainHandle, flags: u32) -> Result<GuestTime> {
        /// The agent counts these.
        const PER_SECOND: u64 = 1_000_000_000;
        no_flags(flags, "qemuDomainGetTime")?;
        let state = domain.state();
        let job = domain.begin_agent().await?;
        let time: u64 = live_agent(&state, &job)?.ask(&Request::new("guest-get-time", Value::Null)).await?;
        let seconds = i64::try_from(time / PER_SECOND).unwrap_or(i64::MAX);
        Ok(GuestTime { seconds, nanoseconds: u32::try_from(time % PER_SECOND).unwrap_or(0) })
    }

    /// Sets the guest's clock, to a time or to what its hardware clock says.
    pub async fn set_guest_time(&self, mut domain: DomainHandle, time: GuestTime, flags: u32) -> Result<()> {
        let flags = SetTimeFlags::accept(flags)?;
        let state = domain.state();
        let launched = state.launched.as_ref();
        if launched.is_none_or(|it| !it.capabilities.contains(Cap::RtcResetReinjection)) {
            let sentence = "cannot set time: qemu doesn't support rtc-reset-reinjection command";
            return Err(Error::operation_unsupported(sentence));
        }
        {
            let job = domain.begin_agent().await?;
            let agent = live_agent(&state, &job)?;
            let arguments = match flags.contains(SetTimeFlags::SYNC) {
                true => Value::Null,
                false => json!({ "time": in_nanoseconds(time)? }),
            };
            let Done = agent.ask(&Request::new("guest-set-time", arguments)).await?;
        }
        // The ticks that it missed would put the clock forward again.
        let job = domain.begin::<Modify>().await?;
        job.live()?.monitor().execute(RtcResetReinjection {}).await?;
        Ok(())
    }

    pub async fn set_user_password(
        &self,
        mut domain: DomainHandle,
        user: &str,
        password: &str,
        flags: u32,
    ) -> Result<()> {
        let flags = PasswordFlags::accept(flags)?;
        let state = domain.state();
        let job = domain.begin_agent().await?;
        let agent = live_agent(&state, &job)?;
        let arguments = json!({
            "crypted": flags.contains(PasswordFlags::ENCRYPTED),
            "username": user,
            "password": base64(password.as_bytes()),
        });
        let Done = agent.ask(&Request::new("guest-set-user-password", arguments)).await?;
        Ok(())
    }

    pub async fn user_ssh_keys(
        &self,
        mut domain: DomainHandle,
        user: &str,
        flags: u32,
    ) -> Result<Vec<String>> {
        #[derive(serde::Deserialize)]
        struct Reply {
            keys: Vec<String>,
        }
        no_flags(flags, "qemuDomainAuthorizedSSHKeysGet")?;
        let state = domain.state();
        let job = domain.begin_agent().await?;
        let request = Request::new("guest-ssh-get-authorized-keys", json!({ "username": user }));
        let Reply { keys } = live_agent(&state, &job)?.ask(&request).await?;
        Ok(keys)
    }

    /// Replaces the keys of a user, adds to them, or takes some away.
    pub async fn set_user_ssh_keys(
        &self,
        mut domain: DomainHandle,
        user: &str,
        keys: &[String],
        flags: u32,
    ) -> Result<()> {
        let flags = SshKeyFlags::accept(flags)?;
        let state = domain.state();
        let job = domain.begin_agent().await?;
        let agent = live_agent(&state, &job)?;
        let request = match flags.contains(SshKeyFlags::REMOVE) {
            true => {
                let arguments = json!({ "username": user, "keys": keys });
                Request::new("guest-ssh-remove-authorized-keys", arguments)
            }
            false => {
                let reset = !flags.contains(SshKeyFlags::APPEND);
                let arguments = json!({ "username": user, "keys": keys, "reset": reset });
                Request::new("guest-ssh-add-authorized-keys", arguments)
            }
        };
        let Done = agent.ask(&request).await?;
        Ok(())
    }

    /// The guest's networks as it sees them itself.
    pub async fn agent_interfaces(&self, mut domain: DomainHandle) -> Result<Vec<Interface>> {
        let state = domain.state();
        running(&state)?;
        let job = domain.begin_agent().await?;
        Ok(Interface::all(&live_agent(&state, &job)?).await?)
    }
}

/// What fits into the agent's number.
fn in_nanoseconds(time: GuestTime) -> Result<i64> {
    let nanoseconds = time.seconds.checked_mul(1_000_000_000);
    nanoseconds
        .and_then(|whole| whole.checked_add(i64::from(time.nanoseconds)))
        .ok_or_else(|| Error::invalid_arg(format!("Time '{}' is too big for guest agent", time.seconds)))
}

/// As the agent takes passwords.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let at = |index: usize| u32::from(group.get(index).copied().unwrap_or(0));
        let bits = at(0) << 16 | at(1) << 8 | at(2);
        for (place, shift) in [18, 12, 6, 0].into_iter().enumerate() {
            let digit = ALPHABET[(bits >> shift & 63) as usize];
            text.push(if place <= group.len() { char::from(digit) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_travel_in_base64() {
        for (text, encoded) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("a\u{ff}~", "YcO/fg=="),
        ] {
            assert_eq!(base64(text.as_bytes()), encoded);
        }
    }

    #[test]
    fn a_time_must_fit_into_the_agents_number() {
        let time = |seconds| GuestTime { seconds, nanoseconds: 5 };
        assert_eq!(in_nanoseconds(time(1)).unwrap(), 1_000_000_005);
        let error = in_nanoseconds(time(10_000_000_000)).unwrap_err();
        assert_eq!(error.message(), "invalid argument: Time '10000000000' is too big for guest agent");
    }
}
