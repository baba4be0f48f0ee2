//! Which of a lane's queues a producer's tasks go to.
//!
//! Each producer has two of them, by a hash of its id, and a task goes to the shorter one: stochastic fairness queueing
//! (McKenney 1990) with the power of two choices (Mitzenmacher 2001), which is also shuffle sharding. A flood fills its
//! two; another producer has at least one that the flood is not in, unless both of its are the same two: of 8 queues one
//! pair in 21.
//!
//! The first queue is nobody's by hash. It is the quiet one, open beside their two to those who post little: whichever
//! queues are flooded, and by however many, what is small finds one where no flood is. Where that is the longest of the
//! three, the two are as good as ever. How much a producer posts each process counts for itself, and all that it is
//! offered for the first time counts: if only what goes to the quiet queue did, every flood would have its rate there for ever.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use sha2::{Digest as _, Sha256};

use crate::domain::{Lane, ProducerId, Rate, Task};

/// The number of the quiet queue.
pub const QUIET: usize = 0;
/// How many more than in a producer's own two may wait in the quiet one before those are the shorter ones. As many whole tasks
/// a worker has at hand of a queue as delivered, and the broker counts none of them: where nobody seems to wait, a second's
/// work of a flood may be in front.
pub const QUIET_AHEAD: u64 = 16;
/// The rows that a producer may offer to a lane, in each process, and still post little: two chunks of the default size at
/// once, and one a second. More at once, and what is small would wait behind what is not.
const LITTLE: Rate = Rate { per_s: 500, burst: 1_000 };
/// Who offers more than it has left owes it, so long a time's worth at most: out for as long as it goes on, and back soon
/// after.
const BUSY: Duration = Duration::from_secs(10);
/// How many producers' rows are counted at the same time; who posts to both lanes is two. While there are more, the others
/// have their own two queues and no third.
const KNOWN_MAX: usize = 10_000;

/// The numbers of the queues that a producer's tasks may go to, out of `count`: to the first where the others are no shorter.
pub fn queues(producer: &ProducerId, count: usize, little: bool) -> Vec<usize> {
    // At a tie the quiet one: since depths were asked for, a flood may have come to the others.
    let mut queues = if little { vec![QUIET] } else { Vec::new() };
    for choice in choices(producer, count) {
        if !queues.contains(&choice) {
            queues.push(choice);
        }
    }
    queues
}

/// The numbers of a producer's own queues, out of `queues`: two different ones where there are two beside the quiet one,
/// and that one if it is the only one. The same in every process and every release, so no hasher of the standard library.
pub fn choices(producer: &ProducerId, queues: usize) -> [usize; 2] {
    let others = queues.saturating_sub(1) as u64;
    if others == 0 {
        return [QUIET; 2];
    }
    let hash = Sha256::digest(producer.as_str().as_bytes());
    let (mut left, mut right) = ([0; 8], [0; 8]);
    left.copy_from_slice(&hash[..8]);
    right.copy_from_slice(&hash[8..16]);
    let first = u64::from_be_bytes(left) % others;
    // So many steps on, at least one, and never once around.
    let steps = if others > 1 { 1 + u64::from_be_bytes(right) % (others - 1) } else { 0 };
    // The quiet one is the first of all.
    [first, (first + steps) % others].map(|at| 1 + at as usize)
}

/// How many tasks each of `queues` takes so that together they take `tasks_max`, or a few more by rounding.
pub fn share(tasks_max: usize, queues: usize) -> u64 {
    tasks_max.div_ceil(queues.max(1)) as u64
}

/// How many places of each queue are used for `wanted` tasks, one after the other to where the fewest wait; at a tie to the
/// first, and to the quiet one for as long as no more than [`QUIET_AHEAD`] more wait there. `open` are the queues and how many
/// wait in each, no more than `share` may; the places are added to it.
pub fn deal(open: &mut [(usize, u64)], share: u64, wanted: usize) -> Vec<usize> {
    let mut places = Vec::new();
    while places.len() < wanted {
        let with_room = open.iter_mut().filter(|(_, waiting)| *waiting < share);
        let ahead = |queue| if queue == QUIET { QUIET_AHEAD } else { 0 };
        let Some((queue, waiting)) = with_room.min_by_key(|(queue, waiting)| waiting.saturating_sub(ahead(*queue)))
        else {
            break;
        };
        *waiting += 1;
        places.push(*queue);
    }
    places
}

/// As how many rows tasks count, by how many each has: a part of a whole task at least, as in the turns that queues take. A
/// thousand of a row each are a long line.
pub fn weight(rows: impl Iterator<Item = usize>) -> u64 {
    rows.map(|rows| rows.max(Task::VIEWERS_A_PART) as u64).sum()
}

/// What producers have offered lately, to tell who posts little.
#[derive(Debug, Default)]
pub struct Offers(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    accounts: HashMap<(Lane, ProducerId), Account>,
    swept: Option<Instant>,
}

/// The rows that a producer has left in a lane; fewer than none while it owes some.
#[derive(Clone, Copy, Debug)]
struct Account {
    left: f64,
    at: Instant,
}

impl Offers {
    /// Counts so many rows that a producer offers to a lane at once, and answers whether it posts little. A part of them is
    /// never little: a large post keeps out of the quiet queue as a whole.
    pub fn count(&self, lane: Lane, producer: &ProducerId, rows: u64, now: Instant) -> bool {
        let mut known = self.known();
        known.sweep(now);
        let key = (lane, producer.clone());
        let Some(left) = known.left(&key, now) else { return false };
        let rest = left - rows as f64;
        let owed_max = BUSY.as_secs_f64() * LITTLE.per_s as f64;
        known.accounts.insert(key, Account { left: rest.max(-owed_max), at: now });
        rest >= 0.0
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        // Nothing in the critical sections panics.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    /// `None` if there is no place to count a producer.
    fn left(&self, key: &(Lane, ProducerId), now: Instant) -> Option<f64> {
        match self.accounts.get(key) {
            Some(account) => Some(account.left(now)),
            None => (self.accounts.len() < KNOWN_MAX).then_some(LITTLE.burst as f64),
        }
    }

    /// Forgets now and then who has everything left: they are as if never seen.
    fn sweep(&mut self, now: Instant) {
        if self.swept.is_none_or(|swept| now.saturating_duration_since(swept) >= BUSY) {
            self.swept = Some(now);
            self.accounts.retain(|_, account| account.left(now) < LITTLE.burst as f64);
        }
    }
}

impl Account {
    fn left(self, now: Instant) -> f64 {
        LITTLE.refilled(self.left, now.saturating_duration_since(self.at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn producer(name: &str) -> ProducerId {
        ProducerId::parse("producer", name).expect("valid")
    }

    /// A lane of eight queues, and a process that publishes to it.
    #[derive(Default)]
    struct Publishing {
        offers: Offers,
        waiting: [u64; 8],
    }

    impl Publishing {
        /// Publishes a post of so many rows a task; where the tasks went.
        fn post(&mut self, producer: &ProducerId, rows: &[usize], now: Instant) -> Vec<usize> {
            let little = self.offers.count(Lane::Small, producer, weight(rows.iter().copied()), now);
            let queues = queues(producer, self.waiting.len(), little);
            let mut open: Vec<_> = queues.into_iter().map(|queue| (queue, self.waiting[queue])).collect();
            let places = deal(&mut open, 1_000, rows.len());
            for (queue, waiting) in open {
                self.waiting[queue] = waiting;
            }
            places
        }
    }

    /// As many producers as it takes for their queues to be all but the quiet one, with a backlog in each.
    fn flooded(now: Instant) -> (Publishing, Vec<ProducerId>) {
        let mut lane = Publishing::default();
        let floods: Vec<ProducerId> = (0..20).map(|n| producer(&format!("flood-{n}"))).collect();
        for _ in 0..100 {
            for flood in &floods {
                lane.post(flood, &[500], now);
            }
        }
        (lane, floods)
    }

    #[test]
    fn a_producer_has_the_same_two_queues_for_ever() {
        // From `sha256sum`: other releases and languages agree.
        for (name, queues, expected) in [("local", 8, [7, 1]), ("shop", 8, [3, 2]), ("shop", 64, [38, 35])] {
            assert_eq!(choices(&producer(name), queues), expected, "{name} of {queues}");
        }
    }

    #[test]
    fn few_queues_are_enough() {
        let shop = producer("shop");
        let both = |count| [queues(&shop, count, true), queues(&shop, count, false)];
        assert_eq!(both(0), [[0], [0]]);
        assert_eq!(both(1), [[0], [0]]);
        assert_eq!(both(2), [vec![0, 1], vec![1]]);
        assert_eq!(both(3), [vec![0, 2, 1], vec![2, 1]]);
        assert_eq!(both(8), [vec![0, 3, 2], vec![3, 2]]);
        for count in 3..=64 {
            let [first, second] = choices(&shop, count);
            assert!(first != second && (1..count).contains(&first) && (1..count).contains(&second), "of {count}");
        }
    }

    #[test]
    fn producers_are_spread_over_all_pairs_of_all_but_the_quiet_one() {
        let mut pairs = [[0_u32; 8]; 8];
        for n in 0..4_200 {
            let [first, second] = choices(&producer(&format!("producer-{n}")), 8);
            assert!(first != second && first != QUIET && second != QUIET);
            pairs[first.min(second)][first.max(second)] += 1;
        }
        let counts: Vec<u32> = (1..8).flat_map(|a| (a + 1..8).map(move |b| (a, b))).map(|(a, b)| pairs[a][b]).collect();
        // 200 each if even; a standard deviation is 14.
        assert!(counts.len() == 21 && counts.iter().all(|count| (130..270).contains(count)), "{counts:?}");
    }

    #[test]
    fn tasks_go_where_the_fewest_wait() {
        let dealt = |mut open: [(usize, u64); 2], wanted| deal(&mut open, 10, wanted);
        assert_eq!(dealt([(5, 0), (2, 0)], 5), [5, 2, 5, 2, 5]);
        assert_eq!(dealt([(5, 3), (2, 0)], 4), [2, 2, 2, 5]);
        assert_eq!(dealt([(5, 9), (2, 8)], 9), [2, 5, 2], "no more than the share of each");
        assert_eq!(dealt([(5, 12), (2, 10)], 1), [0_usize; 0]);
        assert_eq!(deal(&mut [(0, 1)], 3, 5), [0, 0], "one queue has one room");
        assert_eq!(deal(&mut [], 3, 5), [0_usize; 0]);
        let mut open = [(5, 0), (2, 1)];
        assert_eq!(deal(&mut open, 10, 3), [5, 5, 2]);
        assert_eq!(open, [(5, 2), (2, 2)], "the places are added");
    }

    /// What a worker has at hand of the others, the broker does not tell.
    #[test]
    fn the_quiet_queue_is_taken_for_shorter_than_it_is() {
        let dealt = |quiet, share, wanted| deal(&mut [(QUIET, quiet), (5, 0), (2, 0)], share, wanted);
        assert_eq!(dealt(QUIET_AHEAD - 1, 100, 3), [QUIET, QUIET, 5]);
        assert_eq!(dealt(QUIET_AHEAD + 1, 100, 3), [5, 2, QUIET]);
        assert_eq!(dealt(9, 10, 3), [QUIET, 5, 2], "as long as it has room");
    }

    #[test]
    fn a_long_quiet_queue_leaves_a_producer_with_its_own_two() {
        assert_eq!(deal(&mut [(QUIET, 30), (5, 2), (2, 3)], 100, 3), [5, 5, 2]);
    }

    #[test]
    fn shares_are_rounded_up() {
        assert_eq!([share(10_000, 8), share(10, 8), share(1, 64), share(7, 1)], [1_250, 2, 1, 7]);
    }

    #[test]
    fn floods_leave_the_quiet_queue_to_what_is_small() {
        let now = Instant::now();
        let (mut lane, floods) = flooded(now);
        assert!(lane.waiting[QUIET] <= 40, "at most two chunks of each, before it was known: {:?}", lane.waiting);
        assert!(lane.waiting[1..].iter().all(|waiting| *waiting > 100), "{:?}", lane.waiting);
        assert_eq!(lane.post(&producer("shop"), &[1], now), [QUIET]);
        // That queue is served in turn, and soon empty; the others grow.
        lane.waiting[QUIET] = 0;
        for later in (1..60).map(|seconds| now + Duration::from_secs(seconds)) {
            for flood in &floods {
                assert!(!lane.post(flood, &[500, 500, 500], later).contains(&QUIET));
            }
            assert_eq!(lane.post(&producer("shop"), &[1], later), [QUIET]);
            lane.waiting[QUIET] = 0;
        }
    }

    #[test]
    fn a_post_that_is_not_little_keeps_out_as_a_whole() {
        let now = Instant::now();
        let (mut lane, _) = flooded(now);
        lane.waiting[QUIET] = 0;
        assert_eq!(lane.post(&producer("shop"), &[500, 500], now), [QUIET, QUIET]);
        assert!(!lane.post(&producer("local"), &[500, 500, 1], now).contains(&QUIET));
    }

    #[test]
    fn many_tasks_of_a_row_are_not_little_either() {
        let (offers, shop, now) = (Offers::default(), producer("shop"), Instant::now());
        assert_eq!(weight([1, 0, 500].into_iter()), 540);
        let count = |at| offers.count(Lane::Small, &shop, weight([1].into_iter()), at);
        assert_eq!((0..100).take_while(|_| count(now)).count(), 50);
        assert!(offers.count(Lane::Bulk, &shop, 1_000, now), "each lane counts for itself");
        assert!(offers.count(Lane::Small, &producer("local"), 1_000, now), "and each producer");
    }

    #[test]
    fn rows_come_back_with_time() {
        let (offers, shop, now) = (Offers::default(), producer("shop"), Instant::now());
        let count = |rows, seconds| offers.count(Lane::Bulk, &shop, rows, now + Duration::from_secs(seconds));
        assert!(count(1_000, 0) && count(500, 1) && count(1_000, 3), "at its rate for ever");
        assert!(!count(1_000, 4), "half of them are back");
        assert!(!count(20, 5) && count(20, 6), "what it owed is paid");
        assert!((0..100).all(|_| !count(1_000, 7)), "a flood");
        assert!((8..16).all(|at| !count(20, at)) && count(20, 18), "it owes ten seconds' worth, though it posts on");
        assert!(count(1_000, 60) && (61..200).all(|at| !count(600, at)), "out while it goes on above its rate");
    }

    #[test]
    fn who_is_known_is_bounded_and_forgotten() {
        let (offers, now) = (Offers::default(), Instant::now());
        let count = |n: usize, at| offers.count(Lane::Small, &producer(&format!("producer-{n}")), 20, at);
        assert!((0..KNOWN_MAX).all(|n| count(n, now)));
        assert!(!count(KNOWN_MAX, now), "one too many, with its own two queues");
        assert!(count(0, now), "one that is known");
        assert_eq!(offers.known().accounts.len(), KNOWN_MAX);
        assert!(count(KNOWN_MAX, now + BUSY), "the others have not posted since");
        assert_eq!(offers.known().accounts.len(), 1);
    }
}
