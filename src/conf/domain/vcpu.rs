//! Virtual CPUs and I/O threads.

use crate::conf::xml::{Element, Part, Writer, YesNo, read_body, xml, xml_enum};
use crate::conf::{ConfError, Result};
use crate::util::bitmap::Bitmap;

xml_enum! {
    /// Who chooses the host CPUs.
    pub enum Placement {
        Static = "static",
        Auto = "auto",
    }
}

/// `<vcpu>` and `<vcpus>`.
#[derive(Debug, Clone, PartialEq)]
pub struct Vcpus {
    pub placement: Placement,
    pub cpuset: Option<Bitmap>,
    pub max: u32,
    /// How many are plugged in; see [`Self::online`].
    pub current: Option<u32>,
    /// One entry per CPU, where the definition names each.
    pub individual: Vec<Vcpu>,
}

xml! {
    /// The state of one CPU.
    pub struct Vcpu {
        attr id: u32 = "id";
        attr enabled: YesNo = "enabled";
        attr hotpluggable: Option<YesNo> = "hotpluggable";
        attr order: Option<u32> = "order";
    }
}

/// As many as a set of CPUs can name; no machine takes as many.
const MAX_VCPUS: u32 = 16384;

impl Vcpus {
    /// CPUs the guest starts with.
    pub fn online(&self) -> u32 {
        if self.individual.is_empty() {
            return self.current.unwrap_or(self.max);
        }
        self.individual.iter().filter(|vcpu| vcpu.enabled.into()).count() as u32
    }

    /// Every CPU, named by the definition or not.
    pub fn each(&self) -> Vec<Vcpu> {
        if !self.individual.is_empty() {
            return self.individual.clone();
        }
        let online = self.online();
        let vcpu = |id| match id < online {
            true => Vcpu { id, enabled: YesNo::Yes, hotpluggable: Some(YesNo::No), order: None },
            false => Vcpu { id, enabled: YesNo::No, hotpluggable: Some(YesNo::Yes), order: None },
        };
        (0..self.max).map(vcpu).collect()
    }

    /// Plugs and unplugs CPUs until there are so many: the first ones that are not there, the last ones that are.
    pub fn set_online(&mut self, count: u32, mut added: Added) {
        let mut each = self.each();
        let mut online = self.online();
        if online < count {
            for vcpu in &mut each {
                if vcpu.enabled == YesNo::Yes {
                    // Those that cannot be unplugged come first.
                    if vcpu.hotpluggable == Some(YesNo::Yes) {
                        added = Added::Hotpluggable;
                    }
                } else if online < count {
                    let hotpluggable = if added == Added::Hotpluggable { YesNo::Yes } else { YesNo::No };
                    (vcpu.enabled, vcpu.hotpluggable) = (YesNo::Yes, Some(hotpluggable));
                    online += 1;
                }
            }
        } else {
            added = Added::Fixed;
            for vcpu in each.iter_mut().rev().filter(|vcpu| vcpu.enabled == YesNo::Yes) {
                if online > count {
                    (vcpu.enabled, vcpu.hotpluggable) = (YesNo::No, Some(YesNo::Yes));
                    online -= 1;
                }
            }
        }
        if self.individual.is_empty() && added == Added::Fixed {
            self.current = (count != self.max).then_some(count);
        } else {
            self.name_each(each);
        }
    }

    /// Plugs or unplugs certain CPUs, which are hotpluggable from then on.
    pub fn enable(&mut self, which: &Bitmap, enabled: YesNo) {
        let mut each = self.each();
        for vcpu in each.iter_mut().filter(|vcpu| which.contains(vcpu.id as usize)) {
            (vcpu.enabled, vcpu.hotpluggable) = (enabled, Some(YesNo::Yes));
        }
        self.name_each(each);
    }

    /// Lets there be so many at most.
    pub fn set_max(&mut self, max: u32) {
        let max = max.min(MAX_VCPUS);
        let online = self.online().min(max);
        if self.individual.is_empty() {
            self.current = (online != max).then_some(online);
        } else {
            let mut each = self.each();
            each.truncate(max as usize);
            let absent = |id| Vcpu { id, enabled: YesNo::No, hotpluggable: None, order: None };
            each.extend((each.len() as u32..max).map(absent));
            self.name_each(each);
        }
        self.max = max;
    }

    /// The order in which they were plugged means nothing any more.
    fn name_each(&mut self, each: Vec<Vcpu>) {
        self.individual = each.into_iter().map(|vcpu| Vcpu { order: None, ..vcpu }).collect();
    }
}

/// How CPUs are that come to a definition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Added {
    /// They cannot be unplugged.
    Fixed,
    Hotpluggable,
}

impl Default for Vcpus {
    fn default() -> Self {
        Self { placement: Placement::Static, cpuset: None, max: 1, current: None, individual: Vec::new() }
    }
}

impl Part for Vcpus {
    fn read(element: Element<'_>) -> Result<Self> {
        let mut vcpus = Self::default();
        if let Some(node) = element.child("vcpu") {
            let text = node.text();
            vcpus.max = text
                .trim_start()
                .parse()
                .map_err(|_| ConfError::xml("maximum vcpus count must be an integer"))?;
            if vcpus.max > MAX_VCPUS {
                return Err(ConfError::unsupported(format!("more than {MAX_VCPUS} vCPUs")));
            }
            vcpus.current = node.value("current")?;
            vcpus.placement = node.value("placement")?.unwrap_or(Placement::Static);
            if vcpus.placement == Placement::Static {
                vcpus.cpuset = node.value("cpuset")?;
                if vcpus.cpuset.as_ref().is_some_and(Bitmap::is_empty) {
                    let text = node.attribute("cpuset").unwrap_or_default();
                    return Err(ConfError::unsupported(format!("Invalid value of 'cpuset': {text}")));
                }
            }
        }
        if let Some(list) = element.child("vcpus") {
            for node in list.children_named("vcpu") {
                let vcpu = Vcpu::read(node)?;
                if vcpu.id >= vcpus.max {
                    let message = format!("vcpu id '{}' is out of range of maximum vcpu count", vcpu.id);
                    return Err(ConfError::xml(message));
                }
                vcpus.individual.push(vcpu);
            }
        }
        Ok(vcpus)
    }

    fn write_children(&self, out: &mut Writer) {
        out.element("vcpu", |out| {
            out.attribute("placement", &self.placement);
            if let Some(cpuset) = &self.cpuset {
                out.attribute("cpuset", cpuset);
            }
            if self.online() != self.max {
                out.attribute("current", &self.online());
            }
            out.body(&self.max);
        });
        if self.individual.is_empty() {
            return;
        }
        out.element("vcpus", |out| {
            let described = |id| self.individual.iter().rev().find(|vcpu| vcpu.id == id);
            for id in 0..self.max {
                let absent = Vcpu { id, enabled: YesNo::No, hotpluggable: None, order: None };
                Part::write(described(id).unwrap_or(&absent), out, "vcpu");
            }
        });
    }
}

/// `<iothreads>`, `<iothreadids>` and `<defaultiothread>`.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct IoThreads {
    pub threads: Vec<IoThread>,
    pub default_thread: Option<ThreadPool>,
}

/// One I/O thread; `explicit` when the definition names it rather than counting it.
#[derive(Debug, Clone, PartialEq)]
pub struct IoThread {
    pub id: u32,
    pub explicit: bool,
    pub pool: ThreadPool,
    pub poll: Poll,
}

xml! {
    #[derive(Copy, Eq, Default)]
    pub struct ThreadPool {
        attr min: Option<u32> = "thread_pool_min";
        attr max: Option<u32> = "thread_pool_max";
    }
}

xml! {
    /// How long the thread polls before it sleeps.
    #[derive(Copy, Eq, Default)]
    pub struct Poll {
        attr max: Option<u64> = "max";
        attr grow: Option<u64> = "grow";
        attr shrink: Option<u64> = "shrink";
    }
}

impl Part for IoThread {
    fn read(element: Element<'_>) -> Result<Self> {
        let id = element.required("id")?;
        if id == 0 {
            return Err(ConfError::zero_attribute("id", "iothread"));
        }
        let poll = element.child("poll").map(Poll::read).transpose()?.unwrap_or_default();
        Ok(Self { id, explicit: true, pool: ThreadPool::read(element)?, poll })
    }

    fn write_attributes(&self, out: &mut Writer) {
        out.attribute("id", &self.id);
        self.pool.write_attributes(out);
    }

    fn write_children(&self, out: &mut Writer) {
        self.poll.write_group(out, "poll");
    }
}

impl IoThread {
    /// More than that it is one of so many.
    fn says_something(&self) -> bool {
        self.explicit || self.pool != ThreadPool::default() || self.poll != Poll::default()
    }
}

impl IoThreads {
    /// Where one is named all are written with their numbers: from the next change on they keep them.
    pub fn keep_numbers(&mut self) {
        if self.threads.iter().any(IoThread::says_something) {
            self.threads.iter_mut().for_each(|thread| thread.explicit = true);
        }
    }
}

/// More would only exhaust the host.
const MAX_IOTHREADS: usize = 65536;

impl Part for IoThreads {
    fn read(element: Element<'_>) -> Result<Self> {
        let count: Option<u32> = match element.child("iothreads") {
            Some(node) => read_body(node)
                .map_err(|_| ConfError::xml(format!("invalid iothreads count '{}'", node.text())))?,
            None => None,
        };
        let mut threads: Vec<IoThread> = Vec::new();
        for node in element.child("iothreadids").into_iter().flat_map(|list| list.children_named("iothread"))
        {
            let thread = IoThread::read(node)?;
            if threads.iter().any(|other| other.id == thread.id) {
                return Err(ConfError::xml(format!("duplicate iothread id '{}' found", thread.id)));
            }
            threads.push(thread);
        }
        let count = count.unwrap_or(0) as usize;
        if count > MAX_IOTHREADS {
            return Err(ConfError::unsupported(format!(
                "{count} iothreads are over the limit of {MAX_IOTHREADS}"
            )));
        }
        // Those that are only counted get the lowest free ids.
        let mut id = 0;
        while threads.len() < count {
            id += 1;
            if threads.iter().all(|thread| !thread.explicit || thread.id != id) {
                threads.push(IoThread {
                    id,
                    explicit: false,
                    pool: ThreadPool::default(),
                    poll: Poll::default(),
                });
            }
        }
        let default_thread = element.child("defaultiothread").map(ThreadPool::read).transpose()?;
        Ok(Self { threads, default_thread })
    }

    fn write_children(&self, out: &mut Writer) {
        if !self.threads.is_empty() {
            out.text_element("iothreads", &(self.threads.len() as u32));
        }
        if self.threads.iter().any(IoThread::says_something) {
            out.element("iothreadids", |out| {
                for thread in &self.threads {
                    Part::write(thread, out, "iothread");
                }
            });
        }
        if let Some(pool) = &self.default_thread {
            pool.write_group(out, "defaultiothread");
        }
    }
}
