//! How one guest runs: its process, monitor, jobs, command line and status.

pub mod capabilities;
pub mod facts;
pub mod job;
pub mod monitor;
pub mod run_state;
