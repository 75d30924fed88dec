//! What the lower floors' errors are to a client.

use crate::conf::{self, ConfError, ErrorKind};
use crate::error::{Code, Error, Origin};
use crate::qemu::capabilities::{GuestCpuError, LookupError, ProbeError};
use crate::qemu::job::JobError;
use crate::qemu::monitor::MonitorError;

impl From<ConfError> for Error {
    fn from(error: ConfError) -> Self {
        let code = match error.kind {
            ErrorKind::Internal => Code::INTERNAL_ERROR,
            ErrorKind::InvalidArg => Code::INVALID_ARG,
            ErrorKind::NoName => Code::NO_NAME,
            ErrorKind::NoSource => Code::NO_SOURCE,
            ErrorKind::NoTarget => Code::NO_TARGET,
            ErrorKind::OsType => Code::OS_TYPE,
            ErrorKind::Xml => Code::XML_ERROR,
            ErrorKind::XmlDetail => Code::XML_DETAIL,
            ErrorKind::Unsupported => Code::CONFIG_UNSUPPORTED,
            ErrorKind::Overflow => Code::OVERFLOW,
        };
        let origin = match error.origin {
            conf::Origin::Xml => Origin::XML,
            conf::Origin::Domain => Origin::DOMAIN,
            conf::Origin::Qemu => Origin::QEMU,
        };
        Self::new(code, error.message).from_origin(origin)
    }
}

impl From<JobError> for Error {
    fn from(error: JobError) -> Self {
        let sentence = error.to_string();
        match error {
            JobError::Timeout(_) => Self::operation_timeout(sentence),
            JobError::TooManyWaiting(_) => Self::operation_failed(sentence),
            JobError::NotRunning | JobError::NotParked => {
                Self::operation_invalid(sentence).from_origin(Origin::DOMAIN)
            }
            JobError::StillAlive { .. } => Self::system_error(sentence),
            JobError::Kill { .. } => Self::internal_error(sentence),
            JobError::Gone { .. } => Self::no_domain(sentence).from_origin(Origin::DOMAIN),
        }
    }
}

impl From<LookupError> for Error {
    fn from(error: LookupError) -> Self {
        let sentence = error.to_string();
        match error {
            LookupError::Missing { source, .. } | LookupError::NotExecutable { source, .. } => {
                let mut built = Self::system_error(sentence);
                built.errno = source.raw_os_error();
                built
            }
            LookupError::Converse { .. } => Self::internal_error(sentence),
            LookupError::Probe { source: ProbeError::TooOld(_), .. } => Self::config_unsupported(sentence),
            LookupError::Probe { .. } => Self::internal_error(sentence),
        }
    }
}

impl From<MonitorError> for Error {
    fn from(error: MonitorError) -> Self {
        let sentence = error.to_string();
        let code = match error {
            MonitorError::Closed => Code::OPERATION_FAILED,
            MonitorError::Timeout { .. } => Code::OPERATION_TIMEOUT,
            MonitorError::NoHumanMonitor { .. } => Code::OPERATION_UNSUPPORTED,
            _ => Code::INTERNAL_ERROR,
        };
        Self::new(code, sentence).with_source(error)
    }
}

impl From<GuestCpuError> for Error {
    fn from(error: GuestCpuError) -> Self {
        let sentence = error.to_string();
        match error {
            GuestCpuError::Mode { .. } => Self::config_unsupported(sentence),
            GuestCpuError::UnknownHost => Self::config_unsupported(sentence).from_origin(Origin::CPU),
            GuestCpuError::UnknownModel(_) => Self::internal_error(sentence).from_origin(Origin::CPU),
        }
    }
}
