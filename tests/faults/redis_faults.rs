//! The faults of Redis: records lost, lives that end, masters that do not know that they were replaced.

use std::time::{Duration, Instant};

use futures::FutureExt as _;

use crate::bystander::Bystanders;
use crate::processes::{Process, Role};
use crate::proxy::{Line, Proxy};
use crate::stack::RedisServer;
use crate::stage::{Env, Faulted, Needs, Scenario, Stage};
use crate::{Outcome, until};

/// All of them.
pub fn all() -> Vec<Scenario> {
    macro_rules! scenario {
        ($name:literal, $what:literal, $run:expr) => {
            Scenario { name: $name, what: $what, needs: Needs::Nothing, run: |stage| $run(stage).boxed_local() }
        };
    }
    vec![
        scenario!("redis-killed", "Redis killed -9 and back empty", killed),
        scenario!("redis-flushed", "FLUSHALL under load", flushed),
        scenario!("redis-evicted", "single records evicted", evicted),
        scenario!("redis-promoted", "a replica promoted that lacks the last bumps", promoted),
        scenario!("redis-deposed-worker", "a worker goes on bumping the deposed master", deposed_worker),
        scenario!("redis-deposed-reader", "an API node goes on reading a master that became a replica", deposed_reader),
        scenario!("redis-marks", "marks during a promotion", marks),
        scenario!("redis-workers-only", "Redis unreachable for the workers only", workers_only),
    ]
}

async fn killed(stage: &mut Stage) -> Outcome<Faulted> {
    stage.standard(Role::Relay, &[], Env::new()).await?;
    for _ in 0..2 {
        stage.work(2.0).await?;
        stage.redis[0].kill().await?;
        stage.hold(3.0).await;
        stage.redis[0].revive().await?;
    }
    Ok(Faulted { times: 2, healed: Instant::now() })
}

async fn flushed(stage: &mut Stage) -> Outcome<Faulted> {
    stage.standard(Role::Relay, &[], Env::new()).await?;
    for _ in 0..5 {
        stage.work(0.7).await?;
        stage.redis[0].run::<()>("FLUSHALL").await?;
    }
    Ok(Faulted { times: 5, healed: Instant::now() })
}

async fn evicted(stage: &mut Stage) -> Outcome<Faulted> {
    stage.standard(Role::Relay, &[], Env::new()).await?;
    let mut times = 0;
    for _ in 0..60 {
        stage.work(0.1).await?;
        // There is nothing else in this Redis than records.
        if let Some(key) = stage.redis[0].run::<Option<String>>("RANDOMKEY").await? {
            times += stage.redis[0].run::<usize>(&format!("DEL {key}")).await?;
        }
    }
    Ok(Faulted { times, healed: Instant::now() })
}

async fn workers_only(stage: &mut Stage) -> Outcome<Faulted> {
    stage.redis.push(RedisServer::start().await?);
    let (direct, proxy) = (stage.redis[0].url(), Proxy::start(stage.redis[0].address()).await?);
    for role in [Role::Api, Role::Api, Role::Relay] {
        stage.start(role, std::slice::from_ref(&direct), Env::new(), &[])?;
    }
    for _ in 0..2 {
        stage.start(Role::Fanout, &[proxy.redis_url()], Env::new(), &[])?;
    }
    stage.begin().await?;
    stage.work(2.0).await?;
    proxy.set(Line::Cut);
    stage.work(6.0).await?;
    proxy.set(Line::Through);
    let healed = Instant::now();
    stage.proxies.push(proxy);
    Ok(Faulted { times: 1, healed })
}

/// A master and a replica whose link can be cut, and a line to the master for those who shall lose it.
struct Pair {
    link: Proxy,
    line: Proxy,
    /// For who keeps the master.
    direct: Vec<String>,
    /// For who loses it when the line is cut.
    by_line: Vec<String>,
}

impl Pair {
    async fn start(stage: &mut Stage) -> Outcome<Self> {
        let master = RedisServer::start().await?;
        let (link, line) = (Proxy::start(master.address()).await?, Proxy::start(master.address()).await?);
        let replica = RedisServer::replica_of(link.port).await?;
        let direct = vec![master.url(), replica.url()];
        let by_line = vec![line.redis_url(), replica.url()];
        stage.redis.extend([master, replica]);
        Ok(Self { link, line, direct, by_line })
    }

    /// From here on the replica lacks what the master gets. Waits until it says so: nothing is on its way any more.
    async fn cut_off(&self, stage: &Stage) -> Outcome<()> {
        self.link.set(Line::Cut);
        let is_off = async || {
            let info = stage.redis[1].run::<String>("INFO replication").await;
            info.is_ok_and(|info| info.contains("master_link_status:down"))
        };
        until("the replica is cut off from its master", Duration::from_secs(20), is_off).await
    }

    /// The replica becomes master, without what it lacks; the master knows nothing of it. Waits until that is in the
    /// registry.
    async fn split(&self, stage: &Stage) -> Outcome<()> {
        let before = stage.keyspace.fences().await?;
        self.link.set(Line::Cut);
        self.line.set(Line::Cut);
        stage.redis[1].run::<()>("REPLICAOF NO ONE").await?;
        until("the promoted replica is in the registry", Duration::from_secs(20), async || {
            stage.keyspace.fences().await.is_ok_and(|fences| fences > before)
        })
        .await
    }

    /// The old master learns that it was replaced; the load goes on for a while before `late` have noticed as well.
    async fn demote(&self, stage: &Stage, late: &[Process], seconds: f64) -> Outcome<()> {
        let port = stage.redis[1].port;
        stage.redis[0].run::<()>(&format!("REPLICAOF 127.0.0.1 {port}")).await?;
        stage.work(seconds).await?;
        for process in late {
            let noticed = async || process.has_logged("the connection to redis is dropped");
            until("a process leaves the deposed master", Duration::from_secs(60), noticed).await?;
        }
        Ok(())
    }

    /// From here on nothing is wrong; the lines stand until the end.
    fn healed(self, stage: &mut Stage) -> Faulted {
        let healed = Instant::now();
        stage.proxies.extend([self.link, self.line]);
        Faulted { times: 1, healed }
    }
}

/// Checks seldom, so that it goes on for a while where others have noticed: late enough for a slow machine, and before
/// [`Pair::demote`] gives up.
fn slow() -> Env {
    vec![("FANFOLD_REDIS__FENCE_CHECK_MS", "40000".into()), ("FANFOLD_REDIS__FENCE_CONFIRM_MS_MAX", "50000".into())]
}

/// What the workers have in hand when the master dies, and what the load goes on with, is bumped at the replica at once: the
/// viewers of the load look again, and find what they missed. Nothing but the new fence tells the bystanders.
async fn promoted(stage: &mut Stage) -> Outcome<Faulted> {
    let pair = Pair::start(stage).await?;
    for role in [Role::Api, Role::Api, Role::Fanout, Role::Fanout, Role::Relay] {
        stage.start(role, &pair.direct, Env::new(), &[])?;
    }
    stage.begin().await?;
    stage.work(3.0).await?;
    let mut bystanders = Bystanders::come(stage).await?;
    bystanders.hold(stage).await?;
    // These hold what they hold from here on: their next poll comes after the promotion.
    stage.quiet();
    pair.cut_off(stage).await?;
    bystanders.miss(stage).await?;
    stage.work(2.5).await?;
    stage.redis[0].kill().await?;
    stage.redis[1].run::<()>("REPLICAOF NO ONE").await?;
    Ok(pair.healed(stage))
}

async fn deposed_worker(stage: &mut Stage) -> Outcome<Faulted> {
    let pair = Pair::start(stage).await?;
    for role in [Role::Api, Role::Api, Role::Relay] {
        stage.start(role, &pair.by_line, Env::new(), &[])?;
    }
    for _ in 0..2 {
        stage.start(Role::Fanout, &pair.direct, slow(), &[])?;
    }
    stage.begin().await?;
    stage.work(2.0).await?;
    pair.split(stage).await?;
    stage.work(5.0).await?;
    stage.quiet();
    pair.demote(stage, &stage.workers, 1.0).await?;
    Ok(pair.healed(stage))
}

async fn deposed_reader(stage: &mut Stage) -> Outcome<Faulted> {
    deposed_first_node(stage, 0.0, 5.0).await
}

/// The devices that mark are at home at the first node, the others at the second.
async fn marks(stage: &mut Stage) -> Outcome<Faulted> {
    deposed_first_node(stage, 5.0, 1.0).await
}

/// The first API node keeps the deposed master while it is still one, and while it is a replica: for so many seconds each.
/// Nothing but the intents tells the bystanders what was marked there.
async fn deposed_first_node(stage: &mut Stage, master: f64, replica: f64) -> Outcome<Faulted> {
    let pair = Pair::start(stage).await?;
    stage.start(Role::Api, &pair.direct, slow(), &[])?;
    for role in [Role::Api, Role::Fanout, Role::Fanout, Role::Relay] {
        stage.start(role, &pair.by_line, Env::new(), &[])?;
    }
    stage.begin().await?;
    stage.work(2.0).await?;
    let bystanders = Bystanders::come(stage).await?;
    pair.split(stage).await?;
    // At once: later the node may have noticed.
    bystanders.mark(stage).await?;
    stage.work(master).await?;
    pair.demote(stage, &stage.apis[..1], replica).await?;
    Ok(pair.healed(stage))
}
