//! The least HTTP/1.1 client: one kept-alive connection, requests made beforehand, one answer at a time. A comfortable
//! client would cost more than the server it measures.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::measure::Result;

/// A request's bytes, ready to send.
pub type Request = Vec<u8>;

/// `GET path`.
pub fn get(path: &str) -> Request {
    format!("GET {path} HTTP/1.1\r\nhost: bench\r\n\r\n").into_bytes()
}

/// `GET path` with the token of a viewer.
pub fn get_as(path: &str, token: &str) -> Request {
    format!("GET {path} HTTP/1.1\r\nhost: bench\r\nauthorization: Bearer {token}\r\n\r\n").into_bytes()
}

/// `POST path` with a JSON body.
pub fn post(path: &str, body: &str) -> Request {
    let length = body.len();
    let head =
        format!("POST {path} HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\ncontent-length: {length}");
    format!("{head}\r\n\r\n{body}").into_bytes()
}

/// `PATCH path` with a JSON body, whatever the version.
pub fn patch(path: &str, body: &str) -> Request {
    let length = body.len();
    let head = format!(
        "PATCH {path} HTTP/1.1\r\nhost: bench\r\nif-match: *\r\ncontent-type: application/json\r\ncontent-length: {length}"
    );
    format!("{head}\r\n\r\n{body}").into_bytes()
}

/// `DELETE path`.
pub fn delete(path: &str) -> Request {
    format!("DELETE {path} HTTP/1.1\r\nhost: bench\r\n\r\n").into_bytes()
}

/// The same request with a key.
pub fn with_key(request: &[u8], key: &str) -> Request {
    let line = request.windows(2).position(|two| two == b"\r\n").map_or(0, |at| at + 2);
    let header = format!("authorization: Bearer {key}\r\n");
    [&request[..line], header.as_bytes(), &request[line..]].concat()
}

/// A connection that stays open.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
}

/// An answer, in the connection's buffer until the next request.
#[derive(Debug)]
pub struct Answer<'a> {
    /// The status code.
    pub status: u16,
    /// The body, empty for a 304.
    pub body: &'a [u8],
}

impl Answer<'_> {
    /// The body as text.
    pub fn text(&self) -> &str {
        std::str::from_utf8(self.body).unwrap_or("(no text)")
    }

    /// An error unless the status is the one that was to be expected.
    pub fn expect(self, status: u16) -> Result<Self> {
        if self.status == status {
            return Ok(self);
        }
        Err(format!("expected {status}, the answer is {}: {}", self.status, self.text()).into())
    }

    /// The first string called `name` in the body. Pages and deltas have their token before any item.
    pub fn field(&self, name: &str) -> Result<&str> {
        let text = self.text();
        let value = text.split_once(&format!("\"{name}\":\""));
        let (_, rest) = value.ok_or_else(|| format!("an answer without {name}"))?;
        Ok(rest.split('"').next().unwrap_or_default())
    }
}

impl Connection {
    /// Connects.
    pub async fn open(addr: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(addr).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, buffer: Vec::with_capacity(16 * 1024) })
    }

    /// Sends a request and reads its answer to the end.
    pub async fn send(&mut self, request: &[u8]) -> Result<Answer<'_>> {
        self.stream.write_all(request).await?;
        self.buffer.clear();
        let mut head = None;
        loop {
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return Err("the server closed the connection".into());
            }
            if head.is_none() {
                head = Head::parse(&self.buffer)?;
            }
            if let Some(Head { status, body_at, body_bytes }) = head
                && self.buffer.len() >= body_at + body_bytes
            {
                return Ok(Answer { status, body: &self.buffer[body_at..body_at + body_bytes] });
            }
        }
    }
}

#[derive(Clone, Copy)]
struct Head {
    status: u16,
    body_at: usize,
    body_bytes: usize,
}

impl Head {
    /// `None` while the head is not whole.
    fn parse(bytes: &[u8]) -> Result<Option<Self>> {
        let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else { return Ok(None) };
        let head = std::str::from_utf8(&bytes[..end])?;
        let status = head.get(9..12).ok_or("an answer without a status")?.parse()?;
        let length = head.split("\r\n").skip(1).filter_map(|line| line.split_once(':')).find_map(|(name, value)| {
            name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok()).flatten()
        });
        let body_bytes = match (status, length) {
            (204 | 304, _) => 0,
            (_, Some(length)) => length,
            (_, None) => return Err(format!("an answer {status} that does not tell its length").into()),
        };
        Ok(Some(Self { status, body_at: end + 4, body_bytes }))
    }
}
