//! What only the processor itself and the kernel's KVM can tell: `cpuid`, registers, limits.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use nix::libc;

const KVM: &str = "/dev/kvm";

// The requests of linux/kvm.h that take and answer plain numbers, and the one that reads registers.
const CREATE_VM: libc::c_ulong = 0xAE01;
const CHECK_EXTENSION: libc::c_ulong = 0xAE03;
const CREATE_VCPU: libc::c_ulong = 0xAE41;
const GET_TSC_KHZ: libc::c_ulong = 0xAEA3;
const GET_MSRS: libc::c_ulong = 0xC008_AE88;

const CAP_NR_VCPUS: libc::c_ulong = 9;
const CAP_TSC_CONTROL: libc::c_ulong = 60;
const CAP_MAX_VCPUS: libc::c_ulong = 66;

/// What the kernel documents for a KVM that names no limit.
const FEWEST_MAX_VCPUS: u32 = 4;

/// The most virtual CPUs that KVM gives one guest.
pub fn max_vcpus() -> io::Result<u32> {
    let kvm = File::open(KVM)?;
    let ask = |extension| number(kvm.as_raw_fd(), CHECK_EXTENSION, extension).ok().filter(|limit| *limit > 0);
    Ok(ask(CAP_MAX_VCPUS).or_else(|| ask(CAP_NR_VCPUS)).unwrap_or(FEWEST_MAX_VCPUS))
}

/// The time stamp counter of guests: ticks a second, and whether KVM can give them others.
pub fn tsc() -> io::Result<(u64, bool)> {
    let kvm = File::open(KVM)?;
    let machine = descriptor(kvm.as_raw_fd(), CREATE_VM)?;
    let processor = descriptor(machine.as_raw_fd(), CREATE_VCPU)?;
    let khz = number(processor.as_raw_fd(), GET_TSC_KHZ, 0)?;
    let scaling = number(kvm.as_raw_fd(), CHECK_EXTENSION, CAP_TSC_CONTROL)?;
    Ok((u64::from(khz) * 1000, scaling > 0))
}

/// A model specific register, where KVM lets guests see it.
pub fn msr(index: u32) -> io::Result<u64> {
    /// `struct kvm_msrs` with one entry.
    #[repr(C)]
    struct OneMsr {
        count: u32,
        pad: u32,
        index: u32,
        reserved: u32,
        data: u64,
    }
    let kvm = File::open(KVM)?;
    let mut one = OneMsr { count: 1, pad: 0, index, reserved: 0, data: 0 };
    // SAFETY: the kernel reads and writes one entry, as `count` says, inside `one`.
    #[allow(unsafe_code)]
    let read = unsafe { libc::ioctl(kvm.as_raw_fd(), GET_MSRS as _, &raw mut one) };
    match read {
        1 => Ok(one.data),
        0 => Err(io::ErrorKind::Unsupported.into()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn number(descriptor: RawFd, request: libc::c_ulong, argument: libc::c_ulong) -> io::Result<u32> {
    // SAFETY: the requests above take a plain number, so the kernel touches no memory of ours.
    #[allow(unsafe_code)]
    let answer = unsafe { libc::ioctl(descriptor, request as _, argument) };
    u32::try_from(answer).map_err(|_| io::Error::last_os_error())
}

fn descriptor(of: RawFd, request: libc::c_ulong) -> io::Result<OwnedFd> {
    let created = number(of, request, 0)?;
    let created = RawFd::try_from(created).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made this descriptor for us, and nobody else knows its number.
    #[allow(unsafe_code)]
    Ok(unsafe { OwnedFd::from_raw_fd(created) })
}

/// One answer of the processor about itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Leaf {
    pub eax: u32,
    pub ebx: u32,
    pub ecx: u32,
    pub edx: u32,
}

/// Asks the processor; only x86 answers.
#[cfg(target_arch = "x86_64")]
pub fn cpuid(leaf: u32, subleaf: u32) -> Option<Leaf> {
    // SAFETY: every x86_64 processor has the instruction, and it touches registers only. (Newer Rust knows.)
    #[allow(unsafe_code, unused_unsafe)]
    let answer = unsafe { std::arch::x86_64::__cpuid_count(leaf, subleaf) };
    Some(Leaf { eax: answer.eax, ebx: answer.ebx, ecx: answer.ecx, edx: answer.edx })
}

/// Asks the processor; only x86 answers.
#[cfg(not(target_arch = "x86_64"))]
pub fn cpuid(_leaf: u32, _subleaf: u32) -> Option<Leaf> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kvm_and_the_processor_answer_where_there_are_any() {
        if let Ok(limit) = max_vcpus() {
            assert!(limit >= FEWEST_MAX_VCPUS, "{limit}");
            assert!(tsc().map_or(true, |(hertz, _)| hertz > 1_000_000));
        }
        if cfg!(target_arch = "x86_64") {
            assert!(cpuid(0, 0).unwrap().eax > 0);
        }
        assert!(msr(0xdead_beef).is_err());
    }
}
