//! What `<capabilities>` says of the host.

use crate::util::bitmap::Bitmap;

/// A NUMA cell.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cell {
    pub id: u32,
    pub memory_kib: u64,
    /// By size.
    pub pages: Vec<Pages>,
    pub distances: Vec<Distance>,
    pub cpus: Vec<Cpu>,
}

/// The pages of one size that a cell has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pages {
    pub size_kib: u32,
    pub count: u64,
}

/// How far another cell's memory is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Distance {
    pub cell: u32,
    pub value: u32,
}

/// A logical processor and where it sits.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cpu {
    pub id: u32,
    pub socket: u32,
    pub die: u32,
    pub cluster: u32,
    pub core: u32,
    /// The threads of the same core, itself among them.
    pub siblings: Bitmap,
}

/// A cache that some processors share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheBank {
    pub id: u32,
    pub level: u32,
    pub kind: CacheKind,
    pub size: u64,
    pub cpus: Bitmap,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CacheKind {
    Both,
    Code,
    Data,
}
