//! What each call does: one file per part of the API, each opening with its routes.

pub mod admin;
pub mod auth;
pub mod block_jobs;
pub mod checkpoints;
pub mod connect;
pub mod domain;
pub mod domain_agent;
pub mod domain_devices;
pub mod domain_hotplug;
pub mod domain_lifecycle;
pub mod domain_live;
pub mod domain_migrate;
pub mod domain_reads;
pub mod domain_save;
pub mod domain_stats;
pub mod domain_tunables;
pub mod domain_usage;
pub mod events;
pub mod native;
pub mod node;
pub mod secret;
pub mod snapshots;
pub mod storage_pool;
pub mod storage_volume;
