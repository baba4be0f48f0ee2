//! What can happen. Numbers pick among what there is, modulo its count.

use fanfold::domain::Mark;
use proptest::prelude::*;

#[derive(Clone, Debug)]
pub enum Op {
    /// A post for the viewers in the bit mask, perhaps expiring.
    Publish {
        audience: u8,
        ttl_s: Option<u16>,
    },
    /// New data; perhaps a new expiry, or none any more.
    Edit {
        post: u8,
        expiry: Option<Option<u16>>,
    },
    Retract {
        post: u8,
    },
    /// The producer has heard no answer, and publishes once more under the same key.
    Retry {
        post: u8,
    },
    /// Runs a task that waits.
    Run {
        task: u8,
    },
    /// Runs a task that ran before, once more: driven by the relay, or the very same, delivered twice.
    Replay {
        task: u8,
        driven: bool,
    },
    /// Loses a task that waits.
    Lose {
        task: u8,
    },
    /// The relay looks at everything pending.
    Relay,
    /// Time goes on.
    Advance {
        seconds: u16,
    },
    /// A client polls and, if told to, brings its copy up to date.
    Sync {
        client: u8,
    },
    /// A client takes one step of a walk over pages; it begins one if it is on none.
    Walk {
        client: u8,
        limit: u8,
    },
    /// A client marks an item of its copy.
    MarkOne {
        client: u8,
        item: u8,
        mark: Mark,
        value: bool,
    },
    /// A client marks several items of its copy.
    MarkMany {
        client: u8,
        items: u8,
        mark: Mark,
        value: bool,
    },
    /// A client marks all that it has.
    MarkThrough {
        client: u8,
        mark: Mark,
    },
    /// A revision record is evicted.
    Evict {
        viewer: u8,
    },
    /// The process ends and starts again: revisions and queue are gone. On a cluster Redis begins a new life as well.
    Restart,
}

impl Op {
    /// Whether it may put tasks into the queue.
    pub fn publishes(&self) -> bool {
        matches!(
            self,
            Self::Publish { .. } | Self::Edit { .. } | Self::Retract { .. } | Self::Retry { .. } | Self::Relay
        )
    }
}

fn mark() -> impl Strategy<Value = Mark> {
    prop::sample::select(Mark::ALL.to_vec())
}

pub fn any_op() -> impl Strategy<Value = Op> {
    prop_oneof![
        12 => (1..16_u8, prop::option::weighted(0.3, 1..900_u16))
            .prop_map(|(audience, ttl_s)| Op::Publish { audience, ttl_s }),
        20 => any::<u8>().prop_map(|task| Op::Run { task }),
        4 => Just(Op::Relay),
        3 => (1..400_u16).prop_map(|seconds| Op::Advance { seconds }),
        1 => Just(Op::Restart),
        1 => any::<u8>().prop_map(|viewer| Op::Evict { viewer }),
        40 => busy_op(),
    ]
}

/// Changes to what is there already, and clients that look.
pub fn busy_op() -> impl Strategy<Value = Op> {
    let expiry = prop::option::weighted(0.4, prop::option::of(1..600_u16));
    prop_oneof![
        2 => (1..16_u8, Just(None)).prop_map(|(audience, ttl_s)| Op::Publish { audience, ttl_s }),
        4 => (any::<u8>(), expiry).prop_map(|(post, expiry)| Op::Edit { post, expiry }),
        2 => any::<u8>().prop_map(|post| Op::Retract { post }),
        2 => any::<u8>().prop_map(|post| Op::Retry { post }),
        8 => any::<u8>().prop_map(|task| Op::Run { task }),
        3 => (any::<u8>(), any::<bool>()).prop_map(|(task, driven)| Op::Replay { task, driven }),
        1 => any::<u8>().prop_map(|task| Op::Lose { task }),
        1 => Just(Op::Relay),
        1 => (1..100_u16).prop_map(|seconds| Op::Advance { seconds }),
        8 => any::<u8>().prop_map(|client| Op::Sync { client }),
        4 => (any::<u8>(), 1..4_u8).prop_map(|(client, limit)| Op::Walk { client, limit }),
        4 => (any::<u8>(), any::<u8>(), mark(), any::<bool>())
            .prop_map(|(client, item, mark, value)| Op::MarkOne { client, item, mark, value }),
        2 => (any::<u8>(), any::<u8>(), mark(), any::<bool>())
            .prop_map(|(client, items, mark, value)| Op::MarkMany { client, items, mark, value }),
        2 => (any::<u8>(), mark()).prop_map(|(client, mark)| Op::MarkThrough { client, mark }),
    ]
}
