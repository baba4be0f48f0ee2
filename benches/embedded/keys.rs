//! Producers' keys, for a scenario in which producers are told apart.

use fanfold::access::{NewKey, parse_scopes};
use fanfold::config::Config;

use crate::measure::Result;

/// The keys of a service: of two producers, who may publish and no more, and of the benchmark itself.
#[derive(Clone, Debug)]
pub struct Keys {
    /// Of the producer `small`.
    pub small: String,
    /// Of the producer `flood`.
    pub flood: String,
    /// With it every viewer's inbox can be read, and every metric.
    pub all_seeing: String,
}

impl Keys {
    /// Makes them in the store of `config`, for a service that does not run yet.
    pub async fn make(config: &Config) -> Result<Self> {
        let book = fanfold::service::open_keys(config).await?;
        let make = async |name: &str, scopes: &[&str]| -> Result<String> {
            let scopes = parse_scopes(scopes.iter().copied())?;
            let order = NewKey { name: name.to_owned(), producer: None, scopes, ttl: None };
            Ok(book.create(&order).await?.text.reveal())
        };
        Ok(Self {
            small: make("small", &["publish"]).await?,
            flood: make("flood", &["publish"]).await?,
            all_seeing: make("bench", &["read", "viewers", "metrics"]).await?,
        })
    }
}
