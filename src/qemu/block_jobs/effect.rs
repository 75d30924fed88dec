//! What a job that has concluded means for its disk. Pure.

use super::{BlockJob, Phase, Work};
use crate::conf::devices::Disk;
use crate::qemu::block::Layers;

/// `VIR_DOMAIN_BLOCK_COPY_SHALLOW` and `VIR_DOMAIN_BLOCK_COPY_REUSE_EXT`: what is below the copy was there before,
/// and is opened when the disk comes to stand on it.
const SHALLOW_REUSED: u32 = 1 | 1 << 1;

/// What changes.
#[derive(Debug, PartialEq)]
pub struct Effect {
    /// The disk from now on.
    pub disk: Disk,
    /// Images that the guest no longer has.
    pub removed: Option<Layers>,
    /// And that are to be deleted.
    pub deletes: bool,
}

/// `success` is what QEMU says.
pub fn effect(disk: &Disk, job: &BlockJob, success: bool) -> Effect {
    let mut changed = disk.clone();
    let mut layers = Layers::of(disk);
    let position = |layers: &Layers, number: u32| layers.position(number);
    let mut removed = None;
    let mut deletes = false;
    match &job.work {
        Work::Pull { base } if success => {
            let end = base.map_or(Some(layers.images().len()), |base| position(&layers, base));
            removed = end.filter(|end| *end > 1).map(|end| layers.remove(1..end));
        }
        Work::Commit { top, base, above, deletes: wanted } => {
            changed.mirror = None;
            let ends = position(&layers, *top).zip(position(&layers, *base));
            if success && (above.is_some() || job.phase == Phase::Pivoting) {
                removed = ends.filter(|(top, base)| top < base).map(|(top, base)| layers.remove(top..base));
                deletes = *wanted;
            }
        }
        Work::Copy { inherits } => {
            let mirror = changed.mirror.take().map(|mirror| Layers::from_top(mirror.format, mirror.storage));
            removed = match mirror {
                Some(mut copy) if success && job.phase == Phase::Pivoting => {
                    if *inherits && copy.is_open() {
                        let own = layers.remove(0..1);
                        copy.stand_on(std::mem::replace(&mut layers, own));
                    }
                    Some(std::mem::replace(&mut layers, copy))
                }
                Some(mut copy) => {
                    if job.flags & SHALLOW_REUSED == SHALLOW_REUSED {
                        copy.remove(1..copy.images().len());
                    }
                    Some(copy)
                }
                None => None,
            };
        }
        Work::Pull { .. } | Work::Backup { .. } => {}
    }
    layers.install(&mut changed);
    Effect { disk: changed, removed: removed.filter(|removed| !removed.is_empty()), deletes }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conf::devices::Disk;
    use crate::conf::xml::{Form, read_document};

    const DISK: &str = "<disk type='file' device='disk'><driver name='qemu' type='qcow2'/>\
        <source file='/top' index='1'/>\
        <backingStore type='file' index='2'><format type='qcow2'/><source file='/mid'/>\
        <backingStore type='file' index='3'><format type='raw'/><source file='/base'/><backingStore/>\
        </backingStore></backingStore>MIRROR<target dev='vda' bus='virtio'/></disk>";

    const COPY: &str = "<mirror type='file' job='copy' ready='yes'><format type='qcow2'/>\
        <source file='/copy' index='4'/></mirror>";

    fn images(layers: &Layers) -> Vec<&str> {
        layers.images().iter().filter_map(|layer| layer.storage.path()).collect()
    }

    /// What the disk stands on afterwards, and what is removed.
    fn after(
        mirror: &str,
        work: Work,
        phase: Phase,
        flags: u32,
        success: bool,
    ) -> (Vec<String>, Vec<String>) {
        let text = DISK.replace("MIRROR", mirror);
        let disk: Disk = read_document(&text, "disk", Form::LIVE).unwrap();
        let job = BlockJob { disk: "vda".into(), work, phase, flags };
        let effect = effect(&disk, &job, success);
        assert_eq!(effect.disk.mirror, None);
        let own = |paths: Vec<&str>| paths.into_iter().map(str::to_owned).collect();
        let removed = effect.removed.as_ref().map(|it| own(images(it)));
        (own(images(&Layers::of(&effect.disk))), removed.unwrap_or_default())
    }

    #[test]
    fn a_disk_stands_on_what_its_job_left() {
        let commit = |top, base, above| Work::Commit { top, base, above, deletes: false };
        let pull = |base| Work::Pull { base };
        let copy = |inherits| Work::Copy { inherits };
        let all = ["/top", "/mid", "/base"];
        for (mirror, work, phase, flags, success, stands_on, removed) in [
            ("", pull(None), Phase::Running, 0, true, &["/top"][..], &["/mid", "/base"][..]),
            ("", pull(Some(3)), Phase::Running, 0, true, &["/top", "/base"], &["/mid"]),
            ("", pull(Some(2)), Phase::Running, 0, true, &all, &[]),
            ("", pull(None), Phase::Running, 0, false, &all, &[]),
            ("", commit(2, 3, Some(1)), Phase::Running, 0, true, &["/top", "/base"], &["/mid"]),
            ("", commit(2, 3, Some(1)), Phase::Running, 0, false, &all, &[]),
            ("", commit(1, 3, None), Phase::Pivoting, 0, true, &["/base"], &["/top", "/mid"]),
            ("", commit(1, 2, None), Phase::Pivoting, 0, true, &["/mid", "/base"], &["/top"]),
            ("", commit(1, 3, None), Phase::Aborting, 0, true, &all, &[]),
            (COPY, copy(false), Phase::Pivoting, 0, true, &["/copy"], &all),
            (COPY, copy(true), Phase::Pivoting, 1, true, &["/copy", "/mid", "/base"], &["/top"]),
            (COPY, copy(false), Phase::Aborting, 0, true, &all, &["/copy"]),
            (COPY, copy(false), Phase::Pivoting, 0, false, &all, &["/copy"]),
        ] {
            let found = after(mirror, work.clone(), phase, flags, success);
            let own = |paths: &[&str]| paths.iter().map(|path| (*path).to_owned()).collect::<Vec<_>>();
            assert_eq!(found, (own(stands_on), own(removed)), "{work:?} {phase:?} {success}");
        }
    }

    #[test]
    fn the_format_goes_with_the_image() {
        let disk: Disk = read_document(&DISK.replace("MIRROR", ""), "disk", Form::LIVE).unwrap();
        let work = Work::Commit { top: 1, base: 3, above: None, deletes: true };
        let job = BlockJob { disk: "vda".into(), work, phase: Phase::Pivoting, flags: 0 };
        let effect = effect(&disk, &job, true);
        assert_eq!(effect.disk.format().as_str(), "raw");
        assert!(effect.deletes);
    }
}
