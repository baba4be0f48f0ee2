//! How many tasks wait in a lane's queues, as far as this process knows: what the broker told last, and what went there
//! from here since.
//!
//! Whoever publishes does not wait to have it told again, for a broker that others keep busy takes its time: it goes by what
//! is known while somebody asks. Unless nothing is known but what is old, or a queue may be full and the others have no room
//! for all that is published.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures::future::try_join_all;
use tokio::sync::Mutex as Turn;

use super::fair;
use crate::domain::Lane;
use crate::error::Result;

/// How long a depth is taken as it was told.
const AGE: Duration = Duration::from_millis(500);
/// How long it is gone by while the broker is asked again.
const AGE_MAX: Duration = Duration::from_secs(2);
/// A queue that was full is asked again after this.
const AGE_FULL: Duration = Duration::from_millis(1);
/// The quiet one, where it is passed over because of what went there since: soon, but not at every post.
const AGE_PASSED_OVER: Duration = Duration::from_millis(50);

/// What is known of the queues of both lanes.
#[derive(Debug)]
pub struct Depths([Vec<Depth>; 2]);

#[derive(Debug, Default)]
struct Depth {
    known: Mutex<Known>,
    /// Of who asks: one at a time.
    turn: Arc<Turn<()>>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Known {
    waiting: u64,
    told: Option<Instant>,
}

/// What a depth is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Use {
    AsItIs,
    WhileAsked,
    /// It was full a moment ago.
    Full,
    Nothing,
}

impl Known {
    /// `enough` is how many may wait for the number to be believed: beyond it they may be fewer by now.
    fn good_for(&self, enough: u64, quiet: bool, now: Instant) -> Use {
        let Some(told) = self.told else { return Use::Nothing };
        let age = now.saturating_duration_since(told);
        let full = self.waiting > enough;
        let soon = if quiet && self.waiting > fair::QUIET_AHEAD { AGE_PASSED_OVER } else { AGE };
        match age {
            age if age > AGE_MAX => Use::Nothing,
            age if full && age > AGE_FULL => Use::Full,
            _ if full => Use::AsItIs,
            age if age > soon => Use::WhileAsked,
            _ => Use::AsItIs,
        }
    }

    /// What the broker has told. What has gone there while it was asked it has counted, but for the last few.
    fn tell(&mut self, waiting: u64, now: Instant) {
        (self.waiting, self.told) = (waiting, Some(now));
    }
}

/// Who can ask the broker for a queue's depth.
pub trait Broker: Send + Sync + 'static {
    /// Messages ready in queue `number` of a lane.
    fn depth(&self, lane: Lane, number: usize) -> impl Future<Output = Result<u64>> + Send;

    /// What is known through it.
    fn depths(&self) -> &Depths;

    /// By which depths grow old.
    fn now(&self) -> Instant {
        Instant::now()
    }
}

impl Depths {
    /// Of so many queues a lane, of which nothing is known.
    pub fn new(queues: usize) -> Self {
        let unknown = || (0..queues).map(|_| Depth::default()).collect();
        Self([unknown(), unknown()])
    }

    /// Up to `wanted` places in some of a lane's queues, no more than `share` in each. Others publish too, and do not hear of
    /// it at once: a queue may get more than its share, and the limit that the broker knows refuses what is beyond the lane's.
    pub async fn reserve<B: Broker>(
        broker: &Arc<B>,
        lane: Lane,
        queues: &[usize],
        share: u64,
        wanted: usize,
    ) -> Result<Vec<usize>> {
        // Each to have room for its part of what is wanted: none is found short while the others would do.
        let enough = share.saturating_sub(wanted.div_ceil(queues.len().max(1)) as u64);
        let good_for =
            |queue: usize| broker.depths().of(lane, queue).known().good_for(enough, queue == fair::QUIET, broker.now());
        let (mut full, mut unknown, mut others) = (Vec::new(), Vec::new(), Vec::new());
        for queue in queues.iter().copied() {
            match good_for(queue) {
                Use::AsItIs => others.push(queue),
                Use::WhileAsked => {
                    ask_behind(broker, lane, queue);
                    others.push(queue);
                }
                Use::Full => full.push(queue),
                Use::Nothing => unknown.push(queue),
            }
        }
        if unknown.is_empty() && !full.is_empty() && broker.depths().room(lane, &others, share) >= wanted as u64 {
            full.into_iter().for_each(|queue| ask_behind(broker, lane, queue));
            return Ok(broker.depths().deal(lane, &others, share, wanted));
        }
        unknown.append(&mut full);
        try_join_all(unknown.into_iter().map(|queue| ask(&**broker, lane, queue, enough))).await?;
        Ok(broker.depths().deal(lane, queues, share, wanted))
    }

    /// What is left of `share` in each of some of a lane's queues, together.
    fn room(&self, lane: Lane, queues: &[usize], share: u64) -> u64 {
        queues.iter().map(|queue| share.saturating_sub(self.of(lane, *queue).known().waiting)).sum()
    }

    /// How many wait in each of some of a lane's queues, told lately.
    pub async fn waiting<B: Broker>(broker: &B, lane: Lane, queues: &[usize], enough: u64) -> Result<Vec<u64>> {
        let mut waiting = Vec::with_capacity(queues.len());
        for queue in queues {
            let depth = broker.depths().of(lane, *queue);
            if depth.known().good_for(enough, false, broker.now()) != Use::AsItIs {
                ask(broker, lane, *queue, enough).await?;
            }
            waiting.push(depth.known().waiting);
        }
        Ok(waiting)
    }

    fn deal(&self, lane: Lane, queues: &[usize], share: u64, wanted: usize) -> Vec<usize> {
        // In the same order everywhere, so that no two wait for each other.
        let mut order = queues.to_vec();
        order.sort_unstable();
        order.dedup();
        let mut known: Vec<_> = order.iter().map(|queue| (*queue, self.of(lane, *queue).known())).collect();
        let waiting = |queue: usize| known.iter().find(|(at, _)| *at == queue).map_or(0, |(_, known)| known.waiting);
        let mut open: Vec<(usize, u64)> = queues.iter().map(|queue| (*queue, waiting(*queue))).collect();
        let places = fair::deal(&mut open, share, wanted);
        for (queue, known) in &mut known {
            known.waiting += places.iter().filter(|place| *place == queue).count() as u64;
        }
        places
    }

    fn of(&self, lane: Lane, queue: usize) -> &Depth {
        &self.0[lane as usize][queue]
    }
}

impl Depth {
    fn known(&self) -> MutexGuard<'_, Known> {
        // Nothing in the critical sections panics.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Asks, unless somebody else has while this one waited for its turn.
async fn ask<B: Broker>(broker: &B, lane: Lane, queue: usize, enough: u64) -> Result<()> {
    let depth = broker.depths().of(lane, queue);
    let _turn = depth.turn.lock().await;
    let good_for = depth.known().good_for(enough, false, broker.now());
    if good_for == Use::AsItIs { Ok(()) } else { ask_now(broker, lane, queue).await }
}

/// Has somebody ask, unless somebody does.
fn ask_behind<B: Broker>(broker: &Arc<B>, lane: Lane, queue: usize) {
    let turn = Arc::clone(&broker.depths().of(lane, queue).turn).try_lock_owned();
    let (Ok(turn), broker) = (turn, Arc::clone(broker)) else { return };
    tokio::spawn(async move {
        // Whoever publishes finds out for itself that the broker is gone.
        if let Err(error) = ask_now(&*broker, lane, queue).await {
            tracing::debug!(%error, lane = lane.name(), queue, "the broker does not tell a queue's depth");
        }
        drop(turn);
    });
}

async fn ask_now<B: Broker>(broker: &B, lane: Lane, queue: usize) -> Result<()> {
    let waiting = broker.depth(lane, queue).await?;
    broker.depths().of(lane, queue).known().tell(waiting, broker.now());
    Ok(())
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;
    use tokio::sync::watch;

    use super::*;

    const SHARE: u64 = 100;
    /// A producer's own two queues.
    const OWN: usize = 3;
    const OTHER: usize = 5;

    /// Tells what it is told to tell, once it does.
    struct Told {
        depths: Depths,
        answers: watch::Sender<Option<u64>>,
        now: Mutex<Instant>,
    }

    impl Told {
        fn new(answer: Option<u64>) -> Arc<Self> {
            let now = Mutex::new(Instant::now());
            Arc::new(Self { depths: Depths::new(8), answers: watch::Sender::new(answer), now })
        }

        fn pass(&self, time: Duration) {
            *self.now.lock().expect("nothing panics with it") += time;
        }
    }

    impl Broker for Told {
        async fn depth(&self, _: Lane, _: usize) -> Result<u64> {
            let mut answers = self.answers.subscribe();
            let told = answers.wait_for(Option::is_some).await.map(|told| told.unwrap_or_default());
            told.map_err(|_| crate::error::Error::internal("the sender is in `self`"))
        }

        fn depths(&self) -> &Depths {
            &self.depths
        }

        fn now(&self) -> Instant {
            *self.now.lock().expect("nothing panics with it")
        }
    }

    async fn reserve(broker: &Arc<Told>, queues: &[usize]) -> Result<Vec<usize>> {
        Depths::reserve(broker, Lane::Small, queues, SHARE, 1).await
    }

    #[tokio::test]
    async fn nobody_waits_for_a_depth_that_is_not_too_old() {
        let broker = Told::new(None);
        assert!(reserve(&broker, &[OWN]).now_or_never().is_none(), "nothing is known");
        broker.answers.send_replace(Some(7));
        assert_eq!(reserve(&broker, &[OWN]).await.expect("told"), [OWN]);
        broker.answers.send_replace(None);
        broker.pass(AGE * 2);
        for _ in 0..3 {
            assert_eq!(reserve(&broker, &[OWN]).now_or_never().expect("goes by what is known").expect("room"), [OWN]);
        }
        // Whoever asks has asked before any of what comes next.
        tokio::task::yield_now().await;
        broker.answers.send_replace(Some(20));
        let depth = || *broker.depths.of(Lane::Small, OWN).known();
        while depth().waiting != 20 {
            tokio::task::yield_now().await;
        }
        broker.answers.send_replace(None);
        broker.pass(AGE_MAX * 2);
        assert!(reserve(&broker, &[OWN]).now_or_never().is_none(), "too old");
    }

    #[tokio::test]
    async fn a_full_queue_is_asked_again() {
        let broker = Told::new(Some(SHARE));
        assert_eq!(reserve(&broker, &[OWN]).await.expect("told"), [0_usize; 0]);
        broker.answers.send_replace(Some(SHARE - 1));
        broker.pass(AGE_FULL * 2);
        assert_eq!(reserve(&broker, &[OWN]).await.expect("told"), [OWN]);
        // Whether it goes by its count or asks again.
        broker.answers.send_replace(Some(SHARE));
        assert_eq!(reserve(&broker, &[OWN]).await.expect("told"), [0_usize; 0], "as many as it holds");
        broker.answers.send_replace(Some(0));
        let waiting = Depths::waiting(&*broker, Lane::Small, &[OWN, OTHER], SHARE - 1).await.expect("told");
        assert_eq!(waiting.len(), 2);
        assert_eq!(waiting[1], 0);
    }

    #[tokio::test]
    async fn nobody_waits_for_the_depth_of_a_full_queue_while_others_have_room() {
        let broker = Told::new(Some(SHARE));
        assert_eq!(reserve(&broker, &[OWN]).await.expect("told"), [0_usize; 0]);
        broker.answers.send_replace(Some(0));
        assert_eq!(reserve(&broker, &[OTHER, fair::QUIET]).await.expect("told"), [OTHER]);
        broker.answers.send_replace(None);
        broker.pass(AGE_FULL * 2);
        let at_once = |queues: &[usize]| reserve(&broker, queues).now_or_never().map(|places| places.expect("room"));
        assert_eq!(at_once(&[OWN, OTHER]), Some(vec![OTHER]));
        assert_eq!(at_once(&[fair::QUIET, OWN]), Some(vec![fair::QUIET]));
        assert_eq!(at_once(&[OWN]), None, "it may have room by now");
        broker.pass(AGE_MAX * 2);
        broker.answers.send_replace(Some(0));
        assert_eq!(reserve(&broker, &[OTHER]).await.expect("told"), [OTHER]);
        broker.answers.send_replace(None);
        assert_eq!(at_once(&[fair::QUIET, OTHER]), None, "a flood may be in the one that is known");
    }

    #[test]
    fn what_went_to_the_quiet_queue_is_not_counted_for_long() {
        let now = Instant::now();
        let known = |waiting| Known { waiting, told: Some(now) };
        let at = |waiting, quiet, age| known(waiting).good_for(SHARE, quiet, now + age);
        assert_eq!(at(fair::QUIET_AHEAD + 1, true, AGE_PASSED_OVER * 2), Use::WhileAsked);
        assert_eq!(at(fair::QUIET_AHEAD, true, AGE_PASSED_OVER * 2), Use::AsItIs);
        assert_eq!(at(fair::QUIET_AHEAD + 1, false, AGE_PASSED_OVER * 2), Use::AsItIs, "the others as long as ever");
        assert_eq!(at(0, false, AGE * 2), Use::WhileAsked);
        assert_eq!(at(0, false, AGE_MAX * 2), Use::Nothing);
    }
}
