//! What a guest has of processors and memory, changed while it runs and for its next start.

use ferrovirt_protocol::remote::procedure::*;
use ferrovirt_protocol::remote::*;

use super::domain::referred;
use crate::drivers::domain::flags::{Impact, SetMemoryFlags, no_flags};
use crate::drivers::domain::iothreads::Change;
use crate::drivers::domain::pins::Threads;
use crate::drivers::params::ParamType;
use crate::error::{Error, Result};
use crate::rpc::convert;
use crate::rpc::router::{Call, Routes};
use crate::util::bitmap::Bitmap;

/// The calls without flags mean the running guest, except where they name a maximum.
pub fn routes(r: &mut Routes) {
    r.on::<DomainSetVcpusFlags>(set_vcpus);
    r.older::<DomainSetVcpus, DomainSetVcpusFlags>(|args| DomainSetVcpusFlagsArgs {
        dom: args.dom,
        nvcpus: args.nvcpus,
        flags: Impact::LIVE.bits(),
    });
    r.on::<DomainSetVcpu>(set_vcpu);
    r.on::<DomainSetMemoryFlags>(set_memory);
    r.older::<DomainSetMemory, DomainSetMemoryFlags>(|args| DomainSetMemoryFlagsArgs {
        dom: args.dom,
        memory: args.memory,
        flags: Impact::LIVE.bits(),
    });
    r.older::<DomainSetMaxMemory, DomainSetMemoryFlags>(|args| DomainSetMemoryFlagsArgs {
        dom: args.dom,
        memory: args.memory,
        flags: SetMemoryFlags::MAXIMUM.bits(),
    });
    r.on::<DomainSetMemoryStatsPeriod>(set_memory_stats_period);
    r.on::<DomainPinVcpuFlags>(pin_vcpu);
    r.older::<DomainPinVcpu, DomainPinVcpuFlags>(|args| DomainPinVcpuFlagsArgs {
        dom: args.dom,
        vcpu: args.vcpu,
        cpumap: args.cpumap,
        flags: Impact::LIVE.bits(),
    });
    r.on::<DomainPinEmulator>(pin_emulator);
    r.on::<DomainPinIothread>(pin_iothread);
    r.on::<DomainAddIothread>(add_iothread);
    r.on::<DomainDelIothread>(del_iothread);
    r.on::<DomainSetIothreadParams>(set_iothread_params);
    r.on::<DomainSetPerfEvents>(set_perf_events);
    r.on::<DomainSetLaunchSecurityState>(set_launch_security_state);
}

async fn add_iothread(call: Call, args: DomainAddIothreadArgs) -> Result<()> {
    let domain = referred(&call, &args.dom)?;
    call.drivers.domains.change_iothread(domain, args.iothread_id, Change::Add, args.flags).await
}

async fn del_iothread(call: Call, args: DomainDelIothreadArgs) -> Result<()> {
    let domain = referred(&call, &args.dom)?;
    call.drivers.domains.change_iothread(domain, args.iothread_id, Change::Remove, args.flags).await
}

async fn set_iothread_params(call: Call, args: DomainSetIothreadParamsArgs) -> Result<()> {
    let domain = referred(&call, &args.dom)?;
    let change = Change::Tune(convert::from_params(args.params));
    call.drivers.domains.change_iothread(domain, args.iothread_id, change, args.flags).await
}

async fn set_perf_events(call: Call, args: DomainSetPerfEventsArgs) -> Result<()> {
    let domain = referred(&call, &args.dom)?;
    let params = convert::from_params(args.params);
    call.drivers.domains.set_perf_events(domain, params, args.flags).await
}

/// No guest here has memory that the host cannot read.
async fn set_launch_security_state(call: Call, args: DomainSetLaunchSecurityStateArgs) -> Result<()> {
    no_flags(args.flags, "qemuDomainSetLaunchSecurityState")?;
    convert::from_params(args.params).validate(&[
        ("sev-secret-header", ParamType::Text),
        ("sev-secret", ParamType::Text),
        ("sev-secret-set-address", ParamType::Ullong),
    ])?;
    referred(&call, &args.dom)?;
    let sentence = "setting a launch secret is only supported in SEV-enabled domains";
    Err(Error::operation_unsupported(sentence))
}

async fn set_vcpus(call: Call, args: DomainSetVcpusFlagsArgs) -> Result<()> {
    let domain = referred(&call, &args.dom)?;
    call.drivers.domains.set_vcpus(domain, args.nvcpus, args.flags).await
}

async fn set_vcpu(call: Call, args: DomainSetVcpuArgs) -> Result<()> {
    let domain = referred(&call, &args.dom)?;
    call.drivers.domains.set_vcpu(domain, &args.cpumap, args.state, args.flags).await
}

async fn set_memory(call: Call, args: DomainSetMemoryFlagsArgs) -> Result<()> {
    if args.memory == 0 {
        let sentence = "memory in virDomainSetMemoryFlags must not be zero";
        return Err(Error::refused_argument("virDomainSetMemoryFlags", "memory", sentence));
    }
    let domain = referred(&call, &args.dom)?;
    call.drivers.domains.set_memory(domain, args.memory, args.flags).await
}

async fn set_memory_stats_period(call: Call, args: DomainSetMemoryStatsPeriodArgs) -> Result<()> {
    let domain = referred(&call, &args.dom)?;
    call.drivers.domains.set_memory_stats_period(domain, args.period, args.flags).await
}

async fn pin_vcpu(call: Call, args: DomainPinVcpuFlagsArgs) -> Result<()> {
    let domain = referred(&call, &args.dom)?;
    let cpus = Bitmap::from_bytes(&args.cpumap);
    call.drivers.domains.pin(domain, Threads::Vcpu(args.vcpu), cpus, args.flags).await
}

async fn pin_emulator(call: Call, args: DomainPinEmulatorArgs) -> Result<()> {
    let domain = referred(&call, &args.dom)?;
    let cpus = Bitmap::from_bytes(&args.cpumap);
    call.drivers.domains.pin(domain, Threads::Emulator, cpus, args.flags).await
}

async fn pin_iothread(call: Call, args: DomainPinIothreadArgs) -> Result<()> {
    let domain = referred(&call, &args.dom)?;
    let cpus = Bitmap::from_bytes(&args.cpumap);
    call.drivers.domains.pin(domain, Threads::IoThread(args.iothreads_id), cpus, args.flags).await
}
