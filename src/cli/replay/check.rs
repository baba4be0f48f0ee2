//! After the last post: wait until the fan-out is through, then hold every inbox against the graph.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use tokio::time::{Instant, sleep};
use uuid::Uuid;

use super::{PAUSE_FIRST, Replay, Result, wire};
use crate::cli::client::viewer_path;

/// How long one request waits for a post to be done.
const WAIT_SECONDS: u64 = 20;

/// What the inboxes hold of what they must.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// There, as it must be.
    pub found: usize,
    /// Not there.
    pub missing: usize,
    /// There once more than it must be.
    pub duplicate: usize,
    /// There, though it was for others.
    pub misdelivered: usize,
    /// Older than the oldest item that a full inbox serves.
    pub beyond_window: usize,
}

impl std::ops::AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.found += other.found;
        self.missing += other.missing;
        self.duplicate += other.duplicate;
        self.misdelivered += other.misdelivered;
        self.beyond_window += other.beyond_window;
    }
}

/// Counts one inbox: `expected` of the posts `ours` must be in `served`, whatever else is there.
pub fn tally(expected: &[Uuid], ours: &HashSet<Uuid>, served: &[Uuid], truncated: bool) -> Tally {
    let mut times: HashMap<Uuid, usize> = HashMap::new();
    for id in served.iter().filter(|id| ours.contains(id)) {
        *times.entry(*id).or_default() += 1;
    }
    // What a full inbox left out is older than all it serves; ids sort by time.
    let oldest_served = served.iter().min().filter(|_| truncated);
    let mut tally = Tally::default();
    for id in expected {
        match times.remove(id) {
            Some(count) => {
                tally.found += 1;
                tally.duplicate += count - 1;
            }
            None if oldest_served.is_some_and(|oldest| id < oldest) => tally.beyond_window += 1,
            None => tally.missing += 1,
        }
    }
    tally.misdelivered = times.values().sum();
    tally
}

impl Replay {
    /// Waits until every post is spread or patience is at its end; how many were not.
    ///
    /// The newest come first: when those are done, most others are, and cost one quick look each. What this takes
    /// counts as fan-out, so rows/s is rather too low than too high.
    pub async fn wait_for_fanout(self: &Arc<Self>, ids: &[Uuid]) -> Result<usize> {
        let give_up = Instant::now() + self.patience;
        let ids: Arc<[Uuid]> = ids.iter().rev().copied().collect();
        let done = self.each("fan-outs awaited", ids.len(), move |replay, index| {
            let id = ids[index];
            async move { replay.is_fanned_out(id, give_up).await }
        });
        Ok(done.await?.into_iter().filter(|done| !done).count())
    }

    async fn is_fanned_out(&self, id: Uuid, give_up: Instant) -> Result<bool> {
        loop {
            let left = give_up.saturating_duration_since(Instant::now()).as_secs().min(WAIT_SECONDS);
            let call = self.client.get(&format!("/v1/posts/{id}")).wait(left);
            let asked = Instant::now();
            let status: wire::PostStatus = self.ask(call).await?.json()?;
            if status.fanout.is_done() {
                return Ok(true);
            }
            if Instant::now() + PAUSE_FIRST > give_up {
                return Ok(false);
            }
            if asked.elapsed() < PAUSE_FIRST {
                sleep(PAUSE_FIRST).await;
            }
        }
    }

    /// Reads every inbox to its end; also the token that each viewer holds then.
    pub async fn check_inboxes(self: &Arc<Self>, ids: &[Uuid]) -> Result<(Tally, Vec<Option<String>>)> {
        let ours: Arc<HashSet<Uuid>> = Arc::new(ids.iter().copied().collect());
        let ids: Arc<[Uuid]> = ids.into();
        let inboxes = self.each("inboxes checked", self.plan.names.len(), move |replay, viewer| {
            let (ids, ours) = (ids.clone(), ours.clone());
            async move {
                let (served, truncated, token) = replay.whole_inbox(viewer).await?;
                let expected: Vec<Uuid> = replay.plan.expected[viewer].iter().map(|post| ids[*post as usize]).collect();
                Ok((tally(&expected, &ours, &served, truncated), token))
            }
        });
        let mut sum = Tally::default();
        let mut tokens = Vec::new();
        for (tally, token) in inboxes.await? {
            sum += tally;
            tokens.push(token);
        }
        Ok((sum, tokens))
    }

    async fn whole_inbox(&self, viewer: usize) -> Result<(Vec<Uuid>, bool, Option<String>)> {
        let path = viewer_path(&self.plan.names[viewer], "inbox")?;
        let (mut served, mut token, mut cursor) = (Vec::new(), None, None);
        loop {
            let call = self.client.get(&path).query("limit", 100).maybe("cursor", cursor.as_ref());
            let page: wire::IdPage = self.ask(call).await?.json()?;
            served.extend(page.items.iter().map(|item| item.post_id));
            if cursor.is_none() {
                token = page.token;
            }
            cursor = page.next_cursor;
            if cursor.is_none() {
                return Ok((served, page.truncated, token));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(numbers: &[u128]) -> Vec<Uuid> {
        numbers.iter().copied().map(Uuid::from_u128).collect()
    }

    fn counted(expected: &[u128], served: &[u128], truncated: bool) -> Tally {
        let ours = ids(&[1, 2, 3, 4]).into_iter().collect();
        tally(&ids(expected), &ours, &ids(served), truncated)
    }

    #[test]
    fn an_inbox_is_held_against_the_graph() {
        let good = Tally { found: 2, ..Tally::default() };
        assert_eq!(counted(&[1, 3], &[9, 3, 1], false), good, "posts of others do not matter");
        assert_eq!(counted(&[1, 3], &[3, 3, 1, 3], false), Tally { duplicate: 2, ..good });
        assert_eq!(counted(&[1, 3], &[3, 2, 1], false), Tally { misdelivered: 1, ..good });
        assert_eq!(counted(&[1, 3], &[], false), Tally { missing: 2, ..Tally::default() });
        assert_eq!(counted(&[], &[], false), Tally::default());
    }

    #[test]
    fn only_what_a_full_inbox_left_out_is_beyond_its_window() {
        let cut = Tally { found: 1, beyond_window: 2, ..Tally::default() };
        assert_eq!(counted(&[1, 2, 4], &[9, 4, 3], true).beyond_window, 2);
        assert_eq!(counted(&[1, 2, 4], &[9, 4], true), cut);
        let hole = Tally { found: 2, missing: 1, ..Tally::default() };
        assert_eq!(counted(&[2, 3, 4], &[9, 4, 2], true), hole, "a hole inside the window is a missing row");
        assert_eq!(counted(&[1, 4], &[4], false).missing, 1, "nothing was left out");
    }
}
