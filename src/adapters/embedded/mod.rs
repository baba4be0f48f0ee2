//! Everything in one process: the truth in an LSM store on disk, the queue in a channel, revisions and quotas in
//! bounded memory.

mod codec;
mod committer;
mod control;
mod folder;
mod keys;
mod memtables;
mod producer_keys;
mod queue;
mod quotas;
mod record_table;
mod revisions;
mod space;
mod store;
mod sweep;
mod tables;

pub use folder::Folder;
pub use queue::EmbeddedQueue;
pub use quotas::{EmbeddedQuotas, QuotaLimits};
pub use revisions::{EmbeddedRevisions, RevisionLimits};
pub use space::Swept;
pub use store::EmbeddedStore;
pub use tables::StoreOptions;
