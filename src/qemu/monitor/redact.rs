//! What of the conversation may appear in a log.

use serde_json::Value;

/// Whether a command's arguments may be logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Secret {
    /// They hold nothing to hide.
    Never,
    /// Values under telling names are hidden.
    Named,
}

/// Names under which QMP carries passwords and keys.
const NAMES: [&str; 6] = ["password", "passwd", "data", "secret", "key", "newpassword"];
/// Commands of the human monitor that carry a password.
const HUMAN: [&str; 3] = ["set_password", "change", "client_migrate_info"];

const HIDDEN: &str = "***";

/// A line without its secrets.
pub(super) fn line(line: &str) -> String {
    match serde_json::from_str(line) {
        Ok(mut value) => {
            hide(&mut value);
            value.to_string()
        }
        Err(_) => HIDDEN.to_owned(),
    }
}

fn hide(value: &mut Value) {
    match value {
        Value::Object(map) => {
            for (name, value) in map {
                let human = name == "command-line"
                    && value.as_str().is_some_and(|text| HUMAN.iter().any(|secret| text.contains(secret)));
                if value.is_string() && (human || NAMES.contains(&name.as_str())) {
                    *value = Value::from(HIDDEN);
                } else {
                    hide(value);
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(hide),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn secrets_are_hidden_and_the_rest_stays() {
        for (given, shown) in [
            (
                r#"{"execute":"object-add","arguments":{"qom-type":"secret","id":"s0","data":"c2VjcmV0"}}"#,
                r#"{"execute":"object-add","arguments":{"qom-type":"secret","id":"s0","data":"***"}}"#,
            ),
            (
                r#"{"execute":"x","arguments":[{"a":{"password":"p","password-secret":"s0"}}]}"#,
                r#"{"execute":"x","arguments":[{"a":{"password":"***","password-secret":"s0"}}]}"#,
            ),
            (
                r#"{"execute":"human-monitor-command","arguments":{"command-line":"set_password vnc p"}}"#,
                r#"{"execute":"human-monitor-command","arguments":{"command-line":"***"}}"#,
            ),
            (r#"{"event":"X","data":{"k":1}}"#, r#"{"event":"X","data":{"k":1}}"#),
            ("password", "***"),
        ] {
            assert_eq!(super::line(given), shown);
        }
    }
}
