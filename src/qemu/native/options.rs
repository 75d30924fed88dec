//! The value of one argument as named options, from either of QEMU's notations.
//!
//! Whoever translates an argument takes out what it understands; what is left then has no place in a
//! definition, and the argument is passed on as it is.

use serde_json::Value;

/// `name=value,…` or a JSON object; members of members are named `outer.inner`.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Options(Vec<(String, String)>);

impl Options {
    /// `first` is what a leading value without a name stands for.
    pub(super) fn parse(text: &str, first: Option<&str>) -> Self {
        if text.trim_start().starts_with('{')
            && let Ok(value) = serde_json::from_str::<Value>(text)
        {
            let mut options = Self::default();
            options.flatten("", &value);
            return options;
        }
        let parts = split_commas(text).into_iter().enumerate();
        Self(parts.filter(|(_, part)| !part.is_empty()).map(|(at, part)| named(at, part, first)).collect())
    }

    fn flatten(&mut self, name: &str, value: &Value) {
        let inner = |key: &str| if name.is_empty() { key.to_owned() } else { format!("{name}.{key}") };
        match value {
            Value::Object(members) => {
                members.iter().for_each(|(key, value)| self.flatten(&inner(key), value))
            }
            Value::Array(items) => {
                items.iter().enumerate().for_each(|(at, item)| self.flatten(&inner(&at.to_string()), item));
            }
            Value::Bool(on) => self.0.push((name.to_owned(), if *on { "on" } else { "off" }.to_owned())),
            Value::String(text) => self.0.push((name.to_owned(), text.clone())),
            Value::Number(_) | Value::Null => self.0.push((name.to_owned(), value.to_string())),
        }
    }

    pub(super) fn get(&self, name: &str) -> Option<&str> {
        // The last one counts, as in QEMU.
        self.0.iter().rev().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    pub(super) fn take(&mut self, name: &str) -> Option<String> {
        let found = self.get(name).map(str::to_owned);
        self.0.retain(|(key, _)| key != name);
        found
    }

    /// All values of an option that may be repeated.
    pub(super) fn take_all(&mut self, name: &str) -> Vec<String> {
        let found = self.0.iter().filter(|(key, _)| key == name).map(|(_, value)| value.clone()).collect();
        self.0.retain(|(key, _)| key != name);
        found
    }

    /// A switch as definitions write it; another word stays where it is.
    pub(super) fn take_switch(&mut self, name: &str) -> Option<&'static str> {
        let state = match self.get(name)? {
            "on" | "yes" | "true" | "y" => "on",
            "off" | "no" | "false" | "n" => "off",
            _ => return None,
        };
        self.take(name);
        Some(state)
    }

    pub(super) fn take_yes_no(&mut self, name: &str) -> Option<&'static str> {
        Some(if self.take_switch(name)? == "on" { "yes" } else { "no" })
    }

    /// Takes an option out whose value is what the daemon sees to anyway.
    pub(super) fn skip(&mut self, name: &str, value: &str) {
        if self.get(name) == Some(value) {
            self.take(name);
        }
    }

    /// Everything has been understood.
    pub(super) fn done(&self) -> Option<()> {
        self.0.is_empty().then_some(())
    }

    /// What is left, in QEMU's older notation.
    pub(super) fn rest(&self) -> Option<String> {
        let parts = self.0.iter().map(|(name, value)| format!("{name}={}", value.replace(',', ",,")));
        self.done().is_none().then(|| parts.collect::<Vec<_>>().join(","))
    }

    /// The options below `outer.`, without that.
    pub(super) fn take_inner(&mut self, outer: &str) -> Self {
        let prefix = format!("{outer}.");
        let (inner, kept) =
            std::mem::take(&mut self.0).into_iter().partition(|(name, _)| name.starts_with(&prefix));
        self.0 = kept;
        let strip = |(name, value): (String, String)| {
            (name.get(prefix.len()..).unwrap_or_default().to_owned(), value)
        };
        Self(Vec::into_iter(inner).map(strip).collect())
    }
}

/// An option without a value is a switch, `no` before it turns it off.
fn named(at: usize, part: String, first: Option<&str>) -> (String, String) {
    match (part.split_once('='), first, part.strip_prefix("no")) {
        (Some((name, value)), ..) => (name.to_owned(), value.to_owned()),
        (None, Some(first), _) if at == 0 => (first.to_owned(), part),
        (None, _, Some(name)) if !name.is_empty() => (name.to_owned(), "off".to_owned()),
        (None, ..) => (part, "on".to_owned()),
    }
}

/// At single commas; two of them are one that belongs to the value.
fn split_commas(text: &str) -> Vec<String> {
    let (mut parts, mut part) = (Vec::new(), String::new());
    let mut chars = text.chars().peekable();
    while let Some(char) = chars.next() {
        match char {
            ',' if chars.next_if_eq(&',').is_some() => part.push(','),
            ',' => parts.push(std::mem::take(&mut part)),
            char => part.push(char),
        }
    }
    parts.push(part);
    parts
}

/// A size in bytes; a bare number counts `unit` bytes.
pub(super) fn bytes(text: &str, unit: u64) -> Option<u64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let scale = match text.get(digits.len()..)?.to_ascii_uppercase().as_str() {
        "" => unit,
        "B" => 1,
        "K" => 1 << 10,
        "M" => 1 << 20,
        "G" => 1 << 30,
        "T" => 1 << 40,
        _ => return None,
    };
    match digits.split_once('.') {
        None => digits.parse::<u64>().ok()?.checked_mul(scale),
        Some((whole, fraction)) => {
            let tens = 10u64.checked_pow(u32::try_from(fraction.len()).ok()?)?;
            let part = fraction.parse::<u64>().ok()?.checked_mul(scale)? / tens;
            whole.parse::<u64>().ok()?.checked_mul(scale)?.checked_add(part)
        }
    }
}

/// A number in C's notations.
pub(super) fn number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_notations_say_the_same() {
        let old = Options::parse("virtio-blk-pci,drive=d,,0,nouse,share-rw,x.y=1", Some("driver"));
        let new = r#"{"driver":"virtio-blk-pci","drive":"d,0","use":false,"share-rw":true,"x":{"y":1}}"#;
        assert_eq!(old, Options::parse(new, Some("driver")));
    }

    #[test]
    fn what_is_taken_is_gone_and_the_rest_can_be_passed_on() {
        let mut options = Options::parse("q35,usb=off,x=a,,b,x=c,y=maybe", Some("type"));
        assert_eq!(options.take("type").as_deref(), Some("q35"));
        options.skip("usb", "off");
        assert_eq!(options.take_switch("y"), None);
        assert_eq!(options.rest().as_deref(), Some("x=a,,b,x=c,y=maybe"));
        assert_eq!(options.take("x").as_deref(), Some("c"));
        assert_eq!(options.take("y").as_deref(), Some("maybe"));
        assert!(options.done().is_some() && options.rest().is_none());
    }

    #[test]
    fn sizes_have_units() {
        for (text, expected) in [
            ("512", Some(512 << 20)),
            ("2G", Some(2 << 30)),
            ("65536k", Some(64 << 20)),
            ("1.5g", Some(3 << 29)),
            ("1X", None),
            ("", None),
            ("99999999999999T", None),
        ] {
            assert_eq!(bytes(text, 1 << 20), expected, "{text}");
        }
    }
}
