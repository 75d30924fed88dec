//! The daemon's own administration: so far, a connection can be opened and closed.

use ferrovirt_protocol::admin::procedure::*;
use ferrovirt_protocol::admin::*;

use crate::error::Result;
use crate::rpc::handlers::connect::LIB_VERSION;
use crate::rpc::router::{Call, Routes};

pub fn routes(r: &mut Routes) {
    r.on::<ConnectOpen>(open);
    r.on::<ConnectClose>(close);
    r.on::<ConnectGetLibVersion>(get_lib_version);
}

async fn open(_: Call, _: ConnectOpenArgs) -> Result<()> {
    Ok(())
}

async fn close(call: Call, (): ()) -> Result<()> {
    call.client.close_after_reply();
    Ok(())
}

async fn get_lib_version(_: Call, (): ()) -> Result<ConnectGetLibVersionRet> {
    Ok(ConnectGetLibVersionRet { lib_ver: LIB_VERSION })
}
