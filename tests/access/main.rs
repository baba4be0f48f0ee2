//! Who may do what, seen from outside: keys, tokens, what is refused and how, and what is never shown.

#[path = "../support/command.rs"]
mod command;
#[path = "../support/process.rs"]
mod process;
#[path = "../support/redis_server.rs"]
mod redis_server;
#[path = "../support/mod.rs"]
mod support;
#[path = "../support/wait.rs"]
mod wait;

mod audit;
mod bad_days;
mod https;
mod init;
mod keys;
mod matrix;
mod nodes;
mod quotas;
mod redis_gone;
mod ring;
mod secrets;
mod shared_quotas;
mod tokens;
mod wire;
mod worker_page;

use fanfold::access::{KeyBook, KeyText};
use fanfold::config::{self, AccessMode, Config, Overrides, Secret};
use fanfold::domain::{Scope, Scopes};
use ring::Ring;
use support::Service;

/// What tokens must have in `aud`.
pub const AUDIENCE: &str = "feed";

/// A service with access control, and keys of each kind to sign tokens with.
pub struct Guarded {
    pub service: Service,
    pub ring: Ring,
    pub config: Config,
}

impl Guarded {
    pub async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    pub async fn start_with(change: impl FnOnce(&mut Config)) -> Self {
        let ring = Ring::new();
        let mut kept = None;
        let service = Service::start_with(|config| {
            guard(config, &ring);
            change(config);
            kept = Some(config.clone());
        })
        .await;
        Self { service, ring, config: kept.expect("configured") }
    }

    /// The keys of the service's own store, as another process would have them.
    pub fn book(&self) -> KeyBook {
        let clock = fanfold::clock::Clock::system();
        KeyBook::new(&self.service.running.backends.store, &self.config.access, clock)
    }

    /// A fresh key for `producer`.
    pub async fn key(&self, producer: &str, scopes: &[Scope]) -> KeyText {
        let scopes: Scopes = scopes.iter().copied().collect();
        let order = fanfold::access::NewKey { name: producer.to_owned(), producer: None, scopes, ttl: None };
        self.book().create(&order).await.expect("made").text
    }
}

/// Turns access control on.
pub fn guard(config: &mut Config, ring: &Ring) {
    config.access.mode = AccessMode::On;
    config.access.audience = AUDIENCE.to_owned();
    config.access.jwks = Secret::from(ring.jwks().as_str());
}

/// The defaults, for what needs a configuration and no service.
pub fn defaults() -> Config {
    config::load(&Overrides::default(), []).expect("the defaults")
}

/// `Authorization` for a key.
pub fn bearer(key: &KeyText) -> String {
    format!("Bearer {}", key.reveal())
}
