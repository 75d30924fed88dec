//! What QEMU is told before a migration, on each side.

use super::request::{MigrateFlags, Request};
use crate::conf::migration::{Capability, Cookie};
use crate::conf::xml::YesNo;
use crate::error::{Error, Result};
use crate::qemu::migrate::{KNOWN, Settings};
use crate::qemu::monitor::MigrationParameters;

/// Which end of a migration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Source,
    Destination,
}

impl Side {
    /// What is switched on whenever this side's QEMU has it.
    fn automatic(self) -> &'static str {
        match self {
            Self::Source => "pause-before-switchover",
            Self::Destination => "late-block-activate",
        }
    }

    /// What this side tells the other of its QEMU.
    pub(super) fn told(self, supported: &[String]) -> Vec<Capability> {
        let has = |name: &&str| supported.iter().any(|it| it == name);
        let auto = |name| if name == self.automatic() { YesNo::Yes } else { YesNo::No };
        KNOWN
            .into_iter()
            .filter(has)
            .map(|name| Capability { name: name.to_owned(), auto: auto(name) })
            .collect()
    }

    /// What a request means to this side's QEMU.
    pub(super) fn settings(self, request: &Request, peer: Option<&Cookie>) -> Result<Settings> {
        use MigrateFlags as Flags;
        let peer_can = |name: &str| peer.and_then(|cookie| cookie.can(name)).unwrap_or(false);
        let mut settings = Settings { optional: vec![self.automatic()], ..Settings::default() };
        for (flag, sides, capability, option) in [
            (Flags::AUTO_CONVERGE, &[Self::Source][..], "auto-converge", None),
            (Flags::POSTCOPY, &[Self::Source, Self::Destination], "postcopy-ram", Some("postcopy-preempt")),
            (Flags::PARALLEL, &[Self::Source, Self::Destination], "multifd", None),
            (Flags::ZEROCOPY, &[Self::Source], "zero-copy-send", None),
        ] {
            if request.has(flag) && sides.contains(&self) {
                settings.capabilities.push(capability);
                settings.optional.extend(option.filter(|name| peer_can(name)));
            }
        }
        if !request.has(Flags::TUNNELLED) {
            settings.capabilities.push("return-path");
            settings.optional.extend(Some("switchover-ack").filter(|name| peer_can(name)));
        }
        settings.parameters = self.parameters(request)?;
        compression(request, &mut settings)?;
        Ok(settings)
    }

    fn parameters(self, request: &Request) -> Result<MigrationParameters> {
        let is_source = self == Self::Source;
        // The destination is not told that the source slows its guest down.
        let initial = byte(request, "auto_converge.initial")?.filter(|_| is_source);
        let increment = byte(request, "auto_converge.increment")?.filter(|_| is_source);
        if (initial.is_some() || increment.is_some()) && !request.has(MigrateFlags::AUTO_CONVERGE) {
            return Err(Error::invalid_arg("Turn auto convergence on to tune it"));
        }
        let channels = byte(request, "parallel.connections")?;
        if channels.is_some() && !request.has(MigrateFlags::PARALLEL) {
            return Err(Error::invalid_arg("Turn parallel migration on to tune it"));
        }
        // How fast the source may be is its own matter.
        let bandwidth = |name| if is_source { mib_per_second(request, name) } else { Ok(None) };
        Ok(MigrationParameters {
            cpu_throttle_initial: initial,
            cpu_throttle_increment: increment,
            max_bandwidth: bandwidth("bandwidth")?,
            xbzrle_cache_size: request.whole("compression.xbzrle.cache"),
            max_postcopy_bandwidth: mib_per_second(request, "bandwidth.postcopy")?,
            multifd_channels: channels,
            multifd_zlib_level: byte(request, "compression.zlib.level")?,
            multifd_zstd_level: byte(request, "compression.zstd.level")?,
            avail_switchover_bandwidth: bandwidth("bandwidth.avail.switchover")?,
            ..MigrationParameters::default()
        })
    }
}

fn compression(request: &Request, settings: &mut Settings) -> Result<()> {
    let parallel = request.has(MigrateFlags::PARALLEL);
    let refused = |sentence: String| Err(Error::invalid_arg(sentence));
    let methods = request.compressions();
    for (at, method) in methods.iter().enumerate() {
        let for_parallel = match *method {
            "mt" | "xbzrle" => false,
            "zlib" | "zstd" => true,
            _ => return refused(format!("Unsupported compression method '{method}'")),
        };
        if methods.iter().take(at).any(|before| before == method) {
            return refused(format!("Compression method '{method}' is specified twice"));
        }
        match (for_parallel, parallel) {
            (false, true) => {
                return refused(format!(
                    "Compression method '{method}' isn't supported with parallel migration"
                ));
            }
            (true, false) => {
                return refused(format!(
                    "Compression method '{method}' is only supported with parallel migration"
                ));
            }
            (true, true) if at > 0 => {
                let sentence = "Only one compression method could be specified with parallel compression";
                return refused(sentence.to_owned());
            }
            (true, true) => settings.parameters.multifd_compression = Some((*method).to_owned()),
            (false, false) => settings.capabilities.push(if *method == "mt" { "compress" } else { "xbzrle" }),
        }
    }
    let multithreaded = ["compression.mt.level", "compression.mt.threads", "compression.mt.dthreads"];
    for (names, method, sentence) in [
        (&multithreaded[..], "mt", "Turn multithread compression on to tune it"),
        (&["compression.xbzrle.cache"], "xbzrle", "Turn xbzrle compression on to tune it"),
        (&["compression.zlib.level"], "zlib", "Turn zlib compression on to tune it"),
        (&["compression.zstd.level"], "zstd", "Turn zstd compression on to tune it"),
    ] {
        if names.iter().any(|name| request.whole(name).is_some()) && !methods.contains(&method) {
            return refused(sentence.to_owned());
        }
    }
    if methods.is_empty() && request.has(MigrateFlags::COMPRESSED) {
        if parallel {
            return refused("No compression algorithm selected for parallel migration".to_owned());
        }
        settings.capabilities.push("xbzrle");
    }
    Ok(())
}

fn byte(request: &Request, name: &str) -> Result<Option<u8>> {
    let Some(value) = request.whole(name) else { return Ok(None) };
    let refused =
        || Error::invalid_arg(format!("migration parameter '{name}' must be at most 255, not {value}"));
    u8::try_from(value).map(Some).map_err(|_| refused())
}

/// In bytes.
fn mib_per_second(request: &Request, name: &str) -> Result<Option<u64>> {
    const MIB: u64 = 1 << 20;
    let (what, max) = match name {
        "bandwidth" => (name.to_owned(), super::phases::MAX_MIB_PER_SECOND),
        _ => (format!("migration parameter '{name}'"), u64::MAX / MIB),
    };
    match request.whole(name).filter(|value| *value > 0) {
        None => Ok(None),
        Some(value) if value > max => Err(Error::overflow(format!("{what} must be less than {}", max + 1))),
        Some(value) => Ok(Some(value * MIB)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drivers::params::{ParamValue, Params};

    fn request(flags: MigrateFlags, params: &[(&str, ParamValue)]) -> Request {
        let params = params.iter().map(|(name, value)| ((*name).to_owned().into(), value.clone())).collect();
        Request::accept(Params(params), flags.bits(), "f").unwrap()
    }

    #[test]
    fn each_side_switches_on_what_it_has_to() {
        use MigrateFlags as Flags;
        let all = Flags::AUTO_CONVERGE | Flags::PARALLEL | Flags::POSTCOPY | Flags::LIVE;
        let source = Side::Source.settings(&request(all, &[]), None).unwrap();
        assert_eq!(source.capabilities, ["auto-converge", "postcopy-ram", "multifd", "return-path"]);
        assert_eq!(source.optional, ["pause-before-switchover"]);
        let destination = Side::Destination.settings(&request(all, &[]), None).unwrap();
        assert_eq!(destination.capabilities, ["postcopy-ram", "multifd", "return-path"]);
        assert_eq!(destination.optional, ["late-block-activate"]);
        let tunnelled = Side::Source.settings(&request(Flags::TUNNELLED, &[]), None).unwrap();
        assert!(tunnelled.capabilities.is_empty());
        let compressed = Side::Source.settings(&request(Flags::COMPRESSED, &[]), None).unwrap();
        assert!(compressed.capabilities.contains(&"xbzrle"));
    }

    #[test]
    fn compression_is_tuned_only_where_it_is_on() {
        use MigrateFlags as Flags;
        let refusal = |flags, params: &[(&str, ParamValue)]| {
            Side::Source.settings(&request(flags, params), None).unwrap_err().message()
        };
        for (flags, params, expected) in [
            (Flags::LIVE, vec![("compression", "magic".into())], "Unsupported compression method 'magic'"),
            (
                Flags::PARALLEL,
                vec![("compression", "xbzrle".into())],
                "Compression method 'xbzrle' isn't supported with parallel migration",
            ),
            (
                Flags::LIVE,
                vec![("compression", "zstd".into())],
                "Compression method 'zstd' is only supported with parallel migration",
            ),
            (
                Flags::LIVE,
                vec![("compression.zlib.level", 3i32.into())],
                "Turn zlib compression on to tune it",
            ),
            (
                Flags::LIVE,
                vec![("parallel.connections", 3i32.into())],
                "Turn parallel migration on to tune it",
            ),
            (
                Flags::LIVE,
                vec![("auto_converge.initial", 3i32.into())],
                "Turn auto convergence on to tune it",
            ),
            (
                Flags::PARALLEL | Flags::COMPRESSED,
                vec![],
                "No compression algorithm selected for parallel migration",
            ),
        ] {
            assert_eq!(refusal(flags, &params), format!("invalid argument: {expected}"));
        }
        let zstd = [("compression", "zstd".into()), ("compression.zstd.level", 5i32.into())];
        let settings = Side::Destination.settings(&request(Flags::PARALLEL, &zstd), None).unwrap();
        assert_eq!(settings.parameters.multifd_compression.as_deref(), Some("zstd"));
        assert_eq!(settings.parameters.multifd_zstd_level, Some(5));
    }

    #[test]
    fn bandwidth_counts_in_mib() {
        let settings =
            Side::Source.settings(&request(MigrateFlags::LIVE, &[("bandwidth", 3u64.into())]), None);
        assert_eq!(settings.unwrap().parameters.max_bandwidth, Some(3 << 20));
        let much = request(MigrateFlags::LIVE, &[("bandwidth", u64::MAX.into())]);
        assert_eq!(
            Side::Source.settings(&much, None).unwrap_err().message(),
            "numerical overflow: bandwidth must be less than 8796093022208"
        );
        assert!(Side::Destination.settings(&much, None).is_ok());
        let much = request(MigrateFlags::LIVE, &[("bandwidth.postcopy", u64::MAX.into())]);
        assert_eq!(
            Side::Destination.settings(&much, None).unwrap_err().message(),
            "numerical overflow: migration parameter 'bandwidth.postcopy' must be less than 17592186044416"
        );
    }
}
