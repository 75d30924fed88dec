//! `<video>`: graphics cards.

use super::info::{DeviceInfo, VirtioOptions};
use crate::conf::xml::{OnOff, YesNo, xml, xml_enum};

xml! {
    #[derive(Default)]
    pub struct Video {
        group driver: VideoDriver = "driver";
        group model: VideoModel = "model";
        flat info: DeviceInfo;
    }
}

xml! {
    #[derive(Default)]
    pub struct VideoDriver {
        flat virtio: VirtioOptions;
        attr vgaconf: Option<VgaConf> = "vgaconf";
        attr(omit) name: VideoBackend = "name", or VideoBackend::Default;
    }
}

xml_enum! {
    pub enum VgaConf {
        Io = "io",
        On = "on",
        Off = "off",
    }
}

xml_enum! {
    #[derive(Default)]
    pub enum VideoBackend {
        #[default]
        Default = "default",
        Qemu = "qemu",
        Vhostuser = "vhostuser",
    }
}

xml! {
    /// Sizes in KiB; 0 where the definition says nothing.
    pub struct VideoModel {
        attr kind: VideoKind = "type", or VideoKind::Default;
        attr(omit) ram_kib: u32 = "ram", or 0;
        attr(omit) vram_kib: u32 = "vram", or 0;
        attr(omit) vram64_kib: u32 = "vram64", or 0;
        attr(omit) vgamem_kib: u32 = "vgamem", or 0;
        /// One, unless the definition says more, of every card but none.
        attr heads: Option<u32> = "heads";
        attr(omit) primary: YesNo = "primary", or YesNo::No;
        attr blob: Option<OnOff> = "blob";
        child acceleration: Option<Acceleration> = "acceleration";
        child resolution: Option<Resolution> = "resolution";
    }
}

xml_enum! {
    #[derive(Default)]
    pub enum VideoKind {
        #[default]
        Default = "default",
        Vga = "vga",
        Cirrus = "cirrus",
        Vmvga = "vmvga",
        Xen = "xen",
        Vbox = "vbox",
        Qxl = "qxl",
        Parallels = "parallels",
        Virtio = "virtio",
        Gop = "gop",
        None = "none",
        Bochs = "bochs",
        Ramfb = "ramfb",
    }
}

impl Default for VideoModel {
    fn default() -> Self {
        Self {
            kind: VideoKind::Default,
            ram_kib: 0,
            vram_kib: 0,
            vram64_kib: 0,
            vgamem_kib: 0,
            heads: None,
            primary: YesNo::No,
            blob: None,
            acceleration: None,
            resolution: None,
        }
    }
}

xml! {
    pub struct Acceleration {
        attr accel3d: Option<YesNo> = "accel3d";
        attr accel2d: Option<YesNo> = "accel2d";
        attr rendernode: Option<Box<str>> = "rendernode";
    }
}

xml! {
    pub struct Resolution {
        attr x: Option<u32> = "x";
        attr y: Option<u32> = "y";
    }
}
