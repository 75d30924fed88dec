//! A guest's life through the crate `virt`: what it prints is compared between daemons.

use std::ffi::{CStr, c_int, c_void};
use std::fmt::Debug;
use std::sync::atomic::{AtomicBool, Ordering};

use virt::connect::Connect;
use virt::domain::Domain;
use virt::error::Error;
use virt::storage_vol::StorageVol;
use virt::{event, sys};

static OVER: AtomicBool = AtomicBool::new(false);

fn main() -> Result<(), Error> {
    let xml = std::env::args().nth(1).and_then(|path| std::fs::read_to_string(path).ok());
    event::event_register_default_impl()?;
    virt::error::clear_error_callback();
    let connection = Connect::open(None)?;
    println!("{} {}", connection.driver_type()?, connection.lib_version()?);
    watch(&connection);
    let domain = connection.define_domain_xml(&xml.unwrap_or_default())?;
    life(&connection, &domain);
    storage(&connection)?;
    while !OVER.load(Ordering::Relaxed) {
        event::event_run_default_impl()?;
    }
    Ok(())
}

fn life(connection: &Connect, domain: &Domain) {
    say("defined", connection.list_all_domains(0).map(|all| all.len()));
    say("start", domain.create());
    say("again", domain.create());
    say("state", domain.state());
    say("vcpus", domain.info().map(|info| (info.state, info.max_mem, info.memory, info.nr_virt_cpu)));
    say("block", domain.block_info("vda", 0).map(|block| block.capacity));
    say("scheduler", domain.scheduler_parameters().map(|parameters| parameters.scheduler_type));
    say("memory", domain.memory_parameters(0).map(|parameters| parameters.hard_limit));
    say("numa", domain.numa_parameters(0).map(|parameters| parameters.mode));
    say("stats", connection.all_domain_stats(0, 0).map(|all| all.len()));
    say("listed", connection.list_domains());
    say("suspend", domain.suspend());
    say("resume", domain.resume());
    say("autostart", domain.set_autostart(true).and_then(|()| domain.autostart()));
    say("rename", domain.rename("other", 0));
    say("nobody", connection.lookup_domain_by_name("nobody").map(|_| ()));
    say("key", domain.send_key(99, 0, [1].as_mut_ptr(), 1, 0));
    say("networks", connection.list_all_networks(0).map(|all| all.len()));
    say("secrets", connection.list_all_secrets(0).map(|all| all.len()));
    say("destroy", domain.destroy());
    say("undefine", domain.undefine());
}

fn storage(connection: &Connect) -> Result<(), Error> {
    let directory = std::env::var("DIR").unwrap_or_default();
    let xml = format!("<pool type='dir'><name>crate</name><target><path>{directory}</path></target></pool>");
    let pool = connection.create_storage_pool_xml(&xml, 0)?;
    say("pool", pool.info().map(|info| info.state));
    say("volumes", pool.list_volumes());
    let volume = "<volume><name>v</name><capacity>65536</capacity></volume>";
    let volume = StorageVol::create_xml(&pool, volume, 0)?;
    say("volume", volume.info().map(|info| info.capacity));
    say("delete", volume.delete(0));
    say("end", pool.destroy());
    Ok(())
}

fn say<T: Debug>(what: &str, answer: Result<T, Error>) {
    match answer {
        Ok(answer) => println!("{what}: {answer:?}"),
        Err(error) => println!("{what}: {:?} from {:?}: {}", error.code(), error.domain(), error.message()),
    }
}

/// The crate has no call for events of domains, but libvirt's own.
fn watch(connection: &Connect) {
    let lifecycle = sys::VIR_DOMAIN_EVENT_ID_LIFECYCLE as c_int;
    let callback = heard as unsafe extern "C" fn(_, _, _, _, _) -> c_int;
    // SAFETY: the callback has the form that belongs to this event, and needs no data.
    let number = unsafe {
        sys::virConnectDomainEventRegisterAny(
            connection.as_ptr(),
            std::ptr::null_mut(),
            lifecycle,
            Some(std::mem::transmute::<*const (), unsafe extern "C" fn(_, _, _)>(callback as *const ())),
            std::ptr::null_mut(),
            None,
        )
    };
    println!("watching: {}", number >= 0);
}

unsafe extern "C" fn heard(
    _connection: sys::virConnectPtr,
    domain: sys::virDomainPtr,
    event: c_int,
    detail: c_int,
    _data: *mut c_void,
) -> c_int {
    // SAFETY: libvirt gives a domain that lives as long as this call, and so does its name.
    let name = unsafe { CStr::from_ptr(sys::virDomainGetName(domain)) };
    println!("event: {} {event} {detail}", name.to_string_lossy());
    OVER.store(event == sys::VIR_DOMAIN_EVENT_UNDEFINED as c_int, Ordering::Relaxed);
    0
}
