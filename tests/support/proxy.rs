//! A TCP proxy whose line can be cut, or lose what comes back. In front of a store it knows the answers to writes.

#![allow(dead_code, reason = "each test program uses its part")]

#[path = "cql_answers.rs"]
mod cql_answers;
#[path = "cql_frame.rs"]
mod cql_frame;

use std::sync::Arc;
use std::sync::atomic::Ordering;

pub use cql_answers::Answer;
use cql_answers::Answers;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, BufReader};
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
    /// In front of a store, what became of its answers.
    answers: Option<Arc<Answers>>,
    serving: JoinHandle<()>,
}

impl Proxy {
    /// In front of `to`.
    pub async fn start(to: String) -> Result<Self, String> {
        Self::serve(to, None).await
    }

    /// In front of a store: what is lost are whole answers, and those to writes are counted.
    pub async fn start_before_store(to: String) -> Result<Self, String> {
        Self::serve(to, Some(Arc::default())).await
    }

    async fn serve(to: String, answers: Option<Arc<Answers>>) -> Result<Self, String> {
        let listener = TcpListener::bind("127.0.0.1:0").await.map_err(|error| format!("a proxy: {error}"))?;
        let port = listener.local_addr().map_err(|error| format!("a proxy: {error}"))?.port();
        let line = Arc::new(watch::Sender::new(Line::Through));
        let (told, met) = (Arc::clone(&line), answers.clone());
        let serving = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                if *told.borrow() == Line::Cut {
                    continue;
                }
                let (to, line, answers) = (to.clone(), told.subscribe(), met.clone());
                tokio::spawn(async move {
                    if let Ok(server) = TcpStream::connect(&to).await {
                        join(client, server, line, answers).await;
                    }
                });
            }
        });
        Ok(Self { port, line, answers, serving })
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

    /// The store's next answer of this kind does not arrive; everything else does.
    pub fn lose_next(&self, answer: Answer) {
        self.answers().of(answer).to_lose.fetch_add(1, Ordering::SeqCst);
    }

    /// How many answers of this kind the store has sent, and how many of them were lost.
    pub fn came_and_lost(&self, answer: Answer) -> (usize, usize) {
        let counts = self.answers().of(answer);
        (counts.came.load(Ordering::SeqCst), counts.lost.load(Ordering::SeqCst))
    }

    fn answers(&self) -> &Answers {
        self.answers.as_ref().expect("it is in front of a store")
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn join(client: TcpStream, server: TcpStream, mut line: watch::Receiver<Line>, answers: Option<Arc<Answers>>) {
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (client_reads, client_writes) = client.into_split();
    let (server_reads, server_writes) = server.into_split();
    let there = pass(client_reads, server_writes, None);
    let heard = line.clone();
    let back = async move {
        match answers {
            Some(answers) => pass_answers(server_reads, client_writes, heard, &answers).await,
            None => pass(server_reads, client_writes, Some(heard)).await,
        }
    };
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

/// The same for the answers of a store, each as a whole.
async fn pass_answers(from: OwnedReadHalf, mut to: OwnedWriteHalf, line: watch::Receiver<Line>, answers: &Answers) {
    let mut from = BufReader::new(from);
    while let Ok(frame) = cql_frame::read(&mut from).await {
        let deaf = *line.borrow() == Line::Deaf;
        if answers.pass(&frame, deaf) && to.write_all(&frame).await.is_err() {
            return;
        }
    }
}
