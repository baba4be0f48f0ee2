//! The timer behind the limit on reading a request's head: one a connection, and moved seldom.
//!
//! hyper asks for a new timer before every request and drops it as soon as the head is there. Each would be put into the
//! runtime's timers and taken out again, under their lock, for a limit that hardly any request comes near. Here a
//! connection keeps one timer: it is left where it is while the limit moves on, and moved only when it goes off early.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use hyper::rt::{Sleep, Timer};

type Kept = Arc<Mutex<Option<Pin<Box<tokio::time::Sleep>>>>>;

/// The timers of one connection.
#[derive(Debug, Default)]
pub(super) struct HeadTimer(Kept);

impl Timer for HeadTimer {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Sleep>> {
        self.sleep_until(Instant::now() + duration)
    }

    fn sleep_until(&self, deadline: Instant) -> Pin<Box<dyn Sleep>> {
        Box::pin(Limit { deadline: deadline.into(), kept: Arc::clone(&self.0) })
    }
}

/// One limit: over at its deadline, whatever the kept timer stands at.
struct Limit {
    deadline: tokio::time::Instant,
    kept: Kept,
}

impl Sleep for Limit {}

impl Future for Limit {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        // What a panic would leave behind is a timer like any other.
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let timer = kept.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(self.deadline)));
        if timer.deadline() > self.deadline {
            timer.as_mut().reset(self.deadline);
        }
        loop {
            ready!(timer.as_mut().poll(context));
            if timer.deadline() >= self.deadline {
                return Poll::Ready(());
            }
            timer.as_mut().reset(self.deadline);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_later_limit_is_not_over_when_the_timer_goes_off_for_an_earlier_one() {
        let timer = HeadTimer::default();
        let mut earlier = timer.sleep(Duration::from_millis(20));
        assert!(futures::poll!(earlier.as_mut()).is_pending());
        drop(earlier);
        let deadline = Instant::now() + Duration::from_millis(60);
        timer.sleep_until(deadline).await;
        assert!(Instant::now() >= deadline);
    }

    #[tokio::test]
    async fn an_earlier_limit_does_not_wait_for_the_timer_of_a_later_one() {
        let timer = HeadTimer::default();
        let mut later = timer.sleep(Duration::from_secs(3_600));
        assert!(futures::poll!(later.as_mut()).is_pending());
        drop(later);
        timer.sleep(Duration::from_millis(20)).await;
        // Over once, over for the next one too only when its own time is up.
        let deadline = Instant::now() + Duration::from_millis(20);
        timer.sleep_until(deadline).await;
        assert!(Instant::now() >= deadline);
    }
}
