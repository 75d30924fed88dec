//! What the lower floors' errors are to a client.

use crate::conf::{ConfError, ErrorKind};
use crate::error::{Code, Error, Origin};
use crate::qemu::job::JobError;

impl From<ConfError> for Error {
    fn from(error: ConfError) -> Self {
        let code = match error.kind {
            ErrorKind::Internal => Code::INTERNAL_ERROR,
            ErrorKind::InvalidArg => Code::INVALID_ARG,
            ErrorKind::NoName => Code::NO_NAME,
            ErrorKind::OsType => Code::OS_TYPE,
            ErrorKind::Xml => Code::XML_ERROR,
            ErrorKind::XmlDetail => Code::XML_DETAIL,
            ErrorKind::Unsupported => Code::CONFIG_UNSUPPORTED,
            ErrorKind::Overflow => Code::OVERFLOW,
        };
        Self::new(code, error.message).from_origin(Origin::DOMAIN)
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
            JobError::Gone { .. } => Self::no_domain(sentence).from_origin(Origin::DOMAIN),
        }
    }
}
