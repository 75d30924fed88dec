//! Starting guests, and what is done with one as a whole.

use ferrovirt_protocol::remote::procedure::*;
use ferrovirt_protocol::remote::*;

use super::domain::{reference, referred};
use crate::error::Result;
use crate::rpc::router::{Call, Routes};

pub fn routes(r: &mut Routes) {
    r.on::<DomainCreateWithFlags>(create_with_flags);
    r.older_with::<DomainCreate, DomainCreateWithFlags>(
        |args| DomainCreateWithFlagsArgs { dom: args.dom, flags: 0 },
        |_| (),
    );
    r.on::<DomainCreateXml>(create_xml);
    r.on::<DomainDestroyFlags>(destroy);
    r.older::<DomainDestroy, DomainDestroyFlags>(|args| DomainDestroyFlagsArgs { dom: args.dom, flags: 0 });
    r.on::<DomainShutdownFlags>(shutdown);
    r.older::<DomainShutdown, DomainShutdownFlags>(|args| DomainShutdownFlagsArgs {
        dom: args.dom,
        flags: 0,
    });
    r.on::<DomainReboot>(reboot);
    r.on::<DomainReset>(reset);
    r.on::<DomainSuspend>(suspend);
    r.on::<DomainResume>(resume);
    r.on::<DomainAbortJobFlags>(abort_job);
    r.older::<DomainAbortJob, DomainAbortJobFlags>(|args| DomainAbortJobFlagsArgs {
        dom: args.dom,
        flags: 0,
    });
    r.on::<DomainInjectNmi>(inject_nmi);
    r.on::<DomainPmWakeup>(wake_up);
    r.on::<DomainSetLifecycleAction>(set_lifecycle_action);
}

async fn create_with_flags(call: Call, args: DomainCreateWithFlagsArgs) -> Result<DomainCreateWithFlagsRet> {
    let domain = referred(&call, &args.dom)?;
    let state = call.drivers.domains.start(domain, args.flags, call.client.id).await?;
    call.leave_nothing_behind();
    Ok(DomainCreateWithFlagsRet { dom: reference(&state) })
}

async fn create_xml(call: Call, args: DomainCreateXmlArgs) -> Result<DomainCreateXmlRet> {
    let state = call.drivers.domains.create(&args.xml_desc, args.flags, call.client.id).await?;
    call.leave_nothing_behind();
    Ok(DomainCreateXmlRet { dom: reference(&state) })
}

async fn destroy(call: Call, args: DomainDestroyFlagsArgs) -> Result<()> {
    let domain = referred(&call, &args.dom)?;
    call.drivers.domains.destroy(domain, args.flags).await
}

async fn shutdown(call: Call, args: DomainShutdownFlagsArgs) -> Result<()> {
    let domain = referred(&call, &args.dom)?;
    call.drivers.domains.shutdown(domain, args.flags).await
}

async fn reboot(call: Call, args: DomainRebootArgs) -> Result<()> {
    let domain = referred(&call, &args.dom)?;
    call.drivers.domains.reboot(domain, args.flags).await
}

async fn reset(call: Call, args: DomainResetArgs) -> Result<()> {
    let domain = referred(&call, &args.dom)?;
    call.drivers.domains.reset(domain, args.flags).await
}

async fn suspend(call: Call, args: DomainSuspendArgs) -> Result<()> {
    let domain = referred(&call, &args.dom)?;
    call.drivers.domains.suspend(domain).await
}

async fn resume(call: Call, args: DomainResumeArgs) -> Result<()> {
    let domain = referred(&call, &args.dom)?;
    call.drivers.domains.resume(domain).await
}

async fn inject_nmi(call: Call, args: DomainInjectNmiArgs) -> Result<()> {
    let domain = referred(&call, &args.dom)?;
    call.drivers.domains.inject_nmi(domain, args.flags).await
}

async fn wake_up(call: Call, args: DomainPmWakeupArgs) -> Result<()> {
    let domain = referred(&call, &args.dom)?;
    call.drivers.domains.wake_up(domain, args.flags).await
}

async fn set_lifecycle_action(call: Call, args: DomainSetLifecycleActionArgs) -> Result<()> {
    let domain = referred(&call, &args.dom)?;
    call.drivers.domains.set_lifecycle_action(domain, (args.r#type, args.action), args.flags).await
}

async fn abort_job(call: Call, args: DomainAbortJobFlagsArgs) -> Result<()> {
    let domain = referred(&call, &args.dom)?;
    call.drivers.domains.abort_job(domain, args.flags).await
}
