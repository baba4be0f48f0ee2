//! How long a producer's small posts take while others pour, in a cluster whose queues producers share. What a round does
//! is in [`crate::fairness_phases`]; the other service is another deployment on the same servers.
//!
//! Both have a keyspace of their own, for a relay brings whatever other scenarios have left undone in that of the run.

use crate::cluster::{Bench, Cluster};
use crate::context::Context;
use crate::deployment::Deployment;
use crate::fairness_phases::{self, Feed as _, Flood, Sizes};
use crate::findings::Findings;
use crate::measure::Result;

/// Posts of one chunk that are poured before anything is measured: processes and keyspaces are fresh.
const WARM_UP: usize = 20;

/// Runs it.
pub async fn run(bench: &Bench) -> Result<Findings> {
    let clusters = [Cluster::another("measured")?, Cluster::another("other")?];
    let found = run_in(&bench.context, &clusters).await;
    // Both, whatever came of it, and whatever comes of the first.
    let removed = [clusters[0].remove().await, clusters[1].remove().await];
    let findings = found?;
    for done in removed {
        done?;
    }
    Ok(findings)
}

async fn run_in(context: &Context, clusters: &[Cluster; 2]) -> Result<Findings> {
    // A hundred thousand rows in posts of one chunk, and half as many in posts of many: ten to fifteen seconds.
    let sizes =
        Sizes { alone: context.size(200, 20), population: context.size(20_000, 2_000), usual: context.size(200, 20) };
    context.say("fairness", "preparing two deployments");
    for cluster in clusters {
        cluster.migrate().await?;
    }
    let mut measured = Deployment::start(context, "fairness", &clusters[0], sizes.population).await?;
    let mut other = Deployment::start(context, "fairness-other", &clusters[1], sizes.population).await?;
    for deployment in [&mut measured, &mut other] {
        Flood::new(Sizes { usual: WARM_UP, ..sizes }, 0).pour(deployment).await?;
        deployment.until_drained().await?;
    }
    let mut rounds = Vec::new();
    for number in 0..context.pairs {
        context.say_pair("fairness", number);
        rounds.push(fairness_phases::round(number, sizes, &mut measured, &mut other).await?);
    }
    measured.stop().await?;
    other.stop().await?;
    Ok(fairness_phases::figures(&rounds, None).into())
}
