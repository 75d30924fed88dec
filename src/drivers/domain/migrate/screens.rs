//! Who looks at a guest's screen is told where it goes. QEMU does so with SPICE only, and says when all have gone there.

use std::net::IpAddr;
use std::time::Duration;

use tokio::time::timeout;

use super::transport::unescaped;
use crate::conf::devices::{Graphics, GraphicsKind, Listen, ListenPlace};
use crate::conf::domain::Domain;
use crate::conf::migration::{Cookie, CookieGraphics};
use crate::error::{Error, Result};
use crate::qemu::job::{AsyncJob, MigrationOut};
use crate::qemu::migrate;
use crate::qemu::monitor::ClientMigrateInfo;

/// How long viewers may take to get to the other host.
const LIMIT: Duration = Duration::from_secs(60);
/// Where libvirt has SPICE listen, if nobody says it.
const USUAL_LISTEN: &str = "127.0.0.1";

/// Where a guest's screen will be on this host.
pub(super) fn offered(live: &Domain) -> Option<CookieGraphics> {
    live.devices.graphics.iter().find_map(|graphics| {
        let Graphics::Spice(spice) = graphics else { return None };
        let Listen { place: ListenPlace::Address { address } | ListenPlace::Network { address, .. }, .. } =
            spice.listens.first()?
        else {
            return None;
        };
        Some(CookieGraphics {
            kind: GraphicsKind::Spice.to_string(),
            port: spice.port,
            listen: address.as_deref().unwrap_or(USUAL_LISTEN).to_owned(),
            tls_port: Some(-1),
            certificate: None,
        })
    })
}

/// What QEMU is to tell viewers: by the destination's cookie, and by what the client says instead. None: nothing.
fn relocation(cookie: &Cookie, uri: Option<&str>) -> Result<Option<ClientMigrateInfo>> {
    let mut kind = None;
    let mut told =
        ClientMigrateInfo { protocol: "spice", port: -1, tls_port: -1, ..ClientMigrateInfo::default() };
    if let Some(offered) = &cookie.graphics {
        let is_anywhere = offered.listen.parse().is_ok_and(|it: IpAddr| it.is_unspecified());
        kind = GraphicsKind::from_word(&offered.kind);
        let host = if is_anywhere { &*cookie.hostname } else { &offered.listen };
        told.hostname = host.to_owned();
        told.port = offered.port;
        told.tls_port = offered.tls_port.unwrap_or(-1);
        told.cert_subject = offered.certificate.as_ref().map(|certificate| certificate.value.clone());
    }
    if let Some(uri) = uri {
        let unparsable = || Error::internal_error(format!("Unable to parse URI {uri}"));
        let (scheme, rest) = uri.split_once("://").ok_or_else(unparsable)?;
        kind = Some(
            GraphicsKind::from_word(scheme)
                .ok_or_else(|| Error::invalid_arg(format!("unknown graphics type {scheme}")))?,
        );
        let (authority, query) = rest.split_once('?').unwrap_or((rest, ""));
        let authority = authority.split('/').next().unwrap_or_default();
        let (host, port) = super::transport::host_and_port(authority).ok_or_else(unparsable)?;
        if !host.is_empty() {
            told.hostname = host;
        }
        told.port = port.map_or(told.port, i32::from);
        for (name, value) in query.split('&').filter_map(|pair| pair.split_once('=')) {
            if name.eq_ignore_ascii_case("tlsPort") {
                let wrong = |_| Error::invalid_arg(format!("invalid tlsPort number: {value}"));
                told.tls_port = value.parse().map_err(wrong)?;
            } else if name.eq_ignore_ascii_case("tlsSubject") {
                told.cert_subject = Some(unescaped(value));
            }
        }
    }
    let has_port = told.port > 0 || told.tls_port > 0;
    Ok(Some(told).filter(|_| kind == Some(GraphicsKind::Spice) && has_port))
}

/// Has viewers told; whether there is an end to wait for. What goes wrong is theirs alone: the guest leaves.
pub(super) async fn announce(
    job: &mut AsyncJob<MigrationOut>,
    cookie: Option<&Cookie>,
    uri: Option<&str>,
) -> bool {
    let Some(cookie) = cookie else { return false };
    let told = async {
        let Some(info) = relocation(cookie, uri)? else { return Ok(false) };
        let nested = job.nested().await?;
        nested.live()?.monitor().execute(info).await?;
        Ok::<_, Error>(true)
    };
    match told.await {
        Ok(told) => told,
        Err(error) => {
            tracing::warn!(%error, "unable to provide data for graphics client relocation");
            false
        }
    }
}

/// Returns when all viewers have gone, or nobody waits for them any longer.
pub(super) async fn wait(job: &mut AsyncJob<MigrationOut>) {
    let abort = job.state().operation.as_ref().map(|underway| underway.abort.clone());
    let Ok(nested) = job.nested().await else { return };
    let Ok(mut progress) = nested.live().map(|live| live.monitor().progress()) else { return };
    drop(nested);
    let gone = async {
        tokio::select! {
            _ = progress.wait_for(|progress| progress.screens_moved || progress.lost) => {}
            () = migrate::wish(&abort) => {}
        }
    };
    if timeout(LIMIT, gone).await.is_err() {
        tracing::warn!(domain = %job.state().name, "viewers of the screen are still here; ending it all the same");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conf::migration::{Certificate, Peer};
    use crate::conf::xml::Form;
    use crate::util::uuid::Uuid;

    fn cookie(listen: &str) -> Cookie {
        let peer = Peer { name: "g", uuid: Uuid([1; 16]), host_uuid: Uuid([2; 16]) };
        let mut cookie = Cookie::new(peer, "far.example");
        cookie.graphics = Some(CookieGraphics {
            kind: "spice".to_owned(),
            port: 5901,
            listen: listen.to_owned(),
            tls_port: Some(-1),
            certificate: Some(Certificate { info: "subject".to_owned(), value: "CN=far".to_owned() }),
        });
        cookie
    }

    #[test]
    fn viewers_are_sent_where_the_screen_is() {
        let told = |cookie: &Cookie, uri| {
            let info = relocation(cookie, uri).map_err(|error| error.message())?;
            Ok::<_, String>(info.map(|info| serde_json::to_string(&info).unwrap()))
        };
        let expect = |info: &str| Ok(Some(info.to_owned()));
        assert_eq!(
            told(&cookie("0.0.0.0"), None),
            expect(
                r#"{"protocol":"spice","hostname":"far.example","port":5901,"tls-port":-1,"cert-subject":"CN=far"}"#
            )
        );
        assert_eq!(
            told(&cookie("192.0.2.1"), Some("spice://there:7?tlsPort=8&tlsSubject=CN%3Dx")),
            expect(r#"{"protocol":"spice","hostname":"there","port":7,"tls-port":8,"cert-subject":"CN=x"}"#)
        );
        // VNC knows of no other host.
        assert_eq!(told(&cookie("::"), Some("vnc://there:7")), Ok(None));
        assert_eq!(
            told(&cookie("::"), Some("holo://there")),
            Err("invalid argument: unknown graphics type holo".to_owned())
        );
        let mut nowhere = cookie("::");
        nowhere.graphics.as_mut().unwrap().port = 0;
        assert_eq!(told(&nowhere, None), Ok(None));
    }

    #[test]
    fn the_first_screen_that_listens_for_spice_is_offered() {
        let guest = |devices: &str| {
            let xml = format!(
                "<domain type='qemu'><name>x</name><os><type>hvm</type></os><devices>{devices}</devices></domain>"
            );
            offered(&Domain::parse(&xml, Form::INACTIVE).unwrap())
        };
        let spice =
            "<graphics type='spice' port='5902'><listen type='address' address='192.0.2.9'/></graphics>";
        let found = guest(&format!("<graphics type='vnc' port='5901'/>{spice}")).unwrap();
        assert_eq!((found.port, &*found.listen, found.tls_port), (5902, "192.0.2.9", Some(-1)));
        assert_eq!(guest("<graphics type='spice'><listen type='none'/></graphics>"), None);
    }
}
