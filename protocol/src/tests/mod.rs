//! Tests that look at all types at once, or at files of data.

mod api;
mod captured;
mod fuzz;
mod hostile;
mod limits;
mod round_trip;

use std::path::PathBuf;

/// A file or directory of `tests/data`.
fn data(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}
