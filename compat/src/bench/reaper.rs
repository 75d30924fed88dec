//! Reaps guests as an init does: at once.
//!
//! A guest's process is nobody's child once it runs. libvirtd takes it for alive until somebody has
//! reaped it, so that with a slow pid 1, as containers have, the benchmark would measure that one.

use std::thread;
use std::time::Duration;

use nix::sys::wait::{Id, WaitPidFlag, waitid, waitpid};
use nix::unistd::getsid;

/// Makes this process the parent of orphans below it, and a thread their undertaker.
pub(crate) fn start() {
    if rustix::process::set_child_subreaper(Some(rustix::process::getpid())).is_err() {
        return;
    }
    let own_session = getsid(None).ok();
    thread::spawn(move || {
        loop {
            let dead =
                waitid(Id::All, WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT).ok().and_then(|s| s.pid());
            match dead {
                // Daemons and guests left the session; what we started ourselves did not, and is waited for elsewhere.
                Some(pid) if getsid(Some(pid)).ok() != own_session => drop(waitpid(pid, None)),
                _ => thread::park_timeout(Duration::from_millis(5)),
            }
        }
    });
}
