//! Connections: how many there may be, and for how long one may do nothing.
//!
//! actix-web watches over the first request head of a connection and over idle ones. What it leaves
//! open is closed here: later heads that dribble in, and clients that do not read their answers.

use std::{
    collections::{BTreeMap, HashMap},
    hash::Hash,
    io, mem,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
    time::Duration,
};

use actix_web::rt::net::TcpStream;
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use super::address::TrustedProxies;
use crate::{
    clock::AgreedClock,
    metrics::{Metrics, OpenConnection},
    throttle::{AddressPrefix, Site},
};

/// How many bytes are read from a connection until others have their turn.
///
/// actix-web answers whatever it has read in one go. Of the shortest requests there are some fifty
/// in this, and most are whole in it.
const TURN: usize = 2048;

/// As many connections as this many addresses may all the networks of one IPv6 site have.
const SHARES_OF_SITE: usize = 4;

/// How connections are limited; none is no limit.
#[derive(Clone, Copy, Debug)]
pub struct ConnectionLimits {
    /// How many there may be.
    pub total: Option<usize>,
    /// How many one client may have.
    pub per_address: Option<usize>,
    /// How long one may be idle between two requests.
    pub keep_alive: Option<Duration>,
}

/// The connections of a listener.
#[derive(Debug)]
pub(super) struct Connections {
    limits: ConnectionLimits,
    /// They have as many connections as they need.
    proxies: TrustedProxies,
    open: Mutex<Open>,
    metrics: Metrics,
    /// The listener, as the metrics call it.
    listener: &'static str,
}

#[derive(Debug, Default)]
struct Open {
    /// By age.
    all: BTreeMap<u64, Counted>,
    by_address: HashMap<AddressPrefix, usize>,
    /// Those of IPv6 alone.
    by_site: HashMap<Site, usize>,
    last: u64,
}

/// A connection, as it is counted.
#[derive(Debug)]
struct Counted {
    /// None for a trusted proxy.
    prefix: Option<AddressPrefix>,
    activity: Activity,
}

impl Open {
    fn remove(&mut self, number: u64) {
        let Some(Counted { prefix, .. }) = self.all.remove(&number) else {
            return;
        };
        if let Some(prefix) = prefix {
            decrement(&mut self.by_address, &prefix);
            if let Some(site) = Site::of(prefix) {
                decrement(&mut self.by_site, &site);
            }
        }
    }

    /// Ends the oldest connection that has sent nothing yet, or else the oldest that waits for a
    /// next request, or else the oldest whose request has not wholly arrived; none of a proxy, whose
    /// requests would be lost. Whether there was one.
    fn make_room(&mut self) -> bool {
        let strangers = self.all.iter().filter(|(_, open)| open.prefix.is_some());
        let phases = strangers.map(|(number, open)| (open.activity.phase(), *number));
        let Some((_, number)) = phases.filter(|(phase, _)| *phase < Phase::Asking).min() else {
            return false;
        };
        if let Some(open) = self.all.get(&number) {
            open.activity.evict();
        }
        // It takes no more than a moment until it has gone.
        self.remove(number);
        true
    }
}

fn decrement<K: Eq + Hash>(counts: &mut HashMap<K, usize>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}

impl Connections {
    pub(super) fn new(
        limits: ConnectionLimits,
        proxies: TrustedProxies,
        metrics: Metrics,
        listener: &'static str,
    ) -> Arc<Self> {
        Arc::new(Self {
            limits,
            proxies,
            open: Mutex::default(),
            metrics,
            listener,
        })
    }

    /// Counts one more, if there may be one more.
    ///
    /// # Security
    /// Strangers open connections. The share of an address, and of an IPv6 site, which has 65536
    /// networks, is what keeps one of them from taking all. Many of them take what nobody uses from
    /// each other. What is remembered is bounded by the connections that are open.
    pub(super) fn admit(self: &Arc<Self>, peer: IpAddr) -> Option<Admission> {
        let prefix = (!self.proxies.trusts(peer)).then(|| AddressPrefix::from(peer));
        let site = prefix.and_then(Site::of);
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let (Some(prefix), Some(most)) = (prefix, self.limits.per_address) {
            let own = open.by_address.get(&prefix).copied().unwrap_or_default();
            let of_site = site.and_then(|site| open.by_site.get(&site).copied());
            if own >= most || of_site.unwrap_or_default() >= most.saturating_mul(SHARES_OF_SITE) {
                return None;
            }
        }
        let is_full = self.limits.total.is_some_and(|most| open.all.len() >= most);
        if is_full && !open.make_room() {
            return None;
        }
        if let Some(prefix) = prefix {
            *open.by_address.entry(prefix).or_default() += 1;
        }
        if let Some(site) = site {
            *open.by_site.entry(site).or_default() += 1;
        }
        open.last += 1;
        let number = open.last;
        let activity = Activity::default();
        let counted = Counted {
            prefix,
            activity: activity.clone(),
        };
        open.all.insert(number, counted);
        Some(Admission {
            _open: self.metrics.connection(self.listener),
            connections: Arc::clone(self),
            number,
            activity,
        })
    }
}

/// Where connections come in: counts them, and speaks TLS where that is asked for.
#[derive(Clone)]
pub(super) struct Door {
    pub(super) connections: Arc<Connections>,
    pub(super) tls: Option<Arc<ServerConfig>>,
    pub(super) patience: Patience,
}

impl Door {
    /// Lets a connection in, or ends it.
    pub(super) async fn admit(self, io: TcpStream) -> io::Result<(Stream, Option<SocketAddr>)> {
        let peer = io.peer_addr()?;
        let admission = self.connections.admit(peer.ip());
        if admission.is_none() {
            self.connections.metrics.throttled("connections");
        }
        // Ended without a word: it would have to be waited for until it is read.
        let admission = admission.ok_or(io::ErrorKind::ConnectionRefused)?;
        // Answers are short and wait for nothing.
        io.set_nodelay(true)?;
        let io = Connection::new(io, self.patience.clone(), admission);
        let Some(tls) = self.tls else {
            return Ok((Box::new(io), Some(peer)));
        };
        let handshake = TlsAcceptor::from(tls).accept(io);
        let io = match self.patience.handshake {
            None => handshake.await?,
            Some(longest) => tokio::select! {
                io = handshake => io?,
                () = self.patience.clock.sleep(longest) => return Err(io::ErrorKind::TimedOut.into()),
            },
        };
        Ok((Box::new(io), Some(peer)))
    }
}

/// A connection, with or without TLS.
pub(super) type Stream = Box<dyn Duplex>;

/// What a connection can do, with or without TLS.
pub(super) trait Duplex: AsyncRead + AsyncWrite + Unpin {
    /// What the handling of requests has to tell.
    fn activity(&self) -> Activity;
}

impl Duplex for Connection {
    fn activity(&self) -> Activity {
        self.activity.clone()
    }
}

impl Duplex for TlsStream<Connection> {
    fn activity(&self) -> Activity {
        self.get_ref().0.activity()
    }
}

/// One connection that counts for as long as this is held, or until it is evicted.
#[derive(Debug)]
pub(super) struct Admission {
    _open: OpenConnection,
    connections: Arc<Connections>,
    number: u64,
    activity: Activity,
}

impl Drop for Admission {
    fn drop(&mut self) {
        let open = self.connections.open.lock();
        let mut open = open.unwrap_or_else(PoisonError::into_inner);
        open.remove(self.number);
    }
}

/// What has become of the requests of a connection.
#[derive(Clone, Debug, Default)]
pub(super) struct Activity(Arc<Mutex<Requests>>);

#[derive(Debug, Default)]
struct Requests {
    phase: Phase,
    /// A request head has arrived since the connection last looked. It may have its answer already.
    has_begun: bool,
    /// Another connection has its place.
    is_evicted: bool,
    /// What waits for the next request.
    waker: Option<Waker>,
}

/// In the order in which they make room for others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    /// No whole request head has arrived yet.
    #[default]
    Unused,
    /// All requests have their answers.
    Answered,
    /// The body of a request is still to arrive.
    Sending,
    /// A request waits for its answer. Nobody makes room then: the client has done its part.
    Asking,
}

impl Activity {
    fn requests(&self) -> MutexGuard<'_, Requests> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A request head has arrived.
    pub(super) fn begin(&self) {
        let mut requests = self.requests();
        requests.has_begun = true;
        requests.phase = Phase::Asking;
    }

    /// The service waits for the body of the request.
    pub(super) fn await_body(&self) {
        self.requests().phase = Phase::Sending;
    }

    /// The body has arrived, or nobody waits for it any more.
    pub(super) fn end_body(&self) {
        self.requests().phase = Phase::Asking;
    }

    /// The request has its answer.
    pub(super) fn end(&self) {
        self.requests().phase = Phase::Answered;
    }

    fn phase(&self) -> Phase {
        self.requests().phase
    }

    /// Ends the connection.
    fn evict(&self) {
        let mut requests = self.requests();
        requests.is_evicted = true;
        let waker = requests.waker.take();
        drop(requests);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// How long a connection may keep others waiting.
#[derive(Clone, Debug)]
pub(super) struct Patience {
    pub(super) clock: AgreedClock,
    /// How long the beginning of TLS may take.
    pub(super) handshake: Option<Duration>,
    /// How long a client may take no byte of an answer.
    pub(super) unread: Option<Duration>,
    /// How long an answered client may take until its next request head is there.
    pub(super) next_head: Option<Duration>,
}

type Sleep = Pin<Box<dyn Future<Output = ()>>>;

impl Patience {
    /// Whether `span` has passed since `sleep` began; begins it if it has not begun.
    fn is_over(
        &self,
        sleep: &mut Option<Sleep>,
        span: Option<Duration>,
        context: &mut Context<'_>,
    ) -> bool {
        let Some(span) = span else { return false };
        let begin = || -> Sleep {
            let clock = self.clock.clone();
            Box::pin(async move { clock.sleep(span).await })
        };
        let is_over = sleep.get_or_insert_with(begin).as_mut().poll(context);
        if is_over.is_ready() {
            *sleep = None;
        }
        is_over.is_ready()
    }
}

/// A connection that counts and does not wait for ever.
///
/// # Security
/// While a client does not read, nothing more is read from it: otherwise the answers to one
/// request after the other would pile up in memory. Nor is all read that there is: a client that
/// does not wait for answers has its turn like all others.
pub(super) struct Connection {
    io: TcpStream,
    activity: Activity,
    patience: Patience,
    next_head: Option<Sleep>,
    unread: Option<Sleep>,
    /// The client has to read first.
    is_stalled: bool,
    /// Somebody would read as soon as the client has read.
    wants_to_read: bool,
    has_ended: bool,
    /// What is left of [`TURN`].
    turn: usize,
    _admission: Admission,
}

impl Connection {
    pub(super) fn new(io: TcpStream, patience: Patience, admission: Admission) -> Self {
        Self {
            io,
            activity: admission.activity.clone(),
            patience,
            next_head: None,
            unread: None,
            is_stalled: false,
            wants_to_read: false,
            has_ended: false,
            turn: TURN,
            _admission: admission,
        }
    }

    /// Whether it has been evicted, or an answered client has sent no further request in time.
    fn is_over(&mut self, context: &mut Context<'_>) -> bool {
        let mut requests = self.activity.requests();
        if requests.is_evicted {
            return true;
        }
        match &mut requests.waker {
            Some(waker) => waker.clone_from(context.waker()),
            none => *none = Some(context.waker().clone()),
        }
        if mem::take(&mut requests.has_begun) {
            self.next_head = None;
        }
        let is_answered = requests.phase == Phase::Answered;
        drop(requests);
        let span = self.patience.next_head;
        is_answered && self.patience.is_over(&mut self.next_head, span, context)
    }

    fn read_in_turn(
        &mut self,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut part = [0; TURN];
        let most = self.turn.min(buffer.remaining());
        let mut part = ReadBuf::new(part.get_mut(..most).unwrap_or_default());
        let read = Pin::new(&mut self.io).poll_read(context, &mut part);
        if read.is_pending() {
            self.turn = TURN;
        } else {
            buffer.put_slice(part.filled());
            self.turn -= part.filled().len();
        }
        read
    }

    fn after_write<T>(
        &mut self,
        written: Poll<io::Result<T>>,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<T>> {
        if written.is_pending() {
            self.is_stalled = true;
            let span = self.patience.unread;
            if self.patience.is_over(&mut self.unread, span, context) {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
            return Poll::Pending;
        }
        self.is_stalled = false;
        self.unread = None;
        if mem::take(&mut self.wants_to_read) {
            context.waker().wake_by_ref();
        }
        written
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.has_ended {
            return Poll::Ready(Ok(()));
        }
        if this.is_over(context) {
            this.has_ended = true;
            if this.is_stalled {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
            // As if the client had ended it.
            return Poll::Ready(Ok(()));
        }
        if this.is_stalled {
            this.wants_to_read = true;
            return Poll::Pending;
        }
        if this.turn == 0 {
            this.turn = TURN;
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        this.read_in_turn(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.io).poll_write(context, bytes);
        this.after_write(written, context)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.io).poll_write_vectored(context, bytes);
        this.after_write(written, context)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Timestamp;

    #[test]
    fn nobody_gets_more_than_a_share_and_what_ends_makes_room() {
        let limits = ConnectionLimits {
            total: Some(5),
            per_address: Some(2),
            keep_alive: None,
        };
        let proxy = TrustedProxies::new(vec!["192.0.2.9/32".parse().unwrap()]);
        let metrics = Metrics::new(Timestamp::from_seconds(0), Duration::ZERO, Duration::ZERO);
        let connections = Connections::new(limits, proxy, metrics, "public");
        let admit = |address: &str| connections.admit(address.parse().unwrap());
        let stranger = [admit("192.0.2.1"), admit("::ffff:192.0.2.1")];
        assert!(stranger.iter().all(Option::is_some));
        assert!(admit("192.0.2.1").is_none());
        let proxied = [(); 3].map(|()| admit("192.0.2.9"));
        assert!(proxied.iter().all(Option::is_some));
        for used in stranger.iter().flatten() {
            used.activity.begin();
        }
        assert!(admit("192.0.2.2").is_none(), "the sixth");
        drop(stranger);
        assert!(admit("192.0.2.1").is_some());
        drop(proxied);
        assert_nothing_is_remembered(&connections);
    }

    fn assert_nothing_is_remembered(connections: &Connections) {
        let open = connections.open.lock().unwrap();
        let counts = (open.all.len(), open.by_address.len(), open.by_site.len());
        assert_eq!(counts, (0, 0, 0));
    }

    fn connections(total: usize, per_address: usize) -> Arc<Connections> {
        let limits = ConnectionLimits {
            total: Some(total),
            per_address: Some(per_address),
            keep_alive: None,
        };
        let metrics = Metrics::new(Timestamp::from_seconds(0), Duration::ZERO, Duration::ZERO);
        Connections::new(limits, TrustedProxies::default(), metrics, "public")
    }

    #[test]
    fn a_newcomer_takes_the_place_of_the_oldest_that_is_not_used() {
        let connections = connections(7, 7);
        let admit = || connections.admit("192.0.2.1".parse().unwrap());
        let is_evicted = |admission: &Admission| admission.activity.requests().is_evicted;
        let all: Vec<_> = (0..7).map(|_| admit().unwrap()).collect();
        let newcomer = || connections.admit("192.0.2.2".parse().unwrap());
        let evicted = || all.iter().map(is_evicted).collect::<Vec<_>>();
        for answered in [1, 3] {
            all[answered].activity.begin();
            all[answered].activity.end();
        }
        for sending in [0, 5, 6] {
            all[sending].activity.begin();
            all[sending].activity.await_body();
        }
        all[5].activity.end_body();
        let mut newcomers = Vec::new();
        for expected in [2, 4, 1, 3, 0, 6] {
            let before = evicted();
            assert!(!before[expected]);
            let newcomer = newcomer().unwrap();
            newcomer.activity.begin();
            newcomers.push(newcomer);
            let mut after = before;
            after[expected] = true;
            assert_eq!(evicted(), after);
        }
        // All of them wait for answers.
        assert!(newcomer().is_none());
        all[5].activity.end();
        assert!(newcomer().is_some());
        drop((all, newcomers));
        assert_nothing_is_remembered(&connections);
    }

    #[test]
    fn the_networks_of_one_site_do_not_get_more_than_four_shares() {
        let connections = connections(100, 2);
        let admit = |address: &str| connections.admit(address.parse().unwrap());
        let held: Vec<_> = (0..12)
            .filter_map(|network| admit(&format!("2001:db8:1:{network:x}::1")))
            .collect();
        assert_eq!(held.len(), 8);
        assert!(admit("2001:db8:2::1").is_some());
        assert!(admit("192.0.2.1").is_some());
        drop(held);
        assert!(admit("2001:db8:1:ff::1").is_some());
        assert_nothing_is_remembered(&connections);
    }
}
