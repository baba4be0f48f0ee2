//! What a viewer sees: which rows of an inbox are served and counted, and until when that holds.

use std::time::Duration;

use super::ids::PostId;
use super::item::Row;
use super::post::Withdrawal;
use super::time::Time;

/// Counts stop here and say so ("99+").
pub const COUNT_CAP: u32 = 99;

/// Posts that are hidden although their rows do not say so yet. A cheap snapshot: taken before rows are read, it can
/// only hide what was withdrawn, never miss what was withdrawn before.
#[derive(Clone, Debug, Default)]
pub struct Withdrawn(imbl::HashMap<PostId, Withdrawal>);

impl Withdrawn {
    /// Adds a withdrawal unless one of a newer version is there.
    pub fn insert(&mut self, withdrawal: Withdrawal) {
        let newer = self.0.get(&withdrawal.post_id).is_some_and(|known| known.version > withdrawal.version);
        if !newer {
            self.0.insert(withdrawal.post_id, withdrawal);
        }
    }

    /// Removes the withdrawal of `post_id` if its fan-out is complete at `version`.
    pub fn settle(&mut self, post_id: PostId, version: u32) {
        if self.0.get(&post_id).is_some_and(|known| known.version <= version) {
            self.0.remove(&post_id);
        }
    }

    /// From when on a row of `post_id` is hidden that was written at `version`. A row as new as the withdrawal says so
    /// itself, and a newer one may say otherwise: who still knows of an older edit only (another node for a while, or all
    /// of them where an editor died) must not hide by it what the newer one shows, since nothing bumps when it is forgotten.
    pub fn hidden_from(&self, post_id: PostId, version: u32) -> Option<Time> {
        self.0.get(&post_id).filter(|w| w.version > version).map(|w| w.hidden_from)
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = Withdrawal> {
        self.0.values().copied()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// A count that stops at [`COUNT_CAP`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// The number, at most the cap.
    pub value: u32,
    /// There are more than that.
    pub capped: bool,
}

impl Count {
    fn of(number: u32) -> Self {
        Self { value: number.min(COUNT_CAP), capped: number > COUNT_CAP }
    }
}

/// The counts that belong to an inbox.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Items neither seen nor archived.
    pub unseen: Count,
    /// Items neither read nor archived.
    pub unread: Count,
}

/// The rules by which rows are served: one instant, one life span, one set of withdrawals.
#[derive(Clone, Debug)]
pub struct View {
    /// The instant of the request.
    pub now: Time,
    /// How long a row lives, from the post's creation.
    pub ttl: Duration,
    /// What is hidden although its rows do not say so yet.
    pub withdrawn: Withdrawn,
}

impl View {
    /// When `row` stops being served, [`Time::ZERO`] if it is gone already.
    pub fn ends_at(&self, row: &Row) -> Time {
        if row.deleted {
            return Time::ZERO;
        }
        let life = row.post_id.time().after(self.ttl);
        let expiry = row.expires_at.unwrap_or(Time::MAX);
        let withdrawn = self.withdrawn.hidden_from(row.post_id, row.version).unwrap_or(Time::MAX);
        life.min(expiry).min(withdrawn)
    }

    /// Whether `row` is served now, archived or not.
    pub fn shows(&self, row: &Row) -> bool {
        self.ends_at(row) > self.now
    }

    /// The counts over `rows`, and the earliest end among the rows counted: until then the counts and the default list
    /// stay as they are unless something bumps.
    pub fn summarize(&self, rows: &[Row]) -> (Counts, Time) {
        let (mut unseen, mut unread, mut ends_at) = (0, 0, Time::MAX);
        for row in rows.iter().filter(|row| row.marks.archived_at.is_none()) {
            let end = self.ends_at(row);
            if end > self.now {
                unseen += u32::from(row.marks.seen_at.is_none());
                unread += u32::from(row.marks.read_at.is_none());
                ends_at = ends_at.min(end);
            }
        }
        (Counts { unseen: Count::of(unseen), unread: Count::of(unread) }, ends_at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::item::Marks;

    fn row(expires_at: Option<Time>) -> Row {
        let post_id = PostId::new(Time::from_millis(1_000), [0; 10]);
        Row { post_id, version: 1, deleted: false, expires_at, marks: Marks::default() }
    }

    #[test]
    fn rows_end_at_the_earliest_of_life_expiry_and_withdrawal() {
        let now = Time::from_millis(2_000);
        let mut view = View { now, ttl: Duration::from_secs(10), withdrawn: Withdrawn::default() };
        assert_eq!(view.ends_at(&row(None)), Time::from_millis(11_000));
        assert_eq!(view.ends_at(&row(Some(Time::from_millis(3_000)))), Time::from_millis(3_000));
        assert!(!view.shows(&row(Some(now))), "the end is exclusive");
        view.withdrawn.insert(Withdrawal { post_id: row(None).post_id, version: 2, hidden_from: Time::ZERO });
        assert!(!view.shows(&row(None)));
        view.withdrawn.settle(row(None).post_id, 1);
        assert!(!view.shows(&row(None)), "an older fan-out does not settle it");
        view.withdrawn.settle(row(None).post_id, 2);
        assert!(view.shows(&row(None)));
    }

    #[test]
    fn an_older_edit_hides_no_row_of_a_newer_one() {
        let now = Time::from_millis(2_000);
        let mut view = View { now, ttl: Duration::from_secs(10), withdrawn: Withdrawn::default() };
        let at = |version| Row { version, ..row(None) };
        view.withdrawn.insert(Withdrawal { post_id: row(None).post_id, version: 2, hidden_from: now });
        assert!(!view.shows(&at(1)), "its row does not say so yet");
        assert!(view.shows(&at(2)), "its own row says all there is");
        assert!(view.shows(&at(3)), "the third version took the expiry back");
    }

    #[test]
    fn counts_stop_at_the_cap() {
        let view = View { now: Time::ZERO, ttl: Duration::from_secs(10), withdrawn: Withdrawn::default() };
        let (counts, ends_at) = view.summarize(&vec![row(None); 100]);
        assert_eq!(counts.unread, Count { value: 99, capped: true });
        assert_eq!(ends_at, Time::from_millis(11_000));
        let (counts, _) = view.summarize(&vec![row(None); 99]);
        assert_eq!(counts.unseen, Count { value: 99, capped: false });
    }
}
