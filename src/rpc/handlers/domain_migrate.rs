//! Guests that go to another host, and guests that come.

use ferrovirt_protocol::remote::procedure::*;
use ferrovirt_protocol::remote::*;

use super::domain::{reference, referred};
use crate::drivers::domain::migrate::request::{MigrateFlags, Request};
use crate::error::{Error, Result};
use crate::rpc::convert;
use crate::rpc::router::{Call, Routes, Streamed};
use crate::rpc::stream::{Pipe, Silent, Writer};

pub fn routes(r: &mut Routes) {
    r.on::<DomainMigrateBegin3Params>(begin);
    r.on::<DomainMigratePrepare3Params>(prepare);
    r.on::<DomainMigratePerform3Params>(perform);
    r.on::<DomainMigrateFinish3Params>(finish);
    r.on::<DomainMigrateConfirm3Params>(confirm);
    r.on::<DomainMigrateBegin3>(begin_plain);
    r.on::<DomainMigratePrepare3>(prepare_plain);
    r.on::<DomainMigratePerform3>(perform_plain);
    r.on::<DomainMigrateFinish3>(finish_plain);
    r.on::<DomainMigrateConfirm3>(confirm_plain);
    r.on_stream::<DomainMigratePrepareTunnel3Params>(prepare_tunnel);
    r.on_stream::<DomainMigratePrepareTunnel3>(prepare_tunnel_plain);
    r.on::<DomainMigratePrepare2>(prepare_v2);
    r.on_stream::<DomainMigratePrepareTunnel>(prepare_tunnel_v2);
    r.on::<DomainMigratePerform>(perform_v2);
    r.on::<DomainMigrateFinish2>(finish_v2);
    r.on::<DomainMigrateSetMaxSpeed>(set_speed);
    r.on::<DomainMigrateGetMaxSpeed>(get_speed);
    r.on::<DomainMigrateSetMaxDowntime>(set_downtime);
    r.on::<DomainMigrateGetMaxDowntime>(get_downtime);
    r.on::<DomainMigrateSetCompressionCache>(set_cache);
    r.on::<DomainMigrateGetCompressionCache>(get_cache);
    r.on::<DomainMigrateStartPostCopy>(start_postcopy);
}

async fn begin(call: Call, args: DomainMigrateBegin3ParamsArgs) -> Result<DomainMigrateBegin3ParamsRet> {
    let params = convert::from_params(args.params);
    let request = Request::accept(params, args.flags, "qemuDomainMigrateBegin3Params")?;
    let (cookie_out, xml) = begin_with(&call, &args.dom, &request).await?;
    Ok(DomainMigrateBegin3ParamsRet { cookie_out, xml })
}

async fn begin_plain(call: Call, args: DomainMigrateBegin3Args) -> Result<DomainMigrateBegin3Ret> {
    let texts = [("destination_xml", args.xmlin), ("destination_name", args.dname), ("migrate_uri", None)];
    let request = Request::plain(args.flags, texts, 0, "qemuDomainMigrateBegin3")?;
    let (cookie_out, xml) = begin_with(&call, &args.dom, &request).await?;
    Ok(DomainMigrateBegin3Ret { cookie_out, xml })
}

async fn begin_with(call: &Call, dom: &Domain, request: &Request) -> Result<(Vec<u8>, String)> {
    let domain = referred(call, dom)?;
    let begun = call.drivers.domains.migrate_begin(domain, request, call.client.id).await?;
    call.leave_nothing_behind();
    Ok((begun.cookie, begun.xml))
}

async fn prepare(
    call: Call,
    args: DomainMigratePrepare3ParamsArgs,
) -> Result<DomainMigratePrepare3ParamsRet> {
    let params = convert::from_params(args.params);
    let request = Request::accept(params, args.flags, "qemuDomainMigratePrepare3Params")?;
    let (cookie_out, uri_out) = prepare_with(&call, &request, &args.cookie_in).await?;
    Ok(DomainMigratePrepare3ParamsRet { cookie_out, uri_out })
}

async fn prepare_plain(call: Call, args: DomainMigratePrepare3Args) -> Result<DomainMigratePrepare3Ret> {
    let texts = [
        ("destination_xml", Some(args.dom_xml)),
        ("destination_name", args.dname),
        ("migrate_uri", args.uri_in),
    ];
    let request = Request::plain(args.flags, texts, args.resource, "qemuDomainMigratePrepare3")?;
    let (cookie_out, uri_out) = prepare_with(&call, &request, &args.cookie_in).await?;
    Ok(DomainMigratePrepare3Ret { cookie_out, uri_out })
}

async fn prepare_with(call: &Call, request: &Request, cookie: &[u8]) -> Result<(Vec<u8>, Option<String>)> {
    let prepared = call.drivers.domains.migrate_prepare(request, cookie, call.client.id).await?;
    call.leave_nothing_behind();
    Ok((prepared.cookie, prepared.uri))
}

async fn prepare_tunnel(
    call: Call,
    args: DomainMigratePrepareTunnel3ParamsArgs,
) -> Result<Streamed<DomainMigratePrepareTunnel3ParamsRet>> {
    let params = convert::from_params(args.params);
    let request = Request::accept(params, args.flags, "qemuDomainMigratePrepareTunnel3Params")?;
    let (cookie_out, pipe) = prepare_tunnel_with(&call, &request, &args.cookie_in).await?;
    Ok(Streamed { ret: DomainMigratePrepareTunnel3ParamsRet { cookie_out }, pipe })
}

async fn prepare_tunnel_plain(
    call: Call,
    args: DomainMigratePrepareTunnel3Args,
) -> Result<Streamed<DomainMigratePrepareTunnel3Ret>> {
    let texts =
        [("destination_xml", Some(args.dom_xml)), ("destination_name", args.dname), ("migrate_uri", None)];
    let request = Request::plain(args.flags, texts, args.resource, "qemuDomainMigratePrepareTunnel3")?;
    let (cookie_out, pipe) = prepare_tunnel_with(&call, &request, &args.cookie_in).await?;
    Ok(Streamed { ret: DomainMigratePrepareTunnel3Ret { cookie_out }, pipe })
}

async fn prepare_tunnel_with(call: &Call, request: &Request, cookie: &[u8]) -> Result<(Vec<u8>, Pipe)> {
    let prepared = call.drivers.domains.migrate_prepare_tunnel(request, cookie, call.client.id).await?;
    call.leave_nothing_behind();
    let (prepared, qemu) = prepared;
    Ok((prepared.cookie, Pipe::new(Silent, Writer(qemu))))
}

async fn perform(
    call: Call,
    args: DomainMigratePerform3ParamsArgs,
) -> Result<DomainMigratePerform3ParamsRet> {
    let params = convert::from_params(args.params);
    let request = Request::accept(params, args.flags, "qemuDomainMigratePerform3Params")?;
    let cookie_out = perform_with(&call, &args.dom, &request, (&args.cookie_in, args.dconnuri)).await?;
    Ok(DomainMigratePerform3ParamsRet { cookie_out })
}

async fn perform_plain(call: Call, args: DomainMigratePerform3Args) -> Result<DomainMigratePerform3Ret> {
    let texts =
        [("destination_xml", args.xmlin), ("destination_name", args.dname), ("migrate_uri", args.uri)];
    let request = Request::plain(args.flags, texts, args.resource, "qemuDomainMigratePerform3")?;
    let cookie_out = perform_with(&call, &args.dom, &request, (&args.cookie_in, args.dconnuri)).await?;
    Ok(DomainMigratePerform3Ret { cookie_out })
}

async fn perform_with(
    call: &Call,
    dom: &Domain,
    request: &Request,
    (cookie, connection): (&[u8], Option<String>),
) -> Result<Vec<u8>> {
    let domain = referred(call, dom)?;
    if request.flags.intersects(MigrateFlags::PEER2PEER | MigrateFlags::TUNNELLED) {
        let missing = || Error::internal_error("missing connection URI for peer-to-peer migration");
        let uri = connection.ok_or_else(missing)?;
        call.drivers.domains.migrate_to_peer(domain, request, (cookie, &uri), call.client.id).await?;
        return Ok(Vec::new());
    }
    if connection.is_some() {
        return Err(Error::internal_error("Unexpected dconnuri parameter with non-peer2peer migration"));
    }
    let cookie = call.drivers.domains.migrate_perform(domain, request, cookie, call.client.id).await?;
    call.leave_nothing_behind();
    Ok(cookie)
}

async fn finish(call: Call, args: DomainMigrateFinish3ParamsArgs) -> Result<DomainMigrateFinish3ParamsRet> {
    let params = convert::from_params(args.params);
    let request = Request::accept(params, args.flags, "qemuDomainMigrateFinish3Params")?;
    let name = request.destination_name().ok_or_else(|| Error::no_domain("missing domain name"))?;
    let (dom, cookie_out) = finish_with(&call, name, &request, (&args.cookie_in, args.cancelled)).await?;
    Ok(DomainMigrateFinish3ParamsRet { dom, cookie_out })
}

async fn finish_plain(call: Call, args: DomainMigrateFinish3Args) -> Result<DomainMigrateFinish3Ret> {
    let texts = [("destination_name", None), ("destination_xml", None), ("migrate_uri", None)];
    let request = Request::plain(args.flags, texts, 0, "qemuDomainMigrateFinish3")?;
    let (dom, cookie_out) =
        finish_with(&call, &args.dname, &request, (&args.cookie_in, args.cancelled)).await?;
    Ok(DomainMigrateFinish3Ret { dom, cookie_out })
}

async fn finish_with(
    call: &Call,
    name: &str,
    request: &Request,
    (cookie, cancelled): (&[u8], i32),
) -> Result<(Domain, Vec<u8>)> {
    let domains = &call.drivers.domains;
    let domain = domains.list.by_name(name)?;
    let (state, cookie) = domains.migrate_finish(domain, request, cookie, cancelled.into()).await?;
    Ok((reference(&state), cookie))
}

async fn confirm(call: Call, args: DomainMigrateConfirm3ParamsArgs) -> Result<()> {
    let params = convert::from_params(args.params);
    let request = Request::accept(params, args.flags, "qemuDomainMigrateConfirm3Params")?;
    let domain = referred(&call, &args.dom)?;
    call.drivers.domains.migrate_confirm(domain, &request, &args.cookie_in, args.cancelled.into()).await
}

async fn confirm_plain(call: Call, args: DomainMigrateConfirm3Args) -> Result<()> {
    let texts = [("destination_name", None), ("destination_xml", None), ("migrate_uri", None)];
    let request = Request::plain(args.flags, texts, 0, "qemuDomainMigrateConfirm3")?;
    let domain = referred(&call, &args.dom)?;
    call.drivers.domains.migrate_confirm(domain, &request, &args.cookie_in, args.cancelled.into()).await
}

// Version 2 of the protocol has no cookies, and no last phase: a guest ends at the source when all of it has left.

async fn prepare_v2(call: Call, args: DomainMigratePrepare2Args) -> Result<DomainMigratePrepare2Ret> {
    let texts = [
        ("destination_xml", Some(args.dom_xml)),
        ("destination_name", args.dname),
        ("migrate_uri", args.uri_in),
    ];
    let request = Request::plain(args.flags, texts, args.resource, "qemuDomainMigratePrepare2")?;
    let (_, uri_out) = prepare_with(&call, &request, &[]).await?;
    Ok(DomainMigratePrepare2Ret { cookie: Vec::new(), uri_out })
}

async fn prepare_tunnel_v2(call: Call, args: DomainMigratePrepareTunnelArgs) -> Result<Streamed<()>> {
    let texts =
        [("destination_xml", Some(args.dom_xml)), ("destination_name", args.dname), ("migrate_uri", None)];
    let request = Request::plain(args.flags, texts, args.resource, "qemuDomainMigratePrepareTunnel")?;
    let (_, pipe) = prepare_tunnel_with(&call, &request, &[]).await?;
    Ok(Streamed { ret: (), pipe })
}

async fn perform_v2(call: Call, args: DomainMigratePerformArgs) -> Result<()> {
    let peer = args.flags & u64::from(MigrateFlags::PEER2PEER.bits()) != 0;
    let (connection, uri) = if peer { (Some(args.uri), None) } else { (None, Some(args.uri)) };
    let texts = [("destination_xml", None), ("destination_name", args.dname), ("migrate_uri", uri)];
    let request = Request::plain(args.flags, texts, args.resource, "qemuDomainMigratePerform")?;
    perform_with(&call, &args.dom, &request, (&args.cookie, connection)).await?;
    match peer {
        true => Ok(()),
        false => {
            let domain = referred(&call, &args.dom)?;
            call.drivers.domains.migrate_confirm(domain, &request, &[], 0.into()).await
        }
    }
}

async fn finish_v2(call: Call, args: DomainMigrateFinish2Args) -> Result<DomainMigrateFinish2Ret> {
    let texts = [("destination_name", None), ("destination_xml", None), ("migrate_uri", None)];
    let request = Request::plain(args.flags, texts, 0, "qemuDomainMigrateFinish2")?;
    let (ddom, _) = finish_with(&call, &args.dname, &request, (&[], args.retcode)).await?;
    Ok(DomainMigrateFinish2Ret { ddom })
}

async fn set_speed(call: Call, args: DomainMigrateSetMaxSpeedArgs) -> Result<()> {
    let domain = referred(&call, &args.dom)?;
    call.drivers.domains.migrate_set_speed(domain, args.bandwidth, args.flags).await
}

async fn get_speed(call: Call, args: DomainMigrateGetMaxSpeedArgs) -> Result<DomainMigrateGetMaxSpeedRet> {
    let domain = referred(&call, &args.dom)?;
    let bandwidth = call.drivers.domains.migrate_speed(domain, args.flags).await?;
    Ok(DomainMigrateGetMaxSpeedRet { bandwidth })
}

async fn set_downtime(call: Call, args: DomainMigrateSetMaxDowntimeArgs) -> Result<()> {
    let domain = referred(&call, &args.dom)?;
    call.drivers.domains.migrate_set_downtime(domain, args.downtime, args.flags).await
}

async fn get_downtime(
    call: Call,
    args: DomainMigrateGetMaxDowntimeArgs,
) -> Result<DomainMigrateGetMaxDowntimeRet> {
    let domain = referred(&call, &args.dom)?;
    let downtime = call.drivers.domains.migrate_downtime(domain, args.flags).await?;
    Ok(DomainMigrateGetMaxDowntimeRet { downtime })
}

async fn set_cache(call: Call, args: DomainMigrateSetCompressionCacheArgs) -> Result<()> {
    let domain = referred(&call, &args.dom)?;
    call.drivers.domains.migrate_set_cache(domain, args.cache_size, args.flags).await
}

async fn get_cache(
    call: Call,
    args: DomainMigrateGetCompressionCacheArgs,
) -> Result<DomainMigrateGetCompressionCacheRet> {
    let domain = referred(&call, &args.dom)?;
    let cache_size = call.drivers.domains.migrate_cache(domain, args.flags).await?;
    Ok(DomainMigrateGetCompressionCacheRet { cache_size })
}

async fn start_postcopy(call: Call, args: DomainMigrateStartPostCopyArgs) -> Result<()> {
    let domain = referred(&call, &args.dom)?;
    call.drivers.domains.migrate_start_postcopy(domain, args.flags).await
}
