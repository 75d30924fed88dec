//! Processes, descriptors, files and small types: nothing here knows of guests.

pub mod accounts;
pub mod arch;
pub mod audit;
pub mod bitmap;
pub mod boot;
pub mod conf_file;
pub mod context;
pub mod fds;
pub mod file;
pub mod host_cpu;
pub mod local_time;
pub mod mac;
pub mod paths;
pub mod pidfile;
pub mod process;
pub mod random;
pub mod reason;
pub mod tap;
pub mod timestamp;
pub mod tty;
pub mod units;
pub mod unix;
pub mod uuid;
pub mod vsock;
pub mod wildcard;
pub mod xattr;
