//! Everything that is served, one line per part.

use std::sync::Arc;

use ferrovirt_protocol::{admin, qemu, remote};

use super::access;
use super::administration::Administration;
use super::handlers;
use super::router::{RouteError, Router};

/// The server for hypervisors.
pub fn hypervisor() -> Result<Router, RouteError> {
    Router::builder()
        .program(remote::PROGRAM, remote::ENTRIES)
        .program(qemu::PROGRAM, qemu::ENTRIES)
        .routes(access::about::routes)
        .routes(handlers::auth::routes)
        .routes(handlers::block_jobs::routes)
        .routes(handlers::checkpoints::routes)
        .routes(handlers::connect::routes)
        .routes(handlers::domain::routes)
        .routes(handlers::domain_agent::routes)
        .routes(handlers::domain_devices::routes)
        .routes(handlers::domain_hotplug::routes)
        .routes(handlers::domain_lifecycle::routes)
        .routes(handlers::domain_live::routes)
        .routes(handlers::domain_migrate::routes)
        .routes(handlers::domain_reads::routes)
        .routes(handlers::domain_save::routes)
        .routes(handlers::domain_stats::routes)
        .routes(handlers::domain_tunables::routes)
        .routes(handlers::domain_usage::routes)
        .routes(handlers::events::routes)
        .routes(handlers::native::routes)
        .routes(handlers::node::routes)
        .routes(handlers::secret::routes)
        .routes(handlers::snapshots::routes)
        .routes(handlers::storage_pool::routes)
        .routes(handlers::storage_volume::routes)
        .build()
}

/// The server for the daemon's administration.
pub fn administration(administration: &Arc<Administration>) -> Result<Router, RouteError> {
    let routes = |routes: &mut _| handlers::admin::routes(routes, administration);
    Router::builder().program(admin::PROGRAM, admin::ENTRIES).routes(routes).build()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logging::Logging;

    #[test]
    fn every_route_leads_somewhere() {
        for router in [hypervisor(), administration(&Administration::new(Logging::default(), None))] {
            assert!(router.unwrap().supported().count() > 0);
        }
    }
}
