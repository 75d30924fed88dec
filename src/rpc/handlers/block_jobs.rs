//! Long work on the images of running guests.

use ferrovirt_protocol::remote::procedure::*;
use ferrovirt_protocol::remote::*;

use super::domain::referred;
use crate::error::Result;
use crate::rpc::convert;
use crate::rpc::router::{Call, Routes};

pub fn routes(r: &mut Routes) {
    r.on::<DomainBlockPull>(pull);
    r.on::<DomainBlockRebase>(rebase);
    r.on::<DomainBlockCopy>(copy);
    r.on::<DomainBlockCommit>(commit);
    r.on::<DomainBlockJobAbort>(abort);
    r.on::<DomainBlockJobSetSpeed>(set_speed);
    r.on::<DomainGetBlockJobInfo>(info);
}

async fn pull(call: Call, args: DomainBlockPullArgs) -> Result<()> {
    let domain = referred(&call, &args.dom)?;
    call.drivers.domains.block_pull(domain, &args.path, args.bandwidth, args.flags).await
}

async fn rebase(call: Call, args: DomainBlockRebaseArgs) -> Result<()> {
    let domain = referred(&call, &args.dom)?;
    let base = args.base.as_deref();
    call.drivers.domains.block_rebase(domain, &args.path, base, args.bandwidth, args.flags).await
}

async fn copy(call: Call, args: DomainBlockCopyArgs) -> Result<()> {
    let domain = referred(&call, &args.dom)?;
    let params = convert::from_params(args.params);
    call.drivers.domains.block_copy(domain, &args.path, &args.destxml, &params, args.flags).await
}

async fn commit(call: Call, args: DomainBlockCommitArgs) -> Result<()> {
    let domain = referred(&call, &args.dom)?;
    let images = (args.base.as_deref(), args.top.as_deref());
    call.drivers.domains.block_commit(domain, &args.disk, images, args.bandwidth, args.flags).await
}

async fn abort(call: Call, args: DomainBlockJobAbortArgs) -> Result<()> {
    let domain = referred(&call, &args.dom)?;
    call.drivers.domains.block_job_abort(domain, &args.path, args.flags).await
}

async fn set_speed(call: Call, args: DomainBlockJobSetSpeedArgs) -> Result<()> {
    let domain = referred(&call, &args.dom)?;
    call.drivers.domains.block_job_set_speed(domain, &args.path, args.bandwidth, args.flags).await
}

async fn info(call: Call, args: DomainGetBlockJobInfoArgs) -> Result<DomainGetBlockJobInfoRet> {
    let domain = referred(&call, &args.dom)?;
    let Some(info) = call.drivers.domains.block_job_info(domain, &args.path, args.flags).await? else {
        return Ok(DomainGetBlockJobInfoRet { found: 0, r#type: 0, bandwidth: 0, cur: 0, end: 0 });
    };
    Ok(DomainGetBlockJobInfoRet {
        found: 1,
        r#type: info.kind.number(),
        bandwidth: info.bandwidth,
        cur: info.current,
        end: info.end,
    })
}
