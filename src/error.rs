//! The error a client sees: libvirt's code, the part of libvirt that reports it, a sentence.
//!
//! Clients match on the code and often on the sentence, so both are libvirt's. Each code has a
//! constructor that puts its standard short form in front: `Error::no_domain("no domain with matching
//! name 'x'")` reads `Domain not found: no domain with matching name 'x'`. Floors below `drivers` have
//! small error enums of their own; `From` turns those into this one.

use std::borrow::Cow;
use std::fmt;

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Which part of libvirt an error comes from (`virErrorDomain`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Origin(pub i32);

impl Origin {
    pub const NONE: Self = Self(0);
    pub const XML: Self = Self(5);
    pub const RPC: Self = Self(7);
    pub const CONF: Self = Self(9);
    pub const QEMU: Self = Self(10);
    pub const REMOTE: Self = Self(13);
    pub const STORAGE: Self = Self(18);
    pub const NETWORK: Self = Self(19);
    pub const DOMAIN: Self = Self(20);
    pub const NODEDEV: Self = Self(22);
    pub const SECURITY: Self = Self(24);
    pub const INTERFACE: Self = Self(26);
    pub const SECRET: Self = Self(30);
    pub const CPU: Self = Self(31);
    pub const NWFILTER: Self = Self(33);
    pub const DOMAIN_SNAPSHOT: Self = Self(35);
    pub const STREAMS: Self = Self(38);
    pub const EVENT: Self = Self(40);
    pub const CAPABILITIES: Self = Self(44);
    pub const URI: Self = Self(45);
    pub const AUTH: Self = Self(46);
    pub const DBUS: Self = Self(47);
    pub const DEVICE: Self = Self(49);
    pub const IDENTITY: Self = Self(53);
    pub const CGROUP: Self = Self(54);
    pub const ACCESS: Self = Self(55);
    pub const PERF: Self = Self(58);
    pub const POLKIT: Self = Self(60);
    pub const ADMIN: Self = Self(62);
    pub const DOMAIN_CHECKPOINT: Self = Self(69);

    /// Where a function of libvirt's that refuses its arguments stands: the name tells.
    fn of_function(name: &str) -> Self {
        match name {
            "virNodeSuspend" => Self::NONE,
            _ if name.starts_with("qemu") => Self::QEMU,
            _ if name.starts_with("storage") || name.starts_with("virStorage") => Self::STORAGE,
            _ if name.starts_with("virDomain") || name.starts_with("virNode") => Self::DOMAIN,
            _ if name.starts_with("virConnect") => Self::DOMAIN,
            _ => Self::NONE,
        }
    }
}

/// What libvirt calls the error's level.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    Warning = 1,
    Error = 2,
}

/// An error's fields beside code and sentence, by libvirt's names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parts<'a> {
    pub str1: Cow<'static, str>,
    pub str2: Option<&'a str>,
    pub int1: i32,
    pub int2: i32,
}

/// Which argument of which of libvirt's functions is refused; clients get both beside the sentence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Refused {
    function: &'static str,
    argument: &'static str,
}

/// An answer to a client that something did not work, and why.
#[derive(Debug)]
pub struct Error {
    pub code: Code,
    pub origin: Origin,
    pub level: Level,
    /// The specific part of the sentence; the code's short form stands in front of it.
    pub detail: Cow<'static, str>,
    /// `errno` where a system call failed.
    pub errno: Option<i32>,
    /// Set where an argument itself is refused; the detail is the whole sentence then.
    refused: Option<Refused>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

macro_rules! codes {
    ($($number:literal $name:ident $constructor:ident $short:literal $long:literal;)*) => {
        /// `virErrorNumber`.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub struct Code(pub i32);

        impl Code {
            $(pub const $name: Self = Self($number);)*

            /// The short form alone, and the form with `{}` where the detail goes.
            fn forms(self) -> (&'static str, &'static str) {
                match self {
                    $(Self::$name => ($short, $long),)*
                    _ => ("unknown error", "unknown error: {}"),
                }
            }
        }

        impl Error {
            $(
                #[doc = concat!("VIR_ERR_", stringify!($name), ": ", $long)]
                pub fn $constructor(detail: impl Into<Cow<'static, str>>) -> Self {
                    Self::new(Code::$name, detail)
                }
            )*
        }
    };
}

codes! {
    1 INTERNAL_ERROR internal_error "internal error" "internal error: {}";
    2 NO_MEMORY no_memory "out of memory" "out of memory: {}";
    3 NO_SUPPORT no_support "this function is not supported by the connection driver" "this function is not supported by the connection driver: {}";
    5 NO_CONNECT no_connect "no connection driver available" "no connection driver available for {}";
    6 INVALID_CONN invalid_conn "invalid connection pointer in" "invalid connection pointer in {}";
    7 INVALID_DOMAIN invalid_domain "invalid domain pointer in" "invalid domain pointer in {}";
    8 INVALID_ARG invalid_arg "invalid argument" "invalid argument: {}";
    9 OPERATION_FAILED operation_failed "operation failed" "operation failed: {}";
    16 OS_TYPE os_type "unknown OS type" "unknown OS type {}";
    19 NO_SOURCE no_source "missing source information for device" "missing source information for device {}";
    20 NO_TARGET no_target "missing target information for device" "missing target information for device {}";
    21 NO_NAME no_name "missing name information" "missing name information in {}";
    27 XML_ERROR xml_error "XML description is invalid or not well formed" "XML error: {}";
    28 DOM_EXIST dom_exist "this domain exists already" "domain {} exists already";
    29 OPERATION_DENIED operation_denied "operation forbidden for read only access" "operation forbidden: {}";
    33 CONF_SYNTAX conf_syntax "configuration file syntax error" "configuration file syntax error: {}";
    35 XML_DETAIL xml_detail "parser error" "{}";
    38 SYSTEM_ERROR system_error "system call error" "{}";
    39 RPC rpc "RPC error" "{}";
    42 NO_DOMAIN no_domain "Domain not found" "Domain not found: {}";
    43 NO_NETWORK no_network "Network not found" "Network not found: {}";
    45 AUTH_FAILED auth_failed "authentication failed" "authentication failed: {}";
    49 NO_STORAGE_POOL no_storage_pool "Storage pool not found" "Storage pool not found: {}";
    50 NO_STORAGE_VOL no_storage_vol "Storage volume not found" "Storage volume not found: {}";
    53 NO_NODE_DEVICE no_node_device "Node device not found" "Node device not found: {}";
    55 OPERATION_INVALID operation_invalid "Requested operation is not valid" "Requested operation is not valid: {}";
    57 NO_INTERFACE no_interface "Interface not found" "Interface not found: {}";
    62 NO_NWFILTER no_nwfilter "Network filter not found" "Network filter not found: {}";
    65 INVALID_SECRET invalid_secret "Invalid secret" "Invalid secret: {}";
    66 NO_SECRET no_secret "Secret not found" "Secret not found: {}";
    67 CONFIG_UNSUPPORTED config_unsupported "unsupported configuration" "unsupported configuration: {}";
    68 OPERATION_TIMEOUT operation_timeout "Timed out during operation" "Timed out during operation: {}";
    72 NO_DOMAIN_SNAPSHOT no_domain_snapshot "Domain snapshot not found" "Domain snapshot not found: {}";
    73 INVALID_STREAM invalid_stream "invalid stream pointer" "invalid stream pointer in {}";
    74 ARGUMENT_UNSUPPORTED argument_unsupported "argument unsupported" "argument unsupported: {}";
    75 STORAGE_PROBE_FAILED storage_probe_failed "Storage pool probe failed" "Storage pool probe failed: {}";
    76 STORAGE_POOL_BUILT storage_pool_built "Storage pool already built" "Storage pool already built: {}";
    77 SNAPSHOT_REVERT_RISKY snapshot_revert_risky "revert requires force" "revert requires force: {}";
    78 OPERATION_ABORTED operation_aborted "operation aborted" "operation aborted: {}";
    79 AUTH_CANCELLED auth_cancelled "authentication cancelled" "authentication cancelled: {}";
    80 NO_DOMAIN_METADATA no_domain_metadata "metadata not found" "metadata not found: {}";
    81 MIGRATE_UNSAFE migrate_unsafe "Unsafe migration" "Unsafe migration: {}";
    82 OVERFLOW overflow "numerical overflow" "numerical overflow: {}";
    83 BLOCK_COPY_ACTIVE block_copy_active "block copy still active" "block copy still active: {}";
    84 OPERATION_UNSUPPORTED operation_unsupported "Operation not supported" "Operation not supported: {}";
    86 AGENT_UNRESPONSIVE agent_unresponsive "Guest agent is not responding" "Guest agent is not responding: {}";
    87 RESOURCE_BUSY resource_busy "resource busy" "resource busy: {}";
    88 ACCESS_DENIED access_denied "access denied" "access denied: {}";
    89 DBUS_SERVICE dbus_service "error from service" "error from service: {}";
    90 STORAGE_VOL_EXIST storage_vol_exist "this storage volume exists already" "storage volume {} exists already";
    91 CPU_INCOMPATIBLE cpu_incompatible "the CPU is incompatible with host CPU" "the CPU is incompatible with host CPU: {}";
    92 XML_INVALID_SCHEMA xml_invalid_schema "XML document failed to validate against schema" "XML document failed to validate against schema: {}";
    93 MIGRATE_FINISH_OK migrate_finish_ok "migration successfully aborted" "migration successfully aborted: {}";
    94 AUTH_UNAVAILABLE auth_unavailable "authentication unavailable" "authentication unavailable: {}";
    95 NO_SERVER no_server "Server not found" "Server not found: {}";
    96 NO_CLIENT no_client "Client not found" "Client not found: {}";
    97 AGENT_UNSYNCED agent_unsynced "guest agent replied with wrong id to guest-sync command" "guest agent replied with wrong id to guest-sync command: {}";
    99 DEVICE_MISSING device_missing "device not found" "device not found: {}";
    103 NO_DOMAIN_CHECKPOINT no_domain_checkpoint "Domain checkpoint not found" "Domain checkpoint not found: {}";
    104 NO_DOMAIN_BACKUP no_domain_backup "Domain backup job id not found" "Domain backup job id not found: {}";
    108 NO_HOSTNAME no_hostname "no hostname found" "no hostname found: {}";
    109 CHECKPOINT_INCONSISTENT checkpoint_inconsistent "checkpoint inconsistent" "checkpoint inconsistent: {}";
    110 MULTIPLE_DOMAINS multiple_domains "multiple matching domains found" "multiple matching domains found: {}";
    112 AGENT_COMMAND_TIMEOUT agent_command_timeout "guest agent command timed out" "guest agent command timed out: {}";
    113 AGENT_COMMAND_FAILED agent_command_failed "guest agent command failed" "guest agent command failed: {}";
}

impl Error {
    pub fn new(code: Code, detail: impl Into<Cow<'static, str>>) -> Self {
        Self {
            code,
            origin: Origin::QEMU,
            level: Level::Error,
            detail: detail.into(),
            errno: None,
            refused: None,
            source: None,
        }
    }

    /// An argument that one of libvirt's functions does not take: `cpuNum in virX only accepts …`. The sentence
    /// stands without a short form.
    pub fn refused_argument(
        function: &'static str,
        argument: &'static str,
        sentence: impl Into<Cow<'static, str>>,
    ) -> Self {
        let mut built = Self::invalid_arg(sentence).from_origin(Origin::of_function(function));
        built.refused = Some(Refused { function, argument });
        built
    }

    /// Flag bits that a call does not know; `function` is the one in libvirt that looks at them.
    pub fn unsupported_flags(bits: u32, function: &'static str) -> Self {
        let sentence = format!("unsupported flags (0x{bits:x}) in function {function}");
        Self::refused_argument(function, "flags", sentence)
    }

    /// What another daemon said, in its own words.
    pub fn quoted(code: Code, origin: Origin, sentence: &str) -> Self {
        let (short, long) = code.forms();
        let (before, after) = long.split_once("{}").unwrap_or((long, ""));
        let detail = match sentence.strip_prefix(before).and_then(|rest| rest.strip_suffix(after)) {
            _ if sentence == short => "",
            Some(detail) => detail,
            None => sentence,
        };
        Self::new(code, detail.to_owned()).from_origin(origin)
    }

    /// A failed system call: `what` says what was tried, on which object.
    pub fn io(what: impl fmt::Display, error: std::io::Error) -> Self {
        let mut built = Self::system_error(format!("{what}: {}", OsText(&error)));
        built.errno = error.raw_os_error();
        built.source = Some(Box::new(error));
        built
    }

    pub fn from_origin(mut self, origin: Origin) -> Self {
        self.origin = origin;
        self
    }

    pub fn with_source(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Says behind the sentence what its reader can do about it.
    pub fn with_way_out(mut self, way_out: &str) -> Self {
        self.detail = format!("{}; {way_out}", self.detail.trim_end_matches(['.', '\n'])).into();
        self
    }

    /// What the sentence is made of, as clients find it in an error's other fields: the code's template with a C
    /// conversion where the detail goes, and the detail. Of a refused argument, who refused it, and its name.
    pub fn parts(&self) -> Parts<'_> {
        if let Some(Refused { function, argument }) = self.refused {
            return Parts { str1: function.into(), str2: Some(argument), int1: 0, int2: 0 };
        }
        let (short, long) = self.code.forms();
        let template = match self.detail.is_empty() {
            true => short.into(),
            false if long == "{}" => "%s".into(),
            false => long.replace("{}", "%1$s").into(),
        };
        let detail = Some(&*self.detail).filter(|detail| !detail.is_empty());
        Parts { str1: template, str2: detail, int1: self.errno.unwrap_or(-1), int2: -1 }
    }

    /// The whole sentence, as clients print it.
    pub fn message(&self) -> String {
        let (short, long) = self.code.forms();
        match self.detail.is_empty() {
            _ if self.refused.is_some() => self.detail.clone().into_owned(),
            true => short.to_owned(),
            false => long.replace("{}", &self.detail),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message())
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}

/// The system's own words for an errno, without Rust's "(os error N)".
struct OsText<'a>(&'a std::io::Error);

impl fmt::Display for OsText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.0.to_string();
        f.write_str(text.split(" (os error").next().unwrap_or(&text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sentence_is_short_form_then_detail() {
        let error = Error::no_domain("no domain with matching name 'x'");
        assert_eq!(error.message(), "Domain not found: no domain with matching name 'x'");
        let parts = error.parts();
        assert_eq!(parts.str1, "Domain not found: %1$s");
        assert_eq!((parts.str2, parts.int1), (Some("no domain with matching name 'x'"), -1));
        assert_eq!(
            Error::no_support("").message(),
            "this function is not supported by the connection driver"
        );
    }

    #[test]
    fn unknown_flags_stand_without_a_short_form() {
        let error = Error::unsupported_flags(0x8000, "qemuDomainDestroyFlags");
        assert_eq!(error.message(), "unsupported flags (0x8000) in function qemuDomainDestroyFlags");
        assert_eq!((error.code, error.origin), (Code::INVALID_ARG, Origin::QEMU));
        let parts = error.parts();
        assert_eq!((&*parts.str1, parts.str2), ("qemuDomainDestroyFlags", Some("flags")));
        assert_eq!((parts.int1, parts.int2), (0, 0));
    }

    #[test]
    fn another_daemons_words_are_not_said_twice() {
        for sentence in ["internal error: no space", "migration successfully aborted"] {
            let code = if sentence.starts_with('i') { Code::INTERNAL_ERROR } else { Code::MIGRATE_FINISH_OK };
            assert_eq!(Error::quoted(code, Origin::QEMU, sentence).message(), sentence);
        }
    }

    #[test]
    fn a_system_error_keeps_errno_and_says_what_was_tried() {
        let error = Error::io("cannot open '/x'", std::io::Error::from_raw_os_error(2));
        assert_eq!(
            (error.message().as_str(), error.errno),
            ("cannot open '/x': No such file or directory", Some(2))
        );
    }
}
