//! What differs between any two runs, out of the way: places, identities, moments.

use std::collections::HashMap;

/// What a run was given, and the identities it has shown so far.
#[derive(Debug, Default)]
pub(crate) struct Normaliser {
    /// A path, and what stands for it.
    paths: Vec<(String, &'static str)>,
    uuids: HashMap<String, usize>,
    macs: HashMap<String, usize>,
}

const UUID: &str = "XXXXXXXX-XXXX-XXXX-XXXX-XXXXXXXXXXXX";
/// Of the range that hypervisors give out.
const MAC: &str = "52:54:00:XX:XX:XX";
/// `2026-01-31 23:59:59`, also with a T.
const MOMENT: &str = "dddd-dd-dd?dd:dd:dd";
/// What virsh gives to an editor.
const EDITED: &str = "virsh??????.xml";
/// Seconds of this decade.
const SECONDS: &str = "17dddddddd";
const SECONDS_LATER: &str = "18dddddddd";

/// What a terminal shows of a line in the end: how far something has come is written over.
fn shown(line: &str) -> &str {
    let last = line.trim_end_matches(['\r', '\n']).rfind('\r').map_or(0, |at| at + 1);
    &line[last..]
}

impl Normaliser {
    pub(crate) fn new(paths: Vec<(String, &'static str)>) -> Self {
        Self { paths, ..Self::default() }
    }

    pub(crate) fn apply(&mut self, text: &str) -> String {
        let mut text: String = text.split_inclusive('\n').map(shown).collect();
        for (path, name) in &self.paths {
            text = text.replace(path, name);
        }
        let bytes = text.as_bytes();
        let mut result = Vec::new();
        let mut at = 0;
        while at < bytes.len() {
            let rest = &bytes[at..];
            let begins = at == 0 || !bytes[at - 1].is_ascii_alphanumeric();
            let Some((length, name)) = begins.then(|| self.name(rest)).flatten() else {
                result.push(bytes[at]);
                at += 1;
                continue;
            };
            result.extend(name.into_bytes());
            at += length;
        }
        String::from_utf8_lossy(&result).into_owned()
    }

    /// What begins here and differs from run to run: its length, what stands for it.
    fn name(&mut self, rest: &[u8]) -> Option<(usize, String)> {
        if let Some(uuid) = leading(rest, UUID) {
            return Some((UUID.len(), format!("UUID{}", number(&mut self.uuids, uuid))));
        }
        if let Some(mac) = leading(rest, MAC) {
            return Some((MAC.len(), format!("MAC{}", number(&mut self.macs, mac))));
        }
        if leading(rest, MOMENT).is_some() {
            return Some((MOMENT.len(), "MOMENT".to_owned()));
        }
        if leading(rest, EDITED).is_some() {
            return Some((EDITED.len(), "EDITED.xml".to_owned()));
        }
        if leading(rest, SECONDS).or(leading(rest, SECONDS_LATER)).is_some() {
            return Some((SECONDS.len(), "SECONDS".to_owned()));
        }
        rest.starts_with(b"dev/pts/").then(|| {
            let digits = rest[8..].iter().take_while(|byte| byte.is_ascii_digit()).count();
            (8 + digits, "dev/pts/N".to_owned())
        })
    }
}

/// The same number for the same identity; a new one for a new.
fn number(known: &mut HashMap<String, usize>, identity: String) -> usize {
    let next = known.len() + 1;
    *known.entry(identity).or_insert(next)
}

/// What `rest` begins with if it is of this form and ends there: `X` a hexadecimal digit, `d` a decimal one, `?` any.
fn leading(rest: &[u8], form: &str) -> Option<String> {
    let found = rest.get(..form.len())?;
    let alike = found.iter().zip(form.bytes()).all(|(byte, form)| match form {
        b'X' => byte.is_ascii_hexdigit(),
        b'd' => byte.is_ascii_digit(),
        b'?' => true,
        literal => *byte == literal,
    });
    let ends = rest.get(form.len()).is_none_or(|next| !next.is_ascii_alphanumeric());
    (alike && ends).then(|| String::from_utf8_lossy(found).into_owned())
}

#[cfg(test)]
mod tests {
    use super::Normaliser;

    #[test]
    fn what_differs_between_runs_goes_by_other_names() {
        let mut normaliser =
            Normaliser::new(vec![("/tmp/fvx/work".to_owned(), "DIR"), ("/tmp/fvx".to_owned(), "")]);
        for (text, plain) in [
            ("/tmp/fvx/work/a.qcow2", "DIR/a.qcow2"),
            ("/tmp/fvx/var/lib/libvirt", "/var/lib/libvirt"),
            ("'c7a5fdbd-edaf-9455-926a-d65c16db1809'", "'UUID1'"),
            ("c7a5fdbd-edaf-9455-926a-d65c16db1800 c7a5fdbd-edaf-9455-926a-d65c16db1809", "UUID2 UUID1"),
            ("mac='52:54:00:12:34:56'", "mac='MAC1'"),
            ("at 2026-11-21 22:36:26.123+0000", "at MOMENT.123+0000"),
            ("<creationTime>1795300000</creationTime>", "<creationTime>SECONDS</creationTime>"),
            ("/tmp/virsh8GHZ3A.xml)", "/tmp/EDITED.xml)"),
            ("/dev/pts/17'", "/dev/pts/N'"),
            ("17953000001", "17953000001"),
            ("\rSave: [ 50 %]\rSave: [100 %]\nSaved\r\n", "Save: [100 %]\nSaved\r\n"),
            ("grüße", "grüße"),
        ] {
            assert_eq!(normaliser.apply(text), plain);
        }
    }
}
