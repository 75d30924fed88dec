//! Formats of images that a command line leaves to QEMU to find out.
//!
//! QEMU looks into an image whose format it is not told; a definition that says nothing means a raw one. Taken over as
//! it is, a qcow2 image would be handed to the guest as raw, to be overwritten.

use std::io::Read;
use std::path::Path;

use crate::conf::devices::{Place, StorageFormat};
use crate::conf::domain::Domain;
use crate::qemu::block;
use crate::qemu::monitor::BlockDevice;

/// As much of an image as tells its format.
const HEADER: u64 = 64 * 1024;

/// What the QEMU that runs the guest has found. `directory` is where its relative paths begin.
pub(super) fn as_found(live: &mut Domain, devices: &[BlockDevice], directory: &Path) {
    let opened: Vec<_> = devices.iter().filter_map(|device| device.inserted.as_ref()).collect();
    complete(live, |path| {
        let image = opened.iter().find(|image| directory.join(&image.file) == Path::new(path))?;
        match image.drv.as_str() {
            "vhdx" => Some(StorageFormat::Vhd),
            "parallels" => Some(StorageFormat::Ploop),
            drv => StorageFormat::from_word(drv),
        }
    });
}

/// What is in the images, where they are here. Reads files.
pub(super) fn as_there(definition: &mut Domain) {
    complete(definition, |path| {
        // Who put a pipe there would have this wait for him.
        let is_file = std::fs::metadata(path).is_ok_and(|found| found.is_file());
        let file = is_file.then(|| std::fs::File::open(path).ok())??;
        let mut header = Vec::new();
        file.take(HEADER).read_to_end(&mut header).ok()?;
        match block::probe(&header) {
            // A file system is no format of images.
            StorageFormat::Iso => Some(StorageFormat::Raw),
            format => Some(format),
        }
    });
}

fn complete(definition: &mut Domain, format_of: impl Fn(&str) -> Option<StorageFormat>) {
    for disk in definition.devices.disks.iter_mut().filter(|disk| disk.driver.format.is_none()) {
        if let Place::File(Some(path)) | Place::Block(Some(path)) = &disk.storage.place {
            disk.driver.format = format_of(path);
        }
    }
}
