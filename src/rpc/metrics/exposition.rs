//! Prometheus' text form: families, each with its samples behind it.

use std::fmt::{Display, Write};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Counter,
    Gauge,
    Histogram,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Exposition {
    text: String,
    family: &'static str,
}

impl Exposition {
    /// Begins a family; the samples that follow belong to it.
    pub(super) fn family(&mut self, name: &'static str, kind: Kind, help: &str) {
        self.family = name;
        self.put(format_args!("# HELP {name} {help}\n# TYPE {name} {}\n", kind.name()));
    }

    pub(super) fn sample(&mut self, labels: &[(&str, &str)], value: impl Display) {
        self.part("", labels, value);
    }

    /// A sample of what a family consists of, such as a bucket.
    pub(super) fn part(&mut self, suffix: &str, labels: &[(&str, &str)], value: impl Display) {
        let family = self.family;
        self.put(format_args!("{family}{suffix}"));
        for (at, (name, text)) in labels.iter().enumerate() {
            let open = if at == 0 { '{' } else { ',' };
            self.put(format_args!("{open}{name}=\"{}\"", escaped(text)));
        }
        let close = if labels.is_empty() { "" } else { "}" };
        self.put(format_args!("{close} {value}\n"));
    }

    pub(super) fn finish(self) -> String {
        self.text
    }

    fn put(&mut self, text: std::fmt::Arguments<'_>) {
        // A string takes everything.
        let _ = self.text.write_fmt(text);
    }
}

/// Names of guests and paths of images are their owners' choice.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_stand_behind_their_family_and_labels_are_escaped() {
        let mut text = Exposition::default();
        text.family("a", Kind::Gauge, "First.");
        text.sample(&[], 1);
        text.family("b", Kind::Histogram, "Second.");
        text.part("_sum", &[("x", "a\"b\\c\nd"), ("y", "")], 0.5);
        assert_eq!(
            text.finish(),
            "# HELP a First.\n# TYPE a gauge\na 1\n# HELP b Second.\n# TYPE b histogram\n\
             b_sum{x=\"a\\\"b\\\\c\\nd\",y=\"\"} 0.5\n"
        );
    }
}
