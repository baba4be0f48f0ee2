//! The accept loop: so many connections and no more, and a pause when none can be accepted.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

/// How long to leave the listener alone after it failed: running out of descriptors passes, but not at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Accepts until `stop`, `connections_max` at a time. What `admit` makes of a connection runs among `connections`, and
/// holds the permit, which is its place, to the end; with `None` the connection is closed.
pub(super) async fn accept_all<C>(
    listener: &TcpListener,
    connections: &mut JoinSet<()>,
    connections_max: u32,
    stop: &CancellationToken,
    mut admit: impl FnMut(OwnedSemaphorePermit, TcpStream, SocketAddr) -> Option<C>,
) where
    C: Future<Output = ()> + Send + 'static,
{
    let places = Arc::new(Semaphore::new(connections_max as usize));
    loop {
        // A place first, then a connection: who finds no place waits in the kernel, not in here.
        let accepted = async {
            let permit = Arc::clone(&places).acquire_owned().await;
            (permit, listener.accept().await)
        };
        match stop.run_until_cancelled(accepted).await {
            None => return,
            Some((Ok(permit), Ok((stream, peer)))) => {
                if let Some(conversation) = admit(permit, stream, peer) {
                    connections.spawn(conversation);
                }
            }
            Some((_, Err(error))) => refused(&error).await,
            // The semaphore is never closed.
            Some((Err(_), _)) => return,
        }
        while connections.try_join_next().is_some() {}
    }
}

/// No connection could be accepted: waits if that was for want of something.
async fn refused(error: &io::Error) {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted};
    if matches!(error.kind(), ConnectionAborted | ConnectionReset | Interrupted) {
        debug!(%error, "a connection was gone before it was accepted");
        return;
    }
    warn!(%error, "connections cannot be accepted; trying again shortly");
    tokio::time::sleep(ACCEPT_PAUSE).await;
}
