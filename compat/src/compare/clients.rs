//! Clients beside virsh 11.3: each script of `compat/clients` uses one of them on both daemons, and what it prints is
//! compared. It plays in its daemon's mount namespace, where all that is called `qemu:///system` is that daemon.
//!
//! A client that is not here is named with what would bring it. `UPDATE=1` writes `compat/CLIENTS.md`.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use ferrovirt_compat::{Daemon, Kind, Ran, part, run};

use crate::expected::Expected;
use crate::judge::{self, Judged, Verdict};
use crate::play::{self, Answer};
use crate::{report, scenario};

/// A script whose client is here.
#[derive(Debug)]
struct Client<'a> {
    script: &'a Path,
    name: String,
    version: String,
}

/// What came of one script.
#[derive(Debug)]
enum Outcome {
    Played(String, Judged),
    NotHere(String, String),
}

pub(crate) fn compare(compat: &Path, names: &[String]) -> ExitCode {
    let mut expected = Expected::read(&compat.join("expected-clients.toml"));
    let scripts = scenario::files(&compat.join("clients"), "sh");
    let wanted = |name: &str| if names.is_empty() { name != "lib" } else { names.iter().any(|n| n == name) };
    let mut outcomes = Vec::new();
    println!("{HEAD}");
    for script in scripts.iter().filter(|script| wanted(&scenario::stem(script))) {
        let outcome = one(script, &mut expected);
        println!("{}", row(&outcome));
        if let Outcome::Played(_, judged) = &outcome {
            print!("{}", report::unexpected(judged));
        }
        outcomes.push(outcome);
    }
    let played = |section: &str| {
        outcomes.iter().any(|one| matches!(one, Outcome::Played(_, judged) if judged.name == section))
    };
    let gone = expected.unused(played, false);
    for entry in &gone {
        println!("no longer differs, strike it out of expected-clients.toml: {entry}");
    }
    if names.is_empty() && std::env::var_os("UPDATE").is_some() {
        fs::write(compat.join("CLIENTS.md"), page(outcomes.as_slice())).expect("the page can be written");
    }
    let same =
        outcomes.iter().all(|one| !matches!(one, Outcome::Played(_, judged) if judged.different() > 0));
    if same && gone.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn one(script: &Path, expected: &mut Expected) -> Outcome {
    let client = match find(script) {
        Ok(client) => client,
        Err(why) => return Outcome::NotHere(scenario::stem(script), why),
    };
    let Kind::Ours(ours) = Kind::built() else { unreachable!("what was built is ours") };
    // One after the other: some of them listen on a port of the host.
    let [upstream, ours] = [Kind::Upstream, Kind::Instead(ours)].map(|kind| client.play(kind));
    Outcome::Played(client.version, judge::judge(&client.name, &upstream, &ours, expected))
}

/// The client of a script, made ready; or why it is not here.
fn find(script: &Path) -> Result<Client<'_>, String> {
    let text = fs::read_to_string(script).expect("it was listed");
    for need in text.lines().filter_map(|line| line.strip_prefix("# needs ")) {
        let (program, package) = need.split_once(": ").expect("# needs PROGRAM: PACKAGE");
        let here = if program.starts_with('/') {
            Path::new(program).exists()
        } else {
            run("which", &[program]).success
        };
        if !here {
            return Err(format!("{program}: package {package}"));
        }
    }
    let ready = call(script, "prepare", None);
    if !ready.success {
        let said = ready.out.trim_end().lines().next_back().unwrap_or("it could not be built");
        return Err(said.to_owned());
    }
    let version = call(script, "version", None).out.trim().to_owned();
    Ok(Client { script, name: scenario::stem(script), version })
}

impl Client<'_> {
    fn play(&self, kind: Kind) -> Vec<Answer> {
        let daemon =
            Daemon::start_with(kind, "auth_unix_rw = \"none\"\nauth_unix_ro = \"none\"\n", play::QEMU_CONF);
        fs::create_dir_all(daemon.path("work")).expect("the root is ours");
        play::sections(&call(self.script, "play", Some(&daemon)), &mut play::normaliser(&daemon))
    }
}

/// Runs a function of a script, in a daemon's sight if there is one.
fn call(script: &Path, function: &str, daemon: Option<&Daemon>) -> Ran {
    let clients = script.with_file_name("");
    let mut arguments = vec![
        format!("CLIENTS={}", clients.display().to_string().trim_end_matches('/')),
        format!("CACHE={}", cache().display()),
        format!("ROM={}", part("halt.rom").display()),
    ];
    if let Some(daemon) = daemon {
        arguments.push(format!("DIR={}", daemon.path("work").display()));
        arguments.push("nsenter".to_owned());
        arguments.push(format!("--mount=/proc/{}/ns/mnt", daemon.pid()));
    }
    arguments.extend(["bash".to_owned(), script.display().to_string(), function.to_owned()]);
    run("env", &arguments.iter().map(String::as_str).collect::<Vec<_>>())
}

/// What a client is unpacked or built into, kept from run to run.
fn cache() -> PathBuf {
    let home = || Path::new(&std::env::var_os("HOME").unwrap_or_default()).join(".cache");
    let cache = std::env::var_os("XDG_CACHE_HOME").map_or_else(home, PathBuf::from).join("ferrovirt/clients");
    fs::create_dir_all(&cache).expect("the cache is this user's");
    cache
}

const HEAD: &str =
    "| client | version | questions | same | accepted | different |\n| --- | --- | --: | --: | --: | --: |";

fn row(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Played(version, one) => {
            let [same, accepted, different] =
                [Verdict::Same, Verdict::Accepted, Verdict::Different].map(|verdict| one.count(verdict));
            format!(
                "| {} | {version} | {} | {same} | {accepted} | {different} |",
                one.name,
                one.questions.len()
            )
        }
        Outcome::NotHere(name, why) => format!("| {name} | not here: {why} | | | | |"),
    }
}

fn page(outcomes: &[Outcome]) -> String {
    let mut text = format!(
        "# Other clients beside libvirt's own daemon\n\n\
         Printed by `make compat-clients`: each client defines, starts, lists, watches and destroys guests, and does what it \
         is there for, on libvirtd 11.3 and on ferrovirtd; what it prints is compared.\n\n{HEAD}\n"
    );
    let mut judged = Vec::new();
    for outcome in outcomes {
        let _ = writeln!(text, "{}", row(outcome));
        if let Outcome::Played(_, one) = outcome {
            judged.push(one);
        }
    }
    text.push_str(&report::all_accepted(judged));
    text
}
