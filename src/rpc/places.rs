//! Room for clients: who comes in, who waits in line, who is sent away.
//!
//! ```text
//! newcomer ──▶ clients ── too many, or too many of his ─▶ refused; root waits
//!                 │
//!                 ├─ room ───────────────────▶ served; one who is not known yet is in two rooms
//!                 └─ too many not known yet ─▶ in line ── one leaves or is known ─▶ served
//!                                                 └── the line is too long, or he waits too long ─▶ refused
//! ```
//!
//! In each room, and in line, a user of the host has three quarters at most, everybody on the network together
//! as many, one address half, and the last hundredth is root's. So nobody has to wait for what another user
//! does, and whoever accepts connections waits for nobody.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

/// How long somebody waits in line.
const PATIENCE: Duration = Duration::from_secs(5 * 60);

/// Who has come, as far as the kernel tells without a word of his own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Newcomer {
    /// Or the user whose daemon it is.
    Root,
    User(u32),
    Address(IpAddr),
}

impl Newcomer {
    /// At the other end of a unix socket.
    pub fn local(user: Option<u32>) -> Self {
        let own = rustix::process::geteuid().as_raw();
        match user {
            Some(user) if user == 0 || user == own => Self::Root,
            // Those of whom nothing is known are like one user, who is nobody else.
            user => Self::User(user.unwrap_or(u32::MAX)),
        }
    }

    /// At the other end of a network socket: with IPv6 one host has all addresses of its network.
    pub fn remote(address: IpAddr) -> Self {
        Self::Address(match address.to_canonical() {
            IpAddr::V6(address) => {
                let [a, b, c, d, ..] = address.segments();
                Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
            }
            address => address,
        })
    }

    fn groups(self) -> impl Iterator<Item = Group> {
        let (own, all) = match self {
            Self::Root => (None, None),
            Self::User(user) => (Some(Group::User(user)), None),
            Self::Address(address) => (Some(Group::Address(address)), Some(Group::Network)),
        };
        own.into_iter().chain(all)
    }
}

/// Whose places are counted together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Group {
    User(u32),
    Address(IpAddr),
    Network,
}

impl Group {
    fn share(self, limit: usize) -> usize {
        match self {
            Self::User(_) | Self::Network => limit - limit / 4,
            Self::Address(_) => limit.div_ceil(2),
        }
    }
}

impl std::fmt::Display for Group {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::User(user) => write!(f, "of user {user}, who may have"),
            Self::Address(address) => write!(f, "from {address}, which may have"),
            Self::Network => f.write_str("from the network, which may have"),
        }
    }
}

/// Refusals come as fast as somebody connects: the log has one of them in a second.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    told: Option<Instant>,
    untold: u64,
}

impl Refusals {
    const PAUSE: Duration = Duration::from_secs(1);

    /// If this one is to be told: how many before it were not.
    pub(super) fn count(&mut self, now: Instant) -> Option<u64> {
        if self.told.is_some_and(|told| now.saturating_duration_since(told) < Self::PAUSE) {
            self.untold += 1;
            return None;
        }
        self.told = Some(now);
        Some(std::mem::take(&mut self.untold))
    }
}

/// Why there is no place for a client.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Crowded {
    #[error("Too many active clients: of {limit}, the last are kept for root")]
    Everybody { limit: usize },
    #[error("Too many active clients {group} {share}")]
    Group { group: Group, share: usize },
    #[error("Too many clients wait in line: {0}")]
    Line(#[source] Box<Self>),
    #[error("the daemon ends")]
    Closed,
}

/// So many places, and whose they are now.
#[derive(Debug, Default)]
struct Room {
    /// `None`: as many as come.
    limit: Option<usize>,
    taken: usize,
    held: HashMap<Group, usize>,
}

impl Room {
    fn check(&self, newcomer: Newcomer) -> Result<(), Crowded> {
        let Some(limit) = self.limit else { return Ok(()) };
        let reserve = if newcomer == Newcomer::Root || limit <= 1 { 0 } else { limit.div_ceil(100) };
        if self.taken >= limit - reserve {
            return Err(Crowded::Everybody { limit });
        }
        let full = newcomer
            .groups()
            .find(|group| self.held.get(group).is_some_and(|&held| held >= group.share(limit)));
        full.map_or(Ok(()), |group| Err(Crowded::Group { group, share: group.share(limit) }))
    }

    fn enter(&mut self, newcomer: Newcomer) {
        self.taken += 1;
        newcomer.groups().for_each(|group| *self.held.entry(group).or_default() += 1);
    }

    fn leave(&mut self, newcomer: Newcomer) {
        self.taken -= 1;
        for group in newcomer.groups() {
            if let Some(held) = self.held.get_mut(&group) {
                *held -= 1;
                if *held == 0 {
                    self.held.remove(&group);
                }
            }
        }
    }
}

/// How many clients there may be, which may change while they come and go.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sizes {
    pub(super) clients: usize,
    /// Of those, who are not known yet; `None` sets no limit of its own.
    pub(super) unknown: Option<usize>,
    pub(super) in_line: usize,
}

#[derive(Debug)]
pub(super) struct Places {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    clients: Room,
    unknown: Room,
    line: Room,
    waiting: VecDeque<Waiter>,
    last_number: u64,
    closed: bool,
}

#[derive(Debug)]
struct Waiter {
    number: u64,
    newcomer: Newcomer,
    standing: Standing,
    place: oneshot::Sender<Place>,
}

/// What is known of a client when it comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    Known,
    Unknown,
}

impl State {
    fn check(&self, newcomer: Newcomer, standing: Standing) -> Result<(), Crowded> {
        self.clients.check(newcomer)?;
        if standing == Standing::Unknown { self.unknown.check(newcomer) } else { Ok(()) }
    }

    fn has_room(&self, newcomer: Newcomer, standing: Standing) -> bool {
        self.check(newcomer, standing).is_ok()
    }

    fn enter(&mut self, newcomer: Newcomer, standing: Standing) {
        self.clients.enter(newcomer);
        if standing == Standing::Unknown {
            self.unknown.enter(newcomer);
        }
    }

    /// Lets in whoever has waited longest and fits. They are told once the lock is released.
    fn next(&mut self) -> Option<Waiter> {
        let fits = |waiter: &Waiter| self.has_room(waiter.newcomer, waiter.standing);
        let at = self.waiting.iter().position(fits)?;
        let waiter = self.waiting.remove(at)?;
        self.line.leave(waiter.newcomer);
        self.enter(waiter.newcomer, waiter.standing);
        Some(waiter)
    }
}

/// Room for one more client; free again when it is dropped.
#[derive(Debug)]
pub struct Place {
    pub(super) client: Taken,
    /// While it is not known who the client is.
    pub(super) unknown: Option<Taken>,
}

/// One place in one room; free again when it is dropped.
#[derive(Debug)]
pub struct Taken {
    places: Arc<Places>,
    newcomer: Newcomer,
    room: fn(&mut State) -> &mut Room,
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.places.change(|state| (self.room)(state).leave(self.newcomer));
    }
}

/// When it is somebody's turn.
#[derive(Debug)]
pub enum Turn {
    Now(Place),
    Later(Waiting),
}

impl Turn {
    /// `None`: not any more.
    pub async fn place(self) -> Option<Place> {
        match self {
            Self::Now(place) => Some(place),
            Self::Later(waiting) => waiting.place().await,
        }
    }
}

/// Somebody's turn in line, which is given up when it is dropped.
#[derive(Debug)]
pub struct Waiting {
    places: Arc<Places>,
    number: u64,
    place: oneshot::Receiver<Place>,
}

impl Waiting {
    pub async fn place(mut self) -> Option<Place> {
        match tokio::time::timeout(PATIENCE, &mut self.place).await {
            Ok(place) => place.ok(),
            Err(_) => {
                tracing::warn!("a client has waited for a place in vain");
                None
            }
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut state = self.places.lock();
        if let Some(at) = state.waiting.iter().position(|waiter| waiter.number == self.number)
            && let Some(waiter) = state.waiting.remove(at)
        {
            state.line.leave(waiter.newcomer);
        }
    }
}

impl Places {
    pub(super) fn new(sizes: Sizes) -> Arc<Self> {
        let places = Self { state: Mutex::default() };
        places.lock().resize(sizes);
        Arc::new(places)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes something, and lets in whoever fits then.
    fn change(self: &Arc<Self>, change: impl FnOnce(&mut State)) {
        let mut state = self.lock();
        change(&mut state);
        let ready: Vec<_> = std::iter::from_fn(|| state.next()).collect();
        drop(state);
        for waiter in ready {
            let place = self.place(waiter.newcomer, waiter.standing);
            // Whoever has given up has no use for it, and it goes to the next.
            let _ = waiter.place.send(place);
        }
    }

    /// What stands for places that have been entered.
    fn place(self: &Arc<Self>, newcomer: Newcomer, standing: Standing) -> Place {
        let taken = |room| Taken { places: Arc::clone(self), newcomer, room };
        Place {
            client: taken(|state| &mut state.clients),
            unknown: (standing == Standing::Unknown).then(|| taken(|state| &mut state.unknown)),
        }
    }

    /// A place, or one in line. Who has a place keeps it.
    pub(super) fn line_up(self: &Arc<Self>, newcomer: Newcomer, standing: Standing) -> Result<Turn, Crowded> {
        let mut state = self.lock();
        if state.closed {
            return Err(Crowded::Closed);
        }
        if state.has_room(newcomer, standing) {
            state.enter(newcomer, standing);
            drop(state);
            return Ok(Turn::Now(self.place(newcomer, standing)));
        }
        if newcomer != Newcomer::Root {
            state.clients.check(newcomer)?;
        }
        state.line.check(newcomer).map_err(|crowded| Crowded::Line(Box::new(crowded)))?;
        state.line.enter(newcomer);
        state.last_number += 1;
        let number = state.last_number;
        let (place, told) = oneshot::channel();
        state.waiting.push_back(Waiter { number, newcomer, standing, place });
        Ok(Turn::Later(Waiting { places: Arc::clone(self), number, place: told }))
    }

    /// Nobody is let in any more.
    pub(super) fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        state.line = Room { limit: state.line.limit, ..Room::default() };
        let waiting = std::mem::take(&mut state.waiting);
        drop((state, waiting));
    }

    /// Who has a place keeps it, even beyond a lower limit.
    pub(super) fn set_sizes(self: &Arc<Self>, sizes: Sizes) {
        self.change(|state| state.resize(sizes));
    }

    pub(super) fn sizes(&self) -> Sizes {
        let state = self.lock();
        let limit = |room: &Room| room.limit.unwrap_or(usize::MAX);
        Sizes { clients: limit(&state.clients), unknown: state.unknown.limit, in_line: limit(&state.line) }
    }
}

impl State {
    fn resize(&mut self, sizes: Sizes) {
        self.clients.limit = Some(sizes.clients);
        self.unknown.limit = sizes.unknown;
        self.line.limit = Some(sizes.in_line);
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::Standing::{Known, Unknown};
    use super::*;

    fn now<F: Future>(future: F) -> Option<F::Output> {
        match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(output) => Some(output),
            Poll::Pending => None,
        }
    }

    fn places(clients: usize, unknown: usize, in_line: usize) -> Arc<Places> {
        Places::new(Sizes { clients, unknown: Some(unknown), in_line })
    }

    /// As many places as there are now for somebody, and why there is no more.
    fn fill(places: &Arc<Places>, newcomer: Newcomer, standing: Standing) -> (Vec<Place>, Option<Crowded>) {
        let mut taken = Vec::new();
        loop {
            match places.line_up(newcomer, standing) {
                Ok(Turn::Now(place)) => taken.push(place),
                Ok(Turn::Later(_)) => return (taken, None),
                Err(crowded) => return (taken, Some(crowded)),
            }
        }
    }

    #[test]
    fn nobody_takes_what_others_need() {
        let places = places(100, 20, 100);
        let address = |text: &str| Newcomer::remote(text.parse().unwrap());
        let (greedy, why) = fill(&places, Newcomer::User(7), Known);
        assert_eq!((greedy.len(), why), (75, Some(Crowded::Group { group: Group::User(7), share: 75 })));
        let (second, why) = fill(&places, Newcomer::User(8), Known);
        assert_eq!((second.len(), why), (24, Some(Crowded::Everybody { limit: 100 })));
        let (root, why) = fill(&places, Newcomer::Root, Known);
        assert_eq!((root.len(), why), (1, None), "root waits where others are sent away");
        drop((greedy, second, root));
        let (first, _) = fill(&places, address("192.0.2.1"), Known);
        let (all, _) = fill(&places, address("192.0.2.2"), Known);
        assert_eq!((first.len(), all.len()), (50, 25));
        drop((first, all));
        assert!(places.lock().clients.held.is_empty(), "nothing is kept of those who have gone");
    }

    #[tokio::test]
    async fn who_says_nothing_holds_up_himself() {
        let places = places(100, 20, 10);
        let (silent, why) = fill(&places, Newcomer::User(7), Unknown);
        assert_eq!((silent.len(), why), (15, None), "who is not known yet waits for his own");
        let (others, _) = fill(&places, Newcomer::User(8), Unknown);
        assert_eq!(others.len(), 4);
        assert_eq!(fill(&places, Newcomer::Root, Unknown).0.len(), 1);
        assert!(matches!(places.line_up(Newcomer::User(7), Known), Ok(Turn::Now(_))));
        let line: Vec<_> = (0..7).map(|_| places.line_up(Newcomer::User(7), Unknown)).collect();
        assert!(line.iter().all(|turn| matches!(turn, Ok(Turn::Later(_)))));
        assert!(places.line_up(Newcomer::User(7), Unknown).is_ok());
        let Ok(Turn::Later(other)) = places.line_up(Newcomer::User(8), Unknown) else { panic!() };
        let mut other = Box::pin(other.place());
        assert!(now(other.as_mut()).is_none());
        drop(others);
        assert!(now(other.as_mut()).unwrap().is_some(), "those before him wait for their own");
        drop((line, silent));
        assert_eq!(places.lock().line.taken, 0);
    }

    #[test]
    fn the_line_has_an_end() {
        let places = places(100, 1, 8);
        let _unknown = fill(&places, Newcomer::Root, Unknown);
        let line: Vec<_> = (0..6).map(|_| places.line_up(Newcomer::User(7), Unknown).unwrap()).collect();
        let full = places.line_up(Newcomer::User(7), Unknown).unwrap_err().to_string();
        assert_eq!(full, "Too many clients wait in line: Too many active clients of user 7, who may have 6");
        let _other = places.line_up(Newcomer::User(8), Unknown).unwrap();
        assert!(places.line_up(Newcomer::User(9), Unknown).is_err());
        let _root = places.line_up(Newcomer::Root, Unknown).unwrap();
        drop(line);
        assert!(places.line_up(Newcomer::User(7), Unknown).is_ok(), "who gives up makes room in line");
    }

    #[tokio::test]
    async fn there_is_room_up_to_the_limit_of_the_moment() {
        let places = places(1, 1, 10);
        let later = || match places.line_up(Newcomer::Root, Known) {
            Ok(Turn::Later(waiting)) => Box::pin(waiting.place()),
            other => panic!("{other:?}"),
        };
        let Ok(Turn::Now(first)) = places.line_up(Newcomer::Root, Known) else { panic!() };
        let mut second = later();
        places.set_sizes(Sizes { clients: 2, ..places.sizes() });
        let second = now(second.as_mut()).unwrap().unwrap();
        places.set_sizes(Sizes { clients: 1, ..places.sizes() });
        drop(first);
        let mut third = later();
        assert!(now(third.as_mut()).is_none(), "the limit is lower now");
        drop(second);
        assert!(now(third.as_mut()).unwrap().is_some(), "who waits hears of it");
        let _fourth = fill(&places, Newcomer::Root, Known);
        let mut waiting = later();
        places.close();
        assert!(now(waiting.as_mut()).unwrap().is_none());
        assert!(places.line_up(Newcomer::Root, Known).is_err());
    }

    #[test]
    fn a_flood_of_refusals_is_told_once_in_a_while() {
        let mut refusals = Refusals::default();
        let begin = Instant::now();
        let told = |refusals: &mut Refusals, ms| refusals.count(begin + Duration::from_millis(ms));
        assert_eq!(told(&mut refusals, 0), Some(0));
        assert!((1..1000).all(|ms| told(&mut refusals, ms).is_none()));
        assert_eq!(told(&mut refusals, 1000), Some(999));
        assert_eq!(told(&mut refusals, 9000), Some(0));
    }

    #[test]
    fn one_host_has_many_addresses() {
        let of = |text: &str| Newcomer::remote(text.parse().unwrap());
        assert_eq!(of("2001:db8::1"), of("2001:db8::2:3:4:5"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_eq!(of("::ffff:192.0.2.1"), of("192.0.2.1"));
    }
}
