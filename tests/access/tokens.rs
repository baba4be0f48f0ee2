//! Viewers' tokens: signed in each way, in time, handed out here, and checked with keys that change.

use std::path::Path;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use fanfold::access::Tokens;
use fanfold::access::credential::TokenText;
use fanfold::clock::Clock;
use fanfold::config::Secret;
use fanfold::domain::{Scope, Time};
use jsonwebtoken::Algorithm;
use serde_json::{Value, json};

use crate::ring::{Ring, SigningKey, claims_with, now};
use crate::wait::eventually;
use crate::{AUDIENCE, Guarded, bearer, defaults, guard};

fn tokens(ring: &Ring, clock: &Clock) -> Tokens {
    let mut config = defaults();
    guard(&mut config, ring);
    Tokens::open(&config.access, clock.clone()).expect("keys")
}

fn verdict(tokens: &Tokens, token: &str) -> Result<String, &'static str> {
    tokens.verify(TokenText(token)).map(|viewer| viewer.as_str().to_owned()).map_err(|error| error.code())
}

#[test]
fn clocks_may_differ_by_a_minute_and_no_more() {
    let (ring, start) = (Ring::new(), now());
    let clock = Clock::manual(Time::from_millis(start * 1_000));
    let tokens = tokens(&ring, &clock);
    let at = |offset: i64| clock.set(Time::from_millis((start + offset) * 1_000));
    let token = ring.by(Algorithm::EdDSA).sign(&claims_with("ben", json!({"nbf": start + 100, "exp": start + 200})));
    for (offset, expected) in [
        (39, Err("viewer_token_not_yet_valid")),
        (40, Ok("ben".to_owned())),
        (199, Ok("ben".to_owned())),
        (259, Ok("ben".to_owned())),
        (260, Err("viewer_token_expired")),
        (100, Ok("ben".to_owned())),
    ] {
        at(offset);
        // The first time its signature is checked, the second it is known: the time decides both times.
        assert_eq!((verdict(&tokens, &token), verdict(&tokens, &token)), (expected.clone(), expected), "{offset}");
    }
}

#[test]
fn claims_are_read_strictly() {
    let ring = Ring::new();
    let tokens = tokens(&ring, &Clock::system());
    let key = ring.by(Algorithm::HS256);
    let with = |more: Value| verdict(&tokens, &key.sign(&claims_with("ben", more)));
    for good in [
        json!({"aud": ["shop", AUDIENCE]}),
        json!({"exp": now() as f64 + 10.5}),
        json!({"iss": "anybody", "more": {"deep": [1]}}),
        json!({"nbf": now() + 59}),
    ] {
        assert_eq!(with(good.clone()), Ok("ben".to_owned()), "{good}");
    }
    for bad in [
        json!({"aud": 5}),
        json!({"aud": ["shop"]}),
        json!({"aud": []}),
        json!({"exp": "tomorrow"}),
        json!({"exp": -1}),
        json!({"exp": 1e300}),
        json!({"nbf": "now"}),
        json!({"sub": 5}),
        json!({"sub": ""}),
        json!({"sub": "a\nb"}),
        json!({"sub": "x".repeat(129)}),
    ] {
        assert_eq!(with(bad.clone()), Err("viewer_token_invalid"), "{bad}");
    }
}

#[test]
fn without_an_audience_of_ours_a_token_must_not_have_one() {
    let ring = Ring::new();
    let mut config = defaults();
    guard(&mut config, &ring);
    config.access.audience = String::new();
    let tokens = Tokens::open(&config.access, Clock::system()).expect("keys");
    let key = ring.by(Algorithm::RS256);
    assert_eq!(verdict(&tokens, &key.token("ben")), Err("viewer_token_invalid"), "it is for somebody else");
    assert_eq!(verdict(&tokens, &key.sign(&claims_with("ben", json!({"aud": null})))), Ok("ben".to_owned()));
}

#[test]
fn a_token_that_was_altered_anywhere_is_refused() {
    let ring = Ring::new();
    let tokens = tokens(&ring, &Clock::system());
    for key in &ring.keys {
        let token = key.token("ben");
        assert_eq!(verdict(&tokens, &token), Ok("ben".to_owned()), "{:?}", key.algorithm);
        for at in (0..token.len()).step_by(7).chain([token.len() - 3]) {
            let mut bytes = token.clone().into_bytes();
            bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
            let altered = String::from_utf8(bytes).expect("ASCII");
            if altered != token {
                assert_eq!(verdict(&tokens, &altered), Err("viewer_token_invalid"), "{:?} at {at}", key.algorithm);
            }
        }
        for other in ring.keys.iter().filter(|other| other.kid != key.kid) {
            let parts: Vec<&str> = token.split('.').collect();
            let others = other.token("ben");
            let mixed = format!("{}.{}.{}", parts[0], parts[1], others.rsplit('.').next().expect("a signature"));
            assert_eq!(verdict(&tokens, &mixed), Err("viewer_token_invalid"));
        }
    }
}

#[test]
fn keys_that_a_token_brings_along_are_not_looked_at() {
    use jsonwebtoken::{EncodingKey, Header, encode};

    let ring = Ring::new();
    let tokens = tokens(&ring, &Clock::system());
    let stranger = SigningKey::generate("es", Algorithm::ES256);
    let own = serde_json::from_value(stranger.jwk()).expect("a JWK");
    let elsewhere = || Some("https://evil.example.org/keys.json".to_owned());
    for header in [
        Header { jwk: Some(own), ..Header::new(Algorithm::ES256) },
        Header { jku: elsewhere(), ..Header::new(Algorithm::ES256) },
        Header { x5u: elsewhere(), ..Header::new(Algorithm::ES256) },
    ] {
        for kid in [Some("es".to_owned()), None] {
            let token = stranger.sign_with(Header { kid, ..header.clone() }, &claims_with("ben", json!({})));
            assert_eq!(verdict(&tokens, &token), Err("viewer_token_invalid"));
        }
    }
    // Extensions that must be understood, and are not.
    let secret = ring.by(Algorithm::HS256).jwk()["k"].as_str().expect("a secret").to_owned();
    let key = EncodingKey::from_secret(&URL_SAFE_NO_PAD.decode(secret).expect("base64url"));
    let sign = |crit: Option<Vec<String>>| {
        let header = Header { kid: Some("hs".to_owned()), crit, ..Header::new(Algorithm::HS256) };
        encode(&header, &claims_with("ben", json!({})), &key).expect("signed")
    };
    assert_eq!(verdict(&tokens, &sign(None)), Ok("ben".to_owned()));
    assert_eq!(verdict(&tokens, &sign(Some(vec!["b64".to_owned()]))), Err("viewer_token_invalid"));
}

#[tokio::test]
async fn tokens_are_handed_out_to_who_may_and_open_one_inbox() {
    let guarded = Guarded::start_with(|config| config.access.token_ttl_s_max = 7_200).await;
    let key = bearer(&guarded.key("app", &[Scope::Tokens]).await);
    let order = |body: Value| {
        let ask = guarded.service.ask("POST", "/v1/viewer-tokens").header("authorization", &key);
        ask.json(body).send()
    };
    let reply = order(json!({"viewer_id": "ben", "ttl_seconds": 60})).await;
    assert_eq!((reply.status, reply.header("cache-control")), (201, "no-store"), "{reply:?}");
    let token = format!("Bearer {}", reply.json()["viewer_token"].as_str().expect("a token"));
    let get = |path: &str| guarded.service.ask("GET", path).header("authorization", &token).send();
    assert_eq!(get("/v1/viewers/ben/revision").await.status, 200);
    assert_eq!(get("/v1/viewers/cleo/revision").await.json()["code"], "viewer_mismatch");
    for (body, field) in [
        (json!({"viewer_id": "ben", "ttl_seconds": 0}), "ttl_seconds"),
        (json!({"viewer_id": "ben", "ttl_seconds": 7_201}), "ttl_seconds"),
        (json!({"viewer_id": ".."}), "viewer_id"),
    ] {
        let reply = order(body).await;
        assert_eq!((reply.status, reply.json()["field"].as_str()), (422, Some(field)), "{reply:?}");
    }
}

#[tokio::test]
async fn without_a_shared_secret_none_are_handed_out() {
    let only = SigningKey::generate("es", Algorithm::ES256);
    let jwks = json!({"keys": [only.jwk()]}).to_string();
    let guarded = Guarded::start_with(|config| config.access.jwks = Secret::from(jwks.as_str())).await;
    let key = bearer(&guarded.key("app", &[Scope::Tokens]).await);
    let ask = guarded.service.ask("POST", "/v1/viewer-tokens").header("authorization", &key);
    let reply = ask.json(json!({"viewer_id": "ben"})).send().await;
    assert_eq!((reply.status, reply.json()["code"].as_str()), (409, Some("no_signing_key")));
    let token = format!("Bearer {}", only.token("ben"));
    let reply = guarded.service.ask("GET", "/v1/viewers/ben/revision").header("authorization", &token).send().await;
    assert_eq!(reply.status, 200, "they are signed elsewhere");
}

/// Puts `text` in the place of a file at once, as whoever rotates keys should.
fn replace(path: &Path, text: &str) {
    let fresh = path.with_extension("new");
    let _ = std::fs::remove_file(&fresh);
    fanfold::files::write_private(&fresh, text).expect("written");
    std::fs::rename(&fresh, path).expect("renamed");
}

#[tokio::test]
async fn a_file_of_keys_is_read_again_and_a_broken_one_changes_nothing() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("jwks.json");
    let (old, new) = (SigningKey::generate("a", Algorithm::ES256), SigningKey::generate("b", Algorithm::EdDSA));
    let set = |keys: &[&SigningKey]| json!({"keys": keys.iter().map(|key| key.jwk()).collect::<Vec<_>>()}).to_string();
    replace(&path, &set(&[&old]));
    let guarded = Guarded::start_with(|config| {
        config.access.jwks = Secret::default();
        config.access.jwks_file = path.display().to_string();
        config.access.jwks_reload_ms = 20;
    })
    .await;
    let status = |key: &SigningKey| {
        let token = format!("Bearer {}", key.token("ben"));
        let ask = guarded.service.ask("GET", "/v1/viewers/ben/revision").header("authorization", &token);
        async { ask.send().await.status }
    };
    let scraper = bearer(&guarded.key("scraper", &[Scope::Metrics]).await);
    let failed = async || {
        let metrics = guarded.service.ask("GET", "/metrics").header("authorization", &scraper).send().await.text;
        let line = "fanfold_jwks_reloads_total{result=\"error\"} ";
        metrics.lines().find_map(|text| text.strip_prefix(line)?.parse::<u64>().ok()).unwrap_or(0)
    };
    assert_eq!((status(&old).await, status(&new).await), (200, 401));
    replace(&path, &set(&[&old, &new]));
    eventually("the new key is taken", async || status(&new).await == 200).await;
    assert_eq!(status(&old).await, 200, "both, while one is being replaced");

    let clash = json!({"keys": [new.jwk(), new.jwk()]}).to_string();
    let mut off = old.jwk();
    off["y"] = off["x"].clone();
    let off_the_curve = json!({"keys": [new.jwk(), off]}).to_string();
    for broken in ["", "{", r#"{"keys":[]}"#, &clash, &off_the_curve] {
        let before = failed().await;
        replace(&path, broken);
        eventually("the broken file is met", async || failed().await > before).await;
        assert_eq!((status(&old).await, status(&new).await), (200, 200), "{broken:?} changes nothing");
    }
    replace(&path, &set(&[&new]));
    // Its signature had been found right, and that counts no more: the key it was checked with is gone.
    eventually("the old key is gone", async || status(&old).await == 401).await;
    assert_eq!(status(&new).await, 200);

    // Here and not in a test of its own: the counter is the whole process's, and another's failures would count.
    let before = failed().await;
    std::fs::remove_file(&path).expect("removed");
    eventually("that the file is gone is told", async || failed().await > before).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(failed().await, before + 1, "once, however often it is looked for");
    assert_eq!((status(&old).await, status(&new).await), (401, 200), "the keys that were there stay");
    replace(&path, &set(&[&old, &new]));
    eventually("it is taken up when it is back", async || status(&old).await == 200).await;
    assert_eq!((status(&new).await, failed().await), (200, before + 1));
}
