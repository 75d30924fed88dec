//! Network devices that a guest's card is wired to, and the kernel's calls to set them up.
//!
//! A tap device lives as long as one of its descriptors: QEMU holds them, so it is gone with QEMU.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use nix::libc;

use super::mac::Mac;

const TUN: &str = "/dev/net/tun";

/// What [`open`] made.
#[derive(Debug)]
pub struct Tap {
    /// The name the kernel gave it, where a pattern was asked for.
    pub name: String,
    /// One descriptor for each pair of queues.
    pub queues: Vec<OwnedFd>,
}

/// Whether frames carry a header that lets host and guest leave checksums and segments to each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Offload {
    /// As virtio cards have it.
    VirtioHeader,
    None,
}

/// Makes a tap device, or opens the one of that name. `%d` in the name stands for the first free number.
pub fn open(name: &str, queues: u32, offload: Offload) -> io::Result<Tap> {
    let mut flags = libc::IFF_TAP | libc::IFF_NO_PI;
    if queues > 1 {
        flags |= libc::IFF_MULTI_QUEUE;
    }
    if offload == Offload::VirtioHeader {
        flags |= libc::IFF_VNET_HDR;
    }
    let mut tap = Tap { name: name.to_owned(), queues: Vec::new() };
    for _ in 0..queues.max(1) {
        let queue: OwnedFd = OpenOptions::new().read(true).write(true).open(TUN)?.into();
        let mut request = Request::new(&tap.name)?;
        request.set_flags(flags as libc::c_short);
        request.send(queue.as_raw_fd(), libc::TUNSETIFF)?;
        tap.name = request.name();
        tap.queues.push(queue);
    }
    Ok(tap)
}

/// A socket by which the kernel's network devices are asked and set up.
#[derive(Debug)]
pub struct Links(OwnedFd);

impl Links {
    pub fn new() -> io::Result<Self> {
        let (family, kind) = (rustix::net::AddressFamily::INET, rustix::net::SocketType::DGRAM);
        let flags = rustix::net::SocketFlags::CLOEXEC;
        Ok(Self(rustix::net::socket_with(family, kind, flags, None)?))
    }

    pub fn mtu(&self, name: &str) -> io::Result<u32> {
        let mut request = Request::new(name)?;
        self.send(&mut request, libc::SIOCGIFMTU)?;
        Ok(request.number().unsigned_abs())
    }

    pub fn set_mtu(&self, name: &str, mtu: u32) -> io::Result<()> {
        let mut request = Request::new(name)?;
        request.set_number(i32::try_from(mtu).map_err(|_| io::ErrorKind::InvalidInput)?);
        self.send(&mut request, libc::SIOCSIFMTU)
    }

    pub fn set_mac(&self, name: &str, mac: Mac) -> io::Result<()> {
        let mut request = Request::new(name)?;
        request.set_hardware_address(mac);
        self.send(&mut request, libc::SIOCSIFHWADDR)
    }

    pub fn set_up(&self, name: &str) -> io::Result<()> {
        let mut request = Request::new(name)?;
        self.send(&mut request, libc::SIOCGIFFLAGS)?;
        request.set_flags(request.flags() | libc::IFF_UP as libc::c_short);
        self.send(&mut request, libc::SIOCSIFFLAGS)
    }

    pub fn add_to_bridge(&self, bridge: &str, name: &str) -> io::Result<()> {
        let mut port = Request::new(name)?;
        self.send(&mut port, libc::SIOCGIFINDEX)?;
        let mut request = Request::new(bridge)?;
        request.set_number(port.number());
        self.send(&mut request, SIOCBRADDIF)
    }

    pub fn remove_from_bridge(&self, bridge: &str, name: &str) -> io::Result<()> {
        let mut port = Request::new(name)?;
        self.send(&mut port, libc::SIOCGIFINDEX)?;
        let mut request = Request::new(bridge)?;
        request.set_number(port.number());
        self.send(&mut request, SIOCBRDELIF)
    }

    /// How many packets may come before somebody is told.
    pub fn set_coalesced_frames(&self, name: &str, frames: u32) -> io::Result<()> {
        let mut coalescing = Coalescing([0; 23]);
        self.exchange(name, &mut coalescing, ETHTOOL_GCOALESCE)?;
        let [_, _, rx_max_frames, ..] = &mut coalescing.0;
        *rx_max_frames = frames;
        self.exchange(name, &mut coalescing, ETHTOOL_SCOALESCE)
    }

    #[allow(unsafe_code)]
    fn exchange(&self, name: &str, coalescing: &mut Coalescing, command: u32) -> io::Result<()> {
        /// `struct ifreq` with a pointer in its union.
        #[repr(C)]
        struct Asking {
            name: [u8; libc::IFNAMSIZ],
            data: *mut Coalescing,
            rest: [u8; 16],
        }
        const _: () = assert!(size_of::<Asking>() == size_of::<libc::ifreq>());
        let [first, ..] = &mut coalescing.0;
        *first = command;
        let Request { name, .. } = Request::new(name)?;
        let mut asking = Asking { name, data: std::ptr::from_mut(coalescing), rest: [0; 16] };
        // SAFETY: the call takes a `struct ifreq`, which `asking` is laid out as, with a pointer to a
        // `struct ethtool_coalesce`, which `coalescing` is laid out as and which lives longer than the call.
        let answer = unsafe { libc::ioctl(self.0.as_raw_fd(), SIOCETHTOOL, &raw mut asking) };
        if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    fn send(&self, request: &mut Request, call: libc::Ioctl) -> io::Result<()> {
        request.send(self.0.as_raw_fd(), call)
    }
}

// linux/sockios.h; libc has it for some targets only.
const SIOCBRADDIF: libc::Ioctl = 0x89a2;
const SIOCBRDELIF: libc::Ioctl = 0x89a3;
const SIOCETHTOOL: libc::Ioctl = 0x8946;

// linux/ethtool.h
const ETHTOOL_GCOALESCE: u32 = 0x0e;
const ETHTOOL_SCOALESCE: u32 = 0x0f;

/// `struct ethtool_coalesce`: the command, then numbers, of which the second is the one asked for here.
#[repr(C)]
struct Coalescing([u32; 23]);

/// `struct ifreq`: a name and a union of 24 bytes, of which each call uses one member.
#[repr(C, align(8))]
struct Request {
    name: [u8; libc::IFNAMSIZ],
    value: [u8; 24],
}

// The calls below read and write no more than this.
const _: () = assert!(size_of::<Request>() == size_of::<libc::ifreq>());

impl Request {
    fn new(name: &str) -> io::Result<Self> {
        let mut request = Self { name: [0; libc::IFNAMSIZ], value: [0; 24] };
        // The last byte ends the name.
        let fits = name.len() < libc::IFNAMSIZ && !name.bytes().any(|byte| byte == 0);
        match request.name.get_mut(..name.len()) {
            Some(place) if fits => place.copy_from_slice(name.as_bytes()),
            _ => return Err(io::Error::from_raw_os_error(libc::ENODEV)),
        }
        Ok(request)
    }

    fn name(&self) -> String {
        let name = self.name.split(|byte| *byte == 0).next().unwrap_or_default();
        String::from_utf8_lossy(name).into_owned()
    }

    fn number(&self) -> i32 {
        let [a, b, c, d, ..] = self.value;
        i32::from_ne_bytes([a, b, c, d])
    }

    fn set_number(&mut self, number: i32) {
        let [a, b, c, d] = number.to_ne_bytes();
        self.value = [0; 24];
        let [first, second, third, fourth, ..] = &mut self.value;
        (*first, *second, *third, *fourth) = (a, b, c, d);
    }

    fn flags(&self) -> libc::c_short {
        let [a, b, ..] = self.value;
        libc::c_short::from_ne_bytes([a, b])
    }

    fn set_flags(&mut self, flags: libc::c_short) {
        let [a, b] = flags.to_ne_bytes();
        self.value = [0; 24];
        let [first, second, ..] = &mut self.value;
        (*first, *second) = (a, b);
    }

    /// `struct sockaddr`: a family of two bytes, then the address.
    fn set_hardware_address(&mut self, mac: Mac) {
        self.set_flags(libc::ARPHRD_ETHER as libc::c_short);
        for (byte, value) in self.value.iter_mut().skip(2).zip(mac.0) {
            *byte = value;
        }
    }

    #[allow(unsafe_code)]
    fn send(&mut self, descriptor: RawFd, call: libc::Ioctl) -> io::Result<()> {
        // SAFETY: every call of this file takes a pointer to a `struct ifreq`, which `self` is laid out as,
        // and keeps none of it; the kernel checks the descriptor.
        let answer = unsafe { libc::ioctl(descriptor, call, std::ptr::from_mut(self)) };
        if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs `test` in a network of its own, where the machine lets us make one.
    fn in_own_network(test: fn()) {
        let thread =
            std::thread::spawn(move || match nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET) {
                Ok(()) => test(),
                Err(error) => eprintln!("skipped: no network namespace: {error}"),
            });
        thread.join().unwrap();
    }

    #[test]
    fn a_tap_is_made_wired_and_gone_with_its_descriptors() {
        in_own_network(|| {
            let links = Links::new().unwrap();
            let tap = match open("vnet%d", 2, Offload::VirtioHeader) {
                Ok(tap) => tap,
                Err(error) => return eprintln!("skipped: {TUN}: {error}"),
            };
            assert_eq!((tap.name.as_str(), tap.queues.len()), ("vnet0", 2));
            links.set_mtu("vnet0", 1400).unwrap();
            assert_eq!(links.mtu("vnet0").unwrap(), 1400);
            links.set_mac("vnet0", Mac([0xfe, 0x54, 0, 1, 2, 3])).unwrap();
            links.set_up("vnet0").unwrap();
            links.set_coalesced_frames("vnet0", 32).unwrap();
            let error = links.add_to_bridge("nobridge9", "vnet0").unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::ENODEV));
            drop(tap);
            assert_eq!(links.mtu("vnet0").unwrap_err().raw_os_error(), Some(libc::ENODEV));
        });
    }

    #[test]
    fn a_name_that_does_not_fit_is_no_device() {
        let links = Links::new().unwrap();
        for name in ["", "sixteen-or-more-x", "a\0b"] {
            assert_eq!(links.mtu(name).unwrap_err().raw_os_error(), Some(libc::ENODEV), "{name:?}");
        }
    }
}
