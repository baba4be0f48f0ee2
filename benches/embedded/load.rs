//! The load: a bounded number of connections, each with its own sequence of requests.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use tokio::task::JoinSet;

use crate::child::Child;
use crate::client::{Connection, Request};
use crate::measure::{Result, Sample};

/// Opens `connections` to `addr`, gives each to a `worker` with its number, and adds up the operations they did.
///
/// All on one thread of its own: the server under test is to find the other one free, and the client is cheaper for it.
pub async fn drive<F, W>(addr: SocketAddr, connections: usize, worker: F) -> Result<u64>
where
    F: Fn(usize, Connection) -> W + Send + 'static,
    W: Future<Output = Result<u64>> + Send + 'static,
{
    let run = move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let mut workers = JoinSet::new();
            for number in 0..connections {
                workers.spawn(worker(number, Connection::open(addr).await?));
            }
            let mut ops = 0;
            while let Some(done) = workers.join_next().await {
                ops += done??;
            }
            Ok(ops)
        })
    };
    tokio::task::spawn_blocking(run).await?
}

/// As [`drive`], with what it cost `child`.
pub async fn measured<F, W>(child: &mut Child, connections: usize, worker: F) -> Result<Sample>
where
    F: Fn(usize, Connection) -> W + Send + 'static,
    W: Future<Output = Result<u64>> + Send + 'static,
{
    let (cpu, started) = (child.cpu_us().await?, Instant::now());
    let ops = drive(child.addr(), connections, worker).await?;
    let wall_s = started.elapsed().as_secs_f64();
    Ok(Sample { ops, cpu_us: child.cpu_us().await? - cpu, wall_s })
}

/// A worker that sends `each` requests, taken in turn from `requests`, and expects `status` every time.
pub fn repeat(
    requests: Vec<Request>,
    each: u64,
    status: u16,
) -> impl Fn(usize, Connection) -> std::pin::Pin<Box<dyn Future<Output = Result<u64>> + Send>> + Send + 'static {
    let requests = Arc::new(requests);
    move |number, mut connection| {
        let requests = Arc::clone(&requests);
        Box::pin(async move {
            // Each connection begins elsewhere, so that they do not march in step.
            for at in (number * 7919..).take(usize::try_from(each)?) {
                connection.send(&requests[at % requests.len()]).await?.expect(status)?;
            }
            Ok(each)
        })
    }
}

/// A worker that sends its share of `requests`, each once, and expects `status` every time.
pub fn once(
    requests: Vec<Request>,
    connections: usize,
    status: u16,
) -> impl Fn(usize, Connection) -> std::pin::Pin<Box<dyn Future<Output = Result<u64>> + Send>> + Send + 'static {
    let requests = Arc::new(requests);
    move |number, mut connection| {
        let requests = Arc::clone(&requests);
        Box::pin(async move {
            let mut sent = 0;
            for request in requests.iter().skip(number).step_by(connections) {
                connection.send(request).await?.expect(status)?;
                sent += 1;
            }
            Ok(sent)
        })
    }
}
