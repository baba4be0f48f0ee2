//! A cluster without its Redis: keys and tokens go on deciding who may do what, and polls say when to come again.

use fanfold::access::{KeyBook, NewKey};
use fanfold::clock::Clock;
use fanfold::domain::Scope;
use serde_json::json;

use crate::redis_server::RedisServer;
use crate::ring::Ring;
use crate::support::servers::server;
use crate::support::{Reply, Service};
use crate::wait::eventually_some;
use crate::{bearer, guard};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_redis_keys_and_tokens_work_and_polls_say_when_to_come_again() {
    if server("FANFOLD_TEST_REDIS").is_none() {
        return;
    }
    let (mut redis, ring) = (RedisServer::start().await, Ring::new());
    let mut access = None;
    let service = Service::on_cluster(|config| {
        guard(config, &ring);
        config.redis.urls = vec![redis.url().as_str().into()];
        access = Some(config.access.clone());
    });
    let Some(service) = service.await else { return };
    let book = KeyBook::new(&service.running.backends.store, &access.expect("configured"), Clock::system());
    let scopes = [Scope::Publish, Scope::Read, Scope::Admin].into_iter().collect();
    let order = NewKey { name: "shop".to_owned(), producer: None, scopes, ttl: None };
    let key = bearer(&book.create(&order).await.expect("made").text);
    let token = format!("Bearer {}", ring.token("ben"));
    let get = async |path: &str| service.ask("GET", path).header("authorization", &token).send().await;
    let post = async |path: &str, body| service.ask("POST", path).header("authorization", &key).json(body).send().await;
    let code = |reply: &Reply| (reply.status, reply.json()["code"].as_str().unwrap_or_default().to_owned());

    assert_eq!(get("/v1/viewers/ben/revision").await.status, 200);
    redis.kill();
    let poll = eventually_some("a poll notices that Redis is gone", async || {
        let poll = get("/v1/viewers/ben/revision").await;
        (poll.status != 200).then_some(poll)
    })
    .await;
    assert_eq!(code(&poll), (503, "revisions_unavailable".to_owned()), "{poll:?}");
    assert!(poll.header("retry-after").parse::<u64>().is_ok_and(|seconds| seconds >= 1), "{poll:?}");

    // Who may not is told so, also by polls, and not that something is away.
    assert_eq!(code(&get("/v1/viewers/cleo/revision").await), (403, "viewer_mismatch".to_owned()));
    let nobody = service.ask("GET", "/v1/viewers/ben/revision").header("authorization", "Bearer x.y.z").send().await;
    assert_eq!(code(&nobody), (401, "viewer_token_invalid".to_owned()));
    let body = json!({"type": "t", "audience": {"viewers": ["ben"]}});
    assert_eq!(post("/v1/posts", body).await.status, 202, "a key publishes");
    assert_eq!(get("/v1/viewers/ben/inbox").await.status, 200, "a token opens its inbox");
    let made = post("/v1/keys", json!({"name": "new", "scopes": ["read"]})).await;
    assert_eq!(made.status, 201, "keys are made: {made:?}");
    let fresh = format!("Bearer {}", made.json()["secret_key"].as_str().expect("shown once"));
    let refused = service.ask("POST", "/v1/posts").header("authorization", &fresh);
    let refused = refused.json(json!({"type": "t", "audience": {"viewers": ["ben"]}})).send().await;
    assert_eq!(code(&refused), (403, "scope_missing".to_owned()));
}
