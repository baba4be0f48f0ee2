//! The scenarios, one file each.

pub mod fairness;
pub mod fanout;
pub mod giant;
pub mod memory;
pub mod mix;
pub mod page;
pub mod poll;
pub mod poll_token;
pub mod publish;
pub mod record;
pub mod soak;
pub mod sustain;

use crate::context::Context;
use crate::findings::Findings;
use crate::measure::Result;

/// Every scenario of the canonical suite, in the order in which they run.
pub const CANONICAL: [&str; 11] =
    ["poll", "poll-token", "fanout", "page", "publish", "mix", "sustain", "giant", "fairness", "record", "memory"];

/// The one that takes minutes by design, and runs only when named.
pub const SOAK: &str = "soak";

/// Runs the scenario of that name.
pub async fn run(name: &str, context: &Context) -> Result<Findings> {
    match name {
        "poll" => poll::run(context).await,
        "poll-token" => poll_token::run(context).await,
        "fanout" => fanout::run(context).await,
        "page" => page::run(context).await,
        "publish" => publish::run(context).await,
        "mix" => mix::run(context).await,
        "sustain" => sustain::run(context).await,
        "giant" => giant::run(context).await,
        "fairness" => fairness::run(context).await,
        "record" => record::run(context).await,
        "memory" => memory::run(context).await,
        SOAK => soak::run(context).await,
        _ => Err(format!("there is no scenario {name}; there are {}, {SOAK}", CANONICAL.join(", ")).into()),
    }
}
