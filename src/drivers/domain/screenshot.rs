//! Pictures of a guest's screens.

use std::path::{Path, PathBuf};

use tokio::fs::File;

use super::flags::no_flags;
use super::{Domains, reads};
use crate::conf::devices::Video;
use crate::error::{Error, Result};
use crate::qemu::capabilities::Cap;
use crate::qemu::job::{DomainHandle, Query};
use crate::qemu::monitor::Screendump;
use crate::util::uuid::Uuid;

/// A picture: what it is, and where it is read from.
#[derive(Debug)]
pub struct Screenshot {
    pub mime: &'static str,
    pub file: File,
}

impl Domains {
    /// What a screen shows at this moment.
    pub async fn screenshot(&self, mut domain: DomainHandle, screen: u32, flags: u32) -> Result<Screenshot> {
        no_flags(flags, "qemuDomainScreenshot")?;
        let job = domain.begin::<Query>().await?;
        let live = job.live()?;
        let definition = reads::running(live.state())?;
        let videos = &definition.devices.videos;
        if videos.is_empty() {
            return Err(Error::operation_invalid("no screens to take screenshot from"));
        }
        let head = match screen {
            0 => None,
            screen => {
                Some(find(videos, screen).ok_or_else(|| Error::operation_invalid("no such screen ID"))?)
            }
        };
        let emulator = definition.devices.emulator.as_deref().unwrap_or_default();
        let png = self.emulators.lookup(emulator.as_ref()).await?.supports(Cap::ScreenshotFormatPng);
        let (format, mime) = match png {
            true => (Some("png".to_owned()), "image/png"),
            false => (None, "image/x-portable-pixmap"),
        };
        let picture = Picture::new(&live.files().directory)?;
        let (device, head) = head.unzip();
        let filename = picture.0.to_string_lossy().into_owned();
        live.monitor().execute(Screendump { filename, device, head, format }).await?;
        let file = File::open(&picture.0).await.map_err(|error| Error::io("unable to open stream", error))?;
        Ok(Screenshot { mime, file })
    }
}

/// The device that a screen belongs to, and the number of its head.
fn find(videos: &[Video], mut screen: u32) -> Option<(String, u64)> {
    for video in videos {
        let heads = video.model.heads.unwrap_or(1);
        if screen < heads {
            return Some((video.info.alias.as_deref()?.to_owned(), u64::from(screen)));
        }
        screen -= heads;
    }
    None
}

/// A file for QEMU to draw into; whoever reads it opens it before this is dropped.
struct Picture(PathBuf);

impl Picture {
    fn new(directory: &Path) -> Result<Self> {
        let name = Uuid::random().map_err(|error| Error::io("cannot make a file name", error))?;
        Ok(Self(directory.join(format!("qemu.screendump.{name}"))))
    }
}

impl Drop for Picture {
    fn drop(&mut self) {
        if let Err(error) = crate::util::file::remove_if_there(&self.0) {
            tracing::warn!(path = %self.0.display(), %error, "cannot remove a screenshot");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conf::devices::Devices;
    use crate::conf::domain::Domain;
    use crate::conf::xml::Form;

    fn devices() -> Devices {
        let text = "<domain type='kvm'><name>x</name><os><type>hvm</type></os><devices>\
                    <video><model type='qxl' heads='2'/><alias name='video0'/></video>\
                    <video><model type='virtio' heads='1'/><alias name='video1'/></video></devices></domain>";
        Domain::parse(text, Form::LIVE).unwrap().devices
    }

    #[test]
    fn screens_are_counted_over_all_heads() {
        let videos = devices().videos;
        let at = |screen| find(&videos, screen);
        assert_eq!(at(1), Some(("video0".to_owned(), 1)));
        assert_eq!(at(2), Some(("video1".to_owned(), 0)));
        assert_eq!(at(3), None);
    }
}
