//! Viewers whom nobody but a scenario publishes to. Those of the load are bumped all the time: who was not told of a bump
//! that was lost looks again at the next one, and finds what it lacks. These are told because of what is done about the
//! lost bump itself, or never.

use std::time::Duration;

use crate::load::World;
use crate::producer::{Post, body};
use crate::stage::Stage;
use crate::viewer::Device;
use crate::{Outcome, until};

/// How many there are.
const COUNT: u64 = 3;
/// Where the numbers of their posts begin.
const NUMBERS: u64 = 940_000_000;
/// How long a step may take for each of them, on a slow machine and beside the load.
const PATIENCE: Duration = Duration::from_secs(30);

/// The bytes of a record at each of the two servers of a pair, if there is one.
type Records = [Option<Vec<u8>>; 2];

/// A viewer with two devices, as those of the load.
struct Bystander {
    name: String,
    /// The one that marks is at home at the first node, the other one at the second.
    devices: [Device; 2],
    /// The post it has come with.
    post: String,
    /// Its record when the devices were last told all there was.
    records: Records,
}

/// All of a scenario.
pub struct Bystanders(Vec<Bystander>);

impl Bystanders {
    /// They come, each with a post that nobody else has. Nobody asks for their inboxes yet.
    pub async fn come(stage: &mut Stage) -> Outcome<Self> {
        let names: Vec<String> = (0..COUNT).map(|n| format!("bystander-{n}")).collect();
        let posts = publish(stage, &names, NUMBERS).await?;
        let come = |(name, post): (String, String)| {
            let devices = [false, true].map(|second| Device::new(name.clone(), second, 0));
            Bystander { name, devices, post, records: [None, None] }
        };
        Ok(Self(names.into_iter().zip(posts).map(come).collect()))
    }

    /// Their devices hold what there is, and the replica has the very record that their tokens are of.
    pub async fn hold(&mut self, stage: &Stage) -> Outcome<()> {
        for bystander in &mut self.0 {
            let alike = |[master, replica]: &Records| master.is_some() && master == replica;
            bystander.look(stage, "holds what both servers say", alike).await?;
        }
        Ok(())
    }

    /// While the replica is cut off each gets one more post, one after the other: only the master has the bump. Their
    /// devices ask for nothing from here to the check.
    pub async fn miss(self, stage: &mut Stage) -> Outcome<()> {
        let names: Vec<String> = self.0.iter().map(|bystander| bystander.name.clone()).collect();
        publish(stage, &names, NUMBERS + COUNT).await?;
        for Bystander { name, records: before, .. } in &self.0 {
            let [master, replica] = records(stage, name).await?;
            if master == before[0] || replica != before[1] {
                return Err(format!("the bump for {name} is not at the master alone"));
            }
        }
        self.leave(stage);
        Ok(())
    }

    /// While there are two masters each marks its post at the first node, which is at the deposed one. The device of the
    /// second node, which is at the promoted one, must hear of it all the same.
    pub async fn mark(mut self, stage: &mut Stage) -> Outcome<()> {
        for bystander in &mut self.0 {
            // Who asks first makes the record, and before the split nobody has asked: where each server has one of its
            // own, each device has a token of its own node's life.
            let apart = |[deposed, promoted]: &Records| deposed.is_some() && promoted.is_some() && deposed != promoted;
            bystander.look(stage, "holds what each of two masters says", apart).await?;
            bystander.mark(stage).await?;
        }
        self.leave(stage);
        Ok(())
    }

    /// Leaves the devices to the check.
    fn leave(self, stage: &mut Stage) {
        stage.devices.extend(self.0.into_iter().flat_map(|bystander| bystander.devices));
    }
}

impl Bystander {
    /// Waits until both devices were told all there is, and the records are as they are wanted.
    async fn look(&mut self, stage: &Stage, what: &str, as_wanted: impl Fn(&Records) -> bool) -> Outcome<()> {
        let (world, what) = (stage.world()?, format!("{} {what}", self.name));
        until(&what, PATIENCE, async || {
            if !self.is_told(world).await {
                return false;
            }
            self.records = records(stage, &self.name).await.unwrap_or_default();
            as_wanted(&self.records)
        })
        .await
    }

    /// Has both devices ask, each at its home; whether each has a token then, and its node takes that for current.
    async fn is_told(&mut self, world: &World) -> bool {
        for (node, device) in self.devices.iter_mut().enumerate() {
            if device.sync(world).await.is_none() || device.poll(world, node).await != Some(true) {
                return false;
            }
        }
        true
    }

    /// Marks its post at the first node. The bump shows that the node was still at the deposed master.
    async fn mark(&mut self, stage: &Stage) -> Outcome<()> {
        let (world, name, post, before) = (stage.world()?, &self.name, &self.post, &self.records[0]);
        let marking = &mut self.devices[0];
        let accepted = format!("a mark of {name} is accepted at the deposed master");
        until(&accepted, PATIENCE, async || marking.mark_read(world, post).await).await?;
        let is_bumped = async || records(stage, name).await.is_ok_and(|[deposed, _]| deposed != *before);
        until(&format!("a mark of {name} is bumped at the deposed master"), PATIENCE, is_bumped).await
    }
}

/// Publishes a post to each of these alone, and waits until nothing is left to do for any of them.
async fn publish(stage: &mut Stage, names: &[String], first: u64) -> Outcome<Vec<String>> {
    let mut ids = Vec::new();
    for (number, name) in (first..).zip(names) {
        let post = publish_one(stage, number, name).await?;
        ids.push(post.id.clone());
        stage.posts.push(post);
    }
    // Done is not enough: as long as its entry is there a relay may bring a post again, and its bump with it.
    for id in &ids {
        let is_settled = async || stage.keyspace.pending_of(id, 1).await == Ok(0);
        until("a post to a bystander is settled", PATIENCE, is_settled).await?;
    }
    Ok(ids)
}

/// Publishes a post to one viewer, and sends it again until it is answered: by its key it is one post.
async fn publish_one(stage: &Stage, number: u64, name: &str) -> Outcome<Post> {
    let (world, audience) = (stage.world()?, vec![name.to_owned()]);
    let body = body(number, &audience);
    let mut answer = None;
    until(&format!("a post to {name} is answered"), PATIENCE, async || {
        let request = world.request("POST", 1, "/v1/posts").header("Idempotency-Key", format!("\"key-{number}\""));
        answer = world.send(request.json(&body)).await;
        answer.is_some()
    })
    .await?;
    let accepted = answer.as_ref().filter(|answer| answer.status == 202);
    let id = accepted.and_then(|answer| answer.body["post_id"].as_str());
    let id = id.ok_or_else(|| format!("a post to {name}: {answer:?}"))?.to_owned();
    Ok(Post { id, audience, version: 1, number, retracted: false })
}

/// The record of a viewer at both servers.
async fn records(stage: &Stage, name: &str) -> Outcome<Records> {
    let get = format!("GET {}:r:{name}", stage.prefix);
    Ok([stage.redis[0].run(&get).await?, stage.redis[1].run(&get).await?])
}
