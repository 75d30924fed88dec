//! Images in a format, through `qemu-img`. Passphrases travel as descriptors of memory: no command line,
//! no file.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use super::{Refusal, Result, VolumeError};
use crate::conf::devices::StorageFormat;
use crate::conf::storage::{Cipher, EncryptionFormat, Volume, VolumeFeature, VolumeType};
use crate::util::process::{Command, Exit};

/// Copying a large image takes its time.
const LIMIT: Duration = Duration::from_secs(24 * 60 * 60);
/// It says little.
const MAX_OUTPUT: usize = 1 << 20;

/// The program, and how it is found.
#[derive(Debug, Clone)]
pub struct QemuImg {
    search_path: OsString,
}

/// An image and what opens it.
#[derive(Debug, Clone, Copy)]
pub struct Opening<'a> {
    pub volume: &'a Volume,
    pub passphrase: Option<&'a [u8]>,
}

impl QemuImg {
    pub fn new(search_path: OsString) -> Self {
        Self { search_path }
    }

    /// A program in $PATH.
    pub fn find(&self, name: &str) -> Option<PathBuf> {
        std::env::split_paths(&self.search_path)
            .map(|directory| directory.join(name))
            .find(|path| path.is_file())
    }

    /// Makes an image; the file is there and empty.
    pub async fn create(&self, new: Opening<'_>, preallocate: bool) -> Result<()> {
        let volume = new.volume;
        let kind = kind(volume)?;
        check(volume, preallocate)?;
        let mut command = self.begin()?.args(["create", "-f", kind]);
        if let Some(backing) = &volume.backing {
            check_backing(volume, preallocate)?;
            command = command.args(["-b", &*backing.path]);
        }
        let (command, options) = self.with_options(command, new, preallocate)?;
        let mut command = options.into_iter().fold(command, Command::arg);
        command = command.arg(&*volume.target.path);
        let kib = volume.capacity.div_ceil(1024);
        if kib > 0 || volume.backing.is_none() {
            command = command.arg(format!("{kib}K"));
        }
        self.run(command).await
    }

    /// Makes an image with the content of another.
    pub async fn convert(&self, new: Opening<'_>, original: Opening<'_>, preallocate: bool) -> Result<()> {
        let (volume, source) = (new.volume, original.volume);
        check(volume, preallocate)?;
        check_input(volume, source)?;
        if volume.target.encryption.is_some() || source.target.encryption.is_some() {
            self.create(new, preallocate).await?;
            return self.convert_encrypted(new, original).await;
        }
        let command = self.begin()?.args(["convert", "-f", input_kind(source)?, "-O", kind(volume)?]);
        let (command, options) = self.with_options(command, new, preallocate)?;
        let command = options.into_iter().fold(command, Command::arg);
        self.run(command.args([&*source.target.path, &*volume.target.path])).await
    }

    /// The second half: into an image that is there.
    async fn convert_encrypted(&self, new: Opening<'_>, original: Opening<'_>) -> Result<()> {
        let command = self.begin()?.args(["convert", "--image-opts", "-n", "--target-image-opts"]);
        let (command, source) = image_options(command, original, "source")?;
        let (command, target) = image_options(command, new, "target")?;
        self.run(command.args([source, target])).await
    }

    /// Changes the size of an image; `was` is what it is now.
    pub async fn resize(&self, image: Opening<'_>, capacity: u64) -> Result<()> {
        let volume = image.volume;
        let mut command = self.begin()?.arg("resize");
        if capacity < volume.capacity {
            command = command.arg("--shrink");
        }
        let command = match volume.target.encryption {
            None => command.args(["-f", kind(volume)?, &*volume.target.path]),
            Some(_) => {
                check(volume, false)?;
                let (command, options) = image_options(command, image, "image")?;
                command.args(["--image-opts", &options])
            }
        };
        self.run(command.arg(capacity.next_multiple_of(512).to_string())).await
    }

    /// Overwrites a volume by one of the patterns of `scrub`.
    pub async fn scrub(&self, path: &str, pattern: &str) -> Result<()> {
        let missing = || {
            VolumeError::system("Cannot find 'scrub' in path", std::io::Error::from(rustix::io::Errno::NOENT))
        };
        let scrub = self.find("scrub").ok_or_else(missing)?;
        self.run(Command::new(scrub).args(["-f", "-p", pattern, path])).await
    }

    /// Runs a tool of the host to its end, for as long as `limit`.
    pub async fn tool(&self, name: &str, args: &[&str], limit: Duration) -> Result<Vec<u8>> {
        let missing = || {
            VolumeError::system(
                format!("Cannot find '{name}' in path"),
                std::io::Error::from(rustix::io::Errno::NOENT),
            )
        };
        let program = self.find(name).ok_or_else(missing)?;
        self.output(Command::new(program).args(args), limit).await
    }

    fn begin(&self) -> Result<Command> {
        let missing = || {
            let sentence = "creation of non-raw file images is not supported without qemu-img.";
            VolumeError::refused(Refusal::Internal, sentence)
        };
        Ok(Command::new(self.find("qemu-img").ok_or_else(missing)?))
    }

    async fn run(&self, command: Command) -> Result<()> {
        self.output(command, LIMIT).await.map(drop)
    }

    async fn output(&self, command: Command, limit: Duration) -> Result<Vec<u8>> {
        let line = command.line();
        let command = command.env("PATH", &self.search_path).env("LC_ALL", "C");
        let done = command.capture(limit, MAX_OUTPUT).await;
        let done = done.map_err(|error| VolumeError::Tool(error.to_string()))?;
        let how = match done.exit {
            Exit::Code(0) => return Ok(done.stdout),
            Exit::Code(code) => format!("exit status {code}"),
            Exit::Signal(signal) => format!("fatal signal {signal}"),
            Exit::Unknown => "end".to_owned(),
        };
        let said = String::from_utf8_lossy(&done.stderr).into_owned();
        Err(VolumeError::Tool(format!("Child process ({line}) unexpected {how}: {said}")))
    }

    /// `--object` and `-o` of a new image.
    fn with_options(
        &self,
        mut command: Command,
        new: Opening<'_>,
        preallocate: bool,
    ) -> Result<(Command, Vec<OsString>)> {
        let volume = new.volume;
        let target = &volume.target;
        let is_qcow2 = target.format == Some(StorageFormat::Qcow2);
        let mut options: Vec<String> = Vec::new();
        if let Some(format) = volume.backing.as_ref().and_then(|backing| backing.format) {
            options.push(format!("backing_fmt={format}"));
        }
        if let Some(encryption) = &target.encryption {
            command = secret(command, new.passphrase, "secret0")?;
            let prefix = if is_qcow2 { "encrypt." } else { "" };
            if is_qcow2 {
                options.push("encrypt.format=luks".to_owned());
            }
            options.push(format!("{prefix}key-secret=secret0"));
            cipher_options(encryption.cipher.as_ref(), prefix, &mut options);
        }
        if preallocate {
            let whole = volume.capacity.div_ceil(1024) <= volume.allocation.div_ceil(1024);
            options.push(format!("preallocation={}", if whole { "falloc" } else { "metadata" }));
        }
        if target.no_copy_on_write {
            options.push("nocow=on".to_owned());
        }
        match &target.compat {
            Some(compat) => options.push(format!("compat={}", escape(compat))),
            None if is_qcow2 => options.push("compat=1.1".to_owned()),
            None => {}
        }
        if target.cluster_size > 0 {
            options.push(format!("cluster_size={}", target.cluster_size));
        }
        for feature in target.features.iter().flatten() {
            options.push(match feature {
                VolumeFeature::LazyRefcounts => "lazy_refcounts=on".to_owned(),
                VolumeFeature::ExtendedL2 => "extended_l2=on".to_owned(),
            });
        }
        Ok(match options.is_empty() {
            true => (command, Vec::new()),
            false => (command, vec!["-o".into(), options.join(",").into()]),
        })
    }
}

fn cipher_options(cipher: Option<&Cipher>, prefix: &str, options: &mut Vec<String>) {
    let Some(cipher) = cipher else { return };
    options.push(format!("{prefix}cipher-alg={}-{}", escape(&cipher.name), cipher.size));
    let mut option = |name: &str, value: &Option<Box<str>>| {
        if let Some(value) = value {
            options.push(format!("{prefix}{name}={}", escape(value)));
        }
    };
    option("cipher-mode", &cipher.mode);
    option("hash-alg", &cipher.hash);
    if let Some(vector) = &cipher.init_vector {
        option("ivgen-alg", &Some(vector.name.clone()));
        option("ivgen-hash-alg", &vector.hash);
    }
}

/// Commas separate options.
fn escape(text: &str) -> String {
    text.replace(',', ",,")
}

/// Hands a passphrase over under the id `id`.
fn secret(command: Command, passphrase: Option<&[u8]>, id: &str) -> Result<Command> {
    let none = || VolumeError::refused(Refusal::Xml, "no secret provided for luks encryption");
    let memory = in_memory(passphrase.ok_or_else(none)?)
        .map_err(|source| VolumeError::system("cannot keep a passphrase in memory", source))?;
    let object = format!("secret,id={id},file=/proc/self/fd/{}", memory.as_raw_fd());
    Ok(command.args([OsStr::new("--object"), OsStr::new(&object)]).pass(memory))
}

fn in_memory(bytes: &[u8]) -> std::io::Result<OwnedFd> {
    let memory = rustix::fs::memfd_create("passphrase", rustix::fs::MemfdFlags::CLOEXEC)?;
    let mut file = File::from(memory);
    file.write_all(bytes)?;
    Ok(file.into())
}

/// An existing image, as `--image-opts` has it.
fn image_options(command: Command, image: Opening<'_>, id: &str) -> Result<(Command, String)> {
    let volume = image.volume;
    let path = escape(&volume.target.path);
    let kind = kind(volume)?;
    if volume.target.encryption.is_none() {
        return Ok((command, format!("driver={kind},file.filename={path}")));
    }
    let prefix = if kind == "qcow2" { "encrypt." } else { "" };
    let command = secret(command, image.passphrase, id)?;
    Ok((command, format!("driver={kind},{prefix}key-secret={id},file.filename={path}")))
}

/// What `qemu-img` calls the format of a volume.
fn kind(volume: &Volume) -> Result<&'static str> {
    let format = match volume.target.format {
        _ if volume.kind == VolumeType::Block => StorageFormat::Raw,
        Some(StorageFormat::Iso) | None => StorageFormat::Raw,
        Some(format) => format,
    };
    match &volume.target.encryption {
        Some(encryption) if format == StorageFormat::Raw => match encryption.format {
            EncryptionFormat::Luks => Ok("luks"),
            _ => Err(VolumeError::refused(
                Refusal::Internal,
                "Only luks encryption is supported for raw files",
            )),
        },
        _ => Ok(format.as_str()),
    }
}

fn input_kind(volume: &Volume) -> Result<&'static str> {
    kind(volume)
}

/// Refuses what no image of this format can have.
fn check(volume: &Volume, preallocate: bool) -> Result<()> {
    let target = &volume.target;
    let unsupported = |sentence: &str| Err(VolumeError::refused(Refusal::Unsupported, sentence));
    if target.format != Some(StorageFormat::Qcow2) {
        if preallocate {
            return unsupported("metadata preallocation only available with qcow2");
        }
        if target.features.is_some() {
            return unsupported("format features only available with qcow2");
        }
        if target.compat.is_some() {
            return unsupported("compatibility option only available with qcow2");
        }
    }
    if target.compat.as_deref() == Some("0.10") {
        match target.features.iter().flatten().next() {
            Some(VolumeFeature::LazyRefcounts) => {
                return unsupported("lazy_refcounts not supported with compat level 0.10");
            }
            Some(VolumeFeature::ExtendedL2) => {
                return unsupported("'extended_l2' not supported with compat level 0.10");
            }
            None => {}
        }
    }
    let Some(encryption) = &target.encryption else { return Ok(()) };
    let format = target.format.unwrap_or(StorageFormat::Raw);
    match (format, encryption.format) {
        (StorageFormat::Qcow | StorageFormat::Qcow2, EncryptionFormat::Qcow | EncryptionFormat::Default) => {
            unsupported("creation of qcow2 encrypted image is not supported")
        }
        (StorageFormat::Raw | StorageFormat::Qcow2, EncryptionFormat::Luks) => match encryption.secrets.len()
        {
            0 | 1 => Ok(()),
            _ => Err(VolumeError::refused(Refusal::Xml, "too many secrets for luks encryption")),
        },
        (StorageFormat::Raw | StorageFormat::Qcow2, other) => {
            let number = EncryptionFormat::ALL.iter().position(|it| *it == other).unwrap_or_default();
            unsupported(&format!("unsupported volume encryption format {number}"))
        }
        (other, _) => unsupported(&format!("volume encryption unsupported with format {other}")),
    }
}

fn check_backing(volume: &Volume, preallocate: bool) -> Result<()> {
    let Some(backing) = &volume.backing else { return Ok(()) };
    if matches!(volume.target.format, Some(StorageFormat::Raw | StorageFormat::Iso) | None) {
        let sentence = "cannot set backing store for raw volume";
        return Err(VolumeError::refused(Refusal::Unsupported, sentence));
    }
    if preallocate {
        let sentence = "metadata preallocation conflicts with backing store";
        return Err(VolumeError::refused(Refusal::Unsupported, sentence));
    }
    let directory = std::path::Path::new(&*volume.target.path).parent().unwrap_or(std::path::Path::new("/"));
    // An absolute path stays what it is.
    let path = directory.join(&*backing.path);
    File::open(path).map(drop).map_err(|source| {
        VolumeError::system(format!("inaccessible backing store volume {}", backing.path), source)
    })
}

fn check_input(volume: &Volume, source: &Volume) -> Result<()> {
    if source.target.encryption.as_ref().is_some_and(|it| it.format != EncryptionFormat::Luks) {
        let sentence = "encryption format of inputvol must be LUKS";
        return Err(VolumeError::refused(Refusal::Unsupported, sentence));
    }
    match (&source.backing, &volume.backing) {
        (Some(below), Some(wanted)) if below.path != wanted.path => {
            Err(VolumeError::refused(Refusal::Internal, "a different backing store cannot be specified."))
        }
        _ => Ok(()),
    }
}
