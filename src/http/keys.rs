//! `/v1/keys`: producers' keys are made, listed, rotated and revoked.

use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::App;
use super::access;
use super::dto::Stamp;
use super::json::{self, FEW_FIELDS_BYTES, Input, Json};
use super::openapi::{BODY, QUERY, READ, WRITE, problems};
use super::params;
use super::problem::Answer;
use crate::access::{IssuedKey, NewKey, Rotated, audit, parse_scopes};
use crate::config::Config;
use crate::domain::{ProducerKey, Scope, Time};
use crate::error::Error;
use crate::publish::uninterrupted;

/// How long a rotated key works on if nobody says otherwise: a day, or the limit if that is less.
const OVERLAP: Duration = Duration::from_secs(86_400);

/// A key to be made.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = KeyInput)]
pub(super) struct CreateInput {
    /// What people call it. 1 to 64 bytes.
    #[schema(example = "shop")]
    name: String,
    /// Whom it stands for: posts and idempotency keys belong to a producer, whatever the key. The name, if absent.
    #[schema(example = "shop")]
    producer: Option<String>,
    /// What it opens: `publish`, `read`, `viewers`, `tokens`, `metrics`, `admin`. None includes another.
    #[schema(example = json!(["publish", "read"]))]
    scopes: Vec<String>,
    /// How long it works. For ever, if absent.
    #[schema(minimum = 1, example = 7_776_000)]
    ttl_seconds: Option<u64>,
}

impl Input for CreateInput {
    fn bytes_needed(_: &Config) -> u64 {
        FEW_FIELDS_BYTES
    }
}

/// How to rotate a key.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = RotationInput)]
pub(super) struct RotateInput {
    /// How long the old key works on. A day, if absent.
    #[schema(example = 3_600)]
    overlap_seconds: Option<u64>,
}

impl Input for RotateInput {
    fn bytes_needed(_: &Config) -> u64 {
        FEW_FIELDS_BYTES
    }
}

/// A key, without its secret.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Key)]
struct KeyBody {
    /// No secret: for finding it here, in the audit log, and as the user of Basic.
    #[schema(example = "3f6c0a9d5e21b784")]
    key_id: String,
    #[schema(example = "shop")]
    name: String,
    #[schema(example = "shop")]
    producer: String,
    #[schema(example = json!(["publish", "read"]))]
    scopes: Vec<&'static str>,
    /// `live`, `expired` or `revoked`.
    #[schema(example = "live")]
    state: &'static str,
    #[schema(value_type = String, format = DateTime)]
    created_at: Stamp,
    #[schema(required = true, value_type = Option<String>, format = DateTime)]
    expires_at: Option<Stamp>,
    #[schema(required = true, value_type = Option<String>, format = DateTime)]
    revoked_at: Option<Stamp>,
    /// To within some minutes.
    #[schema(required = true, value_type = Option<String>, format = DateTime)]
    last_used_at: Option<Stamp>,
}

impl KeyBody {
    fn new(key: &ProducerKey, now: Time) -> Self {
        let state = match key.revoked_at {
            Some(_) => "revoked",
            None if key.is_live(now) => "live",
            None => "expired",
        };
        Self {
            key_id: key.id.to_string(),
            name: key.name.clone(),
            producer: key.producer.as_str().to_owned(),
            scopes: key.scopes.iter().map(Scope::name).collect(),
            state,
            created_at: Stamp(key.created_at),
            expires_at: key.expires_at.map(Stamp),
            revoked_at: key.revoked_at.map(Stamp),
            last_used_at: key.last_used.map(Stamp),
        }
    }
}

/// A key that was just made. This is the only answer that ever has its secret.
#[derive(Serialize, ToSchema)]
#[schema(as = IssuedKey)]
struct IssuedBody {
    #[serde(flatten)]
    key: KeyBody,
    /// The whole key, for `Authorization: Bearer`.
    #[schema(example = "ffk_3f6c0a9d5e21b784_…")]
    secret_key: String,
}

impl IssuedBody {
    fn new(issued: &IssuedKey, now: Time) -> Self {
        Self { key: KeyBody::new(&issued.key, now), secret_key: issued.text.reveal() }
    }
}

problems!(
    CreateProblems: BODY, QUERY, WRITE, &["access_off", "invalid_producer_id", "too_many_keys"],
);

/// Make a key
///
/// The answer has the secret; nothing else ever will.
#[utoipa::path(
    post, path = "/v1/keys", operation_id = "create_key", tag = "access",
    request_body = CreateInput,
    responses((status = 201, description = "Made", body = IssuedBody), CreateProblems),
)]
pub(super) async fn create(State(app): State<App>, Json { head, body }: Json<CreateInput>) -> Answer {
    let [] = params::query(head.uri.query(), [])?;
    let (keys, caller) = (app.access.keys()?.clone(), access::caller(&app, &head)?);
    let ttl = body.ttl_seconds.map(Duration::from_secs);
    let scopes = parse_scopes(body.scopes.iter().map(String::as_str))?;
    let order = NewKey { name: body.name, producer: body.producer, scopes, ttl };
    let issued = uninterrupted(async move {
        let issued = keys.create(&order).await?;
        audit::key("key_created", &caller, &issued.key, None);
        Ok(issued)
    });
    Ok(json::respond(StatusCode::CREATED, &IssuedBody::new(&issued.await?, app.clock.now()))?)
}

/// Every key.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Keys)]
struct ListBody {
    /// The newest first. Those that ended stay for a while.
    keys: Vec<KeyBody>,
}

problems!(ListProblems: QUERY, READ, &["access_off"]);

/// List keys
#[utoipa::path(
    get, path = "/v1/keys", operation_id = "list_keys", tag = "access",
    responses((status = 200, description = "The keys, without their secrets", body = ListBody), ListProblems),
)]
pub(super) async fn list(State(app): State<App>, request: Request) -> Answer {
    let [] = params::query(request.uri().query(), [])?;
    let (keys, now) = (app.access.keys()?.list().await?, app.clock.now());
    let keys = keys.iter().map(|key| KeyBody::new(key, now)).collect();
    Ok(json::respond(StatusCode::OK, &ListBody { keys })?)
}

problems!(RevokeProblems: QUERY, WRITE, &["access_off", "key_not_found", "malformed_path"]);

/// Revoke a key
///
/// It is refused at once here, and within five seconds by every other process. Revoking again changes nothing.
#[utoipa::path(
    delete, path = "/v1/keys/{key_id}", operation_id = "revoke_key", tag = "access",
    params(("key_id" = String, Path, description = "The key")),
    responses((status = 200, description = "Revoked", body = KeyBody), RevokeProblems),
)]
pub(super) async fn revoke(State(app): State<App>, request: Request) -> Answer {
    let (head, _) = request.into_parts();
    let [] = params::query(head.uri.query(), [])?;
    let (keys, caller, id) = (app.access.keys()?.clone(), access::caller(&app, &head)?, params::key(&head)?);
    let key = uninterrupted(async move {
        let key = keys.revoke(id).await?;
        audit::key("key_revoked", &caller, &key, None);
        Ok(key)
    });
    Ok(json::respond(StatusCode::OK, &KeyBody::new(&key.await?, app.clock.now()))?)
}

/// A key and the one that takes its place.
#[derive(Serialize, ToSchema)]
#[schema(as = Rotation)]
struct RotationBody {
    key: IssuedBody,
    /// The old one, with the end that it has now.
    replaced: KeyBody,
    /// Whether that end is written down. If not, the old key may work on: revoke it.
    replaced_ends: bool,
}

problems!(
    RotateProblems: BODY, QUERY, WRITE,
    &["access_off", "key_ended", "key_not_found", "malformed_path", "too_many_keys"],
);

/// Rotate a key
///
/// Makes a successor for the same producer with the same scopes and length of life. Both work until the overlap is over;
/// without any, the old one is revoked.
#[utoipa::path(
    post, path = "/v1/keys/{key_id}/rotate", operation_id = "rotate_key", tag = "access",
    params(("key_id" = String, Path, description = "The key to be replaced")),
    request_body = RotateInput,
    responses((status = 201, description = "Rotated", body = RotationBody), RotateProblems),
)]
pub(super) async fn rotate(State(app): State<App>, Json { head, body }: Json<RotateInput>) -> Answer {
    let [] = params::query(head.uri.query(), [])?;
    let (keys, max) = (app.access.keys()?.clone(), app.config.access.rotation_overlap_s_max);
    let overlap = match body.overlap_seconds {
        Some(seconds) if seconds > max => {
            let detail = format!("must be 0 to {max} seconds, is {seconds}");
            return Err(Error::limit("invalid_value", "overlap_seconds", detail, max, seconds).into());
        }
        Some(seconds) => Duration::from_secs(seconds),
        None => OVERLAP.min(Duration::from_secs(max)),
    };
    let (caller, id) = (access::caller(&app, &head)?, params::key(&head)?);
    let rotated = uninterrupted(async move {
        let rotated = keys.rotate(id, overlap).await?;
        audit::key("key_rotated", &caller, &rotated.replaced, Some(rotated.issued.key.id));
        Ok(rotated)
    });
    let Rotated { replaced, ended, issued } = rotated.await?;
    let now = app.clock.now();
    let (key, replaced) = (IssuedBody::new(&issued, now), KeyBody::new(&replaced, now));
    let body = RotationBody { key, replaced, replaced_ends: ended };
    Ok(json::respond(StatusCode::CREATED, &body)?)
}
