//! Volume groups of LVM, through its own tools.

use std::sync::Arc;

use super::device::{self, Purpose};
use super::{ANSWER, BUILD, Found, Storage};
use crate::conf::storage::{Device, EncryptionFormat, Extent, Pool, Role, Sizes, Source, Volume};
use crate::drivers::storage::errors;
use crate::drivers::storage::flags::BuildFlags;
use crate::drivers::storage::pool::{PoolObject, Record, Volumes};
use crate::error::{Error, Result};
use crate::qemu::storage as image;

/// What `vgchange` is told.
const ON: &str = "-aly";
pub(super) const OFF: &str = "-aln";
/// What is asked of `lvs`, in the order of [`Segment`].
const COLUMNS: &str = "lv_name,origin,uuid,devices,segtype,stripes,seg_size,vg_extent_size,size,lv_attr";
/// What a header of LUKS takes at most.
pub(super) const LUKS_HEADER: u64 = 2 << 20;

fn group(pool: &Pool) -> Result<&str> {
    let name = pool.source.name.as_deref().unwrap_or(&pool.name);
    match name.starts_with('-') {
        // It would be an option.
        true => Err(errors::ours(Error::invalid_arg(format!("invalid volume group name '{name}'")))),
        false => Ok(name),
    }
}

/// One line of `lvs`: a volume has one for each of its parts.
#[derive(Debug, PartialEq, Eq)]
struct Segment<'a> {
    name: &'a str,
    origin: &'a str,
    uuid: &'a str,
    extents: Vec<(Box<str>, Extent)>,
    size: u64,
    attributes: &'a str,
}

impl<'a> Segment<'a> {
    /// None for what is no line about a volume.
    fn parse(line: &'a str) -> Result<Option<Self>> {
        let line = line.trim();
        let fields: Vec<&str> = line.strip_suffix('#').unwrap_or(line).split('#').collect();
        let [name, origin, uuid, devices, kind, stripes, length, extent_size, size, attributes] = *fields
        else {
            return Ok(None);
        };
        let number = |text: &str, what| {
            let malformed = || Error::internal_error(format!("malformed volume {what} value"));
            text.parse::<u64>().map_err(|_| errors::ours(malformed()))
        };
        let (length, extent_size) = (number(length, "extent length")?, number(extent_size, "extent size")?);
        let is_striped = matches!(kind, "striped" | "mirror") || kind.starts_with("raid");
        let count = if is_striped { number(stripes, "extent stripes")? } else { 1 };
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        let malformed = || errors::ours(Error::internal_error("malformed volume extent devices value"));
        let extents = devices.split(',').take(count).map(|device| {
            let (path, first) = device.strip_suffix(')')?.rsplit_once('(')?;
            let start = first.parse::<u64>().ok()?.checked_mul(extent_size)?;
            Some((Box::from(path), Extent { start, end: start.checked_add(length)? }))
        });
        let extents = extents.collect::<Option<Vec<_>>>().filter(|extents| extents.len() == count);
        let size = number(size, "allocation")?;
        Ok(Some(Self { name, origin, uuid, extents: extents.ok_or_else(malformed)?, size, attributes }))
    }

    /// Neither a volume that nobody can open nor a pool of thin ones.
    fn is_volume(&self) -> bool {
        self.attributes.as_bytes().get(4) == Some(&b'a') && !self.attributes.starts_with('t')
    }

    /// The volume that begins with this part.
    fn to_volume(&self, directory: &str) -> Result<Volume> {
        let path = format!("{directory}/{}", self.name);
        let mut volume = device::volume(self.name, self.uuid, &path)?;
        volume.allocation = self.size;
        if self.attributes.starts_with('s') {
            volume.role = Role::Sparse;
        }
        // What is in brackets is LVM's own affair.
        if !self.origin.is_empty() && !self.origin.starts_with('[') {
            let path = format!("{directory}/{}", self.origin);
            volume.backing = Some(device::volume(self.origin, &path, &path)?.target);
        }
        Ok(volume)
    }
}

/// The volumes that `lvs` tells of.
fn volumes(said: &str, directory: &str) -> Result<Volumes> {
    let mut volumes = Volumes::new();
    for line in said.lines() {
        let Some(segment) = Segment::parse(line)?.filter(Segment::is_volume) else { continue };
        let record = match volumes.entry(Arc::from(segment.name)) {
            std::collections::btree_map::Entry::Occupied(known) => known.into_mut(),
            std::collections::btree_map::Entry::Vacant(free) => {
                free.insert(Arc::new(Record::new(segment.to_volume(directory)?)))
            }
        };
        Arc::make_mut(record).volume.extents.extend(segment.extents);
    }
    Ok(volumes)
}

/// The groups that `pvs` tells of, each with its devices.
fn groups(said: &str) -> Vec<Source> {
    let mut sources: Vec<Source> = Vec::new();
    for line in said.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [path, group] = *words else { continue };
        let device = Device { path: path.into(), part_separator: None, free: Vec::new() };
        match sources.iter_mut().find(|source| source.name.as_deref() == Some(group)) {
            Some(known) => known.devices.push(device),
            None => sources.push(Source {
                name: Some(group.into()),
                devices: vec![device],
                format: Some("lvm2"),
                ..Source::default()
            }),
        }
    }
    sources
}

/// "size:free", in bytes.
fn sizes(said: &str) -> Option<Sizes> {
    said.lines().find_map(|line| {
        let line = line.trim();
        let (capacity, available) = line.strip_suffix(':').unwrap_or(line).split_once(':')?;
        let (capacity, available) = (capacity.parse::<u64>().ok()?, available.parse::<u64>().ok()?);
        Some(Sizes { capacity, available, allocation: capacity.saturating_sub(available) })
    })
}

impl Storage {
    pub(super) async fn volume_groups(&self) -> Result<Vec<Source>> {
        // Only so that LVM looks again at devices that have come.
        if let Err(error) = self.ask("vgscan", &[]).await {
            tracing::warn!(%error, "cannot scan for volume groups");
        }
        Ok(groups(&self.ask("pvs", &["--noheadings", "-o", "pv_name,vg_name"]).await?))
    }

    /// Refuses a pool whose group is not there, or lies on other devices altogether.
    pub(super) async fn require_volume_group(&self, pool: &Pool) -> Result<()> {
        let name = group(pool)?;
        let groups = self.volume_groups().await?;
        let unsupported = |sentence: String| errors::ours(Error::config_unsupported(sentence));
        let found = groups.iter().find(|found| found.name.as_deref() == Some(name));
        let found =
            found.ok_or_else(|| unsupported(format!("cannot find logical volume group name '{name}'")))?;
        let wanted = &pool.source.devices;
        let is_there = |device: &&Device| found.devices.iter().any(|it| it.path == device.path);
        let matching = wanted.iter().filter(is_there).count();
        if matching == 0 && !wanted.is_empty() {
            let sentence =
                format!("cannot find any matching source devices for logical volume group '{name}'");
            return Err(unsupported(sentence));
        }
        if matching != wanted.len() {
            tracing::warn!(pool = %pool.name, "the volume group does not have the pool's devices");
        }
        Ok(())
    }

    pub(super) async fn activate_volume_group(&self, pool: &Pool) -> Result<()> {
        self.require_volume_group(pool).await?;
        self.change_volume_group(pool, ON).await
    }

    pub(super) async fn change_volume_group(&self, pool: &Pool, how: &str) -> Result<()> {
        self.ask("vgchange", &[how, group(pool)?]).await.map(drop)
    }

    pub(super) async fn make_volume_group(
        &self,
        object: &PoolObject,
        pool: &Pool,
        flags: BuildFlags,
    ) -> Result<()> {
        let mut args = vec![group(pool)?];
        let made = async {
            for device in &pool.source.devices {
                if !flags.contains(BuildFlags::OVERWRITE) {
                    self.check_device(&device.path, "LVM2_member", Purpose::Overwrite).await?;
                }
                Self::clear_device(object, &device.path).await?;
                self.tools.tool("pvcreate", &[&device.path], BUILD).await?;
                args.push(&device.path);
            }
            self.tools.tool("vgcreate", &args, BUILD).await?;
            Ok(())
        };
        let made: Result<()> = made.await;
        if made.is_err() {
            // The next try would be refused for the sake of what this one left.
            self.remove_physical_volumes(args.get(1..).unwrap_or_default()).await;
        }
        made
    }

    pub(super) async fn remove_volume_group(&self, pool: &Pool) -> Result<()> {
        self.tools.tool("vgremove", &["-f", group(pool)?], BUILD).await?;
        let devices: Vec<&str> = pool.source.devices.iter().map(|device| &*device.path).collect();
        self.remove_physical_volumes(&devices).await;
        Ok(())
    }

    async fn remove_physical_volumes(&self, devices: &[&str]) {
        for device in devices {
            if let Err(error) = self.ask("pvremove", &[device]).await {
                tracing::info!(device, %error, "cannot remove a physical volume");
            }
        }
    }

    pub(super) async fn look_through_volume_group(
        &self,
        object: &Arc<PoolObject>,
        pool: &Pool,
    ) -> Result<Found> {
        self.settle().await;
        let volumes = self.logical_volumes(object, pool).await?;
        let args = ["--separator", ":", "--noheadings", "--units", "b", "--unbuffered", "--nosuffix"];
        let args = [&args[..], &["--options", "vg_size,vg_free", group(pool)?]].concat();
        let sizes = sizes(&self.ask("vgs", &args).await?).unwrap_or_default();
        Ok(Found { volumes, sizes, ..Found::default() })
    }

    async fn logical_volumes(&self, object: &Arc<PoolObject>, pool: &Pool) -> Result<Volumes> {
        let args = ["--separator", "#", "--noheadings", "--units", "b", "--unbuffered", "--nosuffix"];
        let args = [&args[..], &["--options", COLUMNS, group(pool)?]].concat();
        let said = self.ask("lvs", &args).await?;
        let directory = pool.path.clone();
        object.blocking(move || volumes(&said, &directory)).await
    }

    pub(super) async fn make_logical_volume(
        &self,
        object: &Arc<PoolObject>,
        pool: &Pool,
        volume: Volume,
    ) -> Result<Volume> {
        let encryption = volume.target.encryption.as_deref();
        if encryption.is_some_and(|it| it.format != EncryptionFormat::Luks) {
            let sentence = "storage pool only supports LUKS encrypted volumes";
            return Err(errors::ours(Error::config_unsupported(sentence)));
        }
        let kib = |bytes: u64| format!("{}K", bytes.div_ceil(1024));
        let header = if encryption.is_some() { LUKS_HEADER } else { 0 };
        let whole = kib(volume.capacity.saturating_add(header));
        let begun = kib(volume.allocation.max(1));
        let mut args = vec!["--name", &*volume.name, "-L"];
        if volume.capacity != volume.allocation {
            args.extend([&*begun, "--type", "snapshot", "--virtualsize"]);
        }
        args.push(&whole);
        match &volume.backing {
            Some(below) if below.path.starts_with('/') => args.extend(["-s", &*below.path]),
            Some(below) => {
                let sentence = format!("path '{}' is not absolute", below.path);
                return Err(errors::ours(Error::invalid_arg(sentence)));
            }
            None => args.push(group(pool)?),
        }
        args.push("--yes");
        self.ask("lvcreate", &args).await?;
        match self.finish_logical_volume(object, pool, &volume).await {
            Ok(made) => Ok(made),
            Err(error) => {
                if let Err(left) = self.remove_logical_volume(&volume).await {
                    tracing::warn!(error = %left, "cannot remove what was left of a volume");
                }
                Err(error)
            }
        }
    }

    async fn finish_logical_volume(
        &self,
        object: &Arc<PoolObject>,
        pool: &Pool,
        volume: &Volume,
    ) -> Result<Volume> {
        if volume.target.encryption.is_some() {
            self.encrypt_device(volume).await?;
        }
        let target = volume.target.clone();
        object.blocking(move || Ok(image::own_device(&target.path, &target.permissions)?)).await?;
        let found = self.logical_volumes(object, pool).await?;
        let missing = || {
            let sentence = format!("cannot find newly created volume '{}'", volume.target.path);
            errors::ours(Error::internal_error(sentence))
        };
        let mut made = found.get(&*volume.name).ok_or_else(missing)?.volume.clone();
        made.target.encryption = volume.target.encryption.clone();
        if made.target.encryption.is_some() {
            made.capacity = volume.capacity;
        }
        Ok(made)
    }

    pub(super) async fn remove_logical_volume(&self, volume: &Volume) -> Result<()> {
        self.settle().await;
        let path = &*volume.target.path;
        if self.tools.tool("lvremove", &["-f", path], ANSWER).await.is_err() {
            self.ask("lvchange", &["-aln", path]).await?;
            self.ask("lvremove", &["-f", path]).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As LVM prints them on a host with stripes and a snapshot.
    const SAID: &str = "\
  RootLV##06UgP5-2rhb-w3Bo#/dev/hda2(0)#linear#1#5234491392#33554432#5234491392#-wi-ao
  Test3#Test2#UB5hFw-kmlm-LSoX#/dev/hda2(187)#linear#1#1040187392#33554432#1040187392#swi-a-#
  stripes##fSLSZH-zAS2-yAIb#/dev/sdc1(10240),/dev/sdd1(0)#striped#2#42949672960#4194304#42949672960#-wi-a-
  off##aaaaaa#/dev/hda2(3)#linear#1#4194304#4194304#4194304#-wi---
  thin##bbbbbb#pool(0)#thin-pool#1#4194304#4194304#4194304#twi-a-
  WARNING: something else
";

    #[test]
    fn lines_of_lvs_become_parts_of_volumes() {
        let found: Vec<_> = SAID.lines().filter_map(|line| Segment::parse(line).unwrap()).collect();
        let names: Vec<_> = found.iter().filter(|it| it.is_volume()).map(|it| it.name).collect();
        assert_eq!(names, ["RootLV", "Test3", "stripes"]);
        assert_eq!((found[1].origin, found[1].size), ("Test2", 1040187392));
        let extent = |path: &str, start: u64, len: u64| (path.into(), Extent { start, end: start + len });
        assert_eq!(
            found[2].extents,
            [extent("/dev/sdc1", 42949672960, 42949672960), extent("/dev/sdd1", 0, 42949672960)]
        );
        let broken = "x##u#/dev/a#linear#1#1#1#1#-wi-a-";
        assert!(Segment::parse(broken).unwrap_err().message().contains("extent devices"));
    }

    #[test]
    fn groups_are_found_with_all_their_devices() {
        let said = "  /dev/sdb  \n  /dev/sdc VolGroup00\n  /dev/sdd VolGroup00\n";
        let [group] = &*groups(said) else { panic!("one group") };
        let paths: Vec<_> = group.devices.iter().map(|device| &*device.path).collect();
        assert_eq!((group.name.as_deref(), &*paths), (Some("VolGroup00"), &["/dev/sdc", "/dev/sdd"][..]));
        let room = Sizes { capacity: 10603200512, available: 4328521728, allocation: 6274678784 };
        assert_eq!(sizes("  10603200512:4328521728\n"), Some(room));
    }
}
