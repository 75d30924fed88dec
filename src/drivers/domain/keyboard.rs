//! Keys that a client presses in a guest.

use serde_json::{Value, json};

use super::Domains;
use super::flags::no_flags;
use super::reads::running;
use crate::error::{Error, Origin, Result};
use crate::qemu::job::{DomainHandle, Modify};
use crate::qemu::keys::KeySet;
use crate::qemu::monitor::SendKey;

/// Keys that go down together, in the numbers of one set.
#[derive(Debug)]
pub struct Keys {
    pub set: u32,
    pub codes: Vec<u32>,
    /// How long they stay down; 0 leaves it to QEMU.
    pub hold_ms: u32,
}

impl Domains {
    /// Presses keys, and lets them go after a while.
    pub async fn send_key(&self, mut domain: DomainHandle, keys: Keys, flags: u32) -> Result<()> {
        no_flags(flags, "qemuDomainSendKey")?;
        let set = KeySet::from_number(keys.set).ok_or_else(|| {
            Error::invalid_arg(format!("Unsupported codeset '{}'", keys.set)).from_origin(Origin::DOMAIN)
        })?;
        let numbers = numbers(set, &keys.codes)?;
        let job = domain.begin::<Modify>().await?;
        running(&job.state())?;
        let hold_time = (keys.hold_ms > 0).then_some(keys.hold_ms);
        job.live()?.monitor().execute(SendKey { keys: numbers, hold_time }).await?;
        Ok(())
    }
}

fn numbers(set: KeySet, codes: &[u32]) -> Result<Value> {
    let number = |(position, code): (usize, &u32)| {
        let number = set.to_qnum(*code).ok_or_else(|| {
            let name = set.name();
            Error::internal_error(format!(
                "cannot translate keycode {code} of {name} codeset to qnum keycode"
            ))
        })?;
        match number {
            0..=0xffff => Ok(json!({ "type": "number", "data": number })),
            _ => Err(Error::operation_failed(format!("keycode {position} is invalid: 0x{number:X}"))),
        }
    };
    codes.iter().enumerate().map(number).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_become_numbers_that_qemu_takes() {
        let key = |number| json!({ "type": "number", "data": number });
        assert_eq!(numbers(KeySet::Linux, &[29, 111]).unwrap(), json!([key(0x1d), key(0xd3)]));
        assert!(numbers(KeySet::Linux, &[9999]).unwrap_err().message().contains("of linux codeset"));
        assert!(numbers(KeySet::Qnum, &[1, 0x10000]).unwrap_err().message().contains("keycode 1 is invalid"));
    }
}
