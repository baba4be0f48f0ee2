//! What time it is by the store: the one clock that all processes have in common. In which minute an entry lies, and which
//! minutes are over, goes by it: whoever judged by a clock of its own that is ahead would look into the present ones no
//! more.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use metrics::gauge;
use tracing::{info, warn};

use super::lock;
use super::options::ScyllaOptions;
use super::session::Requests;
use super::statements::Statements;
use crate::clock::Clock;
use crate::domain::Time;
use crate::error::{Error, Result};

/// How long an answer is gone by before the store is asked again; the monotonic clock goes well for so long.
const ASK_EVERY: Duration = Duration::from_secs(10);
/// A clock that has gone on by so much more or less than the monotonic one was set, or the machine was asleep.
const STEP_MAX: Duration = Duration::from_secs(1);
/// A process whose clock differs from the store's by more says so. Half of what minutes allow for.
const SKEW_MAX: Duration = Duration::from_secs(5 * 60);
/// Answers that are remembered: whichever node of the store has made them, one of them is right.
const KEPT: usize = 16;
/// Answers to have before our own clock is taken for wrong.
const ANSWERS_MIN: usize = 3;

/// How two clocks differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Skew {
    /// By how much.
    pub by: Duration,
    /// The first one is ahead.
    pub ahead: bool,
}

impl Skew {
    /// Of a clock that said `before` and `after` while the other said `there`, to the millisecond.
    pub fn between(before: Time, there: Time, after: Time) -> Self {
        let (ahead, behind) = (before.before(Duration::from_millis(1)).since(there), there.since(after));
        Self { by: ahead.max(behind), ahead: ahead > behind }
    }
}

/// The store's clock, asked now and then.
#[derive(Debug)]
pub struct StoreClock {
    own: Clock,
    /// What stands for the store's clock in a test.
    given: Option<Clock>,
    /// The newest last.
    answers: Mutex<VecDeque<Answer>>,
    warned: AtomicBool,
}

#[derive(Clone, Copy, Debug)]
struct Answer {
    there: Time,
    at: Instant,
    own: Time,
}

impl Answer {
    fn now(&self) -> Time {
        self.there.after(self.at.elapsed())
    }

    fn skew(&self, own: Time) -> Skew {
        Skew::between(own, self.now(), own)
    }

    /// Our own clock has gone on since as the monotonic one did.
    fn is_steady(&self, own: Time) -> bool {
        let expected = self.own.after(self.at.elapsed());
        Skew::between(own, expected, own).by < STEP_MAX
    }
}

impl StoreClock {
    /// Not asked yet.
    pub fn new(options: &ScyllaOptions) -> Self {
        let (own, given) = (options.clock.clone(), options.store_clock.clone());
        Self { own, given, answers: Mutex::default(), warned: AtomicBool::new(false) }
    }

    /// What time it is. Where the store cannot be asked now, its last answers go on.
    pub async fn now(&self, requests: &Requests, statements: &Statements) -> Result<Time> {
        if let Some(given) = &self.given {
            return Ok(given.now());
        }
        let mut asked = false;
        while self.wants_answer() {
            asked = true;
            match self.ask(requests, statements).await {
                Ok(answer) => self.keep(answer),
                Err(error) if lock(&self.answers).is_empty() => return Err(error),
                Err(_) => break,
            }
        }
        let best = best(&lock(&self.answers), self.own.now());
        let best = best.ok_or_else(|| Error::unavailable("store_unavailable", "the store does not tell the time"))?;
        if asked {
            self.tell(best.skew(self.own.now()));
        }
        Ok(best.now())
    }

    /// Nothing is known, it is old, or it says that our own clock is wrong, which a single node must not decide.
    fn wants_answer(&self) -> bool {
        let (mut answers, own) = (lock(&self.answers), self.own.now());
        let Some(last) = answers.back() else { return true };
        if !last.is_steady(own) {
            answers.clear();
            return true;
        }
        let doubtful = answers.len() < ANSWERS_MIN && best(&answers, own).is_some_and(|a| a.skew(own).by > SKEW_MAX);
        doubtful || last.at.elapsed() >= ASK_EVERY
    }

    /// The answer was made somewhere between question and receipt: taken for the time of the receipt it is early, if
    /// anything, and nothing is over before its time.
    async fn ask(&self, requests: &Requests, statements: &Statements) -> Result<Answer> {
        let found = requests.select::<(i64,)>(&statements.store_now, ()).await?;
        let (there,) = found.first().ok_or_else(|| Error::internal("the store does not know what time it is"))?;
        Ok(Answer { there: Time::from_millis(*there), at: Instant::now(), own: self.own.now() })
    }

    fn keep(&self, answer: Answer) {
        let mut answers = lock(&self.answers);
        answers.push_back(answer);
        if answers.len() > KEPT {
            answers.pop_front();
        }
    }

    fn tell(&self, skew: Skew) {
        let seconds = skew.by.as_secs_f64();
        gauge!("fanfold_clock_skew_seconds").set(if skew.ahead { seconds } else { -seconds });
        let far = skew.by > SKEW_MAX;
        match (far, self.warned.swap(far, Ordering::Relaxed)) {
            (true, false) => warn!(
                by = ?skew.by,
                ahead = skew.ahead,
                "the clock of this machine and the store's differ by minutes: run NTP on both"
            ),
            (false, true) => info!("the clock of this machine and the store's agree again"),
            _ => {}
        }
    }
}

/// The answer that agrees best with our own clock: a node of the store whose clock is wrong decides nothing as long as
/// ours is right, and ours decides nothing once all nodes say otherwise.
fn best(answers: &VecDeque<Answer>, own: Time) -> Option<Answer> {
    answers.iter().min_by_key(|answer| answer.skew(own).by).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    #[test]
    fn a_skew_says_which_clock_is_ahead() {
        let at = Time::from_millis;
        let skew = |before, there, after| Skew::between(at(before), at(there), at(after));
        assert_eq!(skew(1_000, 1_005, 1_010).by, Duration::ZERO, "somewhere in between");
        assert_eq!(skew(1_000, 999, 1_010).by, Duration::ZERO, "milliseconds are cut off");
        assert_eq!(skew(5_001, 1_000, 5_010), Skew { by: Duration::from_secs(4), ahead: true });
        assert_eq!(skew(1_000, 5_000, 1_000), Skew { by: Duration::from_secs(4), ahead: false });
    }

    #[test]
    fn one_wrong_clock_decides_nothing() {
        let own = Time::from_millis(1_000_000_000);
        let says = |there| Answer { there, at: Instant::now(), own };
        let off_by = |answers: &[Time]| best(&answers.iter().map(|t| says(*t)).collect(), own).map(|a| a.skew(own).by);
        assert_eq!(off_by(&[]), None);
        assert!(off_by(&[own.after(HOUR), own, own.before(HOUR)]) < Some(STEP_MAX), "two nodes are wrong");
        let off = off_by(&[own.after(HOUR), own.after(HOUR)]).expect("an answer");
        assert!(off > HOUR - STEP_MAX, "ours is");
    }

    #[test]
    fn answers_are_forgotten_when_our_clock_was_set_or_stood_still() {
        let own = Time::from_millis(1_000_000_000);
        let answer = Answer { there: Time::ZERO, at: Instant::now(), own };
        assert!(answer.is_steady(own));
        assert!(!answer.is_steady(own.after(HOUR)), "asleep, or set");
        assert!(!answer.is_steady(own.before(HOUR)), "set back");
    }
}
