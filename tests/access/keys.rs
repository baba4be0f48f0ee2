//! The life of a producer's key: made, used, rotated, revoked; and whose posts are whose.

use std::time::{Duration, Instant};

use fanfold::access::{KeyBook, KeyText, NewKey, Rotated};
use fanfold::clock::Clock;
use fanfold::domain::{Scope, Time};
use fanfold::ports::{Keys as _, Path};
use serde_json::{Value, json};

use crate::nodes::{Answer, Nodes};
use crate::ring::now;
use crate::support::Reply;
use crate::wait::{eventually, eventually_some};
use crate::{Guarded, bearer};

async fn ask(guarded: &Guarded, key: &str, method: &str, path: &str, body: Option<Value>) -> Reply {
    let ask = guarded.service.ask(method, path).header("authorization", key);
    match body {
        Some(body) => ask.json(body).send().await,
        None => ask.send().await,
    }
}

async fn admin(guarded: &Guarded) -> String {
    bearer(&guarded.key("ops", &[Scope::Admin]).await)
}

/// Makes a key over the API; its id, and what to show.
async fn make(guarded: &Guarded, admin: &str, body: Value) -> (String, String) {
    let made = ask(guarded, admin, "POST", "/v1/keys", Some(body)).await;
    assert_eq!((made.status, made.header("cache-control")), (201, "no-store"), "{made:?}");
    let made = made.json();
    let text = made["secret_key"].as_str().expect("shown once");
    (made["key_id"].as_str().expect("an id").to_owned(), format!("Bearer {text}"))
}

/// The keys of the service's own store, as a process has them that goes by `clock`.
fn book_by(guarded: &Guarded, clock: &Clock) -> KeyBook {
    KeyBook::new(&guarded.service.running.backends.store, &guarded.config.access, clock.clone())
}

/// A service, and its keys by a clock that stands still at the second that is answered too.
async fn with_clock() -> (Guarded, Time, Clock, KeyBook) {
    let guarded = Guarded::start().await;
    let start = Time::from_millis(now() * 1_000);
    let clock = Clock::manual(start);
    let book = book_by(&guarded, &clock);
    (guarded, start, clock, book)
}

/// Why a key is refused, by who has known it and by who reads it now; `None` where it works.
async fn refused(guarded: &Guarded, clock: &Clock, known_by: &KeyBook, key: &KeyText) -> [Option<String>; 2] {
    let why = async |book: &KeyBook| book.verify(key).await.err().map(|error| error.code().to_owned());
    [why(known_by).await, why(&book_by(guarded, clock)).await]
}

fn code(reply: &Reply) -> (u16, String) {
    (reply.status, reply.json()["code"].as_str().unwrap_or_default().to_owned())
}

#[tokio::test]
async fn a_key_is_made_used_listed_and_revoked() {
    let guarded = Guarded::start().await;
    let admin = admin(&guarded).await;
    let body = json!({"name": "shop", "scopes": ["publish", "read"], "ttl_seconds": 3600});
    let (id, key) = make(&guarded, &admin, body).await;
    let post = json!({"type": "t", "audience": {"viewers": ["ben"]}});
    assert_eq!(ask(&guarded, &key, "POST", "/v1/posts", Some(post.clone())).await.status, 202);

    let listed = ask(&guarded, &admin, "GET", "/v1/keys", None).await;
    let secret = key.rsplit('_').next().expect("the secret");
    assert!(!listed.text.contains(secret) && !listed.text.contains("sha"), "{listed:?}");
    let listed = listed.json();
    let told = listed["keys"].as_array().expect("a list").iter().find(|told| told["key_id"] == id.as_str());
    let told = told.expect("listed");
    assert_eq!((&told["state"], &told["producer"]), (&json!("live"), &json!("shop")));
    assert_eq!(told["scopes"], json!(["publish", "read"]));

    let path = format!("/v1/keys/{id}");
    for _ in 0..2 {
        let revoked = ask(&guarded, &admin, "DELETE", &path, None).await;
        assert_eq!((revoked.status, &revoked.json()["state"]), (200, &json!("revoked")));
        let refused = ask(&guarded, &key, "POST", "/v1/posts", Some(post.clone())).await;
        assert_eq!(code(&refused), (401, "key_revoked".into()), "at once, where it was revoked");
    }
    let rotate = ask(&guarded, &admin, "POST", &format!("{path}/rotate"), Some(json!({}))).await;
    assert_eq!(code(&rotate), (409, "key_ended".into()));
    for unknown in ["/v1/keys/0000000000000000", "/v1/keys/nonsense"] {
        assert_eq!(code(&ask(&guarded, &admin, "DELETE", unknown, None).await), (404, "key_not_found".into()));
    }
}

#[tokio::test]
async fn who_waits_with_a_key_that_is_revoked_meanwhile_is_told_nothing() {
    let guarded = Guarded::start().await;
    let (admin, shop) = (admin(&guarded).await, bearer(&guarded.key("shop", &[Scope::Publish]).await));
    let (id, backend) = make(&guarded, &admin, json!({"name": "backend", "scopes": ["viewers"]})).await;
    let page = ask(&guarded, &backend, "GET", "/v1/viewers/ben/inbox", None).await.json();
    let path = format!("/v1/viewers/ben/revision?since={}&wait=60", page["token"].as_str().expect("a token"));
    let waiters = guarded.service.running.backends.revisions.clone();
    let waiting = ask(&guarded, &backend, "GET", &path, None);
    let revoking = async {
        eventually("a poll waits", async || waiters.waiters() > 0).await;
        assert_eq!(ask(&guarded, &admin, "DELETE", &format!("/v1/keys/{id}"), None).await.status, 200);
        let post = json!({"type": "t", "audience": {"viewers": ["ben"]}});
        assert_eq!(ask(&guarded, &shop, "POST", "/v1/posts", Some(post)).await.status, 202);
    };
    let (told, ()) = tokio::join!(waiting, revoking);
    assert_eq!(code(&told), (401, "key_revoked".into()));
}

#[tokio::test]
async fn bad_orders_are_told_with_their_field() {
    let guarded = Guarded::start_with(|config| config.access.keys_max = 3).await;
    let admin = admin(&guarded).await;
    for (body, status, code, field) in [
        (json!({"name": "", "scopes": ["read"]}), 422, "invalid_value", "name"),
        (json!({"name": "x".repeat(65), "scopes": ["read"]}), 422, "invalid_value", "name"),
        (json!({"name": "a\nb", "scopes": ["read"]}), 422, "invalid_value", "name"),
        (json!({"name": "a", "scopes": []}), 422, "invalid_value", "scopes"),
        (json!({"name": "a", "scopes": ["root"]}), 422, "invalid_value", "scopes"),
        (json!({"name": "a", "scopes": ["read", "read"]}), 422, "invalid_value", "scopes"),
        (json!({"name": "a", "scopes": ["read"], "ttl_seconds": 0}), 422, "invalid_value", "ttl_seconds"),
        (json!({"name": "a", "scopes": ["read"], "ttl_seconds": u64::MAX}), 422, "invalid_value", "ttl_seconds"),
        (json!({"name": "a", "scopes": ["read"], "producer": ""}), 422, "invalid_producer_id", "producer"),
        (json!({"name": "a", "scopes": ["read"], "secret": "mine"}), 422, "unknown_field", "secret"),
    ] {
        let reply = ask(&guarded, &admin, "POST", "/v1/keys", Some(body.clone())).await;
        let told = reply.json();
        assert_eq!((reply.status, &told["code"], &told["field"]), (status, &json!(code), &json!(field)), "{body}");
    }
    for _ in 0..2 {
        make(&guarded, &admin, json!({"name": "a", "scopes": ["read"]})).await;
    }
    let many = ask(&guarded, &admin, "POST", "/v1/keys", Some(json!({"name": "a", "scopes": ["read"]}))).await;
    assert_eq!((code(&many), &many.json()["limit"]), ((409, "too_many_keys".into()), &json!(3)));
}

#[tokio::test]
async fn a_rotated_key_works_beside_its_successor_until_the_overlap_is_over() {
    let guarded = Guarded::start().await;
    let admin = admin(&guarded).await;
    let (id, old) = make(&guarded, &admin, json!({"name": "shop", "scopes": ["publish", "read"]})).await;
    let post = json!({"type": "t", "audience": {"viewers": ["ben"]}});
    let posted = ask(&guarded, &old, "POST", "/v1/posts", Some(post)).await.json();
    let path = format!("/v1/posts/{}", posted["post_id"].as_str().expect("an id"));

    let rotate = |overlap: u64| {
        let (guarded, admin, path) = (&guarded, &admin, format!("/v1/keys/{id}/rotate"));
        async move { ask(guarded, admin, "POST", &path, Some(json!({"overlap_seconds": overlap}))).await }
    };
    let rotated = rotate(600).await;
    assert_eq!(rotated.status, 201, "{rotated:?}");
    let new = format!("Bearer {}", rotated.json()["key"]["secret_key"].as_str().expect("shown once"));
    for key in [&old, &new] {
        let reply = ask(&guarded, key, "GET", &path, None).await;
        assert_eq!(reply.status, 200, "the successor has its predecessor's posts: {reply:?}");
    }
    assert_eq!(
        (&rotated.json()["replaced"]["state"], &rotated.json()["replaced_ends"]),
        (&json!("live"), &json!(true))
    );
    assert_eq!(
        rotate(0).await.json()["replaced"]["state"],
        "revoked",
        "an overlap can be cut short, whatever a clock says"
    );
    assert_eq!(code(&ask(&guarded, &old, "GET", &path, None).await), (401, "key_revoked".into()));
    assert_eq!(ask(&guarded, &new, "GET", &path, None).await.status, 200);
    let long =
        ask(&guarded, &admin, "POST", &format!("/v1/keys/{id}/rotate"), Some(json!({"overlap_seconds": 604_801})))
            .await;
    assert_eq!((long.status, &long.json()["limit"]), (422, &json!(604_800)));
}

#[tokio::test]
async fn a_key_that_was_made_for_a_while_works_until_then_and_no_longer() {
    let (guarded, made, clock, book) = with_clock().await;
    let ttl = Duration::from_secs(60);
    let scopes = [Scope::Publish].into_iter().collect();
    let order = NewKey { name: "shop".to_owned(), producer: None, scopes, ttl: Some(ttl) };
    let issued = book.create(&order).await.expect("made");
    assert_eq!(issued.key.expires_at, Some(made.after(ttl)));
    let end = made.after(ttl);
    for at in [made, end.before(Duration::from_micros(1))] {
        clock.set(at);
        assert_eq!(refused(&guarded, &clock, &book, &issued.text).await, [None, None], "at {at}, of {end}");
    }
    for at in [end, end.after(Duration::from_secs(1)), end.after(Duration::from_secs(86_400))] {
        clock.set(at);
        let expired = || Some("key_expired".to_owned());
        assert_eq!(refused(&guarded, &clock, &book, &issued.text).await, [expired(), expired()], "at {at}, of {end}");
    }
}

#[tokio::test]
async fn a_rotated_key_expires_when_its_overlap_is_over_and_its_successor_lives_as_long_as_it_would_have() {
    let (guarded, made, clock, book) = with_clock().await;
    let (ttl, overlap) = (Duration::from_secs(3_600), Duration::from_secs(600));
    let scopes = [Scope::Publish, Scope::Read].into_iter().collect();
    let order = NewKey { name: "shop".to_owned(), producer: None, scopes, ttl: Some(ttl) };
    let old = book.create(&order).await.expect("made").text;

    let rotated = made.after(Duration::from_secs(1_000));
    clock.set(rotated);
    let Rotated { replaced, issued: new, .. } = book.rotate(old.id, overlap).await.expect("rotated");
    assert_eq!((replaced.id, replaced.expires_at), (old.id, Some(rotated.after(overlap))));
    assert_eq!((new.key.created_at, new.key.expires_at), (rotated, Some(rotated.after(ttl))), "a life as long");
    let why = async |at: Time, key: KeyText| {
        clock.set(at);
        refused(&guarded, &clock, &book, &key).await
    };
    let expired = || [Some("key_expired".to_owned()), Some("key_expired".to_owned())];
    for at in [rotated, rotated.after(overlap).before(Duration::from_micros(1))] {
        assert_eq!(why(at, old).await, [None, None], "both work during the overlap");
        assert_eq!(why(at, new.text).await, [None, None], "both work during the overlap");
    }
    let over = rotated.after(overlap + Duration::from_secs(1));
    assert_eq!(why(over, old).await, expired());
    assert_eq!(why(over, new.text).await, [None, None]);
    // Longer than its predecessor would have lived.
    assert_eq!(why(rotated.after(ttl).before(Duration::from_micros(1)), new.text).await, [None, None]);
    assert_eq!(why(rotated.after(ttl), new.text).await, expired());
}

#[tokio::test]
async fn a_key_that_is_rotated_again_in_its_overlap_has_a_successor_with_the_whole_life() {
    let (_guarded, made, clock, book) = with_clock().await;
    let scopes = [Scope::Publish].into_iter().collect();
    for ttl in [Some(Duration::from_secs(3_600)), None] {
        clock.set(made);
        let order = NewKey { name: "shop".to_owned(), producer: None, scopes, ttl };
        let old = book.create(&order).await.expect("made").key;
        let mut end = Time::MAX;
        // Each answer but the last is lost. An overlap may be cut short, and is never prolonged.
        for (second, overlap) in [(100, 600), (200, 300), (300, 600)] {
            let rotated = made.after(Duration::from_secs(second));
            clock.set(rotated);
            let overlap = Duration::from_secs(overlap);
            let Rotated { replaced, issued: new, .. } = book.rotate(old.id, overlap).await.expect("rotated");
            end = end.min(rotated.after(overlap));
            assert_eq!(replaced.expires_at, Some(end));
            let expected = ttl.map(|ttl| rotated.after(ttl));
            assert_eq!((new.key.created_at, new.key.expires_at), (rotated, expected), "made for {ttl:?}");
            let later = rotated.after(Duration::from_secs(50));
            clock.set(later);
            let next = book.rotate(new.key.id, overlap).await.expect("rotated").issued;
            assert_eq!(next.key.expires_at, ttl.map(|ttl| later.after(ttl)), "and so has the successor of that");
        }
    }
}

#[tokio::test]
async fn a_revoked_key_is_refused_by_other_processes_within_seconds() {
    let guarded = Guarded::start_with(|config| config.access.key_age_ms_max = 1_000).await;
    let (here, there) = (guarded.book(), guarded.book());
    let key = guarded.key("shop", &[Scope::Publish]).await;
    for book in [&here, &there] {
        book.verify(&key).await.expect("live");
    }
    let revoked = Instant::now();
    here.revoke(key.id).await.expect("revoked");
    assert_eq!(here.verify(&key).await.expect_err("at once").code(), "key_revoked");
    eventually("the key is refused there, too", async || there.verify(&key).await.is_err()).await;
    assert!(revoked.elapsed() < Duration::from_secs(2), "key_age_ms_max, and not longer");
    assert_eq!(there.verify(&key).await.expect_err("in time").code(), "key_revoked");
    let default = crate::defaults().access.key_age_ms_max;
    assert!(default < 5_000, "what is promised: five seconds");
}

#[tokio::test]
async fn a_key_revoked_at_one_node_is_refused_by_another_within_five_seconds() {
    let Some(nodes) = Nodes::start().await else { return };
    let admin = bearer(&nodes.key_with("ops", &[Scope::Admin]).await);
    let key = nodes.key_with("shop", &[Scope::Publish]).await;
    let (id, key) = (key.id, bearer(&key));
    for node in [0, 1] {
        assert_eq!(nodes.publish(node, &key).await.status, 202, "each node has read the key just now");
    }
    let revoked = nodes.ask(0, "DELETE", &format!("/v1/keys/{id}"), &admin, None).await;
    assert_eq!((revoked.status, &revoked.body["state"]), (200, &json!("revoked")), "{revoked:?}");
    let since = Instant::now();
    let code = |answer: &Answer| answer.body["code"].as_str().map(str::to_owned);
    assert_eq!(code(&nodes.publish(0, &key).await).as_deref(), Some("key_revoked"), "at once, where it was revoked");
    eventually("the other node refuses the key", async || {
        let asked = since.elapsed();
        let answer = nodes.publish(1, &key).await;
        if answer.status == 401 {
            return code(&answer).as_deref() == Some("key_revoked");
        }
        // By when it was asked: how long the answer takes on a busy machine is another matter.
        assert!(asked < Duration::from_secs(5), "asked after {asked:.1?}, it was {answer:?}");
        false
    })
    .await;
}

#[tokio::test]
async fn a_key_in_use_costs_a_read_now_and_then_and_a_wrong_one_none() {
    let guarded = Guarded::start_with(|config| config.access.key_age_ms_max = 5_000).await;
    let book = guarded.book();
    let reads = || guarded.service.running.backends.store.reads(Path::Access);
    let key = guarded.key("shop", &[Scope::Publish]).await;
    let unknown = KeyText { id: fanfold::domain::KeyId::from_bytes(rand::random()), secret: key.secret };
    let wrong = KeyText { id: key.id, secret: fanfold::access::credential::KeySecret::random() };
    let before = reads();
    for _ in 0..1_000 {
        book.verify(&key).await.expect("live");
        assert_eq!(book.verify(&unknown).await.expect_err("unknown").code(), "key_invalid");
        assert_eq!(book.verify(&wrong).await.expect_err("wrong").code(), "key_invalid");
    }
    // One each; the key itself once more for each five seconds that a slow machine takes.
    let caused = reads() - before;
    assert!(caused <= 6, "{caused} reads");
}

#[tokio::test]
async fn who_was_refused_once_costs_no_read_however_old_the_answer_is() {
    let guarded = Guarded::start_with(|config| config.access.key_age_ms_max = 1).await;
    let book = guarded.book();
    let reads = || guarded.service.running.backends.store.reads(Path::Access);
    let (key, revoked) = (guarded.key("shop", &[Scope::Publish]).await, guarded.key("old", &[Scope::Publish]).await);
    let wrong = KeyText { id: key.id, secret: fanfold::access::credential::KeySecret::random() };
    book.verify(&key).await.expect("live");
    book.revoke(revoked.id).await.expect("revoked");
    let before = reads();
    let begun = Instant::now();
    // Longer than what was read is good for, many times over.
    while begun.elapsed() < Duration::from_millis(100) {
        assert_eq!(book.verify(&wrong).await.expect_err("wrong").code(), "key_invalid");
        assert_eq!(book.verify(&revoked).await.expect_err("revoked").code(), "key_revoked");
        tokio::task::yield_now().await;
    }
    assert_eq!(reads() - before, 0);
    eventually("the right secret asks again", async || {
        book.verify(&key).await.expect("live");
        reads() > before
    })
    .await;
}

#[tokio::test]
async fn the_last_use_is_noted_once_in_a_while() {
    let (guarded, start, clock, book) = with_clock().await;
    let store = &guarded.service.running.backends.store;
    let (key, other) = (guarded.key("shop", &[Scope::Publish]).await, guarded.key("other", &[Scope::Publish]).await);
    let last_used = async |key: KeyText| store.find_key(key.id).await.expect("read").expect("there").last_used;
    for _ in 0..50 {
        book.verify(&key).await.expect("live");
    }
    assert_eq!(eventually_some("a use is noted", async || last_used(key).await).await, start);
    let every = guarded.config.access.use_noted_every_s;
    for second in 1..every {
        clock.set(start.after(Duration::from_secs(second)));
        book.verify(&key).await.expect("live");
    }
    // The first use of another key is always noted, and after whatever those before it have had noted: the embedded
    // store takes writes in their order.
    book.verify(&other).await.expect("live");
    let noted = eventually_some("the use of another key is noted", async || last_used(other).await).await;
    assert_eq!(noted, clock.now());
    assert_eq!(last_used(key).await, Some(start), "not at every use");
    let due = start.after(Duration::from_secs(every));
    clock.set(due);
    book.verify(&key).await.expect("live");
    eventually("a use is noted when it is time", async || last_used(key).await == Some(due)).await;
}

#[tokio::test]
async fn keys_that_ended_long_ago_are_forgotten_and_make_room() {
    let guarded = Guarded::start_with(|config| {
        config.access.keys_max = 2;
        config.access.ended_keys_kept_s = 1;
    })
    .await;
    let book = guarded.book();
    let first = guarded.key("a", &[Scope::Read]).await;
    book.revoke(first.id).await.expect("revoked");
    // Longer than it is kept: nothing tells that the time is over but the clock.
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    guarded.key("b", &[Scope::Read]).await;
    let ids: Vec<_> = book.list().await.expect("listed").iter().map(|key| key.id).collect();
    assert!(!ids.contains(&first.id) && ids.len() == 1, "{ids:?}");
    // Not more of the ended are kept than may work, however lately they ended.
    for _ in 0..5 {
        let key = guarded.key("c", &[Scope::Read]).await;
        book.revoke(key.id).await.expect("revoked");
    }
    assert!(book.list().await.expect("listed").len() <= 1 + 2 + 1);
}

#[tokio::test]
async fn posts_and_idempotency_keys_belong_to_a_producer() {
    let guarded = Guarded::start().await;
    let mine = bearer(&guarded.key("shop", &[Scope::Publish, Scope::Read]).await);
    let theirs = bearer(&guarded.key("other", &[Scope::Publish, Scope::Read]).await);
    let publish = |key: &str, title: &str| {
        let body = json!({"type": "t", "data": {"title": title}, "audience": {"viewers": ["ben"]}});
        let ask = guarded.service.ask("POST", "/v1/posts").header("authorization", key);
        ask.header("idempotency-key", "\"k1\"").json(body).send()
    };
    let first = publish(&mine, "a").await.json();
    assert_eq!(publish(&mine, "a").await.json()["post_id"], first["post_id"]);
    let other = publish(&theirs, "b").await;
    assert_eq!(other.status, 202, "the key of another producer is another key: {other:?}");
    assert_ne!(other.json()["post_id"], first["post_id"]);

    let batch = json!({"posts": [{"type": "t", "audience": {"viewers": ["ben"]}}]});
    let batch = ask(&guarded, &theirs, "POST", "/v1/posts/batch", Some(batch)).await.json();
    let in_batch = format!("/v1/posts/{}", batch["results"][0]["post"]["post_id"].as_str().expect("an id"));
    assert_eq!(code(&ask(&guarded, &mine, "GET", &in_batch, None).await), (404, "post_not_found".into()));
    assert_eq!(ask(&guarded, &theirs, "GET", &in_batch, None).await.status, 200);
    let merge = guarded.service.ask("PATCH", &in_batch).header("authorization", &mine).header("if-match", "*");
    let merge = merge.json(json!({"data": {"title": "mine"}})).send().await;
    assert_eq!(code(&merge), (404, "post_not_found".into()), "nor by way of a merge");
}

#[tokio::test]
async fn without_access_control_no_key_can_be_made_that_would_open_doors_later() {
    let service = crate::support::Service::start().await;
    let reply = service.post("/v1/keys", json!({"name": "a", "scopes": ["admin"]})).await;
    assert_eq!(code(&reply), (409, "access_off".into()));
    assert_eq!(code(&service.post("/v1/viewer-tokens", json!({"viewer_id": "ben"})).await), (409, "access_off".into()));
    assert_eq!(code(&service.get("/v1/keys").await), (409, "access_off".into()));
}
