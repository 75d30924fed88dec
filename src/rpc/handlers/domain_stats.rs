//! Numbers about domains.

use ferrovirt_protocol::remote::procedure::*;
use ferrovirt_protocol::remote::*;

use crate::error::Result;
use crate::rpc::convert;
use crate::rpc::router::{Call, Routes};

pub fn routes(r: &mut Routes) {
    r.on::<ConnectGetAllDomainStats>(get_all);
}

async fn get_all(call: Call, args: ConnectGetAllDomainStatsArgs) -> Result<ConnectGetAllDomainStatsRet> {
    let only = args.doms.iter().map(convert::uuid).collect();
    let records = call.drivers.domains.all_stats(only, args.stats, args.flags).await?;
    let records = records.into_iter().map(|record| DomainStatsRecord {
        dom: convert::domain(&record.domain),
        params: convert::params(record.params),
    });
    Ok(ConnectGetAllDomainStatsRet { ret_stats: records.collect() })
}
