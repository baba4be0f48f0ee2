//! Viewers' tokens: JWTs that a producer's backend signs, and that open one inbox for a while.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use jsonwebtoken::{Header, Validation, decode, decode_header, encode};
use metrics::counter;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tracing::{info, warn};

use super::credential::TokenText;
use super::jwks::KeySet;
use crate::clock::Clock;
use crate::config;
use crate::domain::{Time, ViewerId};
use crate::error::{Error, Kind, Result};
use crate::files::{self, Watch};

/// The settings that name the keys.
const INLINE: &str = "access.jwks";
const FILE: &str = "access.jwks_file";

/// Checks tokens, and signs some.
#[derive(Debug)]
pub struct Tokens {
    keys: RwLock<Arc<KeySet>>,
    /// Counts the sets of keys there have been: what was checked against an earlier one counts no more.
    generation: AtomicU64,
    checked: moka::sync::Cache<[u8; 32], Checked, foldhash::fast::RandomState>,
    clock: Clock,
    audience: Option<String>,
    leeway_s: i64,
    ttl_max: Duration,
}

/// A token whose signature was right.
#[derive(Clone, Debug)]
struct Checked {
    viewer: ViewerId,
    /// Seconds since 1970, without leeway.
    not_before: Option<i64>,
    expires: i64,
    generation: u64,
}

/// What a token must say. Nothing of it is believed before the signature is.
#[derive(Deserialize)]
struct Claims {
    sub: String,
    exp: f64,
    nbf: Option<f64>,
    aud: Option<Audience>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Many(Vec<String>),
}

/// What a token of ours says.
#[derive(Serialize)]
struct Signed<'a> {
    sub: &'a str,
    iat: i64,
    exp: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    aud: Option<&'a str>,
}

/// A token that was signed here.
pub struct Minted {
    /// As good as a password while it lasts.
    pub token: String,
    /// When it ends.
    pub expires_at: Time,
}

impl Tokens {
    /// With the keys that the configuration names: its own, those of the file, or none.
    pub fn open(config: &config::Access, clock: Clock) -> Result<Self> {
        let keys = load(config)?;
        Ok(Self {
            keys: RwLock::new(Arc::new(keys)),
            generation: AtomicU64::new(0),
            checked: moka::sync::Cache::builder()
                .max_capacity(config.tokens_cached_max)
                .build_with_hasher(foldhash::fast::RandomState::default()),
            clock,
            audience: Some(config.audience.clone()).filter(|audience| !audience.is_empty()),
            leeway_s: i64::from(config.leeway_s),
            ttl_max: Duration::from_secs(config.token_ttl_s_max),
        })
    }

    /// The longest life of a token that is signed here.
    pub fn ttl_max(&self) -> Duration {
        self.ttl_max
    }

    fn keys(&self) -> Arc<KeySet> {
        Arc::clone(&self.keys.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// How many keys tokens can be signed with.
    pub fn key_count(&self) -> usize {
        self.keys().len()
    }

    /// The viewer that a token stands for, now.
    pub fn verify(&self, token: TokenText<'_>) -> Result<ViewerId> {
        let generation = self.generation.load(Ordering::Acquire);
        let digest: [u8; 32] = Sha256::digest(token.0).into();
        if let Some(checked) = self.checked.get(&digest).filter(|checked| checked.generation == generation) {
            self.in_time(&checked)?;
            return Ok(checked.viewer);
        }
        let checked = self.check(token, generation)?;
        self.in_time(&checked)?;
        let viewer = checked.viewer.clone();
        self.checked.insert(digest, checked);
        Ok(viewer)
    }

    /// Everything that does not depend on the time.
    fn check(&self, token: TokenText<'_>, generation: u64) -> Result<Checked> {
        let header = decode_header(token.0).map_err(|_| invalid("is no token that is signed in a way known here"))?;
        if header.crit.is_some() {
            return Err(invalid("has critical extensions (crit), of which none is known here"));
        }
        let keys = self.keys();
        let key =
            keys.find(header.kid.as_deref()).ok_or_else(|| invalid("is signed with a key that is not known here"))?;
        // The library looks as well; that the key decides, and not the token, is too important to leave to one look.
        if key.algorithm != header.alg {
            return Err(invalid("names another algorithm than its key is for"));
        }
        let mut validation = Validation::new(key.algorithm);
        // Claims are judged below: by our clock, and strictly.
        validation.required_spec_claims.clear();
        (validation.validate_exp, validation.validate_nbf, validation.validate_aud) = (false, false, false);
        let claims = decode::<Claims>(token.0, &key.verifier, &validation).map_err(|error| match error.kind() {
            jsonwebtoken::errors::ErrorKind::Json(_) => invalid("must have sub (text) and exp (seconds since 1970)"),
            _ => invalid("has a signature that is not its key's"),
        })?;
        let Claims { sub, exp, nbf, aud } = claims.claims;
        self.is_for_us(aud)?;
        let viewer = ViewerId::parse("sub", &sub).map_err(|_| invalid("has a sub that can be no viewer's id"))?;
        Ok(Checked { viewer, not_before: nbf.map(seconds).transpose()?, expires: seconds(exp)?, generation })
    }

    /// RFC 7519, 4.1.3: who does not find itself in an audience must refuse the token.
    fn is_for_us(&self, audience: Option<Audience>) -> Result<()> {
        let named = match audience {
            None => Vec::new(),
            Some(Audience::One(name)) => vec![name],
            Some(Audience::Many(names)) => names,
        };
        let ours = match &self.audience {
            Some(ours) => named.contains(ours),
            None => named.is_empty(),
        };
        if ours { Ok(()) } else { Err(invalid("is for another audience (aud)")) }
    }

    fn in_time(&self, checked: &Checked) -> Result<()> {
        let now = self.clock.now().millis().div_euclid(1_000);
        if now >= checked.expires.saturating_add(self.leeway_s) {
            return Err(Error::new(Kind::Unauthenticated, "viewer_token_expired", "the viewer's token has expired"));
        }
        if checked.not_before.is_some_and(|from| now.saturating_add(self.leeway_s) < from) {
            let detail = "the viewer's token is not valid yet (nbf)";
            return Err(Error::new(Kind::Unauthenticated, "viewer_token_not_yet_valid", detail));
        }
        Ok(())
    }

    /// Signs a token for `viewer`.
    pub fn mint(&self, viewer: &ViewerId, ttl: Duration) -> Result<Minted> {
        let (limit, value) = (self.ttl_max.as_secs(), ttl.as_secs());
        if value == 0 || value > limit {
            let detail = format!("must be 1 to {limit} seconds, is {value}");
            return Err(Error::limit("invalid_value", "ttl_seconds", detail, limit, value));
        }
        let keys = self.keys();
        let signer = keys.signer().ok_or_else(|| {
            let detail = "the configuration has no shared secret (kty oct) that tokens could be signed with";
            Error::new(Kind::Conflict, "no_signing_key", detail)
        })?;
        let iat = self.clock.now().millis().div_euclid(1_000);
        let exp = iat.saturating_add(i64::try_from(value).unwrap_or(i64::MAX));
        let header = Header { kid: Some(signer.kid.clone()), ..Header::default() };
        let claims = Signed { sub: viewer.as_str(), iat, exp, aud: self.audience.as_deref() };
        let token = encode(&header, &claims, &signer.key)
            .map_err(|e| Error::internal("a token could not be signed").with_source(e))?;
        Ok(Minted { token, expires_at: Time::from_millis(exp.saturating_mul(1_000)) })
    }

    /// Puts `keys` in the place of those there were; every token is checked anew.
    fn replace(&self, keys: KeySet) {
        *self.keys.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(keys);
        self.generation.fetch_add(1, Ordering::AcqRel);
    }

    /// Looks at the file of keys for ever. One that is broken or gone changes nothing, is told once, and tried again.
    pub async fn reload(&self, config: &config::Access, watch: Watch) {
        let take = |loaded: Result<KeySet>| {
            let result = match loaded {
                Ok(keys) => {
                    info!(file = %config.jwks_file, ?keys, "the keys of viewers' tokens were read again");
                    self.replace(keys);
                    "ok"
                }
                Err(error) => {
                    warn!(%error, code = error.code(), "the file of viewers' tokens' keys cannot be used; the old keys stay");
                    "error"
                }
            };
            counter!("fanfold_jwks_reloads_total", "result" => result).increment(1);
        };
        watch.follow(Duration::from_millis(config.jwks_reload_ms), || load(config), take).await;
    }
}

/// The files to watch.
pub fn watched(config: &config::Access) -> Option<Watch> {
    (!config.jwks_file.is_empty()).then(|| Watch::new(vec![config.jwks_file.clone().into()]))
}

fn load(config: &config::Access) -> Result<KeySet> {
    if !config.jwks.is_empty() {
        return KeySet::parse(config.jwks.expose(), INLINE);
    }
    if config.jwks_file.is_empty() {
        return Ok(KeySet::default());
    }
    let path = std::path::Path::new(&config.jwks_file);
    let keys = KeySet::parse(&files::read(path, FILE)?, FILE)?;
    if keys.is_secret() {
        files::check_private(path, FILE)?;
    }
    Ok(keys)
}

/// A NumericDate (RFC 7519, 2) in whole seconds.
fn seconds(value: f64) -> Result<i64> {
    /// The year 9999.
    const LATEST: f64 = 253_402_300_799.0;
    if (0.0..=LATEST).contains(&value) {
        #[expect(clippy::cast_possible_truncation, reason = "the bounds are far inside")]
        return Ok(value as i64);
    }
    Err(invalid("has an exp or nbf that is no time"))
}

/// Never repeats anything of the token.
fn invalid(what: &'static str) -> Error {
    Error::new(Kind::Unauthenticated, "viewer_token_invalid", format!("the viewer's token {what}"))
}
