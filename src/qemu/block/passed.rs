//! Images that a client has handed over as open descriptors: what `fdgroup` of a source names.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::probe::HEADER_LEN;

/// The descriptors of one image: of the same file, opened in different ways.
#[derive(Debug)]
pub struct Group {
    pub files: Vec<OwnedFd>,
    /// QEMU may write to the image even below a disk that is only read.
    pub writable: bool,
}

/// What is there for a guest, by the name of the group.
pub type Passed = BTreeMap<Box<str>, Arc<Group>>;

impl Group {
    /// The first bytes of the image. The place up to which the descriptor was read stays.
    pub(super) fn header(&self) -> io::Result<Vec<u8>> {
        let mut header = vec![0; HEADER_LEN];
        let file = self.files.first().ok_or(io::ErrorKind::NotFound)?;
        let read = rustix::io::pread(file, &mut header, 0)?;
        header.truncate(read);
        Ok(header)
    }
}
