//! What of the host a guest needs, by its definition.

use std::path::Path;

use super::transaction::{After, Gift};
use super::{MODEL, Owners, SecurityError, label_of};
use crate::conf::devices::{
    CharBackend, CharSource, Console, ConsoleType, Devices, Disk, Place, Raw, SourceMode, TpmBackend,
};
use crate::conf::domain::{Domain, Seclabel, Sysinfo};
use crate::qemu::host_devices;
use crate::util::accounts::Ids;

/// Everything that names a security model in a definition.
pub(super) fn models(domain: &Domain) -> impl Iterator<Item = &str> {
    let own = domain.seclabels.iter().filter_map(|label| label.model.as_deref());
    let disks = domain.devices.disks.iter().flat_map(|disk| &disk.storage.seclabels);
    let streams = streams(&domain.devices).flat_map(source_overrides);
    own.chain(disks.chain(streams).filter_map(|label| label.attribute("model")))
}

/// Collects what a guest needs.
pub(super) struct Labels<'a> {
    label: Option<&'a Seclabel>,
    default: Ids,
    pub(super) gifts: Vec<Gift>,
}

/// What a file's own label says of it.
#[derive(Clone, Copy)]
enum Own {
    /// It is left alone.
    Kept,
    Is(Ids),
    Nothing,
}

impl<'a> Labels<'a> {
    pub(super) fn of(domain: &'a Domain, default: Ids) -> Self {
        Self { label: label_of(domain), default, gifts: Vec::new() }
    }

    /// Whether files change hands at all.
    pub(super) fn relabel(&self) -> bool {
        self.label.is_none_or(|label| label.relabel)
    }

    pub(super) fn process(&self) -> Result<Ids, SecurityError> {
        self.ids(self.label.and_then(|label| label.label.as_deref()))
    }

    pub(super) fn images(&self) -> Result<Ids, SecurityError> {
        self.ids(self.label.and_then(|label| label.imagelabel.as_deref()))
    }

    fn ids(&self, label: Option<&str>) -> Result<Ids, SecurityError> {
        Ok(label.map_or(Ok(self.default), str::parse)?)
    }

    fn add(&mut self, path: impl AsRef<Path>, ids: Ids) {
        let path = path.as_ref().to_owned();
        self.gifts.push(Gift { path, ids, owner: Owners::Remembered, after: After::GivenBack });
    }

    /// Something that the guest finds again where it goes on.
    fn add_image(&mut self, path: impl AsRef<Path>, ids: Ids) {
        let path = path.as_ref().to_owned();
        self.gifts.push(Gift { path, ids, owner: Owners::Remembered, after: After::FollowsGuest });
    }

    /// A file whose owner nobody notes.
    fn add_fleeting(&mut self, path: impl AsRef<Path>, ids: Ids, after: After) {
        self.gifts.push(Gift { path: path.as_ref().to_owned(), ids, owner: Owners::Forgotten, after });
    }

    pub(super) fn path(&mut self, path: &Path) -> Result<(), SecurityError> {
        let ids = self.process()?;
        self.add(path, ids);
        Ok(())
    }

    pub(super) fn devices(&mut self, devices: &Devices) -> Result<(), SecurityError> {
        for disk in &devices.disks {
            self.disk(disk)?;
        }
        let inputs = devices.inputs.iter().filter_map(|input| input.source.as_ref());
        for path in inputs.filter_map(|source| source.evdev.as_deref().or(source.dev.as_deref())) {
            self.path(Path::new(path))?;
        }
        for source in streams(devices) {
            self.stream(source)?;
        }
        for tpm in &devices.tpms {
            if let TpmBackend::Passthrough(host) = &tpm.backend
                && let Some(path) = host.device.as_deref()
            {
                let ids = self.process()?;
                self.add_fleeting(path, ids, After::GivenBack);
            }
        }
        for path in devices.memories.iter().filter_map(|memory| memory.source.path.as_deref()) {
            self.path(Path::new(path))?;
        }
        for node in host_devices::nodes(devices) {
            let ids = self.process()?;
            match node.is_group {
                true => self.add_fleeting(node.path, ids, After::GivenBack),
                false => self.add(node.path, ids),
            }
        }
        Ok(())
    }

    /// A disk's image and those below it. Only the one on top is anybody's own: others may stand on those below, and
    /// on what is only read.
    pub(super) fn disk(&mut self, disk: &Disk) -> Result<(), SecurityError> {
        let top = own(&disk.storage.seclabels)?;
        let shared = disk.readonly || disk.shareable;
        let overlaid = disk.has_overlay();
        // What is below an overlay is as much the guest's as a disk that has none.
        let below = disk.storage.layers().enumerate();
        let below = below.map(|(depth, layer)| (&layer.storage, depth > 0 || !overlaid || shared));
        for (image, shared) in std::iter::once((&disk.storage, shared)).chain(below) {
            if image.fdgroup.is_some() {
                continue;
            }
            let label = match own(&image.seclabels)? {
                Own::Nothing => top,
                label => label,
            };
            let ids = match label {
                Own::Kept => continue,
                Own::Is(ids) => ids,
                Own::Nothing => self.images()?,
            };
            match &image.place {
                Place::File(Some(path)) | Place::Block(Some(path)) if shared => {
                    self.add_fleeting(&**path, ids, After::Stays);
                }
                Place::File(Some(path)) | Place::Block(Some(path)) => self.add_image(&**path, ids),
                Place::Nvme(nvme) => {
                    let after = if shared { After::Stays } else { After::GivenBack };
                    if let Some(group) = host_devices::group_of(&nvme.address) {
                        self.add_fleeting(group, ids, after);
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn stream(&mut self, source: &CharSource) -> Result<(), SecurityError> {
        let ids = match own(source_overrides(source))? {
            Own::Kept => return Ok(()),
            Own::Is(ids) => ids,
            Own::Nothing => self.process()?,
        };
        match &source.backend {
            CharBackend::File(file) => {
                if let Some(path) = file.path.as_deref() {
                    self.add(path, ids);
                }
            }
            CharBackend::Dev(Some(path)) => {
                self.add(&**path, ids);
            }
            CharBackend::Pipe(Some(path)) => {
                let both = ["in", "out"].map(|end| format!("{path}.{end}"));
                if both.iter().all(|path| Path::new(path).exists()) {
                    both.iter().for_each(|path| self.add(path, ids));
                } else {
                    self.add(&**path, ids);
                }
            }
            CharBackend::Unix(unix) => {
                let Some(path) = unix.path.as_deref() else { return Ok(()) };
                if unix.mode == SourceMode::Connect {
                    self.add(path, ids);
                } else if Path::new(path).exists() {
                    self.add_fleeting(path, ids, After::Stays);
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// What the guest begins with.
    pub(super) fn system(&mut self, domain: &Domain) -> Result<(), SecurityError> {
        let ids = self.images()?;
        for sysinfo in &domain.sysinfo {
            let Sysinfo::FwCfg(blobs) = sysinfo else { continue };
            for file in blobs.entries.iter().filter_map(|entry| entry.file.as_deref()) {
                self.add(file, ids);
            }
        }
        let os = &domain.os;
        if let Some(nvram) = os.nvram.as_ref().and_then(|nvram| nvram.place.path.as_deref()) {
            self.add_image(nvram, ids);
        }
        let files = [os.kernel.as_deref(), os.initrd.as_deref(), os.shim.as_deref(), os.dtb.as_deref()];
        let stores = domain.devices.pstores.iter().map(|pstore| pstore.path.as_deref());
        let tables = os.acpi_tables.iter().map(|table| table.path.as_deref());
        for file in files.into_iter().chain(tables).chain(stores).flatten() {
            self.add(file, ids);
        }
        Ok(())
    }
}

/// The streams of a guest, each once: the first console is the first serial port again.
pub(crate) fn streams(devices: &Devices) -> impl Iterator<Item = &CharSource> {
    let is_serial = |console: &Console| matches!(console.target.kind, None | Some(ConsoleType::Serial));
    let again = devices.consoles.first().is_some_and(is_serial) && !devices.serials.is_empty();
    let consoles = devices.consoles.iter().skip(usize::from(again)).map(|it| &it.source);
    let serials = devices.serials.iter().map(|it| &it.source);
    let parallels = devices.parallels.iter().map(|it| &it.source);
    let channels = devices.channels.iter().map(|it| &it.source);
    serials.chain(parallels).chain(channels).chain(consoles)
}

fn source_overrides(source: &CharSource) -> &[Raw] {
    match &source.backend {
        CharBackend::File(file) => &file.seclabels,
        CharBackend::Unix(unix) => &unix.seclabels,
        _ => &[],
    }
}

fn own(labels: &[Raw]) -> Result<Own, SecurityError> {
    let Some(label) = labels.iter().find(|label| label.attribute("model") == Some(MODEL)) else {
        return Ok(Own::Nothing);
    };
    if label.attribute("relabel") == Some("no") {
        return Ok(Own::Kept);
    }
    let text = label.child("label").and_then(Raw::text);
    Ok(text.map(str::parse).transpose()?.map_or(Own::Nothing, Own::Is))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conf::xml::Form;

    const IDS: Ids = Ids { user: 7, group: 8 };

    /// `PATH USER` of each, with a star behind those that stay, and brackets around those that nobody notes.
    fn gifts(text: &str) -> Vec<String> {
        let domain = Domain::parse(text, Form::INACTIVE).unwrap();
        let mut labels = Labels::of(&domain, IDS);
        labels.devices(&domain.devices).unwrap();
        labels.system(&domain).unwrap();
        let shown = |gift: &Gift| {
            let path = gift.path.display();
            let path = match gift.owner {
                Owners::Remembered => path.to_string(),
                Owners::Forgotten => format!("({path})"),
            };
            format!("{path} {}{}", gift.ids.user, if gift.after == After::Stays { "*" } else { "" })
        };
        labels.gifts.iter().map(shown).collect()
    }

    #[test]
    fn a_guest_needs_its_images_its_streams_and_what_it_boots() {
        let found = gifts(
            "<domain type='qemu'><name>x</name><os><type>hvm</type><kernel>/k</kernel><initrd>/i</initrd>\
             <nvram>/n</nvram><dtb>/d</dtb></os>\
             <sysinfo type='fwcfg'><entry name='opt/a' file='/f'/></sysinfo><devices>\
             <disk><source file='/a'/><backingStore type='file'><format type='raw'/><source file='/b'/></backingStore>\
             <target dev='vda'/></disk>\
             <disk><source file='/r'/><target dev='vdb'/><readonly/></disk>\
             <disk><source file='/s'/><target dev='vdc'/><shareable/></disk>\
             <disk type='block'><source dev='/dev/x'/><target dev='vdd'/></disk>\
             <disk type='network'><source protocol='nbd' name='n'/><target dev='vde'/></disk>\
             <disk type='file' device='cdrom'><target dev='sda'/></disk>\
             <serial type='file'><source path='/serial'/></serial>\
             <console type='file'><source path='/serial'/></console>\
             <parallel type='dev'><source path='/dev/parport0'/></parallel>\
             <channel type='unix'><source mode='connect' path='/c'/><target type='virtio' name='c'/></channel>\
             <channel type='unix'><source mode='bind' path='/nonexistent'/><target type='virtio' name='d'/></channel>\
             <tpm><backend type='passthrough'><device path='/dev/tpm0'/></backend></tpm>\
             <memory model='nvdimm'><source><path>/nv</path></source><target><size>1024</size></target></memory>\
             <hostdev type='usb'><source><address bus='1' device='9'/></source></hostdev>\
             <hostdev type='scsi_host'><source protocol='vhost' wwpn='naa.5123456789abcde0'/></hostdev>\
             <pstore backend='acpi-erst'><path>/store</path><size>1</size></pstore>\
             <input type='evdev'><source dev='/dev/input/event0'/></input></devices></domain>",
        );
        let expected = [
            "/a 7",
            "(/b) 7*",
            "(/r) 7*",
            "(/s) 7*",
            "/dev/x 7",
            "/dev/input/event0 7",
            "/serial 7",
            "/dev/parport0 7",
            "/c 7",
            "(/dev/tpm0) 7",
            "/nv 7",
            "/dev/bus/usb/001/009 7",
            "/dev/vhost-scsi 7",
            "/f 7",
            "/n 7",
            "/k 7",
            "/i 7",
            "/d 7",
            "/store 7",
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn labels_of_files_stand_above_those_of_the_guest() {
        let found = gifts(
            "<domain type='qemu'><name>x</name><os><type>hvm</type><kernel>/k</kernel></os><devices>\
             <disk><source file='/a'><seclabel model='dac'><label>+1:+2</label></seclabel></source>\
             <backingStore type='file'><format type='raw'/><source file='/b'/></backingStore>\
             <target dev='vda'/></disk>\
             <disk><source file='/c'><seclabel model='dac' relabel='no'/></source>\
             <backingStore type='file'><format type='raw'/><source file='/d'/></backingStore>\
             <target dev='vdb'/></disk>\
             <disk><source file='/e'/><target dev='vdc'/></disk>\
             <serial type='file'><source path='/s'><seclabel model='dac' relabel='no'/></source></serial>\
             </devices>\
             <seclabel type='static' model='dac' relabel='yes'><label>+3:+4</label><imagelabel>+3:+4</imagelabel>\
             </seclabel></domain>",
        );
        assert_eq!(found, ["/a 1", "(/b) 1*", "/e 7", "/k 7"]);
    }
}
