//! JSON bodies: read within a limit and a time, parsed strictly, every fault told with its place.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, HttpBody as _};
use axum::extract::{FromRequest, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, Response, StatusCode, header};
use http_body_util::BodyExt;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::App;
use super::access;
use super::bodies::Share;
use super::params::shortened;
use super::problem::Problem;
use super::routes::Route;
use crate::config::Config;
use crate::error::{Error, Kind, Result};

/// Fields that the interface has a place for and this release does not serve yet.
const PLANNED_FIELDS: [&str; 5] = ["topic", "audience_id", "publish_at", "collapse_key", "priority"];
/// Bodies larger than this, of posts to more than some thousand viewers, are parsed off the threads that serve requests:
/// polls would wait for them there.
const PARSE_HERE_BYTES_MAX: usize = 32 * 1024;
/// How much of a body that is refused is read at least, and dropped; twice its limit where that is more. A client that
/// reads no answer before it has sent everything would otherwise find its connection reset, and the answer gone.
const DROPPED_BYTES_MIN: u64 = 32 * 1024 * 1024;
/// For [`Input::bytes_needed`]: what a body has beside its lists, such as braces, names, a token and blanks.
pub(super) const BESIDE_LISTS_BYTES: u64 = 1_024;
/// For [`Input::bytes_needed`]: enough for a few short fields.
pub(super) const FEW_FIELDS_BYTES: u64 = 16 * 1_024;
const JSON: &str = "application/json";
const MERGE_PATCH: &str = "application/merge-patch+json";

/// A body that a route takes.
pub(super) trait Input: DeserializeOwned + Send + 'static {
    /// It is a batch, with a limit of its own.
    const BATCH: bool = false;
    /// It is a JSON merge patch.
    const PATCH: bool = false;

    /// What suffices for any body that keeps to the other limits, in whatever way it is written. Where that is less than
    /// the limit of all bodies, it is the limit: who needs little has no use for megabytes but to fill memory.
    fn bytes_needed(_config: &Config) -> u64 {
        u64::MAX
    }
}

/// The JSON text of a string of so many bytes, each of which may be written as `\u0061`.
pub(super) const fn escaped(bytes: u64) -> u64 {
    6 * bytes
}

/// A request with its body parsed.
#[derive(Debug)]
pub(super) struct Json<T> {
    /// Everything but the body.
    pub head: Parts,
    /// The body.
    pub body: T,
}

impl<T: Input> FromRequest<App> for Json<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, app: &App) -> Result<Self, Problem> {
        let (mut head, body) = request.into_parts();
        check_type(&head.headers, T::PATCH)?;
        let http = &app.config.http;
        let bytes_max = if T::BATCH { http.batch_body_bytes_max } else { http.request_body_bytes_max };
        let bytes_max = bytes_max.min(T::bytes_needed(&app.config));
        let time = Duration::from_millis(http.body_read_timeout_ms);
        let reading = tokio::time::timeout(time, read(app, &head.headers, body, bytes_max));
        let (bytes, share) = reading.await.map_err(|_| {
            Error::invalid("body_timeout", "body", format!("must arrive within {} ms", time.as_millis()))
        })??;
        // Who was let in by the head may have been shut out while the body came.
        access::still_admits(app, Route::of(head.uri.path()), &head).await?;
        let (body, share) = if bytes.len() <= PARSE_HERE_BYTES_MAX {
            (parse(&bytes)?, share)
        } else {
            // The share goes along: also when the client hangs up meanwhile, the bytes are there until this is done.
            let parsed = tokio::task::spawn_blocking(move || parse(&bytes).map(|body| (body, share))).await;
            parsed.map_err(|e| Error::internal("a body could not be parsed").with_source(e))??
        };
        // Handlers keep the head until they answer, and with it the share.
        head.extensions.insert(Arc::new(share));
        Ok(Self { head, body })
    }
}

fn check_type(headers: &HeaderMap, patch: bool) -> Result<()> {
    let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let media_type = value.split(';').next().unwrap_or_default().trim();
    if media_type.eq_ignore_ascii_case(JSON) || (patch && media_type.eq_ignore_ascii_case(MERGE_PATCH)) {
        return Ok(());
    }
    let expected = if patch { format!("{MERGE_PATCH} or {JSON}") } else { JSON.to_owned() };
    let detail = format!("must be {expected}, is {:?}", shortened(value));
    Err(Error::invalid("unsupported_media_type", "Content-Type", detail))
}

async fn read(app: &App, headers: &HeaderMap, mut body: Body, bytes_max: u64) -> Result<(Vec<u8>, Share)> {
    let announced = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    let too_large = |size: u64| {
        let detail = format!("must have at most {bytes_max} bytes, has {size} or more");
        Error::limit("body_too_large", "body", detail, bytes_max, size)
    };
    if let Some(size) = announced.filter(|size| *size > bytes_max) {
        // A client that asks before it sends has sent nothing: to read on would be to say that it may.
        if !headers.contains_key(header::EXPECT) {
            drop_rest(app, body, bytes_max);
        }
        return Err(too_large(size));
    }
    let most = announced.unwrap_or(bytes_max);
    let (mut bytes, mut share) = (Vec::<u8>::new(), app.bodies().share());
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|e| {
            Error::new(Kind::Malformed, "body_incomplete", "the body broke off").with_field("body").with_source(e)
        })?;
        let Ok(data) = frame.into_data() else { continue };
        let size = bytes.len() as u64 + data.len() as u64;
        if size > bytes_max {
            drop_rest(app, body, bytes_max);
            return Err(too_large(size));
        }
        let room = bytes.capacity() as u64;
        if size > room {
            // Twice as much each time, so that few bytes are moved often; no more than can come, since all of it counts.
            let room = size.max(most.min(2 * room));
            if let Err(error) = share.hold(room) {
                drop_rest(app, body, bytes_max);
                return Err(error);
            }
            bytes.reserve_exact(room as usize - bytes.len());
        }
        bytes.extend_from_slice(&data);
    }
    Ok((bytes, share))
}

/// Reads what is left of a refused body beside the answer, and drops it: within bounds, and no longer than a body may take
/// anyway. The connection ends with what was not read, or goes on where nothing is left.
fn drop_rest(app: &App, mut body: Body, bytes_max: u64) {
    let time = Duration::from_millis(app.config.http.body_read_timeout_ms);
    let stopping = app.stopping().clone();
    tokio::spawn(async move {
        let mut left = bytes_max.saturating_mul(2).max(DROPPED_BYTES_MIN);
        let dropping = async {
            while left > 0
                && !body.is_end_stream()
                && let Some(Ok(frame)) = body.frame().await
            {
                left = left.saturating_sub(frame.data_ref().map_or(0, |data| data.len() as u64));
            }
        };
        stopping.run_until_cancelled(tokio::time::timeout(time, dropping)).await
    });
}

/// Parses a body, or part of one. Unknown and repeated fields are refused; the error names the field by its path.
pub(super) fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    // The path is worth its cost only when there is something to tell.
    serde_json::from_slice(bytes).map_err(|error| match error.classify() {
        serde_json::error::Category::Data => {
            let deserializer = &mut serde_json::Deserializer::from_slice(bytes);
            let located = serde_path_to_error::deserialize::<_, T>(deserializer).err();
            let path = located.map(|located| located.path().to_string()).unwrap_or_default();
            misfit(&error, &path)
        }
        _ => malformed(&error),
    })
}

/// An error for text that is no JSON.
pub(super) fn malformed(error: &serde_json::Error) -> Error {
    Error::new(Kind::Malformed, "malformed_json", error.to_string())
}

/// An error for JSON that is not what the route takes. The kinds of misfit are told apart by serde's own sentences;
/// tests hold them to it.
fn misfit(error: &serde_json::Error, path: &str) -> Error {
    let sentence = error.to_string();
    let named = sentence.split('`').nth(1).unwrap_or_default().to_owned();
    let inner = if path == "." { "" } else { path };
    let field = if named.is_empty() || inner.rsplit('.').next() == Some(&named) {
        inner.to_owned()
    } else if inner.is_empty() {
        named.clone()
    } else {
        format!("{inner}.{named}")
    };
    let field = shortened(&field);
    if sentence.starts_with("unknown field") {
        if PLANNED_FIELDS.contains(&named.as_str()) {
            return Error::invalid("unsupported_field", &field, "is planned but not supported yet");
        }
        return Error::invalid("unknown_field", &field, sentence);
    }
    if sentence.starts_with("missing field") {
        return Error::invalid("missing_field", &field, sentence);
    }
    if sentence.starts_with("duplicate field") {
        return Error::invalid("duplicate_field", &field, sentence);
    }
    Error::invalid("invalid_value", if inner.is_empty() { "body" } else { inner }, sentence)
}

/// Takes a field that may be null as `Some(None)`, so that null and absent differ: in a merge patch null removes.
pub(super) fn nullable<'de, D, T>(deserializer: D) -> Result<Option<Option<T>>, D::Error>
where
    D: serde::Deserializer<'de>,
    T: serde::Deserialize<'de>,
{
    serde::Deserialize::deserialize(deserializer).map(Some)
}

/// `value` as the body of a response.
pub(super) fn respond<T: Serialize>(status: StatusCode, value: &T) -> Result<Response<Body>> {
    let mut bytes = Vec::with_capacity(1024);
    serde_json::to_writer(&mut bytes, value)
        .map_err(|e| Error::internal("an answer could not be written as JSON").with_source(e))?;
    let mut response = Response::new(Body::from(bytes));
    *response.status_mut() = status;
    response.headers_mut().reserve(8);
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(JSON));
    Ok(response)
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "only parsed")]
    struct Outer {
        inner: Vec<Inner>,
        #[serde(default)]
        data: Option<Box<serde_json::value::RawValue>>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "only parsed")]
    struct Inner {
        size: u32,
    }

    #[test]
    fn faults_are_told_with_their_place() {
        for (text, code, field) in [
            (r#"{"inner":[{"size":1}]"#, "malformed_json", None),
            (r#"{"inner":[{"size":1}]} x"#, "malformed_json", None),
            ("", "malformed_json", None),
            ("[]", "invalid_value", Some("body")),
            ("{}", "missing_field", Some("inner")),
            (r#"{"inner":[],"topic":1}"#, "unsupported_field", Some("topic")),
            (r#"{"inner":[],"inner":[]}"#, "duplicate_field", Some("inner")),
            (r#"{"inner":[{"size":1},{"size":1,"sise":2}]}"#, "unknown_field", Some("inner[1].sise")),
            (r#"{"inner":[{}]}"#, "missing_field", Some("inner[0].size")),
            (r#"{"inner":[{"size":-1}]}"#, "invalid_value", Some("inner[0].size")),
            (r#"{"inner":[{"size":"`x`"}]}"#, "invalid_value", Some("inner[0].size")),
            (r#"{"data":{"a":1},"inner":[{"size":null}]}"#, "invalid_value", Some("inner[0].size")),
        ] {
            let error = parse::<Outer>(text.as_bytes()).expect_err(text);
            assert_eq!((error.code(), error.field()), (code, field), "{text}: {error}");
        }
        let error = parse::<Outer>(b"{\n \"inner\": oops}").expect_err("no JSON");
        assert!(error.detail().contains("line 2 column 11"), "{error}");
    }
}
