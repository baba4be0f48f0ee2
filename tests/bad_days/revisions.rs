//! Redis: it refuses us, drops writes, is a replica, or gets its first one.

use std::collections::{BTreeSet, HashMap};

use fanfold::clock::Clock;
use fanfold::ports::Store as _;
use serde_json::{Value, json};

use crate::cluster::{Cluster, PROCESSES, REDIS_URLS, SERVE, found};
use crate::pending;
use crate::redis_server::RedisServer;
use crate::support::Service;
use crate::support::servers::server;
use crate::wait::eventually;

const PASSWORD: &str = "hush-hush-hush";

/// Settings with a server of the test's own, where the servers that are named are there.
async fn own(servers: &[&str]) -> Option<(Cluster, RedisServer)> {
    own_with(servers, &[]).await
}

/// The same, the server's arguments being more than usual.
async fn own_with(servers: &[&str], more: &[&str]) -> Option<(Cluster, RedisServer)> {
    // Where there is a Redis for tests, there is its binary.
    server("FANFOLD_TEST_REDIS")?;
    let mut cluster = Cluster::on(servers)?;
    let redis = RedisServer::start_with(tempfile::tempdir().expect("a temporary folder"), more).await;
    cluster.set(REDIS_URLS, redis.url());
    Some((cluster, redis))
}

/// An API node starts without Redis and says why.
async fn starts_without(cluster: &Cluster, words: &[&str]) {
    let mut node = cluster.start(SERVE);
    node.says(&[&["starting without Redis"], words].concat()).await;
    let said = node.stop().await;
    assert!(!said.contains(PASSWORD), "{said}");
}

#[tokio::test]
async fn a_password_that_is_missing_or_wrong_is_told() {
    let Some((mut cluster, mut redis)) = own(&["FANFOLD_TEST_CQL"]).await else { return };
    cluster.migrate().await;
    let address = format!("127.0.0.1:{}", redis.port());
    redis.require("the-right-one").await;
    let advice = "redis://:password@host:port";
    found(&cluster.findings("revisions").await, &["WRONG", &address, "asks for a password", "redis.urls", advice]);
    starts_without(&cluster, &[&address, "asks for a password", "redis.urls"]).await;

    cluster.set(REDIS_URLS, format!("redis://:{PASSWORD}@{address}"));
    let told = cluster.doctor().await;
    told.check(1, &[&address, "refuses the user and password of its URL in redis.urls", advice]);
    assert!(!told.out.contains(PASSWORD));
    starts_without(&cluster, &[&address, "refuses the user and password"]).await;

    cluster.set(REDIS_URLS, redis.url());
    let findings = cluster.findings("revisions").await;
    assert!(findings.iter().all(|finding| finding.starts_with("ok")), "{findings:#?}");
}

#[tokio::test]
async fn a_server_that_drops_writes_or_will_is_told() {
    let Some((cluster, redis)) = own(&[]).await else { return };
    let set = async |maxmemory: &str, policy: &str| {
        redis.run::<String>(&format!("CONFIG SET maxmemory {maxmemory} maxmemory-policy {policy}")).await;
        cluster.findings("revisions").await
    };
    for policy in ["volatile-lru", "allkeys-lfu"] {
        found(&set("100mb", policy).await, &["ok", policy, "104857600"]);
    }
    found(&set("100mb", "noeviction").await, &["warning", "noeviction", "bumps fail", "volatile-lru"]);
    found(&set("100mb", "allkeys-random").await, &["warning", "allkeys-random", "resync", "volatile-lru"]);
    // An empty server takes more than that.
    let findings = set("100kb", "noeviction").await;
    found(&findings, &["WRONG", "refuses writes", "maxmemory", "volatile-lru"]);
    found(&set("0", "noeviction").await, &["ok", "takes writes"]);

    redis.run::<String>("CONFIG SET min-replicas-to-write 1").await;
    found(&cluster.findings("revisions").await, &["WRONG", "refuses writes", "min-replicas-to-write"]);
    redis.run::<String>("CONFIG SET min-replicas-to-write 0").await;

    redis.run::<String>("ACL SETUSER fanfold on nopass ~* &* +@all -eval").await;
    let mut forbidden = cluster;
    forbidden.set(REDIS_URLS, format!("redis://fanfold:any@127.0.0.1:{}", redis.port()));
    found(&forbidden.findings("revisions").await, &["WRONG", "refuses writes", "eval", "ACL SETUSER"]);
}

#[tokio::test]
async fn every_process_warns_once_a_life_of_a_policy_that_drops_writes() {
    let policy = ["--maxmemory", "10mb", "--maxmemory-policy", "noeviction"];
    let Some((mut cluster, redis)) = own_with(&["FANFOLD_TEST_CQL"], &policy).await else { return };
    cluster.migrate().await;
    // As on managed servers, where nobody may ask CONFIG.
    redis.run::<String>("ACL SETUSER fanfold on nopass ~* &* +@all -config").await;
    let address = format!("127.0.0.1:{}", redis.port());
    cluster.set(REDIS_URLS, format!("redis://fanfold:any@{address}"));
    // The words of the doctor.
    let words = |policy| [address.as_str(), "maxmemory 10485760", policy, "when memory is short", "use volatile-lru"];
    let (nobody, anybody) = (words("maxmemory-policy noeviction"), words("maxmemory-policy allkeys-random"));
    found(&cluster.findings("revisions").await, &[&["warning", "bumps fail"], &nobody[..]].concat());
    for process in PROCESSES {
        let mut process = cluster.start(process);
        process.says(&[&["WARN", "bumps fail"], &nobody[..]].concat()).await;
        process.stop().await;
    }

    let mut node = cluster.start(SERVE);
    node.says(&[&["WARN"], &nobody[..]].concat()).await;
    redis.run::<u32>("CLIENT KILL TYPE normal").await;
    node.says(&["the connection to redis is dropped"]).await;
    node.says(&["revisions are available", &address]).await;
    // Its first replica begins another life of it. That is the end of whatever might have been said under the last one.
    redis.run::<String>("CONFIG SET maxmemory-policy allkeys-random").await;
    RedisServer::start().await.follow(&redis).await;
    node.says(&[&["WARN", "resync"], &anybody[..]].concat()).await;
    let said = node.stop().await;
    for words in [nobody, anybody] {
        let lines = said.lines().filter(|line| words.iter().all(|word| line.contains(word)));
        assert_eq!(lines.count(), 1, "{words:?}: {said}");
    }
}

/// Waits until nothing is pending.
async fn is_settled(service: &Service) {
    let store = &service.running.backends.store;
    let is_settled = async || pending(store).await.iter().all(Vec::is_empty);
    eventually("the relay has met all posts complete", is_settled).await;
}

/// How many scripts a server was asked to run, refused or not.
async fn scripts_asked(redis: &RedisServer) -> u64 {
    let stats: String = redis.run("INFO commandstats").await;
    let calls = |line: &str| line.strip_prefix("cmdstat_evalsha:calls=")?.split(',').next()?.parse().ok();
    stats.lines().find_map(calls).unwrap_or_default()
}

/// "Unchanged" may be late here, as while Redis is away. It is never said to who has no record, and not for good.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_server_delays_what_it_refuses_and_loses_nothing() {
    if server("FANFOLD_TEST_REDIS").is_none() {
        return;
    }
    let redis = RedisServer::start().await;
    let on_own = Service::on_cluster(|config| {
        config.redis.urls = vec![redis.url().as_str().into()];
        // Were a refusal a failure of the task's own, its chunk would be parked at once.
        config.fanout.attempts_max = 1;
        config.relay.redrive_after_ms = 500;
    });
    let Some(service) = on_own.await else { return };
    let first = service.publish("Dawn", &["ben", "cleo"]).await;
    // While it is pending it may be driven again, which would be news once more.
    is_settled(&service).await;
    let (held, other) = (service.token("ben").await, service.token("cleo").await);
    let poll = async |viewer: &str, token: &str| {
        let reply = service.get(&format!("/v1/viewers/{viewer}/revision?since={token}")).await;
        assert!([200, 304].contains(&reply.status), "{reply:?}");
        reply.status
    };
    assert_eq!(poll("ben", &held).await, 304);

    // An empty server takes more than that.
    redis.run::<String>("CONFIG SET maxmemory 100kb maxmemory-policy noeviction").await;
    let body = json!({"type": "t", "data": {"title": "Noon"}, "audience": {"viewers": ["ben", "amy"]}});
    let reply = service.post("/v1/posts", body).await;
    assert_eq!(reply.status, 202, "{reply:?}");
    let second = reply.json()["post_id"].as_str().expect("an id").to_owned();
    let fanout = async || service.get(&format!("/v1/posts/{second}")).await.json()["fanout"].take();
    eventually("the rows are written", async || fanout().await["written"] == 2).await;
    let asked = scripts_asked(&redis).await;
    eventually("the bumps are tried again", async || scripts_asked(&redis).await >= asked + 2).await;
    let told = fanout().await;
    assert_eq!((&told["status"], &told["failed"]), (&json!("running"), &json!(0)), "{told}");

    let page = service.get("/v1/viewers/ben/inbox").await;
    assert_eq!(page.titles("items"), ["Noon", "Dawn"], "{page:?}");
    let fresh = page.json()["token"].as_str().expect("of the record he had").to_owned();
    assert_eq!(poll("ben", &fresh).await, 304, "he has seen all there is");
    let page = service.get("/v1/viewers/amy/inbox").await;
    assert_eq!((page.titles("items"), page.json()["token"].take()), (vec!["Noon".to_owned()], Value::Null), "{page:?}");
    assert_eq!(service.get("/v1/viewers/amy/revision").await.status, 200, "she holds nothing that could be current");
    let mark = service.ask("PUT", &format!("/v1/viewers/cleo/inbox/{first}/read")).send().await;
    assert_eq!((mark.status, mark.json()["code"].as_str()), (503, Some("revisions_unavailable")), "{mark:?}");

    redis.run::<String>("CONFIG SET maxmemory 0").await;
    for (viewer, token) in [("ben", &held), ("ben", &fresh), ("cleo", &other)] {
        eventually("the bump follows", async || poll(viewer, token).await == 200).await;
    }
    service.fanned_out(&second).await;
    let changes = service.get(&format!("/v1/viewers/ben/changes?since={held}")).await;
    assert_eq!(changes.titles("upserted"), ["Noon"], "{changes:?}");
    assert_eq!(poll("ben", changes.json()["token"].as_str().expect("a token")).await, 304);
    let changes = service.get(&format!("/v1/viewers/cleo/changes?since={other}")).await;
    assert_eq!(changes.titles("upserted"), ["Dawn"], "{changes:?}");
    assert!(changes.json()["upserted"][0]["read_at"].is_string(), "{changes:?}");
    assert!(!service.token("amy").await.is_empty(), "there is room for her record");
}

#[tokio::test]
async fn a_replica_alone_is_no_use_and_beside_its_master_none_is_needed() {
    let Some((mut cluster, replica)) = own(&["FANFOLD_TEST_CQL"]).await else { return };
    cluster.migrate().await;
    let master = RedisServer::start().await;
    replica.follow(&master).await;
    let (follower, address) = (format!("127.0.0.1:{}", replica.port()), format!("127.0.0.1:{}", master.port()));
    let add = format!("add {address} to redis.urls");
    found(&cluster.findings("revisions").await, &["WRONG", "redis.urls names replicas only", &add]);
    let replica_of = format!("{follower}: is a replica of {address}");
    starts_without(&cluster, &["no master of redis.urls can be used", &replica_of]).await;

    cluster.set(REDIS_URLS, format!("{},{}", replica.url(), master.url()));
    let findings = cluster.findings("revisions").await;
    assert!(findings.iter().all(|finding| finding.starts_with("ok")), "{findings:#?}");
    found(&findings, &["ok", &follower, "link up"]);
    found(&findings, &["ok", &address, "is the master"]);
    let mut node = cluster.start(SERVE);
    node.says(&["revisions are available", &address]).await;
    node.stop().await;

    cluster.set(REDIS_URLS, format!("{},{}", RedisServer::start().await.url(), master.url()));
    let findings = cluster.findings("revisions").await;
    found(&findings, &["warning", "redis.urls", "start it"]);
    found(&findings, &["ok", &address, "is the master"]);
}

#[tokio::test]
async fn sentinels_say_where_the_master_is_and_when_it_is_another() {
    let Some((mut cluster, master)) = own(&["FANFOLD_TEST_CQL"]).await else { return };
    cluster.migrate().await;
    let (replica, sentinel) = (RedisServer::start().await, RedisServer::sentinel(&master).await);
    replica.follow(&master).await;
    let [first, second] = [&master, &replica].map(|server| format!("127.0.0.1:{}", server.port()));
    cluster.set(REDIS_URLS, sentinel.url());
    cluster.set("FANFOLD_REDIS__SENTINEL_MASTER", "other");
    found(&cluster.findings("revisions").await, &["WRONG", "no master named other", "redis.sentinel_master"]);
    cluster.set("FANFOLD_REDIS__SENTINEL_MASTER", "main");
    found(&cluster.findings("revisions").await, &["ok", &first, "is the master"]);

    let mut node = cluster.start(SERVE);
    node.says(&["revisions are available", &first]).await;
    eventually("the sentinel has seen the replica linked", async || {
        let known: Vec<HashMap<String, String>> = sentinel.run("SENTINEL REPLICAS main").await;
        known.iter().any(|replica| replica["flags"] == "slave" && replica["master-link-status"] == "ok")
    })
    .await;
    sentinel.run::<String>("SENTINEL FAILOVER main").await;
    node.says(&["revisions are available", &second]).await;
    node.stop().await;

    cluster.set("FANFOLD_REDIS__NODE_URL", format!("http://:{PASSWORD}@here"));
    let told = cluster.run(SERVE.0, SERVE.1).await;
    assert!(told.err.contains("redis.node_url") && !told.err.contains(PASSWORD), "{told:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_replica_costs_every_client_one_resync() {
    if server("FANFOLD_TEST_REDIS").is_none() {
        return;
    }
    let (master, replica) = (RedisServer::start().await, RedisServer::start().await);
    let urls = vec![master.url().as_str().into(), replica.url().as_str().into()];
    let on_own = Service::on_cluster(|config| config.redis.urls = urls.into_iter().take(1).collect());
    let Some(service) = on_own.await else { return };
    let other = service.beside(Clock::system()).await;
    let nodes = [&service, &other];
    service.publish("Dawn", &["ben"]).await;
    let held = service.token("ben").await;
    let poll = |token: &str| format!("/v1/viewers/ben/revision?since={token}");
    for node in nodes {
        assert_eq!(node.get(&poll(&held)).await.status, 304);
    }
    let store = &service.running.backends.store;
    // What is pending when a life ends is driven again under the next, and would be news to everybody once more.
    is_settled(&service).await;
    let before = store.fences(100).await.expect("read");

    replica.follow(&master).await;
    for node in nodes {
        eventually("no token of before goes on matching", async || {
            let reply = node.get(&poll(&held)).await;
            match reply.status {
                200 | 304 => {}
                503 => assert!(!reply.header("retry-after").is_empty(), "{reply:?}"),
                _ => panic!("{reply:?}"),
            }
            reply.status == 200
        })
        .await;
    }
    // Those who lost their copies together are asked to come back one after the other.
    let mut asked = BTreeSet::new();
    for _ in 0..50 {
        let reply = service.get(&format!("/v1/viewers/ben/changes?since={held}")).await;
        assert_eq!((reply.status, reply.json()["reason"].as_str()), (410, Some("fence")), "{reply:?}");
        asked.insert(reply.header("retry-after").parse::<u32>().expect("seconds"));
    }
    assert!(asked.len() > 1 && asked.first() >= Some(&1), "{asked:?}");

    let new = service.token("ben").await;
    service.publish("Noon", &["ben"]).await;
    for node in nodes {
        assert_eq!(node.get(&poll(&new)).await.status, 200);
        let changes = node.get(&format!("/v1/viewers/ben/changes?since={new}")).await;
        assert_eq!(changes.titles("upserted"), ["Noon"], "{changes:?}");
        assert_eq!(node.get(&poll(changes.json()["token"].as_str().expect("a token"))).await.status, 304);
    }
    // One life, and one entry, although four processes have found it.
    let after = store.fences(100).await.expect("read");
    assert_eq!(after.len(), before.len() + 1, "{after:?}");
    assert!(before.iter().all(|entry| entry.replid != after[0].replid), "{after:?}");
}
