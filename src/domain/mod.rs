//! What Fanfold talks about: posts, audiences, inbox items, revisions, quotas. Pure: no I/O, no runtime, no wire formats.

pub mod audience;
pub mod chunk;
pub mod ids;
pub mod item;
pub mod key;
pub mod post;
pub mod quota;
pub mod revision;
pub mod time;
pub mod token;
pub mod trace;
pub mod tuning;
pub mod view;

pub use audience::Audience;
pub use chunk::{Chunk, ChunkState, Done, Lane, Task};
pub use ids::{PostId, ProducerId, ViewerId};
pub use item::{Mark, Marks, Row};
pub use key::{KeyEnd, KeyId, ProducerKey, Scope, Scopes, SecretHash};
pub use post::{Post, PostState, Withdrawal};
pub use quota::{Charge, Charged, Holder, Rate, Refused, Take, Terms};
pub use revision::{Change, Fence, Record, Revision};
pub use time::Time;
pub use token::{Cursor, Token};
pub use trace::TraceId;
pub use tuning::{Knob, ParkedChunk, Tuning, WorkerReport};
pub use view::{Counts, View, Withdrawn};
