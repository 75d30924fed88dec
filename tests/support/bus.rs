//! A bus of a test's own, and on it a polkit that answers as the test says.

#![allow(clippy::too_many_arguments, reason = "polkit's interface has so many")]

use std::collections::HashMap;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex};

use ferrovirt_compat::command;
use zbus::message::Header;
use zbus::zvariant::OwnedValue;

/// What polkit was asked.
#[derive(Debug, Clone)]
#[allow(dead_code, reason = "no test looks at everything")]
pub(crate) struct Question {
    pub action: String,
    pub flags: u32,
    /// The kind of the subject, and what is known of it.
    pub kind: String,
    pub subject: HashMap<String, String>,
    pub uid: i32,
    pub details: HashMap<String, String>,
    /// The connection that it came by, and its name there.
    pub sender: String,
    pub name: String,
}

/// Whether it lets in, whether an agent could ask, and what else there is to know.
pub(crate) type Verdict = (bool, bool, HashMap<String, String>);

pub(crate) fn verdict(is_authorized: bool) -> Option<Verdict> {
    Some((is_authorized, false, HashMap::new()))
}

/// `None`: it never answers.
type Judge = dyn Fn(&Question) -> Option<Verdict> + Send + Sync;

/// polkit's authority.
#[derive(Clone)]
#[allow(dead_code, reason = "no test looks at everything")]
pub(crate) struct FakePolkit {
    pub asked: Arc<Mutex<Vec<Question>>>,
    /// The names of questions that need no answer any more.
    pub taken_back: Arc<Mutex<Vec<String>>>,
    judge: Arc<Judge>,
}

#[zbus::interface(name = "org.freedesktop.PolicyKit1.Authority")]
impl FakePolkit {
    async fn check_authorization(
        &self,
        #[zbus(header)] header: Header<'_>,
        subject: (String, HashMap<String, OwnedValue>),
        action: String,
        details: HashMap<String, String>,
        flags: u32,
        cancellation: String,
    ) -> (Verdict,) {
        let facts = subject.1.iter().map(|(name, value)| (name.clone(), format!("{:?}", **value)));
        let question = Question {
            action,
            flags,
            kind: subject.0,
            subject: facts.collect(),
            uid: i32::try_from(&subject.1["uid"]).unwrap(),
            details,
            sender: header.sender().unwrap().to_string(),
            name: cancellation,
        };
        self.asked.lock().unwrap().push(question.clone());
        match (self.judge)(&question) {
            Some(verdict) => (verdict,),
            None => std::future::pending().await,
        }
    }

    fn cancel_check_authorization(&self, cancellation: String) {
        self.taken_back.lock().unwrap().push(cancellation);
    }
}

impl FakePolkit {
    pub(crate) fn new(judge: impl Fn(&Question) -> Option<Verdict> + Send + Sync + 'static) -> Self {
        Self { asked: Arc::default(), taken_back: Arc::default(), judge: Arc::new(judge) }
    }

    /// Answers as long as the connection is kept.
    pub(crate) async fn serve(&self, bus: &Bus) -> zbus::Connection {
        let builder = zbus::connection::Builder::address(&*bus.address()).unwrap();
        let builder = builder.name("org.freedesktop.PolicyKit1").unwrap();
        let builder = builder.serve_at("/org/freedesktop/PolicyKit1/Authority", self.clone()).unwrap();
        builder.build().await.unwrap()
    }
}

pub(crate) struct Bus {
    daemon: Child,
    socket: PathBuf,
}

impl Bus {
    /// One that listens in a directory, under the name that the system's has.
    pub(crate) fn start(directory: &Path) -> Self {
        let socket = directory.join("system_bus_socket");
        let settings = format!(
            "<busconfig><type>session</type><listen>unix:path={}</listen><policy context='default'>\
             <allow send_destination='*'/><allow receive_sender='*'/><allow own='*'/><allow user='*'/></policy></busconfig>",
            socket.display()
        );
        let file = directory.join("bus.conf");
        fs::write(&file, settings).unwrap();
        let mut daemon = command("dbus-daemon");
        daemon.arg(format!("--config-file={}", file.display())).args([
            "--nofork",
            "--nopidfile",
            "--print-address=1",
        ]);
        let mut daemon = daemon.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        // It says where it listens once it does.
        assert!(daemon.stdout.as_mut().unwrap().read(&mut [0; 8]).unwrap() > 0);
        Self { daemon, socket }
    }

    pub(crate) fn address(&self) -> String {
        format!("unix:path={}", self.socket.display())
    }
}

impl Drop for Bus {
    fn drop(&mut self) {
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
        let _ = fs::remove_file(&self.socket);
    }
}
