//! The rows of the comparison, their aims, and the printed table.

use std::collections::HashMap;
use std::fmt::Write;

use crate::timing::Samples;

/// Who was measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Side {
    Ours,
    Upstream,
    Floor,
}

/// Key, text, unit, aim.
type Row = (&'static str, &'static str, &'static str, Option<f64>);

const ROWS: &[Row] = &[
    ("start", "start of a minimal guest", "ms", Some(80.0)),
    ("destroy", "destroy of a minimal guest", "ms", Some(25.0)),
    ("start20", "20 starts at once", "ms", Some(700.0)),
    ("destroy20", "20 destroys at once", "ms", Some(110.0)),
    ("stall", "longest get-info during 20 starts", "ms", Some(10.0)),
    ("start50", "50 starts at once", "ms", None),
    ("busy-p99", "get-info beside a hung guest and 10 starts, p99", "ms", None),
    ("back20", "exec to 20 running guests listed, after kill -9", "ms", Some(40.0)),
    ("back20-stats", "the same, to domstats of all", "ms", Some(80.0)),
    ("screenshot", "screenshot, p50", "ms", Some(4.0)),
    ("console", "a byte to a guest's console and back, p50", "µs", None),
    ("stats20", "domstats of 20 running guests, p50", "ms", Some(12.0)),
    ("lib-version", "get-lib-version, p50", "µs", Some(30.0)),
    ("lib-version-p99", "get-lib-version, p99", "µs", None),
    ("calls-1x1", "calls a second, 1 connection", "/s", None),
    ("calls-1x5", "calls a second, 1 connection, 5 deep", "/s", None),
    ("calls-8x5", "calls a second, 8 connections, 5 deep", "/s", Some(300_000.0)),
    ("calls-16x1", "calls a second, 16 connections", "/s", None),
    ("calls-16x5", "calls a second, 16 connections, 5 deep", "/s", None),
    ("processor", "processor time of 100,000 calls", "s", Some(2.0)),
    ("lookup", "lookup by name, p50", "µs", Some(30.0)),
    ("lookup-p99", "lookup by name, p99", "µs", None),
    ("info", "get-info, p50", "µs", Some(30.0)),
    ("info-p99", "get-info, p99", "µs", None),
    ("xml", "xml-desc, p50", "µs", Some(35.0)),
    ("xml-p99", "xml-desc, p99", "µs", None),
    ("list", "list-all with 1,000 domains, p50", "ms", Some(0.15)),
    ("list-p99", "list-all with 1,000 domains, p99", "ms", None),
    ("define", "define, p50", "ms", Some(0.6)),
    ("undefine", "undefine, p50", "ms", Some(0.2)),
    ("connect", "connect + close, p50", "µs", Some(120.0)),
    ("crowd", "call beside 1,000 idle connections, p50", "µs", Some(35.0)),
    ("event", "event to the last of 100 subscribers", "ms", Some(0.6)),
    ("upload", "upload of a volume", "MB/s", Some(800.0)),
    ("download", "download of a volume", "MB/s", Some(2500.0)),
    ("upload-sparse", "virsh vol-upload --sparse of 2 GiB", "MB/s", None),
    ("download-sparse", "virsh vol-download --sparse of 2 GiB", "MB/s", None),
    ("volumes", "list of 10,000 volumes, p50", "ms", Some(20.0)),
    ("refresh", "refresh of 10,000 volumes, unchanged, p50", "ms", None),
    ("ready0", "exec to ready, no definitions", "ms", Some(10.0)),
    ("ready1000", "exec to ready, 1,000 definitions", "ms", Some(30.0)),
    ("ready5000", "exec to ready, 5,000 definitions", "ms", Some(100.0)),
    ("ready10000", "exec to ready, 10,000 definitions", "ms", None),
    ("wake-ups", "times any thread runs in 10 idle seconds", "", Some(1.0)),
    ("idle", "resident memory, idle", "MiB", Some(8.0)),
    ("client1000", "memory per idle connection, 1,000 held", "KiB", Some(16.0)),
    ("client5000", "memory per idle connection, 5,000 held", "KiB", Some(16.0)),
    ("subscriber", "memory per subscriber of events", "KiB", None),
    ("definition", "memory per definition", "KiB", None),
    ("stats1000", "domstats of 1,000 stopped guests, p50", "ms", Some(1.0)),
    ("resident1000", "resident memory, 1,000 definitions", "MiB", None),
    ("resident5000", "resident memory, 5,000 definitions", "MiB", Some(30.0)),
    ("resident10000", "resident memory, 10,000 definitions", "MiB", None),
];

#[derive(Debug, Default)]
pub(crate) struct Table(HashMap<(&'static str, Side), Samples>);

impl Table {
    pub(crate) fn put(&mut self, row: &'static str, side: Side, value: f64) {
        assert!(ROWS.iter().any(|(key, ..)| *key == row), "no row {row}");
        eprintln!("  {side:?} {row} {value:.4}");
        self.0.entry((row, side)).or_default().add(value);
    }

    /// Rows without any value are left out. The ratio says how many times ours is better than upstream.
    pub(crate) fn text(&mut self) -> String {
        let mut text = String::new();
        let mut line = |cells: [&str; 6]| {
            let [what, ours, upstream, ratio, floor, aim] = cells;
            writeln!(text, "{what:<50} {ours:>12} {upstream:>12} {ratio:>8} {floor:>12} {aim:>10}")
                .expect("a String");
        };
        line(["", "ours", "upstream", "ratio", "floor", "aim"]);
        for (key, what, unit, aim) in ROWS {
            let mut value = |side| self.0.get_mut(&(*key, side)).map(Samples::median);
            let (ours, upstream, floor) = (value(Side::Ours), value(Side::Upstream), value(Side::Floor));
            if ours.or(upstream).is_none() {
                continue;
            }
            // Nothing at all has no ratio.
            let ratio = ours.zip(upstream).filter(|(ours, _)| *ours > 0.0).map(|(ours, upstream)| {
                let better = if unit.ends_with("/s") { ours / upstream } else { upstream / ours };
                format!("{better:.1}x")
            });
            let cell = |value: Option<f64>| value.map_or(String::new(), |value| number(value, unit));
            line([what, &cell(ours), &cell(upstream), &ratio.unwrap_or_default(), &cell(floor), &cell(*aim)]);
        }
        text
    }
}

/// Three digits that matter.
fn number(value: f64, unit: &str) -> String {
    if unit.is_empty() {
        format!("{value:.0}")
    } else if unit == "/s" && value >= 1000.0 {
        format!("{:.0}k{unit}", value / 1000.0)
    } else if value >= 100.0 {
        format!("{value:.0} {unit}")
    } else if value >= 1.0 {
        format!("{value:.1} {unit}")
    } else {
        format!("{value:.3} {unit}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_over_one_is_better_whatever_the_unit() {
        let mut table = Table::default();
        for (row, ours, upstream) in [("start", 50.0, 400.0), ("calls-1x1", 40_000.0, 10_000.0)] {
            // The median of the rounds.
            [ours, ours * 3.0, ours / 3.0].into_iter().for_each(|value| table.put(row, Side::Ours, value));
            table.put(row, Side::Upstream, upstream);
        }
        let text = table.text();
        assert!(text.contains("8.0x") && text.contains("4.0x") && text.contains("40k/s"), "{text}");
        assert_eq!(text.lines().count(), 3);
    }
}
