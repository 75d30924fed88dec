//! A bit that a call does not know is refused by value, by whoever would have understood the others.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use ferrovirt_compat::halting;

use crate::{daemon, on_upstream};

/// One call a line, `F` for a flag word with a bit that no call knows, and what libvirt answers.
const TABLE: &str = "tests/data/flags.txt";

#[test]
fn no_call_takes_a_flag_that_it_does_not_know() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(TABLE);
    let table = fs::read_to_string(&path).unwrap();
    let calls: Vec<_> = table.lines().filter_map(|line| line.split_once(" =>")).collect();
    let daemon = daemon();
    daemon.define(&halting("on"));
    daemon.ok(&["start", "on"]);
    let mut script = "F = 1 << 20\n\
        on = conn.lookupByName('on')\n\
        def say(call):\n    \
            try: call(); print('taken')\n    \
            except libvirt.libvirtError as e: print(e.get_error_code(), e.get_error_domain(), e.get_error_message())\n"
        .to_owned();
    for (call, _) in &calls {
        writeln!(script, "say(lambda: {call})").unwrap();
    }
    let said = daemon.python(&script);
    let said = said.ok();
    let answers: Vec<_> = said.lines().collect();
    assert_eq!(answers.len(), calls.len());
    if on_upstream() && std::env::var_os("UPDATE").is_some() {
        let line = |((call, _), answer): (&(&str, &str), &&str)| format!("{call} => {answer}\n");
        fs::write(&path, calls.iter().zip(&answers).map(line).collect::<String>()).unwrap();
        return;
    }
    let differing: Vec<_> = calls
        .iter()
        .zip(answers)
        // A call that is not served yet takes no flag either.
        .filter(|((_, expected), answer)| expected.trim() != *answer && !answer.starts_with("3 "))
        .map(|((call, expected), answer)| format!("{call}: expected{expected}, answered {answer}"))
        .collect();
    assert!(differing.is_empty(), "{}", differing.join("\n"));
}
