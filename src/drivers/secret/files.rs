//! Secrets on disk: `UUID.xml` and, once there is a value, `UUID.aes256cbc` or, unencrypted, `UUID.base64`. The
//! same files as libvirt's, in the same place, readable by the daemon's user alone.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

use super::cipher::Key;
use super::{Keeping, Value};
use crate::conf::secret::Secret;
use crate::util::file::{self, Durability};
use crate::util::paths::Paths;
use crate::util::uuid::Uuid;

/// More than any definition.
const MAX_FILE: u64 = 10 * 1024 * 1024;

#[derive(Debug, Clone)]
pub(super) struct Files {
    config: PathBuf,
    keeping: Keeping,
    key: PathBuf,
}

const PLAIN: &str = "base64";
const ENCRYPTED: &str = "aes256cbc";

impl Files {
    /// `key` is where the key is, unless it is the daemon's own.
    pub(super) fn new(paths: &Paths, keeping: Keeping, key: Option<&Path>) -> Self {
        let own = || paths.state.join("secrets/encryption-key");
        let key = key.map_or_else(own, Path::to_owned);
        Self { config: paths.config.join("secrets"), keeping, key }
    }

    pub(super) fn prepare(&self) -> io::Result<()> {
        file::make_directory(&self.config, 0o700)
    }

    pub(super) fn save(&self, secret: &Secret) -> io::Result<()> {
        let path = self.named(secret.uuid, "xml");
        file::replace(&path, secret.to_xml().as_bytes(), 0o600, Durability::PowerCut)
    }

    pub(super) fn save_value(&self, uuid: Uuid, value: &Value) -> io::Result<()> {
        let (text, kept, other) = match self.keeping {
            Keeping::Encrypted => (Key::read_or_make(&self.key)?.encrypt(value)?, ENCRYPTED, PLAIN),
            Keeping::Plain => (STANDARD.encode(&**value), PLAIN, ENCRYPTED),
        };
        let text = Zeroizing::new(text);
        file::replace(&self.named(uuid, kept), text.as_bytes(), 0o600, Durability::PowerCut)?;
        file::remove_if_there(&self.named(uuid, other))
    }

    pub(super) fn remove(&self, uuid: Uuid) -> io::Result<()> {
        file::remove_if_there(&self.named(uuid, PLAIN))?;
        file::remove_if_there(&self.named(uuid, ENCRYPTED))?;
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
        let value = self.read_value(secret.uuid)?;
        Ok((secret, value.filter(|value| !value.is_empty())))
    }

    /// The value, whoever wrote it: what is not encrypted is the newer one, as a libvirt that knows no other form
    /// leaves what is encrypted beside it.
    fn read_value(&self, uuid: Uuid) -> Result<Option<Value>, String> {
        if let Some(text) = read_if_there(&self.named(uuid, PLAIN))? {
            let value = STANDARD.decode(text.trim_ascii());
            return value
                .map(|value| Some(Value::new(value)))
                .map_err(|_| "the value is not base64".to_owned());
        }
        let Some(text) = read_if_there(&self.named(uuid, ENCRYPTED))? else { return Ok(None) };
        let key = Key::read(&self.key).map_err(|error| {
            format!("cannot read the key of its value, '{}': {error}", self.key.display())
        })?;
        let value = key.decrypt(&text).ok_or("its value was encrypted with another key")?;
        if self.keeping == Keeping::Plain {
            // An older libvirt may be next.
            self.save_value(uuid, &value).map_err(|error| error.to_string())?;
        }
        Ok(Some(value))
    }

    fn named(&self, uuid: Uuid, extension: &str) -> PathBuf {
        self.config.join(format!("{uuid}.{extension}"))
    }
}

fn read_if_there(path: &Path) -> Result<Option<Zeroizing<Vec<u8>>>, String> {
    match file::read_at_most(path, MAX_FILE) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error.to_string()),
        Ok(text) => Ok(Some(Zeroizing::new(text))),
    }
}
