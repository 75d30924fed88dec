//! Durations and what is said about many of them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How long one run took, in microseconds.
pub(crate) fn micros(work: impl FnOnce()) -> f64 {
    let begin = Instant::now();
    work();
    as_micros(begin.elapsed())
}

pub(crate) fn as_micros(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e6
}

/// Samples of one kind.
#[derive(Debug, Default)]
pub(crate) struct Samples(Vec<f64>);

impl Samples {
    pub(crate) fn add(&mut self, value: f64) {
        self.0.push(value);
    }

    /// The value that `percent` of the samples do not exceed.
    pub(crate) fn percentile(&mut self, percent: usize) -> f64 {
        self.0.sort_by(f64::total_cmp);
        let last = self.0.len().saturating_sub(1);
        self.0.get(last * percent / 100).copied().unwrap_or(f64::NAN)
    }

    pub(crate) fn median(&mut self) -> f64 {
        self.percentile(50)
    }
}

/// Runs `work` so often, after a tenth as often for warmth; its times in microseconds.
pub(crate) fn repeat(times: usize, mut work: impl FnMut()) -> Samples {
    for _ in 0..times / 10 {
        work();
    }
    let mut samples = Samples::default();
    for _ in 0..times {
        samples.add(micros(&mut work));
    }
    samples
}

/// Between two questions of whoever asks all the time: without it, the asking would take a processor of its own away
/// from what is measured beside it.
const BREATH: Duration = Duration::from_millis(1);

/// The longest of the runs until `over`, in microseconds.
pub(crate) fn longest(over: &AtomicBool, mut work: impl FnMut()) -> f64 {
    let mut longest = 0f64;
    while !over.load(Ordering::Relaxed) {
        longest = longest.max(micros(&mut work));
        std::thread::park_timeout(BREATH);
    }
    longest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_samples() {
        let mut samples = Samples((1..=100).rev().map(f64::from).collect());
        assert_eq!((samples.median(), samples.percentile(99), samples.percentile(100)), (50.0, 99.0, 100.0));
        assert!(Samples::default().median().is_nan());
    }
}
