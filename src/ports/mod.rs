//! The three things Fanfold needs from the outside: a store for the truth, a queue for fan-out work, and revisions.
//!
//! Each trait is a contract: `tests/contract` has a suite for it that every adapter passes. The application itself
//! dispatches over the closed enums of [`crate::adapters`], not over these traits.

pub mod queue;
pub mod revisions;
pub mod store;

pub use queue::{Delivery, Queue};
pub use revisions::{MarkBump, Revisions};
pub use store::{
    Changed, KeyClaim, KeyHolder, MarkOrder, Marked, Path, Pending, PendingPage, RowsWritten, Settled, Store, Window,
};
