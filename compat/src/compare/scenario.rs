//! Scenarios as files: what `virsh` is told, line by line.
//!
//! ```text
//!   # a comment
//!   start halt --paused            virsh gets these words; a shell reads them: $DIR, quotes, pipes
//!   @sh ls -1 $DIR                 a line of shell, in which `virsh` is connected
//!   @guest NAME [DEVICES]          $DIR/NAME.xml describes a guest that halts at once, with these devices
//!   @linux NAME [OPTIONS]          the same of the sample guest that boots Linux
//!   @file NAME … @end              writes $DIR/NAME; $DIR and $ROM stand for paths in it
//!   @wait TEXT: COMMAND            asks again until the answer has the text in it; compares nothing
//!   @beside COMMAND                runs until the scenario is over; what it printed is compared then
//!   @events                        from here on all events of domains, in order, as one more answer
//! ```
//!
//! A line that ends in a backslash goes on in the next.

use std::fs;
use std::path::{Path, PathBuf};

/// One file.
#[derive(Debug)]
pub(crate) struct Scenario {
    pub(crate) name: String,
    pub(crate) script: Script,
}

#[derive(Debug)]
pub(crate) enum Script {
    Virsh(Vec<Step>),
    /// Functions of libvirt-python.
    Python(PathBuf),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    Command(String),
    Shell(String),
    Guest { name: String, devices: String },
    Linux { name: String, options: String },
    File { name: String, text: String },
    Wait { text: String, command: String },
    Beside(String),
    Events,
}

/// All of them, in the order of their names: virsh first.
pub(crate) fn all(compat: &Path) -> Vec<Scenario> {
    let virsh = files(&compat.join("scenarios"), "virsh").into_iter().map(|path| {
        let text = fs::read_to_string(&path).expect("it was listed");
        Scenario { name: stem(&path), script: Script::Virsh(read(&text)) }
    });
    let python = files(&compat.join("python"), "py").into_iter().filter(|path| stem(path) != "runner");
    let python =
        python.map(|path| Scenario { name: format!("python-{}", stem(&path)), script: Script::Python(path) });
    virsh.chain(python).collect()
}

pub(crate) fn stem(path: &Path) -> String {
    path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

pub(crate) fn files(directory: &Path, extension: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut files: Vec<PathBuf> = entries
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|e| e == extension))
        .collect();
    files.sort();
    files
}

pub(crate) fn read(text: &str) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if let Some(name) = line.strip_prefix("@file ") {
            let text: String =
                lines.by_ref().take_while(|line| *line != "@end").map(|line| format!("{line}\n")).collect();
            steps.push(Step::File { name: name.to_owned(), text });
            continue;
        }
        let mut whole = line.to_owned();
        while let Some(begin) = whole.strip_suffix('\\') {
            whole = format!("{begin}{}", lines.next().unwrap_or_default().trim_start());
        }
        let whole = whole.trim();
        if !whole.is_empty() && !whole.starts_with('#') {
            steps.push(step(whole));
        }
    }
    steps
}

fn step(line: &str) -> Step {
    let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
    let (name, more) = rest.split_once(' ').unwrap_or((rest, ""));
    match word {
        "@sh" => Step::Shell(rest.to_owned()),
        "@guest" => Step::Guest { name: name.to_owned(), devices: more.to_owned() },
        "@linux" => Step::Linux { name: name.to_owned(), options: more.to_owned() },
        "@wait" => {
            let (text, command) = rest.split_once(": ").expect("@wait TEXT: COMMAND");
            Step::Wait { text: text.to_owned(), command: command.to_owned() }
        }
        "@beside" => Step::Beside(rest.to_owned()),
        "@events" => Step::Events,
        _ => {
            assert!(!word.starts_with('@'), "no such directive: {line}");
            Step::Command(line.to_owned())
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use ferrovirt_compat::run;

    use super::{Script, Step, all, read};

    /// The words of every command of virsh that a step uses.
    fn commands(step: &Step) -> Vec<String> {
        match step {
            Step::Command(line) | Step::Beside(line) => vec![line.clone()],
            Step::Shell(line) => line.split("virsh ").skip(1).map(str::to_owned).collect(),
            _ => Vec::new(),
        }
    }

    #[test]
    fn every_command_of_virsh_is_in_a_scenario() {
        let scenarios = all(Path::new(env!("CARGO_MANIFEST_DIR")));
        let steps = scenarios.iter().filter_map(|scenario| match &scenario.script {
            Script::Virsh(steps) => Some(steps),
            Script::Python(_) => None,
        });
        let used: BTreeSet<String> = steps
            .flatten()
            .flat_map(commands)
            .filter_map(|line| line.split_whitespace().find(|word| !word.starts_with('-')).map(str::to_owned))
            .collect();
        let help = run("virsh", &["help"]).ok();
        let known = help.lines().filter_map(|line| line.strip_prefix("    ")?.split_whitespace().next());
        let missing: Vec<&str> = known.filter(|command| !used.contains(*command)).collect();
        assert!(missing.is_empty(), "in no scenario: {missing:?}");
    }

    #[test]
    fn a_scenario_reads_as_its_steps() {
        let text = "# talk\n\nlist --all\n@guest a <disk/> \\\n  <disk/>\n@file x\n<a/>\n\n@end\n@wait shut off: domstate a\n";
        let steps = [
            Step::Command("list --all".to_owned()),
            Step::Guest { name: "a".to_owned(), devices: "<disk/> <disk/>".to_owned() },
            Step::File { name: "x".to_owned(), text: "<a/>\n\n".to_owned() },
            Step::Wait { text: "shut off".to_owned(), command: "domstate a".to_owned() },
        ];
        assert_eq!(read(text), steps);
    }
}
