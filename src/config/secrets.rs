//! `secret.conf`: whether values are encrypted on disk, and with which key. libvirt reads it from 12.1 on.

use std::path::{Path, PathBuf};

use super::{ConfigError, flag, read_settings, text};
use crate::drivers::secret::Keeping;
use crate::util::conf_file::Setting;

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SecretsConfig {
    pub keeping: Keeping,
    /// Where the key is, unless it is the daemon's own.
    pub key: Option<PathBuf>,
    /// Lines worth a warning once logging works.
    pub remarks: Vec<String>,
}

impl SecretsConfig {
    /// Reads `path`; what it is without a file if there is none.
    pub fn load_if_there(path: &Path) -> Result<Self, ConfigError> {
        match std::fs::read_to_string(path) {
            Ok(text) => Self::read(path, &text),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(source) => Err(ConfigError::Read { path: path.to_owned(), source }),
        }
    }

    /// Reads the content of a file; `path` is for the errors.
    pub fn read(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let mut config = Self::default();
        read_settings(path, text, |setting| config.apply(setting))?;
        Ok(config)
    }

    fn apply(&mut self, setting: Setting) -> Result<(), String> {
        match setting.key.as_str() {
            "encrypt_data" => {
                self.keeping = if flag(&setting)? { Keeping::Encrypted } else { Keeping::Plain };
            }
            "secrets_encryption_key" => self.key = Some(text(setting)?.into()),
            key => self.remarks.push(format!("line {}: '{key}' has no effect here", setting.line)),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_encrypted_unless_somebody_says_otherwise() {
        let read = |text: &str| SecretsConfig::read(Path::new("secret.conf"), text);
        assert_eq!(read("").unwrap().keeping, Keeping::Encrypted);
        let plain = read("encrypt_data = 0\nsecrets_encryption_key = \"/k\"\nnew = 1\n").unwrap();
        assert_eq!((plain.keeping, plain.key), (Keeping::Plain, Some("/k".into())));
        assert_eq!(plain.remarks, ["line 3: 'new' has no effect here"]);
        assert!(read("encrypt_data = \"no\"").is_err());
    }
}
