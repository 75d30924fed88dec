//! An agent that says what it likes, for fuzzers and for the tests that run what they run.

use std::sync::Arc;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

use super::guest::{self, Filesystem, GuestDisk, Interface, Load, Os, Timezone, User};
use super::{Agent, AgentError, MARKER, Patience, Request, Vcpu};
use crate::conf::domain::Domain;
use crate::conf::xml::Form;
use crate::qemu::job::{DomainHandle, DomainObject, JobError, Limits, State};
use crate::qemu::run_state::{RunState, Running};
use crate::util::uuid::Uuid;

/// With disks that an agent may mean.
const GUEST: &str = "<domain type='kvm'><name>guest</name><memory>1</memory><os><type>hvm</type></os><devices>\
    <disk type='file' device='disk'><source file='/a'/><target dev='vda' bus='virtio'/>\
    <address type='pci' domain='0' bus='0' slot='4' function='0'/></disk>\
    <disk type='file' device='disk'><source file='/b'/><target dev='sda' bus='sata'/>\
    <address type='drive' controller='0' bus='0' target='0' unit='0'/></disk>\
    <controller type='sata' index='0'><address type='pci' domain='0' bus='0' slot='31' function='2'/></controller>\
    </devices></domain>";

/// Has an agent answer everything that guests are asked with `bytes`.
pub fn agent(bytes: &[u8]) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let (Ok(runtime), Ok(domain)) = (runtime, Domain::parse(GUEST, Form::INACTIVE)) else { return };
    for question in 0..=QUESTIONS {
        runtime.block_on(async {
            let Ok((ours, guests)) = UnixStream::pair() else { return };
            let (_said, heard) = tokio::join!(speak(guests, bytes), ask(ours, &domain, question));
            let gave_up = matches!(heard, Ok(Err(AgentError::Timeout { .. } | AgentError::Silent { .. })));
            assert!(!gave_up, "waits for an agent that is gone");
        });
    }
}

/// The number of the last one in [`put`].
const QUESTIONS: u8 = 9;

/// Answers the synchronization as it should be, and the rest with `bytes`.
async fn speak(stream: UnixStream, bytes: &[u8]) -> std::io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut lines = BufReader::new(read).split(b'\n');
    if let Some(line) = lines.next_segment().await? {
        let line: Vec<u8> = line.into_iter().filter(|byte| *byte != MARKER).collect();
        let asked: Value = serde_json::from_slice(&line)?;
        let number = asked.pointer("/arguments/id").unwrap_or_default();
        write.write_all(&[&[MARKER], format!("{{\"return\": {number}}}\n").as_bytes()].concat()).await?;
    }
    lines.next_segment().await?;
    write.write_all(bytes).await
}

async fn ask(stream: UnixStream, domain: &Domain, question: u8) -> Result<Result<(), AgentError>, JobError> {
    let object = Arc::new(DomainObject::new(State::new("guest", Uuid([1; 16])), Limits::default()));
    let connect = |state: &mut State| {
        state.run = RunState::Running(Running::Booted);
        state.connect_agent(Ok(Agent::on(stream, "guest")));
    };
    object.observe(connect, |_, ()| ());
    let mut handle = DomainHandle::new(object);
    let job = handle.begin_agent().await?;
    let Ok(agent) = job.agent() else { return Ok(Ok(())) };
    Ok(put(question, &agent, domain).await)
}

async fn put(
    question: u8,
    agent: &crate::qemu::job::LiveAgent<'_>,
    domain: &Domain,
) -> Result<(), AgentError> {
    match question {
        0 => guest::hostname(agent).await.map(drop),
        1 => Vcpu::all(agent).await.map(drop),
        2 => User::all(agent).await.map(drop),
        3 => Os::of(agent).await.map(drop),
        4 => Timezone::of(agent).await.map(drop),
        5 => Load::of(agent).await.map(drop),
        6 => Interface::all(agent).await.map(drop),
        7 => Filesystem::all(agent).await.map(|found| {
            found.iter().flat_map(|it| &it.disks).filter(|disk| disk.find(domain).is_some()).count();
        }),
        8 => GuestDisk::all(agent).await.map(|found| {
            found.iter().filter_map(|it| it.address.as_ref()).filter(|it| it.find(domain).is_some()).count();
        }),
        _ => {
            let request = Request::from_text(r#"{"execute": "guest-ping"}"#)?;
            agent.ask_text(&request, Patience::BLOCK).await.map(drop)
        }
    }
}
