//! Sending every post, and following some of them until they are visible.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use reqwest::Method;
use serde::Serialize;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};
use uuid::Uuid;

use super::graph::Graph;
use super::plan::Plan;
use super::{Replay, Result, wire};
use crate::cli::fault::Fault;
use crate::cli::out;

/// From the end of the fan-out until the last look of those who wait for a post.
const GRACE: Duration = Duration::from_secs(5);

/// What sending gave.
pub struct Sent {
    /// The posts' ids, in the plan's order.
    pub ids: Vec<Uuid>,
    /// From send until visible, for each post that was followed; `None` where it was not seen in time.
    pub visible: JoinHandle<Vec<Option<Duration>>>,
}

#[derive(Serialize)]
struct Body<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    actor: Named<'a>,
    data: Data<'a>,
    audience: Audience<'a>,
}

#[derive(Serialize)]
struct Named<'a> {
    id: &'a str,
}

#[derive(Serialize)]
struct Data<'a> {
    title: &'static str,
    run: &'a str,
}

#[derive(Serialize)]
struct Audience<'a> {
    viewers: Vec<&'a str>,
}

impl Replay {
    /// Has the service check the largest post before the first is sent. Where it takes fewer viewers a post, whoever has
    /// more friends than that posts in parts.
    pub async fn fit_audiences(&mut self, graph: &Graph) -> Result<()> {
        let sizes = self.plan.posts.iter().map(|post| post.audience.len());
        let Some((index, size)) = sizes.enumerate().max_by_key(|(_, size)| *size) else { return Ok(()) };
        let call = self.client.call(Method::POST, "/v1/posts").query("dry_run", true).json(self.body(index)?);
        let Err(fault) = self.ask(call).await else { return Ok(()) };
        let limit = u32::try_from(size).ok().and_then(|size| fault.limit("audience.viewers", size));
        let Some(limit) = limit else { return Err(fault) };
        out::note(format_args!("a post may name {limit} viewers here: whoever has more friends posts in parts"));
        self.plan = Plan::new(graph, limit as usize);
        Ok(())
    }

    /// Sends every post of the plan.
    pub async fn send_all(self: &Arc<Self>) -> Result<Sent> {
        let sampled = Arc::new(self.plan.sample(self.sample));
        let (seen, mut all_seen) = mpsc::unbounded_channel();
        // Ends when the last follower has dropped its sender.
        let visible = tokio::spawn(async move {
            let mut visible = Vec::new();
            while let Some(latency) = all_seen.recv().await {
                visible.push(latency);
            }
            visible
        });
        let ids = self.each("posts sent", self.plan.posts.len(), move |replay, index| {
            let seen = sampled[index].then(|| seen.clone());
            async move {
                match seen {
                    Some(seen) => replay.send_and_follow(index, seen).await,
                    None => replay.send_one(index).await,
                }
            }
        });
        Ok(Sent { ids: ids.await?, visible })
    }

    /// Takes the witness's token, sends, and leaves a task behind that polls the witness until it sees the post.
    async fn send_and_follow(
        self: Arc<Self>,
        index: usize,
        seen: mpsc::UnboundedSender<Option<Duration>>,
    ) -> Result<Uuid> {
        let token = self.first_token(self.plan.posts[index].witness).await?;
        let (told, id) = oneshot::channel();
        let (replay, sent) = (self.clone(), Instant::now());
        tokio::spawn(async move {
            // A follower that fails is one that did not see the post in time, and is reported as such.
            let latency = tokio::select! {
                latency = replay.until_visible(index, token, sent, id) => latency.unwrap_or(None),
                () = replay.end_of_sampling.cancelled() => None,
            };
            let _ = seen.send(latency);
        });
        let id = self.send_one(index).await?;
        // The follower may have given up; then nobody needs the id.
        let _ = told.send(id);
        Ok(id)
    }

    /// What the followers saw. The fan-out is over: what is not visible after a last grace is not seen in time, and
    /// nobody may go on polling while the cost of polls is measured.
    pub async fn end_sampling(&self, mut visible: JoinHandle<Vec<Option<Duration>>>) -> Result<Vec<Option<Duration>>> {
        let seen = match timeout(GRACE, &mut visible).await {
            Ok(seen) => seen,
            Err(_) => {
                self.end_of_sampling.cancel();
                visible.await
            }
        };
        seen.map_err(|e| Fault::Local(format!("a task ended early: {e}")))
    }

    async fn send_one(&self, index: usize) -> Result<Uuid> {
        let call = self.client.call(Method::POST, "/v1/posts").json(self.body(index)?);
        let call = call.idempotency_key(&format!("replay-{}-{index}", self.plan.run))?;
        let accepted: wire::Accepted = self.ask(call).await?.json()?;
        let id = accepted.post_id.as_deref().and_then(|id| Uuid::parse_str(id).ok());
        id.ok_or_else(|| Fault::Answer("the service accepted a post without telling its id".to_owned()))
    }

    /// What is sent of post `index`.
    fn body(&self, index: usize) -> Result<Bytes> {
        let post = &self.plan.posts[index];
        let name = |person: &u32| self.plan.names[*person as usize].as_str();
        let body = Body {
            kind: "replay.posted",
            actor: Named { id: name(&post.author) },
            data: Data { title: "hello, friends", run: &self.plan.run },
            audience: Audience { viewers: post.audience.iter().map(name).collect() },
        };
        let body = serde_json::to_vec(&body).map_err(|e| Fault::Local(format!("cannot write JSON: {e}")))?;
        Ok(Bytes::from(body))
    }
}
