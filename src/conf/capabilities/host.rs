//! What `<capabilities>` says of the host.

use crate::conf::xml::Writer;
use crate::util::arch::Arch;
use crate::util::bitmap::Bitmap;
use crate::util::uuid::Uuid;

/// `<host>`
#[derive(Debug, Clone)]
pub struct Host {
    pub uuid: Uuid,
    pub arch: Option<Arch>,
    pub cpu: HostCpu,
    /// KiB.
    pub page_sizes: Vec<u32>,
    pub iommu: Iommu,
    pub cells: Vec<Cell>,
    pub caches: Vec<CacheBank>,
    pub security: Vec<SecurityModel>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Iommu {
    Present,
    Absent,
}

/// The processor, as far as it could be found out.
#[derive(Debug, Clone, Default)]
pub struct HostCpu {
    pub model: Option<String>,
    pub vendor: Option<String>,
    pub microcode: Option<u32>,
    pub signature: Option<Signature>,
    pub counter: Option<TscCounter>,
    pub topology: Option<HostTopology>,
    pub phys_bits: Option<u32>,
    /// What it has beyond the model.
    pub features: Vec<String>,
}

/// The numbers by which x86 processors tell their kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Signature {
    pub family: u32,
    pub model: u32,
    pub stepping: u32,
}

/// A time stamp counter that ticks evenly.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TscCounter {
    pub frequency_hz: u64,
    /// Whether guests may have another frequency; unknown to some hosts.
    pub scaling: Option<bool>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostTopology {
    pub sockets: u32,
    pub dies: u32,
    pub clusters: u32,
    pub cores: u32,
    pub threads: u32,
}

/// A NUMA cell.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cell {
    pub id: u32,
    pub memory_kib: u64,
    /// By size.
    pub pages: Vec<Pages>,
    pub distances: Vec<Distance>,
    pub cpus: Vec<Cpu>,
}

/// The pages of one size that a cell has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pages {
    pub size_kib: u32,
    pub count: u64,
}

/// How far another cell's memory is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Distance {
    pub cell: u32,
    pub value: u32,
}

/// A logical processor and where it sits.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cpu {
    pub id: u32,
    pub socket: u32,
    pub die: u32,
    pub cluster: u32,
    pub core: u32,
    /// The threads of the same core, itself among them.
    pub siblings: Bitmap,
}

/// A cache that some processors share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheBank {
    pub id: u32,
    pub level: u32,
    pub kind: CacheKind,
    /// Bytes.
    pub size: u64,
    pub cpus: Bitmap,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CacheKind {
    Both,
    Code,
    Data,
}

impl CacheKind {
    fn as_str(self) -> &'static str {
        match self {
            Self::Both => "both",
            Self::Code => "code",
            Self::Data => "data",
        }
    }
}

/// How guests are kept apart from the host and each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecurityModel {
    pub model: &'static str,
    pub doi: &'static str,
    /// By guest type: the label that guests get which name none.
    pub base_labels: Vec<(&'static str, String)>,
}

impl Host {
    pub(super) fn write(&self, out: &mut Writer) {
        out.element("host", |out| {
            out.text_element("uuid", &self.uuid.to_string());
            out.element("cpu", |out| {
                if let Some(arch) = self.arch {
                    out.element("arch", |out| out.body(&arch.to_string()));
                }
                self.cpu.write(out);
                for size in &self.page_sizes {
                    out.element("pages", |out| {
                        out.attribute_str("unit", "KiB");
                        out.attribute("size", size);
                    });
                }
            });
            // Hosts are not suspended through this daemon, so none of the ways to do it is offered.
            out.empty("power_management");
            let iommu = if self.iommu == Iommu::Present { "yes" } else { "no" };
            out.element("iommu", |out| out.attribute_str("support", iommu));
            write_migration(out);
            out.element("topology", |out| self.write_cells(out));
            out.group("cache", |out| self.caches.iter().for_each(|bank| bank.write(out)));
            self.security.iter().for_each(|model| model.write(out));
        });
    }

    fn write_cells(&self, out: &mut Writer) {
        out.element("cells", |out| {
            out.attribute("num", &count(self.cells.len()));
            self.cells.iter().for_each(|cell| cell.write(out));
        });
    }
}

fn write_migration(out: &mut Writer) {
    out.element("migration_features", |out| {
        out.empty("live");
        out.element("uri_transports", |out| {
            for transport in ["tcp", "rdma"] {
                out.text_element("uri_transport", &transport.to_owned());
            }
        });
    });
}

impl HostCpu {
    fn write(&self, out: &mut Writer) {
        if let Some(model) = &self.model {
            out.text_element("model", model);
        }
        if let Some(vendor) = &self.vendor {
            out.text_element("vendor", vendor);
        }
        if let Some(microcode) = &self.microcode {
            out.element("microcode", |out| out.attribute("version", microcode));
        }
        if let Some(signature) = &self.signature {
            out.element("signature", |out| {
                out.attribute("family", &signature.family);
                out.attribute("model", &signature.model);
                out.attribute("stepping", &signature.stepping);
            });
        }
        if let Some(counter) = &self.counter {
            out.element("counter", |out| {
                out.attribute_str("name", "tsc");
                out.attribute("frequency", &counter.frequency_hz);
                if let Some(scaling) = counter.scaling {
                    out.attribute_str("scaling", if scaling { "yes" } else { "no" });
                }
            });
        }
        if let Some(topology) = &self.topology {
            out.element("topology", |out| {
                out.attribute("sockets", &topology.sockets);
                out.attribute("dies", &topology.dies);
                out.attribute("clusters", &topology.clusters);
                out.attribute("cores", &topology.cores);
                out.attribute("threads", &topology.threads);
            });
        }
        if let Some(bits) = &self.phys_bits {
            out.element("maxphysaddr", |out| {
                out.attribute_str("mode", "emulate");
                out.attribute("bits", bits);
            });
        }
        for feature in &self.features {
            out.element("feature", |out| out.attribute("name", feature));
        }
    }
}

impl Cell {
    fn write(&self, out: &mut Writer) {
        out.element("cell", |out| {
            out.attribute("id", &self.id);
            if self.memory_kib > 0 {
                out.element("memory", |out| {
                    out.attribute_str("unit", "KiB");
                    out.body(&self.memory_kib);
                });
            }
            for pages in &self.pages {
                out.element("pages", |out| {
                    out.attribute_str("unit", "KiB");
                    out.attribute("size", &pages.size_kib);
                    out.body(&pages.count);
                });
            }
            out.group("distances", |out| {
                for distance in &self.distances {
                    out.element("sibling", |out| {
                        out.attribute("id", &distance.cell);
                        out.attribute("value", &distance.value);
                    });
                }
            });
            out.element("cpus", |out| {
                out.attribute("num", &count(self.cpus.len()));
                self.cpus.iter().for_each(|cpu| cpu.write(out));
            });
        });
    }
}

impl Cpu {
    fn write(&self, out: &mut Writer) {
        out.element("cpu", |out| {
            out.attribute("id", &self.id);
            out.attribute("socket_id", &self.socket);
            out.attribute("die_id", &self.die);
            out.attribute("cluster_id", &self.cluster);
            out.attribute("core_id", &self.core);
            out.attribute_str("siblings", &self.siblings.to_string());
        });
    }
}

impl CacheBank {
    fn write(&self, out: &mut Writer) {
        let (size, unit) = pretty(self.size);
        out.element("bank", |out| {
            out.attribute("id", &self.id);
            out.attribute("level", &self.level);
            out.attribute_str("type", self.kind.as_str());
            out.attribute("size", &size);
            out.attribute_str("unit", unit);
            out.attribute_str("cpus", &self.cpus.to_string());
        });
    }
}

/// A size in the largest unit that needs no fraction.
fn pretty(bytes: u64) -> (u64, &'static str) {
    let units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let mut size = bytes;
    let mut unit = 0;
    while size > 0 && size.is_multiple_of(1024) && unit + 1 < units.len() {
        size /= 1024;
        unit += 1;
    }
    (size, units.get(unit).copied().unwrap_or("B"))
}

fn count(items: usize) -> u32 {
    u32::try_from(items).unwrap_or(u32::MAX)
}

impl SecurityModel {
    fn write(&self, out: &mut Writer) {
        out.element("secmodel", |out| {
            out.text_element("model", &self.model.to_owned());
            out.text_element("doi", &self.doi.to_owned());
            for (guest_type, label) in &self.base_labels {
                out.element("baselabel", |out| {
                    out.attribute_str("type", guest_type);
                    out.body(label);
                });
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_takes_the_largest_unit_that_fits() {
        let cases = [(0, (0, "B")), (1023, (1023, "B")), (48 << 10, (48, "KiB")), (32 << 20, (32, "MiB"))];
        for (bytes, expected) in cases {
            assert_eq!(pretty(bytes), expected);
        }
    }
}
