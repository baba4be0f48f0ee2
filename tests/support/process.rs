//! The service as a process of its own.

#![allow(dead_code, reason = "each test program uses its part")]

use std::path::Path;
use std::process::Stdio;

use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};

/// A running service.
pub struct Service {
    child: std::sync::Mutex<Child>,
    addr: String,
}

impl Service {
    /// Starts the binary on a free port, with `settings` in its environment, and waits for its banner.
    pub async fn start(data: &Path, settings: &[(&str, &str)]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_fanfold"));
        command.envs(settings.iter().copied());
        Self::spawn(command, data).await
    }

    /// The same, but no file it writes may grow beyond `file_bytes_max`: a write beyond fails, as on a full disk.
    pub async fn start_limited(data: &Path, file_bytes_max: u64, settings: &[(&str, &str)]) -> Self {
        let mut command = Command::new("bash");
        command.envs(settings.iter().copied());
        let script = format!("trap '' XFSZ; ulimit -f {}; exec \"$0\" \"$@\"", file_bytes_max / 1024);
        command.args(["-c", &script, env!("CARGO_BIN_EXE_fanfold")]);
        Self::spawn(command, data).await
    }

    async fn spawn(mut command: Command, data: &Path) -> Self {
        let mut child = command
            .args(["serve", "--listen", "127.0.0.1:0", "--log", "warn", "--data"])
            .arg(data)
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("the binary starts");
        let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        loop {
            let line = lines.next_line().await.expect("readable").expect("the service ended before it was ready");
            if let Some(url) = line.trim().strip_prefix("API") {
                let addr = url.trim().trim_start_matches("http://").to_owned();
                // Whatever it prints later must find a reader, or the pipe would fill up or break.
                tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
                return Self { child: std::sync::Mutex::new(child), addr };
            }
        }
    }

    /// Where its API is.
    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.lock().expect("not poisoned").id().expect("running")
    }

    /// Ends it without warning.
    pub fn kill(&self) {
        self.child.lock().expect("not poisoned").start_kill().expect("killed");
    }

    /// Asks it to end, and checks that it does so in order.
    pub async fn stop(self) {
        let mut child = self.child.into_inner().expect("not poisoned");
        let pid = rustix::process::Pid::from_raw(child.id().expect("running").cast_signed()).expect("a pid");
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("signalled");
        assert!(child.wait().await.expect("waited").success());
    }
}
