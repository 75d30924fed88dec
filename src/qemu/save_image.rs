//! The file that a guest's memory is saved in, in libvirt's form.
//!
//! ```text
//!  ┌ 92 bytes ┐┌────────────── data_len bytes ──────────────┐
//!  │  header  ││ definition, 0 │ cookie, 0 │ zeros for later │ QEMU's stream, perhaps compressed
//!  └──────────┘└────────────────────────────────────────────┘
//! ```
//!
//! The zeros leave room for a longer definition: a file can be edited in place. A file that is being written says
//! so in its first bytes.

use std::io::{self, Read};
use std::path::PathBuf;

use thiserror::Error;

use crate::conf;
use crate::conf::domain::Cpu;
use crate::conf::xml::{Form, read_document, write_document, xml};

const MAGIC: &[u8; 16] = b"LibvirtQemudSave";
const PARTIAL: &[u8; 16] = b"LibvirtQemudPart";
const VERSION: u32 = 2;
const HEADER_BYTES: usize = 92;
/// Room for a longer definition.
const PADDING: usize = 64 * 1024;
/// No definition is as long as that.
const MAX_DATA: u32 = 64 * 1024 * 1024;

/// What is done to QEMU's stream on its way into the file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum SaveFormat {
    #[default]
    Raw = 0,
    Gzip = 1,
    Bzip2 = 2,
    Xz = 3,
    Lzop = 4,
    Zstd = 5,
    /// Every page has its place, and what was never written takes none.
    Sparse = 6,
}

impl SaveFormat {
    const ALL: [Self; 7] =
        [Self::Raw, Self::Gzip, Self::Bzip2, Self::Xz, Self::Lzop, Self::Zstd, Self::Sparse];

    pub fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Gzip => "gzip",
            Self::Bzip2 => "bzip2",
            Self::Xz => "xz",
            Self::Lzop => "lzop",
            Self::Zstd => "zstd",
            Self::Sparse => "sparse",
        }
    }

    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|format| format.name() == name)
    }

    fn from_number(number: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|format| *format as u32 == number)
    }

    /// The program that packs and unpacks, if one does.
    pub fn program(self) -> Option<&'static str> {
        (!matches!(self, Self::Raw | Self::Sparse)).then(|| self.name())
    }
}

/// How guests' states are written unless a client says otherwise.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Saving {
    pub save_format: SaveFormat,
    pub dump_format: SaveFormat,
    pub snapshot_format: SaveFormat,
    /// Where the memory of guests that panicked goes.
    pub auto_dump_path: Option<PathBuf>,
    pub auto_dump_bypass_cache: bool,
    pub auto_start_bypass_cache: bool,
}

/// What comes before QEMU's stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prologue {
    pub format: SaveFormat,
    /// Whether the guest is to run when it is restored.
    pub runs: bool,
    pub xml: String,
    pub cookie: Option<String>,
    /// How much room there is, if the file is there already.
    room: Option<u32>,
}

xml! {
    /// `<cookie>`: what libvirt keeps of a guest beside its definition.
    pub struct SaveCookie {
        /// The CPU that the guest had, where its definition says less.
        child cpu: Option<Box<Cpu>> = "cpu";
    }
}

/// Whether all of the file is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whole {
    Yes,
    NotYet,
}

/// libvirt's code is `VIR_ERR_OPERATION_FAILED`.
#[derive(Debug, Error)]
pub enum SaveImageError {
    #[error("failed to read qemu header")]
    Short,
    #[error("save image is incomplete")]
    Incomplete,
    #[error("image magic is incorrect")]
    Magic,
    #[error("image version is not supported ({0} > {VERSION})")]
    Version(u32),
    #[error("unsupported save image format: {0}")]
    Format(u32),
    #[error("invalid header data length: {0}")]
    Length(u32),
    #[error("failed to read domain XML")]
    Xml,
    #[error("failed to read cookie")]
    Cookie,
    #[error("new xml too large to fit in file")]
    NoRoom,
}

impl Prologue {
    pub fn new(format: SaveFormat, xml: String, cookie: &SaveCookie) -> Self {
        let cookie = write_document(cookie, "cookie", Form::SECURE);
        Self { format, runs: false, xml, cookie: Some(cookie), room: None }
    }

    /// The bytes, as many as the file has room for.
    pub fn encode(&self, whole: Whole) -> Result<Vec<u8>, SaveImageError> {
        let cookie_len = self.cookie.as_ref().map_or(0, |cookie| cookie.len() + 1);
        let len = self.xml.len() + 1 + cookie_len;
        let room = match self.room {
            Some(room) => usize::try_from(room).unwrap_or(0),
            None => len + PADDING,
        };
        if len > room || room > MAX_DATA as usize {
            return Err(SaveImageError::NoRoom);
        }
        let number = |size: usize| u32::try_from(size).unwrap_or(u32::MAX);
        let cookie_offset = if self.cookie.is_some() { number(self.xml.len() + 1) } else { 0 };
        let mut bytes = Vec::with_capacity(HEADER_BYTES + room);
        bytes.extend_from_slice(if whole == Whole::Yes { MAGIC } else { PARTIAL });
        for field in [VERSION, number(room), u32::from(self.runs), self.format as u32, cookie_offset] {
            bytes.extend_from_slice(&field.to_ne_bytes());
        }
        bytes.resize(HEADER_BYTES, 0);
        bytes.extend_from_slice(self.xml.as_bytes());
        bytes.push(0);
        if let Some(cookie) = &self.cookie {
            bytes.extend_from_slice(cookie.as_bytes());
            bytes.push(0);
        }
        bytes.resize(HEADER_BYTES + room, 0);
        Ok(bytes)
    }

    /// Reads up to where QEMU's stream begins.
    pub fn read(file: &mut impl Read) -> Result<Self, SaveImageError> {
        let mut header = [0; HEADER_BYTES];
        file.read_exact(&mut header).map_err(|_| SaveImageError::Short)?;
        match header.get(..16) {
            Some(magic) if magic == MAGIC => {}
            Some(magic) if magic == PARTIAL => return Err(SaveImageError::Incomplete),
            _ => return Err(SaveImageError::Magic),
        }
        let fields = fields(&header);
        let [version, data_len, runs, format, cookie_offset] = fields;
        if version > VERSION {
            return Err(SaveImageError::Version(version));
        }
        let format = SaveFormat::from_number(format).ok_or(SaveImageError::Format(format))?;
        if data_len == 0 || data_len > MAX_DATA {
            return Err(SaveImageError::Length(data_len));
        }
        let xml_len = if cookie_offset == 0 { data_len } else { cookie_offset };
        let cookie_len = data_len.checked_sub(xml_len).ok_or(SaveImageError::Xml)?;
        let xml = text(file, xml_len).map_err(|_| SaveImageError::Xml)?;
        let cookie = match cookie_len {
            0 => None,
            len => Some(text(file, len).map_err(|_| SaveImageError::Cookie)?),
        };
        // Nothing was compressed yet when the first version was current.
        let format = if version == VERSION { format } else { SaveFormat::Raw };
        Ok(Self { format, runs: runs != 0, xml, cookie, room: Some(data_len) })
    }

    /// Where QEMU's stream begins in a file that was read.
    pub fn stream_offset(&self) -> u64 {
        HEADER_BYTES as u64 + u64::from(self.room.unwrap_or(0))
    }

    pub fn cookie(&self) -> conf::Result<Option<SaveCookie>> {
        self.cookie.as_deref().map(|text| read_document(text, "cookie", Form::SECURE)).transpose()
    }
}

/// The numbers of a header, from a host of either byte order.
fn fields(header: &[u8; HEADER_BYTES]) -> [u32; 5] {
    let mut words = header.get(16..36).unwrap_or_default().chunks_exact(4).map(|word| {
        let mut bytes = [0; 4];
        bytes.copy_from_slice(word);
        u32::from_ne_bytes(bytes)
    });
    let fields: [u32; 5] = std::array::from_fn(|_| words.next().unwrap_or(0));
    let [version, ..] = fields;
    if version > VERSION { fields.map(u32::swap_bytes) } else { fields }
}

/// A text that ends with a zero byte, in a place of `len` bytes.
fn text(file: &mut impl Read, len: u32) -> io::Result<String> {
    let mut bytes = Vec::new();
    file.take(u64::from(len)).read_to_end(&mut bytes)?;
    if bytes.len() != usize::try_from(len).unwrap_or(usize::MAX) {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    bytes.truncate(end);
    String::from_utf8(bytes).map_err(|_| io::ErrorKind::InvalidData.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: SaveCookie = SaveCookie { cpu: None };

    fn prologue() -> Prologue {
        let mut prologue = Prologue::new(SaveFormat::Zstd, "<domain/>".to_owned(), &EMPTY);
        prologue.runs = true;
        prologue
    }

    #[test]
    fn what_is_written_is_read_again() {
        let bytes = prologue().encode(Whole::Yes).unwrap();
        let mut rest = &bytes[..];
        let read = Prologue::read(&mut rest).unwrap();
        assert_eq!((rest.len(), read.stream_offset()), (0, bytes.len() as u64));
        assert_eq!((&*read.xml, read.format, read.runs), ("<domain/>", SaveFormat::Zstd, true));
        assert_eq!(read.cookie().unwrap(), Some(EMPTY));
        assert_eq!(read.encode(Whole::Yes).unwrap(), bytes);
    }

    #[test]
    fn numbers_stand_where_libvirt_has_them() {
        let bytes = prologue().encode(Whole::NotYet).unwrap();
        assert_eq!(&bytes[..16], b"LibvirtQemudPart");
        let word = |at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap());
        // version, data_len, was_running, format, cookieOffset
        let cookie = prologue().cookie.unwrap();
        assert_eq!([word(16), word(24), word(28), word(32)], [2, 1, 5, 10]);
        assert_eq!(word(20) as usize, 10 + cookie.len() + 1 + 65536);
        assert_eq!(bytes.len(), 92 + word(20) as usize);
        assert_eq!(&bytes[92..102], b"<domain/>\0");
    }

    #[test]
    fn a_file_has_room_for_a_longer_definition_and_no_more() {
        let bytes = prologue().encode(Whole::Yes).unwrap();
        let mut read = Prologue::read(&mut &bytes[..]).unwrap();
        read.xml = "x".repeat(60_000);
        assert_eq!(read.encode(Whole::Yes).unwrap().len(), bytes.len());
        read.xml = "x".repeat(70_000);
        assert!(matches!(read.encode(Whole::Yes), Err(SaveImageError::NoRoom)));
    }

    #[test]
    fn what_is_no_image_says_why() {
        let whole = prologue().encode(Whole::Yes).unwrap();
        let with = |at: usize, value: u32| {
            let mut bytes = whole.clone();
            bytes[at..at + 4].copy_from_slice(&value.to_ne_bytes());
            Prologue::read(&mut &bytes[..]).unwrap_err().to_string()
        };
        let read = |bytes: &[u8]| Prologue::read(&mut &*bytes).unwrap_err().to_string();
        assert_eq!(read(b"Libvirt"), "failed to read qemu header");
        assert_eq!(read(&[b'x'; 200]), "image magic is incorrect");
        assert_eq!(read(&prologue().encode(Whole::NotYet).unwrap()), "save image is incomplete");
        assert_eq!(with(16, 3), "image version is not supported (50331648 > 2)");
        assert_eq!(with(28, 7), "unsupported save image format: 7");
        assert_eq!(with(20, 0), "invalid header data length: 0");
        assert_eq!(with(20, u32::MAX), format!("invalid header data length: {}", u32::MAX));
        assert_eq!(read(&whole[..100]), "failed to read domain XML");
        assert_eq!(read(&whole[..120]), "failed to read cookie");
        let swapped = |at: usize, bytes: &mut Vec<u8>| bytes[at..at + 4].reverse();
        let mut foreign = whole.clone();
        (0..5).for_each(|field| swapped(16 + field * 4, &mut foreign));
        assert_eq!(Prologue::read(&mut &foreign[..]).unwrap(), Prologue::read(&mut &whole[..]).unwrap());
    }
}
