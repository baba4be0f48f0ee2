//! Who may do what: producers by keys, viewers by tokens, and what each of them opens. Knows nothing of HTTP.

pub mod audit;
pub mod credential;
pub mod jwks;
pub mod keys;
pub mod permit;
pub mod quota;
mod share;
pub mod tokens;

pub use credential::{Credential, KeyText, looks_secret};
pub use keys::{IssuedKey, KeyBook, NewKey, Rotated, parse_scopes};
pub use permit::{Caller, Need, decide};
pub use quota::{Allowance, Cost, Receipt};
pub use tokens::{Minted, Tokens};

use std::sync::Arc;

use tracing::warn;

use self::audit::Refusals;
use self::quota::Quotas;
use crate::adapters::{Revisions, Store};
use crate::clock::Clock;
use crate::config::{self, AccessMode};
use crate::domain::{Holder, ViewerId};
use crate::error::{Error, Kind, Result};
use crate::files::Watch;

/// Access control, on or off. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Access(Option<Arc<Inner>>);

#[derive(Debug)]
struct Inner {
    keys: KeyBook,
    tokens: Tokens,
    refusals: Refusals,
    quotas: Quotas,
    store: Store,
    credential_bytes_max: usize,
    config: config::Access,
}

impl Access {
    /// What the configuration asks for. Quotas are counted beside `revisions`.
    pub fn open(
        config: &config::Access,
        quota: &config::Quota,
        store: &Store,
        revisions: &Revisions,
        clock: &Clock,
    ) -> Result<(Self, Option<Watch>)> {
        if config.mode == AccessMode::Off {
            return Ok((Self(None), None));
        }
        // Before the keys are read: a change in between is seen.
        let watch = tokens::watched(config);
        let inner = Inner {
            keys: KeyBook::new(store, config, clock.clone()),
            tokens: Tokens::open(config, clock.clone())?,
            refusals: Refusals::new(config.refusals_logged_per_s_max),
            quotas: Quotas::new(quota, config.keys_max, revisions),
            store: store.clone(),
            credential_bytes_max: config.credential_bytes_max as usize,
            config: config.clone(),
        };
        Ok((Self(Some(Arc::new(inner))), watch))
    }

    /// For a process that looks at keys alone: a viewer's token opens nothing there, and no file of their keys is needed.
    pub fn for_keys(
        config: &config::Access,
        quota: &config::Quota,
        store: &Store,
        revisions: &Revisions,
        clock: &Clock,
    ) -> Result<Self> {
        let config = config::Access { jwks: config::Secret::default(), jwks_file: String::new(), ..config.clone() };
        Ok(Self::open(&config, quota, store, revisions, clock)?.0)
    }

    /// Whether anybody has to show anything.
    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    fn inner(&self) -> Result<&Inner> {
        self.0.as_deref().ok_or_else(|| {
            let detail = "access control is off (access.mode), so there are no keys and tokens to deal with";
            Error::new(Kind::Conflict, "access_off", detail)
        })
    }

    /// Producers' keys; an error while access control is off, so that nobody makes keys then that open doors later.
    pub fn keys(&self) -> Result<&KeyBook> {
        Ok(&self.inner()?.keys)
    }

    /// Viewers' tokens; an error while access control is off.
    pub fn tokens(&self) -> Result<&Tokens> {
        Ok(&self.inner()?.tokens)
    }

    /// Where refusals are told; `None` while access control is off.
    pub fn refusals(&self) -> Option<&Refusals> {
        self.0.as_deref().map(|inner| &inner.refusals)
    }

    /// Charges whoever publishes, or refuses them before anything is done.
    pub async fn charge(&self, caller: &Caller, cost: Cost) -> Result<Option<Receipt>> {
        match (self.0.as_deref(), caller) {
            (Some(inner), Caller::Producer { key, .. }) => inner.quotas.charge(*key, cost).await,
            _ => Ok(None),
        }
    }

    /// Gives back what was paid for nothing, see [`Quotas::give_back`].
    pub async fn give_back(&self, receipt: Option<Receipt>) {
        if let (Some(inner), Some(receipt)) = (self.0.as_deref(), receipt) {
            inner.quotas.give_back(receipt).await;
        }
    }

    /// Whether rows cost them anything.
    pub fn limits_rows(&self, caller: &Caller) -> bool {
        let inner = self.0.as_deref().filter(|_| matches!(caller, Caller::Producer { .. }));
        inner.is_some_and(|inner| inner.quotas.limits_rows())
    }

    /// Charges them with rows that were not known before.
    pub async fn charge_rows(&self, caller: &Caller, rows: u32) {
        if let (Some(inner), Caller::Producer { key, .. }, 1..) = (self.0.as_deref(), caller, rows) {
            inner.quotas.add_rows(*key, u64::from(rows)).await;
        }
    }

    /// What is left to `holder`; empty where nothing is limited.
    pub fn allowances(&self, holder: Holder<'_>) -> Vec<Allowance> {
        self.0.as_deref().map(|inner| inner.quotas.left(holder)).unwrap_or_default()
    }

    /// Counts a request for `viewer`'s inbox.
    /// See [`Quotas::poll`].
    pub async fn count_poll(&self, viewer: &ViewerId) -> Result<()> {
        match self.0.as_deref() {
            // Boxed: polls that nobody counts need not be as large as this.
            Some(inner) if inner.quotas.limits_polls() => Box::pin(inner.quotas.poll(viewer)).await,
            _ => Ok(()),
        }
    }

    /// Who shows `authorization`, the value of that header.
    pub async fn identify(&self, authorization: Option<&str>) -> Result<Caller> {
        let Some(inner) = self.0.as_deref() else { return Ok(Caller::Anyone) };
        let Some(value) = authorization else {
            let detail = "this takes a key or a viewer's token in Authorization";
            return Err(Error::new(Kind::Unauthenticated, "credentials_missing", detail));
        };
        match Credential::parse(value, inner.credential_bytes_max)? {
            Credential::Token(token) => inner.tokens.verify(token).map(Caller::Viewer),
            Credential::Key(text) => {
                // Boxed: polls by token, the most frequent requests there are, need not be as large as this.
                let key = Box::pin(inner.keys.verify(&text)).await?;
                Ok(Caller::Producer { key: key.id, producer: key.producer, scopes: key.scopes })
            }
        }
    }

    /// Reads the keys of viewers' tokens again when their file changes, and counts the nodes that share the quotas; runs
    /// until it is dropped.
    pub async fn run(self, watch: Option<Watch>) {
        let Some(inner) = self.0.as_deref() else { return std::future::pending().await };
        let reload = async {
            match watch {
                Some(watch) => inner.tokens.reload(&inner.config, watch).await,
                None => std::future::pending().await,
            }
        };
        tokio::join!(reload, inner.quotas.count_nodes(&inner.store));
    }

    /// Says what is missing before anybody can get in.
    pub async fn warn_of_gaps(&self, quota: &config::Quota) -> Result<()> {
        let Some(inner) = self.0.as_deref() else {
            if quota.is_set() {
                warn!("quotas are set and limit nobody: access control is off (access.mode), so nobody is known");
            }
            return Ok(());
        };
        if !inner.keys.has_admin().await? {
            warn!("no key with the scope admin works: stop the service and run `fanfold keys create --local`");
        }
        if inner.tokens.key_count() == 0 {
            warn!("no viewer can get in: neither access.jwks nor access.jwks_file names a key for tokens");
        }
        Ok(())
    }
}
