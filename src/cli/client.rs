//! Talking HTTP to a running service: paths, problem documents, pacing.

use std::env::VarError;
use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use reqwest::{Method, Url};
use serde::de::DeserializeOwned;

use super::fault::{Fault, Problem, Result};
use super::out::{self, Format};
use super::trust;
use crate::domain::{PostId, ViewerId};
use crate::files;

/// Everything but RFC 3986's unreserved characters, so that an id is one path segment whatever is in it.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
/// Holds the key to show the service.
const KEY_VARIABLE: &str = "FANFOLD_KEY";
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// Where a process is, and whom to trust on the way there.
#[derive(Clone, Debug, clap::Args)]
pub struct Place {
    /// The service to talk to: http:// or https://
    #[arg(
        long,
        value_name = "URL",
        env = "FANFOLD_URL",
        hide_env_values = true,
        default_value = "http://127.0.0.1:8470"
    )]
    pub url: String,
    /// With https: trust the authorities of this file (PEM), and not those of the system
    #[arg(long, value_name = "FILE", env = "FANFOLD_CA_FILE", hide_env_values = true)]
    pub ca_file: Option<PathBuf>,
}

/// Where the service is and how results are written: what every client command takes.
#[derive(Clone, Debug, clap::Args)]
pub struct Connect {
    #[command(flatten)]
    pub place: Place,
    /// The file of the key to show; without it the key is what FANFOLD_KEY holds
    #[arg(long, value_name = "FILE", env = "FANFOLD_KEY_FILE", hide_env_values = true)]
    pub key_file: Option<PathBuf>,
    /// How results are written to standard output
    #[arg(long, value_enum, default_value_t)]
    pub output: Format,
}

/// A connection pool to one service.
#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    base: String,
    ca_file: Option<PathBuf>,
}

/// A request in the making.
#[derive(Clone)]
pub struct Call {
    method: Method,
    url: String,
    headers: HeaderMap,
    body: Option<Bytes>,
    timeout: Duration,
}

/// An answer that is no error: 2xx or 304.
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    headers: HeaderMap,
    body: Bytes,
}

impl Connect {
    /// Whether results are written as JSON.
    pub fn json(&self) -> bool {
        self.output == Format::Json
    }

    /// A client for this service.
    pub fn client(&self) -> Result<Client> {
        let authorization = self.authorization()?;
        let has_key = authorization.is_some();
        let client = Client::new(&self.place, authorization)?;
        if let Some(host) = client.reads_along().filter(|_| has_key) {
            out::note(format_args!(
                "warning: the key goes to {host} in plain text, for everybody on the way to read; use https://"
            ));
        }
        Ok(client)
    }

    /// What to show the service: a producer's key or a viewer's token, never from an argument.
    fn authorization(&self) -> Result<Option<HeaderValue>> {
        let key = match &self.key_file {
            Some(file) => files::read_private(file, "--key-file")?,
            None => match std::env::var(KEY_VARIABLE) {
                Ok(key) => key,
                Err(VarError::NotPresent) => return Ok(None),
                Err(VarError::NotUnicode(_)) => return Err(Fault::Usage(format!("{KEY_VARIABLE}: is not UTF-8"))),
            },
        };
        let key = key.trim();
        if key.is_empty() {
            return Ok(None);
        }
        let mut value = HeaderValue::try_from(format!("Bearer {key}"))
            .map_err(|_| Fault::Usage("the key must be one line of visible ASCII".to_owned()))?;
        // Keeps it out of anything that is printed for debugging.
        value.set_sensitive(true);
        Ok(Some(value))
    }
}

impl Client {
    /// A client for the service at `place`; nothing is sent yet.
    pub fn new(place: &Place, authorization: Option<HeaderValue>) -> Result<Self> {
        let usage = |what: &str| Fault::Usage(format!("--url{}: {what}", shown(&place.url)));
        let parsed = Url::parse(&place.url).map_err(|e| usage(&e.to_string()))?;
        if !parsed.username().is_empty() || parsed.password().is_some() {
            return Err(usage(
                "must not have a user or a password: the key belongs in FANFOLD_KEY or --key-file. Rotate one that others \
                 may have seen",
            ));
        }
        let encrypted = match parsed.scheme() {
            "https" => true,
            "http" => false,
            _ => return Err(usage("must begin with http:// or https://")),
        };
        if parsed.query().is_some() || parsed.fragment().is_some() {
            return Err(usage("must not have a query or a fragment"));
        }
        let mut builder = reqwest::Client::builder()
            .user_agent(concat!("fanfold/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT_TIMEOUT)
            .redirect(reqwest::redirect::Policy::none())
            .tls_backend_preconfigured(trust::client_config(encrypted, place.ca_file.as_deref())?)
            .default_headers(authorization.map(|value| (reqwest::header::AUTHORIZATION, value)).into_iter().collect());
        if is_loopback(&parsed) {
            // No proxy of the environment can reach this machine's own loopback.
            builder = builder.no_proxy();
        }
        let http = builder.build().map_err(|e| Fault::Local(format!("cannot set up HTTP: {}", causes(&e))))?;
        Ok(Self { http, base: parsed.as_str().trim_end_matches('/').to_owned(), ca_file: place.ca_file.clone() })
    }

    /// The host to which others can read along, if there is one: not by https, and not on this machine.
    fn reads_along(&self) -> Option<String> {
        let url = Url::parse(&self.base).ok().filter(|url| url.scheme() == "http" && !is_loopback(url))?;
        url.host_str().map(str::to_owned)
    }

    /// A request to a path that is part of the interface.
    pub fn call(&self, method: Method, path: &str) -> Call {
        Call {
            method,
            url: format!("{}{path}", self.base),
            headers: HeaderMap::new(),
            body: None,
            timeout: ANSWER_TIMEOUT,
        }
    }

    /// A GET.
    pub fn get(&self, path: &str) -> Call {
        self.call(Method::GET, path)
    }

    /// Sends a request; an error status is a [`Fault::Problem`].
    pub async fn send(&self, call: Call) -> Result<Answer> {
        let mut request = self.http.request(call.method, &call.url).headers(call.headers).timeout(call.timeout);
        if let Some(body) = call.body {
            request = request.body(body);
        }
        let response = request.send().await.map_err(|e| self.broken(&e))?;
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let body = response.bytes().await.map_err(|e| self.broken(&e))?;
        match status {
            200..300 | 304 => Ok(Answer { status, headers, body }),
            _ => Err(problem(status, &headers, &body)),
        }
    }

    fn broken(&self, error: &reqwest::Error) -> Fault {
        if let Some(fault) = trust::explain(error, &self.base, self.ca_file.as_deref()) {
            return fault;
        }
        let text = causes(error);
        if error.is_connect() {
            return Fault::Connect(format!("cannot connect to {}: {text}; is `fanfold serve` running?", self.base));
        }
        if error.is_timeout() {
            return Fault::Timeout(format!("no answer from {} in time", self.base));
        }
        if error.is_builder() {
            return Fault::Usage(format!("cannot ask {}: {text}", self.base));
        }
        Fault::Connect(format!("the connection to {} broke: {text}", self.base))
    }
}

impl Call {
    /// Adds a query parameter.
    pub fn query(mut self, name: &str, value: impl ToString) -> Self {
        let separator = if self.url.contains('?') { '&' } else { '?' };
        let value = value.to_string();
        // Writing to a string cannot fail.
        let _ = write!(self.url, "{separator}{name}={}", utf8_percent_encode(&value, SEGMENT));
        self
    }

    /// Adds a query parameter if there is a value.
    pub fn maybe(self, name: &str, value: Option<impl ToString>) -> Self {
        match value {
            Some(value) => self.query(name, value),
            None => self,
        }
    }

    /// Asks the service to hold the answer back for up to so many whole seconds. As a preference, which a service with a
    /// lower limit cuts to it; a parameter it would refuse.
    pub fn wait(mut self, seconds: u64) -> Self {
        self.timeout = ANSWER_TIMEOUT.saturating_add(Duration::from_secs(seconds));
        // Letters and digits are always the value of a header.
        if let Ok(value) = HeaderValue::try_from(format!("wait={seconds}")) {
            self.headers.insert(HeaderName::from_static("prefer"), value);
        }
        self
    }

    /// Gives the answer so long, and no longer.
    pub fn within(mut self, patience: Duration) -> Self {
        self.timeout = patience;
        self
    }

    /// Sends JSON that is written already, so that a retry costs nothing.
    pub fn json(mut self, body: Bytes) -> Self {
        self.headers.insert(reqwest::header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        self.body = Some(body);
        self
    }

    /// Makes a repeated request complete the same post.
    pub fn idempotency_key(mut self, key: &str) -> Result<Self> {
        let value = HeaderValue::from_str(&sf_string(key)?).map_err(|e| Fault::Usage(e.to_string()))?;
        self.headers.insert(HeaderName::from_static("idempotency-key"), value);
        Ok(self)
    }
}

impl Answer {
    /// The body as `T`.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T> {
        serde_json::from_slice(&self.body).map_err(|e| {
            Fault::Answer(format!("the answer ({}) is not what Fanfold's interface says: {e}", self.status))
        })
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// Whether there is no body.
    pub fn is_empty(&self) -> bool {
        self.body.is_empty()
    }

    /// Whether nothing has changed.
    pub fn is_unchanged(&self) -> bool {
        self.status == 304
    }

    /// How long the service asks to wait before the next poll.
    pub fn poll_interval(&self) -> Option<Duration> {
        seconds(&self.headers, "x-poll-interval")
    }
}

/// The path of something of a viewer's: `inbox`, `revision`, ….
pub fn viewer_path(viewer: &str, rest: &str) -> Result<String> {
    let viewer = ViewerId::parse("VIEWER", viewer).map_err(|e| Fault::Usage(e.to_string()))?;
    Ok(format!("/v1/viewers/{}/{rest}", utf8_percent_encode(viewer.as_str(), SEGMENT)))
}

/// The path of a post.
pub fn post_path(post: &str) -> Result<String> {
    Ok(format!("/v1/posts/{}", post_id(post)?))
}

/// Checks a post id before it is put into a path.
pub fn post_id(post: &str) -> Result<PostId> {
    PostId::parse(post).ok_or_else(|| Fault::Usage(format!("POST: {:?} is not a post id", out::clip(post, 80))))
}

/// A structured-field string (RFC 9651): printable ASCII in quotes.
fn sf_string(text: &str) -> Result<String> {
    if text.is_empty() || !text.bytes().all(|b| (0x20..0x7f).contains(&b)) {
        return Err(Fault::Usage("--idempotency-key: must be printable ASCII and not empty".to_owned()));
    }
    Ok(format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"")))
}

/// A URL that cannot be used, for a message: not if there is room for a secret in it.
fn shown(url: &str) -> String {
    if url.contains(['@', '?', '#']) { String::new() } else { format!(" {}", out::clip(url, 200)) }
}

fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

fn problem(status: u16, headers: &HeaderMap, body: &[u8]) -> Fault {
    // Proxies answer for a service that is down, and not in its words.
    let mut problem: Problem = serde_json::from_slice(body).unwrap_or_default();
    if problem.title.is_empty() {
        let reason = reqwest::StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason());
        problem.title = reason.unwrap_or("Unexpected answer").to_owned();
        problem.detail = if problem.detail.is_empty() {
            out::clip(String::from_utf8_lossy(body).trim(), 200)
        } else {
            problem.detail
        };
    }
    problem.status = status;
    problem.retry_after = seconds(headers, "retry-after");
    if problem.request_id.is_none() {
        let id = headers.get("x-request-id").and_then(|value| value.to_str().ok());
        problem.request_id = id.map(str::to_owned);
    }
    Fault::Problem(Box::new(problem))
}

fn seconds(headers: &HeaderMap, name: &str) -> Option<Duration> {
    let seconds: f64 = headers.get(name)?.to_str().ok()?.trim().parse().ok()?;
    Duration::try_from_secs_f64(seconds).ok()
}

/// What led to an error: reqwest's own text only repeats the URL, so it is told only when nothing lies beneath.
fn causes(error: &reqwest::Error) -> String {
    let mut next = std::error::Error::source(error);
    let mut texts = Vec::new();
    while let Some(cause) = next {
        texts.push(cause.to_string());
        next = cause.source();
    }
    // "client error (Connect)", above the system's own words, says nothing new.
    if texts.len() > 1 {
        texts.remove(0);
    }
    if texts.is_empty() { error.to_string() } else { texts.join(": ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_one_path_segment() {
        let path = |viewer| viewer_path(viewer, "inbox").expect("a viewer id");
        assert_eq!(path("ben"), "/v1/viewers/ben/inbox");
        assert_eq!(path("a/b?c%d e:f"), "/v1/viewers/a%2Fb%3Fc%25d%20e%3Af/inbox");
        assert_eq!(path("zoë"), "/v1/viewers/zo%C3%AB/inbox");
        for bad in ["", ".", "..", "a\nb"] {
            assert_eq!(viewer_path(bad, "inbox").expect_err(bad).exit_code(), 64);
        }
        assert_eq!(post_path("../x").expect_err("no id").exit_code(), 64);
    }

    #[test]
    fn urls_are_checked_before_anything_is_sent() {
        let client = |url: &str| Client::new(&Place { url: url.to_owned(), ca_file: None }, None);
        for bad in ["", "localhost:8470", "ftp://x", "http://x/?a", "http://", "https://x/#y"] {
            assert!(client(bad).is_err(), "{bad}");
        }
        for (url, host) in [
            ("http://example.org:8470", Some("example.org")),
            ("http://10.0.0.1", Some("10.0.0.1")),
            ("http://localhost:1", None),
            ("http://[::1]:8470", None),
        ] {
            assert_eq!(client(url).expect(url).reads_along().as_deref(), host, "{url}");
        }
        let client = client("http://[::1]:8470/feed/").expect("a URL");
        let call = client.get("/livez").query("since", "W/\"a b\"").maybe("limit", Some(3)).maybe("no", None::<u8>);
        assert_eq!(call.url, "http://[::1]:8470/feed/livez?since=W%2F%22a%20b%22&limit=3");
        assert_eq!(client.get("/livez").wait(25).headers["prefer"], "wait=25");
    }

    #[test]
    fn keys_are_quoted() {
        assert_eq!(sf_string(r#"a"b\c"#).expect("a key"), r#""a\"b\\c""#);
        assert!(sf_string("ä").is_err() && sf_string("").is_err());
    }

    #[test]
    fn what_is_no_problem_document_is_told_all_the_same() {
        let mut headers = HeaderMap::new();
        headers.insert("retry-after", HeaderValue::from_static("3"));
        headers.insert("x-request-id", HeaderValue::from_static("r9"));
        let Fault::Problem(told) = problem(502, &headers, b"<html>\n") else { panic!("a problem") };
        assert_eq!((told.title.as_str(), told.detail.as_str()), ("Bad Gateway", "<html>"));
        assert_eq!((told.retry_after, told.request_id.as_deref()), (Some(Duration::from_secs(3)), Some("r9")));
    }
}
