//! What a fuzzer runs over every kind of text but a guest's definition, so that ordinary tests run it too.
//!
//! Whatever a reader accepts must read back as it was written: files of the daemon are written from it.

use super::backup::Backup;
use super::capabilities::cpu::{DescribedCpu, Wanted};
use super::checkpoint::{Checkpoint, Shown};
use super::devices::Devices;
use super::secret::Secret;
use super::snapshot::{Purpose, Snapshot};
use super::storage::{Capacity, Pool, PoolType, Source, Volume};
use super::xml::Form;
use super::{ConfError, Result};
use crate::util::uuid::Uuid;

/// What has no uuid of its own.
const FRESH: Uuid = Uuid([3; 16]);

/// Reads a text as everything that it could be. Where nobody accepts it, one of the refusals.
pub fn xml(text: &str) -> Result<()> {
    let secure = Form::INACTIVE | Form::SECURE;
    let mut answer = Err(ConfError::xml("nobody reads this"));
    let mut note = |accepted: Result<()>| {
        if accepted.is_ok() || answer.is_err() {
            answer = accepted;
        }
    };
    for purpose in [Purpose::Online, Purpose::Offline] {
        note(Snapshot::parse(text, purpose).map(|snapshot| drop(snapshot.to_xml(secure))));
    }
    note(stable(text, |text| Snapshot::from_file(text).map(|(made, current)| made.to_file(current))));
    note(Checkpoint::parse(text).map(drop));
    note(stable(text, |text| Checkpoint::parse_made(text).map(|made| made.to_xml(secure, Shown::All))));
    note(stable(text, |text| Backup::parse(text).map(|backup| backup.to_xml())));
    note(stable(text, |text| Secret::parse(text, FRESH).map(|secret| secret.to_xml())));
    note(stable(text, |text| Pool::parse(text, FRESH).map(|pool| pool.to_xml())));
    note(stable(text, |text| Pool::parse_state(text, FRESH).map(|pool| pool.to_state())));
    for kind in PoolType::ALL {
        note(Source::parse(text, *kind).map(|source| drop(Source::list_to_xml(&[source], *kind))));
        note(Volume::parse(text, *kind, Capacity::Optional).map(|volume| drop(volume.to_xml())));
    }
    for wanted in [Wanted::Host, Wanted::Either] {
        note(DescribedCpu::parse(text, wanted).map(drop));
    }
    for form in [Form::INACTIVE, Form::LIVE] {
        note(Devices::read_one(text, form).map(drop));
    }
    answer
}

/// What is read from what was written is written alike.
fn stable(text: &str, rewrite: impl Fn(&str) -> Result<String>) -> Result<()> {
    let written = rewrite(text)?;
    let again = rewrite(&written).unwrap_or_else(|error| error.message);
    assert!(again == written, "what was written reads as something else:\n{written}\n{again}");
    Ok(())
}
