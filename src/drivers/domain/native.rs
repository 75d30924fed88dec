//! Definitions as QEMU's command lines, and the other way round. Nothing is started, opened or reserved.

use std::sync::Arc;

use super::{Domains, blocking, flags::no_flags, formats};
use crate::conf::domain::Domain;
use crate::conf::xml::Form;
use crate::error::{Error, Result};
use crate::qemu::capabilities::QemuCaps;
use crate::qemu::command::{
    self, CommandLine, Context, Descriptors, ImageDescriptors, InterfaceDescriptors, Need, Opened, Sandbox,
    Settings, VsockDescriptor,
};
use crate::qemu::native::{self, Invocation, NativeError, Surroundings};
use crate::qemu::prepare::{Chooser, Place, prepare};
use crate::qemu::process::Files;
use crate::qemu::{block, log};
use crate::util::arch::Arch;

/// The one format there is.
const FORMAT: &str = "qemu-argv";

/// Variables that every guest gets from the daemon.
const OWN_VARIABLES: &[&str] =
    &["LC_ALL", "PATH", "HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"];

impl From<NativeError> for Error {
    fn from(error: NativeError) -> Self {
        Self::invalid_arg(error.to_string())
    }
}

fn check_format(format: &str) -> Result<()> {
    match format {
        FORMAT => Ok(()),
        other => Err(Error::invalid_arg(format!("unsupported config type {other}"))),
    }
}

impl Domains {
    /// The definition of the guest that a command line describes.
    pub async fn xml_from_native(&self, format: &str, line: &str, flags: u32) -> Result<String> {
        no_flags(flags, "qemuConnectDomainXMLFromNative")?;
        check_format(format)?;
        let mut invocation = Invocation::parse(line)?;
        invocation.env.retain(|(name, _)| !OWN_VARIABLES.contains(&name.as_str()));
        if !invocation.program.contains('/') {
            let named = |path: &std::path::PathBuf| path.file_name() == Some(invocation.program.as_ref());
            let found = Arch::host().and_then(|arch| self.emulators.default_binary(arch)).filter(named);
            let path = found.unwrap_or_else(|| std::path::Path::new("/usr/bin").join(&invocation.program));
            invocation.program = path.display().to_string();
        }
        // Files that the line includes are the client's, and maybe not on this host: they are not read. Of images it
        // is looked what they are, as QEMU would.
        let surroundings = Surroundings { name: "unnamed".to_owned(), ..Surroundings::default() };
        let native = native::convert(&invocation, &surroundings)?;
        let definition = blocking(move || {
            let mut definition = Domain::parse(&native.xml, Form::INACTIVE)?;
            formats::as_there(&mut definition);
            Ok(definition)
        });
        Ok(self.complete(definition.await?).await?.to_xml(Form::SECURE))
    }

    /// The command line that a start of this definition would execute.
    pub async fn xml_to_native(self: &Arc<Self>, format: &str, xml: &str, flags: u32) -> Result<String> {
        no_flags(flags, "qemuConnectDomainXMLToNative")?;
        check_format(format)?;
        let definition = self.read_definition(xml).await?;
        let emulator = definition.devices.emulator.as_deref().unwrap_or_default();
        let caps = self.emulators.lookup(emulator.as_ref()).await?;
        let domains = Arc::clone(self);
        blocking(move || domains.pretend(definition, &caps)).await
    }

    fn pretend(&self, mut definition: Domain, caps: &QemuCaps) -> Result<String> {
        let files = Files::new(&self.directories, -1, &definition.name);
        let place = Place {
            id: -1,
            state_dir: &files.directory,
            channel_dir: &files.channels,
            vnc_listen: "127.0.0.1",
            render_node: None,
        };
        let accel = command::accel_of(&definition);
        if let Some(cpu) = &mut definition.cpu {
            self.emulators.complete_cpu(cpu, caps, accel)?;
        }
        prepare(&mut definition, &place, &mut FirstPort)?;
        block::number_images(&mut definition, &mut 0);
        let mut stand_ins = StandIns::default();
        let monitor = stand_ins.listen(&files.monitor().display().to_string());
        let mut descriptors = stand_ins.open(command::needs(&definition));
        descriptors.secrets = Descriptors::placeholders(&definition).secrets;
        let context = Context {
            scope: self.paths.scope,
            state_dir: &files.directory,
            memory_dir: &files.memory,
            monitor,
            descriptors: &descriptors,
            sandbox: Sandbox::On,
            now_s: 0,
            local_offset_s: 0,
            incoming: None,
            settings: &Settings::NONE,
            inherited_env: &self.inherited_env,
        };
        let CommandLine { program, args, env } = command::build(&definition, caps, &context)?;
        let args = stand_ins.replace_with_paths(args);
        let env = env.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        Ok(log::command_line(env, &program, &args).replace(" \\\n", " "))
    }
}

/// Ports as on a host where nothing runs.
struct FirstPort;

impl Chooser for FirstPort {
    fn vnc_port(&mut self) -> Option<u16> {
        Some(5900)
    }

    fn websocket_port(&mut self) -> Option<u16> {
        Some(5700)
    }
}

/// Numbers in the place of descriptors, which become paths again: a line to look at has nothing open.
#[derive(Default)]
struct StandIns {
    sockets: Vec<(i32, String)>,
    files: Vec<(i32, String, bool)>,
    last: i32,
}

impl StandIns {
    fn next(&mut self) -> i32 {
        self.last += 1;
        self.last + 2
    }

    fn listen(&mut self, path: &str) -> i32 {
        let number = self.next();
        self.sockets.push((number, path.to_owned()));
        number
    }

    fn open(&mut self, needs: Vec<Need>) -> Descriptors {
        let mut descriptors = Descriptors::default();
        for need in needs {
            match need {
                Need::ListenUnix { name, path } => {
                    descriptors.chardevs.insert(name, Opened(self.listen(&path)));
                }
                Need::File { name, path, append } => {
                    let number = self.next();
                    self.files.push((number, path, append));
                    descriptors.chardevs.insert(name, Opened(number));
                }
                Need::Device { name, path } => {
                    let number = self.next();
                    self.files.push((number, path, true));
                    descriptors.chardevs.insert(name, Opened(number));
                }
                Need::TpmCancel { name, .. } => {
                    // QEMU finds out itself where that is.
                    let number = self.next();
                    self.files.push((number, "/dev/null".to_owned(), true));
                    descriptors.chardevs.insert(name, Opened(number));
                }
                Need::Image { node, .. } => {
                    let opened = ImageDescriptors { descriptors: vec![self.next()], writable: false };
                    descriptors.images.insert(node, opened);
                }
                Need::Vsock { alias, cid } => {
                    // The first address that a guest may have.
                    let opened = VsockDescriptor { descriptor: self.next(), cid: cid.unwrap_or(3) };
                    descriptors.vsocks.insert(alias, opened);
                }
                Need::Tap { alias, queues } => {
                    let tap = (0..queues).map(|_| self.next()).collect();
                    let opened = InterfaceDescriptors { tap, vhost: Vec::new() };
                    descriptors.interfaces.insert(alias, opened);
                }
            }
        }
        descriptors
    }

    fn replace_with_paths(&self, args: Vec<String>) -> Vec<String> {
        let mut sets = Vec::new();
        let mut shown: Vec<String> = Vec::new();
        for arg in args {
            // The option before it goes as well.
            let set = shown.last().filter(|option| *option == "-add-fd").and_then(|_| self.set(&arg));
            match set {
                Some(set) => {
                    sets.push(set);
                    shown.pop();
                }
                None => shown.push(self.with_paths(arg, &sets)),
            }
        }
        shown
    }

    /// `set=0,fd=5,…`: the name of the file in QEMU, what it stands for, and whether it is added to.
    fn set(&self, arg: &str) -> Option<(String, &str, bool)> {
        let (set, rest) = arg.strip_prefix("set=")?.split_once(",fd=")?;
        let number: i32 = rest.split(',').next()?.parse().ok()?;
        let (_, path, append) = self.files.iter().find(|(file, ..)| *file == number)?;
        Some((format!("/dev/fdset/{set}"), path, *append))
    }

    fn with_paths(&self, arg: String, sets: &[(String, &str, bool)]) -> String {
        let mut arg = arg;
        for (number, path) in &self.sockets {
            let path = path.replace(',', ",,");
            arg = arg.replace(&format!(",fd={number},server=on"), &format!(",path={path},server=on"));
        }
        for (name, path, append) in sets {
            let path = path.replace(',', ",,");
            let shown = if *append { format!("{path},append=on") } else { path.clone() };
            arg = arg.replace(&format!("path={name},append=on"), &format!("path={shown}"));
            let shown = if *append { format!("{path},logappend=on") } else { path };
            arg = arg.replace(&format!("logfile={name},logappend=on"), &format!("logfile={shown}"));
        }
        arg
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_shown_as_what_they_stand_for() {
        let mut stand_ins = StandIns::default();
        let monitor = stand_ins.listen("/m,1.sock");
        let file =
            |name: &str, append| Need::File { name: name.to_owned(), path: format!("/{name}"), append };
        stand_ins.open(vec![file("a", true), file("b", false)]);
        let args = [
            format!("socket,id=m,fd={monitor},server=on,wait=off"),
            "-add-fd".to_owned(),
            "set=0,fd=4,opaque=x".to_owned(),
            "file,id=c,path=/dev/fdset/0,append=on".to_owned(),
            "-add-fd".to_owned(),
            "set=1,fd=5,opaque=y".to_owned(),
            "file,id=d,path=/dev/fdset/1,append=on".to_owned(),
        ];
        let shown = stand_ins.replace_with_paths(args.to_vec());
        let expected = [
            "socket,id=m,path=/m,,1.sock,server=on,wait=off",
            "file,id=c,path=/a,append=on",
            "file,id=d,path=/b",
        ];
        assert_eq!(shown, expected);
    }
}
