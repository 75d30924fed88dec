//! What a fuzzer runs over the daemon's configuration, so that ordinary tests run it too.

use std::path::Path;

use super::qemu::QemuConfig;
use super::secrets::SecretsConfig;
use super::{Config, ConfigError};

/// Reads a text as each of the files.
pub fn config(text: &str) -> Result<(), ConfigError> {
    let path = Path::new("fuzz.conf");
    let read = Config::read(path, text).map(|config| {
        assert!(config.only_at_start(&config).is_empty(), "a configuration differs from itself: {text}");
    });
    read.or(QemuConfig::read(path, text).map(drop)).or(SecretsConfig::read(path, text).map(drop))
}
