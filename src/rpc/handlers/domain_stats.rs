//! Numbers about domains, and looks into them.

use std::collections::HashSet;

use ferrovirt_protocol::remote::procedure::*;
use ferrovirt_protocol::remote::*;

use super::domain::{referred, state};
use crate::drivers::domain::flags::no_flags;
use crate::drivers::domain::stats::single::{self, STRING_OKAY};
use crate::drivers::params::Params;
use crate::error::{Error, Origin, Result};
use crate::rpc::access::about;
use crate::rpc::access::driver::Object;
use crate::rpc::convert;
use crate::rpc::router::{Call, Routes};

pub fn routes(r: &mut Routes) {
    r.on::<ConnectGetAllDomainStats>(get_all);
    r.on::<DomainBlockStats>(block_stats);
    r.on::<DomainBlockStatsFlags>(block_stats_flags);
    r.on::<DomainInterfaceStats>(interface_stats);
    r.on::<DomainGetCpuStats>(cpu_stats);
    r.on::<DomainGetPerfEvents>(perf_events);
    r.on::<DomainGetIothreadInfo>(iothread_info);
    r.on::<DomainGetDiskErrors>(disk_errors);
    r.on::<DomainGetLaunchSecurityInfo>(launch_security_info);
    r.on::<DomainStartDirtyRateCalc>(start_dirty_rate);
    r.on::<DomainSetBlockThreshold>(set_block_threshold);
    r.on::<DomainBlockResize>(block_resize);
    r.on::<DomainBlockPeek>(block_peek);
    r.on::<DomainMemoryPeek>(memory_peek);
}

/// As many values as a client has room for; or how many there are, if it asks for none.
pub(super) fn counted(params: Params, asked: i32) -> (Vec<TypedParam>, i32) {
    match usize::try_from(asked) {
        Ok(0) | Err(_) => (Vec::new(), i32::try_from(params.len()).unwrap_or(i32::MAX)),
        Ok(asked) => {
            let mut params = convert::params(params);
            params.truncate(asked);
            (params, 0)
        }
    }
}

async fn get_all(call: Call, args: ConnectGetAllDomainStatsArgs) -> Result<ConnectGetAllDomainStatsRet> {
    let mut only: Vec<_> = args.doms.iter().map(convert::uuid).collect();
    if call.is_judged() {
        let all = call.drivers.domains.list_all(0, about::of)?;
        let readable = call.readable(all, Object::clone).await;
        let readable = readable.iter().filter_map(Object::domain_uuid);
        match only.is_empty() {
            true => only = readable.collect(),
            false => {
                let readable: HashSet<_> = readable.collect();
                only.retain(|uuid| readable.contains(uuid));
            }
        }
        if only.is_empty() {
            return Ok(ConnectGetAllDomainStatsRet { ret_stats: Vec::new() });
        }
    }
    let records = call.drivers.domains.all_stats(only, args.stats, args.flags).await?;
    let records = records.into_iter().map(|record| DomainStatsRecord {
        dom: convert::domain(&record.domain),
        params: convert::params(record.params),
    });
    Ok(ConnectGetAllDomainStatsRet { ret_stats: records.collect() })
}

async fn block_stats(call: Call, args: DomainBlockStatsArgs) -> Result<DomainBlockStatsRet> {
    let domain = referred(&call, &args.dom)?;
    let stats = call.drivers.domains.block_stats(&domain, &args.path).await?;
    Ok(DomainBlockStatsRet {
        rd_req: stats.rd_operations.cast_signed(),
        rd_bytes: stats.rd_bytes.cast_signed(),
        wr_req: stats.wr_operations.cast_signed(),
        wr_bytes: stats.wr_bytes.cast_signed(),
        errs: -1,
    })
}

async fn block_stats_flags(call: Call, args: DomainBlockStatsFlagsArgs) -> Result<DomainBlockStatsFlagsRet> {
    no_flags(args.flags & !STRING_OKAY, "qemuDomainBlockStatsFlags")?;
    let domain = referred(&call, &args.dom)?;
    let stats = call.drivers.domains.block_stats(&domain, &args.path).await?;
    let mut values = Params::default();
    for (name, value) in [
        ("wr_bytes", stats.wr_bytes),
        ("wr_operations", stats.wr_operations),
        ("rd_bytes", stats.rd_bytes),
        ("rd_operations", stats.rd_operations),
        ("flush_operations", stats.flush_operations),
        ("wr_total_times", stats.wr_total_time_ns),
        ("rd_total_times", stats.rd_total_time_ns),
        ("flush_total_times", stats.flush_total_time_ns),
    ] {
        values.push(name, value.cast_signed());
    }
    let (params, nparams) = counted(values, args.nparams);
    Ok(DomainBlockStatsFlagsRet { params, nparams })
}

async fn interface_stats(call: Call, args: DomainInterfaceStatsArgs) -> Result<DomainInterfaceStatsRet> {
    let stats = single::interface_stats(&*state(&call, &args.dom)?, &args.device)?;
    Ok(DomainInterfaceStatsRet {
        rx_bytes: stats.receive.bytes.cast_signed(),
        rx_packets: stats.receive.packets.cast_signed(),
        rx_errs: stats.receive.errors.cast_signed(),
        rx_drop: stats.receive.dropped.cast_signed(),
        tx_bytes: stats.transmit.bytes.cast_signed(),
        tx_packets: stats.transmit.packets.cast_signed(),
        tx_errs: stats.transmit.errors.cast_signed(),
        tx_drop: stats.transmit.dropped.cast_signed(),
    })
}

async fn cpu_stats(call: Call, args: DomainGetCpuStatsArgs) -> Result<DomainGetCpuStatsRet> {
    if args.start_cpu == -1 && args.ncpus != 1 {
        let sentence = "ncpus must be 1 when start_cpu is -1";
        return Err(Error::refused_argument("virDomainGetCPUStats", "start_cpu", sentence.to_owned()));
    }
    let stats = single::cpu_stats(&*state(&call, &args.dom)?, args.start_cpu, args.flags)?;
    let count = i32::try_from(stats.len()).unwrap_or(i32::MAX);
    let (params, _) = counted(stats, i32::try_from(args.nparams).unwrap_or(i32::MAX));
    let given = i32::try_from(params.len()).unwrap_or(i32::MAX);
    Ok(DomainGetCpuStatsRet { nparams: if args.nparams == 0 { count } else { given }, params })
}

async fn perf_events(call: Call, args: DomainGetPerfEventsArgs) -> Result<DomainGetPerfEventsRet> {
    let events = single::perf_events(&*state(&call, &args.dom)?, args.flags)?;
    Ok(DomainGetPerfEventsRet { params: convert::params(events) })
}

async fn iothread_info(call: Call, args: DomainGetIothreadInfoArgs) -> Result<DomainGetIothreadInfoRet> {
    let host = call.drivers.node.online()?.online;
    let domain = referred(&call, &args.dom)?;
    let threads = call.drivers.domains.iothreads(&domain, &host, args.flags).await?;
    let info: Vec<_> = threads
        .into_iter()
        .map(|thread| DomainIothreadInfo {
            iothread_id: thread.id,
            cpumap: thread.cpus.to_bytes(thread.cpus.last().map_or(0, |last| last / 8 + 1)),
        })
        .collect();
    Ok(DomainGetIothreadInfoRet { ret: u32::try_from(info.len()).unwrap_or(u32::MAX), info })
}

async fn disk_errors(call: Call, args: DomainGetDiskErrorsArgs) -> Result<DomainGetDiskErrorsRet> {
    let domain = referred(&call, &args.dom)?;
    let state = domain.state();
    let disks = state.live.as_ref().map_or(0, |live| live.devices.disks.len());
    let errors = call.drivers.domains.disk_errors(domain, args.maxerrors as usize, args.flags).await?;
    let found = if args.maxerrors == 0 { disks } else { errors.len() };
    let errors = errors.into_iter().map(|error| DomainDiskError { disk: error.disk, error: error.code });
    Ok(DomainGetDiskErrorsRet { errors: errors.collect(), nerrors: i32::try_from(found).unwrap_or(i32::MAX) })
}

async fn start_dirty_rate(call: Call, args: DomainStartDirtyRateCalcArgs) -> Result<()> {
    let domain = referred(&call, &args.dom)?;
    call.drivers.domains.start_dirty_rate(domain, args.seconds, args.flags).await
}

async fn set_block_threshold(call: Call, args: DomainSetBlockThresholdArgs) -> Result<()> {
    let domain = referred(&call, &args.dom)?;
    call.drivers.domains.set_block_threshold(domain, &args.dev, args.threshold, args.flags).await
}

async fn block_resize(call: Call, args: DomainBlockResizeArgs) -> Result<()> {
    let domain = referred(&call, &args.dom)?;
    call.drivers.domains.block_resize(domain, &args.disk, args.size, args.flags).await
}

/// The largest piece that one answer holds.
const PEEK_MAX: u32 = 4_194_304;

fn check_piece(size: u32) -> Result<()> {
    match size {
        ..=PEEK_MAX => Ok(()),
        _ => Err(Error::internal_error("size > maximum buffer size").from_origin(Origin::RPC)),
    }
}

async fn block_peek(call: Call, args: DomainBlockPeekArgs) -> Result<DomainBlockPeekRet> {
    check_piece(args.size)?;
    let domain = referred(&call, &args.dom)?;
    let buffer =
        call.drivers.domains.block_peek(&domain, &args.path, args.offset, args.size, args.flags).await?;
    Ok(DomainBlockPeekRet { buffer })
}

async fn memory_peek(call: Call, args: DomainMemoryPeekArgs) -> Result<DomainMemoryPeekRet> {
    check_piece(args.size)?;
    let domain = referred(&call, &args.dom)?;
    let buffer = call.drivers.domains.memory_peek(domain, args.offset, args.size, args.flags).await?;
    Ok(DomainMemoryPeekRet { buffer })
}

/// No guest here has memory that the host cannot read.
async fn launch_security_info(
    call: Call,
    args: DomainGetLaunchSecurityInfoArgs,
) -> Result<DomainGetLaunchSecurityInfoRet> {
    no_flags(args.flags & !STRING_OKAY, "qemuDomainGetLaunchSecurityInfo")?;
    state(&call, &args.dom)?;
    Ok(DomainGetLaunchSecurityInfoRet { params: Vec::new() })
}
