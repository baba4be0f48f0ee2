//! The adapters, and one closed enum for each port. Only this file names them all.

pub mod embedded;
pub mod rabbitmq;
pub mod redis;
pub mod scylla;

mod dispatch;
pub mod finding;
mod reads;
mod tls;

pub use dispatch::{Queue, Quotas, Revisions, Store};
pub use reads::Reads;
