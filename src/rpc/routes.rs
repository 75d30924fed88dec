//! Everything that is served, one line per part.

use ferrovirt_protocol::{qemu, remote};

use super::handlers;
use super::router::{RouteError, Router};

/// The server for hypervisors.
pub fn hypervisor() -> Result<Router, RouteError> {
    Router::builder()
        .program(remote::PROGRAM, remote::ENTRIES)
        .program(qemu::PROGRAM, qemu::ENTRIES)
        .routes(handlers::connect::routes)
        .routes(handlers::events::routes)
        .build()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_route_leads_somewhere() {
        assert!(hypervisor().unwrap().supported().count() > 10);
    }
}
