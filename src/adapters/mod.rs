//! The adapters, and one closed enum for each port. Only this file names them all.

pub mod embedded;

mod dispatch;

pub use dispatch::{Queue, Revisions, Store};
