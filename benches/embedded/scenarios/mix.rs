//! The mix of the service this is modelled on, with the revision check and without it.
//!
//! 97 % of what clients do is looking, 3 % is publishing to 150 viewers. One arm polls, and fetches the delta when the
//! poll says so; the other fetches the first page every time. Both are the same service with the same work to do.

use std::sync::Arc;

use crate::actors::{Actor, Habit, Mix, Tally};
use crate::context::Context;
use crate::findings::{Comparison, Figure, Findings};
use crate::load::measured;
use crate::measure::{Measure, Pair, Result, Sample};
use crate::posts;
use crate::service::{Counters, Service};

const CONNECTIONS: usize = 16;
/// Rows in an active viewer's inbox to begin with.
const ROWS: usize = 50;

/// Runs it.
pub async fn run(context: &Context) -> Result<Findings> {
    let mix = Mix::modelled();
    let mut checking = MixArm::start(context, mix, Habit::Check).await?;
    let mut fetching = MixArm::start(context, mix, Habit::AlwaysFetch).await?;
    let each = context.size(2_000, 100);
    for arm in [&mut checking, &mut fetching] {
        arm.burst(each / 2).await?;
        arm.forget();
    }
    let mut pairs = Vec::new();
    for number in 0..context.pairs {
        context.say_pair("mix", number);
        let ours = checking.burst(each).await?;
        let other = fetching.burst(each).await?;
        pairs.push(Pair { ours, other });
    }
    let mut findings: Findings = Comparison {
        scenario: "mix",
        what: "97 % reads, 3 % publishes to 150: polling first, against always fetching the page",
        op: "action",
        other: "always fetch",
        measure: Measure::Cpu,
        limit: None,
        pairs,
    }
    .into();
    findings.add(
        vec![
            Figure::new("mix", "looks that found nothing new", checking.tally.unchanged_share() * 100.0, "%"),
            Figure::new("mix", "polling first: store reads", checking.reads_per_action(), "reads/action"),
            Figure::new("mix", "polling first: store reads by polls", checking.read.polls as f64, "reads"),
            Figure::new("mix", "always fetching: store reads", fetching.reads_per_action(), "reads/action"),
        ]
        .into(),
    );
    checking.service.child.stop().await?;
    fetching.service.child.stop().await?;
    Ok(findings)
}

/// A service, and the clients that use it in one way.
struct MixArm {
    service: Service,
    actors: Vec<Arc<tokio::sync::Mutex<Actor>>>,
    tally: Tally,
    read: Counters,
    actions: u64,
}

impl MixArm {
    async fn start(context: &Context, mix: Mix, habit: Habit) -> Result<Self> {
        let name = habit.name();
        context.say("mix", format_args!("preparing: {name}"));
        let mut service = Service::start(context, &format!("mix-{}", name.replace(' ', "-"))).await?;
        let rows = prefill(&service, mix, context.size(ROWS, 5)).await?;
        service.until_written(rows).await?;
        let actors = Actor::cast(mix, habit, CONNECTIONS, rows).into_iter().map(|actor| Arc::new(actor.into()));
        Ok(Self { service, actors: actors.collect(), tally: Tally::default(), read: Counters::default(), actions: 0 })
    }

    /// Every client does `each` things; then the fan-out catches up, since its cost belongs to what was done.
    async fn burst(&mut self, each: u64) -> Result<Sample> {
        let before = self.service.counters().await?;
        let cpu = self.service.child.cpu_us().await?;
        let actors = self.actors.clone();
        let mut sample = measured(&mut self.service.child, CONNECTIONS, move |number, mut connection| {
            let actor = Arc::clone(&actors[number]);
            async move { actor.lock().await.act(&mut connection, each).await }
        })
        .await?;
        let mut expected = 0;
        for actor in &self.actors {
            let mut actor = actor.lock().await;
            expected += actor.rows_expected;
            self.tally.add(actor.take_tally());
        }
        self.service.until_written(expected).await?;
        sample.cpu_us = self.service.child.cpu_us().await? - cpu;
        let after = self.service.counters().await?;
        self.read.polls += after.polls - before.polls;
        self.read.pages += after.pages - before.pages;
        self.read.deltas += after.deltas - before.deltas;
        self.actions += sample.ops;
        Ok(sample)
    }

    /// Starts counting afresh, after warming up.
    fn forget(&mut self) {
        (self.tally, self.read, self.actions) = Default::default();
    }

    fn reads_per_action(&self) -> f64 {
        self.read.reads() as f64 / self.actions.max(1) as f64
    }
}

/// Gives every active viewer `rows` rows; answers how many that are.
pub async fn prefill(service: &Service, mix: Mix, rows: usize) -> Result<u64> {
    let active: Vec<String> = (0..mix.active).map(posts::viewer).collect();
    let round: Vec<_> = active.chunks(mix.audience).map(posts::request).collect();
    let requests: Vec<_> = std::iter::repeat_n(round, rows).flatten().collect();
    service.send_all(requests, 8, 202).await?;
    Ok((mix.active * rows) as u64)
}
