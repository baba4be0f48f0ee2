//! Which of a lane's queues a producer's tasks go to.
//!
//! Each producer has two of them, by a hash of its id, and a task goes to the shorter one: stochastic fairness queueing
//! (McKenney 1990) with the power of two choices (Mitzenmacher 2001), which is also shuffle sharding. A flood fills its
//! two; another producer has at least one that the flood is not in, unless both of its are the same two: of 8 queues one
//! pair in 28.

use sha2::{Digest as _, Sha256};

use crate::domain::ProducerId;

/// The numbers of a producer's queues, out of `queues`: two different ones where there are two. The same in every
/// process and every release, so no hasher of the standard library.
pub fn choices(producer: &ProducerId, queues: usize) -> [usize; 2] {
    let queues = queues.max(1) as u64;
    let hash = Sha256::digest(producer.as_str().as_bytes());
    let (mut left, mut right) = ([0; 8], [0; 8]);
    left.copy_from_slice(&hash[..8]);
    right.copy_from_slice(&hash[8..16]);
    let first = u64::from_be_bytes(left) % queues;
    // So many steps on, at least one, and never once around.
    let steps = if queues > 1 { 1 + u64::from_be_bytes(right) % (queues - 1) } else { 0 };
    [first as usize, ((first + steps) % queues) as usize]
}

/// How many tasks each of `queues` takes so that together they take `tasks_max`, or a few more by rounding.
pub fn share(tasks_max: usize, queues: usize) -> u64 {
    tasks_max.div_ceil(queues.max(1)) as u64
}

/// How many places of each queue are used for `wanted` tasks, one after the other to where fewer wait; at a tie to the
/// first. `waiting` is how many wait in each, no more than `share` may.
pub fn deal(choices: [usize; 2], mut waiting: [u64; 2], share: u64, wanted: usize) -> Vec<usize> {
    let mut places = Vec::new();
    while places.len() < wanted {
        let at = usize::from(choices[0] != choices[1] && waiting[1] < waiting[0]);
        if waiting[at] >= share {
            break;
        }
        waiting[at] += 1;
        places.push(choices[at]);
    }
    places
}

#[cfg(test)]
mod tests {
    use super::*;

    fn producer(name: &str) -> ProducerId {
        ProducerId::parse("producer", name).expect("valid")
    }

    #[test]
    fn a_producer_has_the_same_two_queues_for_ever() {
        // From `sha256sum`: other releases and languages agree.
        for (name, queues, expected) in [("local", 8, [0, 3]), ("shop", 8, [5, 7]), ("shop", 64, [61, 27])] {
            assert_eq!(choices(&producer(name), queues), expected, "{name} of {queues}");
        }
        assert_eq!(choices(&producer("shop"), 1), [0, 0]);
    }

    #[test]
    fn producers_are_spread_over_all_pairs() {
        let mut pairs = [[0_u32; 8]; 8];
        for n in 0..5_600 {
            let [first, second] = choices(&producer(&format!("producer-{n}")), 8);
            assert_ne!(first, second);
            pairs[first.min(second)][first.max(second)] += 1;
        }
        let counts: Vec<u32> = (0..8).flat_map(|a| (a + 1..8).map(move |b| (a, b))).map(|(a, b)| pairs[a][b]).collect();
        // 200 each if even; a standard deviation is 14.
        assert!(counts.len() == 28 && counts.iter().all(|count| (130..270).contains(count)), "{counts:?}");
    }

    #[test]
    fn tasks_go_where_fewer_wait() {
        assert_eq!(deal([5, 2], [0, 0], 10, 5), [5, 2, 5, 2, 5]);
        assert_eq!(deal([5, 2], [3, 0], 10, 4), [2, 2, 2, 5]);
        assert_eq!(deal([5, 2], [9, 8], 10, 9), [2, 5, 2], "no more than the share of each");
        assert_eq!(deal([5, 2], [12, 10], 10, 1), [0_usize; 0]);
        assert_eq!(deal([0, 0], [1, 1], 3, 5), [0, 0], "one queue has one room");
    }

    #[test]
    fn shares_are_rounded_up() {
        assert_eq!([share(10_000, 8), share(10, 8), share(1, 64), share(7, 1)], [1_250, 2, 1, 7]);
    }
}
