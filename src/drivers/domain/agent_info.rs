//! All that an agent tells of its guest, as one list of named values.

use super::Domains;
use super::agent::live_agent;
use super::flags::no_flags;
use crate::conf::domain::Domain;
use crate::drivers::params::{Name, Params};
use crate::error::{Error, Result};
use crate::qemu::agent::AgentError;
use crate::qemu::agent::guest::{
    self, DiskAddress, Filesystem, GuestDisk, Interface, IpFamily, Load, Os, Timezone, User,
};
use crate::qemu::job::{DomainHandle, LiveAgent};

bitflags::bitflags! {
    /// `virDomainGuestInfoTypes`
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    struct Topics: u32 {
        const USERS = 1;
        const OS = 1 << 1;
        const TIMEZONE = 1 << 2;
        const HOSTNAME = 1 << 3;
        const FILESYSTEM = 1 << 4;
        const DISKS = 1 << 5;
        const INTERFACES = 1 << 6;
        const LOAD = 1 << 7;
    }
}

/// Whether it is an error that an agent does not know a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unknown {
    Fails,
    IsLeftOut,
}

impl Unknown {
    fn allow<T>(self, answer: Result<T, AgentError>) -> Result<Option<T>, AgentError> {
        match answer {
            Err(error) if self == Self::IsLeftOut && error.is_unsupported() => Ok(None),
            answer => answer.map(Some),
        }
    }
}

impl Domains {
    /// Some topics, or whatever the agent knows something of.
    pub async fn guest_info(&self, mut domain: DomainHandle, types: u32, flags: u32) -> Result<Params> {
        no_flags(flags, "qemuDomainGetGuestInfo")?;
        let unknown = types & !Topics::all().bits();
        if unknown != 0 {
            let sentence = format!("unsupported guest information types '0x{unknown:x}'");
            return Err(Error::invalid_arg(sentence));
        }
        let (topics, unknown) = match types {
            0 => (Topics::all(), Unknown::IsLeftOut),
            types => (Topics::from_bits_truncate(types), Unknown::Fails),
        };
        let state = domain.state();
        let job = domain.begin_agent().await?;
        let agent = live_agent(&state, &job)?;
        let live = super::reads::running(&state)?;
        Ok(collect(&agent, live, topics, unknown).await?)
    }
}

/// In libvirt's order.
async fn collect(
    agent: &LiveAgent<'_>,
    domain: &Domain,
    topics: Topics,
    unknown: Unknown,
) -> Result<Params, AgentError> {
    let mut params = Params::default();
    if topics.contains(Topics::USERS)
        && let Some(users) = unknown.allow(User::all(agent).await)?
    {
        add_users(&mut params, users);
    }
    if topics.contains(Topics::OS)
        && let Some(os) = unknown.allow(Os::of(agent).await)?
    {
        add_os(&mut params, os);
    }
    if topics.contains(Topics::TIMEZONE)
        && let Some(timezone) = unknown.allow(Timezone::of(agent).await)?
    {
        add_text(&mut params, "timezone.name", timezone.name);
        params.push("timezone.offset", timezone.offset_s);
    }
    if topics.contains(Topics::HOSTNAME)
        && let Some(hostname) = unknown.allow(guest::hostname(agent).await)?
    {
        params.push("hostname", hostname);
    }
    if topics.contains(Topics::FILESYSTEM)
        && let Some(found) = unknown.allow(Filesystem::all(agent).await)?
        && !found.is_empty()
    {
        add_filesystems(&mut params, found, domain);
    }
    if topics.contains(Topics::DISKS)
        && let Some(disks) = unknown.allow(GuestDisk::all(agent).await)?
        && !disks.is_empty()
    {
        add_disks(&mut params, disks, domain);
    }
    if topics.contains(Topics::INTERFACES)
        && let Some(interfaces) = unknown.allow(Interface::all(agent).await)?
        && !interfaces.is_empty()
    {
        add_interfaces(&mut params, interfaces);
    }
    if topics.contains(Topics::LOAD)
        && let Some(load) = unknown.allow(Load::of(agent).await)?
    {
        params.push("load.1m", load.one_minute);
        params.push("load.5m", load.five_minutes);
        params.push("load.15m", load.fifteen_minutes);
    }
    Ok(params)
}

fn add_text(params: &mut Params, name: impl Into<Name>, text: Option<String>) {
    if let Some(text) = text {
        params.push(name, text);
    }
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

fn add_users(params: &mut Params, users: Vec<User>) {
    params.push("user.count", count(users.len()));
    for (at, user) in users.into_iter().enumerate() {
        params.push(format!("user.{at}.name"), user.name);
        add_text(params, format!("user.{at}.domain"), user.domain);
        params.push(format!("user.{at}.login-time"), user.login_time_ms);
    }
}

fn add_os(params: &mut Params, os: Os) {
    for (name, text) in [
        ("os.id", os.id),
        ("os.name", os.name),
        ("os.pretty-name", os.pretty_name),
        ("os.version", os.version),
        ("os.version-id", os.version_id),
        ("os.machine", os.machine),
        ("os.variant", os.variant),
        ("os.variant-id", os.variant_id),
        ("os.kernel-release", os.kernel_release),
        ("os.kernel-version", os.kernel_version),
    ] {
        add_text(params, name, text);
    }
}

fn target(address: &DiskAddress, domain: &Domain) -> Option<String> {
    address.find(domain)?.target.dev.as_deref().map(str::to_owned)
}

fn add_filesystems(params: &mut Params, found: Vec<Filesystem>, domain: &Domain) {
    params.push("fs.count", count(found.len()));
    for (at, filesystem) in found.into_iter().enumerate() {
        params.push(format!("fs.{at}.name"), filesystem.name);
        params.push(format!("fs.{at}.mountpoint"), filesystem.mountpoint);
        params.push(format!("fs.{at}.fstype"), filesystem.kind);
        if let Some(bytes) = filesystem.total_bytes {
            params.push(format!("fs.{at}.total-bytes"), bytes);
        }
        if let Some(bytes) = filesystem.used_bytes {
            params.push(format!("fs.{at}.used-bytes"), bytes);
        }
        params.push(format!("fs.{at}.disk.count"), count(filesystem.disks.len()));
        for (number, disk) in filesystem.disks.into_iter().enumerate() {
            let alias = target(&disk, domain);
            add_text(params, format!("fs.{at}.disk.{number}.alias"), alias);
            add_text(params, format!("fs.{at}.disk.{number}.serial"), disk.serial);
            add_text(params, format!("fs.{at}.disk.{number}.device"), disk.device);
        }
    }
}

fn add_disks(params: &mut Params, disks: Vec<GuestDisk>, domain: &Domain) {
    params.push("disk.count", count(disks.len()));
    for (at, disk) in disks.into_iter().enumerate() {
        params.push(format!("disk.{at}.name"), disk.name);
        params.push(format!("disk.{at}.partition"), disk.partition);
        let dependencies = disk.dependencies.unwrap_or_default();
        if !dependencies.is_empty() {
            params.push(format!("disk.{at}.dependency.count"), count(dependencies.len()));
        }
        for (number, name) in dependencies.into_iter().enumerate() {
            params.push(format!("disk.{at}.dependency.{number}.name"), name);
        }
        if let Some(address) = disk.address {
            let alias = target(&address, domain);
            add_text(params, format!("disk.{at}.serial"), address.serial);
            add_text(params, format!("disk.{at}.alias"), alias);
            add_text(params, format!("disk.{at}.guest_bus"), address.bus_kind);
        }
        add_text(params, format!("disk.{at}.guest_alias"), disk.alias);
    }
}

fn add_interfaces(params: &mut Params, interfaces: Vec<Interface>) {
    params.push("if.count", count(interfaces.len()));
    for (at, interface) in interfaces.into_iter().enumerate() {
        params.push(format!("if.{at}.name"), interface.name);
        add_text(params, format!("if.{at}.hwaddr"), interface.mac);
        params.push(format!("if.{at}.addr.count"), count(interface.addresses.len()));
        for (number, address) in interface.addresses.into_iter().enumerate() {
            let family = match address.family {
                IpFamily::V4 => "ipv4",
                IpFamily::V6 => "ipv6",
            };
            params.push(format!("if.{at}.addr.{number}.type"), family);
            params.push(format!("if.{at}.addr.{number}.addr"), address.address);
            params.push(format!("if.{at}.addr.{number}.prefix"), address.prefix);
        }
    }
}
