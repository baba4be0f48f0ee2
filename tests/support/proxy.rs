//! A TCP proxy whose line can be cut, or lose what comes back.

#![allow(dead_code, reason = "each test program uses its part")]

use std::sync::Arc;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// How the line is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line {
    /// As if it was not there.
    Through,
    /// Requests arrive, answers do not.
    Deaf,
    /// Nothing passes: what is open breaks, and nothing new is taken.
    Cut,
}

/// A proxy in front of one server.
pub struct Proxy {
    pub port: u16,
    line: Arc<watch::Sender<Line>>,
    serving: JoinHandle<()>,
}

impl Proxy {
    /// In front of `to`.
    pub async fn start(to: String) -> Result<Self, String> {
        let listener = TcpListener::bind("127.0.0.1:0").await.map_err(|error| format!("a proxy: {error}"))?;
        let port = listener.local_addr().map_err(|error| format!("a proxy: {error}"))?.port();
        let line = Arc::new(watch::Sender::new(Line::Through));
        let told = Arc::clone(&line);
        let serving = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                if *told.borrow() == Line::Cut {
                    continue;
                }
                let (to, line) = (to.clone(), told.subscribe());
                tokio::spawn(async move {
                    if let Ok(server) = TcpStream::connect(&to).await {
                        join(client, server, line).await;
                    }
                });
            }
        });
        Ok(Self { port, line, serving })
    }

    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    pub fn redis_url(&self) -> String {
        format!("redis://{}", self.address())
    }

    /// Changes how the line is. One that has lost something never goes on: it breaks.
    pub fn set(&self, line: Line) {
        self.line.send_replace(line);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn join(client: TcpStream, server: TcpStream, mut line: watch::Receiver<Line>) {
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (client_reads, client_writes) = client.into_split();
    let (server_reads, server_writes) = server.into_split();
    let there = pass(client_reads, server_writes, None);
    let back = pass(server_reads, client_writes, Some(line.clone()));
    let broken = async {
        let mut was_deaf = *line.borrow_and_update() == Line::Deaf;
        while line.changed().await.is_ok() {
            let now = *line.borrow_and_update();
            if now == Line::Cut || (was_deaf && now == Line::Through) {
                return;
            }
            was_deaf |= now == Line::Deaf;
        }
    };
    tokio::select! { () = there => {}, () = back => {}, () = broken => {} }
}

/// Bytes in one direction, until it ends; where it hears of the line, what comes while it is deaf is lost.
async fn pass(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, line: Option<watch::Receiver<Line>>) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(read) = from.read(&mut buffer).await {
        if read == 0 {
            return;
        }
        if line.as_ref().is_some_and(|line| *line.borrow() == Line::Deaf) {
            continue;
        }
        if to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}
