//! The host: processors, memory, and what it can run.

use ferrovirt_protocol::remote::procedure::*;
use ferrovirt_protocol::remote::{self, *};

use super::domain_stats::counted;
use crate::drivers::capabilities::Wanted;
use crate::drivers::domain::stats::single::STRING_OKAY;
use crate::drivers::node::{Allocation, Which, Whose};
use crate::error::{Error, Origin, Result};
use crate::rpc::convert;
use crate::rpc::router::{Call, Routes};

/// The most numbers that one answer about cells holds.
const MAX_CELLS: usize = 1024;
const MAX_STATS: i32 = 16;
/// The flag of domain capabilities.
const DISABLE_DEPRECATED_FEATURES: u32 = 1;

pub fn routes(r: &mut Routes) {
    r.on::<NodeGetInfo>(get_info);
    r.on::<procedure::NodeGetCpuMap>(get_cpu_map);
    r.on::<procedure::NodeGetCpuStats>(get_cpu_stats);
    r.on::<procedure::NodeGetMemoryStats>(get_memory_stats);
    r.on::<procedure::NodeGetMemoryParameters>(get_memory_parameters);
    r.on::<NodeGetSevInfo>(get_sev_info);
    r.on::<NodeGetFreeMemory>(get_free_memory);
    r.on::<NodeGetCellsFreeMemory>(get_cells_free_memory);
    r.on::<NodeGetFreePages>(get_free_pages);
    r.on::<NodeGetSecurityModel>(get_security_model);
    r.on::<ConnectGetSysinfo>(get_sysinfo);
    r.on::<ConnectGetCapabilities>(get_capabilities);
    r.on::<ConnectGetDomainCapabilities>(get_domain_capabilities);
    r.on::<ConnectGetCpuModelNames>(get_cpu_model_names);
    r.on::<procedure::NodeSetMemoryParameters>(set_memory_parameters);
    r.on::<NodeAllocPages>(alloc_pages);
    r.on::<NodeSuspendForDuration>(suspend_for_duration);
    r.on::<ConnectCompareCpu>(compare_cpu);
    r.on::<ConnectCompareHypervisorCpu>(compare_hypervisor_cpu);
    r.on::<ConnectBaselineCpu>(baseline_cpu);
    r.on::<ConnectBaselineHypervisorCpu>(baseline_hypervisor_cpu);
    r.on::<ConnectGetMaxVcpus>(get_max_vcpus);
    r.on::<ConnectGetVersion>(get_version);
}

async fn get_info(call: Call, (): ()) -> Result<NodeGetInfoRet> {
    let info = call.drivers.node.info()?;
    let mut model = [0; 32];
    // The last byte stays 0, where C clients look for the end.
    model.iter_mut().take(31).zip(info.model.bytes()).for_each(|(to, from)| *to = from);
    Ok(NodeGetInfoRet {
        model,
        memory: info.memory_kib,
        cpus: int(info.cpus),
        mhz: int(info.mhz),
        nodes: int(info.nodes),
        sockets: int(info.sockets),
        cores: int(info.cores),
        threads: int(info.threads),
    })
}

async fn get_cpu_map(call: Call, args: NodeGetCpuMapArgs) -> Result<NodeGetCpuMapRet> {
    no_flags(args.flags, "virHostCPUGetMap")?;
    let map = call.drivers.node.online()?;
    let wanted = |want: i32| want != 0;
    Ok(NodeGetCpuMapRet {
        cpumap: if wanted(args.need_map) { map.online.to_bytes(map.present.div_ceil(8)) } else { Vec::new() },
        online: if wanted(args.need_online) { map.online.count() as u32 } else { 0 },
        ret: i32::try_from(map.present).unwrap_or(i32::MAX),
    })
}

async fn get_cpu_stats(call: Call, args: NodeGetCpuStatsArgs) -> Result<NodeGetCpuStatsRet> {
    let which = Which::from_number(args.cpu_num)?;
    no_flags(args.flags, "virHostCPUGetStats")?;
    let Wants::Values = wants(args.nparams, 4, "virHostCPUGetStatsLinux")? else {
        return Ok(NodeGetCpuStatsRet { params: Vec::new(), nparams: 4 });
    };
    let stats = call.drivers.node.cpu_stats(which)?;
    let fields =
        [("kernel", stats.kernel), ("user", stats.user), ("idle", stats.idle), ("iowait", stats.iowait)];
    let stat = |(field, value): (&str, u64)| remote::NodeGetCpuStats { field: field.to_owned(), value };
    Ok(NodeGetCpuStatsRet { params: fields.into_iter().map(stat).collect(), nparams: 0 })
}

async fn get_memory_stats(call: Call, args: NodeGetMemoryStatsArgs) -> Result<NodeGetMemoryStatsRet> {
    let whose = Whose::from_number(args.cell_num)?;
    no_flags(args.flags, "virHostMemGetStats")?;
    let stats = call.drivers.node.memory_stats(whose)?;
    let mut fields = vec![("total", stats.total), ("free", stats.free)];
    if let Some(cache) = stats.cache.filter(|_| whose == Whose::Host) {
        fields.extend([("buffers", cache.buffers), ("cached", cache.cached)]);
    }
    let count = fields.len() as i32;
    let Wants::Values = wants(args.nparams, count, "virHostMemGetStatsLinux")? else {
        return Ok(NodeGetMemoryStatsRet { params: Vec::new(), nparams: count });
    };
    let stat = |(field, value): (&str, u64)| remote::NodeGetMemoryStats { field: field.to_owned(), value };
    Ok(NodeGetMemoryStatsRet { params: fields.into_iter().map(stat).collect(), nparams: 0 })
}

/// A client asks twice: how many values there are, then for that many.
enum Wants {
    Count,
    Values,
}

fn wants(given: i32, expected: i32, function: &'static str) -> Result<Wants> {
    match given {
        0 => Ok(Wants::Count),
        _ if given == expected => Ok(Wants::Values),
        ..0 => Err(refused("nparams must be non-negative")),
        _ if given > MAX_STATS => Err(refused("nparams too large")),
        _ => {
            let sentence = format!("nparams in {function} must be equal to {expected}");
            Err(Error::refused_argument(function, "nparams", sentence))
        }
    }
}

fn refused(sentence: &'static str) -> Error {
    Error::internal_error(sentence).from_origin(Origin::RPC)
}

async fn get_memory_parameters(
    call: Call,
    args: NodeGetMemoryParametersArgs,
) -> Result<NodeGetMemoryParametersRet> {
    no_flags(args.flags & !STRING_OKAY, "virHostMemGetParameters")?;
    let (params, nparams) = counted(call.drivers.node.memory_merging()?, args.nparams);
    Ok(NodeGetMemoryParametersRet { params, nparams })
}

async fn get_sev_info(_: Call, args: NodeGetSevInfoArgs) -> Result<NodeGetSevInfoRet> {
    no_flags(args.flags & !STRING_OKAY, "qemuNodeGetSEVInfo")?;
    Err(Error::operation_unsupported("QEMU does not support SEV guest"))
}

async fn get_free_memory(call: Call, (): ()) -> Result<NodeGetFreeMemoryRet> {
    Ok(NodeGetFreeMemoryRet { free_mem: call.drivers.node.free_memory()? })
}

async fn get_cells_free_memory(
    call: Call,
    args: NodeGetCellsFreeMemoryArgs,
) -> Result<NodeGetCellsFreeMemoryRet> {
    let function = "virNodeGetCellsFreeMemory";
    let Ok(max @ 1..) = u32::try_from(args.maxcells) else {
        return Err(bad_argument(function, "maxCells", "must be greater than zero"));
    };
    if max as usize > MAX_CELLS {
        return Err(refused("maxcells > REMOTE_NODE_MAX_CELLS"));
    }
    if args.start_cell < 0 {
        return Err(bad_argument(function, "startCell", "must be zero or greater"));
    }
    Ok(NodeGetCellsFreeMemoryRet { cells: call.drivers.node.cells_free_memory(args.start_cell, max)? })
}

async fn get_free_pages(call: Call, args: NodeGetFreePagesArgs) -> Result<NodeGetFreePagesRet> {
    if args.pages.len().saturating_mul(args.cell_count as usize) > MAX_CELLS {
        return Err(refused("the result won't fit into REMOTE_NODE_MAX_CELLS"));
    }
    for (given, name) in [(args.pages.len(), "npages"), (args.cell_count as usize, "cellCount")] {
        if given == 0 {
            return Err(bad_argument("virNodeGetFreePages", name, "must not be zero"));
        }
    }
    no_flags(args.flags, "qemuNodeGetFreePages")?;
    let counts = call.drivers.node.free_pages(&args.pages, args.start_cell, args.cell_count)?;
    Ok(NodeGetFreePagesRet { counts })
}

async fn set_memory_parameters(call: Call, args: NodeSetMemoryParametersArgs) -> Result<()> {
    no_flags(args.flags, "virHostMemSetParameters")?;
    call.drivers.node.set_merging(convert::from_params(args.params)).await
}

async fn alloc_pages(call: Call, args: NodeAllocPagesArgs) -> Result<NodeAllocPagesRet> {
    const SET: u32 = 1;
    no_flags(args.flags & !SET, "qemuNodeAllocPages")?;
    let how = if args.flags & SET == 0 { Allocation::Add } else { Allocation::Set };
    let pages = args.page_sizes.into_iter().zip(args.page_counts).collect();
    let done = call.drivers.node.allocate_pages(pages, args.start_cell, args.cell_count, how).await?;
    Ok(NodeAllocPagesRet { ret: i32::try_from(done).unwrap_or(i32::MAX) })
}

/// A host is not put to sleep through this daemon; its capabilities offer no way to do it.
async fn suspend_for_duration(_: Call, args: NodeSuspendForDurationArgs) -> Result<()> {
    no_flags(args.flags, "virNodeSuspend")?;
    let unsupported = |what: &'static str| Error::argument_unsupported(what).from_origin(Origin::NONE);
    Err(match args.target {
        0 => unsupported("Suspend-to-RAM"),
        1 => unsupported("Suspend-to-Disk"),
        2 => unsupported("Hybrid-Suspend"),
        _ => Error::invalid_arg("Invalid suspend target").from_origin(Origin::NONE),
    })
}

fn bad_argument(function: &'static str, name: &'static str, what: &str) -> Error {
    Error::refused_argument(function, name, format!("{name} in {function} {what}"))
}

async fn get_security_model(call: Call, (): ()) -> Result<NodeGetSecurityModelRet> {
    let model = call.drivers.capabilities.security().first();
    let text = |text: &str| text.bytes().chain([0]).collect();
    Ok(NodeGetSecurityModelRet {
        model: text(model.map_or("", |model| model.model)),
        doi: text(model.map_or("", |model| model.doi)),
    })
}

async fn get_sysinfo(call: Call, args: ConnectGetSysinfoArgs) -> Result<ConnectGetSysinfoRet> {
    no_flags(args.flags, "qemuConnectGetSysinfo")?;
    Ok(ConnectGetSysinfoRet { sysinfo: call.drivers.node.sysinfo()? })
}

async fn get_capabilities(call: Call, (): ()) -> Result<ConnectGetCapabilitiesRet> {
    let capabilities = call.drivers.capabilities.document().await?.to_string();
    Ok(ConnectGetCapabilitiesRet { capabilities })
}

/// The emulator that a question is about; what is absent has its default.
fn wanted<'a>(
    emulator: &'a Option<String>,
    arch: &'a Option<String>,
    machine: &'a Option<String>,
    virt_type: &'a Option<String>,
) -> Wanted<'a> {
    Wanted {
        emulator: emulator.as_deref(),
        arch: arch.as_deref(),
        machine: machine.as_deref(),
        virt_type: virt_type.as_deref(),
    }
}

async fn get_domain_capabilities(
    call: Call,
    args: ConnectGetDomainCapabilitiesArgs,
) -> Result<ConnectGetDomainCapabilitiesRet> {
    // No feature of an x86 CPU is deprecated.
    no_flags(args.flags & !DISABLE_DEPRECATED_FEATURES, "qemuConnectGetDomainCapabilities")?;
    let wanted = wanted(&args.emulatorbin, &args.arch, &args.machine, &args.virttype);
    let capabilities = call.drivers.capabilities.of_domain(wanted).await?;
    Ok(ConnectGetDomainCapabilitiesRet { capabilities })
}

async fn get_cpu_model_names(
    call: Call,
    args: ConnectGetCpuModelNamesArgs,
) -> Result<ConnectGetCpuModelNamesRet> {
    no_flags(args.flags, "qemuConnectGetCPUModelNames")?;
    let mut models = call.drivers.capabilities.cpu_models(&args.arch)?;
    let ret = i32::try_from(models.len()).unwrap_or(i32::MAX);
    if args.need_results == 0 {
        models.clear();
    }
    Ok(ConnectGetCpuModelNamesRet { models, ret })
}

async fn compare_cpu(call: Call, args: ConnectCompareCpuArgs) -> Result<ConnectCompareCpuRet> {
    let result = call.drivers.capabilities.compare_cpu(&args.xml, args.flags)?;
    Ok(ConnectCompareCpuRet { result: result as i32 })
}

async fn compare_hypervisor_cpu(
    call: Call,
    args: ConnectCompareHypervisorCpuArgs,
) -> Result<ConnectCompareHypervisorCpuRet> {
    let wanted = wanted(&args.emulator, &args.arch, &args.machine, &args.virttype);
    let capabilities = &call.drivers.capabilities;
    let result = capabilities.compare_hypervisor_cpu(wanted, &args.xml_cpu, args.flags).await?;
    Ok(ConnectCompareHypervisorCpuRet { result: result as i32 })
}

async fn baseline_cpu(call: Call, args: ConnectBaselineCpuArgs) -> Result<ConnectBaselineCpuRet> {
    let cpu = call.drivers.capabilities.baseline_cpu(&args.xml_cpus, args.flags)?;
    Ok(ConnectBaselineCpuRet { cpu })
}

async fn baseline_hypervisor_cpu(
    call: Call,
    args: ConnectBaselineHypervisorCpuArgs,
) -> Result<ConnectBaselineHypervisorCpuRet> {
    let wanted = wanted(&args.emulator, &args.arch, &args.machine, &args.virttype);
    let capabilities = &call.drivers.capabilities;
    let cpu = capabilities.baseline_hypervisor_cpu(wanted, &args.xml_cpus, args.flags).await?;
    Ok(ConnectBaselineHypervisorCpuRet { cpu })
}

async fn get_max_vcpus(call: Call, args: ConnectGetMaxVcpusArgs) -> Result<ConnectGetMaxVcpusRet> {
    Ok(ConnectGetMaxVcpusRet { max_vcpus: int(call.drivers.capabilities.max_vcpus(args.r#type.as_deref())?) })
}

async fn get_version(call: Call, (): ()) -> Result<ConnectGetVersionRet> {
    Ok(ConnectGetVersionRet { hv_ver: call.drivers.capabilities.version().await?.into() })
}

/// A call that takes no flags yet; `function` is the driver's in libvirt.
fn no_flags(flags: u32, function: &'static str) -> Result<()> {
    if flags == 0 { Ok(()) } else { Err(Error::unsupported_flags(flags, function)) }
}

fn int(number: u32) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}
