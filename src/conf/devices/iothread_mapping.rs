//! `<iothreads>` of a driver: which I/O threads work on which of a device's queues.

use crate::conf::xml::xml;

xml! {
    #[derive(Eq)]
    pub struct IoThreadMapping {
        child threads: Vec<MappedIoThread> = "iothread";
    }
}

xml! {
    /// Without queues the hypervisor spreads them over all threads.
    #[derive(Eq)]
    pub struct MappedIoThread {
        attr id: u32 = "id";
        child queues: Vec<MappedQueue> = "queue";
    }
}

xml! {
    #[derive(Copy, Eq)]
    pub struct MappedQueue {
        attr id: u32 = "id";
    }
}
