//! Images behind disks: `-drive` and chains of `-blockdev`.

use super::draft::Draft;
use super::node::Node;
use super::options::Options;

/// Chains are not longer than this.
const MAX_LAYERS: usize = 200;

/// What is in a drive, in the words of `<disk>`.
#[derive(Debug, Default)]
pub(super) struct Image {
    /// `file` or `block`
    pub kind: &'static str,
    pub source: Option<Node>,
    /// The one in its node's name, where a daemon has chosen the name.
    pub number: Option<u32>,
    pub backing: Option<Node>,
    /// The node below it, until that has become `backing`.
    pub below: Option<String>,
    pub metadata_cache: Option<Node>,
    pub format: Option<String>,
    /// Attributes of `<driver>`.
    pub driver: Vec<(&'static str, String)>,
    pub cache: Cache,
    pub readonly: bool,
    pub transient: bool,
    pub is_cdrom: bool,
    pub uses: Vec<usize>,
}

/// QEMU's switches behind a cache mode.
#[derive(Debug, Default, Clone, Copy, PartialEq)]
pub(super) struct Cache {
    pub direct: Option<bool>,
    pub no_flush: Option<bool>,
    pub writeback: Option<bool>,
}

impl Cache {
    fn take(options: &mut Options) -> Self {
        let mut switch = |name: &str| options.take_switch(name).map(|state| state == "on");
        Self {
            direct: switch("cache.direct"),
            no_flush: switch("cache.no-flush"),
            writeback: switch("cache.writeback"),
        }
    }

    /// libvirt's word; the inner `None`: nothing was said.
    pub(super) fn mode(self) -> Option<Option<&'static str>> {
        if self == Self::default() {
            return Some(None);
        }
        let is = |switch: Option<bool>, default: bool| switch.unwrap_or(default);
        Some(Some(match (is(self.writeback, true), is(self.direct, false), is(self.no_flush, false)) {
            (true, true, false) => "none",
            (false, false, false) => "writethrough",
            (true, false, false) => "writeback",
            (false, true, false) => "directsync",
            (true, false, true) => "unsafe",
            _ => return None,
        }))
    }
}

impl Image {
    fn note(&mut self, name: &'static str, value: Option<String>) {
        self.driver.extend(value.map(|value| (name, value)));
    }

    /// What both notations say of an image in the same words.
    fn take_common(&mut self, options: &mut Options) {
        self.note("io", options.take("aio"));
        self.note("discard", options.take("discard"));
        self.note("detect_zeroes", options.take("detect-zeroes"));
    }
}

impl Draft<'_> {
    /// What a device refers to with `drive=`.
    pub(super) fn image(&self, id: &str) -> Option<Image> {
        match self.backend("drive", "id", id) {
            Some((at, mut options)) => {
                options.skip("if", "none");
                options.take("id");
                let mut image = self.drive(&mut options)?;
                options.done()?;
                image.uses.push(at);
                Some(image)
            }
            None => self.top_node(id),
        }
    }

    /// The value of `-drive`, without what says where the disk is plugged in.
    pub(super) fn drive(&self, options: &mut Options) -> Option<Image> {
        let mut image = Image { kind: "file", ..Image::default() };
        if let Some(file) = options.take("file").filter(|file| !file.is_empty()) {
            (image.kind, image.source) = source(&self.path(&file)?, "");
        }
        image.format = options.take("format");
        image.take_common(options);
        image.note("copy_on_read", options.take_switch("copy-on-read").map(str::to_owned));
        let errors = |policy: String| if policy == "enospc" { "enospace".to_owned() } else { policy };
        image.note("error_policy", options.take("werror").map(errors));
        image.note("rerror_policy", options.take("rerror"));
        image.cache = Cache::take(options);
        if let Some(mode) = options.take("cache") {
            let (writeback, direct, no_flush) = match mode.as_str() {
                "none" | "off" => (true, true, false),
                "writethrough" => (false, false, false),
                "writeback" => (true, false, false),
                "directsync" => (false, true, false),
                "unsafe" => (true, false, true),
                _ => return None,
            };
            let (direct, no_flush) = (Some(direct), Some(no_flush));
            image.cache = Cache { direct, no_flush, writeback: Some(writeback) };
        }
        let readonly = options.take_switch("readonly").or(options.take_switch("read-only"));
        image.is_cdrom = options.get("media") == Some("cdrom");
        options.take("media");
        image.readonly = readonly == Some("on");
        image.transient = options.take_switch("snapshot") == Some("on");
        Some(image)
    }

    /// A node without its name, and the number in it where a daemon has chosen the name.
    fn node(&self, name: &str) -> Option<(usize, Options, Option<u32>)> {
        let (at, mut options) = self.backend("blockdev", "node-name", name)?;
        options.take("node-name");
        let number = name.strip_prefix("libvirt-").and_then(|rest| rest.split_once('-')?.0.parse().ok());
        Some((at, options, number))
    }

    fn top_node(&self, name: &str) -> Option<Image> {
        let (at, mut options, number) = self.node(name)?;
        if options.get("driver") != Some("copy-on-read") {
            return self.chained(self.layer(at, options, number)?);
        }
        options.take("driver");
        options.skip("discard", "unmap");
        let below = options.take("file")?;
        options.done()?;
        let (below_at, below, number) = self.node(&below)?;
        let mut image = self.chained(self.layer(below_at, below, number)?)?;
        image.note("copy_on_read", Some("on".to_owned()));
        image.uses.push(at);
        Some(image)
    }

    /// With its number, and with what is below it.
    fn chained(&self, mut image: Image) -> Option<Image> {
        // A daemon knows the end of every chain.
        let ends = image.number.is_some() && image.below.is_none() && image.format.as_deref() == Some("raw");
        image.backing = if ends { Some(Node::new("backingStore")) } else { self.chain(&mut image)? };
        image.source = image.source.map(|source| source.maybe("index", image.number));
        Some(image)
    }

    /// One image: its format, and where its bytes are.
    fn layer(&self, at: usize, mut options: Options, number: Option<u32>) -> Option<Image> {
        let mut image = Image { uses: vec![at], number, ..Image::default() };
        image.readonly = options.take_switch("read-only") == Some("on");
        image.cache = Cache::take(&mut options);
        image.take_common(&mut options);
        let driver = options.take("driver")?;
        let storage = ["file", "host_device", "host_cdrom"];
        if storage.contains(&driver.as_str()) {
            image.format = Some("raw".to_owned());
            options.take_switch("auto-read-only");
            (image.kind, image.source) = source(&self.path(&options.take("filename")?)?, &driver);
            options.done()?;
            return Some(image);
        }
        image.format = Some(match driver.as_str() {
            "vhdx" => "vhd".to_owned(),
            "parallels" => "ploop".to_owned(),
            "qcow2" | "qcow" | "raw" | "bochs" | "cloop" | "dmg" | "vdi" | "vpc" | "qed" | "vmdk" => driver,
            _ => return None,
        });
        image.note("discard_no_unref", options.take_switch("discard-no-unref").map(str::to_owned));
        let bytes =
            options.take("cache-size").map(|bytes| Node::with_text("max_size", bytes).set("unit", "bytes"));
        image.metadata_cache = bytes.map(|size| Node::new("metadata_cache").with(size));
        image.below = options.take("backing");
        let mut storage = match options.take("file") {
            Some(node) => {
                let (at, storage, _) = self.node(&node)?;
                image.uses.push(at);
                storage
            }
            None => options.take_inner("file"),
        };
        options.done()?;
        // The daemon sets all these for every image that has a format.
        let cache = Cache::take(&mut storage);
        storage.take_switch("auto-read-only");
        storage.take_switch("read-only");
        storage.skip("discard", "unmap");
        image.note("io", storage.take("aio"));
        let driver = storage.take("driver")?;
        (image.kind, image.source) = source(&self.path(&storage.take("filename")?)?, &driver);
        storage.done()?;
        if cache != Cache::default() && cache != image.cache {
            return None;
        }
        Some(image)
    }

    /// `<backingStore>`: what is below an image.
    fn chain(&self, image: &mut Image) -> Option<Option<Node>> {
        let mut layers = Vec::new();
        let mut below = image.below.take();
        while let Some(name) = below {
            if name == "null" {
                layers.push(Node::new("backingStore"));
                break;
            }
            let (at, options, number) = self.node(&name)?;
            let mut layer = self.layer(at, options, number)?;
            if layers.len() > MAX_LAYERS {
                return None;
            }
            below = layer.below.take();
            let format = Node::new("format").set("type", layer.format.take()?);
            layers.push(
                Node::new("backingStore")
                    .set("type", layer.kind)
                    .maybe("index", layer.number)
                    .with(format.with_any(layer.metadata_cache.take()))
                    .with_any(layer.source.take()),
            );
            image.uses.append(&mut layer.uses);
        }
        Some(layers.into_iter().rev().reduce(|below, layer| layer.with(below)))
    }
}

fn source(path: &str, driver: &str) -> (&'static str, Option<Node>) {
    match driver != "file" && (path.starts_with("/dev/") || driver.starts_with("host_")) {
        true => ("block", Some(Node::new("source").set("dev", path))),
        false => ("file", Some(Node::new("source").set("file", path))),
    }
}
