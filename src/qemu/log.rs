//! A guest's log file: what was started, with which command line, what QEMU printed, how it ended.
//!
//! QEMU writes to the file itself, so its words are kept when the daemon is gone. A file that has grown
//! large is moved aside when the guest starts again, and copied aside while it runs (see `log_limit`), under the
//! names that virtlogd gives: `NAME.log.0` is the youngest.

use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

use crate::util::timestamp::Timestamp;

/// A file at least this large is moved aside.
const MAX_BYTES: u64 = 2 * 1024 * 1024;
/// How many of those are kept.
const KEPT: u32 = 3;
/// How much of QEMU's last output goes into an error.
const LAST_WORDS_BYTES: usize = 1024;
/// How much of QEMU's output is looked at for that.
const SEARCHED_BYTES: u64 = 64 * 1024;

/// A guest's log, open for one run of the guest.
#[derive(Debug)]
pub struct Log {
    path: PathBuf,
    file: File,
    /// Where QEMU's own output begins.
    start: u64,
}

impl Log {
    /// Opens `DIRECTORY/NAME.log`.
    pub fn open(directory: &Path, name: &str) -> io::Result<Self> {
        let path = path(directory, name);
        rotate(&path)?;
        let file = options().read(true).open(&path)?;
        let start = file.metadata()?.len();
        Ok(Self { path, file, start })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes one of the daemon's own lines, with the time in front.
    pub fn note(&mut self, text: &str) -> io::Result<()> {
        self.write(&format!("{}: {text}\n", Timestamp::now()))
    }

    /// Writes text as it is. What stands in the log by now is not QEMU's.
    pub fn write(&mut self, text: &str) -> io::Result<()> {
        let written = self.file.write_all(text.as_bytes());
        self.start = self.file.metadata()?.len();
        written
    }

    /// A descriptor for QEMU's stdout and stderr.
    pub fn output(&self) -> io::Result<OwnedFd> {
        Ok(self.file.try_clone()?.into())
    }

    /// What QEMU printed last, as far as it says why something failed.
    pub fn last_words(&self) -> io::Result<String> {
        let file = File::open(&self.path)?;
        let end = file.metadata()?.len();
        let mut printed = Vec::new();
        let mut rest = &file;
        // A file shorter than it was has been cut since.
        let start = if self.start > end { 0 } else { self.start };
        rest.seek(SeekFrom::Start(start.max(end.saturating_sub(SEARCHED_BYTES))))?;
        rest.take(SEARCHED_BYTES).read_to_end(&mut printed)?;
        Ok(last_words(&String::from_utf8_lossy(&printed)))
    }
}

/// Adds one of the daemon's own lines to a guest's log, with the time in front.
pub fn note(directory: &Path, name: &str, text: &str) -> io::Result<()> {
    options().open(path(directory, name))?.write_all(format!("{}: {text}\n", Timestamp::now()).as_bytes())
}

fn path(directory: &Path, name: &str) -> PathBuf {
    directory.join(format!("{name}.log"))
}

fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.append(true).create(true).mode(0o600);
    options
}

/// Moves a large file aside, for a guest that starts.
fn rotate(path: &Path) -> io::Result<()> {
    match is_large(path)? {
        true => std::fs::rename(path, make_room(path)?),
        false => Ok(()),
    }
}

/// Copies a large file aside and empties it, for a guest that goes on writing to it.
pub(super) fn cut_if_large(path: &Path) -> io::Result<()> {
    if !is_large(path)? {
        return Ok(());
    }
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(OFlags::NOFOLLOW.bits().cast_signed())
        .open(path)?;
    // Of a flood the last lines tell most.
    let end = file.metadata()?.len();
    (&file).seek(SeekFrom::Start(end.saturating_sub(MAX_BYTES)))?;
    let mut tail = Vec::new();
    (&file).take(MAX_BYTES).read_to_end(&mut tail)?;
    let copy = make_room(path)?;
    let kept = keep(&copy, &tail, OFlags::EXCL);
    file.set_len(0)?;
    match kept {
        // It takes the room of what it is a copy of.
        Err(error) if error.kind() == io::ErrorKind::StorageFull => keep(&copy, &tail, OFlags::TRUNC),
        kept => kept,
    }
}

fn keep(path: &Path, content: &[u8], flags: OFlags) -> io::Result<()> {
    let flags = flags | OFlags::CREATE | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    File::from(rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR)?).write_all(content)
}

fn is_large(path: &Path) -> io::Result<bool> {
    match path.symlink_metadata() {
        Ok(metadata) => Ok(metadata.is_file() && metadata.len() >= MAX_BYTES),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Moves what was kept before by one, and answers the name that is free then.
fn make_room(path: &Path) -> io::Result<PathBuf> {
    let numbered = |number| PathBuf::from(format!("{}.{number}", path.display()));
    for number in (1..KEPT).rev() {
        match std::fs::rename(numbered(number - 1), numbered(number)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(numbered(0))
}

fn last_words(printed: &str) -> String {
    let telling: Vec<&str> =
        printed.lines().filter(|line| !line.contains("char device redirected to")).collect();
    let text = telling.join("\n");
    let Some(cut) = text.len().checked_sub(LAST_WORDS_BYTES) else { return text };
    let cut = (cut..text.len()).find(|at| text.is_char_boundary(*at)).unwrap_or_default();
    let tail = &text[cut..];
    // A whole line is better than the end of one, if there is a whole one.
    match tail.split_once('\n') {
        Some((_, lines)) if !lines.is_empty() => lines.to_owned(),
        _ => tail.to_owned(),
    }
}

/// A command line for people: one option on each line, quoted so that a shell takes it.
pub fn command_line<'a>(
    env: impl IntoIterator<Item = (&'a str, &'a str)>,
    program: &str,
    args: &[impl AsRef<str>],
) -> String {
    let mut text = String::new();
    for (name, value) in env {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{name}={} \\", quoted(value));
    }
    text.push_str(&quoted(program));
    let mut seen_option = false;
    for (at, arg) in args.iter().map(AsRef::as_ref).enumerate() {
        let is_option = arg.starts_with('-');
        // A value stays on the line of its option.
        let follows_option = at > 0 && args[at - 1].as_ref().starts_with('-');
        seen_option |= is_option;
        text.push_str(if is_option || !(seen_option && follows_option) { " \\\n" } else { " " });
        text.push_str(&quoted(arg));
    }
    text
}

/// As libvirt quotes for its logs.
fn quoted(word: &str) -> String {
    const SPECIAL: &str = "\r\t\n !\"#$&'()*;<>?[\\]^`{|}~";
    if !word.is_empty() && !word.contains(|char| SPECIAL.contains(char)) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_line_reads_as_in_libvirts_logs() {
        let args = ["-name", "guest=a b", "-S", "-object", r#"{"id":"it's"}"#, "-x", ""];
        let text = command_line([("LC_ALL", "C"), ("HOME", "/a b")], "/usr/bin/qemu", &args);
        let expected = "LC_ALL=C \\\nHOME='/a b' \\\n/usr/bin/qemu \\\n-name 'guest=a b' \\\n-S \\\n\
                        -object '{\"id\":\"it'\\''s\"}' \\\n-x ''";
        assert_eq!(text, expected);
    }

    #[test]
    fn last_words_are_qemus_own_and_bounded() {
        let directory = tempfile::tempdir().unwrap();
        let mut log = Log::open(directory.path(), "a").unwrap();
        log.note("starting up").unwrap();
        let mut qemu = File::from(log.output().unwrap());
        writeln!(qemu, "char device redirected to /dev/pts/0 (label charserial0)").unwrap();
        writeln!(qemu, "qemu: -device x: no such device").unwrap();
        assert_eq!(log.last_words().unwrap(), "qemu: -device x: no such device");
        for line in 0..10_000 {
            writeln!(qemu, "line {line} ä").unwrap();
        }
        let words = log.last_words().unwrap();
        assert!(words.len() <= LAST_WORDS_BYTES && words.starts_with("line "), "{words}");
        assert!(words.ends_with("line 9999 ä"));
        assert_eq!(last_words(&"ä".repeat(1000)).chars().count(), 512);
    }

    #[test]
    fn notes_carry_the_time_and_large_files_move_aside() {
        let directory = tempfile::tempdir().unwrap();
        note(directory.path(), "a", "shutting down, reason=destroyed").unwrap();
        let log = directory.path().join("a.log");
        let text = std::fs::read_to_string(&log).unwrap();
        assert!(text.ends_with("+0000: shutting down, reason=destroyed\n"), "{text}");
        for round in 0..5 {
            File::create(&log).unwrap().set_len(MAX_BYTES + round).unwrap();
            assert_eq!(Log::open(directory.path(), "a").unwrap().start, 0);
        }
        let mut names: Vec<_> = std::fs::read_dir(directory.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(names, ["a.log", "a.log.0", "a.log.1", "a.log.2"]);
        assert_eq!(std::fs::metadata(directory.path().join("a.log.0")).unwrap().len(), MAX_BYTES + 4);
    }
}
