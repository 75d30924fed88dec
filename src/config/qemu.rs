//! `qemu.conf`: whom guests run as, who owns their files meanwhile, what QEMU may do.
//!
//! As in `libvirtd.conf`, keys without a meaning here are named in the log, and those that would protect a guest in
//! a way this daemon cannot are refused.

use std::path::Path;

use super::{ConfigError, expected, flag, migration, number, read_settings, text};
use crate::qemu::command::Sandbox;
use crate::qemu::log_limit::StdioHandler;
use crate::qemu::migrate;
use crate::qemu::save_image::{SaveFormat, Saving};
use crate::qemu::security::Policy;
use crate::util::accounts::{group_id, user_id};
use crate::util::conf_file::{Setting, Value};

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct QemuConfig {
    pub security: Policy,
    pub sandbox: Sandbox,
    /// Whom an emulated TPM runs as.
    pub swtpm_user: Option<u32>,
    pub swtpm_group: Option<u32>,
    pub migration: migrate::Policy,
    /// How guests' states are written unless a client says otherwise.
    pub saving: Saving,
    pub stdio: StdioHandler,
    /// Lines worth a warning once logging works.
    pub remarks: Vec<String>,
}

/// Keys that would encrypt a connection, or ask its user for a password.
const PROTECTING: &[&str] = &[
    "backup_tls_x509_verify",
    "chardev_tls",
    "lock_manager",
    "nbd_tls",
    "rdp_password",
    "spice_password",
    "spice_sasl",
    "spice_tls",
    "vnc_password",
    "vnc_sasl",
    "vnc_tls",
    "vxhs_tls",
];

/// Which restrict a guest in ways that need control groups or namespaces; an empty list asks for nothing.
const LISTS_WITHOUT_EFFECT: &[&str] = &["cgroup_controllers", "cgroup_device_acl", "namespaces"];

impl QemuConfig {
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
        let mut line = 0;
        read_settings(path, text, |setting| {
            line = setting.line;
            config.apply(setting)
        })?;
        let wrong = |what| ConfigError::Value { path: path.to_owned(), line, what };
        migration::check(&config.migration).map_err(wrong)?;
        Ok(config)
    }

    fn apply(&mut self, setting: Setting) -> Result<(), String> {
        let Some(setting) = migration::apply(&mut self.migration, setting)? else { return Ok(()) };
        let security = &mut self.security;
        let unknown = |error: crate::util::accounts::UnknownId| error.to_string();
        match setting.key.as_str() {
            "user" => security.user = Some(user_id(&text(setting)?).map_err(unknown)?),
            "group" => security.group = Some(group_id(&text(setting)?).map_err(unknown)?),
            "swtpm_user" => self.swtpm_user = Some(user_id(&text(setting)?).map_err(unknown)?),
            "swtpm_group" => self.swtpm_group = Some(group_id(&text(setting)?).map_err(unknown)?),
            "dynamic_ownership" => security.dynamic_ownership = switch(&setting)?,
            "remember_owner" => security.remember_owner = switch(&setting)?,
            "security_default_confined" => security.default_confined = switch(&setting)?,
            "security_require_confined" => {
                if switch(&setting)? {
                    return Err("Security driver \"none\" cannot create confined guests".to_owned());
                }
            }
            "security_driver" => drivers(setting)?,
            "seccomp_sandbox" => {
                self.sandbox = match number::<i64>(&setting)? {
                    0 => Sandbox::Off,
                    _ => Sandbox::On,
                };
            }
            "stdio_handler" => {
                self.stdio = match text(setting)?.as_str() {
                    "logd" => StdioHandler::Logd,
                    "file" => StdioHandler::File,
                    other => return Err(format!("Unknown stdio handler {other}")),
                };
            }
            "save_image_format" => self.saving.save_format = format(setting)?,
            "dump_image_format" => self.saving.dump_format = format(setting)?,
            "snapshot_image_format" => self.saving.snapshot_format = format(setting)?,
            "auto_dump_path" => self.saving.auto_dump_path = Some(text(setting)?.into()),
            "auto_dump_bypass_cache" => self.saving.auto_dump_bypass_cache = flag(&setting)?,
            "auto_start_bypass_cache" => self.saving.auto_start_bypass_cache = flag(&setting)?,
            key if PROTECTING.contains(&key) => unprotected(&setting)?,
            key if LISTS_WITHOUT_EFFECT.contains(&key) && setting.value == Value::List(Vec::new()) => {}
            key => self.remarks.push(format!("line {}: '{key}' has no effect here", setting.line)),
        }
        Ok(())
    }
}

fn switch(setting: &Setting) -> Result<bool, String> {
    match setting.value {
        Value::Integer(0) => Ok(false),
        Value::Integer(1) => Ok(true),
        Value::Integer(_) => Err(format!("value for '{}' parameter must be 0 or 1", setting.key)),
        _ => Err(expected(setting, "number")),
    }
}

fn format(setting: Setting) -> Result<SaveFormat, String> {
    let key = setting.key.clone();
    let name = text(setting)?;
    SaveFormat::from_name(&name).ok_or_else(|| format!("Invalid {key} '{name}'"))
}

/// Beside the host's users there is nothing here that keeps guests apart.
fn drivers(setting: Setting) -> Result<(), String> {
    let named = match setting.value {
        Value::List(names) => names,
        name => vec![name],
    };
    match named.iter().find(|name| **name != Value::Text("none".to_owned())) {
        Some(Value::Text(other)) => Err(format!("Security driver {other} not found")),
        Some(_) => Err("expected a string or a list of strings for 'security_driver' parameter".to_owned()),
        None if named.len() > 1 => Err("Duplicate security driver none".to_owned()),
        None => Ok(()),
    }
}

fn unprotected(setting: &Setting) -> Result<(), String> {
    match &setting.value {
        Value::Integer(0) => Ok(()),
        Value::Text(text) if text.is_empty() => Ok(()),
        _ => Err(format!("'{}' is not supported", setting.key)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<QemuConfig, String> {
        QemuConfig::read(Path::new("/q.conf"), text).map_err(|error| error.to_string())
    }

    #[test]
    fn whom_guests_run_as_and_who_owns_their_files() {
        let config = read(
            "user = \"+64055\"\ngroup = \"root\"\ndynamic_ownership = 0\nremember_owner = 0\n\
             security_default_confined = 0\nsecurity_driver = [ \"none\" ]\nseccomp_sandbox = 0\nswtpm_user = \"+7\"\n\
             namespaces = []\nvnc_tls = 0\nmax_core = 1\n",
        )
        .unwrap();
        let security = &config.security;
        assert_eq!((security.user, security.group), (Some(64055), Some(0)));
        assert!(!security.dynamic_ownership && !security.remember_owner && !security.default_confined);
        assert_eq!((config.sandbox, config.swtpm_user), (Sandbox::Off, Some(7)));
        assert_eq!(config.remarks, ["line 11: 'max_core' has no effect here"]);
        let silent = read("").unwrap();
        assert_eq!((silent.security.user, silent.sandbox), (None, Sandbox::On));
        assert!(silent.security.dynamic_ownership && silent.security.remember_owner);
    }

    #[test]
    fn what_becomes_of_what_guests_write() {
        assert_eq!(read("").unwrap().stdio, StdioHandler::Logd);
        assert_eq!(read("stdio_handler = 'logd'").unwrap().stdio, StdioHandler::Logd);
        assert_eq!(read("stdio_handler = 'file'").unwrap().stdio, StdioHandler::File);
        assert!(read("stdio_handler = 'pipe'").unwrap_err().contains("Unknown stdio handler pipe"));
    }

    #[test]
    fn how_guests_come_and_go() {
        let config = read(
            "migration_address = '[2001:db8::1]'\nmigration_host = 'here'\nmigration_port_min = 100\n\
             migration_port_max = 100\nmigrate_tls_force = 1\ndefault_tls_x509_verify = 0\nkeepalive_count = 2\n\
             migrate_tls_x509_cert_dir = '/'\ndefault_tls_x509_secret_uuid = '6ba7b810-9dad-41d1-80b4-00c04fd430c8'\n",
        )
        .unwrap();
        let migration = &config.migration;
        assert_eq!(migration.address.as_deref(), Some("2001:db8::1"));
        assert_eq!((migration.host.as_deref(), migration.ports()), (Some("here"), 100..=100));
        assert!(migration.force_tls && migration.default_tls.secret.is_some());
        assert_eq!((migration.default_tls.verify, migration.keepalive_count), (Some(false), 2));
        assert_eq!(migration.tls.directory.as_deref(), Some(Path::new("/")));
        assert!(config.remarks.is_empty());
    }

    #[test]
    fn how_states_are_written() {
        let saving = read("save_image_format = 'zstd'\nauto_dump_path = '/x'\nauto_dump_bypass_cache = 1")
            .unwrap()
            .saving;
        assert_eq!(saving.save_format, SaveFormat::Zstd);
        assert_eq!(saving.auto_dump_path.as_deref(), Some(Path::new("/x")));
        assert!(saving.auto_dump_bypass_cache && !saving.auto_start_bypass_cache);
        assert_eq!(read("").unwrap().saving, Saving::default());
    }

    #[test]
    fn what_cannot_be_is_refused() {
        for (text, error) in [
            ("migration_port_min = 0", "/q.conf:1: migration_port_min: port must be greater than 0"),
            (
                "migration_port_max = 80",
                "/q.conf:1: migration_port_max: port must be between the minimal port 49152 and 65535",
            ),
            (
                "migration_host = 'localhost.example'",
                "/q.conf:1: migration_host must not be the address of the local machine: localhost.example",
            ),
            (
                "migrate_tls_x509_cert_dir = '/no/such'",
                "/q.conf:1: migrate_tls_x509_cert_dir directory '/no/such' does not exist",
            ),
            ("user = 'no-such-user'", "/q.conf:1: Failed to parse user 'no-such-user'"),
            ("\ngroup = 7", "/q.conf:2: expected a string for 'group' parameter, not a number"),
            ("dynamic_ownership = 2", "/q.conf:1: value for 'dynamic_ownership' parameter must be 0 or 1"),
            ("security_driver = 'apparmor'", "/q.conf:1: Security driver apparmor not found"),
            ("security_driver = ['none', 'none']", "/q.conf:1: Duplicate security driver none"),
            (
                "security_require_confined = 1",
                "/q.conf:1: Security driver \"none\" cannot create confined guests",
            ),
            ("dump_image_format = 'lha'", "/q.conf:1: Invalid dump_image_format 'lha'"),
            ("vnc_password = 'x'", "/q.conf:1: 'vnc_password' is not supported"),
        ] {
            assert_eq!(read(text).err().as_deref(), Some(error), "{text:?}");
        }
    }
}
