//! What the lower floors' errors are to a client.

use crate::conf::capabilities::cpu::CpuError;
use crate::conf::{self, ConfError, ErrorKind};
use crate::error::{Code, Error, Origin};
use crate::qemu::agent::AgentError;
use crate::qemu::block::StorageError;
use crate::qemu::capabilities::{GuestCpuError, LookupError, ProbeError};
use crate::qemu::command::CommandError;
use crate::qemu::helpers::HelperError;
use crate::qemu::host_devices::HostDeviceError;
use crate::qemu::job::JobError;
use crate::qemu::migrate::MigrateError;
use crate::qemu::monitor::MonitorError;
use crate::qemu::network::NetworkError;
use crate::qemu::overlay::OverlayError;
use crate::qemu::process::{StartError, StopError};
use crate::qemu::save_file::SaveFileError;
use crate::qemu::save_image::SaveImageError;
use crate::qemu::security::SecurityError;
use crate::qemu::status::StatusError;
use crate::qemu::traffic::TrafficError;
use crate::util::device_lock::DeviceLockError;

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
            ErrorKind::InvalidSchema => Code::XML_INVALID_SCHEMA,
            ErrorKind::XmlDetail => Code::XML_DETAIL,
            ErrorKind::Unsupported => Code::CONFIG_UNSUPPORTED,
            ErrorKind::Failed => Code::OPERATION_FAILED,
            ErrorKind::Overflow => Code::OVERFLOW,
            ErrorKind::OperationUnsupported => Code::OPERATION_UNSUPPORTED,
        };
        let origin = match error.origin {
            conf::Origin::None => Origin::NONE,
            conf::Origin::Cpu => Origin::CPU,
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
            JobError::Stop(stop) => stop.into(),
            JobError::Gone { .. } => Self::no_domain(sentence).from_origin(Origin::DOMAIN),
        }
    }
}

impl From<AgentError> for Error {
    fn from(error: AgentError) -> Self {
        let code = match error {
            AgentError::NotRunning => Code::OPERATION_INVALID,
            AgentError::NotConfigured => Code::ARGUMENT_UNSUPPORTED,
            AgentError::NotConnected
            | AgentError::Unavailable
            | AgentError::Left
            | AgentError::Silent { .. } => Code::AGENT_UNRESPONSIVE,
            AgentError::Disappeared | AgentError::Timeout { .. } => Code::AGENT_COMMAND_TIMEOUT,
            AgentError::Refused { .. } => Code::AGENT_COMMAND_FAILED,
            AgentError::Unsynced { .. } => Code::AGENT_UNSYNCED,
            AgentError::Connect { .. } | AgentError::Read { .. } | AgentError::Write { .. } => {
                Code::SYSTEM_ERROR
            }
            _ => Code::INTERNAL_ERROR,
        };
        Self::new(code, error.to_string()).with_source(error)
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
        if matches!(error, MonitorError::Json { .. }) {
            return Self::internal_error(sentence).from_origin(Origin::NONE);
        }
        let code = match error {
            MonitorError::Closed => Code::OPERATION_FAILED,
            MonitorError::Timeout { .. } => Code::OPERATION_TIMEOUT,
            MonitorError::NoHumanMonitor { .. } => Code::OPERATION_UNSUPPORTED,
            _ => Code::INTERNAL_ERROR,
        };
        Self::new(code, sentence).with_source(error)
    }
}

impl From<MigrateError> for Error {
    fn from(error: MigrateError) -> Self {
        let sentence = error.to_string();
        match error {
            MigrateError::Job(error) => error.into(),
            MigrateError::Monitor(error) => error.into(),
            MigrateError::Unsupported { .. } => Self::argument_unsupported(sentence),
            MigrateError::Canceled { .. } => Self::operation_aborted(sentence),
            MigrateError::Gone | MigrateError::Failed { .. } | MigrateError::Postcopy { .. } => {
                Self::operation_failed(sentence)
            }
        }
    }
}

impl From<SaveImageError> for Error {
    fn from(error: SaveImageError) -> Self {
        Self::operation_failed(error.to_string())
    }
}

impl From<SaveFileError> for Error {
    fn from(error: SaveFileError) -> Self {
        let sentence = error.to_string();
        match error {
            SaveFileError::Open { source, .. }
            | SaveFileError::Write { source, .. }
            | SaveFileError::Read { source, .. }
            | SaveFileError::Pipe { source } => {
                let mut built = Self::system_error(sentence);
                built.errno = source.raw_os_error();
                built
            }
            SaveFileError::NoProgram { .. } => Self::operation_failed(sentence),
            SaveFileError::Start(_) => Self::system_error(sentence),
            SaveFileError::Helper { .. } => Self::internal_error(sentence),
        }
    }
}

impl From<DeviceLockError> for Error {
    fn from(error: DeviceLockError) -> Self {
        let sentence = error.to_string();
        match error {
            DeviceLockError::Held { .. } => Self::operation_failed(sentence),
            DeviceLockError::Io { source, .. } => {
                let mut built = Self::system_error(sentence);
                built.errno = source.raw_os_error();
                built
            }
        }
        .from_origin(Origin::NONE)
    }
}

impl From<GuestCpuError> for Error {
    fn from(error: GuestCpuError) -> Self {
        let sentence = error.to_string();
        match error {
            GuestCpuError::Mode { .. } => Self::config_unsupported(sentence),
            GuestCpuError::UnknownHost => Self::config_unsupported(sentence).from_origin(Origin::CPU),
            GuestCpuError::UnknownModel(_) => Self::internal_error(sentence).from_origin(Origin::CPU),
            GuestCpuError::NoModel(_) => Self::invalid_arg(sentence).from_origin(Origin::CPU),
            GuestCpuError::Incompatible(_) => Self::cpu_incompatible(sentence).from_origin(Origin::CPU),
            GuestCpuError::Map(error) => error.into(),
        }
    }
}

impl From<CpuError> for Error {
    fn from(error: CpuError) -> Self {
        let sentence = error.to_string();
        let code = match error {
            CpuError::UnknownModel(_) | CpuError::UnknownFeature(_) => Code::INTERNAL_ERROR,
            CpuError::NoSuitableModel => Code::INTERNAL_ERROR,
            CpuError::NoModel(_) => Code::INVALID_ARG,
            CpuError::Conflict(_)
            | CpuError::Mismatch { .. }
            | CpuError::UnknownVendor(_)
            | CpuError::OtherVendor { .. }
            | CpuError::VendorsDiffer
            | CpuError::NothingInCommon => Code::OPERATION_FAILED,
        };
        Self::new(code, sentence).from_origin(Origin::CPU)
    }
}

impl From<StopError> for Error {
    fn from(error: StopError) -> Self {
        let mut built = Self::system_error(error.to_string());
        built.errno = match &error {
            StopError::Stays { .. } => Some(rustix::io::Errno::BUSY.raw_os_error()),
            StopError::Signal { source, .. } => source.raw_os_error(),
        };
        built.with_source(error)
    }
}

impl From<HelperError> for Error {
    fn from(error: HelperError) -> Self {
        match error {
            HelperError::Start(error) => error.into(),
            HelperError::Security(error) => error.into(),
            HelperError::Unsupported(sentence) => Self::config_unsupported(sentence),
            HelperError::Missing { .. } => Self::system_error(error.to_string()),
            HelperError::Failed { .. } => Self::internal_error(error.to_string()),
        }
    }
}

impl From<StartError> for Error {
    fn from(error: StartError) -> Self {
        let sentence = error.to_string();
        match error {
            StartError::Monitor(error) => error.into(),
            StartError::File { source, .. } => {
                let mut built = Self::system_error(sentence);
                built.errno = source.raw_os_error();
                built
            }
            StartError::Process(_) => Self::system_error(sentence),
            StartError::Died { .. } => Self::internal_error(sentence),
        }
    }
}

impl From<StatusError> for Error {
    fn from(error: StatusError) -> Self {
        let mut built = Self::system_error(error.to_string());
        if let StatusError::Read { source, .. } | StatusError::Write { source, .. } = &error {
            built.errno = source.raw_os_error();
        }
        built
    }
}

impl From<CommandError> for Error {
    fn from(error: CommandError) -> Self {
        match error {
            CommandError::Unsupported(sentence) => Self::config_unsupported(sentence),
            CommandError::Failed(sentence) => Self::operation_failed(sentence),
            CommandError::InvalidArg(sentence) => Self::invalid_arg(sentence),
            CommandError::Internal(sentence) => Self::internal_error(sentence),
        }
    }
}

impl From<OverlayError> for Error {
    fn from(error: OverlayError) -> Self {
        let sentence = error.to_string();
        match error {
            OverlayError::InTheWay { source, .. } => Self::io(sentence, source),
            error => Self::internal_error(sentence).with_source(error),
        }
    }
}

impl From<TrafficError> for Error {
    fn from(error: TrafficError) -> Self {
        Self::internal_error(error.to_string()).with_source(error)
    }
}

impl From<HostDeviceError> for Error {
    fn from(error: HostDeviceError) -> Self {
        match error {
            HostDeviceError::Invalid(sentence) => Self::operation_invalid(sentence),
            HostDeviceError::Unsupported(sentence) => Self::config_unsupported(sentence),
            HostDeviceError::Failed(sentence) => Self::operation_failed(sentence),
            HostDeviceError::Internal(sentence) => Self::internal_error(sentence),
        }
    }
}

impl From<StorageError> for Error {
    fn from(error: StorageError) -> Self {
        let sentence = error.to_string();
        let system = |source: &std::io::Error, sentence| {
            let mut built = Self::system_error(sentence);
            built.errno = source.raw_os_error();
            built
        };
        let built = match &error {
            StorageError::Missing { source, .. } | StorageError::MissingBacking { source, .. } => {
                system(source, sentence)
            }
            StorageError::UnknownFormat { .. } => Self::operation_invalid(sentence),
            StorageError::TooDeep { .. } => Self::internal_error(sentence),
            StorageError::Unsupported { .. } => return Self::config_unsupported(sentence),
        };
        built.from_origin(Origin::STORAGE)
    }
}

impl From<SecurityError> for Error {
    fn from(error: SecurityError) -> Self {
        let sentence = error.to_string();
        let built = match &error {
            SecurityError::System { source, .. } => {
                let mut built = Self::system_error(sentence);
                built.errno = source.raw_os_error();
                built
            }
            SecurityError::InUse { .. } => Self::operation_invalid(sentence),
            SecurityError::Malformed(_) => Self::internal_error(sentence),
            SecurityError::Unsupported(_) => Self::config_unsupported(sentence),
            SecurityError::Unknown(_) => return Self::invalid_arg(sentence).from_origin(Origin::NONE),
        };
        built.from_origin(Origin::SECURITY)
    }
}

impl From<NetworkError> for Error {
    fn from(error: NetworkError) -> Self {
        match &error {
            NetworkError::System { source, .. } => {
                let mut built = Self::system_error(error.to_string()).from_origin(Origin::NONE);
                built.errno = source.raw_os_error();
                built
            }
            NetworkError::Unsupported(sentence) => Self::config_unsupported(sentence.clone()),
        }
    }
}
