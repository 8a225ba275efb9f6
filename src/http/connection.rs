//! Connections: how many there may be, and for how long one may do nothing.
//!
//! actix-web watches over the first request head of a connection and over idle ones. What it leaves
//! open is closed here: later heads that dribble in, and clients that do not read their answers.

use std::{
    cell::Cell,
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    rc::Rc,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
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
    throttle::AddressPrefix,
};

/// How many bytes are read from a connection until others have their turn.
///
/// actix-web answers whatever it has read in one go. Of the shortest requests there are some fifty
/// in this, and most are whole in it.
const TURN: usize = 2048;

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
    total: usize,
    by_address: HashMap<AddressPrefix, usize>,
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
    /// Strangers open connections. The share of an address is what keeps one of them from taking
    /// all; what is remembered is bounded by the connections that are open.
    pub(super) fn admit(self: &Arc<Self>, peer: IpAddr) -> Option<Admission> {
        let prefix = (!self.proxies.trusts(peer)).then(|| AddressPrefix::from(peer));
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if self.limits.total.is_some_and(|most| open.total >= most) {
            return None;
        }
        if let Some(prefix) = prefix {
            let own = open.by_address.get(&prefix).copied().unwrap_or_default();
            if self.limits.per_address.is_some_and(|most| own >= most) {
                return None;
            }
            open.by_address.insert(prefix, own + 1);
        }
        open.total += 1;
        Some(Admission {
            _open: self.metrics.connection(self.listener),
            connections: Arc::clone(self),
            prefix,
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

/// One connection that counts for as long as this is held.
#[derive(Debug)]
pub(super) struct Admission {
    _open: OpenConnection,
    connections: Arc<Connections>,
    prefix: Option<AddressPrefix>,
}

impl Drop for Admission {
    fn drop(&mut self) {
        let open = self.connections.open.lock();
        let mut open = open.unwrap_or_else(PoisonError::into_inner);
        open.total -= 1;
        let Some(prefix) = self.prefix else { return };
        if let Some(own) = open.by_address.get_mut(&prefix) {
            *own -= 1;
            if *own == 0 {
                open.by_address.remove(&prefix);
            }
        }
    }
}

/// What has become of the requests of a connection.
#[derive(Clone, Debug, Default)]
pub(super) struct Activity(Rc<Requests>);

#[derive(Debug, Default)]
struct Requests {
    /// A request head has arrived since the connection last looked. It may have its answer already.
    has_begun: Cell<bool>,
    /// The last request has its answer.
    is_answered: Cell<bool>,
}

impl Activity {
    /// A request head has arrived.
    pub(super) fn begin(&self) {
        self.0.has_begun.set(true);
        self.0.is_answered.set(false);
    }

    /// The request has its answer.
    pub(super) fn end(&self) {
        self.0.is_answered.set(true);
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
            activity: Activity::default(),
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
        if std::mem::take(&mut self.wants_to_read) {
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
        if this.activity.0.has_begun.take() {
            this.next_head = None;
        }
        if this.activity.0.is_answered.get() {
            let span = this.patience.next_head;
            if this.patience.is_over(&mut this.next_head, span, context) {
                this.has_ended = true;
                if this.is_stalled {
                    return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
                }
                // As if the client had ended it.
                return Poll::Ready(Ok(()));
            }
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
        assert!(admit("192.0.2.2").is_none(), "the sixth");
        drop(stranger);
        assert!(admit("192.0.2.1").is_some());
        drop(proxied);
        let open = connections.open.lock().unwrap();
        assert_eq!((open.total, open.by_address.len()), (0, 0));
    }
}
