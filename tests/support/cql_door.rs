//! A door before the store that asks who comes. The Cassandra of dev/stack lets in anybody, and one that asks would
//! slow every other test down: so the door asks in its place, in the words of the CQL protocol (version 4), and carries
//! the bytes of those whom it has let in.
//!
//! The driver goes to every node under its contact point's port, and the node of dev/stack goes by the address at which
//! the door is: the connections of the driver's pool come through the door, as its first one does. What the door cannot
//! show is how a real store judges: whom it knows, when it has made its first user, and what that user may do.

#[path = "cql_frame.rs"]
mod cql_frame;

use std::io;
use std::sync::{Arc, Mutex};

use cql_frame::{HEADER, OPCODE, read};
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};

/// The version of a frame that answers.
const ANSWER: u8 = 0x84;

const ERROR: u8 = 0x00;
const STARTUP: u8 = 0x01;
const READY: u8 = 0x02;
const AUTHENTICATE: u8 = 0x03;
const AUTH_RESPONSE: u8 = 0x0f;
const AUTH_SUCCESS: u8 = 0x10;

const AUTHENTICATOR: &str = "org.apache.cassandra.auth.PasswordAuthenticator";
/// The number of the error that says so.
const BAD_CREDENTIALS: [u8; 4] = 0x0100_i32.to_be_bytes();
/// Bytes that are not there.
const NULL: [u8; 4] = (-1_i32).to_be_bytes();

/// A door before one server.
pub struct Door {
    pub address: String,
    book: Arc<Mutex<Book>>,
}

/// Users with their passwords, `user:password`.
struct Book {
    /// The one that is let in.
    expected: String,
    /// Those that came, let in or not.
    shown: Vec<String>,
}

impl Book {
    fn takes(&mut self, shown: String) -> bool {
        let takes = shown == self.expected;
        self.shown.push(shown);
        takes
    }
}

impl Door {
    /// Before `server`, for the user with this password.
    pub async fn before(server: &str, user: &str, password: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address").to_string();
        let book = Arc::new(Mutex::new(Book { expected: format!("{user}:{password}"), shown: Vec::new() }));
        let (server, kept) = (server.to_owned(), Arc::clone(&book));
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (server, book) = (server.clone(), Arc::clone(&kept));
                tokio::spawn(async move {
                    let _ = serve(client, &server, &book).await;
                });
            }
        });
        Self { address, book }
    }

    /// From now on for another user or password.
    pub fn let_in(&self, user: &str, password: &str) {
        self.book.lock().expect("not poisoned").expected = format!("{user}:{password}");
    }

    /// What was shown since this was last asked, `user:password` for each time.
    pub fn take_shown(&self) -> Vec<String> {
        std::mem::take(&mut self.book.lock().expect("not poisoned").shown)
    }
}

/// One connection, until either end breaks it off.
async fn serve(mut client: TcpStream, server: &str, book: &Mutex<Book>) -> io::Result<()> {
    let mut server = TcpStream::connect(server).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    admit(&mut client, &mut server, book).await?;
    tokio::io::copy_bidirectional(&mut client, &mut server).await?;
    Ok(())
}

/// Asks until what is shown is right. The server is told of the client's start only then, and serves nobody before.
async fn admit(client: &mut TcpStream, server: &mut TcpStream, book: &Mutex<Book>) -> io::Result<()> {
    let mut startup = Vec::new();
    loop {
        let frame = read(client).await?;
        match frame[OPCODE] {
            STARTUP => {
                client.write_all(&answer(&frame, AUTHENTICATE, &string(AUTHENTICATOR))).await?;
                startup = frame;
            }
            AUTH_RESPONSE => {
                let (user, password) = credentials(&frame)?;
                let takes = book.lock().expect("not poisoned").takes(format!("{user}:{password}"));
                if takes {
                    start(server, &startup).await?;
                    return client.write_all(&answer(&frame, AUTH_SUCCESS, &NULL)).await;
                }
                client.write_all(&answer(&frame, ERROR, &refusal(user))).await?;
            }
            // What may be asked by anybody: OPTIONS.
            _ => {
                server.write_all(&frame).await?;
                client.write_all(&read(server).await?).await?;
            }
        }
    }
}

/// Starts the session at the server, which asks nobody.
async fn start(server: &mut TcpStream, startup: &[u8]) -> io::Result<()> {
    server.write_all(startup).await?;
    let told = read(server).await?;
    if told[OPCODE] == READY { Ok(()) } else { Err(io::Error::other("the server does not start a session")) }
}

/// The answer to a frame: it goes by the stream of what it answers.
fn answer(to: &[u8], opcode: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len()).expect("short").to_be_bytes();
    [&[ANSWER, 0, to[2], to[3], opcode][..], &length, body].concat()
}

/// What Cassandra says to a user whom it does not know by this password.
fn refusal(user: &str) -> Vec<u8> {
    let text = format!("Provided username {user} and/or password are incorrect");
    [&BAD_CREDENTIALS[..], &string(&text)].concat()
}

/// A text as it stands in a frame.
fn string(text: &str) -> Vec<u8> {
    let length = u16::try_from(text.len()).expect("short").to_be_bytes();
    [&length[..], text.as_bytes()].concat()
}

/// The user and the password of an answer to AUTHENTICATE: after the length of both, each with a zero byte before it.
fn credentials(frame: &[u8]) -> io::Result<(&str, &str)> {
    let text = frame.get(HEADER + 4..).and_then(|bytes| std::str::from_utf8(bytes).ok());
    let both = text.and_then(|text| text.strip_prefix('\0')?.split_once('\0'));
    both.ok_or_else(|| io::Error::other("neither user nor password"))
}
