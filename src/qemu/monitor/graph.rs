//! How QEMU's block nodes hang together.

use std::collections::BTreeSet;

use serde::Deserialize;

use super::is_device;

/// Everything that reads or writes images: devices and jobs above, block nodes below.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct BlockGraph {
    nodes: Vec<GraphNode>,
    edges: Vec<GraphEdge>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct GraphNode {
    id: u64,
    /// `block-backend` (what a device has), `block-job`, `block-driver` (a node).
    #[serde(rename = "type")]
    kind: String,
    name: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct GraphEdge {
    parent: u64,
    child: u64,
    /// What the child is to its parent: `root`, `file`, `backing`, …
    name: String,
}

impl BlockGraph {
    /// The first of some nodes that is met below a device; nothing if it stands on another image.
    pub fn first_below<'a>(&self, alias: &str, wanted: &[&'a str]) -> Option<&'a str> {
        let is_drive = |node: &&GraphNode| node.kind == "block-backend" && is_device(&node.name, alias);
        let mut here = self.nodes.iter().find(is_drive)?;
        for _ in 0..self.nodes.len() {
            let below = self.edges.iter().find(|edge| {
                edge.parent == here.id && matches!(edge.name.as_str(), "root" | "file" | "backing")
            })?;
            here = self.nodes.iter().find(|node| node.id == below.child)?;
            if let Some(found) = wanted.iter().find(|wanted| **wanted == here.name) {
                return Some(found);
            }
            if !is_filter(&here.name) {
                return None;
            }
        }
        None
    }

    /// The highest number that an image's node has.
    pub fn last_number(&self) -> u32 {
        self.nodes.iter().filter_map(|node| node_number(&node.name)).max().unwrap_or(0)
    }

    /// The unwanted nodes that nothing uses, each before what it stands on.
    pub fn unused(&self, is_unwanted: impl Fn(&str) -> bool) -> Vec<&str> {
        let mut gone = BTreeSet::new();
        let mut unused = Vec::new();
        let used = |gone: &BTreeSet<u64>, id| {
            self.edges.iter().any(|edge| edge.child == id && !gone.contains(&edge.parent))
        };
        while let Some(node) = self.nodes.iter().find(|node| {
            node.kind == "block-driver"
                && is_unwanted(&node.name)
                && !gone.contains(&node.id)
                && !used(&gone, node.id)
        }) {
            gone.insert(node.id);
            unused.push(node.name.as_str());
        }
        unused
    }
}

/// The number in the name of an image's node.
pub fn node_number(name: &str) -> Option<u32> {
    let (number, _) = name.strip_prefix("libvirt-")?.split_once('-')?;
    number.parse().ok().filter(|number| *number < u32::MAX / 2)
}

/// A node that shows what is below it: QEMU's own for a job, or one of the disk's.
fn is_filter(name: &str) -> bool {
    name.starts_with('#') || name.starts_with("libvirt-CoR-") || name.ends_with("-filter")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A disk that is committed into `libvirt-2-format`, one that is copied on read, and a node that nobody uses.
    fn graph() -> BlockGraph {
        serde_json::from_str(
            r##"{"nodes": [
                {"id": 1, "type": "block-backend", "name": "/machine/peripheral/virtio-disk0/virtio-backend"},
                {"id": 2, "type": "block-driver", "name": "#block123"},
                {"id": 3, "type": "block-driver", "name": "libvirt-1-format"},
                {"id": 4, "type": "block-driver", "name": "libvirt-2-format"},
                {"id": 5, "type": "block-job", "name": "commit-vda-libvirt-1-format"},
                {"id": 6, "type": "block-backend", "name": "scsi0-0-0-0"},
                {"id": 7, "type": "block-driver", "name": "libvirt-CoR-sda"},
                {"id": 8, "type": "block-driver", "name": "libvirt-3-storage"},
                {"id": 9, "type": "block-driver", "name": "libvirt-5-format"},
                {"id": 10, "type": "block-driver", "name": "libvirt-5-storage"}],
            "edges": [
                {"parent": 1, "child": 2, "name": "root"}, {"parent": 2, "child": 3, "name": "backing"},
                {"parent": 3, "child": 4, "name": "backing"}, {"parent": 5, "child": 4, "name": "target"},
                {"parent": 6, "child": 7, "name": "root"}, {"parent": 7, "child": 8, "name": "file"},
                {"parent": 9, "child": 10, "name": "file"}]}"##,
        )
        .unwrap()
    }

    #[test]
    fn a_device_stands_on_the_image_below_its_filters() {
        let graph = graph();
        let images = ["libvirt-1-format", "libvirt-2-format", "libvirt-3-storage"];
        for (alias, images, expected) in [
            ("virtio-disk0", &images[..], Some("libvirt-1-format")),
            ("virtio-disk0", &["libvirt-2-format"], None),
            ("virtio-disk", &images, None),
            ("scsi0-0-0-0", &images, Some("libvirt-3-storage")),
        ] {
            assert_eq!(graph.first_below(alias, images), expected, "{alias} {images:?}");
        }
    }

    #[test]
    fn what_nothing_uses_is_found_from_the_top() {
        let graph = graph();
        assert_eq!(graph.last_number(), 5);
        assert_eq!(graph.unused(|_| true), ["libvirt-5-format", "libvirt-5-storage"]);
        assert_eq!(graph.unused(|name| node_number(name) != Some(5)), Vec::<&str>::new());
        assert_eq!(graph.unused(|name| name == "libvirt-5-storage"), Vec::<&str>::new());
    }
}
