//! Where a QEMU that runs already can be talked to.

use std::path::PathBuf;

use super::Surroundings;
use super::arguments::Argument;
use super::draft::Draft;
use super::options::Options;

/// One of QEMU's monitors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NativeMonitor {
    pub mode: MonitorMode,
    pub place: MonitorPlace,
}

/// The language that it speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MonitorMode {
    /// QMP
    Control,
    /// For humans
    Readline,
}

/// The stream that it is behind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MonitorPlace {
    /// A socket that QEMU listens on.
    Unix(PathBuf),
    /// The terminal that QEMU was started on.
    Stdio,
    /// Anything else, in QEMU's words.
    Other(String),
}

/// The monitors of a command line; those that speak QMP first.
pub(super) fn find(args: &[Argument], surroundings: &Surroundings) -> Vec<NativeMonitor> {
    let mut monitors: Vec<NativeMonitor> =
        args.iter().filter_map(|arg| monitor(arg, args, surroundings)).collect();
    monitors.sort_by_key(|monitor| monitor.mode == MonitorMode::Readline);
    monitors
}

fn monitor(arg: &Argument, args: &[Argument], surroundings: &Surroundings) -> Option<NativeMonitor> {
    let (mode, place) = match arg.name.as_str() {
        "qmp" | "qmp-pretty" => (MonitorMode::Control, spec(arg.value(), args, surroundings)),
        "monitor" => (MonitorMode::Readline, spec(arg.value(), args, surroundings)),
        // It shares its stream with the port, and who talks there talks to the port first.
        "serial" => match spec(arg.value().strip_prefix("mon:")?, args, surroundings) {
            MonitorPlace::Stdio => (MonitorMode::Readline, MonitorPlace::Stdio),
            _ => (MonitorMode::Readline, MonitorPlace::Other(arg.value().to_owned())),
        },
        "mon" => {
            let mut options = Options::parse(arg.value(), Some("chardev"));
            let mode = match options.take("mode").as_deref() {
                Some("control") => MonitorMode::Control,
                _ => MonitorMode::Readline,
            };
            (mode, chardev(&options.take("chardev")?, args, surroundings))
        }
        _ => return None,
    };
    (arg.value() != "none").then_some(NativeMonitor { mode, place })
}

fn spec(text: &str, args: &[Argument], surroundings: &Surroundings) -> MonitorPlace {
    match text.split_once(':') {
        Some(("chardev", id)) => chardev(id, args, surroundings),
        Some(("unix", rest)) => {
            let mut options = Options::parse(&format!("path={rest}"), None);
            listening(&mut options, text, surroundings)
        }
        None if text == "stdio" => MonitorPlace::Stdio,
        _ => MonitorPlace::Other(text.to_owned()),
    }
}

fn chardev(id: &str, args: &[Argument], surroundings: &Surroundings) -> MonitorPlace {
    let chardevs = args.iter().filter(|arg| arg.name == "chardev");
    let mut parsed = chardevs.map(|arg| (arg.value(), Options::parse(arg.value(), Some("backend"))));
    match parsed.find(|(_, options)| options.get("id") == Some(id)) {
        Some((_, options)) if options.get("backend") == Some("stdio") => MonitorPlace::Stdio,
        Some((text, mut options)) => listening(&mut options, text, surroundings),
        None => MonitorPlace::Other(id.to_owned()),
    }
}

/// A socket is of use if QEMU listens on it.
fn listening(options: &mut Options, text: &str, surroundings: &Surroundings) -> MonitorPlace {
    let is_server = options.take_switch("server") == Some("on");
    match (options.take("path"), is_server) {
        (Some(path), true) => {
            let path = PathBuf::from(path);
            MonitorPlace::Unix(
                surroundings.directory.as_ref().map_or(path.clone(), |directory| directory.join(path)),
            )
        }
        _ => MonitorPlace::Other(text.to_owned()),
    }
}

/// Takes out the monitors that a daemon brings itself, or that make no sense beside one.
pub(super) fn take_own(draft: &mut Draft<'_>) {
    for name in ["monitor", "qmp", "qmp-pretty"] {
        draft.each(name, |_, value| matches!(value, "stdio" | "none").then_some(()));
    }
    draft.each("mon", |draft, value| {
        let options = Options::parse(value, Some("chardev"));
        let chardev = options.get("chardev").filter(|id| *id == "charmonitor")?;
        let (at, _) = draft.backend("chardev", "id", chardev)?;
        draft.take(at);
        Some(())
    });
}
