//! What any [`Quotas`] must do. Time is real here, so every bound allows for what has refilled meanwhile.

use std::time::{Duration, Instant};

use fanfold::domain::{Charge, Charged, Holder, KeyId, Rate, Take, Terms};
use fanfold::ports::Quotas;

use crate::viewer;
use crate::wait::eventually;

/// Runs the whole suite against the count that `$open` gives, together with what it needs to live; leaves it out if that
/// gives `None`.
#[macro_export]
macro_rules! quotas_suite {
    ($module:ident, $open:expr) => {
        mod $module {
            $crate::quotas_suite!(@each $open,
                a_burst_and_then_a_rate,
                what_is_refused_takes_nothing,
                what_is_large_goes_into_debt,
                what_comes_later_is_taken_whatever_is_left,
                what_is_given_back_is_left_again_and_no_more_than_fits,
                holders_do_not_concern_each_other,
                charges_at_once_all_count,
                a_limit_that_was_none_begins_full,
            );
        }
    };
    (@each $open:expr, $($name:ident,)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                if let Some((quotas, _needed)) = $open.await {
                    $crate::quotas::$name(&quotas).await;
                }
            }
        )*
    };
}

/// A key nobody else uses.
pub fn key() -> Holder<'static> {
    Holder::Key(KeyId::from_bytes(rand::random()))
}

pub fn take(per_s: u64, burst: u64, cost: u64) -> Option<Take> {
    Some(Take { rate: Rate { per_s, burst }, cost })
}

/// One unit of one allowance.
pub fn one(holder: Holder<'_>, per_s: u64, burst: u64) -> Charge<'_> {
    Charge { holder, takes: [take(per_s, burst, 1), None, None], terms: Terms::IfLeft }
}

async fn charge(quotas: &impl Quotas, charge: &Charge<'_>) -> Charged {
    quotas.charge(charge).await.expect("counted")
}

/// What a rate of `per_s` may have added since `began`.
fn refilled(began: Instant, per_s: f64) -> f64 {
    began.elapsed().as_secs_f64() * per_s + 0.001
}

pub async fn a_burst_and_then_a_rate(quotas: &impl Quotas) {
    let (order, began) = (one(key(), 1, 3), Instant::now());
    let mut let_in = 0.0;
    let refused = loop {
        match charge(quotas, &order).await.refused {
            None => let_in += 1.0,
            Some(refused) => break refused,
        }
    };
    assert!(let_in >= 3.0 && let_in <= 3.0 + refilled(began, 1.0), "{let_in} at once");
    assert_eq!(refused.at, 0);
    assert!(refused.wait > Duration::ZERO && refused.wait <= Duration::from_secs(1), "{refused:?}");
    // When it is time, one more is let in, and not before.
    eventually("one more is let in", async || charge(quotas, &order).await.refused.is_none()).await;
    assert!(let_in + 1.0 <= 3.0 + refilled(began, 1.0), "after {:?}", began.elapsed());
}

pub async fn what_is_refused_takes_nothing(quotas: &impl Quotas) {
    let (holder, began) = (key(), Instant::now());
    let order =
        |cost| Charge { holder, takes: [take(1, 100, 1), take(1, 50, cost), take(1, 500, 7)], terms: Terms::IfLeft };
    let first = charge(quotas, &order(1_000)).await;
    assert_eq!((first.refused, first.left), (None, [99.0, -950.0, 493.0]));
    for _ in 0..5 {
        let again = charge(quotas, &order(1)).await;
        let refused = again.refused.expect("the second allowance is in debt");
        assert_eq!(refused.at, 1);
        let more = refilled(began, 1.0);
        for (left, before) in again.left.into_iter().zip(first.left) {
            assert!(left >= before && left <= before + more, "{left} after {before}");
        }
    }
}

pub async fn what_is_large_goes_into_debt(quotas: &impl Quotas) {
    let (holder, began) = (key(), Instant::now());
    let order = |cost| Charge { holder, takes: [None, take(10, 100, cost), None], terms: Terms::IfLeft };
    let first = charge(quotas, &order(1_000)).await;
    assert_eq!((first.refused, first.left[1]), (None, -900.0), "larger than the burst, and possible");
    let refused = charge(quotas, &order(1)).await.refused.expect("in debt");
    let longest = 90.1;
    let shortest = longest - began.elapsed().as_secs_f64() - 0.001;
    assert!((shortest..=longest + 0.001).contains(&refused.wait.as_secs_f64()), "{refused:?}");
}

pub async fn what_comes_later_is_taken_whatever_is_left(quotas: &impl Quotas) {
    let (holder, began) = (key(), Instant::now());
    let order = |cost, terms| Charge { holder, takes: [take(1, 10, 0), take(1, 10, cost), None], terms };
    assert_eq!(charge(quotas, &order(10, Terms::IfLeft)).await.left[..2], [10.0, 0.0]);
    for debt in [-100.0, -200.0] {
        let charged = charge(quotas, &order(100, Terms::Anyway)).await;
        assert_eq!((charged.refused, charged.left[0]), (None, 10.0));
        assert!(charged.left[1] >= debt && charged.left[1] <= debt + refilled(began, 1.0), "{charged:?}");
    }
    assert_eq!(charge(quotas, &order(1, Terms::IfLeft)).await.refused.expect("in debt").at, 1);
}

pub async fn what_is_given_back_is_left_again_and_no_more_than_fits(quotas: &impl Quotas) {
    let (holder, began) = (key(), Instant::now());
    let order =
        |posts, rows| Charge { holder, takes: [take(1, 10, posts), take(1, 100, rows), None], terms: Terms::IfLeft };
    let back = async |rows| charge(quotas, &Charge { terms: Terms::Back, ..order(0, rows) }).await;
    let is = |left: f64, least: f64| left >= least && left <= least + refilled(began, 1.0);
    assert_eq!(charge(quotas, &order(1, 1_000)).await.left[..2], [9.0, -900.0]);
    assert!(charge(quotas, &order(1, 1)).await.refused.is_some(), "in debt");
    // All of the debt, and one has come to the burst and no further.
    let all = back(1_000).await;
    assert_eq!((all.refused, all.left[1]), (None, 100.0));
    assert!(is(all.left[0], 9.0), "{all:?}: what was not given back is as it was");
    let next = charge(quotas, &order(1, 60)).await;
    assert!(next.refused.is_none() && is(next.left[1], 40.0), "{next:?}: nobody owes anything");
    let part = back(50).await;
    assert!(is(part.left[1], 90.0) && part.left[1] <= 100.0, "{part:?}");
    for _ in 0..5 {
        assert_eq!(back(u64::MAX).await.left[1], 100.0);
    }
    // Of whom nothing is known all is left.
    let unknown = Charge { holder: key(), terms: Terms::Back, ..order(0, 1_000) };
    assert_eq!(charge(quotas, &unknown).await.left[..2], [10.0, 100.0]);
}

pub async fn holders_do_not_concern_each_other(quotas: &impl Quotas) {
    // Two keys, and two viewers of whom one is called as the first key is.
    let (id, other) = (KeyId::from_bytes(rand::random()), key());
    let (ben, namesake) = (viewer("ben"), fanfold::domain::ViewerId::parse("v", &id.to_string()).expect("valid"));
    let empty = Charge { takes: [take(1, 5, 1_000), None, None], ..one(Holder::Key(id), 1, 5) };
    assert_eq!(charge(quotas, &empty).await.refused, None);
    assert!(charge(quotas, &one(Holder::Key(id), 1, 5)).await.refused.is_some());
    for holder in [other, Holder::Viewer(&ben), Holder::Viewer(&namesake)] {
        let charged = charge(quotas, &one(holder, 1, 5)).await;
        assert_eq!((charged.refused, charged.left[0]), (None, 4.0), "{holder:?}");
    }
}

pub async fn charges_at_once_all_count(quotas: &impl Quotas) {
    let (holder, began) = (key(), Instant::now());
    let order = one(holder, 1, 10);
    let all = futures::future::join_all((0..50).map(|_| charge(quotas, &order))).await;
    let let_in = all.iter().filter(|charged| charged.refused.is_none()).count() as f64;
    assert!(let_in >= 10.0 && let_in <= 10.0 + refilled(began, 1.0), "{let_in}");
}

pub async fn a_limit_that_was_none_begins_full(quotas: &impl Quotas) {
    let holder = key();
    let order = |posts| Charge { holder, takes: [posts, take(1, 10, 1), None], terms: Terms::IfLeft };
    charge(quotas, &order(None)).await;
    assert_eq!(charge(quotas, &order(take(1, 7, 2))).await.left[0], 5.0);
}
