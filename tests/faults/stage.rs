//! What a fault happens on: a keyspace, a Redis, the processes and the load, all of a run's own.

use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use futures::future::LocalBoxFuture;

use crate::checker::{self, Verdict};
use crate::load::{Accepted, Load, World};
use crate::processes::{Process, Role, Spec};
use crate::producer::{Post, Producer};
use crate::proxy::Proxy;
use crate::stack::{Keyspace, RedisServer, Servers, empty_queues};
use crate::viewer::Device;
use crate::{Outcome, until};

/// What the load comes to on an idle machine and less.
const ANSWERS_PER_S: f64 = 60.0;

/// What a fault needs beyond a keyspace, a broker and `redis-server`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needs {
    Nothing,
    /// Servers that may be killed: those of `dev/stack`, in `dev/faults` only.
    Stack,
    /// The same with three nodes, and only when asked for by name.
    ThreeNodes,
}

/// A fault.
pub struct Scenario {
    pub name: &'static str,
    pub what: &'static str,
    pub needs: Needs,
    pub run: for<'a> fn(&'a mut Stage) -> LocalBoxFuture<'a, Outcome<Faulted>>,
}

/// A fault that has come and gone.
#[derive(Clone, Copy, Debug)]
pub struct Faulted {
    pub times: usize,
    pub healed: Instant,
}

/// What a run came to.
#[derive(Clone, Debug)]
pub struct Report {
    pub times: usize,
    pub accepted: Accepted,
    pub unanswered: usize,
    pub verdict: Verdict,
    pub seed: u64,
    pub folder: PathBuf,
}

pub struct Stage {
    pub servers: Servers,
    pub keyspace: Keyspace,
    pub folder: PathBuf,
    pub prefix: String,
    pub client: reqwest::Client,
    pub redis: Vec<RedisServer>,
    pub apis: Vec<Process>,
    pub workers: Vec<Process>,
    pub relays: Vec<Process>,
    /// Lines that must stand until the end.
    pub proxies: Vec<Proxy>,
    /// Posts of the scenario's own.
    pub posts: Vec<Post>,
    /// Devices of viewers of the scenario's own.
    pub devices: Vec<Device>,
    pub load: Option<Load>,
    /// The load publishes and marks only.
    pub no_edits: bool,
    /// Where the store is, for the processes.
    pub cql: String,
    plant: Option<&'static str>,
    seed: u64,
}

/// Settings by name.
pub type Env = Vec<(&'static str, String)>;

impl Stage {
    /// Carries a scenario out and checks what is left.
    pub async fn run(
        scenario: &Scenario,
        servers: &Servers,
        folder: &Path,
        plant: Option<&'static str>,
        seed: u64,
        keep: bool,
    ) -> Outcome<Report> {
        let _ = std::fs::remove_dir_all(folder);
        std::fs::create_dir_all(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
        let keyspace = Keyspace::create(servers).await?;
        let mut stage = Self {
            servers: servers.clone(),
            prefix: keyspace.name.clone(),
            keyspace,
            folder: folder.to_owned(),
            client: reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(10)).build().expect("a client"),
            redis: Vec::new(),
            apis: Vec::new(),
            workers: Vec::new(),
            relays: Vec::new(),
            proxies: Vec::new(),
            posts: Vec::new(),
            devices: Vec::new(),
            load: None,
            no_edits: false,
            cql: servers.cql.join(","),
            plant,
            seed,
        };
        let report = stage.carry_out(scenario).await;
        stage.clear(keep).await;
        report
    }

    async fn carry_out(&mut self, scenario: &Scenario) -> Outcome<Report> {
        let begun = Instant::now();
        let faulted = (scenario.run)(self).await?;
        let broken = begun.elapsed();
        // A moment more under load: the new life has to be used, not only to be reached.
        self.work(2.0).await?;
        let ending = Instant::now();
        let mut known = self.load.take().ok_or("the scenario ran without a load")?.end().await;
        let ended = ending.elapsed();
        known.producers.push(Producer::of(std::mem::take(&mut self.posts)));
        known.devices.append(&mut self.devices);
        let mut verdict = checker::check(&mut known, &self.keyspace, faulted.healed, self.plant.is_some()).await?;
        let processes = self.apis.iter().chain(&self.workers).chain(&self.relays);
        verdict.wrong.extend(processes.flat_map(Process::strange));
        let checked = ending.elapsed() - ended;
        println!("{}: {broken:.0?} until healed, {ended:.0?} to settle, {checked:.0?} to check", scenario.name);
        Ok(Report {
            times: faulted.times,
            accepted: known.accepted(),
            unanswered: known.world.unanswered.load(Ordering::Relaxed),
            verdict,
            seed: self.seed,
            folder: self.folder.clone(),
        })
    }

    async fn clear(self, keep: bool) {
        if let Some(load) = self.load {
            load.abort();
        }
        for process in self.apis.into_iter().chain(self.workers).chain(self.relays) {
            process.end().await;
        }
        if !keep {
            self.keyspace.drop().await;
            if let Err(error) = empty_queues(&self.servers, &self.prefix, true).await {
                eprintln!("faults: the queues of {} are left: {error}", self.prefix);
            }
        }
    }

    /// Starts a process. `redis` is where it looks for the master.
    pub fn start(&mut self, role: Role, redis: &[String], env: Env, arms: &[&str]) -> Outcome<()> {
        let list = match role {
            Role::Api => &mut self.apis,
            Role::Fanout => &mut self.workers,
            Role::Relay => &mut self.relays,
        };
        let mut all: Env = vec![
            ("FANFOLD_SCYLLA__CONTACT_POINTS", self.cql.clone()),
            ("FANFOLD_SCYLLA__KEYSPACE", self.keyspace.name.clone()),
            // Few rows at a time, so that there is a middle of a chunk.
            ("FANFOLD_SCYLLA__BATCH_ROWS_MAX", "2".into()),
            ("FANFOLD_SCYLLA__REQUEST_CONCURRENCY", "2".into()),
            ("FANFOLD_FANOUT__CHUNK_SIZE", "5".into()),
            ("FANFOLD_RABBITMQ__URL", self.servers.amqp.clone()),
            ("FANFOLD_RABBITMQ__PREFIX", self.prefix.clone()),
            ("FANFOLD_REDIS__URLS", redis.join(",")),
            ("FANFOLD_REDIS__KEY_PREFIX", self.prefix.clone()),
            ("FANFOLD_LOG", "info,fanfold=debug".into()),
        ];
        all.extend(env);
        all.extend(self.plant.map(|plant| ("FANFOLD_TEST_PLANT", plant.to_owned())));
        list.push(Process::start(Spec {
            role,
            number: list.len(),
            env: all.into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
            arms: arms.iter().map(|arm| (*arm).to_owned()).collect(),
            folder: self.folder.clone(),
        })?);
        Ok(())
    }

    /// One Redis, two API nodes, two workers, a relay and the load; the first of `role` is armed.
    pub async fn standard(&mut self, role: Role, arms: &[&str], env: Env) -> Outcome<()> {
        self.redis.push(RedisServer::start().await?);
        let redis = [self.redis[0].url()];
        for (this, count) in [(Role::Api, 2), (Role::Fanout, 2), (Role::Relay, 1)] {
            for n in 0..count {
                let armed = if this == role && n == 0 { arms } else { &[] };
                self.start(this, &redis, env.clone(), armed)?;
            }
        }
        self.begin().await
    }

    /// Waits until all processes are ready.
    pub async fn ready(&self) -> Outcome<()> {
        for process in self.apis.iter().chain(&self.workers).chain(&self.relays) {
            process.ready(&self.client).await?;
        }
        Ok(())
    }

    /// The same, and begins the load.
    pub async fn begin(&mut self) -> Outcome<()> {
        self.ready().await?;
        let urls = self.apis.iter().map(Process::url).collect();
        self.load = Some(Load::start(urls, self.seed, self.no_edits));
        Ok(())
    }

    /// Lets a fault last.
    pub async fn hold(&self, seconds: f64) {
        tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
    }

    /// Lets the load run: for so long at least, and on a slow machine until it has come to something.
    pub async fn work(&self, seconds: f64) -> Outcome<()> {
        let world = self.world()?;
        let answered = || world.answered.load(Ordering::Relaxed);
        let wanted = answered() + (seconds * ANSWERS_PER_S) as usize;
        self.hold(seconds).await;
        until("the load goes on", Duration::from_secs_f64(seconds * 10.0), async || answered() >= wanted).await
    }

    /// What the clients of the load share, for those of the scenario's own.
    pub fn world(&self) -> Outcome<&World> {
        let Some(load) = &self.load else { return Err("there is no load".into()) };
        Ok(&load.world)
    }

    pub fn quiet(&self) {
        if let Some(load) = &self.load {
            load.quiet(true);
        }
    }
}
