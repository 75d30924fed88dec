//! Every `<devices>` of the corpus, as libvirt printed it, is read and written back unchanged.

use std::fs;
use std::path::Path;

use super::Devices;
use crate::conf::xml::{Document, Form, Part, Writer};

/// The `<devices>` element of a text, as a text of its own.
fn devices_of(text: &str) -> String {
    let (start, end) = (text.find("  <devices>").unwrap(), text.find("  </devices>").unwrap());
    let lines = text[start..end].lines().chain(["  </devices>"]);
    lines.map(|line| line[2..].to_owned() + "\n").collect()
}

fn check_all(file: &str, form: Form) {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/domain");
    let mut checked = 0;
    let mut wrong = Vec::new();
    for entry in fs::read_dir(corpus).unwrap() {
        let path = entry.unwrap().path().join(file);
        let Ok(text) = fs::read_to_string(&path) else { continue };
        let text = devices_of(&text);
        let document = Document::parse(&text, form).unwrap();
        let devices =
            Devices::read(document.root()).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let mut out = Writer::new(form);
        devices.write(&mut out, "devices");
        let written = out.finish();
        checked += 1;
        if written != text {
            let line = text.lines().zip(written.lines()).find(|(theirs, ours)| theirs != ours);
            wrong.push(format!("{}: {line:?}", path.display()));
        }
    }
    assert!(checked > 60, "only {checked} files");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn definitions_survive() {
    check_all("inactive.xml", Form::INACTIVE | Form::SECURE);
}

#[test]
fn running_guests_survive() {
    check_all("live.xml", Form::LIVE | Form::SECURE);
}
