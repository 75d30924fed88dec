//! What goes wrong with storage, in the name of the storage driver.

use crate::conf::storage::PoolType;
use crate::conf::{self, ConfError};
use crate::error::{Code, Error, Origin};
use crate::qemu::storage::{Refusal, VolumeError};
use crate::util::uuid::Uuid;

impl From<VolumeError> for Error {
    fn from(error: VolumeError) -> Self {
        let sentence = error.to_string();
        let mut built = match &error {
            VolumeError::System { .. } | VolumeError::Helper { .. } => Self::system_error(sentence),
            VolumeError::Tool(_) => Self::internal_error(sentence),
            VolumeError::Refused { kind, .. } => Self::new(code(*kind), sentence),
        };
        if let VolumeError::System { source, .. } | VolumeError::Helper { source, .. } = &error {
            built.errno = source.raw_os_error();
        }
        built.from_origin(match error {
            VolumeError::Helper { .. } | VolumeError::Tool(_) => Origin::NONE,
            VolumeError::System { .. } | VolumeError::Refused { .. } => Origin::STORAGE,
        })
    }
}

fn code(kind: Refusal) -> Code {
    match kind {
        Refusal::Internal => Code::INTERNAL_ERROR,
        Refusal::InvalidArg => Code::INVALID_ARG,
        Refusal::NoSupport => Code::NO_SUPPORT,
        Refusal::NoVolume => Code::NO_STORAGE_VOL,
        Refusal::OperationInvalid => Code::OPERATION_INVALID,
        Refusal::OperationUnsupported => Code::OPERATION_UNSUPPORTED,
        Refusal::Unsupported => Code::CONFIG_UNSUPPORTED,
        Refusal::Xml => Code::XML_ERROR,
    }
}

/// A description that cannot be read: what reads texts says so itself, the rest is the driver's.
pub(super) fn refused(error: ConfError) -> Error {
    let is_ours = error.origin == conf::Origin::Domain;
    let built = Error::from(error);
    if is_ours { built.from_origin(Origin::STORAGE) } else { built }
}

/// What libvirt's helper for directories says, in no driver's name.
pub(super) fn no_directory(path: &str, error: std::io::Error) -> Error {
    Error::io(format_args!("cannot open directory '{path}'"), error).from_origin(Origin::NONE)
}

pub(super) fn ours(error: Error) -> Error {
    error.from_origin(Origin::STORAGE)
}

pub(super) fn missing_backend(kind: PoolType) -> Error {
    ours(Error::internal_error(format!("missing backend for pool type {} ({kind})", kind.number())))
}

pub(super) fn invalid(sentence: String) -> Error {
    ours(Error::operation_invalid(sentence))
}

pub(super) fn not_active(name: &str) -> Error {
    invalid(format!("storage pool '{name}' is not active"))
}

pub(super) fn no_pool(what: impl std::fmt::Display) -> Error {
    ours(Error::no_storage_pool(format!("no storage pool with matching {what}")))
}

pub(super) fn no_referred_pool(uuid: Uuid, name: &str) -> Error {
    no_pool(format_args!("uuid '{uuid}' ({name})"))
}

pub(super) fn no_volume(what: impl std::fmt::Display) -> Error {
    ours(Error::no_storage_vol(format!("no storage vol with matching {what}")))
}
