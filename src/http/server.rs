//! The API's connections: each with its timeouts, and an end in order.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, OwnedSemaphorePermit};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::App;
use super::accept::accept_all;
use super::cors::Cors;
use super::crowd::{Crowd, Place};
use super::front::{self, Front};
use super::head_timer::{HeadTimer, Patience, Taken};
use super::tls::Tls;
use crate::config::Http;
use crate::error::Result;

/// Serves until `shutdown` is cancelled: then no connection is accepted any more, waiting requests are answered at once,
/// running ones finish. What is still open when this future is dropped is cut.
pub async fn serve(
    listener: TcpListener,
    tls: Option<Tls>,
    app: App,
    http: Http,
    shutdown: CancellationToken,
) -> Result<()> {
    let stopping = app.stopping().clone();
    let patience = Patience::of(&http);
    let server = Arc::new(Server {
        builder: builder(&http, patience),
        patience,
        front: Arc::new(Front { router: app.router(), cors: Cors::new(&app.config.cors), tls: tls.is_some(), app }),
        stop: Stop::default(),
        tls,
        crowd: Crowd::new(http.connections_per_address_max),
    });
    let mut connections = Connections::default();
    let reload = async {
        match &server.tls {
            Some(tls) => tls.reload().await,
            None => std::future::pending().await,
        }
    };
    let admit = |permit, stream, peer: SocketAddr| match server.crowd.enter(peer.ip()) {
        Some(place) => Some(converse(Arc::clone(&server), stream, peer, (permit, place))),
        None => {
            debug!(%peer, "a connection is closed: its address has as many as it may");
            None
        }
    };
    tokio::select! {
        () = accept_all(&listener, &mut connections.0, http.connections_max, &shutdown, admit) => {}
        () = reload => {}
    }
    drop(listener);
    stopping.cancel();
    server.stop.set();
    while connections.0.join_next().await.is_some() {}
    Ok(())
}

/// The open connections, each a task that is aborted with them.
#[derive(Default)]
struct Connections(JoinSet<()>);

impl Drop for Connections {
    fn drop(&mut self) {
        while self.0.try_join_next().is_some() {}
        if !self.0.is_empty() {
            warn!(connections = self.0.len(), "connections are cut, and the requests on them");
        }
    }
}

struct Server {
    builder: http1::Builder,
    patience: Patience,
    front: Arc<Front>,
    stop: Stop,
    tls: Option<Tls>,
    crowd: Crowd,
}

/// How HTTP is spoken, and with which bounds.
pub(super) fn builder(http: &Http, patience: Patience) -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder.header_read_timeout(patience.head).max_buf_size(http.headers_bytes_max as usize).keep_alive(true);
    builder
}

async fn converse(server: Arc<Server>, stream: TcpStream, peer: SocketAddr, _places: (OwnedSemaphorePermit, Place)) {
    if let Err(error) = stream.set_nodelay(true) {
        debug!(%error, %peer, "the connection keeps Nagle's delay");
    }
    // Below TLS, which keeps some of what it is given: only the socket tells whether anything goes out.
    let stream = Taken::new(stream, server.patience.answer);
    let Some(tls) = &server.tls else { return serve_on(&server, stream, peer).await };
    match tokio::time::timeout(tls.handshake_timeout(), tls.acceptor().accept(stream)).await {
        // Boxed, so that connections without TLS are not as large as those with it.
        Ok(Ok(stream)) => Box::pin(serve_on(&server, stream, peer)).await,
        Ok(Err(error)) => debug!(%error, %peer, "a client did not shake hands"),
        Err(_) => debug!(%peer, "a client took too long to shake hands"),
    }
}

async fn serve_on(server: &Server, stream: impl AsyncRead + AsyncWrite + Unpin, peer: SocketAddr) {
    let service = front::service(Arc::clone(&server.front), peer);
    let (timer, stream) = HeadTimer::watch(stream, server.patience);
    let mut builder = server.builder.clone();
    builder.timer(timer);
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
    let mut stopped = pin!(server.stop.notify.notified());
    let (mut listening, mut told) = (false, false);
    let result = poll_fn(|cx| {
        // Listening once is enough, since this task has one waker all its life; from then on a look at the flag tells.
        if !listening {
            listening = true;
            let _ = stopped.as_mut().poll(cx);
        }
        if !told && server.stop.flag.load(Ordering::Acquire) {
            told = true;
            connection.as_mut().graceful_shutdown();
        }
        connection.as_mut().poll(cx)
    });
    if let Err(error) = result.await {
        debug!(%error, %peer, "a connection ended early");
    }
}

/// Tells every connection to end after the request in hand. Cheaper to look at than a cancellation token, which takes a
/// lock each time: connections look whenever they wake.
#[derive(Debug, Default)]
struct Stop {
    flag: AtomicBool,
    notify: Notify,
}

impl Stop {
    fn set(&self) {
        self.flag.store(true, Ordering::Release);
        self.notify.notify_waiters();
    }
}
