//! `/v1/viewer-tokens`: tokens for viewers, for producers that do not sign their own.

use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::App;
use super::access;
use super::dto::Stamp;
use super::json::{self, FEW_FIELDS_BYTES, Input, Json};
use super::openapi::{BODY, QUERY, problems};
use super::params;
use super::problem::Answer;
use crate::access::audit;
use crate::config::Config;
use crate::domain::ViewerId;

/// How long a token lasts if nobody says otherwise: an hour, or the limit if that is less.
const TTL: Duration = Duration::from_secs(3_600);

/// Whom the token is for.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = ViewerTokenInput)]
pub(super) struct IssueInput {
    #[schema(example = "ben")]
    viewer_id: String,
    /// How long it lasts. An hour, if absent; a token cannot be taken back.
    #[schema(minimum = 1, example = 3_600)]
    ttl_seconds: Option<u64>,
}

impl Input for IssueInput {
    fn bytes_needed(_: &Config) -> u64 {
        FEW_FIELDS_BYTES
    }
}

/// A token.
#[derive(Serialize, ToSchema)]
#[schema(as = ViewerToken)]
struct TokenBody<'a> {
    #[schema(example = "ben")]
    viewer_id: &'a str,
    /// For `Authorization: Bearer`.
    viewer_token: &'a str,
    #[schema(value_type = String, format = DateTime)]
    expires_at: Stamp,
}

problems!(IssueProblems: BODY, QUERY, &["access_off", "invalid_viewer_id", "no_signing_key"]);

/// Hand out a viewer's token
///
/// It opens that viewer's inbox and nothing else. A backend that has a key of `access.jwks` need not ask: it can sign
/// tokens by itself.
#[utoipa::path(
    post, path = "/v1/viewer-tokens", operation_id = "issue_viewer_token", tag = "access",
    request_body = IssueInput,
    responses((status = 201, description = "A token", body = TokenBody), IssueProblems),
)]
pub(super) async fn issue(State(app): State<App>, Json { head, body }: Json<IssueInput>) -> Answer {
    let [] = params::query(head.uri.query(), [])?;
    let tokens = app.access.tokens()?;
    let viewer = ViewerId::parse("viewer_id", &body.viewer_id)?;
    let ttl = body.ttl_seconds.map_or_else(|| TTL.min(tokens.ttl_max()), Duration::from_secs);
    let minted = tokens.mint(&viewer, ttl)?;
    audit::token_issued(&access::caller(&app, &head)?, &viewer, ttl);
    let body =
        TokenBody { viewer_id: viewer.as_str(), viewer_token: &minted.token, expires_at: Stamp(minted.expires_at) };
    Ok(json::respond(StatusCode::CREATED, &body)?)
}
