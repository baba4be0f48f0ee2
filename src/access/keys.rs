//! Producers' keys: made, listed, rotated, revoked, and looked up for every request without asking the store each time.

use std::collections::HashSet;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use subtle::ConstantTimeEq as _;
use tracing::warn;

use super::credential::{KeySecret, KeyText};
use crate::adapters::Store;
use crate::clock::Clock;
use crate::config;
use crate::domain::{KeyEnd, KeyId, ProducerId, ProducerKey, Scope, Scopes, SecretHash, Time};
use crate::error::{Error, Kind, Result};
use crate::ports::{Keys, Path};
use crate::turns::Turns;

/// Lookups of ids that have not been seen before, at the same time. Somebody who tries keys at random gets these and no
/// more; keys that were seen are looked up past them.
const LOOKUPS_MAX: usize = 16;
/// How long an id that has no key is remembered. Ids are random: none gets a key later.
const UNKNOWN_FOR: Duration = Duration::from_secs(600);
/// What is said to those who waited while a lookup failed.
const UNREADABLE: &str = "keys cannot be looked up now";
/// Bytes of a key's name.
const NAME_BYTES_MAX: usize = 64;

/// Every producer's key, as one process knows them.
#[derive(Clone, Debug)]
pub struct KeyBook(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    store: Store,
    clock: Clock,
    known: moka::sync::Cache<KeyId, Arc<Known>>,
    unknown: moka::sync::Cache<KeyId, ()>,
    lookups: Turns,
    limits: Limits,
}

#[derive(Clone, Copy, Debug)]
struct Limits {
    age_max: Duration,
    keys_max: u64,
    ttl_s_max: u64,
    ended_kept: Duration,
    use_noted_every: Duration,
}

/// A key, as of an instant.
#[derive(Debug)]
struct Known {
    state: RwLock<(ProducerKey, Instant)>,
    /// One request reads the key again for all.
    reading: Turns,
    /// When a use was last noted, in microseconds.
    noted: AtomicI64,
}

/// A key to be made.
#[derive(Clone, Debug)]
pub struct NewKey {
    /// What people call it.
    pub name: String,
    /// Whom it stands for; the name, unless it says otherwise.
    pub producer: Option<String>,
    /// What it opens.
    pub scopes: Scopes,
    /// How long it works; for ever without it.
    pub ttl: Option<Duration>,
}

/// A key that was just made, with its secret: the only time that both are together.
#[derive(Clone, Debug)]
pub struct IssuedKey {
    /// As it is stored.
    pub key: ProducerKey,
    /// As its holder gets it.
    pub text: KeyText,
}

/// A key and its successor.
#[derive(Clone, Debug)]
pub struct Rotated {
    /// The old one, as far as is known.
    pub replaced: ProducerKey,
    /// Its end is written down. If not, it may work on and is to be revoked.
    pub ended: bool,
    /// The successor.
    pub issued: IssuedKey,
}

impl KeyBook {
    /// The keys of `store`.
    pub fn new(store: &Store, config: &config::Access, clock: Clock) -> Self {
        Self(Arc::new(Inner {
            store: store.for_path(Path::Access),
            clock,
            known: moka::sync::Cache::new(u64::from(config.keys_max)),
            unknown: moka::sync::Cache::builder()
                .max_capacity(config.unknown_keys_cached_max)
                .time_to_live(UNKNOWN_FOR)
                // By how often one was asked for, as is usual, a full cache would take no new ones: those that it has were
                // asked for as often, once.
                .eviction_policy(moka::policy::EvictionPolicy::lru())
                .build(),
            lookups: Turns::new(LOOKUPS_MAX, UNREADABLE),
            limits: Limits {
                age_max: Duration::from_millis(config.key_age_ms_max),
                keys_max: u64::from(config.keys_max),
                ttl_s_max: config.key_ttl_s_max,
                ended_kept: Duration::from_secs(config.ended_keys_kept_s),
                use_noted_every: Duration::from_secs(config.use_noted_every_s),
            },
        }))
    }

    /// The key that `text` proves, if it works now.
    pub async fn verify(&self, text: &KeyText) -> Result<ProducerKey> {
        if let Some(known) = self.0.known.get(&text.id) {
            let (key, is_fresh) = known.look(self.0.limits.age_max);
            // A key's secret never changes and its end only comes earlier: whom an old state refuses any newer one would.
            let key = self.check(text, Some(key))?;
            if is_fresh {
                self.note_use(&key);
                return Ok(key);
            }
        }
        let key = self.check(text, self.read(text.id).await?)?;
        self.note_use(&key);
        Ok(key)
    }

    /// The key that was found, if `text` proves it and it works now.
    fn check(&self, text: &KeyText, found: Option<ProducerKey>) -> Result<ProducerKey> {
        // An id without a key is compared with something, too: it takes as long.
        let hash = found.as_ref().map_or(SecretHash([0; 32]), |key| key.hash);
        let right = bool::from(text.secret.hash().0.ct_eq(&hash.0));
        let Some(key) = found.filter(|_| right) else {
            return Err(Error::new(
                Kind::Unauthenticated,
                "key_invalid",
                "there is no such key, or it has another secret",
            ));
        };
        if key.revoked_at.is_some() {
            return Err(Error::new(Kind::Unauthenticated, "key_revoked", format!("the key {} was revoked", key.id)));
        }
        if !key.is_live(self.0.clock.now()) {
            return Err(Error::new(Kind::Unauthenticated, "key_expired", format!("the key {} has expired", key.id)));
        }
        Ok(key)
    }

    /// The key as it is in memory, unless that is too old to go by.
    fn fresh(&self, id: KeyId) -> Option<ProducerKey> {
        let (key, is_fresh) = self.0.known.get(&id)?.look(self.0.limits.age_max);
        is_fresh.then_some(key)
    }

    async fn read(&self, id: KeyId) -> Result<Option<ProducerKey>> {
        let inner = &*self.0;
        // Whoever had a turn before may have read it already.
        if let Some(known) = inner.known.get(&id) {
            return known.reading.take(|| self.fresh(id).map(Some), || self.load(id)).await;
        }
        // Asked for, it is one of the latest again.
        let unknown = || inner.unknown.get(&id).map(|()| None);
        match unknown() {
            Some(none) => Ok(none),
            None => inner.lookups.take(|| unknown().or_else(|| self.fresh(id).map(Some)), || self.load(id)).await,
        }
    }

    async fn load(&self, id: KeyId) -> Result<Option<ProducerKey>> {
        // What is read is as old as the question.
        let asked = Instant::now();
        let found = self.0.store.find_key(id).await?;
        match &found {
            Some(key) => self.keep(key, asked),
            None => {
                self.0.known.invalidate(&id);
                self.0.unknown.insert(id, ());
            }
        }
        Ok(found)
    }

    fn keep(&self, key: &ProducerKey, asked: Instant) {
        let used = key.last_used.map_or(i64::MIN, Time::micros);
        let make = || {
            Arc::new(Known {
                state: RwLock::new((key.clone(), asked)),
                reading: Turns::new(1, UNREADABLE),
                noted: AtomicI64::new(used),
            })
        };
        let known = self.0.known.get_with(key.id, make);
        known.noted.fetch_max(used, Ordering::Relaxed);
        let mut state = known.state.write().unwrap_or_else(PoisonError::into_inner);
        // A slow answer to an early question must not undo what was learnt since.
        if state.1 < asked {
            *state = (key.clone(), asked);
        }
    }

    /// Notes a use now and then, in the background: losing one harms nobody.
    fn note_use(&self, key: &ProducerKey) {
        let Some(known) = self.0.known.get(&key.id) else { return };
        let now = self.0.clock.now();
        let last = known.noted.load(Ordering::Relaxed);
        let due =
            now.micros().saturating_sub(last) >= i64::try_from(self.0.limits.use_noted_every.as_micros()).unwrap_or(0);
        let won = || known.noted.compare_exchange(last, now.micros(), Ordering::Relaxed, Ordering::Relaxed).is_ok();
        if due && won() {
            let (this, id) = (self.clone(), key.id);
            tokio::spawn(async move {
                if let Err(error) = this.0.store.note_used(id, now).await {
                    warn!(%error, key = %id, "that a key was used could not be noted");
                }
            });
        }
    }

    /// Makes a key.
    pub async fn create(&self, order: &NewKey) -> Result<IssuedKey> {
        let now = self.0.clock.now();
        check_name(&order.name)?;
        if order.scopes.is_empty() {
            return Err(Error::invalid("invalid_value", "scopes", "must name at least one scope"));
        }
        if let Some(ttl) = order.ttl {
            check_ttl(ttl.as_secs(), self.0.limits.ttl_s_max)?;
        }
        let producer = ProducerId::parse("producer", order.producer.as_deref().unwrap_or(&order.name))?;
        self.make_room(now).await?;
        self.issue(ProducerKey {
            id: KeyId::from_bytes(rand::random()),
            producer,
            name: order.name.clone(),
            scopes: order.scopes,
            hash: SecretHash([0; 32]),
            created_at: now,
            expires_at: order.ttl.map(|ttl| now.after(ttl)),
            made_until: None,
            revoked_at: None,
            last_used: None,
        })
        .await
    }

    /// Gives `key` a secret and keeps it.
    async fn issue(&self, key: ProducerKey) -> Result<IssuedKey> {
        let text = KeyText { id: key.id, secret: KeySecret::random() };
        let key = ProducerKey { hash: text.secret.hash(), ..key };
        self.0.store.create_key(&key).await?;
        Ok(IssuedKey { key, text })
    }

    /// Forgets keys that ended long ago, and refuses one more than there may be.
    async fn make_room(&self, now: Time) -> Result<()> {
        let limit = self.0.limits.keys_max;
        let keys = self.0.store.list_keys().await?;
        let mut ended: Vec<_> = keys.iter().filter_map(|key| Some((key.ended_at(now)?, key.id))).collect();
        let live = (keys.len() - ended.len()) as u64;
        // Not longer than they are kept, and not more of them than may work.
        ended.sort_unstable_by_key(|(at, _)| std::cmp::Reverse(*at));
        let oldest = now.before(self.0.limits.ended_kept);
        let kept = ended.iter().take(usize::try_from(limit).unwrap_or(usize::MAX));
        let kept = kept.take_while(|(at, _)| *at >= oldest).count();
        for (_, id) in ended.split_off(kept) {
            self.0.store.forget_key(id).await?;
        }
        if live >= limit {
            let detail = format!("there may be {limit} keys that work, and there are {live}: revoke some");
            return Err(Error::limit("too_many_keys", "access.keys_max", detail, limit, live));
        }
        Ok(())
    }

    /// Every key, the newest first, those that ended lately too.
    pub async fn list(&self) -> Result<Vec<ProducerKey>> {
        let mut keys = self.0.store.list_keys().await?;
        keys.sort_by_key(|key| std::cmp::Reverse((key.created_at, key.id)));
        Ok(keys)
    }

    /// Takes a key back. Here it is refused from now on, elsewhere within `access.key_age_ms_max`.
    pub async fn revoke(&self, id: KeyId) -> Result<ProducerKey> {
        self.end(id, KeyEnd::Revoked(self.0.clock.now())).await
    }

    async fn end(&self, id: KeyId, end: KeyEnd) -> Result<ProducerKey> {
        let ended = self.0.store.end_key(id, end).await?.ok_or_else(|| unknown_key(id))?;
        // As of now, not as of before: whatever was asked while this was being written must not undo it.
        self.keep(&ended, Instant::now());
        Ok(ended)
    }

    /// Makes a successor that stands for the same producer, opens the same and lives as long as the old one was made for;
    /// the old one works for `overlap` more. Without any it is revoked: an instant would be one of this machine's clock, and
    /// come later elsewhere.
    ///
    /// Once the successor is there it is handed over, whatever becomes of the old one's end: a write that failed may have
    /// landed, or land yet, and who has neither key then is locked out for good. Of what is not known to have
    /// ended the answer says so, and the log.
    pub async fn rotate(&self, id: KeyId, overlap: Duration) -> Result<Rotated> {
        let now = self.0.clock.now();
        let old = self.0.store.find_key(id).await?.ok_or_else(|| unknown_key(id))?;
        if !old.is_live(now) {
            let detail = format!("the key {id} works no more, so it has nothing to hand over: create a new one");
            return Err(Error::new(Kind::Conflict, "key_ended", detail));
        }
        self.make_room(now).await?;
        // As it was made, not until when it works now: who rotates it again, as an answer was lost, finds it in its overlap.
        let life = old.life();
        let issued = self
            .issue(ProducerKey {
                id: KeyId::from_bytes(rand::random()),
                created_at: now,
                expires_at: life.map(|life| now.after(life)),
                made_until: None,
                last_used: None,
                ..old.clone()
            })
            .await?;
        let end = if overlap.is_zero() { KeyEnd::Revoked(now) } else { KeyEnd::Expires(now.after(overlap)) };
        match end_replaced(&self.0.store, id, end).await {
            Ok(ended) => {
                self.keep(&ended, Instant::now());
                Ok(Rotated { replaced: ended, ended: true, issued })
            }
            Err(error) => {
                warn!(%error, key = %id, successor = %issued.key.id, "a rotated key may work on: revoke it");
                Ok(Rotated { replaced: old, ended: false, issued })
            }
        }
    }

    /// Whether any key that works may administer: without one nobody gets in.
    pub async fn has_admin(&self) -> Result<bool> {
        let now = self.0.clock.now();
        let keys = self.0.store.list_keys().await?;
        Ok(keys.iter().any(|key| key.is_live(now) && key.scopes.has(Scope::Admin)))
    }
}

/// Ends a key that has a successor. Who is told of a failure does not know whether it has landed, so it is tried once more
/// with the same instant: the store looks at the key again, leaves an end that is there, and writes one that is not.
async fn end_replaced(store: &impl Keys, id: KeyId, end: KeyEnd) -> Result<ProducerKey> {
    let ended = match store.end_key(id, end).await {
        Ok(ended) => ended,
        Err(error) => {
            warn!(%error, key = %id, "the end of a rotated key is tried again");
            store.end_key(id, end).await?
        }
    };
    ended.ok_or_else(|| unknown_key(id))
}

impl Known {
    /// The key as it was last read, and whether that is recent enough to go by.
    fn look(&self, age_max: Duration) -> (ProducerKey, bool) {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        (state.0.clone(), state.1.elapsed() < age_max)
    }
}

/// Scopes by their names; a name that is none is an error, and so is one that stands twice.
pub fn parse_scopes<'a>(names: impl Iterator<Item = &'a str>) -> Result<Scopes> {
    let mut seen = HashSet::new();
    let scopes: Result<Scopes> = names
        .map(|name| {
            let all = Scope::ALL.map(Scope::name).join(", ");
            let scope = Scope::from_name(name);
            let scope = scope.ok_or_else(|| Error::invalid("invalid_value", "scopes", format!("must be of {all}")))?;
            if !seen.insert(scope) {
                return Err(Error::invalid("invalid_value", "scopes", format!("must not name {name} twice")));
            }
            Ok(scope)
        })
        .collect();
    scopes
}

fn check_name(name: &str) -> Result<()> {
    if name.is_empty() || name.len() > NAME_BYTES_MAX {
        let (limit, value) = (NAME_BYTES_MAX as u64, name.len() as u64);
        let detail = format!("must have 1 to {limit} bytes, has {value}");
        return Err(Error::limit("invalid_value", "name", detail, limit, value));
    }
    if name.chars().any(char::is_control) {
        return Err(Error::invalid("invalid_value", "name", "must not contain control characters"));
    }
    Ok(())
}

fn check_ttl(seconds: u64, max: u64) -> Result<()> {
    if (1..=max).contains(&seconds) {
        return Ok(());
    }
    let detail = format!("must be 1 to {max} seconds, is {seconds}");
    Err(Error::limit("invalid_value", "ttl_seconds", detail, seconds.clamp(1, max), seconds))
}

fn unknown_key(id: KeyId) -> Error {
    Error::not_found("key_not_found", format!("there is no key {id}"))
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// A store of one key, whose next calls fail: with `true`, after the write has landed.
    struct Shaky {
        key: Mutex<ProducerKey>,
        failures: Mutex<Vec<bool>>,
    }

    impl Shaky {
        fn new(failures: &[bool]) -> Self {
            let key = ProducerKey {
                id: KeyId::from_bytes([1; 8]),
                producer: ProducerId::local(),
                name: "shop".to_owned(),
                scopes: [Scope::Admin].into_iter().collect(),
                hash: SecretHash([7; 32]),
                created_at: Time::from_millis(0),
                expires_at: None,
                made_until: None,
                revoked_at: None,
                last_used: None,
            };
            Self { key: Mutex::new(key), failures: Mutex::new(failures.to_vec()) }
        }

        fn no<T>() -> Result<T> {
            Err(Error::unavailable("store_unavailable", "no answer"))
        }
    }

    impl Keys for Shaky {
        async fn end_key(&self, _: KeyId, end: KeyEnd) -> Result<Option<ProducerKey>> {
            let failure = self.failures.lock().expect("whole").pop();
            let mut key = self.key.lock().expect("whole");
            if failure != Some(false) {
                end.apply(&mut key);
            }
            if failure.is_some() { Self::no() } else { Ok(Some(key.clone())) }
        }

        async fn create_key(&self, _: &ProducerKey) -> Result<()> {
            Self::no()
        }

        async fn find_key(&self, _: KeyId) -> Result<Option<ProducerKey>> {
            Self::no()
        }

        async fn list_keys(&self) -> Result<Vec<ProducerKey>> {
            Self::no()
        }

        async fn note_used(&self, _: KeyId, _: Time) -> Result<()> {
            Self::no()
        }

        async fn forget_key(&self, _: KeyId) -> Result<()> {
            Self::no()
        }
    }

    #[tokio::test]
    async fn an_end_that_failed_is_tried_again_whether_it_has_landed_or_not() {
        let at = Time::from_millis(5_000);
        for (end, ended) in [(KeyEnd::Revoked(at), (Some(at), None)), (KeyEnd::Expires(at), (None, Some(at)))] {
            for failures in [&[] as &[bool], &[false], &[true]] {
                let store = Shaky::new(failures);
                let key = end_replaced(&store, KeyId::from_bytes([1; 8]), end).await.expect("ended");
                assert_eq!((key.revoked_at, key.expires_at), ended, "{failures:?}");
            }
            let store = Shaky::new(&[true, true]);
            let error = end_replaced(&store, KeyId::from_bytes([1; 8]), end).await.expect_err("no answer at all");
            assert_eq!(error.code(), "store_unavailable");
        }
    }
}
