//! Disks whose partitions are the volumes, through `parted`.

use std::io::Read;
use std::sync::Arc;

use super::device::{self, Purpose};
use super::logical::LUKS_HEADER;
use super::{BUILD, Found, Storage};
use crate::conf::storage::{Device, EncryptionFormat, Extent, Pool, Role, Sizes, Volume};
use crate::conf::xml::YesNo;
use crate::drivers::storage::flags::BuildFlags;
use crate::drivers::storage::pool::{PoolObject, Record, Volumes};
use crate::drivers::storage::{Storage as Driver, errors};
use crate::error::{Error, Result};

const SECTOR: u64 = 512;
/// Primary partitions, the extended one among them, that a table of DOS has room for.
const MAX_PRIMARY: usize = 4;

pub(super) fn device(pool: &Pool) -> Result<&Device> {
    let missing = || Error::config_unsupported("expected exactly 1 device for the storage pool");
    match &*pool.source.devices {
        [device] if device.path.starts_with('/') => Ok(device),
        _ => Err(errors::ours(missing())),
    }
}

/// The kind of table, which is DOS's where nobody says.
fn table(pool: &Pool) -> &'static str {
    pool.source.format.filter(|format| *format != "unknown").unwrap_or("dos")
}

/// A region of a disk as `parted` tells of it.
#[derive(Debug, PartialEq, Eq)]
struct Region {
    /// None for room that is free.
    number: Option<u32>,
    extent: Extent,
}

impl Region {
    /// A line of `parted -m unit B print free`: "1:1048576B:2097151B:1048576B:ext4::;", or "1:…:free;".
    fn parse(line: &str) -> Option<Self> {
        let mut fields = line.trim_end_matches(';').split(':');
        let number = fields.next()?.parse().ok()?;
        let mut bytes = || fields.next()?.strip_suffix('B')?.parse::<u64>().ok();
        let (start, last, _) = (bytes()?, bytes()?, bytes()?);
        let number = Some(number).filter(|_| fields.next() != Some("free"));
        Some(Self { number, extent: Extent { start, end: last.checked_add(1)? } })
    }
}

/// How `parted` sees a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Geometry {
    cylinders: u64,
    cylinder: u64,
}

impl Geometry {
    /// The line "401:255:2:261kB;" behind the one about the device.
    fn parse(said: &str) -> Option<Self> {
        let numbers = said.lines().nth(2)?.split(':').take(3).map(|number| number.parse().ok());
        let [cylinders, heads, sectors] = numbers.collect::<Option<Vec<u64>>>()?.try_into().ok()?;
        let cylinder = heads.checked_mul(sectors)?.checked_mul(SECTOR).filter(|size| *size > 0)?;
        Some(Self { cylinders, cylinder })
    }

    fn end(self) -> u64 {
        self.cylinders.saturating_mul(self.cylinder)
    }
}

/// The number of the partition that holds the logical ones, from the first sector of a disk.
fn extended(sector: &[u8]) -> Option<u32> {
    const ENTRIES: usize = 446;
    const KINDS: [u8; 3] = [0x05, 0x0f, 0x85];
    let kind = |at: usize| sector.get(ENTRIES + 16 * at + 4).copied();
    (0..MAX_PRIMARY as u32)
        .find(|at| kind(*at as usize).is_some_and(|it| KINDS.contains(&it)))
        .map(|at| at + 1)
}

/// Everything on a disk.
#[derive(Debug)]
struct Layout {
    regions: Vec<Region>,
    geometry: Geometry,
    extended: Option<u32>,
    is_dos: bool,
}

impl Layout {
    fn role(&self, number: u32) -> Role {
        match number {
            number if Some(number) == self.extended => Role::Extended,
            number if self.is_dos && number as usize > MAX_PRIMARY => Role::Logical,
            _ => Role::Whole,
        }
    }

    fn extended_extent(&self) -> Option<Extent> {
        let number = self.extended?;
        self.regions.iter().find(|region| region.number == Some(number)).map(|region| region.extent)
    }

    fn is_inside_extended(&self, extent: Extent) -> bool {
        self.extended_extent().is_some_and(|outer| outer.start <= extent.start && extent.end <= outer.end)
    }

    /// Where there is room. The rest of a last cylinder is none.
    fn free(&self) -> Vec<Extent> {
        let free = self.regions.iter().filter(|region| region.number.is_none()).map(|region| region.extent);
        let end = if self.is_dos { self.geometry.end() } else { u64::MAX };
        free.map(|Extent { start, end: last }| Extent { start: start.max(SECTOR), end: last.min(end) })
            .filter(|extent| !extent.is_empty())
            .collect()
    }

    /// Where a partition of so many bytes goes: into the smallest room that holds it.
    fn place(&self, bytes: u64, is_logical: bool) -> Result<Extent> {
        let cylinder = self.geometry.cylinder;
        let extra = cylinder - bytes % cylinder;
        let needed = |free: Extent| match self.is_dos {
            false => bytes,
            true if free.start % cylinder > extra => bytes.saturating_add(extra + cylinder),
            true => bytes.saturating_add(extra),
        };
        let gap = if self.is_dos && is_logical { SECTOR } else { 0 };
        let fits = |free: &Extent| {
            free.len().saturating_sub(gap) > needed(*free) && self.is_inside_extended(*free) == is_logical
        };
        let none = || errors::ours(Error::internal_error("no large enough free extent"));
        let free = self.free().into_iter().filter(fits).min_by_key(|free| free.len()).ok_or_else(none)?;
        let start = free.start + if is_logical { SECTOR } else { 0 };
        let end = start.saturating_add(needed(free));
        let end = if self.is_dos { end - start % cylinder } else { end };
        Ok(Extent { start, end })
    }

    /// What `parted` is to make for a volume.
    fn kind(&self, volume: &Volume) -> Result<(String, bool)> {
        let refused = |sentence| Err(errors::ours(Error::internal_error(sentence)));
        if !self.is_dos {
            return Ok(("primary".to_owned(), false));
        }
        let content = match volume.target.partition.unwrap_or("none") {
            "extended" if self.extended.is_some() => return refused("extended partition already exists"),
            "extended" => return Ok(("extended".to_owned(), false)),
            known @ ("fat16" | "fat32" | "linux-swap") => known,
            _ => "ext2",
        };
        let primary = self.regions.iter().filter_map(|region| region.number);
        if primary.filter(|number| *number as usize <= MAX_PRIMARY).count() < MAX_PRIMARY {
            return Ok((format!("primary {content}"), false));
        }
        match self.extended {
            Some(_) => Ok((format!("logical {content}"), true)),
            None => refused("no extended partition found and no primary partition available"),
        }
    }
}

/// How the kernel calls a partition of a device.
fn partition_path(device: &str, number: u32, separator: Option<YesNo>) -> String {
    let separate = device.ends_with(|char: char| char.is_ascii_digit())
        || (separator == Some(YesNo::Yes) && device.starts_with("/dev/mapper/"));
    format!("{device}{}{number}", if separate { "p" } else { "" })
}

impl Storage {
    /// Refuses a device that has no table of the pool's kind.
    pub(super) async fn require_partitioned(&self, pool: &Pool) -> Result<()> {
        self.check_device(&device(pool)?.path, table(pool), Purpose::Use).await
    }

    pub(super) async fn start_disk(&self, object: &PoolObject, pool: &Pool) -> Result<()> {
        self.settle().await;
        Self::require_device(object, pool).await?;
        self.require_partitioned(pool).await?;
        let format = Some(table(pool));
        object.update(|state| Arc::make_mut(&mut state.current).source.format = format, |_, ()| ());
        Ok(())
    }

    async fn require_device(object: &PoolObject, pool: &Pool) -> Result<()> {
        let path = &device(pool)?.path;
        match Self::device_exists(object, path).await? {
            true => Ok(()),
            false => Err(errors::ours(Error::invalid_arg(format!("device path '{path}' doesn't exist")))),
        }
    }

    pub(super) async fn make_partition_table(
        &self,
        object: &PoolObject,
        pool: &Pool,
        flags: BuildFlags,
    ) -> Result<()> {
        let (path, kind) = (&*device(pool)?.path, table(pool));
        if !flags.contains(BuildFlags::OVERWRITE) {
            self.check_device(path, pool.source.format.unwrap_or("unknown"), Purpose::Overwrite).await?;
        }
        Self::clear_device(object, path).await?;
        let kind = if kind == "dos" { "msdos" } else { kind };
        self.tools.tool("parted", &[path, "mklabel", "--script", kind], BUILD).await?;
        Ok(())
    }

    async fn layout(&self, object: &PoolObject, pool: &Pool) -> Result<Layout> {
        let path = device(pool)?.path.clone();
        let said = self.ask("parted", &["-s", "-m", &path, "unit", "chs", "print"]).await?;
        let unknown = || errors::ours(Error::internal_error("Failed to create disk pool geometry"));
        let geometry = Geometry::parse(&said).ok_or_else(unknown)?;
        let said = self.ask("parted", &["-s", "-m", &path, "unit", "B", "print", "free"]).await?;
        let regions = said.lines().skip(2).filter_map(Region::parse).collect();
        let is_dos = table(pool) == "dos";
        let extended = match is_dos {
            true => object.blocking(move || Ok(extended(&first_sector(&path)?))).await?,
            false => None,
        };
        Ok(Layout { regions, geometry, extended, is_dos })
    }

    pub(super) async fn look_through_partitions(
        &self,
        object: &Arc<PoolObject>,
        pool: &Pool,
    ) -> Result<Found> {
        self.settle().await;
        Self::require_device(object, pool).await?;
        let layout = self.layout(object, pool).await?;
        let device = device(pool)?.clone();
        object.blocking(move || found(&layout, &device)).await
    }

    pub(super) async fn make_partition(&self, object: &Arc<PoolObject>, volume: Volume) -> Result<Volume> {
        let state = object.state();
        let (pool, path) = (&state.current, &device(&state.current)?.path);
        let encryption = volume.target.encryption.as_deref();
        if encryption.is_some_and(|it| it.format != EncryptionFormat::Luks) {
            let sentence = "storage pool only supports LUKS encrypted volumes";
            return Err(errors::ours(Error::config_unsupported(sentence)));
        }
        let header = if encryption.is_some() { LUKS_HEADER } else { 0 };
        let layout = self.layout(object, pool).await?;
        let (kind, is_logical) = layout.kind(&volume)?;
        let place = layout.place(volume.capacity.saturating_add(header), is_logical)?;
        let (start, end) = (format!("{}B", place.start), format!("{}B", place.end - 1));
        self.ask("parted", &[path, "mkpart", "--script", &kind, &start, &end]).await?;
        let made = self.finish_partition(object, pool, &layout, &volume).await;
        if made.is_err()
            && let Err(error) = self.remove_new_partitions(object, pool, &layout).await
        {
            tracing::warn!(%error, "cannot remove what was left of a volume");
        }
        made
    }

    /// Finds the partition that was not there before, which must have the name that was asked for.
    async fn finish_partition(
        &self,
        object: &Arc<PoolObject>,
        pool: &Pool,
        before: &Layout,
        volume: &Volume,
    ) -> Result<Volume> {
        let found = self.look_through_partitions(object, pool).await?;
        let extents: Vec<Extent> =
            before.regions.iter().filter_map(|it| it.number.map(|_| it.extent)).collect();
        let is_new = |record: &&Arc<Record>| {
            record.volume.extents.first().is_some_and(|(_, extent)| !extents.contains(extent))
        };
        let missing = || errors::no_volume(format_args!("name '{}'", volume.name));
        let mut made = found.volumes.values().find(is_new).ok_or_else(missing)?.volume.clone();
        if made.name != volume.name {
            let sentence = format!("invalid partition name '{}', expected '{}'", volume.name, made.name);
            return Err(errors::ours(Error::invalid_arg(sentence)));
        }
        made.target.partition = volume.target.partition;
        if volume.target.encryption.is_some() {
            made.target.encryption = volume.target.encryption.clone();
            made.capacity = made.capacity.saturating_sub(LUKS_HEADER);
            made.allocation = made.allocation.saturating_sub(LUKS_HEADER);
            self.encrypt_device(&made).await?;
        }
        Ok(made)
    }

    async fn remove_new_partitions(&self, object: &PoolObject, pool: &Pool, before: &Layout) -> Result<()> {
        let now = self.layout(object, pool).await?;
        let is_new = |region: &&Region| region.number.is_some() && !before.regions.contains(region);
        for number in now.regions.iter().filter(is_new).filter_map(|region| region.number) {
            self.remove_partition_number(pool, number).await?;
        }
        Ok(())
    }

    pub(super) async fn remove_partition(&self, pool: &Pool, volume: &Volume) -> Result<()> {
        let digits = volume.name.trim_end_matches(|char: char| char.is_ascii_digit()).len();
        let number = volume.name.get(digits..).and_then(|number| number.parse().ok());
        let unknown = || {
            let sentence = format!("cannot parse partition number from target '{}'", volume.name);
            errors::ours(Error::internal_error(sentence))
        };
        self.remove_partition_number(pool, number.ok_or_else(unknown)?).await
    }

    async fn remove_partition_number(&self, pool: &Pool, number: u32) -> Result<()> {
        let path = &device(pool)?.path;
        self.ask("parted", &[path, "rm", "--script", &number.to_string()]).await.map(drop)
    }
}

fn first_sector(path: &str) -> Result<Vec<u8>> {
    let mut sector = Vec::new();
    let read = std::fs::File::open(path).and_then(|file| file.take(SECTOR).read_to_end(&mut sector));
    read.map_err(|error| Driver::io(format_args!("cannot read header '{path}'"), error))?;
    Ok(sector)
}

fn found(layout: &Layout, device: &Device) -> Result<Found> {
    let real = std::fs::canonicalize(&*device.path);
    let real = real.map_or_else(|_| device.path.to_string(), |path| path.display().to_string());
    let (mut volumes, mut sizes) = (Volumes::new(), Sizes::default());
    let mut inside_extended = 0;
    for Region { number, extent } in &layout.regions {
        let Some(number) = *number else { continue };
        let path = partition_path(&real, number, device.part_separator);
        let name = path.rsplit('/').next().unwrap_or(&path);
        let mut volume = device::volume(name, &path, &path)?;
        volume.role = layout.role(number);
        volume.extents = vec![(device.path.clone(), *extent)];
        volume.target.partition = Some("none");
        match volume.role {
            Role::Extended => (volume.capacity, volume.allocation) = (extent.len(), 0),
            Role::Logical => inside_extended += volume.allocation,
            _ => {}
        }
        if volume.role != Role::Extended {
            sizes.allocation += volume.allocation;
        }
        sizes.capacity = sizes.capacity.max(extent.end);
        volumes.insert(name.into(), Arc::new(Record::new(volume)));
    }
    for record in volumes.values_mut().filter(|record| record.volume.role == Role::Extended) {
        Arc::make_mut(record).volume.allocation = inside_extended;
    }
    let free = layout.free();
    sizes.available = free.iter().map(|extent| extent.len()).sum();
    sizes.capacity = free.iter().map(|extent| extent.end).fold(sizes.capacity, u64::max);
    Ok(Found { volumes, sizes, permissions: None, free })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As `parted` 3.5 prints a loop device of 100 MiB.
    const SAID: &str = "BYT;
/dev/loop0:104857600B:loopback:512:512:msdos:Loopback device:;
1:1024B:32255B:31232B:free;
1:32256B:20000255B:19968000B:::;
1:20000256B:29999615B:9999360B:free;
2:29999616B:90000383B:60000768B:::lba;
1:30000640B:30812159B:811520B:free;
5:30999552B:40000511B:9000960B:::;
1:40000512B:90000383B:49999872B:free;
1:90000384B:104857599B:14857216B:free;
";

    fn layout() -> Layout {
        let geometry = "CHS;\n/dev/loop0:401,144,1:loopback:512:512:msdos:x:;\n401:255:2:261kB;\n1:0,31,1:76,151,0:::;\n";
        Layout {
            regions: SAID.lines().skip(2).filter_map(Region::parse).collect(),
            geometry: Geometry::parse(geometry).unwrap(),
            extended: Some(2),
            is_dos: true,
        }
    }

    #[test]
    fn room_is_found_as_libvirt_finds_it() {
        let layout = layout();
        let free: Vec<_> = layout.free().iter().map(|it| (it.start, it.end)).collect();
        assert_eq!(
            free,
            [
                (1024, 32256),
                (20000256, 29999616),
                (30000640, 30812160),
                (40000512, 90000384),
                (90000384, 104709120)
            ]
        );
        assert_eq!([1, 2, 5].map(|number| layout.role(number)), [Role::Whole, Role::Extended, Role::Logical]);
        let place = layout.place(1 << 20, false).unwrap();
        assert_eq!((place.start, place.end % 261120), (20000256, 0));
        let place = layout.place(1 << 20, true).unwrap();
        assert_eq!(place.start, 40000512 + 512);
        assert!(layout.place(1 << 30, false).is_err());
    }

    #[test]
    fn the_extended_partition_is_known_by_its_kind() {
        let mut sector = vec![0; 512];
        sector[446 + 16 + 4] = 0x0f;
        assert_eq!(extended(&sector), Some(2));
        assert_eq!(extended(&[0; 100]), None);
    }

    #[test]
    fn partitions_are_called_as_the_kernel_does() {
        assert_eq!(partition_path("/dev/sda", 1, None), "/dev/sda1");
        assert_eq!(partition_path("/dev/loop0", 1, None), "/dev/loop0p1");
        assert_eq!(partition_path("/dev/mapper/mpatha", 1, Some(YesNo::Yes)), "/dev/mapper/mpathap1");
    }
}
