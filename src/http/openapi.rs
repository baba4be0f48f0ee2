//! `/openapi.json`: gathered from the handlers, completed with what all of them share.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::{Value, json};
use utoipa::openapi::header::HeaderBuilder;
use utoipa::openapi::response::{Response, ResponseBuilder};
use utoipa::openapi::schema::{KnownFormat, ObjectBuilder, SchemaFormat, Type};
use utoipa::openapi::{ContentBuilder, Ref, RefOr, Schema};
use utoipa::{OpenApi, PartialSchema, ToSchema};

use super::codes::{CODES, Code, find};
use super::problem::ProblemBody;
use super::routes::Route;

/// Codes of every route that takes query parameters, which is to say of every route: unknown ones are refused.
pub(super) const QUERY: &[&str] = &["internal", "malformed_query", "repeated_parameter", "unknown_parameter"];
/// Codes of every route with a body.
pub(super) const BODY: &[&str] = &[
    "body_incomplete",
    "body_timeout",
    "body_too_large",
    "duplicate_field",
    "invalid_value",
    "malformed_json",
    "missing_field",
    "unknown_field",
    "unsupported_field",
    "unsupported_media_type",
];
/// Codes of every route that reads the store.
pub(super) const READ: &[&str] = &["revisions_unavailable", "store_corrupt", "store_failed", "store_unavailable"];
/// Codes of every route that writes to the store.
pub(super) const WRITE: &[&str] =
    &["revisions_unavailable", "storage_full", "store_corrupt", "store_failed", "store_unavailable"];

/// Makes a type that tells an operation's problem responses, from lists of codes.
macro_rules! problems {
    ($name:ident: $($codes:expr),+ $(,)?) => {
        struct $name;

        impl utoipa::IntoResponses for $name {
            fn responses()
            -> std::collections::BTreeMap<String, utoipa::openapi::RefOr<utoipa::openapi::response::Response>> {
                $crate::http::openapi::problem_responses(&[$($codes),+])
            }
        }
    };
}
pub(super) use problems;

/// One response for each status among the codes, which names and explains them and has an example of the first.
pub(super) fn problem_responses(lists: &[&[&str]]) -> BTreeMap<String, RefOr<Response>> {
    let mut by_status: BTreeMap<u16, Vec<&Code>> = BTreeMap::new();
    for code in lists.iter().copied().flatten() {
        // A test sees to it that every code is in the table.
        let Some(entry) = find(code) else { continue };
        let entries = by_status.entry(entry.status).or_default();
        if !entries.iter().any(|known| known.code == entry.code) {
            entries.push(entry);
        }
    }
    by_status.into_iter().map(|(status, codes)| (status.to_string(), problem_response(codes).into())).collect()
}

fn problem_response(mut codes: Vec<&Code>) -> Response {
    codes.sort_unstable_by_key(|entry| entry.code);
    let mut description = String::new();
    for entry in &codes {
        // Writing to a string does not fail.
        let _ = writeln!(description, "- `{}`: {}", entry.code, entry.meaning);
    }
    let content = ContentBuilder::new()
        .schema(Some(Ref::from_schema_name("Problem")))
        .example(codes.first().map(|entry| example(entry)))
        .build();
    let retry = matches!(codes.first(), Some(entry) if matches!(entry.status, 410 | 503));
    let mut response = ResponseBuilder::new().description(description).content("application/problem+json", content);
    if retry {
        response = response.header("Retry-After", header("Seconds to wait, with jitter", Type::Integer));
    }
    if codes.iter().any(|entry| entry.code == "resync_required") {
        response = response.header("Location", header("The inbox to read afresh", Type::String));
    }
    response.build()
}

fn example(entry: &Code) -> Value {
    json!({
        "type": format!("urn:fanfold:problem:{}", entry.code),
        "title": entry.title,
        "status": entry.status,
        "detail": entry.meaning,
        "code": entry.code,
        "request_id": "8f1e6a0c2b7d4f93",
    })
}

fn header(description: &str, kind: Type) -> utoipa::openapi::Header {
    let schema = ObjectBuilder::new().schema_type(kind);
    let schema = if description.starts_with("Seconds") {
        schema.format(Some(SchemaFormat::KnownFormat(KnownFormat::Int32)))
    } else {
        schema
    };
    HeaderBuilder::new().schema(Some(schema.build())).description(Some(description)).build()
}

/// The schema of `code`: every stable code, explained.
#[derive(Debug)]
pub(super) struct ErrorCode;

impl PartialSchema for ErrorCode {
    fn schema() -> RefOr<Schema> {
        let mut description =
            "Stable: a code never changes its meaning.\n\n| code | status | meaning |\n|---|---|---|\n".to_owned();
        for entry in CODES {
            let _ = writeln!(description, "| `{}` | {} | {} |", entry.code, entry.status, entry.meaning);
        }
        ObjectBuilder::new()
            .schema_type(Type::String)
            .enum_values(Some(CODES.iter().map(|entry| entry.code)))
            .description(Some(description))
            .into()
    }
}

impl ToSchema for ErrorCode {
    fn name() -> Cow<'static, str> {
        Cow::Borrowed("ErrorCode")
    }
}

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Fanfold",
        description = "A fan-out feed service: publish once, one inbox row per viewer, polls that never touch the \
                       database.\n\nPoll `revision` with the token you hold. On 200 read `changes` (or the inbox, the \
                       first time and after 410), on 304 do nothing; `X-Poll-Interval` says when to ask again. Clients \
                       ignore fields they do not know.\n\nA path that is not served is answered with 404 \
                       `route_not_found`, a method that is not with 405 `method_not_allowed`.",
        license(name = "Apache-2.0 OR MIT", identifier = "Apache-2.0 OR MIT"),
    ),
    tags(
        (name = "posts", description = "For producers"),
        (name = "viewers", description = "For clients"),
        (name = "operations", description = "For operators"),
    ),
    components(schemas(ProblemBody, ErrorCode)),
)]
struct Base;

/// The document before any route is added.
pub(super) fn base() -> utoipa::openapi::OpenApi {
    Base::openapi()
}

/// Adds the headers that all answers of a route carry.
pub(super) fn complete(api: &mut utoipa::openapi::OpenApi) {
    for (path, item) in &mut api.paths.paths {
        let paced = Route::of(path).paced();
        let operations = [&mut item.get, &mut item.put, &mut item.post, &mut item.patch, &mut item.delete];
        for operation in operations.into_iter().flatten() {
            for response in operation.responses.responses.values_mut() {
                let RefOr::T(response) = response else { continue };
                let id = header("The request's id: the one it came with, or a fresh one", Type::String);
                response.headers.insert("x-request-id".to_owned(), id.into());
                if paced {
                    let interval = header("Seconds until the next poll: more under load", Type::Integer);
                    response.headers.insert("X-Poll-Interval".to_owned(), interval.into());
                }
            }
        }
    }
}
