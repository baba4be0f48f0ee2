//! After the storm: every inbox against everything that was accepted, and every device's copy against a fresh one.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::time::{Duration, Instant};

use crate::load::{Known, World};
use crate::stack::Keyspace;
use crate::viewer::{Copy, Device, MARKS, walk};
use crate::{Outcome, until};

/// How long draining is waited for. More than what is allowed, so that what is late and what never comes differ.
const DRAIN_WAIT: Duration = Duration::from_secs(120);
/// What is allowed.
pub const DRAIN_MAX: Duration = Duration::from_secs(60);
/// After draining an "unchanged" may be late by so much.
const LATE: Duration = Duration::from_secs(5);

/// What a check found.
#[derive(Clone, Debug, Default)]
pub struct Verdict {
    pub lost: Vec<String>,
    pub double: Vec<String>,
    pub lies: Vec<String>,
    /// Anything else that must not be.
    pub wrong: Vec<String>,
    /// From healing on; `None` if it was not over when the wait was.
    pub drained: Option<Duration>,
}

impl Verdict {
    pub fn is_clean(&self) -> bool {
        let lists = [&self.lost, &self.double, &self.lies, &self.wrong];
        lists.iter().all(|list| list.is_empty()) && self.drained.is_some_and(|drained| drained <= DRAIN_MAX)
    }
}

/// Waits until nothing is left to do, then compares.
pub async fn check(known: &mut Known, keyspace: &Keyspace, healed: Instant, planted: bool) -> Outcome<Verdict> {
    // With a defect planted it may never drain, and that is all there is to know.
    let wait = if planted { DRAIN_MAX / 2 } else { DRAIN_WAIT };
    let mut verdict = Verdict { drained: drain(known, keyspace, healed, wait).await, ..Verdict::default() };
    if verdict.drained.is_none() {
        let left = keyspace.left().await?;
        verdict.wrong.push(format!("not drained {wait:?} after healing: {left:?}"));
    }
    // The 5 seconds are part of the promise, not luck: an "unchanged" may be late by them.
    tokio::time::sleep_until((healed + LATE).into()).await;
    let Known { world, devices, .. } = &mut *known;
    for device in devices.iter_mut() {
        if compare(world, device, &mut verdict).await.is_none() {
            verdict.wrong.push(format!("{} is not served after healing", device.viewer));
        }
    }
    for node in 0..known.world.urls.len() {
        inboxes(known, node, &mut verdict).await;
    }
    verdict.wrong.extend(known.world.problems());
    Ok(verdict)
}

/// Waits until every fan-out is complete, by what the API says and by what is left in the store.
async fn drain(known: &Known, keyspace: &Keyspace, healed: Instant, wait: Duration) -> Option<Duration> {
    let left = (healed + wait).saturating_duration_since(Instant::now());
    let nothing = async || keyspace.left().await.is_ok_and(|left| left.is_nothing());
    until("drained", left, nothing).await.ok()?;
    for post in known.producers.iter().flat_map(|producer| &producer.posts) {
        let path = format!("/v1/posts/{}", post.id);
        let left = (healed + wait).saturating_duration_since(Instant::now());
        until("drained", left, async || {
            let answer = known.world.send(known.world.request("GET", 0, &path)).await;
            // A post that is not there is found missing later.
            answer.is_some_and(|a| a.status != 200 || a.body["fanout"]["status"] == "done")
        })
        .await
        .ok()?;
    }
    Some(healed.elapsed())
}

/// An "unchanged" for a copy that differs is a lie, and so is a delta that does not make it right.
async fn compare(world: &World, device: &mut Device, verdict: &mut Verdict) -> Option<()> {
    let name = format!("{}{}", device.viewer, if device.second { " (second device)" } else { "" });
    for node in 0..world.urls.len() {
        let unchanged = device.poll(world, node).await?;
        let fresh = walk(world, node, &device.viewer, false).await?;
        if unchanged && device.copy.listed() != fresh.copy {
            let how = differences(&device.copy.listed(), &fresh.copy);
            verdict.lies.push(format!("{name} hears \"unchanged\" from node {node}, but {how}"));
        }
    }
    device.sync(world).await?;
    let fresh = walk(world, 0, &device.viewer, false).await?;
    if device.copy.listed() != fresh.copy && !verdict.lies.iter().any(|lie| lie.starts_with(&name)) {
        let how = differences(&device.copy.listed(), &fresh.copy);
        verdict.lies.push(format!("{name} was brought up to date, but {how}"));
    }
    Some(())
}

fn differences(held: &Copy, fresh: &Copy) -> String {
    let mut told = Vec::new();
    for (id, item) in &fresh.items {
        match held.items.get(id) {
            None => told.push(format!("lacks {id} {item:?}")),
            Some(old) if old != item => told.push(format!("holds {old:?} for {id} {item:?}")),
            Some(_) => {}
        }
    }
    told.extend(held.items.keys().filter(|id| !fresh.items.contains_key(*id)).map(|id| format!("still holds {id}")));
    if told.is_empty() {
        told.push(format!("holds the counts {} for {}", held.counts, fresh.counts));
    }
    let more = told.len().saturating_sub(3);
    told.truncate(3);
    told.join(", ") + &if more > 0 { format!(" and {more} more") } else { String::new() }
}

/// Every inbox of a node against what was accepted.
async fn inboxes(known: &Known, node: usize, verdict: &mut Verdict) {
    // Posts that nobody answered for: in every inbox of their audience, or in none.
    let mut met: HashMap<u64, (HashSet<String>, Vec<String>)> = HashMap::new();
    // Those of the load and those of the scenario's own: whoever has a device.
    let everybody: BTreeSet<&String> = known.devices.iter().map(|device| &device.viewer).collect();
    for viewer in everybody {
        let world = &known.world;
        let walks = (walk(world, node, viewer, false).await, walk(world, node, viewer, true).await);
        let (Some(listed), Some(archived)) = walks else {
            verdict.wrong.push(format!("{viewer} is not served by node {node} after healing"));
            continue;
        };
        let mut items = listed.copy.items;
        let mut double: Vec<String> = listed.double.into_iter().chain(archived.double).collect();
        for (id, item) in archived.copy.items {
            if items.insert(id.clone(), item).is_some() {
                double.push(id);
            }
        }
        verdict.double.extend(double.into_iter().map(|id| format!("{viewer} has {id} twice (node {node})")));
        let marks = known.devices.iter().find(|d| d.viewer == *viewer && !d.second).map(|d| &d.marks);
        for post in known.producers.iter().flat_map(|producer| &producer.posts) {
            let found = if post.audience.contains(viewer) { items.remove(&post.id) } else { None };
            if !post.audience.contains(viewer) {
                continue;
            }
            match found {
                None if post.retracted => {}
                None => verdict.lost.push(format!("{viewer} lacks {post:?} (node {node})")),
                Some(_) if post.retracted => {
                    verdict.lost.push(format!("{viewer} sees {} though it is retracted (node {node})", post.id));
                }
                Some(item) => {
                    if (item.version, item.number) != (post.version, post.number) {
                        verdict.lost.push(format!("{viewer} sees {item:?} for {post:?} (node {node})"));
                    }
                    for (at, mark) in MARKS.iter().enumerate() {
                        let known = marks.and_then(|marks| marks.get(&(post.id.clone(), at)).copied());
                        if known.unwrap_or(Some(false)).is_some_and(|known| known != item.marks[at]) {
                            let told = format!("{viewer}: {mark} of {} was accepted as {known:?}: {item:?}", post.id);
                            verdict.lost.push(told);
                        }
                    }
                }
            }
        }
        for (id, item) in items {
            let (ids, viewers) = met.entry(item.number).or_default();
            ids.insert(id);
            viewers.push(viewer.clone());
        }
    }
    let given_up: BTreeMap<u64, &Vec<String>> = known
        .producers
        .iter()
        .flat_map(|producer| &producer.given_up)
        .map(|(number, audience)| (*number, audience))
        .collect();
    for (number, (ids, viewers)) in met {
        match given_up.get(&number) {
            None => verdict.double.push(format!("nobody published {number} as {ids:?}, but {viewers:?} have it")),
            Some(_) if ids.len() > 1 => verdict.double.push(format!("{number} was published as {ids:?}")),
            Some(audience) if audience.len() != viewers.len() => {
                verdict.lost.push(format!("{number} is with {viewers:?} and not with all of {audience:?}"));
            }
            Some(_) => {}
        }
    }
}
