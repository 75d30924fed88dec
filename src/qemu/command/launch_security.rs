//! Guests whose memory the host cannot read.

use super::line::{Line, Props};
use super::{Guest, Result, unsupported};
use crate::conf::domain::{LaunchSecurity, Sev, SevCommon, SevSnp};
use crate::conf::xml::YesNo;

pub(super) const ID: &str = "lsec0";

pub(super) fn build(guest: &Guest<'_>, line: &mut Line<'_>) -> Result<()> {
    match guest.domain.launch_security.as_deref() {
        None => {}
        Some(LaunchSecurity::Sev(sev)) => line.object(guest.sev(sev)),
        Some(LaunchSecurity::SevSnp(sev)) => line.object(sev_snp(sev)),
        Some(LaunchSecurity::S390Pv) => {
            return unsupported("S390 PV launch security is not supported by this host or kernel");
        }
    }
    Ok(())
}

impl Guest<'_> {
    fn sev(&self, sev: &Sev) -> Props {
        let state_dir = self.context.state_dir.display();
        let file =
            |given: &Option<Box<str>>, name: &str| given.as_ref().map(|_| format!("{state_dir}/{name}"));
        place("sev-guest", &sev.common)
            .set("policy", sev.policy.0)
            .maybe("dh-cert-file", file(&sev.dh_cert, "dh_cert.base64"))
            .maybe("session-file", file(&sev.session, "session.base64"))
            .maybe("kernel-hashes", sev.common.kernel_hashes.map(bool::from))
    }
}

fn sev_snp(sev: &SevSnp) -> Props {
    place("sev-snp-guest", &sev.common)
        .maybe("kernel-hashes", sev.common.kernel_hashes.map(bool::from))
        .set("policy", sev.policy.0)
        .maybe("guest-visible-workarounds", sev.guest_visible_workarounds.as_deref())
        .maybe("id-block", sev.id_block.as_deref())
        .maybe("id-auth", sev.id_auth.as_deref())
        .maybe("host-data", sev.host_data.as_deref())
        .maybe("author-key-enabled", sev.author_key.map(bool::from))
        .maybe("vcek-disabled", sev.vcek.map(|vcek| vcek == YesNo::No))
}

/// How much of an address the processor takes for itself.
fn place(kind: &str, common: &SevCommon) -> Props {
    Props::object(kind, ID)
        .set("cbitpos", common.cbitpos.unwrap_or_default())
        .set("reduced-phys-bits", common.reduced_phys_bits.unwrap_or_default())
}
