//! Questions to QEMU's description of its own QMP interface (`query-qmp-schema`).
//!
//! A question is a path of names from a command to what is looked for, as libvirt writes it:
//! `chardev-add/arg-type/backend/+socket/data/reconnect`. The first character of a step says what it is:
//!
//! | step | matches |
//! |---|---|
//! | `name` | a member of an object; for a command `arg-type` or `ret-type` |
//! | `*name` | an optional member |
//! | `+name` | the variant of a union |
//! | `^name` | a value of an enumeration |
//! | `$name` | a feature of the object, command or enumeration value before it |
//! | `!name` | a built-in type |
//!
//! Arrays are looked through; an alternate matches where one of its members does.

use std::collections::HashMap;

use serde::Deserialize;

/// Types refer to each other in circles, so a path that leads in circles ends here.
const MAX_DEPTH: usize = 1000;

#[derive(Debug, Deserialize)]
struct Entry {
    name: String,
    #[serde(rename = "meta-type")]
    meta_type: MetaType,
    #[serde(default)]
    members: Vec<Member>,
    #[serde(default)]
    variants: Vec<Variant>,
    #[serde(default)]
    values: Vec<String>,
    #[serde(default)]
    features: Vec<String>,
    #[serde(rename = "arg-type")]
    arg_type: Option<String>,
    #[serde(rename = "ret-type")]
    ret_type: Option<String>,
    #[serde(rename = "element-type")]
    element_type: Option<String>,
    #[serde(rename = "json-type")]
    json_type: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum MetaType {
    Object,
    Array,
    Command,
    Event,
    Enum,
    Builtin,
    Alternate,
    #[serde(other)]
    Unknown,
}

#[derive(Debug, Deserialize)]
struct Member {
    /// Absent in the members of an alternate.
    #[serde(default)]
    name: String,
    /// Absent in the members of an enumeration.
    #[serde(rename = "type", default)]
    type_name: String,
    /// Present (mostly as null) where the member may be left out.
    #[serde(default, deserialize_with = "present")]
    default: bool,
    #[serde(default)]
    features: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct Variant {
    case: String,
    #[serde(rename = "type")]
    type_name: String,
}

fn present<'de, D: serde::Deserializer<'de>>(value: D) -> Result<bool, D::Error> {
    serde::de::IgnoredAny::deserialize(value).map(|_| true)
}

/// The reply to `query-qmp-schema`, indexed by name.
#[derive(Debug)]
pub(super) struct Schema(HashMap<String, Entry>);

impl<'de> Deserialize<'de> for Schema {
    fn deserialize<D: serde::Deserializer<'de>>(reply: D) -> Result<Self, D::Error> {
        let entries = Vec::<Entry>::deserialize(reply)?;
        Ok(Self(entries.into_iter().map(|entry| (entry.name.clone(), entry)).collect()))
    }
}

impl Schema {
    /// Whether the path leads somewhere.
    pub(super) fn has(&self, path: &str) -> bool {
        let steps: Vec<&str> = path.split('/').collect();
        steps.split_first().is_some_and(|(first, rest)| self.leads(first, rest, 0))
    }

    fn leads(&self, name: &str, steps: &[&str], depth: usize) -> bool {
        let Some(entry) = self.0.get(name).filter(|_| depth < MAX_DEPTH) else { return false };
        let Some((step, rest)) = steps.split_first() else { return true };
        let from = |next: Option<&String>, steps| next.is_some_and(|next| self.leads(next, steps, depth + 1));
        match entry.meta_type {
            MetaType::Array => from(entry.element_type.as_ref(), steps),
            MetaType::Alternate => entry.members.iter().any(|member| from(Some(&member.type_name), steps)),
            MetaType::Enum => entry.has_value(step, rest),
            MetaType::Builtin => rest.is_empty() && step.strip_prefix('!') == entry.json_type.as_deref(),
            MetaType::Object | MetaType::Command | MetaType::Event => match step.strip_prefix('$') {
                Some(feature) => rest.is_empty() && entry.features.iter().any(|known| known == feature),
                None => from(entry.next(step), rest),
            },
            MetaType::Unknown => false,
        }
    }
}

impl Entry {
    /// The type that a step from an object or command leads to.
    fn next(&self, step: &str) -> Option<&String> {
        if !matches!(self.meta_type, MetaType::Object) {
            return match step {
                "arg-type" => self.arg_type.as_ref(),
                "ret-type" => self.ret_type.as_ref(),
                _ => None,
            };
        }
        if let Some(case) = step.strip_prefix('+') {
            return self
                .variants
                .iter()
                .find(|variant| variant.case == case)
                .map(|variant| &variant.type_name);
        }
        let (name, must_be_optional) = match step.strip_prefix('*') {
            Some(name) => (name, true),
            None => (step, false),
        };
        let member = self.members.iter().find(|member| member.name == name)?;
        (member.default || !must_be_optional).then_some(&member.type_name)
    }

    /// Whether an enumeration has the value of a step and, where another step follows, the value has that feature.
    fn has_value(&self, step: &str, rest: &[&str]) -> bool {
        let Some(value) = step.strip_prefix('^') else { return false };
        let member = self.members.iter().find(|member| member.name == value);
        match rest {
            [] => member.is_some() || self.values.iter().any(|known| known == value),
            [feature] => match (member, feature.strip_prefix('$')) {
                (Some(member), Some(feature)) => member.features.iter().any(|known| known == feature),
                _ => false,
            },
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schema() -> Schema {
        serde_json::from_str(
            r#"[
            {"name": "attach", "meta-type": "command", "arg-type": "1", "ret-type": "0", "features": ["json"]},
            {"name": "0", "meta-type": "object", "members": []},
            {"name": "1", "meta-type": "object", "tag": "kind", "variants": [{"case": "socket", "type": "2"}],
             "members": [{"name": "kind", "type": "3"}, {"name": "list", "type": "[4]", "default": null},
                         {"name": "either", "type": "5"}]},
            {"name": "2", "meta-type": "object", "members": [{"name": "reconnect", "type": "int"},
                                                             {"name": "self", "type": "1"}]},
            {"name": "3", "meta-type": "enum", "values": ["socket", "pty"],
             "members": [{"name": "socket"}, {"name": "pty", "features": ["deprecated"]}]},
            {"name": "[4]", "meta-type": "array", "element-type": "2"},
            {"name": "5", "meta-type": "alternate", "members": [{"type": "int"}, {"type": "2"}]},
            {"name": "int", "meta-type": "builtin", "json-type": "int"}]"#,
        )
        .unwrap()
    }

    #[test]
    fn paths_lead_where_the_schema_does() {
        for (path, expected) in [
            ("attach", true),
            ("detach", false),
            ("attach/$json", true),
            ("attach/$yaml", false),
            ("attach/arg-type/+socket/reconnect", true),
            ("attach/arg-type/+socket/reconnect/!int", true),
            ("attach/arg-type/+socket/reconnect/!string", false),
            ("attach/arg-type/+pty", false),
            ("attach/arg-type/kind/^pty", true),
            ("attach/arg-type/kind/^null", false),
            ("attach/arg-type/kind/^pty/$deprecated", true),
            ("attach/arg-type/kind/^socket/$deprecated", false),
            ("attach/arg-type/*list/reconnect", true),
            ("attach/arg-type/*kind", false),
            ("attach/arg-type/either/reconnect", true),
            ("attach/arg-type/+socket/self/+socket/self/kind", true),
            ("attach/ret-type/anything", false),
        ] {
            assert_eq!(schema().has(path), expected, "{path}");
        }
    }
}
