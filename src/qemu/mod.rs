//! How one guest runs: its process, monitor, jobs, command line and status.

pub mod agent;
pub mod alias;
pub mod block;
pub mod capabilities;
pub mod command;
pub mod facts;
pub mod firmware;
pub mod fuzz;
pub mod helpers;
pub mod hotplug;
pub mod job;
pub mod keys;
pub mod log;
pub mod log_limit;
pub mod migrate;
pub mod monitor;
pub mod native;
pub mod network;
pub mod prepare;
pub mod process;
pub mod run_state;
pub mod secret;
pub mod setup;
pub mod stats;
pub mod status;
pub mod storage;
