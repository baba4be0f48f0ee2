//! The service as a process of its own.

#![allow(dead_code, reason = "each test program uses its part")]

use std::fs::File;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use rustix::process::Signal;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::process::{Child, Command};

/// A running service.
pub struct Service {
    child: std::sync::Mutex<Child>,
    addr: String,
}

impl Service {
    /// Starts the binary on a free port, with `settings` in its environment, and waits for its banner.
    pub async fn start(data: &Path, settings: &[(&str, &str)]) -> Self {
        Self::spawn(serve(env!("CARGO_BIN_EXE_fanfold"), &[], data, settings)).await
    }

    /// The same, but no file it writes may grow beyond `file_bytes_max`: a write beyond fails, as on a full disk.
    pub async fn start_limited(data: &Path, file_bytes_max: u64, settings: &[(&str, &str)]) -> Self {
        let limit = format!("trap '' XFSZ; ulimit -f {}", file_bytes_max / 1024);
        Self::spawn(serve_after(&limit, data, settings)).await
    }

    /// The same, after a line of shell such as `ulimit`; what it logs goes to a file.
    pub async fn start_logged(shell: &str, log: &Path, data: &Path, settings: &[(&str, &str)]) -> Self {
        let mut command = serve_after(shell, data, settings);
        command.stderr(File::create(log).expect("a log file"));
        Self::spawn(command).await
    }

    /// Starts the binary and kills it without warning at that moment. Whether it had not said by then that it is ready.
    pub async fn kill_while_it_starts(data: &Path, settings: &[(&str, &str)], moment: Duration) -> bool {
        let mut command = serve(env!("CARGO_BIN_EXE_fanfold"), &[], data, settings);
        let mut child = command.spawn().expect("the binary starts");
        tokio::time::sleep(moment).await;
        child.start_kill().expect("killed");
        let mut said = String::new();
        child.stdout.take().expect("piped").read_to_string(&mut said).await.expect("readable");
        let status = child.wait().await.expect("waited");
        assert_eq!(status.signal(), Some(Signal::KILL.as_raw()), "it ended by itself: {status}");
        !said.contains("API")
    }

    async fn spawn(mut command: Command) -> Self {
        let mut child = command.spawn().expect("the binary starts");
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

    /// Waits until one that was killed is gone, and with it its hold on the folder.
    pub async fn gone(self) {
        self.child.into_inner().expect("not poisoned").wait().await.expect("waited");
    }

    /// Asks it to end, and checks that it does so in order.
    pub async fn stop(self) {
        let mut child = self.child.into_inner().expect("not poisoned");
        let pid = rustix::process::Pid::from_raw(child.id().expect("running").cast_signed()).expect("a pid");
        rustix::process::kill_process(pid, Signal::TERM).expect("signalled");
        let status = child.wait().await.expect("waited");
        assert!(status.success(), "{status}");
    }
}

/// `program`, which is or ends as the binary, with what it needs to serve on a free port. It dies with the test.
fn serve(program: &str, first: &[&str], data: &Path, settings: &[(&str, &str)]) -> Command {
    let mut command = Command::new(program);
    // Whoever runs the tests may have a service of their own.
    for name in ["FANFOLD_CONFIG", "FANFOLD_MODE"] {
        command.env_remove(name);
    }
    // Settings may ask for another log than this.
    command.env("FANFOLD_LOG", "warn,audit=off").envs(settings.iter().copied());
    command.args(first).args(["serve", "--listen", "127.0.0.1:0", "--data"]).arg(data);
    command.stdout(Stdio::piped()).kill_on_drop(true);
    command
}

/// The same after a line of shell.
fn serve_after(shell: &str, data: &Path, settings: &[(&str, &str)]) -> Command {
    let script = format!("{shell}; exec \"$0\" \"$@\"");
    serve("bash", &["-c", &script, env!("CARGO_BIN_EXE_fanfold")], data, settings)
}
