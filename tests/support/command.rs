//! The binaries as commands: their environment tells them where the servers are, and all else. A program with this
//! module has the module `wait` beside it.

#![allow(dead_code, reason = "each test program uses its part")]

use std::ffi::OsStr;
use std::process::Stdio;

use tokio::process::Command;

use crate::wait::PATIENCE;

pub const CLI: &str = env!("CARGO_BIN_EXE_fanfold");
pub const FANOUT: &str = env!("CARGO_BIN_EXE_fanfold-fanout");
pub const RELAY: &str = env!("CARGO_BIN_EXE_fanfold-relay");

/// For those that get by on the defaults, or are told all by their arguments.
pub const NO_SETTINGS: [(&str, &str); 0] = [];

/// What a command has said, and how it ended.
#[derive(Debug)]
pub struct Told {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

/// A program with `settings`, and with nothing else of this process's environment that concerns it: whoever runs the
/// tests may have a service of their own. It dies with the test.
pub fn command(
    program: &str,
    args: impl IntoIterator<Item = impl AsRef<OsStr>>,
    settings: impl IntoIterator<Item = (impl AsRef<OsStr>, impl AsRef<OsStr>)>,
) -> Command {
    let mut command = Command::from(std_command(program, args, settings));
    command.kill_on_drop(true);
    command
}

/// The same for tests that run it without a runtime. Nothing ends it but the test itself.
pub fn std_command(
    program: &str,
    args: impl IntoIterator<Item = impl AsRef<OsStr>>,
    settings: impl IntoIterator<Item = (impl AsRef<OsStr>, impl AsRef<OsStr>)>,
) -> std::process::Command {
    let mut command = std::process::Command::new(program);
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("FANFOLD_")) {
        command.env_remove(name);
    }
    command.args(args).envs(settings).env("NO_COLOR", "1").stdin(Stdio::null());
    command
}

/// Runs it to its end.
pub async fn run(
    program: &str,
    args: &[&str],
    settings: impl IntoIterator<Item = (impl AsRef<OsStr>, impl AsRef<OsStr>)>,
) -> Told {
    let ended = tokio::time::timeout(PATIENCE, command(program, args, settings).output());
    let output = ended.await.unwrap_or_else(|_| panic!("{args:?} does not end")).expect("the binary runs");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
    Told { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
}

impl Told {
    /// It ended with `code`, and said each of `words`.
    pub fn check(&self, code: i32, words: &[&str]) {
        assert_eq!(self.code, Some(code), "{self:?}");
        for word in words {
            assert!(self.out.contains(word) || self.err.contains(word), "{word:?} is missing in {self:?}");
        }
    }
}
