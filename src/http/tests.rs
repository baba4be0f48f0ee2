//! The specification against the routes and the table of codes.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::codes::{CODES, REASONS};
use super::document;
use super::routes::Route;

fn spec() -> Value {
    serde_json::to_value(document()).expect("serializable")
}

/// Every operation with its path and method.
fn operations(spec: &Value) -> Vec<(String, String, Value)> {
    let paths = spec["paths"].as_object().expect("paths");
    let each = paths.iter().flat_map(|(path, item)| {
        let methods = item.as_object().expect("an item").iter();
        methods.map(move |(method, operation)| (path.clone(), method.to_uppercase(), operation.clone()))
    });
    each.collect()
}

#[test]
fn the_specification_has_exactly_these_operations() {
    let spec = spec();
    assert!(spec["openapi"].as_str().is_some_and(|version| version.starts_with("3.1.")));
    let found: BTreeSet<_> =
        operations(&spec).into_iter().map(|(path, method, _)| format!("{method} {path}")).collect();
    let expected = [
        "DELETE /v1/keys/{key_id}",
        "DELETE /v1/posts/{post_id}",
        "DELETE /v1/viewers/{viewer_id}/inbox/{post_id}/{mark}",
        "GET /livez",
        "GET /metrics",
        "GET /openapi.json",
        "GET /readyz",
        "GET /v1/keys",
        "GET /v1/posts/{post_id}",
        "GET /v1/viewers/{viewer_id}/changes",
        "GET /v1/viewers/{viewer_id}/inbox",
        "GET /v1/viewers/{viewer_id}/revision",
        "PATCH /v1/posts/{post_id}",
        "POST /v1/keys",
        "POST /v1/keys/{key_id}/rotate",
        "POST /v1/posts",
        "POST /v1/posts/batch",
        "POST /v1/revisions/query",
        "POST /v1/viewer-tokens",
        "POST /v1/viewers/{viewer_id}/inbox/marks",
        "PUT /v1/viewers/{viewer_id}/inbox/{post_id}/{mark}",
    ];
    assert_eq!(found, expected.map(str::to_owned).into());
    let paths: BTreeSet<&str> = spec["paths"].as_object().expect("paths").keys().map(String::as_str).collect();
    let routes = Route::ALL.into_iter().filter(|route| *route != Route::Unknown);
    assert_eq!(paths, routes.map(Route::template).collect(), "metrics label what the router serves");
}

#[test]
fn every_operation_says_what_it_asks_of_its_caller() {
    let spec = spec();
    let found: BTreeSet<_> = operations(&spec).into_iter().map(|(path, method, _)| (path, method)).collect();
    let decided = |route: Route| {
        let each = route.operations().iter();
        each.map(move |(method, _)| (route.template().to_owned(), (*method).to_owned()))
    };
    let decided: BTreeSet<_> = Route::ALL.into_iter().flat_map(decided).collect();
    assert_eq!(found, decided, "the router serves nothing that nobody has decided about");
    let schemes = spec["components"]["securitySchemes"].as_object().expect("schemes");
    for (path, method, operation) in operations(&spec) {
        let open = ["/livez", "/readyz", "/openapi.json"].contains(&path.as_str());
        let ways = operation["security"].as_array().cloned().unwrap_or_default();
        assert_eq!(ways.is_empty(), open, "{method} {path}");
        for way in ways.iter().flat_map(|way| way.as_object().expect("a way").keys()) {
            assert!(schemes.contains_key(way), "{method} {path}: {way}");
        }
        assert_eq!(operation["responses"]["401"].is_null(), open, "{method} {path}");
    }
}

#[test]
fn every_schema_is_there_under_a_name_of_its_own() {
    let spec = spec();
    let mut refs = Vec::new();
    collect(&spec, "$ref", &mut refs);
    assert!(refs.len() > 20, "{refs:?}");
    for target in refs {
        let pointer = target.as_str().expect("a string").strip_prefix('#').expect("a local reference");
        assert!(spec.pointer(pointer).is_some(), "{pointer} leads nowhere");
    }
    // Two types of one name would overwrite each other silently: this list says which there are.
    let names: Vec<&str> =
        spec["components"]["schemas"].as_object().expect("schemas").keys().map(String::as_str).collect();
    let expected = [
        "Actor",
        "ActorInput",
        "Audience",
        "AudienceInput",
        "BatchInput",
        "BatchPostInput",
        "BatchResult",
        "BatchResults",
        "Changed",
        "Changes",
        "Count",
        "ErrorCode",
        "Fanout",
        "Health",
        "InboxPage",
        "IssuedKey",
        "Item",
        "Key",
        "KeyInput",
        "Keys",
        "Marked",
        "MarkedMany",
        "MarksInput",
        "Post",
        "PostInput",
        "PostPatch",
        "Problem",
        "Published",
        "Revision",
        "RevisionQuery",
        "RevisionQueryViewer",
        "RevisionResult",
        "RevisionResults",
        "Rotation",
        "RotationInput",
        "ViewerToken",
        "ViewerTokenInput",
    ];
    assert_eq!(names, expected);
    let ids: BTreeSet<_> =
        operations(&spec).iter().map(|(.., operation)| operation["operationId"].to_string()).collect();
    assert_eq!(ids.len(), operations(&spec).len(), "operation ids are unique");
}

fn collect<'a>(value: &'a Value, key: &str, found: &mut Vec<&'a Value>) {
    match value {
        Value::Object(entries) => {
            found.extend(entries.get(key).filter(|value| value.is_string()));
            entries.values().for_each(|value| collect(value, key, found));
        }
        Value::Array(items) => items.iter().for_each(|value| collect(value, key, found)),
        _ => {}
    }
}

#[test]
fn the_specification_and_the_table_of_codes_agree() {
    let spec = spec();
    let listed: Vec<&str> = spec["components"]["schemas"]["ErrorCode"]["enum"]
        .as_array()
        .expect("an enum")
        .iter()
        .filter_map(Value::as_str)
        .collect();
    assert_eq!(listed, CODES.iter().map(|entry| entry.code).collect::<Vec<_>>());
    let mut told: BTreeMap<&str, u16> = BTreeMap::new();
    let operations = operations(&spec);
    for (path, method, operation) in &operations {
        for (status, response) in operation["responses"].as_object().expect("responses") {
            assert!(response["headers"]["x-request-id"].is_object(), "{method} {path} {status}");
            let status: u16 = status.parse().expect("a status");
            if status < 400 {
                continue;
            }
            let content = &response["content"]["application/problem+json"];
            assert_eq!(content["schema"]["$ref"], "#/components/schemas/Problem", "{method} {path} {status}");
            let description = response["description"].as_str().expect("a description");
            told.extend(
                description
                    .split('`')
                    .skip(1)
                    .step_by(2)
                    .filter_map(|word| CODES.iter().find(|entry| entry.code == word).map(|entry| (entry.code, status))),
            );
        }
    }
    // No operation answers these: they are the router's, or dealt with inside, or for producers with keys of their own.
    let elsewhere = ["route_not_found", "method_not_allowed", "too_many_waiters", "invalid_producer_id"];
    for entry in CODES.iter().filter(|entry| !elsewhere.contains(&entry.code)) {
        assert_eq!(told.get(entry.code), Some(&entry.status), "{} is told by an operation", entry.code);
    }
}

#[test]
fn every_reason_to_resync_has_a_sentence() {
    let sources = [include_str!("../reader.rs"), include_str!("../marks.rs")].concat();
    for (at, start) in sources.match_indices("Error::resync(") {
        let argument = &sources[at + start.len()..];
        let argument = &argument[..argument.find(';').expect("a statement")];
        for reason in argument.split('"').skip(1).step_by(2) {
            assert!(REASONS.iter().any(|(known, _)| *known == reason), "{reason} has none");
        }
    }
}
