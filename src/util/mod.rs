//! Processes, descriptors, files and small types: nothing here knows of guests.

pub mod paths;
