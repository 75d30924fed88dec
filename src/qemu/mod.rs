//! How one guest runs: its process, monitor, jobs, command line and status.

pub mod capabilities;
