//! `<domainbackup>`: what a guest's disks have at one moment, written to images or given to whoever reads it.

use super::devices::{Disk, Place, Storage, StorageFormat, StorageKind};
use super::domain::Domain;
use super::xml::{Element, Form, Part, Writer, YesNo, read_document, write_document, xml, xml_enum};
use super::{ConfError, Result};

xml! {
    pub struct Backup {
        attr mode: BackupMode = "mode", or BackupMode::Push;
        text incremental: Option<Box<str>> = "incremental";
        child server: Option<BackupServer> = "server";
        list disks: Vec<BackupDisk> = "disks" / "disk";
    }
}

xml_enum! {
    pub enum BackupMode {
        /// QEMU writes images.
        Push = "push",
        /// QEMU serves the disks as they were, until the client ends it.
        Pull = "pull",
    }
    refuse |_place, text| ConfError::unsupported(format!("unknown backup mode '{text}'"))
}

xml! {
    /// `<server>`: where disks are served.
    pub struct BackupServer {
        attr transport: ServerTransport = "transport", or ServerTransport::Tcp;
        attr tls: Option<YesNo> = "tls";
        attr name: Option<Box<str>> = "name";
        attr port: Option<u16> = "port";
        attr socket: Option<Box<str>> = "socket";
        attr fdgroup: Option<Box<str>> = "fdgroup";
    }
}

xml_enum! {
    pub enum ServerTransport {
        Tcp = "tcp",
        Unix = "unix",
        Fd = "fd",
    }
}

xml_enum! {
    pub enum BackupScope {
        Full = "full",
        Incremental = "incremental",
    }
}

xml_enum! {
    /// How far it is, in status files.
    pub enum BackupState {
        Running = "running",
        Complete = "complete",
        Failed = "failed",
        Cancelling = "cancelling",
        Cancelled = "cancelled",
    }
}

/// `<disk>`
#[derive(Debug, Clone, PartialEq)]
pub struct BackupDisk {
    pub name: Box<str>,
    pub backup: YesNo,
    pub state: Option<BackupState>,
    pub scope: Option<BackupScope>,
    /// The checkpoint since which it is wanted.
    pub incremental: Option<Box<str>>,
    pub export_name: Option<Box<str>>,
    pub export_bitmap: Option<Box<str>>,
    pub format: Option<StorageFormat>,
    /// What is written: the backup itself, or what the guest overwrites meanwhile.
    pub store: Option<Storage>,
    /// Which of the two.
    is_scratch: bool,
}

impl Part for BackupDisk {
    fn read(element: Element<'_>) -> Result<Self> {
        let Some(name) = element.attribute("name") else {
            return Err(ConfError::xml("missing name from disk backup element"));
        };
        let backup = element.value("backup")?.unwrap_or(YesNo::Yes);
        let mut disk = Self::new(name, backup);
        if backup == YesNo::No {
            return Ok(disk);
        }
        let own = |name: &str| element.attribute(name).map(Box::<str>::from);
        disk.export_name = own("exportname");
        disk.export_bitmap = own("exportbitmap");
        disk.incremental = own("incremental");
        disk.scope = element.value("backupmode")?;
        disk.state = element.value("state")?;
        disk.format = element.child("driver").map(|driver| driver.value("type")).transpose()?.flatten();
        let kind = element.value("type")?.unwrap_or(StorageKind::File);
        if !matches!(kind, StorageKind::File | StorageKind::Block) {
            return Err(ConfError::xml(format!("unsupported disk backup type '{kind}'")));
        }
        let mut store =
            Storage::new(if kind == StorageKind::File { Place::File(None) } else { Place::Block(None) });
        if let Some(place) = element.child("target").or_else(|| element.child("scratch")) {
            disk.is_scratch = element.child("target").is_none();
            store = Storage::read_source(place, kind)?;
        }
        store.index = element.value("index")?;
        disk.store = Some(store);
        Ok(disk)
    }

    fn write_attributes(&self, out: &mut Writer) {
        out.attribute("name", &self.name);
        out.attribute("backup", &self.backup);
        if let (Some(state), true) = (&self.state, out.form().contains(Form::STATUS)) {
            out.attribute("state", state);
        }
        let Some(store) = &self.store else { return };
        out.attribute("type", &store.kind());
        if let Some(scope) = &self.scope {
            out.attribute("backupmode", scope);
        }
        for (name, value) in [
            ("incremental", &self.incremental),
            ("exportname", &self.export_name),
            ("exportbitmap", &self.export_bitmap),
        ] {
            if let Some(value) = value {
                out.attribute(name, value);
            }
        }
        if let Some(index) = &store.index {
            out.attribute("index", index);
        }
    }

    fn write_children(&self, out: &mut Writer) {
        let Some(store) = &self.store else { return };
        if let Some(format) = &self.format {
            out.element("driver", |out| out.attribute("type", format));
        }
        store.write_source_as(out, if self.is_scratch { "scratch" } else { "target" });
    }
}

impl BackupDisk {
    fn new(name: &str, backup: YesNo) -> Self {
        Self {
            name: name.into(),
            backup,
            state: None,
            scope: None,
            incremental: None,
            export_name: None,
            export_bitmap: None,
            format: None,
            store: None,
            is_scratch: false,
        }
    }

    /// Without a name for its image: that of the disk's own, with a suffix.
    fn name_store(&mut self, disk: &Disk, suffix: &str) -> Result<()> {
        let name = &self.name;
        if disk.storage.is_empty() && self.store.is_some() {
            return Err(ConfError::unsupported(format!("disk '{name}' has no media")));
        }
        if self.store.as_ref().is_some_and(|store| !store.is_empty()) {
            return Ok(());
        }
        let Place::File(Some(path)) = &disk.storage.place else {
            return Err(ConfError::unsupported(format!("refusing to generate file name for disk '{name}'")));
        };
        let path = format!("{path}.{suffix}");
        let mut store = self.store.take().unwrap_or_default();
        store.place = Place::File(Some(path.into()));
        self.store = Some(store);
        Ok(())
    }
}

impl Backup {
    /// Reads a client's description.
    pub fn parse(text: &str) -> Result<Self> {
        let mut backup: Self = read_document(text, "domainbackup", Form::INACTIVE)?;
        let push = backup.mode == BackupMode::Push;
        if let Some(server) = &backup.server {
            if push {
                return Err(ConfError::unsupported("use of <server> requires pull mode backup"));
            }
            if let Some(socket) = server.socket.as_deref().filter(|socket| !socket.starts_with('/')) {
                return Err(ConfError::xml(format!("backup socket path '{socket}' must be absolute")));
            }
        }
        for disk in &mut backup.disks {
            disk.state = None;
            disk.is_scratch = !push;
            if push {
                disk.export_name = None;
                disk.export_bitmap = None;
            }
            if let Some(store) = &mut disk.store {
                store.index = None;
            }
        }
        Ok(backup)
    }

    pub fn to_xml(&self) -> String {
        write_document(self, "domainbackup", Form::INACTIVE)
    }

    /// Those that are backed up.
    pub fn wanted(&self) -> impl Iterator<Item = &BackupDisk> {
        self.disks.iter().filter(|disk| disk.store.is_some())
    }

    /// One disk for each of the domain's: those that are named, then the others.
    pub fn align(&mut self, domain: &Domain, suffix: &str) -> Result<()> {
        let disks = &domain.devices.disks;
        let unsupported = |sentence: String| Err(ConfError::unsupported(sentence));
        if disks.is_empty() {
            return unsupported("domain must have at least one disk to perform backup".to_owned());
        }
        let (all, push) = (self.disks.is_empty(), self.mode == BackupMode::Push);
        for at in 0..self.disks.len() {
            let (before, rest) = self.disks.split_at_mut(at);
            let Some(wanted) = rest.first_mut() else { break };
            let name = wanted.name.clone();
            let Some(disk) = disks.iter().find(|disk| *disk.name() == *name) else {
                return unsupported(format!("no disk named '{name}'"));
            };
            if before.iter().any(|other| other.name == name) {
                return unsupported(format!("disk '{name}' specified twice"));
            }
            let since = wanted.incremental.as_ref().or(self.incremental.as_ref());
            if wanted.scope == Some(BackupScope::Incremental) && since.is_none() {
                return unsupported(format!(
                    "'incremental' backup mode of disk '{name}' requires setting 'incremental' field for disk or \
                     backup"
                ));
            }
            if wanted.backup == YesNo::Yes {
                wanted.name_store(disk, suffix)?;
            }
        }
        for disk in disks {
            if self.disks.iter().any(|wanted| *wanted.name == *disk.name()) {
                continue;
            }
            let takes_part = all && !disk.storage.is_empty() && !disk.readonly;
            let mut wanted = BackupDisk::new(disk.name(), if takes_part { YesNo::Yes } else { YesNo::No });
            wanted.is_scratch = !push;
            if takes_part {
                wanted.name_store(disk, suffix)?;
            }
            self.disks.push(wanted);
        }
        for wanted in &mut self.disks {
            let since = self.incremental.is_some() || wanted.incremental.is_some();
            let usual = if since { BackupScope::Incremental } else { BackupScope::Full };
            if *wanted.scope.get_or_insert(usual) == BackupScope::Incremental && wanted.incremental.is_none()
            {
                wanted.incremental.clone_from(&self.incremental);
            }
            if !push && wanted.backup == YesNo::Yes {
                wanted.export_name.get_or_insert_with(|| wanted.name.clone());
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOMAIN: &str = "<domain type='qemu'><name>d</name><memory>1024</memory><os><type>hvm</type></os><devices>\
        <disk type='file' device='disk'><source file='/i/a'/><target dev='vda' bus='virtio'/></disk>\
        <disk type='file' device='cdrom'><target dev='sda' bus='sata'/></disk></devices></domain>";

    fn aligned(text: &str) -> Result<String> {
        let domain = Domain::parse(DOMAIN, Form::INACTIVE).unwrap();
        let mut backup = Backup::parse(text)?;
        backup.align(&domain, "7")?;
        Ok(backup.to_xml())
    }

    #[test]
    fn disks_get_images_and_scopes() {
        assert_eq!(
            aligned("<domainbackup/>").unwrap(),
            "<domainbackup mode='push'>\n  <disks>\n    <disk name='vda' backup='yes' type='file' backupmode='full'>\n      \
             <target file='/i/a.7'/>\n    </disk>\n    <disk name='sda' backup='no'/>\n  </disks>\n</domainbackup>\n"
        );
        let pull = "<domainbackup mode='pull'><incremental>c</incremental><server transport='unix' socket='/s'/>\
            <disks><disk name='vda' exportname='x'><driver type='qcow2'/><scratch file='/t'/></disk></disks>\
            </domainbackup>";
        assert_eq!(
            aligned(pull).unwrap(),
            "<domainbackup mode='pull'>\n  <incremental>c</incremental>\n  <server transport='unix' socket='/s'/>\n  \
             <disks>\n    <disk name='vda' backup='yes' type='file' backupmode='incremental' incremental='c' \
             exportname='x'>\n      <driver type='qcow2'/>\n      <scratch file='/t'/>\n    </disk>\n    \
             <disk name='sda' backup='no'/>\n  </disks>\n</domainbackup>\n"
        );
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let disk = |disk: &str| format!("<domainbackup><disks>{disk}</disks></domainbackup>");
        for (text, sentence) in [
            ("<domainbackup mode='x'/>".to_owned(), "unknown backup mode 'x'"),
            (
                "<domainbackup><server name='h' port='1'/></domainbackup>".to_owned(),
                "use of <server> requires pull",
            ),
            (disk("<disk/>"), "missing name from disk backup element"),
            (disk("<disk name='vdz'/>"), "no disk named 'vdz'"),
            (disk("<disk name='vda'/><disk name='vda'/>"), "disk 'vda' specified twice"),
            (disk("<disk name='sda'/>"), "disk 'sda' has no media"),
            (disk("<disk name='vda' backupmode='incremental'/>"), "requires setting 'incremental' field"),
            (disk("<disk name='vda' type='network'/>"), "unsupported disk backup type 'network'"),
        ] {
            let error = aligned(&text).unwrap_err();
            assert!(error.message.contains(sentence), "{text}: {}", error.message);
        }
    }
}
