//! After the last post: wait until the fan-out is through, then hold every inbox against the graph.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use tokio::time::{Instant, sleep};
use uuid::Uuid;

use super::{PAUSE_FIRST, Replay, Result, wire};

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
    /// Older than the oldest item that a full inbox serves: whether it was ever there cannot be told.
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

/// How the fan-outs ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spread {
    /// Posts whose fan-out was not done in time.
    pub unfinished: usize,
    /// Rows that fan-outs ended without.
    pub unwritten: u64,
    /// Of those, rows of chunks that were parked: a fan-out with nothing else left to do calls itself done.
    pub parked: u64,
}

impl Spread {
    /// That of one post.
    fn of(fanout: &wire::Fanout) -> Self {
        if !fanout.is_done() {
            return Self { unfinished: 1, ..Self::default() };
        }
        Self { unfinished: 0, unwritten: fanout.total.saturating_sub(fanout.written), parked: fanout.failed }
    }
}

impl std::ops::AddAssign for Spread {
    fn add_assign(&mut self, other: Self) {
        self.unfinished += other.unfinished;
        self.unwritten += other.unwritten;
        self.parked += other.parked;
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
    /// Waits until every post is spread or patience is at its end; what came of it.
    ///
    /// The newest come first: when those are done, most others are, and cost one quick look each. What this takes
    /// counts as fan-out, so rows/s is rather too low than too high.
    pub async fn wait_for_fanout(self: &Arc<Self>, ids: &[Uuid]) -> Result<Spread> {
        let give_up = Instant::now() + self.patience;
        let ids: Arc<[Uuid]> = ids.iter().rev().copied().collect();
        let ended = self.each("fan-outs awaited", ids.len(), move |replay, index| {
            let id = ids[index];
            async move { replay.spread(id, give_up).await }
        });
        let mut sum = Spread::default();
        for spread in ended.await? {
            sum += spread;
        }
        Ok(sum)
    }

    async fn spread(&self, id: Uuid, give_up: Instant) -> Result<Spread> {
        loop {
            let left = give_up.saturating_duration_since(Instant::now()).as_secs().min(WAIT_SECONDS);
            let call = self.client.get(&format!("/v1/posts/{id}")).wait(left);
            let asked = Instant::now();
            let status: wire::PostStatus = self.ask(call).await?.json()?;
            let spread = Spread::of(&status.fanout);
            if spread.unfinished == 0 || Instant::now() + PAUSE_FIRST > give_up {
                return Ok(spread);
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
        let (mut served, mut token, mut cursor) = (Vec::new(), None, None::<String>);
        loop {
            let page = self.page(&self.plan.names[viewer], cursor.as_deref()).await?;
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

    #[test]
    fn a_fan_out_that_ends_without_rows_is_told() {
        let spread = |text: &str| Spread::of(&serde_json::from_str(text).expect("a fan-out"));
        assert_eq!(spread(r#"{"status":"done","total":2,"written":2}"#), Spread::default());
        assert_eq!(spread(r#"{"status":"running","total":2,"written":2}"#).unfinished, 1);
        let parked = Spread { unfinished: 0, unwritten: 3, parked: 2 };
        assert_eq!(spread(r#"{"status":"done","total":9,"written":6,"skipped":1,"failed":2}"#), parked);
    }
}
