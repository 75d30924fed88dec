//! Secrets on disk: `UUID.xml` and, once there is a value, `UUID.base64`. The same files as libvirt's, in
//! the same place, readable by the daemon's user alone.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

use super::Value;
use crate::conf::secret::Secret;
use crate::util::file::{self, Durability};
use crate::util::paths::Paths;
use crate::util::uuid::Uuid;

/// More than any definition.
const MAX_FILE: u64 = 10 * 1024 * 1024;

#[derive(Debug, Clone)]
pub(super) struct Files {
    config: PathBuf,
}

impl Files {
    pub(super) fn new(paths: &Paths) -> Self {
        Self { config: paths.config.join("secrets") }
    }

    pub(super) fn prepare(&self) -> io::Result<()> {
        file::make_directory(&self.config, 0o700)
    }

    pub(super) fn save(&self, secret: &Secret) -> io::Result<()> {
        let path = self.named(secret.uuid, "xml");
        file::replace(&path, secret.to_xml().as_bytes(), 0o600, Durability::PowerCut)
    }

    pub(super) fn save_value(&self, uuid: Uuid, value: &Value) -> io::Result<()> {
        let text = Zeroizing::new(STANDARD.encode(&**value));
        file::replace(&self.named(uuid, "base64"), text.as_bytes(), 0o600, Durability::PowerCut)
    }

    pub(super) fn remove(&self, uuid: Uuid) -> io::Result<()> {
        file::remove_if_there(&self.named(uuid, "base64"))?;
        file::remove_if_there(&self.named(uuid, "xml"))
    }

    /// All secrets with their values. What cannot be read is logged and left alone.
    pub(super) fn load(&self) -> io::Result<Vec<(Secret, Option<Value>)>> {
        let mut secrets = Vec::new();
        for entry in fs::read_dir(&self.config)? {
            let path = entry?.path();
            if path.extension().is_none_or(|extension| extension != "xml") {
                continue;
            }
            match self.read(&path) {
                Ok(found) => secrets.push(found),
                Err(error) => tracing::warn!(path = %path.display(), error, "skipped a secret"),
            }
        }
        Ok(secrets)
    }

    fn read(&self, path: &Path) -> Result<(Secret, Option<Value>), String> {
        let text = file::read_at_most(path, MAX_FILE).map_err(|error| error.to_string())?;
        let text = String::from_utf8(text).map_err(|error| error.to_string())?;
        let fresh = Uuid::random().map_err(|error| error.to_string())?;
        let secret = Secret::parse(&text, fresh).map_err(|error| error.to_string())?;
        if path != self.named(secret.uuid, "xml") {
            return Err("<uuid> does not match secret file name".to_owned());
        }
        let value = match file::read_at_most(&self.named(secret.uuid, "base64"), MAX_FILE) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error.to_string()),
            Ok(text) => {
                let text = Zeroizing::new(text);
                let value = STANDARD.decode(text.trim_ascii());
                Some(Value::new(value.map_err(|_| "the value is not base64".to_owned())?))
            }
        };
        Ok((secret, value.filter(|value| !value.is_empty())))
    }

    fn named(&self, uuid: Uuid, extension: &str) -> PathBuf {
        self.config.join(format!("{uuid}.{extension}"))
    }
}
