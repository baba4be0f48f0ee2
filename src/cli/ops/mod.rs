//! What operators do with a cluster: these commands talk to ScyllaDB, RabbitMQ and Redis, with the settings of the
//! service itself.

pub mod doctor;
pub mod fanout;
pub mod fence;
pub mod health;
pub mod migrate;
pub mod parked;

use std::path::PathBuf;
use std::time::Duration;

use super::fault::Result;
use super::{duration, serve};
use crate::config::{Config, Mode, Overrides};
use crate::domain::Time;

/// Which cluster.
#[derive(Clone, Debug, clap::Args)]
pub struct Cluster {
    /// Configuration file to read [env: FANFOLD_CONFIG]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl Cluster {
    /// The configuration, for cluster mode whatever it says: these commands have no other.
    fn load(&self) -> Result<Config> {
        let overrides = Overrides { file: self.config.clone(), mode: Some(Mode::Cluster), ..Overrides::default() };
        let config = serve::load(&overrides)?;
        // What the drivers log before they give up is in the error that is told.
        let filter = "error,lapin=off,scylla=off".into();
        crate::telemetry::init_logging(&crate::config::Log { filter, ..config.log.clone() })?;
        Ok(config)
    }
}

/// How a change is signed.
fn operator() -> String {
    let user = std::env::var("USER").or_else(|_| std::env::var("LOGNAME")).unwrap_or_else(|_| "somebody".into());
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    format!("{user}@{host}")
}

/// How long ago, in the largest unit that says something.
fn ago(now: Time, then: Time) -> String {
    span(now.since(then))
}

fn span(time: Duration) -> String {
    match time.as_secs() {
        0..60 => format!("{:.1} s", time.as_secs_f64()),
        seconds @ 60..3600 => format!("{} min", seconds / 60),
        seconds @ 3600..172_800 => format!("{} h", seconds / 3600),
        seconds => format!("{} d", seconds / 86_400),
    }
}
