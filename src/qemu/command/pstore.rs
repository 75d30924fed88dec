//! Where guests keep what they want to find again after a crash.

use super::line::{Line, Props};
use super::{Guest, Result, internal};

pub(super) fn build(guest: &Guest<'_>, line: &mut Line<'_>) -> Result<()> {
    for pstore in &guest.domain.devices.pstores {
        let alias = guest.alias(&pstore.info)?;
        let memory = format!("mem{alias}");
        let Some(path) = pstore.path.as_deref() else { return internal("pstore device has no path") };
        line.object(
            Props::object("memory-backend-file", &*memory)
                .set("mem-path", path)
                .set("size", pstore.size.0.saturating_mul(1024))
                .set("share", true),
        );
        let props = Props::driver("acpi-erst").set("id", alias).set("memdev", memory);
        line.device(guest.at(props, &pstore.info)?);
    }
    Ok(())
}
