//! The real binaries, each under a supervisor that starts it again when it has died.

use std::collections::VecDeque;
use std::fs::OpenOptions;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;

use crate::stack::free_port;
use crate::{Outcome, until};

/// Between the end of a process and its next start.
const RESTART_AFTER: Duration = Duration::from_millis(200);

/// What a process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Api,
    Fanout,
    Relay,
}

impl Role {
    fn binary(self) -> &'static str {
        match self {
            Self::Api => env!("CARGO_BIN_EXE_fanfold"),
            Self::Fanout => env!("CARGO_BIN_EXE_fanfold-fanout"),
            Self::Relay => env!("CARGO_BIN_EXE_fanfold-relay"),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Api => "api",
            Self::Fanout => "fanout",
            Self::Relay => "relay",
        }
    }
}

/// How to start a process.
#[derive(Clone, Debug)]
pub struct Spec {
    pub role: Role,
    pub number: usize,
    /// Settings beyond those of all.
    pub env: Vec<(String, String)>,
    /// The fault it is armed with at each start, one after the other; then none.
    pub arms: Vec<String>,
    pub folder: PathBuf,
}

impl Spec {
    fn log(&self) -> PathBuf {
        self.folder.join(format!("{}-{}.log", self.role.name(), self.number))
    }
}

/// A supervised process.
pub struct Process {
    pub name: String,
    pub port: u16,
    shared: Arc<Shared>,
    supervisor: JoinHandle<()>,
}

struct Shared {
    spec: Spec,
    port: u16,
    pid: AtomicU32,
    /// How often it was killed.
    killed: AtomicUsize,
    arms: Mutex<VecDeque<String>>,
    ending: AtomicBool,
    /// Ends that nobody caused.
    strange: Mutex<Vec<String>>,
}

impl Process {
    pub fn start(spec: Spec) -> Outcome<Self> {
        let name = format!("{}-{}", spec.role.name(), spec.number);
        let port = free_port()?;
        let shared = Arc::new(Shared {
            port,
            pid: AtomicU32::new(0),
            killed: AtomicUsize::new(0),
            arms: Mutex::new(spec.arms.iter().cloned().collect()),
            ending: AtomicBool::new(false),
            strange: Mutex::default(),
            spec,
        });
        let child = shared.spawn()?;
        let supervisor = tokio::spawn(supervise(Arc::clone(&shared), child));
        Ok(Self { name, port, shared, supervisor })
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Waits until it says that it is ready.
    pub async fn ready(&self, client: &reqwest::Client) -> Outcome<()> {
        let url = format!("{}/readyz", self.url());
        until(&format!("{} is ready", self.name), Duration::from_secs(60), async || {
            client.get(&url).send().await.is_ok_and(|answer| answer.status().is_success())
        })
        .await
    }

    /// How often it was killed, by a fault or by [`Process::kill`].
    pub fn killed(&self) -> usize {
        self.shared.killed.load(Ordering::SeqCst)
    }

    pub fn signal(&self, signal: Signal) -> Outcome<()> {
        let pid = self.shared.pid.load(Ordering::SeqCst);
        let pid = Pid::from_raw(pid.cast_signed()).ok_or("a process that does not run cannot be signalled")?;
        kill_process(pid, signal).map_err(|error| format!("{}: {error}", self.name))
    }

    /// Whether a fault, or somebody else, has stopped it.
    pub fn is_stopped(&self) -> bool {
        let pid = self.shared.pid.load(Ordering::SeqCst);
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // The state follows the command's name, which stands in brackets.
        stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with('T'))
    }

    /// Waits until a fault has stopped it.
    pub async fn stopped(&self) -> Outcome<()> {
        until(&format!("{} is stopped", self.name), Duration::from_secs(40), async || self.is_stopped()).await
    }

    /// Waits until it has been killed so many times.
    pub async fn killed_times(&self, times: usize) -> Outcome<()> {
        let what = format!("{} is killed {times} times", self.name);
        until(&what, Duration::from_secs(60), async || self.killed() >= times).await
    }

    /// Whether it has logged this.
    pub fn has_logged(&self, what: &str) -> bool {
        std::fs::read_to_string(self.shared.spec.log()).is_ok_and(|log| log.contains(what))
    }

    /// Ends that nobody caused.
    pub fn strange(&self) -> Vec<String> {
        self.shared.strange.lock().expect("not poisoned").clone()
    }

    pub async fn end(self) {
        self.shared.ending.store(true, Ordering::SeqCst);
        let _ = self.signal(Signal::KILL);
        let _ = self.supervisor.await;
    }
}

impl Shared {
    fn spawn(&self) -> Outcome<Child> {
        let spec = &self.spec;
        let file = spec.log();
        let log = OpenOptions::new().create(true).append(true).open(&file);
        let log = log.map_err(|error| format!("{}: {error}", file.display()))?;
        let out = log.try_clone().map_err(|error| format!("{}: {error}", file.display()))?;
        let mut command = Command::new(spec.role.binary());
        if spec.role == Role::Api {
            command.args(["serve", "--mode", "cluster"]);
        }
        command.args(["--listen", &format!("127.0.0.1:{}", self.port), "--wait-for", "60s"]);
        command.env_remove("FANFOLD_TEST_FAULT").env("NO_COLOR", "1");
        command.envs(spec.env.iter().map(|(name, value)| (name, value)));
        if let Some(arm) = self.arms.lock().expect("not poisoned").pop_front() {
            command.env("FANFOLD_TEST_FAULT", arm);
        }
        command.stdin(Stdio::null()).stdout(out).stderr(log).kill_on_drop(true);
        let child = command.spawn().map_err(|error| format!("{}: {error}", spec.role.binary()))?;
        self.pid.store(child.id().unwrap_or(0), Ordering::SeqCst);
        Ok(child)
    }

    fn note(&self, status: Option<ExitStatus>) {
        use std::os::unix::process::ExitStatusExt as _;
        self.pid.store(0, Ordering::SeqCst);
        if status.and_then(|status| status.signal()) == Some(Signal::KILL.as_raw()) {
            self.killed.fetch_add(1, Ordering::SeqCst);
        } else {
            let told = format!("{}-{} ended by itself: {status:?}", self.spec.role.name(), self.spec.number);
            self.strange.lock().expect("not poisoned").push(told);
        }
    }
}

async fn supervise(shared: Arc<Shared>, mut child: Child) {
    loop {
        let status = child.wait().await.ok();
        if shared.ending.load(Ordering::SeqCst) {
            return;
        }
        shared.note(status);
        loop {
            tokio::time::sleep(RESTART_AFTER).await;
            if shared.ending.load(Ordering::SeqCst) {
                return;
            }
            match shared.spawn() {
                Ok(next) => {
                    child = next;
                    break;
                }
                Err(error) => shared.strange.lock().expect("not poisoned").push(error),
            }
        }
    }
}
