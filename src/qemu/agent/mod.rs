//! The conversation with the agent inside a guest, over the socket of its channel.
//!
//! ```text
//!  the guest opens the port                     answers with our number
//!  ─────────────────────────▶ out of step ──────────────────────────────▶ in step
//!                                │      ▲                                  │   ▲ │
//!                                │      └── no answer, garbage, noise ◀────┘   └─┘ request, reply
//!                                └────────▶ left ◀── the guest closes the port, or ends
//! ```
//!
//! * Guests lie. Nothing is read unless a request is under way, so what an agent says unasked stays in the
//!   guest; every request has a time limit and a limit of bytes; a reply fills the type that is expected of it
//!   and nothing else.
//! * In front of a request that is not in step goes `guest-sync-delimited`: a byte that no JSON has, and a
//!   number to be answered behind such a byte. Everything before the answer is old.
//! * One request at a time: an agent is reached through [`crate::qemu::job::AgentJob`] only.

mod error;
pub mod fuzz;
pub mod guest;
mod request;
#[cfg(test)]
mod tests;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::BytesMut;
use rustix::net::Shutdown;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::sync::watch;
use tracing::debug;

pub use error::AgentError;
pub use guest::Vcpu;
pub use request::{Done, Happening, Patience, Request};

use crate::conf::devices::{Channel, ChannelTarget, CharBackend};
use crate::conf::domain::Domain;
use crate::util::{random, unix};
use request::Said;

/// The longest reply, as libvirt takes them.
const MAX_REPLY_BYTES: usize = 10 * 1024 * 1024;
/// How much may come before the answer to a synchronization: more than a channel holds back.
const MAX_NOISE_BYTES: usize = 16 * 1024 * 1024;
/// In front of a synchronization's answer, and nowhere in JSON.
const MARKER: u8 = 0xff;

/// One agent, from the moment its guest opens the port until it closes it.
#[derive(Debug)]
pub struct Agent {
    vm: String,
    stream: UnixStream,
    /// The next thing the agent says will be the reply to what it is asked next.
    in_step: AtomicBool,
    seen: watch::Sender<Seen>,
}

/// What QEMU told meanwhile.
#[derive(Debug, Clone, Copy, Default)]
struct Seen {
    left: bool,
    shutdowns: u32,
    resets: u32,
    suspends: u32,
}

impl Seen {
    fn count(&mut self, of: Happening) -> &mut u32 {
        match of {
            Happening::Shutdown => &mut self.shutdowns,
            Happening::Reset => &mut self.resets,
            Happening::Suspend => &mut self.suspends,
        }
    }

    fn has_since(mut self, mut before: Self, awaited: Option<Happening>) -> bool {
        awaited.is_some_and(|awaited| self.count(awaited) != before.count(awaited))
    }
}

/// The channel of a guest's agent.
pub fn channel(domain: &Domain) -> Option<&Channel> {
    domain.devices.channels.iter().find(|channel| is_agents(channel))
}

pub fn is_agents(channel: &Channel) -> bool {
    matches!(&channel.target, ChannelTarget::Virtio { name: Some(name), .. } if &**name == "org.qemu.guest_agent.0")
}

impl Agent {
    /// Connects to where the channel ends. Never waits.
    pub fn open(channel: &Channel, vm: &str) -> Result<Self, AgentError> {
        let CharBackend::Unix(unix) = &channel.source.backend else {
            return Err(AgentError::Unavailable);
        };
        let path = unix.path.as_deref().unwrap_or_default();
        let stream = unix::connect(Path::new(path))
            .map_err(|error| AgentError::Connect { source: Arc::new(error) })?;
        Ok(Self::on(stream, vm))
    }

    fn on(stream: UnixStream, vm: &str) -> Self {
        Self {
            vm: vm.to_owned(),
            stream,
            in_step: AtomicBool::new(false),
            seen: watch::Sender::new(Seen::default()),
        }
    }

    /// Nobody is at the other end any more: who waits for a reply goes on without.
    pub fn leave(&self) {
        // Whoever still holds this keeps the next one from the socket otherwise.
        if let Err(error) = rustix::net::shutdown(&self.stream, Shutdown::Both) {
            debug!(vm = self.vm, %error, "cannot shut the agent's socket down");
        }
        self.seen.send_modify(|seen| seen.left = true);
    }

    pub fn has_left(&self) -> bool {
        self.seen.borrow().left
    }

    /// Tells who waits for this rather than for a reply.
    pub fn notice(&self, happening: Happening) {
        self.seen.send_modify(|seen| *seen.count(happening) += 1);
    }

    /// Runs a command. None: what it awaits happened, and it will not reply.
    pub(super) async fn request<R: DeserializeOwned>(
        &self,
        request: &Request,
        patience: Patience,
    ) -> Result<Option<R>, AgentError> {
        self.converse(request, patience).await?.map(|line| request.returned(&line)).transpose()
    }

    /// Runs a command and answers what the agent wrote.
    pub(super) async fn request_text(
        &self,
        request: &Request,
        patience: Patience,
    ) -> Result<String, AgentError> {
        match self.converse(request, patience).await? {
            Some(line) => request.text(&line),
            None => Err(AgentError::Disappeared),
        }
    }

    async fn converse(&self, request: &Request, patience: Patience) -> Result<Option<BytesMut>, AgentError> {
        let mut seen = self.seen.subscribe();
        let before = *seen.borrow_and_update();
        tokio::select! {
            biased;
            _ = seen.wait_for(|now| now.left) => return Err(AgentError::Left),
            synced = self.synchronize(patience) => synced?,
        }
        debug!(vm = self.vm, command = request.name, "asks the agent");
        let over = seen.wait_for(|now| now.left || now.has_since(before, request.awaits));
        let answer = tokio::select! {
            biased;
            answer = self.ask(request, patience) => answer,
            _ = over => Err(AgentError::Disappeared),
        };
        match answer {
            Ok(line) => Ok(Some(line)),
            // An agent that is told to end the guest may go before it has said so.
            Err(AgentError::Disappeared) if request.awaits.is_some() => Ok(None),
            Err(error) => {
                debug!(vm = self.vm, command = request.name, %error, "the agent failed");
                Err(error)
            }
        }
    }

    /// Makes sure that the next thing the agent says is the reply to what it is asked next.
    async fn synchronize(&self, patience: Patience) -> Result<(), AgentError> {
        // Said unasked: a reply that came too late, or the agent has been restarted behind the port.
        match self.stream.try_read(&mut [0; 1]) {
            Ok(0) => return Err(self.ended(AgentError::Left)),
            Ok(_) => self.in_step.store(false, Ordering::Relaxed),
            Err(_) => {}
        }
        if self.in_step.load(Ordering::Relaxed) {
            return Ok(());
        }
        let limit = patience.for_sync();
        match tokio::time::timeout(limit, self.exchange_number()).await {
            Ok(Err(AgentError::Disappeared)) => Err(AgentError::Left),
            Ok(exchanged) => exchanged,
            Err(_) => Err(AgentError::Silent { seconds: limit.as_secs() }),
        }
    }

    async fn exchange_number(&self) -> Result<(), AgentError> {
        let mut bytes = [0; 4];
        random::fill(&mut bytes).map_err(|error| AgentError::Write { source: Arc::new(error) })?;
        let number = u32::from_ne_bytes(bytes);
        let mut line = vec![MARKER];
        let command = "guest-sync-delimited";
        line.extend(format!("{{\"execute\":\"{command}\",\"arguments\":{{\"id\":{number}}}}}\n").bytes());
        self.write(&line).await?;
        self.find(number).await?;
        self.in_step.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Skips to the answer with this number.
    async fn find(&self, number: u32) -> Result<(), AgentError> {
        const LONGEST: usize = 200;
        let mut chunk = vec![0; 16 * 1024];
        let mut left = MAX_NOISE_BYTES;
        // What came behind the last marker.
        let mut answer: Option<Vec<u8>> = None;
        loop {
            let count = self.read(&mut chunk).await?;
            for byte in chunk.iter().copied().take(count) {
                match &mut answer {
                    _ if byte == MARKER => answer = Some(Vec::new()),
                    Some(line) if byte == b'\n' => {
                        if is_answer(line, number) {
                            return Ok(());
                        }
                        answer = None;
                    }
                    Some(line) if line.len() < LONGEST => line.push(byte),
                    Some(_) => answer = None,
                    None => {}
                }
            }
            left = left.checked_sub(count).ok_or(AgentError::Unsynced { limit: MAX_NOISE_BYTES })?;
        }
    }

    async fn ask(&self, request: &Request, patience: Patience) -> Result<BytesMut, AgentError> {
        let limit = request.limit(patience);
        // Unless all goes well.
        self.in_step.store(false, Ordering::Relaxed);
        let exchange = async {
            self.write(request.line.as_bytes()).await?;
            self.read_reply().await
        };
        match tokio::time::timeout(limit, exchange).await {
            Ok(answer) => answer,
            Err(_) => Err(AgentError::Timeout { seconds: limit.as_secs() }),
        }
    }

    /// The line that is the reply.
    async fn read_reply(&self) -> Result<BytesMut, AgentError> {
        let mut buffer = BytesMut::new();
        let mut searched = 0;
        let mut left = MAX_REPLY_BYTES;
        loop {
            while let Some(at) = buffer[searched..].iter().position(|byte| *byte == b'\n') {
                let line = buffer.split_to(searched + at + 1);
                searched = 0;
                if !line.trim_ascii().is_empty() && Said::of(&line)? == Said::Reply {
                    self.in_step.store(buffer.is_empty(), Ordering::Relaxed);
                    return Ok(line);
                }
            }
            searched = buffer.len();
            let count = self.fill(&mut buffer).await?;
            left = left.checked_sub(count).ok_or(AgentError::TooLarge { limit: MAX_REPLY_BYTES })?;
        }
    }

    async fn write(&self, mut bytes: &[u8]) -> Result<(), AgentError> {
        let failed = |error: std::io::Error| match error.kind() {
            std::io::ErrorKind::BrokenPipe | std::io::ErrorKind::ConnectionReset => {
                self.ended(AgentError::Disappeared)
            }
            _ => AgentError::Write { source: Arc::new(error) },
        };
        while !bytes.is_empty() {
            self.stream.writable().await.map_err(failed)?;
            match self.stream.try_write(bytes) {
                Ok(count) => bytes = bytes.get(count..).unwrap_or_default(),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(failed(error)),
            }
        }
        Ok(())
    }

    async fn fill(&self, buffer: &mut BytesMut) -> Result<usize, AgentError> {
        loop {
            self.stream.readable().await.map_err(|error| self.cut(error))?;
            buffer.reserve(4096);
            match self.stream.try_read_buf(buffer) {
                Ok(0) => return Err(self.ended(AgentError::Disappeared)),
                Ok(count) => return Ok(count),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(self.cut(error)),
            }
        }
    }

    async fn read(&self, chunk: &mut [u8]) -> Result<usize, AgentError> {
        loop {
            self.stream.readable().await.map_err(|error| self.cut(error))?;
            match self.stream.try_read(chunk) {
                Ok(0) => return Err(self.ended(AgentError::Disappeared)),
                Ok(count) => return Ok(count),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(self.cut(error)),
            }
        }
    }

    fn cut(&self, error: std::io::Error) -> AgentError {
        match error.kind() {
            std::io::ErrorKind::ConnectionReset => self.ended(AgentError::Disappeared),
            _ => AgentError::Read { source: Arc::new(error) },
        }
    }

    /// The socket is closed, which nobody else may notice.
    fn ended(&self, error: AgentError) -> AgentError {
        self.leave();
        error
    }
}

fn is_answer(line: &[u8], number: u32) -> bool {
    #[derive(Deserialize)]
    struct Answer {
        #[serde(rename = "return")]
        number: u64,
    }
    serde_json::from_slice(line).is_ok_and(|answer: Answer| answer.number == u64::from(number))
}
