//! What Fanfold needs from the outside: a store for the truth and for producers' keys, a queue for fan-out work,
//! revisions, a count of what quotas allow, and, where there are several processes, a place to agree on who does what.
//!
//! Each trait is a contract: `tests/contract` has a suite for it that every adapter passes. The application itself
//! dispatches over the closed enums of [`crate::adapters`], not over these traits.

pub mod control;
pub mod keys;
pub mod queue;
pub mod quotas;
pub mod revisions;
pub mod store;

pub use control::Control;
pub use keys::Keys;
pub use queue::{Delivery, Queue, Room};
pub use quotas::Quotas;
pub use revisions::{MarkBump, Revisions};
pub use store::{
    Changed, FenceEntry, Intent, KeyClaim, KeyHolder, MarkOrder, Marked, Path, Pending, PendingPage, RowsWritten,
    Settled, Store, Window,
};
