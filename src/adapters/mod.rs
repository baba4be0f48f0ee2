//! The adapters, and one closed enum for each port. Only this file names them all.

pub mod embedded;
pub mod rabbitmq;
pub mod redis;

mod dispatch;

pub use dispatch::{Queue, Revisions, Store};
