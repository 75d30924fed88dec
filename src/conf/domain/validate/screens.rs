//! Which screens an emulator can show at all.

use super::by_qemu;
use crate::conf::Result;
use crate::conf::devices::{Graphics, GraphicsKind};
use crate::conf::domain::defaults::{Facts, Has};

pub(super) fn check_kind(graphics: &Graphics, facts: &Facts<'_>) -> Result<()> {
    let kind = graphics.kind();
    let needed = match kind {
        GraphicsKind::Sdl => Has::SDL,
        GraphicsKind::Vnc => Has::VNC,
        GraphicsKind::Spice => Has::SPICE,
        GraphicsKind::EglHeadless => Has::EGL_HEADLESS,
        GraphicsKind::Dbus => Has::DBUS_DISPLAY,
        GraphicsKind::Rdp | GraphicsKind::Desktop => Has::empty(),
    };
    if needed.is_empty() || !facts.has.contains(needed) {
        return by_qemu(format!("{kind} graphics are not supported with this QEMU"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conf::domain::defaults::tests::{complete, facts};

    #[test]
    fn a_screen_that_the_emulator_cannot_show_is_refused() {
        for (kind, needed) in [
            ("sdl", Has::SDL),
            ("vnc", Has::VNC),
            ("spice", Has::SPICE),
            ("egl-headless", Has::EGL_HEADLESS),
            ("dbus", Has::DBUS_DISPLAY),
        ] {
            let domain = complete(&format!(
                "<domain type='qemu'><name>screen</name><memory>1024</memory><os><type>hvm</type></os>\
                 <devices><graphics type='{kind}'/></devices></domain>"
            ))
            .unwrap();
            let mut facts = facts(&domain);
            domain.validate(&facts).unwrap();
            facts.has.remove(needed);
            let refusal = domain.validate(&facts).unwrap_err().to_string();
            assert!(
                refusal.ends_with(&format!("{kind} graphics are not supported with this QEMU")),
                "{refusal}"
            );
        }
    }
}
