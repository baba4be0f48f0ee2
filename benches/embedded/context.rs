//! What every scenario is given: sizes, places for its files, a way to say how far it is.

use std::path::{Path, PathBuf};

use fanfold::config::{Config, Overrides};
use tempfile::TempDir;

use crate::measure::Result;

/// The run as a whole.
#[derive(Clone, Debug)]
pub struct Context {
    /// Small sizes: shows that it works, measures nothing.
    pub quick: bool,
    /// Pairs of runs a comparison.
    pub pairs: usize,
    /// How long the soak goes on.
    pub minutes: f64,
    /// Where the reports go.
    pub out: PathBuf,
}

impl Context {
    /// One of two sizes.
    pub fn size<T>(&self, full: T, quick: T) -> T {
        if self.quick { quick } else { full }
    }

    /// Tells how far a scenario is.
    pub fn say(&self, scenario: &str, what: impl std::fmt::Display) {
        eprintln!("{scenario:>9}  {what}");
    }

    /// Tells which pair comes next, of how many.
    pub fn say_pair(&self, scenario: &str, number: usize) {
        self.say(scenario, format_args!("pair {} of {}", number + 1, self.pairs));
    }

    fn work(&self) -> Result<PathBuf> {
        let work = self.out.join("tmp");
        std::fs::create_dir_all(&work)?;
        Ok(work)
    }

    /// An empty folder beside the reports, so that every arm is on the same disk; gone when dropped.
    pub fn fresh_folder(&self, name: &str) -> Result<TempDir> {
        Ok(tempfile::Builder::new().prefix(&format!("{name}-")).tempdir_in(self.work()?)?)
    }

    /// Where an arm's log goes.
    pub fn log(&self, name: &str) -> Result<PathBuf> {
        Ok(self.work()?.join(format!("{name}.log")))
    }
}

/// What the environment sets, so that other settings can be measured: `FANFOLD_FANOUT__WORKERS_SMALL=8 dev/bench`.
pub fn settings() -> Vec<(String, String)> {
    let texts =
        std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    // Where the servers are is no setting of the service.
    let foreign = ["FANFOLD_TEST_", "FANFOLD_STACK_"];
    let ours = |name: &str| name.starts_with("FANFOLD_") && !foreign.iter().any(|prefix| name.starts_with(prefix));
    texts.filter(|(name, _)| ours(name)).collect()
}

/// The configuration as shipped but for [`settings`], for the data folder `data` and any free port.
pub fn config(data: &Path) -> Result<Config> {
    let listen = Some("127.0.0.1:0".parse()?);
    let overrides = Overrides { listen, data: Some(data.to_owned()), ..Overrides::default() };
    Ok(fanfold::config::load(&overrides, settings())?)
}
