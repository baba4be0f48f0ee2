//! `/openapi.json`: gathered from the handlers, completed with what all of them share.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::{Value, json};
use utoipa::openapi::header::HeaderBuilder;
use utoipa::openapi::path::Operation;
use utoipa::openapi::response::{Response, ResponseBuilder};
use utoipa::openapi::schema::{KnownFormat, ObjectBuilder, SchemaFormat, Type};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{ContentBuilder, Ref, RefOr, Schema};
use utoipa::{OpenApi, PartialSchema, ToSchema};

use super::codes::{CODES, Code, find};
use super::problem::ProblemBody;
use super::routes::Route;
use crate::access::Need;
use crate::domain::Scope;

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
    "overloaded",
    "unknown_field",
    "unsupported_field",
    "unsupported_media_type",
];
/// Codes of every route that reads the store.
pub(super) const READ: &[&str] = &["revisions_unavailable", "store_corrupt", "store_failed", "store_unavailable"];
/// Codes of every route that writes to the store.
pub(super) const WRITE: &[&str] =
    &["revisions_unavailable", "storage_full", "store_corrupt", "store_failed", "store_unavailable"];

/// Codes of every route that asks who calls.
const ACCESS: &[&str] = &[
    "credentials_malformed",
    "credentials_missing",
    "credentials_too_large",
    "key_expired",
    "key_invalid",
    "key_revoked",
    "scope_missing",
    "store_unavailable",
    "viewer_token_expired",
    "viewer_token_invalid",
    "viewer_token_not_yet_valid",
];
/// Codes of every route that belongs to a viewer.
const VIEWER: &[&str] = &["viewer_mismatch"];

/// The names of the ways to show who one is.
const KEY: &str = "key";
const KEY_BASIC: &str = "key_basic";
const VIEWER_TOKEN: &str = "viewer_token";

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
    let retry = matches!(codes.first(), Some(entry) if matches!(entry.status, 410 | 429 | 503));
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
        (name = "access", description = "Keys and tokens"),
        (name = "operations", description = "For operators"),
    ),
    components(schemas(ProblemBody, ErrorCode)),
)]
struct Base;

/// The document before any route is added.
pub(super) fn base() -> utoipa::openapi::OpenApi {
    Base::openapi()
}

fn need(route: Route, method: &str) -> Need {
    let found = route.operations().iter().find(|(served, _)| *served == method);
    // A test sees to it that every operation has one.
    found.map_or(Need::Open, |(_, need)| *need)
}

/// Says what an operation asks of its caller, and how it refuses.
fn guard(operation: &mut Operation, need: Need) {
    let (ways, lists, scope): (&[&str], &[&[&str]], &str) = match need {
        Need::Open => return,
        Need::Key(scope) => (&[KEY, KEY_BASIC], &[ACCESS], scope.name()),
        Need::Inbox => (&[VIEWER_TOKEN, KEY, KEY_BASIC], &[ACCESS, VIEWER], Scope::Viewers.name()),
    };
    operation.security = Some(ways.iter().map(|way| SecurityRequirement::new(*way, Vec::<String>::new())).collect());
    let whom = if need == Need::Inbox { "The viewer's own token, or a key" } else { "A key" };
    let note = format!("{whom} with the scope `{scope}`, where access control is on.");
    operation.description = Some(match operation.description.take() {
        Some(text) => format!("{text}\n\n{note}"),
        None => note,
    });
    for (status, response) in problem_responses(lists) {
        match operation.responses.responses.get_mut(&status) {
            // The same status for other reasons: both are told.
            Some(RefOr::T(known)) => {
                if let RefOr::T(more) = response {
                    let news = more.description.lines().filter(|line| !known.description.contains(line));
                    let news: String = news.map(|line| format!("{line}\n")).collect();
                    known.description.push_str(&news);
                }
            }
            _ => {
                operation.responses.responses.insert(status, response);
            }
        }
    }
}

/// Adds the ways to show who one is.
fn add_security(api: &mut utoipa::openapi::OpenApi) {
    let components = api.components.get_or_insert_default();
    let http = |scheme, description: &str| {
        let scheme = HttpBuilder::new().scheme(scheme).description(Some(description));
        SecurityScheme::Http(scheme.build())
    };
    components.add_security_scheme(KEY, http(HttpAuthScheme::Bearer, "A producer's key: ffk_<id>_<secret>"));
    components.add_security_scheme(KEY_BASIC, http(HttpAuthScheme::Basic, "A producer's key: its id and its secret"));
    components.add_security_scheme(VIEWER_TOKEN, {
        let description = "A JWT with `sub` (the viewer) and `exp`, signed with a key that the service knows";
        let scheme = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).bearer_format("JWT");
        SecurityScheme::Http(scheme.description(Some(description)).build())
    });
}

/// Adds the headers that all answers of a route carry, and what it asks of its caller.
pub(super) fn complete(api: &mut utoipa::openapi::OpenApi) {
    add_security(api);
    for (path, item) in &mut api.paths.paths {
        let route = Route::of(path);
        let operations = [
            (&mut item.get, "GET"),
            (&mut item.put, "PUT"),
            (&mut item.post, "POST"),
            (&mut item.patch, "PATCH"),
            (&mut item.delete, "DELETE"),
        ];
        for (operation, method) in operations {
            let Some(operation) = operation else { continue };
            guard(operation, need(route, method));
            for (status, response) in &mut operation.responses.responses {
                let RefOr::T(response) = response else { continue };
                let id = header("The request's id: the one it came with, or a fresh one", Type::String);
                response.headers.insert("x-request-id".to_owned(), id.into());
                if route.paced() {
                    let interval = header("Seconds until the next poll: more under load", Type::Integer);
                    response.headers.insert("X-Poll-Interval".to_owned(), interval.into());
                }
                if route.publishes() || status == "429" {
                    let rest = header(
                        "What is left of each quota (`r`), and in how many seconds it is full (`t`)",
                        Type::String,
                    );
                    response.headers.insert("RateLimit".to_owned(), rest.into());
                    let policy =
                        header("Each quota: how much at once (`q`), refilled in how many seconds (`w`)", Type::String);
                    response.headers.insert("RateLimit-Policy".to_owned(), policy.into());
                }
            }
        }
    }
}
