//! Arms in processes of their own: this same binary with another argument, so that both arms of a pair have the same
//! code, flags and allocator, and the load does not count as theirs.

use std::fs::File;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{ChildStdin, ChildStdout, Command};

use crate::measure::{Result, resident_mib};

/// How long an arm may take to end by itself.
const END_WITHIN: Duration = Duration::from_secs(30);

/// A server in a process of its own. Killed when dropped.
#[derive(Debug)]
pub struct Child {
    process: tokio::process::Child,
    questions: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
    addr: SocketAddr,
}

fn command(arguments: &[&str], log: &Path) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("arm").args(arguments).stderr(File::create(log)?).stdout(Stdio::piped()).kill_on_drop(true);
    Ok(command)
}

/// Runs an arm that answers on standard output and ends.
pub async fn run(arguments: &[&str], log: &Path) -> Result<String> {
    let output = command(arguments, log)?.stdin(Stdio::null()).output().await?;
    if !output.status.success() {
        return Err(format!("the arm {arguments:?} failed; see {}", log.display()).into());
    }
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

impl Child {
    /// Starts an arm that serves, and waits until it listens. Its log lines go to `log`.
    pub async fn start(arguments: &[&str], log: &Path) -> Result<Self> {
        Self::start_with(arguments, log, &[]).await
    }

    /// The same with more in its environment.
    pub async fn start_with(arguments: &[&str], log: &Path, settings: &[(&str, &str)]) -> Result<Self> {
        let settings = settings.iter().copied();
        let mut process = command(arguments, log)?.envs(settings).stdin(Stdio::piped()).spawn()?;
        let (questions, answers) = process.stdin.take().zip(process.stdout.take()).ok_or("an arm without pipes")?;
        let mut answers = BufReader::new(answers).lines();
        let failed = || format!("the arm {arguments:?} did not start; see {}", log.display());
        let addr = answers.next_line().await?.ok_or_else(failed)?.parse()?;
        Ok(Self { process, questions, answers, addr })
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The CPU time it has used, in microseconds. It is asked for it: /proc rounds to hundredths of a second, and of
    /// threads that have ended schedstat knows nothing.
    pub async fn cpu_us(&mut self) -> Result<f64> {
        Ok(self.ask("cpu").await?.parse()?)
    }

    /// Moves its clock, where that can be moved.
    pub async fn forward(&mut self, by: Duration) -> Result<()> {
        self.ask(&format!("forward {}", by.as_micros())).await?;
        Ok(())
    }

    /// Asks it something; it answers with its CPU time as a rule.
    pub async fn ask(&mut self, question: &str) -> Result<String> {
        self.questions.write_all(format!("{question}\n").as_bytes()).await?;
        Ok(self.answers.next_line().await?.ok_or("an arm has ended early")?)
    }

    /// Its resident memory in MiB: now, and the most it ever was.
    pub fn resident_mib(&self) -> Result<(f64, f64)> {
        resident_mib(self.process.id().ok_or("an arm has ended early")?)
    }

    /// Ends it in order.
    pub async fn stop(self) -> Result<()> {
        let Self { mut process, questions, .. } = self;
        drop(questions);
        match tokio::time::timeout(END_WITHIN, process.wait()).await {
            Ok(status) => {
                if status?.success() {
                    Ok(())
                } else {
                    Err("an arm ended with an error".into())
                }
            }
            Err(_) => Ok(process.kill().await?),
        }
    }
}
