//! How many connections each address has, so that one machine cannot take them all.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use metrics::counter;

/// The addresses that have connections. As many entries at most as there are connections.
#[derive(Clone, Debug)]
pub(super) struct Crowd {
    /// 0 for no limit.
    max: u32,
    present: Arc<Mutex<HashMap<IpAddr, u32>>>,
}

/// A connection's place among those of its address, until it is dropped.
#[derive(Debug)]
pub(super) struct Place(Option<(Crowd, IpAddr)>);

impl Crowd {
    /// At most `max` connections an address; 0 for no limit.
    pub(super) fn new(max: u32) -> Self {
        Self { max, present: Arc::default() }
    }

    /// A place for one connection more of `address`; `None` if it has as many as it may.
    pub(super) fn enter(&self, address: IpAddr) -> Option<Place> {
        if self.max == 0 {
            return Some(Place(None));
        }
        let address = whose(address);
        let mut present = self.present.lock().unwrap_or_else(PoisonError::into_inner);
        let count = present.entry(address).or_default();
        if *count >= self.max {
            counter!("fanfold_connections_refused_total").increment(1);
            return None;
        }
        *count += 1;
        Some(Place(Some((self.clone(), address))))
    }
}

/// Whom an address stands for. In IPv6 one customer has a whole /64 and could take a new address each time.
fn whose(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => {
            let mut segments = v6.segments();
            segments[4..].fill(0);
            IpAddr::V6(segments.into())
        }
        v4 => v4,
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let Some((crowd, address)) = &self.0 else { return };
        let mut present = crowd.present.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = present.get_mut(address) {
            *count -= 1;
            if *count == 0 {
                present.remove(address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn an_address_has_so_many_places_and_gives_them_back() {
        let crowd = Crowd::new(2);
        let (a, b) = (address("10.0.0.1"), address("10.0.0.2"));
        let first = crowd.enter(a).expect("the first");
        let _second = crowd.enter(address("::ffff:10.0.0.1")).expect("the same, written otherwise");
        assert!(crowd.enter(a).is_none());
        let _other = crowd.enter(b).expect("another address has its own");
        drop(first);
        assert!(crowd.enter(a).is_some());
        let (one, two) = (address("2001:db8::1"), address("2001:db8::2"));
        let _places = [crowd.enter(one), crowd.enter(two)];
        assert!(crowd.enter(address("2001:db8::3")).is_none(), "one customer");
        assert!(crowd.enter(address("2001:db8:0:1::1")).is_some(), "another");
    }

    #[test]
    fn nothing_is_kept_of_who_has_left_and_zero_is_no_limit() {
        let crowd = Crowd::new(1);
        drop(crowd.enter(address("10.0.0.1")));
        assert!(crowd.present.lock().expect("not poisoned").is_empty());
        let free = Crowd::new(0);
        let places: Vec<_> = (0..1_000).map(|_| free.enter(address("10.0.0.1"))).collect();
        assert!(places.iter().all(Option::is_some));
    }
}
