//! CPU models of x86: what a processor's bits are called, and which model they make.
//!
//! ```text
//! cpu_map/*.xml ──map──▶ CpuMap ─┐
//! cpuid, QEMU's properties ──────┴─ decode ──▶ model + features beyond it + features it lacks
//! ```

mod data;
mod decode;
mod map;

pub use data::{CpuData, Place};
pub use decode::{Decoded, Known, Policy, Purpose};
pub use map::{CpuMap, CpuMapError, CpuModel};
