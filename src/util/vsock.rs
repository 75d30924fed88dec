//! The kernel's end of sockets between this host and its guests.

#![allow(unsafe_code)]

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::ioctl::{Setter, ioctl, opcode};

const DEVICE: &str = "/dev/vhost-vsock";

/// `VHOST_VSOCK_SET_GUEST_CID` of linux/vhost.h.
const SET_GUEST_CID: rustix::ioctl::Opcode = opcode::write::<u64>(0xaf, 0x60);

/// 0 to 2 are the hypervisor, the host's loopback and the host.
const FIRST_CID: u32 = 3;

pub fn open() -> io::Result<OwnedFd> {
    Ok(OpenOptions::new().read(true).write(true).open(DEVICE)?.into())
}

/// Takes an address for the guest behind `device`.
pub fn set_cid(device: &impl AsFd, cid: u32) -> io::Result<()> {
    // SAFETY: the kernel reads one u64 of a call with this number, which `Setter` keeps for the time of the call.
    // A descriptor of something else refuses the number.
    unsafe { ioctl(device, Setter::<SET_GUEST_CID, u64>::new(u64::from(cid))) }?;
    Ok(())
}

/// Takes the first address that no other guest has.
pub fn acquire_cid(device: &impl AsFd) -> io::Result<u32> {
    for cid in FIRST_CID..u32::MAX {
        match set_cid(device, cid) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
            result => return result.map(|()| cid),
        }
    }
    Err(io::ErrorKind::AddrInUse.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_kernels_device_gives_addresses() {
        // The number as linux/vhost.h computes it.
        assert_eq!(SET_GUEST_CID, 0x4008_af60);
        let other: OwnedFd = OpenOptions::new().read(true).open("/dev/null").unwrap().into();
        assert_eq!(set_cid(&other, 3).unwrap_err().raw_os_error(), Some(nix::libc::ENOTTY));
        assert!(acquire_cid(&other).is_err());
    }
}
