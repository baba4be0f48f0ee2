//! The broker's tags, between delivery and acknowledgement.

use std::collections::BTreeSet;

/// The tags of one channel: the broker numbers what it delivers there from 1, whatever queue it comes from.
#[derive(Debug)]
pub struct Acks {
    in_hand: BTreeSet<u64>,
    finished: BTreeSet<u64>,
    /// What was taken to be acknowledged is on its way to the broker.
    telling: bool,
    /// The lowest tag that has not been met. What several queues deliver is met out of turn: with a later one finished,
    /// this one may still be on its way to us.
    unmet: u64,
    /// What has been met above it.
    met: BTreeSet<u64>,
}

impl Default for Acks {
    fn default() -> Self {
        Self { in_hand: BTreeSet::new(), finished: BTreeSet::new(), telling: false, unmet: 1, met: BTreeSet::new() }
    }
}

impl Acks {
    /// A message has come.
    pub fn meet(&mut self, tag: u64) {
        self.in_hand.insert(tag);
        self.met.insert(tag);
        while self.met.remove(&self.unmet) {
            self.unmet += 1;
        }
    }

    /// It is to be acknowledged.
    pub fn finish(&mut self, tag: u64) {
        self.in_hand.remove(&tag);
        self.finished.insert(tag);
    }

    /// The broker knows already what becomes of it.
    pub fn forget(&mut self, tag: u64) {
        self.in_hand.remove(&tag);
    }

    /// Whether the broker knows of everything that is finished.
    pub fn all_told(&self) -> bool {
        self.finished.is_empty() && !self.telling
    }

    /// What was taken last has been acknowledged.
    pub fn told(&mut self) {
        self.telling = false;
    }

    /// What to acknowledge now, until [`Acks::told`]: everything up to a tag at once, and singly what has overtaken a slower one.
    pub fn take(&mut self) -> (Option<u64>, BTreeSet<u64>) {
        let slowest = self.in_hand.first().map_or(self.unmet, |slowest| self.unmet.min(*slowest));
        let overtaken = self.finished.split_off(&slowest);
        self.telling = true;
        (std::mem::take(&mut self.finished).last().copied(), overtaken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finish(acks: &mut Acks, tags: impl IntoIterator<Item = u64>) {
        tags.into_iter().for_each(|tag| acks.finish(tag));
    }

    #[test]
    fn acknowledgements_go_together_up_to_the_slowest() {
        let mut acks = Acks::default();
        (1..=8).for_each(|tag| acks.meet(tag));
        finish(&mut acks, [1, 2, 4, 5]);
        assert_eq!(acks.take(), (Some(2), [4, 5].into()));
        assert_eq!(acks.take(), (None, [].into()));
        finish(&mut acks, [3, 6, 8]);
        assert_eq!(acks.take(), (Some(6), [8].into()));
        finish(&mut acks, [7]);
        assert_eq!(acks.take(), (Some(7), [].into()));
        assert!(!acks.all_told(), "on its way");
        acks.told();
        assert!(acks.all_told());
    }

    #[test]
    fn what_was_delivered_and_not_met_is_not_acknowledged() {
        let mut acks = Acks::default();
        [1, 2, 5, 6].into_iter().for_each(|tag| acks.meet(tag));
        finish(&mut acks, [1, 2, 5]);
        assert_eq!(acks.take(), (Some(2), [5].into()), "3 and 4 are on their way");
        [4, 3].into_iter().for_each(|tag| acks.meet(tag));
        finish(&mut acks, [6, 4]);
        assert_eq!(acks.take(), (None, [4, 6].into()), "3 is in hand");
        acks.forget(3);
        acks.meet(7);
        finish(&mut acks, [7]);
        assert_eq!(acks.take(), (Some(7), [].into()));
    }
}
