//! What a domain uses of the host: processors, memory, images.

use ferrovirt_protocol::remote::procedure::*;
use ferrovirt_protocol::remote::*;

use super::domain::{referred, state};
use crate::drivers::domain::usage;
use crate::error::{Error, Result};
use crate::rpc::router::{Call, Routes};

pub fn routes(r: &mut Routes) {
    r.on::<DomainGetVcpuPinInfo>(get_vcpu_pin_info);
    r.on::<DomainGetEmulatorPinInfo>(get_emulator_pin_info);
    r.on::<DomainGetBlockInfo>(get_block_info);
    r.on::<DomainMemoryStats>(memory_stats);
}

async fn get_vcpu_pin_info(call: Call, args: DomainGetVcpuPinInfoArgs) -> Result<DomainGetVcpuPinInfoRet> {
    let host = call.drivers.node.online()?.online;
    let state = state(&call, &args.dom)?;
    let (max, len) = maps(args.ncpumaps, args.maplen, "ncpumaps")?;
    let maps = usage::vcpu_pins(&state, &host, max, len, args.flags)?;
    let num = i32::try_from(maps.len()).unwrap_or(i32::MAX);
    Ok(DomainGetVcpuPinInfoRet { cpumaps: maps.concat(), num })
}

async fn get_emulator_pin_info(
    call: Call,
    args: DomainGetEmulatorPinInfoArgs,
) -> Result<DomainGetEmulatorPinInfoRet> {
    let host = call.drivers.node.online()?.online;
    let state = state(&call, &args.dom)?;
    let (_, len) = maps(1, args.maplen, "ncpumaps")?;
    let cpumaps = usage::emulator_pin(&state, &host, len, args.flags)?;
    Ok(DomainGetEmulatorPinInfoRet { cpumaps, ret: 1 })
}

async fn get_block_info(call: Call, args: DomainGetBlockInfoArgs) -> Result<DomainGetBlockInfoRet> {
    let domain = referred(&call, &args.dom)?;
    let info = call.drivers.domains.block_info(&domain, &args.path, args.flags).await?;
    Ok(DomainGetBlockInfoRet {
        allocation: info.allocation,
        capacity: info.capacity,
        physical: info.physical,
    })
}

async fn memory_stats(call: Call, args: DomainMemoryStatsArgs) -> Result<DomainMemoryStatsRet> {
    let domain = referred(&call, &args.dom)?;
    let max = usize::try_from(args.max_stats).unwrap_or(usize::MAX);
    let stats = call.drivers.domains.memory_stats(domain, max, args.flags).await?;
    let stats = stats.into_iter().map(|stat| DomainMemoryStat { tag: stat.tag, val: stat.value });
    Ok(DomainMemoryStatsRet { stats: stats.collect() })
}

/// How many maps of how many bytes a client may ask for, as libvirt limits them; `count` is the call's name
/// for the former.
pub(super) fn maps(number: i32, len: i32, count: &str) -> Result<(usize, usize)> {
    const MAX_VCPUS: usize = 16384;
    const MAX_BYTES: usize = 8_388_608;
    let size = |number: i32| usize::try_from(number).unwrap_or(0);
    let (number, len) = (size(number), size(len));
    if number > MAX_VCPUS {
        return Err(Error::internal_error(format!("{count} > REMOTE_VCPUINFO_MAX")));
    }
    if number.saturating_mul(len) > MAX_BYTES {
        return Err(Error::internal_error("maxinfo * maplen > REMOTE_CPUMAPS_MAX"));
    }
    Ok((number, len))
}
