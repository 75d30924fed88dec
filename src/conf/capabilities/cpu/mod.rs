//! CPU models of x86: what a processor's bits are called, and which model they make.
//!
//! ```text
//! cpu_map/*.xml ──map──▶ CpuMap ─┐
//! cpuid, QEMU's properties ──────┼─ decode ──▶ model + features beyond it + features it lacks
//! a definition's CPU ────────────┼─ guest ──▶ whether a host has it, what a guest got of it
//! several hosts' CPUs ───────────┴─ baseline ──▶ the CPU that all of them have
//! ```

mod baseline;
mod data;
mod decode;
mod described;
mod guest;
mod map;

pub use baseline::{Migration, Offer};
pub use data::{CpuData, Place};
pub use decode::{Decoded, Known, Policy, Purpose};
pub use described::{Described, DescribedCpu, Wanted, check_models};
pub use guest::{Comparison, CpuError, GivenCpu};
pub use map::{CpuMap, CpuMapError, CpuModel};
