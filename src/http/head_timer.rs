//! The timer behind two limits: how long a request's head may take, and how long a connection may wait for one.
//!
//! hyper knows the first alone, and counts it from the moment at which it begins to wait: a connection that is kept would
//! be cut as soon as its client pauses for longer than a head may take. Here a head's time begins with its first bytes. Until
//! they come, a connection that has said something before may be idle for longer; a new one may not.
//!
//! hyper asks for a new timer before every request and drops it as soon as the head is there. Each would be put into the
//! runtime's timers and taken out again, under their lock, for a limit that hardly any request comes near. Here a
//! connection keeps one timer: it is left where it is while the limit moves on, and moved only when it goes off early.
//!
//! A third limit is on the way back: how long an answer may wait for a client that does not read. Its timer is not there
//! until a write has to wait, which on most connections never happens; from then on it is kept in the same way.

use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use hyper::rt::{Sleep, Timer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::config::Http;

/// How long a client may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    /// For the head of a request, from its first bytes, on a new connection from the beginning. The same that hyper has as
    /// its `header_read_timeout`.
    pub(super) head: Duration,
    /// From an answer to the first bytes of the next request.
    pub(super) idle: Duration,
    /// For the next part of an answer, each time that there is no room for it.
    pub(super) answer: Duration,
}

impl Patience {
    /// As it is configured.
    pub(super) fn of(http: &Http) -> Self {
        Self {
            head: Duration::from_millis(http.header_read_timeout_ms),
            idle: Duration::from_secs(u64::from(http.idle_timeout_s)),
            answer: Duration::from_millis(http.answer_write_timeout_ms),
        }
    }
}

/// The timers of one connection.
#[derive(Debug)]
pub(super) struct HeadTimer(Arc<Shared>);

/// A connection that notes when something comes.
#[derive(Debug)]
pub(super) struct Heard<S> {
    stream: S,
    shared: Arc<Shared>,
}

/// A socket whose client must take what it is sent: a write fails when it has waited for too long and nothing went out.
#[derive(Debug)]
pub(super) struct Taken<S> {
    stream: S,
    patience: Duration,
    /// When the write that waits has waited for too long; `None` while none waits.
    due: Option<tokio::time::Instant>,
    kept: Option<Pin<Box<tokio::time::Sleep>>>,
}

/// What the timer, its limits and the connection have in common.
#[derive(Debug)]
struct Shared {
    patience: Patience,
    /// How often something has come. One task counts and looks; it is atomic only because hyper wants timers that are `Sync`.
    heard: AtomicU64,
    kept: Mutex<Option<Pin<Box<tokio::time::Sleep>>>>,
}

impl HeadTimer {
    /// The timer of a connection, and the connection by which it knows when a head begins.
    pub(super) fn watch<S>(stream: S, patience: Patience) -> (Self, Heard<S>) {
        let shared = Arc::new(Shared { patience, heard: AtomicU64::new(0), kept: Mutex::new(None) });
        (Self(Arc::clone(&shared)), Heard { stream, shared })
    }
}

impl Timer for HeadTimer {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Sleep>> {
        self.sleep_until(Instant::now() + duration)
    }

    /// `deadline` is that of a head which begins now: hyper asks when it begins to wait.
    fn sleep_until(&self, deadline: Instant) -> Pin<Box<dyn Sleep>> {
        let shared = Arc::clone(&self.0);
        let Patience { head, idle, .. } = shared.patience;
        // The first bytes of a head that came together with the request before it are not told apart from that. All that
        // wins is the time of an idle connection, until the next byte.
        let idle_since = Some(shared.heard.load(Ordering::Relaxed)).filter(|heard| *heard > 0);
        let deadline =
            if idle_since.is_some() { deadline.checked_sub(head).unwrap_or(deadline) + idle } else { deadline };
        Box::pin(Limit { deadline: deadline.into(), idle_since, shared })
    }
}

/// One limit: over at its deadline, whatever the kept timer stands at. hyper looks at it only when it has read all there
/// is and the head is not complete.
struct Limit {
    deadline: tokio::time::Instant,
    /// How often something had come when the connection became idle; `None` once a head is due.
    idle_since: Option<u64>,
    shared: Arc<Shared>,
}

impl Sleep for Limit {}

impl Future for Limit {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let Self { deadline, idle_since, shared } = self.get_mut();
        if idle_since.is_some_and(|heard| heard != shared.heard.load(Ordering::Relaxed)) {
            *idle_since = None;
            *deadline = tokio::time::Instant::now() + shared.patience.head;
        }
        // What a panic would leave behind is a timer like any other.
        let mut kept = shared.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let timer = kept.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(*deadline)));
        if timer.deadline() > *deadline {
            timer.as_mut().reset(*deadline);
        }
        loop {
            ready!(timer.as_mut().poll(context));
            if timer.deadline() >= *deadline {
                return Poll::Ready(());
            }
            timer.as_mut().reset(*deadline);
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Heard<S> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(context, buf);
        if buf.filled().len() > before {
            // Nobody else counts, so this needs no locked instruction.
            let heard = &self.shared.heard;
            heard.store(heard.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        }
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Heard<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

impl<S> Taken<S> {
    /// With so much patience for each write.
    pub(super) fn new(stream: S, patience: Duration) -> Self {
        Self { stream, patience, due: None, kept: None }
    }

    /// What a write has come to; an error if it still waits and its time is up.
    fn bounded(&mut self, written: Poll<io::Result<usize>>, context: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if written.is_ready() {
            self.due = None;
            return written;
        }
        let patience = self.patience;
        // What else wakes the connection meanwhile, such as further requests, wins no time.
        let due = *self.due.get_or_insert_with(|| tokio::time::Instant::now() + patience);
        let timer = self.kept.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(due)));
        loop {
            ready!(timer.as_mut().poll(context));
            // One that was left standing by an earlier write goes off early, never late.
            if timer.deadline() >= due {
                let error = io::Error::new(io::ErrorKind::TimedOut, "the client does not read its answer");
                return Poll::Ready(Err(error));
            }
            timer.as_mut().reset(due);
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Taken<S> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Taken<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write(context, buf);
        this.bounded(written, context)
    }

    /// Not bounded: a socket keeps nothing back that could be flushed, and says so at once even while a write waits.
    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    /// Not bounded: a socket does not wait for its client here.
    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write_vectored(context, bufs);
        this.bounded(written, context)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::pin::pin;

    use hyper::body::Incoming;
    use hyper::server::conn::http1;
    use hyper::service::service_fn;
    use hyper::{Request, Response};
    use hyper_util::rt::TokioIo;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};

    use super::*;

    const SHORT: Duration = Duration::from_millis(20);
    const LONG: Duration = Duration::from_secs(3_600);

    /// That of a connection on which nothing has come yet.
    fn timer() -> HeadTimer {
        HeadTimer::watch(tokio::io::empty(), Patience { head: LONG, idle: LONG, answer: LONG }).0
    }

    #[tokio::test]
    async fn a_later_limit_is_not_over_when_the_timer_goes_off_for_an_earlier_one() {
        let timer = timer();
        let mut earlier = timer.sleep(SHORT);
        assert!(futures::poll!(earlier.as_mut()).is_pending());
        drop(earlier);
        let deadline = Instant::now() + 3 * SHORT;
        timer.sleep_until(deadline).await;
        assert!(Instant::now() >= deadline);
    }

    #[tokio::test]
    async fn an_earlier_limit_does_not_wait_for_the_timer_of_a_later_one() {
        let timer = timer();
        let mut later = timer.sleep(LONG);
        assert!(futures::poll!(later.as_mut()).is_pending());
        drop(later);
        timer.sleep(SHORT).await;
        // Over once, over for the next one too only when its own time is up.
        let deadline = Instant::now() + SHORT;
        timer.sleep_until(deadline).await;
        assert!(Instant::now() >= deadline);
    }

    /// The client's end of a connection whose server answers everything.
    fn connect(head: Duration, idle: Duration) -> DuplexStream {
        let (client, server) = tokio::io::duplex(1 << 10);
        let (timer, stream) = HeadTimer::watch(server, Patience { head, idle, answer: LONG });
        let answer = |_: Request<Incoming>| async { Ok::<_, Infallible>(Response::new(String::new())) };
        let mut builder = http1::Builder::new();
        builder.header_read_timeout(head).timer(timer);
        tokio::spawn(builder.serve_connection(TokioIo::new(stream), service_fn(answer)));
        client
    }

    async fn ask(client: &mut DuplexStream) {
        client.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.expect("sent");
        let mut answer = [0; 1 << 10];
        let length = client.read(&mut answer).await.expect("answered");
        assert!(answer[..length].starts_with(b"HTTP/1.1 200 "), "answered");
    }

    async fn is_cut(mut client: DuplexStream) {
        let mut rest = Vec::new();
        let end = tokio::time::timeout(Duration::from_secs(30), client.read_to_end(&mut rest)).await;
        end.expect("in time").expect("closed");
    }

    #[tokio::test]
    async fn a_new_connection_may_not_be_idle() {
        is_cut(connect(SHORT, LONG)).await;
        let mut client = connect(SHORT, LONG);
        client.write_all(b"GET / HT").await.expect("sent");
        is_cut(client).await;
    }

    #[tokio::test]
    async fn a_connection_that_is_kept_may_be_idle_for_longer_than_a_head_takes() {
        let mut client = connect(SHORT, 10 * SHORT);
        let begun = Instant::now();
        ask(&mut client).await;
        is_cut(client).await;
        assert!(begun.elapsed() >= 10 * SHORT, "{:?}", begun.elapsed());
    }

    #[tokio::test]
    async fn a_head_that_has_begun_must_end_on_a_kept_connection_too() {
        let mut client = connect(SHORT, LONG);
        ask(&mut client).await;
        ask(&mut client).await;
        client.write_all(b"GET / HT").await.expect("sent");
        is_cut(client).await;
    }

    #[tokio::test]
    async fn a_write_may_wait_for_so_long_without_a_byte_going_out() {
        let (mut client, server) = tokio::io::duplex(4);
        let mut server = Taken::new(server, SHORT);
        server.write_all(b"full").await.expect("there is room");
        assert!(futures::poll!(pin!(server.write(b"more"))).is_pending());
        assert_eq!(client.read_exact(&mut [0; 4]).await.expect("read"), 4);
        server.write_all(b"more").await.expect("there is room again");
        // The timer that is left of the first wait is over before the second one begins, and does not end that.
        tokio::time::sleep(2 * SHORT).await;
        let begun = Instant::now();
        assert!(futures::poll!(pin!(server.write(b"rest"))).is_pending());
        let error = server.write(b"rest").await.expect_err("nobody reads");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(begun.elapsed() >= SHORT, "{:?}", begun.elapsed());
    }
}
