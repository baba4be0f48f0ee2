//! The unchanged poll with a viewer's token, against the same poll of a service that asks nobody who they are.

use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{EncodingKey, Header, encode};
use serde_json::json;

use crate::client::{Connection, Request, get, get_as};
use crate::context::Context;
use crate::findings::{Comparison, Findings};
use crate::load::{measured, repeat};
use crate::measure::{Limit, Measure, Pair, Result};
use crate::posts;
use crate::service::Service;

const CONNECTIONS: usize = 16;
/// How long the tokens are good: longer than any run.
const TOKEN_S: u64 = 24 * 3_600;

/// Runs it.
pub async fn run(context: &Context) -> Result<Findings> {
    let secret: [u8; 32] = rand::random();
    let jwks = json!({"keys": [{"kty": "oct", "kid": "bench", "alg": "HS256", "k": URL_SAFE_NO_PAD.encode(secret)}]});
    let jwks = jwks.to_string();
    let settings = [("FANFOLD_ACCESS__MODE", "on"), ("FANFOLD_ACCESS__JWKS", jwks.as_str())];
    let mut guarded = Service::start_with(context, "poll-token", &settings).await?;
    let mut open = Service::start(context, "poll-open").await?;

    // More tokens than connections, and all of them are met again: as apps do that poll for hours with the same one.
    let viewers: Vec<String> = (0..context.size(1_000, 20)).map(posts::viewer).collect();
    let tokens = viewers.iter().map(|viewer| sign(viewer, &secret)).collect::<Result<Vec<_>>>()?;
    let with_token = polls(&guarded, &viewers, |at, path| get_as(path, &tokens[at])).await?;
    let without = polls(&open, &viewers, |_, path| get(path)).await?;

    let each = context.size(8_000, 100);
    measured(&mut guarded.child, CONNECTIONS, repeat(with_token.clone(), each / 4, 304)).await?;
    measured(&mut open.child, CONNECTIONS, repeat(without.clone(), each / 4, 304)).await?;
    let mut pairs = Vec::new();
    for number in 0..context.pairs {
        context.say_pair("poll-token", number);
        let ours = measured(&mut guarded.child, CONNECTIONS, repeat(with_token.clone(), each, 304)).await?;
        let other = measured(&mut open.child, CONNECTIONS, repeat(without.clone(), each, 304)).await?;
        pairs.push(Pair { ours, other });
    }
    guarded.child.stop().await?;
    open.child.stop().await?;
    Ok(Comparison {
        scenario: "poll-token",
        what: "an unchanged poll with a viewer's token, against one of a service without access control",
        op: "poll",
        other: "no access",
        measure: Measure::Cpu,
        limit: Some(Limit::AtMost(1.5)),
        pairs,
    }
    .into())
}

fn sign(viewer: &str, secret: &[u8]) -> Result<String> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let header = Header { kid: Some("bench".to_owned()), ..Header::default() };
    let claims = json!({"sub": viewer, "iat": now, "exp": now + TOKEN_S});
    Ok(encode(&header, &claims, &EncodingKey::from_secret(secret))?)
}

/// The poll of each viewer who has read an inbox in which nothing happens from then on.
async fn polls(
    service: &Service,
    viewers: &[String],
    request: impl Fn(usize, &str) -> Request,
) -> Result<Vec<Request>> {
    let mut connection = Connection::open(service.child.addr()).await?;
    let mut polls = Vec::with_capacity(viewers.len());
    for (at, viewer) in viewers.iter().enumerate() {
        let page = connection.send(&request(at, &format!("/v1/viewers/{viewer}/inbox"))).await?.expect(200)?;
        polls.push(request(at, &format!("/v1/viewers/{viewer}/revision?since={}", page.field("token")?)));
    }
    Ok(polls)
}
