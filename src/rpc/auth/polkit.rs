//! polkit's word on whether a local user may come in.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use zbus::Connection;
use zbus::zvariant::{Fd, Value};

use super::identity::PeerProcess;
use super::refusal;
use crate::error::{Error, Origin, Result};
use crate::rpc::session::Rights;

/// The user may be asked for a password meanwhile.
const PATIENCE: Duration = Duration::from_secs(4 * 60);
/// The same where nobody is.
const QUICK: Duration = Duration::from_secs(30);
const NAME: &str = "org.freedesktop.PolicyKit1";
const AUTHORITY: &str = "/org/freedesktop/PolicyKit1/Authority";
const INTERFACE: &str = "org.freedesktop.PolicyKit1.Authority";
/// `CheckAuthorizationFlags`: an agent may ask the user.
const ALLOW_USER_INTERACTION: u32 = 1;

/// Whether it lets in, whether an agent could ask, and what else there is to know.
type Verdict = (bool, bool, HashMap<String, String>);

/// Where polkit is asked.
#[derive(Debug)]
pub struct Polkit {
    address: Option<String>,
    /// How long an answer may take that nobody is asked for.
    patience: Duration,
    /// Kept from the first question on.
    bus: ArcSwapOption<Connection>,
    /// How many there were: each has a name of its own on the connection.
    questions: AtomicU64,
}

impl Default for Polkit {
    fn default() -> Self {
        Self { address: None, patience: QUICK, bus: ArcSwapOption::empty(), questions: AtomicU64::new(0) }
    }
}

impl Polkit {
    /// On another bus than the system's.
    pub fn on_bus(address: &str) -> Self {
        Self { address: Some(address.to_owned()), ..Self::default() }
    }

    pub fn with_patience(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    /// Whether a process may have these rights; the refusal is what the client is told. The question is taken
    /// back when the client leaves.
    pub async fn check(
        &self,
        process: &PeerProcess,
        rights: Rights,
        leaves: impl Future<Output = ()>,
    ) -> Result<()> {
        let action = match rights {
            Rights::ReadOnly => "org.libvirt.unix.monitor",
            Rights::ReadWrite => "org.libvirt.unix.manage",
        };
        let given_up = async {
            match tokio::time::timeout(PATIENCE, leaves).await {
                Ok(()) => tracing::info!(action, "the client has left, so polkit need not answer"),
                Err(_) => tracing::warn!(action, "polkit does not answer"),
            }
        };
        let asking = self.ask(process, action, HashMap::new(), ALLOW_USER_INTERACTION, given_up);
        let (is_authorized, is_challenge, details) = asking.await?.ok_or_else(refusal)?;
        let dismissed = details.get("polkit.dismissed").is_some_and(|dismissed| dismissed == "true");
        let refused = match (is_authorized, dismissed, is_challenge) {
            (true, ..) => return Ok(()),
            (_, true, _) => Error::auth_cancelled("user cancelled authentication process"),
            (_, _, true) => Error::auth_unavailable(format!(
                "no polkit agent available to authenticate action '{action}'"
            )),
            _ => Error::auth_failed("access denied by policy"),
        };
        Err(refused.from_origin(Origin::POLKIT))
    }

    /// Whether a process may do something now, with nobody being asked for a password.
    pub async fn allows(
        &self,
        process: &PeerProcess,
        action: &str,
        details: HashMap<&str, &str>,
    ) -> Result<bool> {
        let asking = self.ask(process, action, details, 0, tokio::time::sleep(self.patience));
        let (is_authorized, ..) =
            asking.await?.ok_or_else(|| Error::auth_failed("polkit does not answer"))?;
        Ok(is_authorized)
    }

    /// `None`: the question was given up.
    async fn ask(
        &self,
        process: &PeerProcess,
        action: &str,
        details: HashMap<&str, &str>,
        flags: u32,
        given_up: impl Future<Output = ()>,
    ) -> Result<Option<Verdict>> {
        let name = format!("client-{}", self.questions.fetch_add(1, Ordering::Relaxed));
        let subject = ("unix-process", self::subject(process)?);
        let question = (subject, action, details, flags, &*name);
        let failed = |error: zbus::Error| Error::dbus_service(error.to_string()).from_origin(Origin::DBUS);
        let call = async |bus: &Connection| {
            let method = "CheckAuthorization";
            bus.call_method(Some(NAME), AUTHORITY, Some(INTERFACE), method, &question).await
        };
        let asking = async {
            if let Some(bus) = self.bus.load_full() {
                match call(&bus).await {
                    // The bus may have been restarted since the last question.
                    Err(zbus::Error::InputOutput(_)) => {}
                    answer => return answer.map_err(failed),
                }
            }
            let bus = self.connect().await?;
            call(&bus).await.map_err(failed)
        };
        tokio::select! {
            answer = asking => answer?.body().deserialize().map(Some).map_err(failed),
            () = given_up => {
                self.take_back(&name).await;
                Ok(None)
            }
        }
    }

    /// Whom polkit asks for a password is asked no longer.
    async fn take_back(&self, name: &str) {
        let Some(bus) = self.bus.load_full() else { return };
        let name = (name,);
        let taking =
            bus.call_method(Some(NAME), AUTHORITY, Some(INTERFACE), "CancelCheckAuthorization", &name);
        if let Ok(Err(error)) = tokio::time::timeout(self.patience, taking).await {
            tracing::debug!(%error, "polkit does not take a question back");
        }
    }

    async fn connect(&self) -> Result<Arc<Connection>> {
        let no_bus = |error: zbus::Error| {
            Error::internal_error(format!("Unable to get system bus connection: {error}"))
                .from_origin(Origin::DBUS)
        };
        let builder = match &self.address {
            Some(address) => zbus::connection::Builder::address(address.as_str()),
            None => zbus::connection::Builder::system(),
        };
        let building = tokio::time::timeout(QUICK, builder.map_err(no_bus)?.build()).await;
        let built = building.unwrap_or_else(|slow| Err(std::io::Error::from(slow).into()));
        let bus = Arc::new(built.map_err(no_bus)?);
        self.bus.store(Some(Arc::clone(&bus)));
        Ok(bus)
    }
}

/// A process as polkit names it: newer ones take the descriptor, which cannot mean another process.
fn subject(process: &PeerProcess) -> Result<HashMap<&'static str, Value<'static>>> {
    let pid = Pid::from_raw(process.pid);
    let handle = pid.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
    let (Some(start_time), true) = (process.start_time, process.is_still_there()) else {
        tracing::warn!(pid = process.pid, "the process that asks is gone");
        return Err(refusal());
    };
    let mut subject = HashMap::from([
        ("pid", Value::from(process.pid.cast_unsigned())),
        ("start-time", Value::from(start_time)),
        ("uid", Value::from(process.uid.cast_signed())),
    ]);
    if let Some(handle) = handle {
        subject.insert("pidfd", Value::Fd(Fd::from(handle)));
    }
    Ok(subject)
}
