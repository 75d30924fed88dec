//! The differences that are accepted, and why: `compat/expected-virsh.toml`.
//!
//! A section for each scenario; a line says what was asked, as the scenario has it, and the reason. A `*` at the end
//! stands for the rest of the line. What is in `[no-driver]` are beginnings of virsh's commands for which ours has
//! no driver: in any scenario they may be refused by ours with the sentence for that, and with nothing else.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

const NO_DRIVER: &str = "no-driver";

/// What a connection says whose daemon lacks the driver.
const NO_DRIVER_SENTENCE: &str = "this function is not supported by the connection driver: vir";

#[derive(Debug)]
struct Entry {
    section: String,
    asked: String,
    reason: String,
}

impl Entry {
    fn fits(&self, asked: &str) -> bool {
        match self.asked.strip_suffix('*') {
            Some(beginning) => asked.starts_with(beginning),
            None => self.asked == asked,
        }
    }
}

#[derive(Debug)]
pub(crate) struct Expected {
    entries: Vec<Entry>,
    used: BTreeSet<usize>,
}

impl Expected {
    pub(crate) fn read(path: &Path) -> Self {
        Self::parse(&fs::read_to_string(path).unwrap_or_default())
    }

    fn parse(text: &str) -> Self {
        let mut section = String::new();
        let mut entries = Vec::new();
        for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
            if let Some(name) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
                section = name.to_owned();
                continue;
            }
            let quote = line.chars().next().unwrap_or_default();
            let parts = line.strip_prefix(quote).and_then(|rest| rest.split_once(&format!("{quote} = \"")));
            let (asked, reason) = parts.unwrap_or_else(|| panic!("not understood: {line}"));
            let reason = reason.trim_end_matches('"').to_owned();
            entries.push(Entry { section: section.clone(), asked: asked.to_owned(), reason });
        }
        Self { entries, used: BTreeSet::new() }
    }

    /// The reason for which these may differ; `ours` is what ours said on its standard error.
    pub(crate) fn reason(&mut self, scenario: &str, asked: &str, ours: &str) -> Option<&str> {
        let no_driver = ours.contains(NO_DRIVER_SENTENCE);
        let at = self.entries.iter().position(|entry| match &*entry.section {
            NO_DRIVER => no_driver && asked.starts_with(&entry.asked),
            section => section == scenario && entry.fits(asked),
        })?;
        self.used.insert(at);
        Some(&self.entries[at].reason)
    }

    /// What was listed and no longer differs; `played` says which sections were looked at, `all` whether every one was.
    pub(crate) fn unused(&self, played: impl Fn(&str) -> bool, all: bool) -> Vec<String> {
        let looked_at = |entry: &Entry| all || played(&entry.section);
        let unused = self.entries.iter().enumerate().filter(|(at, _)| !self.used.contains(at));
        unused
            .filter(|(_, entry)| looked_at(entry))
            .map(|(_, entry)| format!("[{}] {}", entry.section, entry.asked))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::Expected;

    const LIST: &str = "[no-driver]\n\"net-\" = \"no networks\"\n\n[host]\n\"sysinfo\" = \"here's a reason\"\n'list *' = \"because\"\n";

    #[test]
    fn a_difference_is_accepted_only_as_listed() {
        let mut list = Expected::parse(LIST);
        let refusal = "error: this function is not supported by the connection driver: virNetworkCreateXML";
        assert_eq!(list.reason("host", "net-create x", refusal), Some("no networks"));
        assert_eq!(list.reason("host", "net-create x", "error: crashed"), None);
        assert_eq!(list.reason("host", "sysinfo", ""), Some("here's a reason"));
        assert_eq!(list.reason("other", "sysinfo", ""), None);
        assert_eq!(list.unused(|_| true, true), ["[host] list *"]);
        assert_eq!(list.reason("host", "list --all", ""), Some("because"));
        assert!(list.unused(|_| true, true).is_empty());
    }
}
