//! The count of what quotas allow.

use std::future::Future;

use crate::domain::{Charge, Charged};
use crate::error::Result;

/// Allowances that refill, one set a holder. A holder nobody knows has them full, so they may be forgotten once they are
/// full again; forgotten early (a restart, an eviction) they let in too much once, and lose nothing.
///
/// All who use the same adapter charge the same allowances: in one process, or in all of a cluster.
pub trait Quotas {
    /// Takes all that a charge asks for if a unit is left of each allowance (or [`Charge::anyway`]), however much it
    /// asks for; else takes nothing. Charges of the same holder happen one after the other. An error says that it is not
    /// known whether anything was taken.
    fn charge(&self, charge: &Charge<'_>) -> impl Future<Output = Result<Charged>> + Send;

    /// Puts back what such a charge has taken, as far as it fits: no allowance is ever left with more than its burst. Never
    /// refused. An error says that it is not known whether anything was put back.
    fn give_back(&self, charge: &Charge<'_>) -> impl Future<Output = Result<Charged>> + Send;
}
