//! From a client's text to a definition that can run.

use std::io;
use std::path::PathBuf;

use super::{Domains, blocking};
use crate::conf::domain::defaults::{Facts, Generator};
use crate::conf::domain::{Domain, schema};
use crate::conf::xml::Form;
use crate::error::{Error, Result};
use crate::qemu::facts::facts;
use crate::qemu::firmware;
use crate::util::arch::Arch;
use crate::util::mac::Mac;
use crate::util::uuid::Uuid;

impl Domains {
    /// What a text defines, with everything it leaves out filled in; nonsense is refused.
    pub(super) async fn read_definition(&self, xml: &str) -> Result<Domain> {
        self.complete(parse(xml).await?).await
    }

    /// The same for a definition to which something was added.
    pub(super) async fn complete(&self, mut definition: Domain) -> Result<Domain> {
        let caps = self.emulators.lookup(&self.emulator_of(&definition)?).await?;
        let firmwares = match definition.wants_firmware() {
            true => blocking(|| Ok(firmware::descriptors(&firmware::DIRECTORIES))).await?,
            false => Vec::new(),
        };
        let nvram_dir = self.paths.qemu_state().join("nvram").display().to_string();
        let facts = Facts { firmwares: &firmwares, nvram_dir: &nvram_dir, ..facts(&caps, &definition) };
        fill_in(&mut definition, &facts)?;
        definition.validate(&facts)?;
        Ok(definition)
    }

    /// Refuses names that nobody knows, where a client asks for that.
    pub(super) async fn check_names(&self, xml: &str) -> Result<()> {
        let xml = xml.to_owned();
        blocking(move || Ok(schema::check(&xml)?)).await
    }

    fn emulator_of(&self, definition: &Domain) -> Result<PathBuf> {
        if let Some(named) = &definition.devices.emulator {
            return Ok(PathBuf::from(&**named));
        }
        let arch = definition.os.os_type.arch.or(Arch::host()).unwrap_or(Arch::X86_64);
        self.emulators.default_binary(arch).ok_or_else(|| {
            Error::config_unsupported(format!("No emulator found for arch '{}'", arch.as_str()))
        })
    }
}

/// Reads a definition, which has a uuid from now on. A text of megabytes keeps a thread busy for long; it must not
/// be one that answers other clients.
pub async fn parse(xml: &str) -> Result<Domain> {
    const LARGE: usize = 64 * 1024;
    let mut definition = if xml.len() < LARGE {
        Domain::parse(xml, Form::INACTIVE)?
    } else {
        let xml = xml.to_owned();
        blocking(move || Ok(Domain::parse(&xml, Form::INACTIVE)?)).await?
    };
    let fresh = Uuid::of_new().map_err(no_numbers)?;
    definition.identify(|| fresh);
    Ok(definition)
}

fn no_numbers(error: io::Error) -> Error {
    Error::io("cannot get random numbers", error)
}

/// Fills in what a definition leaves out.
pub(super) fn fill_in(definition: &mut Domain, facts: &Facts<'_>) -> Result<()> {
    let mut random = Random::default();
    definition.defaults(facts, &mut random)?;
    random.check()
}

pub(super) fn random_uuid() -> Result<Uuid> {
    Uuid::random().map_err(no_numbers)
}

pub(super) fn random_mac() -> Result<Mac> {
    Mac::random(Mac::QEMU_PREFIX).map_err(no_numbers)
}

/// uuids and MAC addresses from the kernel's random numbers.
#[derive(Debug, Default)]
struct Random {
    failed: Option<io::Error>,
}

impl Random {
    fn check(self) -> Result<()> {
        self.failed.map_or(Ok(()), |error| Err(no_numbers(error)))
    }
}

impl Generator for Random {
    fn uuid(&mut self) -> Uuid {
        Uuid::random().unwrap_or_else(|error| {
            self.failed = Some(error);
            Uuid([0; 16])
        })
    }

    fn mac(&mut self) -> Mac {
        Mac::random(Mac::QEMU_PREFIX).unwrap_or_else(|error| {
            self.failed = Some(error);
            Mac([0; 6])
        })
    }
}
