//! `<numa>`: the guest's memory nodes, how far they are from each other, their caches.

use std::collections::BTreeMap;

use super::memory::{MemoryAccess, scaled_attribute};
use crate::conf::xml::{Element, Part, Writer, YesNo, xml, xml_enum};
use crate::conf::{ConfError, Result};
use crate::util::bitmap::Bitmap;

/// `<numa>`
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Numa {
    /// In the order of their ids.
    pub cells: Vec<NumaCell>,
    pub interconnects: Option<Interconnects>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct NumaCell {
    pub id: u32,
    pub cpus: Option<Bitmap>,
    pub memory_kib: u64,
    pub access: Option<MemoryAccess>,
    pub discard: Option<YesNo>,
    pub distances: Vec<Distance>,
    pub caches: Vec<NumaCache>,
}

xml! {
    #[derive(Copy, Eq)]
    pub struct Distance {
        attr id: u32 = "id";
        attr value: u32 = "value";
    }
}

/// More cells than any machine has; distances take a number for each pair.
const MAX_CELLS: usize = 1024;

impl Part for Numa {
    fn read(element: Element<'_>) -> Result<Self> {
        let nodes: Vec<_> = element.children_named("cell").collect();
        if nodes.is_empty() {
            return Err(ConfError::xml("NUMA topology defined without NUMA cells"));
        }
        if nodes.len() > MAX_CELLS {
            return Err(ConfError::unsupported(format!("more than {MAX_CELLS} NUMA cells")));
        }
        let mut cells: Vec<NumaCell> = Vec::new();
        let mut claimed: Vec<(Bitmap, u32)> = Vec::new();
        for (index, node) in nodes.iter().enumerate() {
            let mut cell = NumaCell::read(*node)?;
            cell.id = node.value("id")?.unwrap_or(index as u32);
            if cell.id as usize >= nodes.len() {
                let message = "Exactly one 'cell' element per guest NUMA cell allowed, non-contiguous ranges or \
                               ranges not starting from 0 are not allowed";
                return Err(ConfError::xml(message));
            }
            if cells.iter().any(|other| other.id == cell.id) {
                return Err(ConfError::xml(format!("Duplicate NUMA cell info for cell id '{}'", cell.id)));
            }
            if let Some(cpus) = &cell.cpus {
                let overlap = claimed.iter().find(|(other, _)| other.iter().any(|cpu| cpus.contains(cpu)));
                if let Some((_, other)) = overlap {
                    let message = format!("NUMA cells {} and {other} have overlapping vCPU ids", cell.id);
                    return Err(ConfError::unsupported(message));
                }
                claimed.push((cpus.clone(), cell.id));
            }
            cells.push(cell);
        }
        complete_distances(&mut cells)?;
        cells.sort_by_key(|cell| cell.id);
        let interconnects = element.child("interconnects").map(Interconnects::read).transpose()?;
        Ok(Self { cells, interconnects })
    }

    fn write_children(&self, out: &mut Writer) {
        for cell in &self.cells {
            Part::write(cell, out, "cell");
        }
        if let Some(interconnects) = &self.interconnects {
            interconnects.write_group(out, "interconnects");
        }
    }
}

/// How far a cell is from itself, and what cannot be reached.
const LOCAL: u32 = 10;
const UNREACHABLE: u32 = 255;

/// Distances given in one direction hold in the other as well.
fn complete_distances(cells: &mut [NumaCell]) -> Result<()> {
    let count = cells.len() as u32;
    let mut known: BTreeMap<u32, BTreeMap<u32, u32>> = BTreeMap::new();
    for cell in cells.iter() {
        let from = cell.id;
        for Distance { id, value } in &cell.distances {
            if *id >= count {
                let message =
                    format!("'sibling_id {id}' does not refer to a valid cell within NUMA 'cell id {from}'");
                return Err(ConfError::xml(message));
            }
            let fits = (LOCAL..=UNREACHABLE).contains(value) && (*id == from) == (*value == LOCAL);
            if !fits {
                let message =
                    format!("'value {value}' is invalid for 'sibling id {id}' under NUMA 'cell id {from}'");
                return Err(ConfError::xml(message));
            }
            known.entry(from).or_insert_with(|| BTreeMap::from([(from, LOCAL)])).insert(*id, *value);
            let back = known.entry(*id).or_insert_with(|| BTreeMap::from([(*id, LOCAL)]));
            back.entry(from).or_insert(*value);
        }
    }
    for cell in cells {
        let distances = known.remove(&cell.id).unwrap_or_default();
        cell.distances = distances.into_iter().map(|(id, value)| Distance { id, value }).collect();
    }
    Ok(())
}

impl Part for NumaCell {
    fn read(element: Element<'_>) -> Result<Self> {
        let memory_kib = scaled_attribute(element, "memory")?
            .ok_or_else(|| ConfError::missing_attribute("memory", "cell"))?;
        Ok(Self {
            id: 0,
            cpus: element.value("cpus")?.filter(|cpus: &Bitmap| !cpus.is_empty()),
            memory_kib,
            access: element.value("memAccess")?,
            discard: element.value("discard")?,
            distances: match element.child("distances") {
                Some(list) => read_distances(list)?,
                None => Vec::new(),
            },
            caches: element.children_named("cache").map(NumaCache::read).collect::<Result<_>>()?,
        })
    }

    fn write_attributes(&self, out: &mut Writer) {
        out.attribute("id", &self.id);
        if let Some(cpus) = &self.cpus {
            out.attribute("cpus", cpus);
        }
        out.attribute("memory", &self.memory_kib);
        out.attribute_str("unit", "KiB");
        if let Some(access) = &self.access {
            out.attribute("memAccess", access);
        }
        if let Some(discard) = &self.discard {
            out.attribute("discard", discard);
        }
    }

    fn write_children(&self, out: &mut Writer) {
        out.group("distances", |out| {
            for distance in &self.distances {
                Part::write(distance, out, "sibling");
            }
        });
        for cache in &self.caches {
            Part::write(cache, out, "cache");
        }
    }
}

fn read_distances(list: Element<'_>) -> Result<Vec<Distance>> {
    let distances: Vec<_> = list.children_named("sibling").map(Distance::read).collect::<Result<_>>()?;
    if distances.is_empty() {
        return Err(ConfError::xml("NUMA distances defined without siblings"));
    }
    Ok(distances)
}

xml_enum! {
    pub enum CacheAssociativity {
        None = "none",
        Direct = "direct",
        Full = "full",
    }
}

xml_enum! {
    pub enum CachePolicy {
        None = "none",
        Writeback = "writeback",
        Writethrough = "writethrough",
    }
}

xml! {
    /// A memory side cache.
    pub struct NumaCache {
        attr level: u32 = "level";
        attr associativity: CacheAssociativity = "associativity";
        attr policy: CachePolicy = "policy";
        child size: SizeKib = "size";
        child line: Option<LineSize> = "line";
    }
}

/// `value` and `unit` as KiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SizeKib(pub u64);

impl Part for SizeKib {
    fn read(element: Element<'_>) -> Result<Self> {
        let kib = scaled_attribute(element, "value")?;
        kib.map(Self).ok_or_else(|| ConfError::missing_attribute("value", element.name()))
    }

    fn write_attributes(&self, out: &mut Writer) {
        out.attribute("value", &self.0);
        out.attribute_str("unit", "KiB");
    }
}

xml! {
    #[derive(Copy, Eq)]
    pub struct LineSize {
        attr bytes: u32 = "value";
        attr unit: ByteUnit = "unit", or ByteUnit::B;
    }
}

xml_enum! {
    pub enum ByteUnit {
        B = "B",
    }
}

xml_enum! {
    pub enum AccessType {
        Access = "access",
        Read = "read",
        Write = "write",
    }
}

/// How far the nodes are from each other, in the order given.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Interconnects(pub Vec<Interconnect>);

#[derive(Debug, Clone, PartialEq)]
pub enum Interconnect {
    Latency(Link),
    Bandwidth(Link),
}

xml! {
    #[derive(Copy, Eq)]
    pub struct Link {
        attr initiator: u32 = "initiator";
        attr target: u32 = "target";
        attr cache: Option<u32> = "cache";
        attr kind: AccessType = "type";
        attr value: u64 = "value";
    }
}

impl Part for Interconnects {
    fn read(element: Element<'_>) -> Result<Self> {
        let mut list = Vec::new();
        for node in element.children() {
            match node.qualified_name() {
                "latency" => list.push(Interconnect::Latency(Link::read(node)?)),
                "bandwidth" => {
                    let value = scaled_attribute(node, "value")?.unwrap_or(0);
                    list.push(Interconnect::Bandwidth(Link { value, ..Link::read(node)? }));
                }
                _ => {}
            }
        }
        Ok(Self(list))
    }

    fn write_children(&self, out: &mut Writer) {
        for link in &self.0 {
            match link {
                Interconnect::Latency(link) => Part::write(link, out, "latency"),
                Interconnect::Bandwidth(link) => out.element("bandwidth", |out| {
                    link.write_attributes(out);
                    out.attribute_str("unit", "KiB");
                }),
            }
        }
    }
}
