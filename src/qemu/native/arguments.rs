//! A command line as options with their values.

use super::NativeError;

/// Options that stand alone; all others have a value.
const ALONE: &[&str] = &[
    "S",
    "alt-grab",
    "ctrl-grab",
    "curses",
    "daemonize",
    "enable-fips",
    "enable-kvm",
    "enable-sync-profile",
    "full-screen",
    "h",
    "help",
    "jitdump",
    "mem-prealloc",
    "no-acpi",
    "no-fd-bootchk",
    "no-frame",
    "no-hpet",
    "no-kvm",
    "no-quit",
    "no-reboot",
    "no-shutdown",
    "no-user-config",
    "nodefaults",
    "nodefconfig",
    "nographic",
    "only-migratable",
    "perfmap",
    "portrait",
    "preconfig",
    "s",
    "sdl",
    "semihosting",
    "singlestep",
    "snapshot",
    "usb",
    "version",
    "win2k-hack",
    "xen-attach",
    "xen-domid-restrict",
];

/// One option, and what becomes of it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Argument {
    /// Without dashes.
    pub name: String,
    pub value: Option<String>,
    /// In the definition, or in the daemon's own hands. What is not goes to `<qemu:commandline>`.
    pub taken: bool,
}

impl Argument {
    pub(super) fn new(name: &str, value: Option<&str>) -> Self {
        Self { name: name.to_owned(), value: value.map(str::to_owned), taken: false }
    }

    pub(super) fn value(&self) -> &str {
        self.value.as_deref().unwrap_or_default()
    }
}

/// Splits what follows the program's name.
pub(super) fn parse(args: &[String]) -> Result<Vec<Argument>, NativeError> {
    let (mut parsed, mut args) = (Vec::new(), args.iter());
    while let Some(arg) = args.next() {
        let name = arg.strip_prefix("--").or(arg.strip_prefix('-')).filter(|name| !name.is_empty());
        parsed.push(match name {
            // An image alone is the first disk.
            None => Argument::new("hda", Some(arg)),
            Some(name) if ALONE.contains(&name) => Argument::new(name, None),
            Some(name) => match args.next() {
                Some(value) => Argument::new(name, Some(value)),
                None => return Err(NativeError::NoValue { option: arg.clone() }),
            },
        });
    }
    Ok(parsed)
}

/// Sections of `-readconfig` that are not named like the option they stand for.
const SECTIONS: &[(&str, &str)] = &[("smp-opts", "smp"), ("boot-opts", "boot"), ("memory", "m")];

/// Sections that are.
const PLAIN_SECTIONS: &[&str] = &[
    "accel",
    "audiodev",
    "blockdev",
    "chardev",
    "device",
    "drive",
    "fsdev",
    "global",
    "machine",
    "mon",
    "name",
    "netdev",
    "object",
    "overcommit",
    "rtc",
    "sandbox",
    "spice",
    "vnc",
];

/// The content of a `-readconfig` file as options; none if it has anything unknown.
pub(super) fn parse_config(text: &str) -> Option<Vec<Argument>> {
    let mut sections: Vec<(String, Vec<String>)> = Vec::new();
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        if let Some(head) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            let (group, id) = match head.split_once('"') {
                Some((group, id)) => (group.trim(), Some(id.strip_suffix('"')?)),
                None => (head.trim(), None),
            };
            let renamed = SECTIONS.iter().find(|(name, _)| *name == group).map(|(_, option)| *option);
            let option = renamed.or_else(|| PLAIN_SECTIONS.contains(&group).then_some(group))?;
            sections
                .push((option.to_owned(), id.map(|id| format!("id={}", doubled(id))).into_iter().collect()));
            continue;
        }
        let (name, value) = line.split_once('=')?;
        let value = value.trim().strip_prefix('"')?.strip_suffix('"')?;
        sections.last_mut()?.1.push(format!("{}={}", name.trim(), doubled(value)));
    }
    Some(
        sections
            .into_iter()
            .map(|(option, values)| Argument::new(&option, Some(&values.join(","))))
            .collect(),
    )
}

fn doubled(text: &str) -> String {
    text.replace(',', ",,")
}

/// Splits a line that was written for a shell: quotes, backslashes, variables before the program.
pub(super) fn split_shell(text: &str) -> Result<Vec<String>, NativeError> {
    let (mut words, mut word) = (Vec::new(), None::<String>);
    let mut chars = text.chars();
    while let Some(char) = chars.next() {
        match char {
            '\'' => {
                let word = word.get_or_insert_default();
                loop {
                    match chars.next().ok_or(NativeError::Unclosed)? {
                        '\'' => break,
                        char => word.push(char),
                    }
                }
            }
            '"' => {
                let word = word.get_or_insert_default();
                loop {
                    match chars.next().ok_or(NativeError::Unclosed)? {
                        '"' => break,
                        '\\' => match chars.next().ok_or(NativeError::Unclosed)? {
                            '\n' => {}
                            char @ ('"' | '\\' | '$' | '`') => word.push(char),
                            char => word.extend(['\\', char]),
                        },
                        char => word.push(char),
                    }
                }
            }
            '\\' => match chars.next() {
                // The line goes on.
                Some('\n') | None => {}
                Some(char) => word.get_or_insert_default().push(char),
            },
            char if char.is_whitespace() => words.extend(word.take()),
            '#' if word.is_none() => while chars.next().is_some_and(|char| char != '\n') {},
            char => word.get_or_insert_default().push(char),
        }
    }
    words.extend(word);
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    #[test]
    fn options_have_one_dash_or_two_and_a_value_or_none() {
        let parsed = parse(&words(&["-m", "2G", "--enable-kvm", "disk.img", "-append", "-x"])).unwrap();
        let expected =
            [("m", Some("2G")), ("enable-kvm", None), ("hda", Some("disk.img")), ("append", Some("-x"))];
        assert_eq!(parsed, expected.map(|(name, value)| Argument::new(name, value)));
        assert!(matches!(parse(&words(&["-m"])), Err(NativeError::NoValue { option }) if option == "-m"));
    }

    #[test]
    fn a_line_for_a_shell_is_split_like_a_shell_does() {
        let line = "A='b c' /usr/bin/qemu \\\n -name \"it's \\\"x\\\"\" -append 'a=\"b\"'x\\ y '' # end\n-S";
        let expected =
            words(&["A=b c", "/usr/bin/qemu", "-name", "it's \"x\"", "-append", "a=\"b\"x y", "", "-S"]);
        assert_eq!(split_shell(line).unwrap(), expected);
        assert_eq!(split_shell("a 'b"), Err(NativeError::Unclosed));
    }

    #[test]
    fn a_config_file_is_more_options() {
        let text = "# qemu config file\n[machine]\n  type = \"q35\"\n[drive \"d0\"]\n  file = \"/a,b.img\"\n\n[memory]\n size = \"512\"\n";
        let parsed = parse_config(text).unwrap();
        let expected = [("machine", "type=q35"), ("drive", "id=d0,file=/a,,b.img"), ("m", "size=512")];
        assert_eq!(parsed, expected.map(|(name, value)| Argument::new(name, Some(value))));
        assert_eq!(parse_config("[semihosting-config]\nenable = \"on\"\n"), None);
        assert_eq!(parse_config("[machine]\ntype = q35\n"), None);
    }
}
