//! What a client asks for when it migrates a guest: the flag word, and parameters by name.

use crate::drivers::flags::{CallFlags, flag_words};
use crate::drivers::params::{Name, ParamType, ParamValue, Params};
use crate::error::{Error, Result};

flag_words!(
    /// `virDomainMigrateFlags`
    MigrateFlags of "qemuDomainMigrate" {
        LIVE = 1,
        PEER2PEER = 1 << 1,
        TUNNELLED = 1 << 2,
        PERSIST_DEST = 1 << 3,
        UNDEFINE_SOURCE = 1 << 4,
        PAUSED = 1 << 5,
        NON_SHARED_DISK = 1 << 6,
        NON_SHARED_INC = 1 << 7,
        CHANGE_PROTECTION = 1 << 8,
        UNSAFE = 1 << 9,
        OFFLINE = 1 << 10,
        COMPRESSED = 1 << 11,
        ABORT_ON_ERROR = 1 << 12,
        AUTO_CONVERGE = 1 << 13,
        RDMA_PIN_ALL = 1 << 14,
        POSTCOPY = 1 << 15,
        TLS = 1 << 16,
        PARALLEL = 1 << 17,
        NON_SHARED_SYNCHRONOUS_WRITES = 1 << 18,
        POSTCOPY_RESUME = 1 << 19,
        ZEROCOPY = 1 << 20,
    }
);

impl MigrateFlags {
    /// Disks are copied, whole or what is above their backing images.
    pub fn copies_disks(self) -> bool {
        self.intersects(Self::NON_SHARED_DISK | Self::NON_SHARED_INC)
    }
}

/// Names that may come several times.
const LISTS: [&str; 3] = ["migrate_disks", "migrate_disks_detect_zeroes", "compression"];

const KNOWN: [(&str, ParamType); 24] = [
    ("migrate_uri", ParamType::Text),
    ("destination_name", ParamType::Text),
    ("destination_xml", ParamType::Text),
    ("bandwidth", ParamType::Ullong),
    ("graphics_uri", ParamType::Text),
    ("listen_address", ParamType::Text),
    ("migrate_disks", ParamType::Text),
    ("migrate_disks_detect_zeroes", ParamType::Text),
    ("disks_port", ParamType::Int),
    ("compression", ParamType::Text),
    ("compression.mt.level", ParamType::Int),
    ("compression.mt.threads", ParamType::Int),
    ("compression.mt.dthreads", ParamType::Int),
    ("compression.xbzrle.cache", ParamType::Ullong),
    ("persistent_xml", ParamType::Text),
    ("auto_converge.initial", ParamType::Int),
    ("auto_converge.increment", ParamType::Int),
    ("bandwidth.postcopy", ParamType::Ullong),
    ("parallel.connections", ParamType::Int),
    ("compression.zlib.level", ParamType::Int),
    ("compression.zstd.level", ParamType::Int),
    ("tls.destination", ParamType::Text),
    ("disks_uri", ParamType::Text),
    ("bandwidth.avail.switchover", ParamType::Ullong),
];

/// Everything that a call of a migration has beside its cookie.
#[derive(Debug, Clone)]
pub struct Request {
    pub flags: MigrateFlags,
    params: Params,
}

impl Request {
    /// Takes what a client sent; `function` is the one of libvirt's that refuses unknown flags.
    pub fn accept(params: Params, flags: u32, function: &'static str) -> Result<Self> {
        if let unknown @ 1.. = flags & !MigrateFlags::all().bits() {
            return Err(Error::unsupported_flags(unknown, function));
        }
        let (lists, single): (Vec<_>, Vec<_>) =
            params.0.iter().cloned().partition(|(name, _)| LISTS.contains(&&**name));
        Params(single).validate(&KNOWN)?;
        for (name, value) in &lists {
            if value.kind() != ParamType::Text {
                Params(vec![(name.clone(), value.clone())]).validate(&KNOWN)?;
            }
        }
        let request = Self { flags: MigrateFlags::from_bits_retain(flags), params };
        request.check_disk_places()?;
        Ok(request)
    }

    /// The same for what older calls have as arguments of their own.
    pub fn plain(
        flags: u64,
        texts: [(&'static str, Option<String>); 3],
        bandwidth: u64,
        function: &'static str,
    ) -> Result<Self> {
        let mut params = Params::default();
        for (name, text) in texts {
            if let Some(text) = text {
                params.push(name, text);
            }
        }
        if bandwidth > 0 {
            params.push("bandwidth", bandwidth);
        }
        Self::accept(params, u32::try_from(flags).unwrap_or(u32::MAX), function)
    }

    pub fn has(&self, flags: MigrateFlags) -> bool {
        self.flags.contains(flags)
    }

    pub fn text(&self, name: &str) -> Option<&str> {
        self.params.text(name).map(String::as_str)
    }

    pub fn number(&self, name: &str) -> Option<i32> {
        self.params.int(name).copied()
    }

    pub fn whole(&self, name: &str) -> Option<u64> {
        match self.params.get(name)? {
            ParamValue::Ullong(value) => Some(*value),
            ParamValue::Int(value) => u64::try_from(*value).ok(),
            _ => None,
        }
    }

    fn texts(&self, wanted: &str) -> impl Iterator<Item = &str> {
        self.params.0.iter().filter(move |(name, _)| name == wanted).filter_map(|(_, value)| match value {
            ParamValue::Text(text) => Some(text.as_str()),
            _ => None,
        })
    }

    /// Where the stream of the guest's state goes.
    pub fn uri(&self) -> Option<&str> {
        self.text("migrate_uri")
    }

    /// What the guest is called on the other host.
    pub fn destination_name(&self) -> Option<&str> {
        self.text("destination_name")
    }

    pub fn destination_xml(&self) -> Option<&str> {
        self.text("destination_xml")
    }

    pub fn persistent_xml(&self) -> Option<&str> {
        self.text("persistent_xml")
    }

    /// The targets of the disks to copy; none named: all that are not shared, read-only or empty.
    pub fn disks(&self) -> Option<Vec<&str>> {
        let named: Vec<_> = self.texts("migrate_disks").collect();
        (!named.is_empty()).then_some(named)
    }

    pub fn disks_with_zeroes(&self) -> Vec<&str> {
        self.texts("migrate_disks_detect_zeroes").collect()
    }

    pub fn compressions(&self) -> Vec<&str> {
        self.texts("compression").collect()
    }

    /// For the other host: this request with some parameters replaced.
    pub fn with(&self, replaced: &[(&'static str, Option<String>)]) -> Params {
        let kept = |(name, _): &&(Name, ParamValue)| replaced.iter().all(|(new, _)| name != new);
        let mut params = Params(self.params.0.iter().filter(kept).cloned().collect());
        for (name, value) in replaced {
            if let Some(value) = value {
                params.push(*name, value.clone());
            }
        }
        params
    }

    /// The same with the place that the destination chose.
    pub fn placed(&self, uri: &str) -> Self {
        Self { flags: self.flags, params: self.with(&[("migrate_uri", Some(uri.to_owned()))]) }
    }

    fn check_disk_places(&self) -> Result<()> {
        let unix = self.uri().is_some_and(|uri| uri.starts_with("unix:"));
        let refused = |sentence: &'static str| Err(Error::invalid_arg(sentence));
        if (self.flags.copies_disks() || self.disks().is_some()) && unix && self.text("disks_uri").is_none() {
            return refused("NBD URI must be supplied when migration URI uses UNIX transport method");
        }
        if self.text("disks_uri").is_some() && self.whole("disks_port").is_some_and(|port| port > 0) {
            return refused("Both port and URI requested for disk migration while being mutually exclusive");
        }
        if self.text("listen_address").is_some() && unix {
            return refused(
                "Usage of listen-address is forbidden when migration URI uses UNIX transport method",
            );
        }
        Ok(())
    }

    /// What contradicts itself, on whichever side.
    pub fn check(&self) -> Result<()> {
        use MigrateFlags as Flags;
        let unsupported = |sentence: &'static str| Err(Error::argument_unsupported(sentence));
        let invalid = |sentence: &'static str| Err(Error::operation_invalid(sentence));
        if self.has(Flags::POSTCOPY) && (!self.has(Flags::LIVE) || self.has(Flags::PAUSED)) {
            return unsupported("post-copy migration is not supported with non-live or paused migration");
        }
        if self.has(Flags::POSTCOPY | Flags::TUNNELLED) {
            return unsupported("post-copy is not supported with tunnelled migration");
        }
        if self.has(Flags::RDMA_PIN_ALL) {
            return unsupported(
                "memory is pinned for migration over RDMA only, which this daemon does not do",
            );
        }
        if self.has(Flags::OFFLINE) {
            if self.flags.copies_disks() {
                return invalid("offline migration cannot handle non-shared storage");
            }
            if !self.has(Flags::PERSIST_DEST) {
                return invalid("offline migration must be specified with the persistent flag set");
            }
            if self.has(Flags::TUNNELLED) {
                return invalid("tunnelled offline migration does not make sense");
            }
        }
        if self.has(Flags::ZEROCOPY) && !self.has(Flags::PARALLEL) {
            return invalid("zero-copy is only available for parallel migration");
        }
        if self.flags.copies_disks() && self.has(Flags::TUNNELLED) {
            return Err(Error::operation_unsupported(
                "migration of non-shared storage is not supported with tunnelled migration and this QEMU",
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accept(flags: MigrateFlags, params: &[(&str, ParamValue)]) -> Result<Request, String> {
        let params =
            Params(params.iter().map(|(name, value)| ((*name).to_owned().into(), value.clone())).collect());
        let request = Request::accept(params, flags.bits(), "f").map_err(|error| error.message())?;
        request.check().map_err(|error| error.message())?;
        Ok(request)
    }

    #[test]
    fn lists_may_come_several_times_and_nothing_else() {
        let disks: [(&str, ParamValue); 2] =
            [("migrate_disks", "vda".into()), ("migrate_disks", "vdb".into())];
        let request = accept(MigrateFlags::NON_SHARED_DISK, &disks).unwrap();
        assert_eq!(request.disks(), Some(vec!["vda", "vdb"]));
        let twice: [(&str, ParamValue); 2] = [("migrate_uri", "a".into()), ("migrate_uri", "b".into())];
        let refusal = accept(MigrateFlags::LIVE, &twice).unwrap_err();
        assert_eq!(refusal, "invalid argument: parameter 'migrate_uri' occurs multiple times");
        let number = [("migrate_disks", 3u64.into())];
        assert_eq!(
            accept(MigrateFlags::LIVE, &number).unwrap_err(),
            "invalid argument: invalid type 'ullong' for parameter 'migrate_disks', expected 'string'"
        );
        let unknown = [("teleport", 1i32.into())];
        assert_eq!(
            accept(MigrateFlags::LIVE, &unknown).unwrap_err(),
            "argument unsupported: parameter 'teleport' not supported"
        );
    }

    #[test]
    fn what_contradicts_itself_is_refused_in_libvirts_words() {
        use MigrateFlags as F;
        type Case<'a> = (F, &'a [(&'a str, ParamValue)], &'a str);
        let cases: [Case<'_>; 8] = [
            (
                F::POSTCOPY,
                &[],
                "argument unsupported: post-copy migration is not supported with non-live or paused migration",
            ),
            (
                F::POSTCOPY | F::LIVE | F::TUNNELLED,
                &[],
                "argument unsupported: post-copy is not supported with tunnelled migration",
            ),
            (
                F::OFFLINE,
                &[],
                "Requested operation is not valid: offline migration must be specified with the persistent flag set",
            ),
            (
                F::OFFLINE | F::PERSIST_DEST | F::NON_SHARED_INC,
                &[],
                "Requested operation is not valid: offline migration cannot handle non-shared storage",
            ),
            (
                F::ZEROCOPY,
                &[],
                "Requested operation is not valid: zero-copy is only available for parallel migration",
            ),
            (
                F::NON_SHARED_DISK,
                &[("migrate_uri", ParamValue::Text(String::from("unix:///x")))],
                "invalid argument: NBD URI must be supplied when migration URI uses UNIX transport method",
            ),
            (
                F::NON_SHARED_DISK,
                &[
                    ("disks_uri", ParamValue::Text(String::from("unix:///x"))),
                    ("disks_port", ParamValue::Int(5)),
                ],
                "invalid argument: Both port and URI requested for disk migration while being mutually exclusive",
            ),
            (
                F::LIVE,
                &[
                    ("migrate_uri", ParamValue::Text(String::from("unix:///x"))),
                    ("listen_address", ParamValue::Text(String::from("::"))),
                ],
                "invalid argument: Usage of listen-address is forbidden when migration URI uses UNIX transport method",
            ),
        ];
        for (flags, params, expected) in cases {
            assert_eq!(accept(flags, params).unwrap_err(), expected);
        }
    }
}
