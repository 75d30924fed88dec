//! `<blockjobs>` of a status file.

use super::{BlockJob, BlockJobs, Phase, Store, Work};
use crate::conf::devices::{Raw, Storage, StorageFormat};
use crate::conf::xml::{Element, Hex, Part, Writer, YesNo, xml};
use crate::conf::{ConfError, Result};

xml! {
    /// `<blockjobs>`
    pub struct BlockJobsRecord {
        attr active: Option<YesNo> = "active";
        child jobs: Vec<BlockJobRecord> = "blockjob";
    }
}

xml! {
    /// `<blockjob>`
    pub struct BlockJobRecord {
        attr name: Box<str> = "name";
        attr kind: Option<Box<str>> = "type";
        attr phase: Option<Phase> = "state";
        /// What it was about to become; the next daemon asks QEMU.
        attr next: Option<Phase> = "newstate";
        attr broken: Option<Box<str>> = "brokentype";
        attr flags: Option<Hex<0>> = "jobflags";
        attr inherits: Option<YesNo> = "shallownew";
        text error: Option<Box<str>> = "errmsg";
        child disk: Option<DiskName> = "disk";
        child chains: Option<Raw> = "chains";
        child_attr base: Option<Box<str>> = "base" / "node";
        child_attr top: Option<Box<str>> = "top" / "node";
        child_attr above: Option<Box<str>> = "topparent" / "node";
        flag deletes: bool = "deleteCommittedImages";
        child_attr bitmap: Option<Box<str>> = "bitmap" / "name";
        child store: Option<Store> = "store";
    }
}

xml! {
    /// `<disk>`: the one that is worked on.
    pub struct DiskName {
        attr name: Box<str> = "dst";
        attr mirror: Option<YesNo> = "mirror";
    }
}

impl Part for Store {
    fn read(element: Element<'_>) -> Result<Self> {
        let format = element.value("format")?.unwrap_or(StorageFormat::Raw);
        Ok(Self { format, storage: Storage::read(element)? })
    }

    fn write_attributes(&self, out: &mut Writer) {
        self.storage.write_attributes(out);
        out.attribute("format", &self.format);
    }

    fn write_children(&self, out: &mut Writer) {
        self.storage.write_children(out);
    }
}

fn node(number: u32) -> Box<str> {
    format!("libvirt-{number}-storage").into()
}

fn number(node: Option<&str>) -> Option<u32> {
    node?.strip_prefix("libvirt-")?.strip_suffix("-storage")?.parse().ok()
}

impl BlockJobsRecord {
    pub fn of(jobs: &BlockJobs) -> Self {
        let active = jobs.values().any(BlockJob::is_running);
        Self {
            active: Some(if active { YesNo::Yes } else { YesNo::No }),
            jobs: jobs.iter().map(|(name, job)| BlockJobRecord::of(name, job)).collect(),
        }
    }

    /// Those that make sense; the others with why not.
    pub fn jobs(&self) -> (BlockJobs, Vec<(Box<str>, ConfError)>) {
        let (mut jobs, mut broken) = (BlockJobs::new(), Vec::new());
        for record in &self.jobs {
            match record.job() {
                Ok(job) => drop(jobs.insert(record.name.clone(), job)),
                Err(error) => broken.push((record.name.clone(), error)),
            }
        }
        (jobs, broken)
    }
}

impl BlockJobRecord {
    fn of(name: &str, job: &BlockJob) -> Self {
        let mut record = Self {
            name: name.into(),
            kind: Some(job.work.name().into()),
            phase: Some(job.phase),
            next: None,
            broken: None,
            flags: Some(Hex(job.flags)),
            inherits: None,
            error: None,
            disk: Some(DiskName { name: job.disk.clone(), mirror: None }),
            chains: None,
            base: None,
            top: None,
            above: None,
            deletes: false,
            bitmap: None,
            store: None,
        };
        match &job.work {
            Work::Pull { base } => record.base = base.map(node),
            Work::Copy { inherits } => {
                record.inherits = inherits.then_some(YesNo::Yes);
                record.disk = Some(DiskName { name: job.disk.clone(), mirror: Some(YesNo::Yes) });
            }
            Work::Commit { top, base, above, deletes } => {
                record.base = Some(node(*base));
                record.top = Some(node(*top));
                record.above = above.map(node);
                record.deletes = *deletes;
            }
            Work::Backup { store, bitmap } => {
                record.store = Some(Store::clone(store));
                record.bitmap.clone_from(bitmap);
            }
        }
        record
    }

    fn job(&self) -> Result<BlockJob> {
        let broken = |what: &str| ConfError::xml(format!("block job '{}' has no {what}", self.name));
        let disk = self.disk.as_ref().ok_or_else(|| broken("disk"))?.name.clone();
        let image = |node: &Option<Box<str>>, what| number(node.as_deref()).ok_or_else(|| broken(what));
        let work = match self.kind.as_deref() {
            Some("pull") => Work::Pull { base: number(self.base.as_deref()) },
            Some("copy") => Work::Copy { inherits: self.inherits == Some(YesNo::Yes) },
            Some("commit") => Work::Commit {
                top: image(&self.top, "top")?,
                base: image(&self.base, "base")?,
                above: Some(image(&self.above, "image above its top")?),
                deletes: self.deletes,
            },
            Some("active-commit") => Work::Commit {
                top: image(&self.top, "top")?,
                base: image(&self.base, "base")?,
                above: None,
                deletes: self.deletes,
            },
            Some("backup") => Work::Backup {
                store: Box::new(self.store.clone().ok_or_else(|| broken("store"))?),
                bitmap: self.bitmap.clone(),
            },
            _ => return Err(broken("kind that is known")),
        };
        let phase = self.phase.ok_or_else(|| broken("state"))?;
        Ok(BlockJob { disk, work, phase, flags: self.flags.map_or(0, |Hex(flags)| flags) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conf::xml::{Form, read_document, write_document};

    /// As libvirt 11.3 wrote them, together.
    const UPSTREAM: &str = "\
<blockjobs active='yes'>
  <blockjob name='commit-vda-libvirt-1-format' type='active-commit' state='ready' jobflags='0x4'>
    <disk dst='vda'/>
    <base node='libvirt-3-storage'/>
    <top node='libvirt-1-storage'/>
  </blockjob>
  <blockjob name='commit-vdb-libvirt-5-format' type='commit' state='running' jobflags='0x2'>
    <disk dst='vdb'/>
    <base node='libvirt-6-storage'/>
    <top node='libvirt-5-storage'/>
    <topparent node='libvirt-4-storage'/>
    <deleteCommittedImages/>
  </blockjob>
  <blockjob name='copy-vdc-libvirt-7-format' type='copy' state='pivoting' jobflags='0x1' shallownew='yes'>
    <disk dst='vdc' mirror='yes'/>
  </blockjob>
  <blockjob name='pull-vdd-libvirt-8-format' type='pull' state='running' jobflags='0x0'>
    <disk dst='vdd'/>
    <base node='libvirt-9-storage'/>
  </blockjob>
</blockjobs>
";

    #[test]
    fn jobs_are_written_down_as_libvirt_does() {
        let form = Form::LIVE | Form::STATUS;
        let record: BlockJobsRecord = read_document(UPSTREAM, "blockjobs", form).unwrap();
        let (jobs, broken) = record.jobs();
        assert!(broken.is_empty(), "{broken:?}");
        assert_eq!(jobs.len(), 4);
        assert!(jobs["copy-vdc-libvirt-7-format"].is_ending());
        assert_eq!(write_document(&BlockJobsRecord::of(&jobs), "blockjobs", form), UPSTREAM);
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        for (from, to) in [
            ("type='pull'", "type='push'"),
            ("<disk dst='vdd'/>", ""),
            ("<topparent node='libvirt-4-storage'/>", "<topparent node='x'/>"),
        ] {
            let text = UPSTREAM.replace(from, to);
            let record: BlockJobsRecord = read_document(&text, "blockjobs", Form::LIVE).unwrap();
            let (jobs, broken) = record.jobs();
            assert_eq!((jobs.len(), broken.len()), (3, 1), "{from}");
        }
    }
}
