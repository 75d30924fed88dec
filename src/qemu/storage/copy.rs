//! Bytes from one file to another: only those that are there, by the kernel where it can.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};

use rustix::io::Errno;

/// What is copied by one system call.
const CHUNK: usize = 64 << 20;
/// What is copied by one read, where the kernel cannot copy by itself.
const BUFFER: usize = 1 << 20;

/// Copies the first `len` bytes of `from`. What is a hole there is left alone in `to`, which has zeroes.
pub(super) fn copy(from: &mut File, to: &mut File, len: u64) -> io::Result<()> {
    let mut at = 0;
    while at < len {
        let Some((start, end)) = next_data(from, at, len)? else { return Ok(()) };
        copy_range(from, to, start, end)?;
        at = end;
    }
    Ok(())
}

/// Copies the first `len` bytes of `from` with its zeroes.
pub(super) fn copy_all(from: &mut File, to: &mut File, len: u64) -> io::Result<()> {
    copy_by_hand(from, to, 0, len)
}

/// The next bytes at or behind `at` that are no hole.
pub fn next_data(file: &File, at: u64, len: u64) -> io::Result<Option<(u64, u64)>> {
    let start = match rustix::fs::seek(file, rustix::fs::SeekFrom::Data(at)) {
        Ok(start) => start,
        Err(Errno::NXIO) => return Ok(None),
        // A filesystem that does not know: all is data.
        Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(Some((at, len))),
        Err(error) => return Err(error.into()),
    };
    if start >= len {
        return Ok(None);
    }
    let end = rustix::fs::seek(file, rustix::fs::SeekFrom::Hole(start))?;
    Ok(Some((start, end.min(len))))
}

fn copy_range(from: &mut File, to: &mut File, start: u64, end: u64) -> io::Result<()> {
    let (mut read, mut written) = (start, start);
    while read < end {
        let len = usize::try_from(end - read).unwrap_or(CHUNK).min(CHUNK);
        match rustix::fs::copy_file_range(&*from, Some(&mut read), &*to, Some(&mut written), len) {
            // The original was cut short meanwhile.
            Ok(0) => return Ok(()),
            Ok(_) | Err(Errno::INTR) => {}
            Err(Errno::XDEV | Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
                return copy_by_hand(from, to, read, end);
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn copy_by_hand(from: &mut File, to: &mut File, start: u64, end: u64) -> io::Result<()> {
    from.seek(SeekFrom::Start(start))?;
    to.seek(SeekFrom::Start(start))?;
    let mut buffer = vec![0; BUFFER];
    let mut rest = from.take(end - start);
    loop {
        match rest.read(&mut buffer)? {
            0 => return Ok(()),
            len => to.write_all(buffer.get(..len).unwrap_or_default())?,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_stay_holes_and_bytes_arrive_either_way() {
        let directory = tempfile::tempdir().unwrap();
        let open = |name: &str| {
            File::options()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .open(directory.path().join(name))
                .unwrap()
        };
        let (mut from, mut to) = (open("from"), open("to"));
        from.set_len(8 << 20).unwrap();
        from.seek(SeekFrom::Start(4 << 20)).unwrap();
        from.write_all(&[9; 5000]).unwrap();
        to.set_len(8 << 20).unwrap();
        copy(&mut from, &mut to, 8 << 20).unwrap();
        let same = || {
            std::fs::read(directory.path().join("from")).unwrap()
                == std::fs::read(directory.path().join("to")).unwrap()
        };
        assert!(same());
        use std::os::unix::fs::MetadataExt;
        assert!(to.metadata().unwrap().blocks() * 512 < 1 << 20);
        to.set_len(0).unwrap();
        copy_by_hand(&mut from, &mut to, 0, 8 << 20).unwrap();
        assert!(same());
    }
}
