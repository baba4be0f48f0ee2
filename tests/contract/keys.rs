//! What any [`Keys`] must do. Suites share a server, so each test looks for its own keys among whatever there are.

use std::time::Duration;

use fanfold::clock::Clock;
use fanfold::domain::{KeyEnd, KeyId, ProducerId, ProducerKey, Scope, Scopes, SecretHash, Time};
use fanfold::ports::Keys;

use crate::START;

/// Runs the whole suite against stores that `$open` gives, as `store_suite` does.
#[macro_export]
macro_rules! keys_suite {
    ($module:ident, $open:expr) => {
        mod $module {
            $crate::keys_suite!(@each $open,
                a_key_is_found_and_listed_as_it_was_made,
                an_unknown_key_is_none,
                a_revocation_stays,
                an_expiry_only_comes_earlier,
                how_long_a_key_was_made_for_stays_known,
                ends_at_once_are_all_kept,
                the_latest_use_is_kept,
                a_use_of_no_key_makes_none,
                a_forgotten_key_is_gone,
            );
        }
    };
    (@each $open:expr, $($name:ident,)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                let Some(opened) = $open.await else { return };
                $crate::keys::$name(&opened.store, &opened.clock).await;
            }
        )*
    };
}

fn key() -> ProducerKey {
    ProducerKey {
        id: KeyId::from_bytes(rand::random()),
        producer: ProducerId::parse("producer", "shop").expect("valid"),
        name: "the shop's, \u{e4}".into(),
        scopes: [Scope::Publish, Scope::Admin].into_iter().collect(),
        hash: SecretHash(rand::random()),
        created_at: START,
        expires_at: None,
        made_until: None,
        revoked_at: None,
        last_used: None,
    }
}

async fn made(store: &impl Keys) -> ProducerKey {
    let key = key();
    store.create_key(&key).await.expect("created");
    key
}

async fn found(store: &impl Keys, id: KeyId) -> ProducerKey {
    store.find_key(id).await.expect("read").expect("there")
}

fn at(seconds: u64) -> Time {
    START.after(Duration::from_secs(seconds))
}

pub async fn a_key_is_found_and_listed_as_it_was_made(store: &impl Keys, _: &Clock) {
    let plain = made(store).await;
    let ends = ProducerKey { expires_at: Some(at(90)), scopes: Scopes::default(), ..key() };
    store.create_key(&ends).await.expect("created");
    for key in [&plain, &ends] {
        assert_eq!(&found(store, key.id).await, key);
    }
    let listed = store.list_keys().await.expect("listed");
    assert!(listed.is_sorted_by_key(|key| key.id));
    assert_eq!(listed.iter().filter(|key| [plain.id, ends.id].contains(&key.id)).count(), 2);
}

pub async fn an_unknown_key_is_none(store: &impl Keys, _: &Clock) {
    let id = KeyId::from_bytes(rand::random());
    assert_eq!(store.find_key(id).await.expect("read"), None);
    assert_eq!(store.end_key(id, KeyEnd::Revoked(at(1))).await.expect("tried"), None);
    assert_eq!(store.find_key(id).await.expect("read"), None, "ending it has made none");
}

pub async fn a_revocation_stays(store: &impl Keys, _: &Clock) {
    let id = made(store).await.id;
    let ended = store.end_key(id, KeyEnd::Revoked(at(5))).await.expect("revoked").expect("there");
    assert_eq!((ended.revoked_at, found(store, id).await), (Some(at(5)), ended.clone()));
    store.end_key(id, KeyEnd::Revoked(at(9))).await.expect("again");
    store.end_key(id, KeyEnd::Expires(at(9))).await.expect("expires as well");
    store.note_used(id, at(10)).await.expect("noted");
    let key = found(store, id).await;
    assert_eq!((key.revoked_at, key.is_live(at(6))), (Some(at(5)), false));
}

pub async fn an_expiry_only_comes_earlier(store: &impl Keys, _: &Clock) {
    let id = made(store).await.id;
    for (asked, expected) in [(100, 100), (50, 50), (200, 50)] {
        let ended = store.end_key(id, KeyEnd::Expires(at(asked))).await.expect("ended").expect("there");
        assert_eq!((ended.expires_at, found(store, id).await.expires_at), (Some(at(expected)), Some(at(expected))));
    }
}

pub async fn how_long_a_key_was_made_for_stays_known(store: &impl Keys, _: &Clock) {
    for (expires_at, life) in [(Some(at(900)), Some(Duration::from_secs(900))), (None, None)] {
        let key = ProducerKey { expires_at, ..key() };
        store.create_key(&key).await.expect("created");
        assert_eq!(found(store, key.id).await.life(), life);
        for end in [100, 50, 200] {
            let ended = store.end_key(key.id, KeyEnd::Expires(at(end))).await.expect("ended").expect("there");
            store.note_used(key.id, at(end)).await.expect("noted");
            let key = found(store, key.id).await;
            assert_eq!((ended.life(), key.life()), (life, life), "{key:?}");
            let listed = store.list_keys().await.expect("listed");
            assert_eq!(listed.iter().find(|listed| listed.id == key.id), Some(&key));
        }
    }
}

pub async fn ends_at_once_are_all_kept(store: &impl Keys, _: &Clock) {
    let id = made(store).await.id;
    let expiries = (1..=8).map(|n| store.end_key(id, KeyEnd::Expires(at(n * 10))));
    let (expired, revoked) =
        futures::future::join(futures::future::join_all(expiries), store.end_key(id, KeyEnd::Revoked(at(500)))).await;
    revoked.expect("revoked").expect("there");
    expired.into_iter().for_each(|ended| drop(ended.expect("ended").expect("there")));
    let key = found(store, id).await;
    assert_eq!((key.expires_at, key.revoked_at), (Some(at(10)), Some(at(500))), "the earliest end wins");
    assert_eq!(key.life(), None, "it was made for ever, whichever end was the first");
}

pub async fn the_latest_use_is_kept(store: &impl Keys, _: &Clock) {
    let key = made(store).await;
    for used in [20, 30, 10] {
        store.note_used(key.id, at(used)).await.expect("noted");
    }
    assert_eq!(found(store, key.id).await, ProducerKey { last_used: Some(at(30)), ..key });
}

pub async fn a_use_of_no_key_makes_none(store: &impl Keys, _: &Clock) {
    let id = KeyId::from_bytes(rand::random());
    store.note_used(id, at(1)).await.expect("noted");
    assert_eq!(store.find_key(id).await.expect("read"), None);
    assert!(store.list_keys().await.expect("listed").iter().all(|key| key.id != id));
}

pub async fn a_forgotten_key_is_gone(store: &impl Keys, _: &Clock) {
    let id = made(store).await.id;
    store.end_key(id, KeyEnd::Revoked(at(5))).await.expect("revoked");
    store.forget_key(id).await.expect("forgotten");
    store.forget_key(id).await.expect("and again");
    assert_eq!(store.find_key(id).await.expect("read"), None);
}
