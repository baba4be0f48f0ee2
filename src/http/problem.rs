//! Problem details (RFC 9457): every error as `application/problem+json`, with a stable code.

use std::sync::Arc;

use axum::body::Body;
use axum::http::{HeaderValue, Response, StatusCode, header};
use axum::response::IntoResponse;
use serde::Serialize;
use tracing::{debug, error, warn};
use utoipa::ToSchema;

use super::codes::{self, Code, REASONS};
use super::openapi::ErrorCode;
use super::pacer::Pacer;
use crate::error::{Error, Kind};

/// A handler's error on its way out. [`super::front`] gives it its body: only there the request's id is known.
#[derive(Debug)]
pub(super) struct Problem(pub Error);

/// What a handler answers.
pub(super) type Answer<T = Response<Body>> = Result<T, Problem>;

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        Self(error)
    }
}

/// The error inside a response that has no body yet.
#[derive(Clone, Debug)]
pub(super) struct Failure(pub Arc<Error>);

impl IntoResponse for Problem {
    fn into_response(self) -> Response<Body> {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = entry(&self.0).1;
        response.extensions_mut().insert(Failure(Arc::new(self.0)));
        response
    }
}

/// The body of every error.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Problem)]
pub(super) struct ProblemBody {
    /// `urn:fanfold:problem:` and the code.
    #[serde(rename = "type")]
    #[schema(example = "urn:fanfold:problem:invalid_limit")]
    uri: String,
    /// A short summary, the same for every occurrence of the code.
    #[schema(example = "Invalid limit")]
    title: &'static str,
    /// The HTTP status.
    #[schema(example = 422)]
    status: u16,
    /// What is wrong with this request.
    #[schema(example = "must be 1 to 100, is 1000")]
    detail: String,
    /// What to decide by.
    #[schema(value_type = ErrorCode)]
    code: &'static str,
    /// The same as in `x-request-id`.
    #[schema(example = "8f1e6a0c2b7d4f93")]
    request_id: String,
    /// The field, parameter or header at fault.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = "limit")]
    field: Option<String>,
    /// The limit that was exceeded.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = 100)]
    limit: Option<u64>,
    /// The value that exceeded it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = 1000)]
    value: Option<u64>,
    /// Why the inbox must be read afresh: `fence`, `refresh`, `too_old` or `unknown_revision`.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    /// In how many seconds to try again, with jitter. The same as in `Retry-After`, which the posts of a batch do not have.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = 3)]
    retry_after: Option<u64>,
}

impl ProblemBody {
    /// The document of `error`, with the time at which trying again may help, if any.
    pub(super) fn timed(error: &Error, request_id: &str, pacer: &Pacer) -> Self {
        let may_help = matches!(error.kind(), Kind::Unavailable | Kind::Resync | Kind::Limited);
        let retry_after = may_help.then(|| pacer.retry_after(error.retry_after()));
        Self { retry_after, ..Self::new(error, request_id) }
    }

    /// The document of `error`; what the client cannot help goes to the log instead.
    pub(super) fn new(error: &Error, request_id: &str) -> Self {
        let (entry, status) = entry(error);
        log(error, status, request_id);
        let (limit, value) = error.limit_and_value().unzip();
        let reason = (error.kind() == Kind::Resync).then(|| error.detail().to_owned());
        Self {
            uri: format!("urn:fanfold:problem:{}", entry.code),
            title: entry.title,
            status: status.as_u16(),
            detail: detail(error),
            code: entry.code,
            request_id: request_id.to_owned(),
            field: error.field().map(str::to_owned),
            limit,
            value,
            reason,
            retry_after: None,
        }
    }

    /// The HTTP status.
    pub(super) fn status(&self) -> u16 {
        self.status
    }

    /// The document as a response.
    pub(super) fn fill(&self, response: &mut Response<Body>) {
        // Plain strings and numbers always serialize.
        let bytes = serde_json::to_vec(self).unwrap_or_default();
        *response.body_mut() = Body::from(bytes);
        let headers = response.headers_mut();
        headers.remove(header::CONTENT_LENGTH);
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if let Some(seconds) = self.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
    }
}

fn entry(error: &Error) -> (&'static Code, StatusCode) {
    let found = codes::find(error.code());
    debug_assert!(found.is_some(), "the code {:?} is not in the table", error.code());
    let entry = found.unwrap_or_else(|| codes::find("internal").expect("the table has the code for bugs"));
    let status = StatusCode::from_u16(entry.status).expect("the table has valid statuses");
    (entry, status)
}

fn detail(error: &Error) -> String {
    match error.kind() {
        Kind::Internal | Kind::Corrupt => "something is wrong on our side; the log has it under this request id".into(),
        Kind::Resync => {
            let known = REASONS.iter().find(|(reason, _)| *reason == error.detail());
            known.map_or(error.detail(), |(_, sentence)| sentence).to_owned()
        }
        _ => error.detail().to_owned(),
    }
}

fn log(error: &Error, status: StatusCode, request_id: &str) {
    if matches!(error.kind(), Kind::Internal | Kind::Corrupt) {
        error!(%error, code = error.code(), request_id, "a request failed");
    } else if error.code() == "overloaded" {
        // Who fills the memory must not fill the disk as well: these are counted.
        debug!(%error, request_id, "a body was refused");
    } else if status.is_server_error() {
        warn!(%error, code = error.code(), request_id, "a request could not be served");
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::path::{Path, PathBuf};

    use super::*;
    use crate::http::codes::{CODES, STARTUP_CODES};

    #[test]
    fn codes_are_unique_and_their_statuses_fit_their_kinds() {
        let mut seen = HashSet::new();
        for entry in CODES.iter().chain(STARTUP_CODES) {
            assert!(seen.insert(entry.code), "{} stands twice", entry.code);
            assert!(!entry.title.is_empty() && !entry.meaning.is_empty(), "{} is documented", entry.code);
        }
        for entry in CODES {
            assert!(StatusCode::from_u16(entry.status).is_ok_and(|s| s.as_u16() >= 400), "{}", entry.code);
        }
        assert!(STARTUP_CODES.iter().all(|entry| entry.status == 0));
    }

    #[test]
    fn bugs_are_not_told_to_clients() {
        let body = ProblemBody::new(&Error::internal("the secret").with_field("x"), "r1");
        assert_eq!((body.status(), body.code), (500, "internal"));
        assert!(!body.detail.contains("secret"));
        let body = ProblemBody::new(&Error::resync("fence"), "r1");
        assert_eq!((body.status(), body.reason.as_deref()), (410, Some("fence")));
    }

    /// Every literal that is given to a constructor of [`Error`] anywhere in the sources is in one of the tables.
    #[test]
    fn every_code_in_the_sources_is_in_a_table() {
        let known: HashSet<&str> = CODES.iter().chain(STARTUP_CODES).map(|entry| entry.code).collect();
        let mut used = HashSet::new();
        for file in rust_files(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src"))) {
            let text = std::fs::read_to_string(&file).expect("a source file");
            for code in codes_in(text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default()) {
                assert!(known.contains(code.as_str()), "{code} ({}) is in no table", file.display());
                used.insert(code);
            }
        }
        for entry in CODES.iter().chain(STARTUP_CODES) {
            assert!(used.contains(entry.code), "{} is in the table but nothing answers it", entry.code);
        }
    }

    fn rust_files(folder: &Path) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path());
        let nested = entries.flat_map(|path| if path.is_dir() { rust_files(&path) } else { vec![path] });
        nested.filter(|path| path.extension().is_some_and(|e| e == "rs")).collect()
    }

    /// The literals after constructors, and those in statements that choose a code.
    fn codes_in(text: &str) -> Vec<String> {
        const STARTS: [&str; 11] = [
            "Error::new(",
            "Error::invalid(",
            "Error::limit(",
            "Error::not_found(",
            "Error::unavailable(",
            "check_opaque(field,",
            "code = if",
            "code) = if",
            "Error::resync(",
            "Error::internal(",
            "whole(",
        ];
        let mut found = Vec::new();
        for start in STARTS {
            for (at, _) in text.match_indices(start) {
                let rest = &text[at + start.len()..];
                let end = if start.contains("= if") { rest.find(';') } else { rest.find([')', ';']) };
                let statement = &rest[..end.unwrap_or(rest.len())];
                let literals = statement.split('"').skip(1).step_by(2);
                match start {
                    "Error::resync(" => found.push("resync_required".to_owned()),
                    "Error::internal(" => found.push("internal".to_owned()),
                    s if s.contains("= if") => found.extend(literals.map(str::to_owned)),
                    _ => found.extend(first_argument(statement)),
                }
            }
        }
        found
    }

    /// The code: the first argument if it is a literal, or the second after a kind.
    fn first_argument(arguments: &str) -> Option<String> {
        let arguments = arguments.trim_start();
        let arguments = arguments
            .strip_prefix("Kind::")
            .map_or(arguments, |kind| kind.split_once(',').map_or("", |(_, rest)| rest.trim_start()));
        arguments.strip_prefix('"')?.split('"').next().map(str::to_owned)
    }
}
