//! Volumes as disks of guests.

use super::{Storage, errors};
use crate::conf::devices::Place;
use crate::conf::domain::Domain;
use crate::conf::storage::VolumeType;
use crate::error::{Code, Error, Result};

impl Storage {
    /// Finds the files of the volumes that a guest's disks name, as it starts.
    pub fn locate_disks(&self, definition: &mut Domain) -> Result<()> {
        for disk in &mut definition.devices.disks {
            let Some((pool, volume)) = disk.storage.pool_and_volume() else { continue };
            let place = self.locate(pool, volume)?;
            disk.storage.locate(place);
        }
        Ok(())
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
