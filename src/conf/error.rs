//! Why a definition was refused.

use std::fmt;

pub type Result<T, E = ConfError> = std::result::Result<T, E>;

/// Which of libvirt's error codes a refusal is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// `VIR_ERR_INTERNAL_ERROR`: libvirt's answer to a few malformed values.
    Internal,
    /// `VIR_ERR_INVALID_ARG`
    InvalidArg,
    /// `VIR_ERR_NO_NAME`
    NoName,
    /// `VIR_ERR_NO_SOURCE`; the message is the device's name.
    NoSource,
    /// `VIR_ERR_NO_TARGET`; the message is the source.
    NoTarget,
    /// `VIR_ERR_OS_TYPE`
    OsType,
    /// `VIR_ERR_XML_ERROR`: well-formed, but not what the object looks like.
    Xml,
    /// `VIR_ERR_XML_DETAIL`: not well-formed.
    XmlDetail,
    /// `VIR_ERR_CONFIG_UNSUPPORTED`
    Unsupported,
    /// `VIR_ERR_XML_INVALID_SCHEMA`: a name that has no meaning where it stands.
    InvalidSchema,
    /// `VIR_ERR_OPERATION_FAILED`
    Failed,
    /// `VIR_ERR_OVERFLOW`
    Overflow,
    /// `VIR_ERR_OPERATION_UNSUPPORTED`
    OperationUnsupported,
}

/// Which part of libvirt says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// What every part uses: numbers, units, sets.
    None,
    /// Attributes and elements in general.
    Xml,
    /// Definitions in general.
    Domain,
    /// Descriptions of CPUs.
    Cpu,
    /// The hypervisor driver.
    Qemu,
}

/// A refusal: the code and the sentence without the code's standard short form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfError {
    pub kind: ErrorKind,
    pub origin: Origin,
    pub message: String,
}

impl ConfError {
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, origin: Origin::Domain, message: message.into() }
    }

    /// The same refusal in the name of the hypervisor driver.
    pub fn by_qemu_driver(self) -> Self {
        Self { origin: Origin::Qemu, ..self }
    }

    /// The same refusal of a CPU's description.
    pub fn by_cpu_parser(self) -> Self {
        Self { origin: Origin::Cpu, ..self }
    }

    /// The same refusal of a value that is malformed wherever it stands.
    pub fn by_nobody(self) -> Self {
        Self { origin: Origin::None, ..self }
    }

    pub(crate) fn by_xml_parser(self) -> Self {
        Self { origin: Origin::Xml, ..self }
    }

    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Internal, message)
    }

    pub fn invalid_arg(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::InvalidArg, message)
    }

    pub fn xml(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Xml, message)
    }

    pub fn unsupported(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Unsupported, message)
    }

    pub fn failed(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Failed, message)
    }

    /// An attribute whose value its type does not know. `expected` is empty or ` Expected …`.
    pub fn invalid_attribute(name: &str, element: &str, value: &str, expected: &str) -> Self {
        let value = excerpt(value);
        Self::xml(format!(
            "Invalid value for attribute '{name}' in element '{element}': '{value}'.{expected}"
        ))
        .by_xml_parser()
    }

    /// An attribute that has to be a number other than 0.
    pub fn zero_attribute(name: &str, element: &str) -> Self {
        Self::xml(format!(
            "Invalid value for attribute '{name}' in element '{element}': Zero is not permitted"
        ))
        .by_xml_parser()
    }

    pub fn missing_attribute(name: &str, element: &str) -> Self {
        Self::xml(format!("Missing required attribute '{name}' in element '{element}'")).by_xml_parser()
    }
}

/// Enough of a hostile value to recognise it by.
pub(crate) fn excerpt(value: &str) -> &str {
    value.char_indices().nth(1024).map_or(value, |(end, _)| value.split_at(end).0)
}

impl fmt::Display for ConfError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for ConfError {}
