//! Volumes as disks of guests.

use std::collections::BTreeMap;

use super::{Storage, errors};
use crate::conf::devices::{Place, Storage as StorageImage};
use crate::conf::domain::Domain;
use crate::conf::storage::{SecretLookup, VolumeType};
use crate::error::{Code, Error, Result};
use crate::qemu::command::{self, Sealed, SecretNeed, SecretSource};
use crate::qemu::secret::{MasterKey, Vector};
use crate::util::random;
use crate::util::uuid::Uuid;

impl Storage {
    /// Finds the files of the volumes that a guest's disks name, as it starts.
    pub fn locate_disks(&self, definition: &mut Domain) -> Result<()> {
        for disk in &mut definition.devices.disks {
            self.locate_image(&mut disk.storage)?;
        }
        Ok(())
    }

    /// Finds out where an image is that a definition names by pool and volume.
    pub fn locate_image(&self, image: &mut StorageImage) -> Result<()> {
        if let Some((pool, volume)) = image.pool_and_volume() {
            let place = self.locate(pool, volume)?;
            image.locate(place);
        }
        Ok(())
    }

    /// The values that a guest's disks need, encrypted for its QEMU.
    pub fn seal_secrets(&self, definition: &Domain, key: &MasterKey) -> Result<BTreeMap<String, Sealed>> {
        let mut sealed = BTreeMap::new();
        for SecretNeed { id, source } in command::secrets(definition) {
            let value = match source {
                SecretSource::Text(text) => key.seal(text.as_bytes(), vector()?),
                SecretSource::Kept { lookup: SecretLookup::Uuid(uuid), .. } => self.seal(uuid, key)?,
                SecretSource::Kept { lookup: SecretLookup::Usage(name), usage } => {
                    self.seal(self.secrets.by_usage(usage.number(), &name)?.uuid, key)?
                }
            };
            sealed.insert(id, value);
        }
        Ok(sealed)
    }

    /// A value that the host keeps, encrypted for one QEMU.
    pub fn seal(&self, secret: Uuid, key: &MasterKey) -> Result<Sealed> {
        Ok(key.seal(&self.secrets.value_for_us(secret)?, vector()?))
    }

    fn locate(&self, pool: &str, volume: &str) -> Result<Place> {
        let state = self.by_name(pool)?;
        if !state.is_active {
            let sentence = format!("storage pool '{pool}' containing volume '{volume}' is not active");
            return Err(Error::new(Code::CONFIG_UNSUPPORTED, sentence));
        }
        let missing = || errors::no_volume(format_args!("name '{volume}'"));
        let record = state.volume(volume).ok_or_else(missing)?;
        let path = Some(record.volume.target.path.clone());
        Ok(match record.volume.kind {
            VolumeType::Dir => Place::Dir(path),
            VolumeType::Block => Place::Block(path),
            _ => Place::File(path),
        })
    }
}

fn vector() -> Result<Vector> {
    let mut vector = Vector::default();
    random::fill(&mut vector).map_err(|error| Error::io("Failed to generate random bytes", error))?;
    Ok(vector)
}
