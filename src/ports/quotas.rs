//! The count of what quotas allow.

use std::future::Future;

use crate::domain::{Charge, Charged};
use crate::error::Result;

/// Allowances that refill, one set a holder. A holder nobody knows has them full, so they may be forgotten once they are
/// full again; forgotten early (a restart, an eviction) they let in too much once, and lose nothing.
///
/// All who use the same adapter charge the same allowances: in one process, or in all of a cluster.
pub trait Quotas {
    /// Takes all that a charge asks for if a unit is left of each allowance, however much it asks for; else takes nothing.
    /// By its [`Terms`](crate::domain::Terms) it may take whatever is left, or put back: then it is never refused, and no
    /// allowance is ever left with more than its burst. Charges of the same holder happen one after the other. An error
    /// says that it is not known whether anything was done.
    fn charge(&self, charge: &Charge<'_>) -> impl Future<Output = Result<Charged>> + Send;
}
