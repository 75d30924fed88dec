//! From a procedure number to the handler behind it.
//!
//! Every handler file opens with its routes:
//!
//! ```ignore
//! pub fn routes(r: &mut Routes) {
//!     r.on::<DomainCreateWithFlags>(create_with_flags);
//!     r.older::<DomainCreate, DomainCreateWithFlags>(|args| DomainCreateWithFlagsArgs { dom: args.dom, flags: 0 });
//! }
//!
//! async fn create_with_flags(call: Call, args: DomainCreateWithFlagsArgs) -> Result<DomainCreateWithFlagsRet> { … }
//! ```
//!
//! The kind of a procedure (plain, streamed, with descriptors) is part of its type, so a handler of the
//! wrong kind does not compile. The routes are the list of what is supported.

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use ferrovirt_protocol::frame::{Frame, FrameType, Header, Status};
use ferrovirt_protocol::procedure::{
    Acl, Entry, Kind, Plain, Procedure, Program, StreamBoth, StreamDown, StreamUp, WithFds,
};
use ferrovirt_protocol::xdr::{self, Encode};

use super::access::about::{self, About};
use super::access::driver::Object;
use super::access::{self, Access, Asking};
use super::convert;
use super::metrics::{Meter, Outcome};
use super::session::Client;
use super::stream::Pipe;
use crate::conf::domain::Domain;
use crate::drivers::Drivers;
use crate::error::{Error, Origin, Result};
use crate::util::{context, uuid};

/// One call on its way through a handler.
#[derive(Debug)]
pub struct Call {
    pub drivers: Arc<Drivers>,
    pub client: Arc<Client>,
    pub serial: u32,
    pub entry: &'static Entry,
    fds: Vec<OwnedFd>,
    /// Where there are access drivers.
    asking: Option<Asking>,
}

impl Call {
    /// The descriptors that came with the call.
    pub fn take_fds(&mut self) -> Vec<OwnedFd> {
        std::mem::take(&mut self.fds)
    }

    /// Refuses a read-only client, where the arguments make a reading call write.
    pub fn require_writable(&self) -> Result<()> {
        match self.client.is_read_only() {
            true => Err(access::refusal(self.entry)),
            false => Ok(()),
        }
    }

    /// Its client may have left before what it began was there to end with it.
    pub fn leave_nothing_behind(&self) {
        if self.client.is_gone() {
            self.drivers.domains.client_closed(self.client.id);
        }
    }

    /// Those of `all` whose object the client may see.
    pub async fn visible<T>(&self, all: Vec<T>, object: impl Fn(&T) -> Object) -> Vec<T> {
        match &self.asking {
            None => all,
            Some(asking) => asking.visible(all, "getattr", object).await,
        }
    }

    /// Those of `all` whose object the client may read.
    pub async fn readable<T>(&self, all: Vec<T>, object: impl Fn(&T) -> Object) -> Vec<T> {
        match &self.asking {
            None => all,
            Some(asking) => asking.visible(all, "read", object).await,
        }
    }

    /// Refuses a guest in a file that is not the one by which the access drivers have judged.
    pub fn judged(&self, saved: &Domain) -> Result<()> {
        self.asking.as_ref().map_or(Ok(()), |asking| asking.require_judged(saved))
    }

    /// Whether there are access drivers, so that not everything may be visible.
    pub fn is_judged(&self) -> bool {
        self.asking.is_some()
    }

    /// Refuses a read-only client what would show it a secret; `what` is the function and the flag.
    pub fn require_writable_for(&self, what: &'static str) -> Result<()> {
        let refusal = || Error::operation_denied(what).from_origin(access::origin(self.entry.api));
        if self.client.is_read_only() { Err(refusal()) } else { Ok(()) }
    }
}

/// A reply with descriptors.
#[derive(Debug)]
pub struct WithDescriptors<R> {
    pub ret: R,
    pub fds: Vec<OwnedFd>,
}

/// A reply after which data flows.
#[derive(Debug)]
pub struct Streamed<R> {
    pub ret: R,
    pub pipe: Pipe,
}

/// A procedure after which data flows, in whichever direction.
pub trait StreamKind: Kind {}
impl StreamKind for StreamUp {}
impl StreamKind for StreamDown {}
impl StreamKind for StreamBoth {}

/// An async function from a call's arguments to `Output`.
pub trait Handler<Args, Output>: Send + Sync + 'static {
    type Future: Future<Output = Result<Output>> + Send + 'static;

    fn handle(&self, call: Call, args: Args) -> Self::Future;
}

impl<Args, Output, F, Running> Handler<Args, Output> for F
where
    F: Fn(Call, Args) -> Running + Send + Sync + 'static,
    Running: Future<Output = Result<Output>> + Send + 'static,
{
    type Future = Running;

    fn handle(&self, call: Call, args: Args) -> Running {
        self(call, args)
    }
}

/// A call under way; it sends its own reply.
pub(super) type Running = Pin<Box<dyn Future<Output = ()> + Send>>;

type Start = Box<dyn Fn(Call, Bytes, Reply) -> Option<Running> + Send + Sync>;
type Boxed<R> = Pin<Box<dyn Future<Output = Result<R>> + Send>>;
/// A handler whose future is boxed, so that its code is there once, however many ways lead to it.
type Shared<Args, Output> = Arc<dyn Fn(Call, Args) -> Boxed<Output> + Send + Sync>;

fn shared<Args, Output>(handler: impl Handler<Args, Output>) -> Shared<Args, Output> {
    Arc::new(move |call, args| Box::pin(handler.handle(call, args)))
}

/// Where the answer to one call goes.
#[derive(Debug, Clone)]
pub(super) struct Reply {
    client: Arc<Client>,
    header: Header,
    /// Of a call that is known and allowed: since when it runs, and where it is counted.
    counted: Option<(Instant, Arc<Meter>)>,
}

impl Reply {
    pub(super) fn new(client: Arc<Client>, call: &Header) -> Self {
        let header = Header { kind: FrameType::REPLY, status: Status::OK, ..*call };
        Self { client, header, counted: None }
    }

    fn count(&self, outcome: Outcome) {
        if let Some((since, meter)) = &self.counted {
            meter.count(outcome, since.elapsed());
        }
    }

    fn send<R: Encode>(&self, result: Result<R>) {
        match result {
            Ok(ret) => match self.client.outbox.put(&self.header, &ret) {
                Ok(()) => self.count(Outcome::Answered),
                Err(error) => self.fail(&too_large(&error)),
            },
            Err(error) => self.fail(&error),
        }
    }

    fn send_with_fds<R: Encode>(&self, result: Result<WithDescriptors<R>>) {
        match result {
            Ok(answer) if answer.fds.is_empty() => self.send(Ok(answer.ret)),
            Ok(_) if !self.client.peer.takes_descriptors() => {
                let sentence = "file descriptors cannot be sent over this connection";
                self.fail(&Error::operation_unsupported(sentence).from_origin(Origin::RPC));
            }
            Ok(answer) => {
                let header = Header { kind: FrameType::REPLY_WITH_FDS, ..self.header };
                match self.client.outbox.put_with_fds(&header, &answer.ret, answer.fds) {
                    Ok(()) => self.count(Outcome::Answered),
                    Err(error) => self.fail(&too_large(&error)),
                }
            }
            Err(error) => self.fail(&error),
        }
    }

    /// The stream is known before its reply leaves: the client's first data may follow at once.
    fn send_streamed<R: Encode>(&self, result: Result<Streamed<R>>) {
        match result {
            Ok(answer) => {
                let stream = self.client.streams.open(&self.header);
                match self.client.outbox.put(&self.header, &answer.ret) {
                    Ok(()) => {
                        self.count(Outcome::Answered);
                        drop(tokio::spawn(context::carried(answer.pipe.run(stream))));
                    }
                    Err(error) => self.fail(&too_large(&error)),
                }
            }
            Err(error) => self.fail(&error),
        }
    }

    pub(super) fn fail(&self, error: &Error) {
        self.count(Outcome::Failed);
        tracing::debug!(%error, "call failed");
        let header = Header { status: Status::ERROR, ..self.header };
        if let Err(unsendable) = self.client.outbox.put(&header, &convert::error(error)) {
            tracing::error!(%error, %unsendable, "an error has no form on the wire");
            let plain = Error::rpc("error message too large").from_origin(Origin::RPC);
            let _ = self.client.outbox.put(&header, &convert::error(&plain));
        }
    }
}

fn too_large(error: &ferrovirt_protocol::xdr::EncodeError) -> Error {
    Error::rpc(format!("Unable to encode message payload: {error}")).from_origin(Origin::RPC)
}

struct Route {
    start: Start,
    meter: Arc<Meter>,
}

struct Table {
    program: Program,
    /// By procedure number: what it is, whether a read-only client may call it, who handles it.
    slots: Vec<Option<Slot>>,
}

impl Table {
    fn slot(&self, header: &Header) -> Option<&Slot> {
        self.slots.get(usize::try_from(header.procedure).ok()?)?.as_ref()
    }
}

struct Slot {
    entry: &'static Entry,
    reading: bool,
    needs: Needs,
    route: Option<Route>,
}

/// How far a client must have come for a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Needs {
    Nothing,
    Authentication,
    OpenConnection,
}

impl Needs {
    fn of(program: &Program, entry: &Entry) -> Self {
        match entry.name {
            name if name.starts_with("auth_") => Self::Nothing,
            "connect_open" | "connect_close" | "connect_supports_feature" => Self::Authentication,
            _ if program.name == "admin" => Self::Authentication,
            _ => Self::OpenConnection,
        }
    }
}

/// Why the routes do not fit the interface; a mistake in the program, found at start.
#[derive(Debug, thiserror::Error)]
#[error("routes: {0}")]
pub struct RouteError(String);

/// Collects routes; see the module's example.
#[derive(Default)]
pub struct Routes {
    tables: Vec<Table>,
    /// The handlers of plain calls, by type, so that an older form of the call can lead to them.
    plain: HashMap<TypeId, Box<dyn Any + Send>>,
    /// How the objects of a call are found, by its type.
    about: HashMap<TypeId, Box<dyn Any + Send>>,
    mistakes: Vec<String>,
}

impl Routes {
    /// Says how the objects of a call are found that its arguments do not name; before its route.
    pub fn about<P: Procedure>(&mut self, about: About<P>) {
        self.about.insert(TypeId::of::<P>(), Box::new(about));
    }

    /// A call on its way through the access drivers, where there are any, to its handler.
    fn handled<P: Procedure, O: 'static>(
        &mut self,
        handler: Shared<P::Args, O>,
        send: fn(&Reply, Result<O>),
    ) {
        let about =
            self.about.get(&TypeId::of::<P>()).and_then(|any| any.downcast_ref::<About<P>>()).copied();
        if about.is_none() && P::SUBJECT.is_none() {
            self.expect_no_subject(P::NAME, P::ACL);
        }
        let start: Start = Box::new(move |call, payload, reply| {
            let args = decode::<P>(&payload, &reply)?;
            let Some(asking) = call.asking.clone() else {
                let handling = handler(call, args);
                return Some(Box::pin(async move { send(&reply, handling.await) }));
            };
            let handler = Arc::clone(&handler);
            Some(Box::pin(async move {
                let handled: Boxed<O> = Box::pin(async move {
                    let entry = call.entry;
                    let objects = about::objects::<P>(&call.drivers, about, &args);
                    asking.admit(entry, P::deciding(&args), objects).await?;
                    let answer = handler(call, args).await?;
                    asking.require_filtered(entry).map(|()| answer)
                });
                send(&reply, uuid::drawn_once(handled).await)
            }))
        });
        self.add(P::PROGRAM, P::NUMBER, P::NAME, start);
    }

    fn expect_no_subject(&mut self, name: &str, acl: &[Acl]) {
        if acl.iter().any(|check| check.object != "connect") {
            self.mistakes.push(format!("nothing says which object {name} is about"));
        }
    }

    fn add(&mut self, program: Program, number: i32, name: &str, start: Start) {
        let table = self.tables.iter_mut().find(|table| table.program == program);
        let slot = table
            .and_then(|table| usize::try_from(number).ok().and_then(|at| table.slots.get_mut(at)?.as_mut()));
        match slot {
            None => self.mistakes.push(format!("{name} is no call of a served program")),
            Some(slot) if slot.route.is_some() => self.mistakes.push(format!("{name} routed twice")),
            Some(slot) => slot.route = Some(Route { start, meter: Arc::default() }),
        }
    }

    /// A plain call: arguments in, reply out.
    pub fn on<P: Procedure<Kind = Plain>>(&mut self, handler: impl Handler<P::Args, P::Ret>) {
        let handler = shared(handler);
        self.plain.insert(TypeId::of::<P>(), Box::new(Arc::clone(&handler)));
        self.handled::<P, _>(handler, Reply::send);
    }

    /// An older form of a plain call whose reply is the same: one line turns its arguments into the newer ones.
    pub fn older<Old, New>(&mut self, convert: fn(Old::Args) -> New::Args)
    where
        Old: Procedure<Kind = Plain>,
        New: Procedure<Kind = Plain, Ret = Old::Ret>,
    {
        let Some(newer) = self.newer::<Old, New>() else { return };
        self.handled::<Old, _>(Arc::new(move |call, args| newer(call, convert(args))), Reply::send);
    }

    /// As [`Routes::older`], where the reply differs as well.
    pub fn older_with<Old, New>(
        &mut self,
        convert: fn(Old::Args) -> New::Args,
        convert_ret: fn(New::Ret) -> Old::Ret,
    ) where
        Old: Procedure<Kind = Plain>,
        New: Procedure<Kind = Plain>,
    {
        let Some(newer) = self.newer::<Old, New>() else { return };
        let older = move |call, args| {
            let handling = newer(call, convert(args));
            async move { handling.await.map(convert_ret) }
        };
        self.handled::<Old, _>(shared(older), Reply::send);
    }

    /// The handler of the call to which an older one leads.
    fn newer<Old: Procedure, New: Procedure>(&mut self) -> Option<Shared<New::Args, New::Ret>> {
        let newer = self.plain.get(&TypeId::of::<New>());
        let newer = newer.and_then(|any| any.downcast_ref::<Shared<New::Args, New::Ret>>()).cloned();
        if newer.is_none() {
            self.mistakes.push(format!("{} leads to {}, which has no handler yet", Old::NAME, New::NAME));
        }
        newer
    }

    /// A call after whose reply data flows through the [`Pipe`] that the handler returns.
    pub fn on_stream<P: Procedure<Kind: StreamKind>>(
        &mut self,
        handler: impl Handler<P::Args, Streamed<P::Ret>>,
    ) {
        self.handled::<P, _>(shared(handler), Reply::send_streamed);
    }

    /// A call that takes descriptors ([`Call::take_fds`]) or answers with some.
    pub fn on_fds<P: Procedure<Kind = WithFds>>(
        &mut self,
        handler: impl Handler<P::Args, WithDescriptors<P::Ret>>,
    ) {
        self.handled::<P, _>(shared(handler), Reply::send_with_fds);
    }
}

/// Exactly the arguments, or an error reply.
fn decode<P: Procedure>(payload: &[u8], reply: &Reply) -> Option<P::Args> {
    match xdr::decode(payload) {
        Ok(args) => Some(args),
        Err(error) => {
            tracing::info!(procedure = P::NAME, %error, "malformed arguments");
            reply.fail(&Error::rpc("Unable to decode message payload").from_origin(Origin::RPC));
            None
        }
    }
}

/// Puts a router together.
#[derive(Default)]
pub struct RouterBuilder {
    routes: Routes,
}

impl RouterBuilder {
    /// Serves a program: its calls without a route answer that they are not supported.
    pub fn program(mut self, program: Program, entries: &'static [Entry]) -> Self {
        let calls = || entries.iter().filter(|entry| !entry.is_event);
        let last = calls().map(|entry| entry.number).max().unwrap_or(0);
        let mut slots = Vec::new();
        slots.resize_with(usize::try_from(last).unwrap_or(0) + 1, || None);
        for entry in calls() {
            let place = usize::try_from(entry.number).ok().and_then(|number| slots.get_mut(number));
            let reading = access::is_reading(entry);
            let needs = Needs::of(&program, entry);
            if let Some(place) = place {
                *place = Some(Slot { entry, reading, needs, route: None });
            }
        }
        self.routes.tables.push(Table { program, slots });
        self
    }

    /// Adds the routes of one handler file.
    pub fn routes(mut self, add: impl FnOnce(&mut Routes)) -> Self {
        add(&mut self.routes);
        self
    }

    pub fn build(self) -> Result<Router, RouteError> {
        match self.routes.mistakes.as_slice() {
            [] => Ok(Router { tables: self.routes.tables }),
            mistakes => Err(RouteError(mistakes.join("; "))),
        }
    }
}

/// All programs of one server, and who handles which call.
pub struct Router {
    tables: Vec<Table>,
}

impl Router {
    pub fn builder() -> RouterBuilder {
        RouterBuilder::default()
    }

    /// The calls that have a handler, by program and number: what `SUPPORTED.md` is printed from.
    pub fn supported(&self) -> impl Iterator<Item = (Program, &'static Entry)> + '_ {
        self.tables.iter().flat_map(|table| {
            let routed = table.slots.iter().flatten().filter(|slot| slot.route.is_some());
            routed.map(|slot| (table.program, slot.entry))
        })
    }

    /// What is counted of each call that has a handler.
    pub(super) fn meters(&self) -> impl Iterator<Item = (&'static Entry, &Meter)> + '_ {
        let slots = self.tables.iter().flat_map(|table| table.slots.iter().flatten());
        slots.filter_map(|slot| Some((slot.entry, &*slot.route.as_ref()?.meter)))
    }

    /// What a header calls, if that is anything.
    pub(super) fn entry(&self, header: &Header) -> Option<&'static Entry> {
        Some(self.table(header)?.slot(header)?.entry)
    }

    fn table(&self, header: &Header) -> Option<&Table> {
        let is_meant = |table: &&Table| {
            table.program.number == header.program && table.program.version == header.version
        };
        self.tables.iter().find(is_meant)
    }

    /// Checks a call, decodes it and starts its handler. `None` where the answer has already been sent.
    pub(super) fn start(
        &self,
        drivers: &Arc<Drivers>,
        client: &Arc<Client>,
        access: Option<&Arc<Access>>,
        (frame, fds): (Frame, Vec<OwnedFd>),
    ) -> Option<Running> {
        let mut reply = Reply::new(Arc::clone(client), &frame.header);
        match self.admit(client, &frame.header) {
            Ok((entry, route)) => {
                reply.counted = Some((Instant::now(), Arc::clone(&route.meter)));
                let call = Call {
                    drivers: Arc::clone(drivers),
                    client: Arc::clone(client),
                    serial: frame.header.serial,
                    entry,
                    fds,
                    asking: access.map(|access| Asking::new(Arc::clone(access), client.who())),
                };
                (route.start)(call, frame.payload, reply)
            }
            Err(error) => {
                tracing::info!(procedure = frame.header.procedure, %error, "call refused");
                reply.fail(&error);
                None
            }
        }
    }

    fn admit(&self, client: &Client, header: &Header) -> Result<(&'static Entry, &Route)> {
        let rpc = |detail: String| Error::rpc(detail).from_origin(Origin::RPC);
        let table = self.table(header).ok_or_else(|| {
            let (program, version) = (header.program.cast_signed(), header.version.cast_signed());
            rpc(format!("Cannot find program {program} version {version}"))
        })?;
        if header.status != Status::OK {
            return Err(rpc(format!("Unexpected message status {}", header.status.0.cast_unsigned())));
        }
        let unknown = || rpc(format!("unknown procedure: {}", header.procedure));
        let slot = table.slot(header).ok_or_else(unknown)?;
        if slot.needs != Needs::Nothing && !client.is_authenticated() {
            return Err(rpc("authentication required".to_owned()));
        }
        if slot.needs == Needs::OpenConnection && !client.is_open() {
            return Err(Error::internal_error("hypervisor connection not open").from_origin(Origin::RPC));
        }
        access::check(client, slot.entry, slot.reading)?;
        let route = slot.route.as_ref().ok_or_else(|| access::unsupported(slot.entry))?;
        Ok((slot.entry, route))
    }
}

impl fmt::Debug for Router {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Router").field("supported", &self.supported().count()).finish()
    }
}

impl fmt::Debug for Routes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Routes").field("mistakes", &self.mistakes).finish_non_exhaustive()
    }
}

impl fmt::Debug for RouterBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RouterBuilder").field("routes", &self.routes).finish()
    }
}
