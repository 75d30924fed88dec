//! `qemu.conf`, as far as it says how guests' states are written.

use std::io;
use std::path::Path;

use super::{Config, ConfigError, flag, text};
use crate::qemu::save_image::SaveFormat;
use crate::util::conf_file::{self, Setting};

impl Config {
    /// Reads these keys of `path`, if it is there.
    pub fn load_saving(&mut self, path: &Path) -> Result<(), ConfigError> {
        let content = match std::fs::read_to_string(path) {
            Ok(content) => content,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(source) => return Err(ConfigError::Read { path: path.to_owned(), source }),
        };
        let settings = conf_file::parse(&content)
            .map_err(|source| ConfigError::Syntax { path: path.to_owned(), source })?;
        for setting in settings {
            let line = setting.line;
            let failed = |what| ConfigError::Value { path: path.to_owned(), line, what };
            self.apply_saving(setting).map_err(failed)?;
        }
        Ok(())
    }

    fn apply_saving(&mut self, setting: Setting) -> Result<(), String> {
        let saving = &mut self.saving;
        match setting.key.as_str() {
            "save_image_format" => saving.save_format = format(setting)?,
            "dump_image_format" => saving.dump_format = format(setting)?,
            "auto_dump_path" => saving.auto_dump_path = Some(text(setting)?.into()),
            "auto_dump_bypass_cache" => saving.auto_dump_bypass_cache = flag(&setting)?,
            "auto_start_bypass_cache" => saving.auto_start_bypass_cache = flag(&setting)?,
            _ => {}
        }
        Ok(())
    }
}

fn format(setting: Setting) -> Result<SaveFormat, String> {
    let key = setting.key.clone();
    let name = text(setting)?;
    SaveFormat::from_name(&name).ok_or_else(|| format!("Invalid {key} '{name}'"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_are_known_by_name() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("qemu.conf");
        let mut config = Config::default();
        config.load_saving(&path).unwrap();
        std::fs::write(&path, "user = \"root\"\nsave_image_format = \"zstd\"\nauto_dump_path = \"/x\"\n")
            .unwrap();
        config.load_saving(&path).unwrap();
        assert_eq!(config.saving.save_format, SaveFormat::Zstd);
        assert_eq!(config.saving.auto_dump_path.as_deref(), Some(Path::new("/x")));
        std::fs::write(&path, "dump_image_format = \"lha\"\n").unwrap();
        let error = config.load_saving(&path).unwrap_err().to_string();
        assert!(error.ends_with("qemu.conf:1: Invalid dump_image_format 'lha'"), "{error}");
    }
}
