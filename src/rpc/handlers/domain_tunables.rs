//! How much of the host a domain may use.

use ferrovirt_protocol::remote::procedure::*;
use ferrovirt_protocol::remote::*;

use super::domain::{referred, state};
use super::domain_stats::counted;
use crate::drivers::domain::tunables::{self, Limits};
use crate::error::Result;
use crate::rpc::convert;
use crate::rpc::router::{Call, Routes};

pub fn routes(r: &mut Routes) {
    r.on::<DomainGetSchedulerType>(scheduler_type);
    r.on::<DomainGetSchedulerParametersFlags>(scheduler);
    r.older_with::<DomainGetSchedulerParameters, DomainGetSchedulerParametersFlags>(
        |args| DomainGetSchedulerParametersFlagsArgs { dom: args.dom, nparams: args.nparams, flags: 0 },
        |ret| DomainGetSchedulerParametersRet { params: ret.params },
    );
    r.on::<DomainSetSchedulerParametersFlags>(set_scheduler);
    r.older::<DomainSetSchedulerParameters, DomainSetSchedulerParametersFlags>(|args| {
        DomainSetSchedulerParametersFlagsArgs { dom: args.dom, params: args.params, flags: 0 }
    });
    r.on::<DomainGetBlkioParameters>(blkio);
    r.on::<DomainSetBlkioParameters>(set_blkio);
    r.on::<DomainGetMemoryParameters>(memory);
    r.on::<DomainSetMemoryParameters>(set_memory);
    r.on::<DomainGetNumaParameters>(numa);
    r.on::<DomainSetNumaParameters>(set_numa);
    r.on::<DomainGetInterfaceParameters>(interface);
    r.on::<DomainSetInterfaceParameters>(set_interface);
    r.on::<DomainSetThrottleGroup>(set_throttle_group);
    r.on::<DomainDelThrottleGroup>(remove_throttle_group);
    r.on::<DomainGetBlockIoTune>(block_io_tune);
    r.on::<DomainSetBlockIoTune>(set_block_io_tune);
}

async fn scheduler_type(call: Call, args: DomainGetSchedulerTypeArgs) -> Result<DomainGetSchedulerTypeRet> {
    let (name, nparams) = Limits::scheduler(state(&call, &args.dom)?.is_active())?;
    Ok(DomainGetSchedulerTypeRet { r#type: name.to_owned(), nparams })
}

async fn scheduler(
    call: Call,
    args: DomainGetSchedulerParametersFlagsArgs,
) -> Result<DomainGetSchedulerParametersFlagsRet> {
    let params = tunables::limits(&*state(&call, &args.dom)?, Limits::Scheduler, args.flags)?;
    Ok(DomainGetSchedulerParametersFlagsRet { params: counted(params, args.nparams).0 })
}

async fn set_scheduler(call: Call, args: DomainSetSchedulerParametersFlagsArgs) -> Result<()> {
    set(call, &args.dom, Limits::Scheduler, args.params, args.flags).await
}

/// How many there can be, which needs no control group to know.
const BLKIO_PARAMETERS: i32 = 6;

async fn blkio(call: Call, args: DomainGetBlkioParametersArgs) -> Result<DomainGetBlkioParametersRet> {
    let state = state(&call, &args.dom)?;
    if args.nparams == 0 {
        return Ok(DomainGetBlkioParametersRet { params: Vec::new(), nparams: BLKIO_PARAMETERS });
    }
    let params = tunables::limits(&state, Limits::Blkio, args.flags)?;
    let (params, nparams) = counted(params, args.nparams);
    Ok(DomainGetBlkioParametersRet { params, nparams })
}

async fn set_blkio(call: Call, args: DomainSetBlkioParametersArgs) -> Result<()> {
    set(call, &args.dom, Limits::Blkio, args.params, args.flags).await
}

async fn memory(call: Call, args: DomainGetMemoryParametersArgs) -> Result<DomainGetMemoryParametersRet> {
    let state = state(&call, &args.dom)?;
    if args.nparams == 0 {
        let nparams = tunables::count(&state, Limits::Memory, args.flags)?;
        return Ok(DomainGetMemoryParametersRet { params: Vec::new(), nparams });
    }
    let params = tunables::limits(&state, Limits::Memory, args.flags)?;
    let (params, nparams) = counted(params, args.nparams);
    Ok(DomainGetMemoryParametersRet { params, nparams })
}

async fn set_memory(call: Call, args: DomainSetMemoryParametersArgs) -> Result<()> {
    set(call, &args.dom, Limits::Memory, args.params, args.flags).await
}

async fn numa(call: Call, args: DomainGetNumaParametersArgs) -> Result<DomainGetNumaParametersRet> {
    let params = tunables::limits(&*state(&call, &args.dom)?, Limits::Numa, args.flags)?;
    let (params, nparams) = counted(params, args.nparams);
    Ok(DomainGetNumaParametersRet { params, nparams })
}

async fn set_numa(call: Call, args: DomainSetNumaParametersArgs) -> Result<()> {
    set(call, &args.dom, Limits::Numa, args.params, args.flags).await
}

async fn interface(
    call: Call,
    args: DomainGetInterfaceParametersArgs,
) -> Result<DomainGetInterfaceParametersRet> {
    let state = state(&call, &args.dom)?;
    // Whoever asks how many there are may name no interface.
    let device = Some(args.device.as_str()).filter(|_| args.nparams != 0);
    let (params, nparams) = counted(tunables::bandwidth(&state, device, args.flags)?, args.nparams);
    Ok(DomainGetInterfaceParametersRet { params, nparams })
}

async fn set_interface(call: Call, args: DomainSetInterfaceParametersArgs) -> Result<()> {
    let domain = referred(&call, &args.dom)?;
    let params = convert::from_params(args.params);
    call.drivers.domains.set_bandwidth(domain, args.device, params, args.flags).await
}

async fn set_throttle_group(call: Call, args: DomainSetThrottleGroupArgs) -> Result<()> {
    let domain = referred(&call, &args.dom)?;
    let params = convert::from_params(args.params);
    call.drivers.domains.set_throttle_group(domain, args.group, params, args.flags).await
}

async fn remove_throttle_group(call: Call, args: DomainDelThrottleGroupArgs) -> Result<()> {
    let domain = referred(&call, &args.dom)?;
    let group = args.group.unwrap_or_default();
    call.drivers.domains.remove_throttle_group(domain, group, args.flags).await
}

async fn set(call: Call, dom: &Domain, limits: Limits, params: Vec<TypedParam>, flags: u32) -> Result<()> {
    let domain = referred(&call, dom)?;
    call.drivers.domains.set_limits(domain, limits, convert::from_params(params), flags).await
}

async fn block_io_tune(call: Call, args: DomainGetBlockIoTuneArgs) -> Result<DomainGetBlockIoTuneRet> {
    let domain = referred(&call, &args.dom)?;
    let disk = args.disk.as_deref().unwrap_or_default();
    // Whoever asks how many there are may name no disk.
    let params = match args.nparams {
        0 if disk.is_empty() => return Ok(DomainGetBlockIoTuneRet { params: Vec::new(), nparams: 20 }),
        _ => call.drivers.domains.throttle(&domain, disk, args.flags)?,
    };
    let (params, nparams) = counted(params, args.nparams);
    Ok(DomainGetBlockIoTuneRet { params, nparams })
}

async fn set_block_io_tune(call: Call, args: DomainSetBlockIoTuneArgs) -> Result<()> {
    let domain = referred(&call, &args.dom)?;
    let params = convert::from_params(args.params);
    call.drivers.domains.set_throttle(domain, args.disk, params, args.flags).await
}
