//! From publish to visible: one viewer of a post polls, as an app would with long polls, until the post is there.

use std::collections::HashMap;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use super::{Replay, Result, wire};
use crate::cli::client::viewer_path;

/// Short, so that a post that came before its id was known is not waited for.
const WAIT_SECONDS: u64 = 1;
/// Between two polls that are answered at once although nothing has changed.
const PAUSE: Duration = Duration::from_millis(20);

impl Replay {
    /// The token that a viewer holds after a first page.
    pub async fn first_token(&self, viewer: u32) -> Result<Option<String>> {
        let path = viewer_path(&self.plan.names[viewer as usize], "inbox")?;
        let page: wire::IdPage = self.ask(self.client.get(&path).query("limit", 1)).await?.json()?;
        Ok(page.token)
    }

    /// How long after `sent` the witness of post `index` first saw it; `id` arrives when the POST is answered, which
    /// may be after the post was seen.
    pub async fn until_visible(
        &self,
        index: usize,
        token: Option<String>,
        sent: Instant,
        mut id: oneshot::Receiver<Uuid>,
    ) -> Result<Option<Duration>> {
        let mut witness = Witness {
            replay: self,
            viewer: &self.plan.names[self.plan.posts[index].witness as usize],
            token,
            seen: HashMap::new(),
        };
        let mut wanted = None;
        while sent.elapsed() < self.patience {
            if wanted.is_none() {
                wanted = match id.try_recv() {
                    Ok(id) => Some(id),
                    Err(oneshot::error::TryRecvError::Empty) => None,
                    Err(oneshot::error::TryRecvError::Closed) => return Ok(None),
                };
            }
            if let Some(at) = wanted.and_then(|id| witness.seen.get(&id)) {
                return Ok(Some(at.duration_since(sent)));
            }
            if witness.token.is_some() {
                witness.poll().await?;
                continue;
            }
            // A walk over pages must know how far to go.
            let id = match wanted {
                Some(id) => id,
                None => match (&mut id).await {
                    Ok(id) => *wanted.insert(id),
                    Err(_) => return Ok(None),
                },
            };
            witness.walk(id).await?;
        }
        Ok(None)
    }
}

/// A viewer who looks out for posts.
struct Witness<'a> {
    replay: &'a Replay,
    viewer: &'a str,
    token: Option<String>,
    /// When each post was first seen.
    seen: HashMap<Uuid, Instant>,
}

impl Witness<'_> {
    /// One poll, and the delta if there is one. A token that is of no use any more is dropped.
    async fn poll(&mut self) -> Result<()> {
        let Some(token) = self.token.clone() else { return Ok(()) };
        let begun = Instant::now();
        let call = self.replay.client.get(&viewer_path(self.viewer, "revision")?);
        if self.replay.ask(call.query("since", &token).wait(WAIT_SECONDS)).await?.is_unchanged() {
            if begun.elapsed() < PAUSE {
                sleep(PAUSE).await;
            }
            return Ok(());
        }
        let call = self.replay.client.get(&viewer_path(self.viewer, "changes")?).query("since", &token);
        let answer = match self.replay.ask(call).await {
            Err(fault) if fault.is_resync() => {
                self.token = None;
                return Ok(());
            }
            answer => answer?,
        };
        if !answer.is_unchanged() {
            let changes: wire::Changes<wire::OnlyId> = answer.json()?;
            self.see(changes.upserted);
            self.token = changes.token;
        }
        Ok(())
    }

    /// Pages from the newest item down to where `wanted` would be. Ids sort by time, and pages by id.
    async fn walk(&mut self, wanted: Uuid) -> Result<()> {
        let mut cursor: Option<String> = None;
        loop {
            let page = self.replay.page(self.viewer, cursor.as_deref()).await?;
            if cursor.is_none() {
                self.token = page.token;
            }
            let last = page.items.last().map(|item| item.post_id);
            self.see(page.items);
            cursor = page.next_cursor;
            if cursor.is_none() || last.is_some_and(|last| last <= wanted) {
                break;
            }
        }
        if self.token.is_none() {
            sleep(PAUSE).await;
        }
        Ok(())
    }

    fn see(&mut self, items: Vec<wire::OnlyId>) {
        let now = Instant::now();
        for item in items {
            self.seen.entry(item.post_id).or_insert(now);
        }
    }
}
