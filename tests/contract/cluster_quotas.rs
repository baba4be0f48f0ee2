//! Quotas in Redis under the suite, and what is their own. Needs FANFOLD_TEST_REDIS.

use std::time::Duration;

use fanfold::adapters::redis::{RedisQuotas, RedisRevisions};
use fanfold::domain::{Charge, Holder};
use fanfold::error::Kind;
use fanfold::ports::Quotas as _;
use redis::AsyncCommands as _;

use crate::cluster_revisions::{open, options, own_server, start};
use crate::embedded::OpenStore;
use crate::quotas::{key, one, take};
use crate::redis_server::RedisServer;

/// Longer than any answer takes while the server lives, however busy the machine.
const LONG: Duration = Duration::from_secs(10);

async fn opened() -> Option<(RedisQuotas, OpenStore)> {
    let (revisions, registry) = open().await?;
    Some((revisions.quotas(LONG), registry))
}

crate::quotas_suite!(quotas_suite, super::opened());

/// Two processes on a server of their own, and the prefix of their keys.
struct Pair {
    server: RedisServer,
    revisions: [RedisRevisions; 2],
    prefix: String,
    _registry: OpenStore,
}

impl Pair {
    async fn start() -> Option<Self> {
        let server = own_server().await?;
        let registry = OpenStore::new().await;
        let options = options(&[server.url()]);
        let prefix = options.key_prefix.clone();
        let revisions = [start(options.clone(), &registry).await, start(options, &registry).await];
        Some(Self { server, revisions, prefix, _registry: registry })
    }

    fn key_of(&self, holder: Holder<'_>) -> String {
        let Holder::Key(id) = holder else { panic!("no key: {holder:?}") };
        format!("{}:q:{id}", self.prefix)
    }
}

#[tokio::test]
async fn processes_count_together() {
    let Some(pair) = Pair::start().await else { return };
    let [ana, ben] = pair.revisions.each_ref().map(|revisions| revisions.quotas(LONG));
    let (holder, began) = (key(), std::time::Instant::now());
    for n in 1..=5 {
        let quotas = if n % 2 == 0 { &ana } else { &ben };
        let left = quotas.charge(&one(holder, 1, 5)).await.expect("counted").left[0];
        let least = f64::from(5 - n);
        assert!(left >= least && left <= least + began.elapsed().as_secs_f64(), "{left} after {n}");
    }
}

#[tokio::test]
async fn what_is_known_is_kept_until_it_is_paid_off() {
    let Some(pair) = Pair::start().await else { return };
    let quotas = pair.revisions[0].quotas(LONG);
    let mut redis = pair.server.connection().await;
    let (holder, other) = (key(), key());
    // A thousand over ten at ten a second: full again in 100 s, and kept a second longer.
    let large = Charge { takes: [take(10, 10, 1_000), None, None], ..one(holder, 10, 10) };
    quotas.charge(&large).await.expect("counted");
    let ttl_ms: i64 = redis.pttl(pair.key_of(holder)).await.expect("asked");
    assert!((60_000..=101_000).contains(&ttl_ms), "{ttl_ms}");
    // A refusal writes nothing: the same bytes.
    let before: Vec<u8> = redis.get(pair.key_of(holder)).await.expect("read");
    assert!(quotas.charge(&one(holder, 10, 10)).await.expect("counted").refused.is_some());
    assert_eq!(redis.get::<_, Vec<u8>>(pair.key_of(holder)).await.expect("read"), before);
    // What is no account counts as none.
    let _: () = redis.set(pair.key_of(other), "odd").await.expect("set");
    assert_eq!(quotas.charge(&one(other, 1, 5)).await.expect("counted").left[0], 4.0);
    // A cost beyond all bounds is counted as well.
    let absurd = Charge { takes: [take(1, 1, u64::MAX), None, None], ..one(key(), 1, 1) };
    assert!(quotas.charge(&absurd).await.expect("counted").left[0] < -1e19);
}

#[tokio::test]
async fn a_script_that_the_server_has_forgotten_is_loaded_again() {
    let Some(pair) = Pair::start().await else { return };
    pair.server.run::<()>("SCRIPT FLUSH").await;
    pair.revisions[0].quotas(LONG).charge(&one(key(), 1, 5)).await.expect("counted");
}

#[tokio::test]
async fn a_server_that_hangs_or_is_gone_fails_the_charge() {
    let Some(mut pair) = Pair::start().await else { return };
    let quotas = pair.revisions[0].quotas(Duration::from_millis(100));
    pair.server.signal("STOP");
    let error = quotas.charge(&one(key(), 1, 5)).await.expect_err("no answer");
    assert_eq!((error.kind(), error.code()), (Kind::Unavailable, "revisions_unavailable"));
    pair.server.signal("CONT");
    pair.server.kill();
    let error = quotas.charge(&one(key(), 1, 5)).await.expect_err("nobody there");
    assert_eq!(error.kind(), Kind::Unavailable);
}
