//! Graphics cards.

use super::line::{Line, Props};
use super::{Guest, Result, internal, unsupported};
use crate::conf::devices::{Address, Video, VideoBackend, VideoKind};
use crate::conf::xml::YesNo;
use crate::qemu::capabilities::Cap;

pub(super) fn build(guest: &Guest<'_>, line: &mut Line<'_>) -> Result<()> {
    for video in guest.domain.devices.videos.iter().filter(|video| video.model.kind != VideoKind::None) {
        line.device(guest.video(video)?);
    }
    Ok(())
}

impl Guest<'_> {
    fn video(&self, video: &Video) -> Result<Props> {
        if video.driver.name == VideoBackend::Vhostuser {
            return unsupported("vhost-user video devices are not supported");
        }
        let model = &video.model;
        let is_virtio = model.kind == VideoKind::Virtio;
        let mut props = Props::driver(self.video_driver(video)?);
        if is_virtio {
            props = self.virtio_options(props, &video.driver.virtio);
        }
        props = props.set("id", self.alias(&video.info)?);
        if is_virtio && self.supports(Cap::VirtioGpuVirgl) {
            let accelerated = model.acceleration.as_ref().and_then(|it| it.accel3d);
            props = props.maybe("virgl", accelerated.map(bool::from));
        }
        if is_virtio || model.kind == VideoKind::Qxl {
            props = props.nonzero("max_outputs", model.heads.unwrap_or_default());
        }
        props = match model.kind {
            VideoKind::Qxl => props
                .nonzero("ram_size", u64::from(model.ram_kib) * 1024)
                .nonzero("vram_size", u64::from(model.vram_kib) * 1024)
                .set("vram64_size_mb", model.vram64_kib / 1024)
                .set("vgamem_mb", model.vgamem_kib / 1024),
            VideoKind::Vga if self.supports(Cap::VgaVgamem) => {
                props.nonzero("vgamem_mb", model.vram_kib / 1024)
            }
            VideoKind::Vmvga if self.supports(Cap::VmwareSvgaVgamem) => {
                props.nonzero("vgamem_mb", model.vram_kib / 1024)
            }
            VideoKind::Bochs => props.nonzero("vgamem", u64::from(model.vram_kib) * 1024),
            VideoKind::Virtio => props.switch("blob", model.blob),
            _ => props,
        };
        if let Some(resolution) = &model.resolution {
            props = props
                .nonzero("xres", resolution.x.unwrap_or_default())
                .nonzero("yres", resolution.y.unwrap_or_default());
        }
        self.at(props, &video.info)
    }

    /// The first card is compatible with VGA where it can be, so that firmware shows something.
    fn video_driver(&self, video: &Video) -> Result<String> {
        let model = &video.model;
        let accelerated = model.acceleration.as_ref().and_then(|it| it.accel3d) == Some(YesNo::Yes);
        let is_primary = model.primary == YesNo::Yes;
        let has_vga = match model.kind {
            VideoKind::Virtio => {
                self.supports(Cap::DeviceVirtioVga) && matches!(video.info.address, Some(Address::Pci(_)))
            }
            _ => true,
        };
        let name = match (is_primary && has_vga, model.kind) {
            (true, VideoKind::Vga) => "VGA",
            (true, VideoKind::Cirrus) => "cirrus-vga",
            (true, VideoKind::Vmvga) => "vmware-svga",
            (true, VideoKind::Qxl) => "qxl-vga",
            (true, VideoKind::Bochs) => "bochs-display",
            (true, VideoKind::Ramfb) => "ramfb",
            (true, VideoKind::Virtio) if accelerated && self.supports(Cap::VirtioVgaGl) => "virtio-vga-gl",
            (true, VideoKind::Virtio) => "virtio-vga",
            (false, VideoKind::Qxl) => "qxl",
            (false, VideoKind::Virtio) => {
                let gl = accelerated && self.supports(Cap::VirtioGpuGlPci);
                let bus = match &video.info.address {
                    Some(Address::Ccw(_)) => "ccw",
                    Some(Address::VirtioMmio) => "device",
                    _ => "pci",
                };
                return Ok(format!("virtio-gpu{}-{bus}", if gl { "-gl" } else { "" }));
            }
            (_, kind) => return internal(format!("invalid model for video type '{kind}'")),
        };
        Ok(name.to_owned())
    }
}
