//! The binaries, told by their environment where the servers are.

use std::collections::BTreeMap;
use std::process::Stdio;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader, Lines};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, ChildStderr};
use tokio::sync::watch;

use crate::command::{RELAY, Told, command, run};
use crate::support::servers::{Ground, server};
use crate::wait::PATIENCE;

pub use crate::command::{CLI, FANOUT};

/// The processes of a cluster, with the arguments of an ordinary start.
pub const PROCESSES: [(&str, &[&str]); 3] = [
    (CLI, &["serve", "--mode", "cluster", "--listen", "127.0.0.1:0"]),
    (FANOUT, &["--listen", "127.0.0.1:0"]),
    (RELAY, &["--listen", "127.0.0.1:0"]),
];
/// An API node.
pub const SERVE: (&str, &[&str]) = PROCESSES[0];

pub const CONTACT_POINTS: &str = "FANFOLD_SCYLLA__CONTACT_POINTS";
pub const RABBITMQ_URL: &str = "FANFOLD_RABBITMQ__URL";
pub const REDIS_URLS: &str = "FANFOLD_REDIS__URLS";

/// The settings of a cluster that nobody else uses.
pub struct Cluster {
    /// Its keyspace and the prefix of its queues and keys.
    pub name: String,
    settings: BTreeMap<String, String>,
    _ground: Ground,
}

impl Cluster {
    /// On the servers that are named; those that the test does not ask for stay where nobody listens.
    pub fn on(servers: &[&str]) -> Option<Self> {
        let name = format!("fanfold_bad_{:016x}", rand::random::<u64>());
        let nobody = closed_port();
        let mut settings: BTreeMap<String, String> = [
            ("FANFOLD_SCYLLA__KEYSPACE", name.as_str()),
            ("FANFOLD_SCYLLA__REPLICATION_FACTOR", "1"),
            ("FANFOLD_RABBITMQ__PREFIX", &name),
            ("FANFOLD_REDIS__KEY_PREFIX", &name),
            (CONTACT_POINTS, &nobody),
            (RABBITMQ_URL, &format!("amqp://{nobody}/%2f")),
            (REDIS_URLS, &format!("redis://{nobody}")),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into();
        for variable in servers {
            let setting = match *variable {
                "FANFOLD_TEST_CQL" => CONTACT_POINTS,
                "FANFOLD_TEST_AMQP" => RABBITMQ_URL,
                _ => REDIS_URLS,
            };
            settings.insert(setting.to_owned(), server(variable)?);
        }
        Some(Self { _ground: Ground { name: name.clone() }, name, settings })
    }

    /// With a setting that differs.
    pub fn set(&mut self, name: &str, value: impl Into<String>) {
        self.settings.insert(name.to_owned(), value.into());
    }

    /// As without [`Cluster::set`].
    #[cfg(feature = "faults")]
    pub fn unset(&mut self, name: &str) {
        self.settings.remove(name);
    }

    /// Runs a command to its end.
    pub async fn run(&self, program: &str, args: &[&str]) -> Told {
        run(program, args, &self.settings).await
    }

    /// `fanfold doctor`, as people see it.
    pub async fn doctor(&self) -> Told {
        let told = self.run(CLI, &["doctor"]).await;
        assert_eq!(told.err, "", "what the drivers say of it is in the findings");
        told
    }

    /// What `fanfold doctor` finds of a part, as a program sees it: severity, finding and advice in one line.
    pub async fn findings(&self, part: &str) -> Vec<String> {
        let told = self.run(CLI, &["doctor", "--output", "json"]).await;
        let findings: Value = serde_json::from_str(&told.out).unwrap_or_else(|error| panic!("{error}: {told:?}"));
        let text = |finding: &Value, name: &str| finding[name].as_str().expect("a text").to_owned();
        let findings = findings.as_array().expect("a list").iter().filter(|finding| finding["part"] == part);
        findings.map(|f| ["severity", "what", "advice"].map(|name| text(f, name)).join(" | ")).collect()
    }

    /// Brings the schema up.
    pub async fn migrate(&self) {
        let told = self.run(CLI, &["migrate"]).await;
        assert_eq!(told.code, Some(0), "{told:?}");
    }

    /// Starts a process that goes on running.
    pub fn start(&self, (program, args): (&str, &[&str])) -> Running {
        let mut command = command(program, args, &self.settings);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("starts");
        let lines = BufReader::new(child.stderr.take().expect("piped")).lines();
        Running { child, lines, said: String::new() }
    }
}

/// One of `findings` has all the words.
pub fn found(findings: &[String], words: &[&str]) {
    let hit = findings.iter().any(|finding| words.iter().all(|word| finding.contains(word)));
    assert!(hit, "nothing with {words:?} in {findings:#?}");
}

/// A process that runs.
pub struct Running {
    child: Child,
    lines: Lines<BufReader<ChildStderr>>,
    /// What it has logged so far.
    pub said: String,
}

impl Running {
    /// Reads its log up to a line with all the words.
    pub async fn says(&mut self, words: &[&str]) {
        let reading = async {
            while let Some(line) = self.lines.next_line().await.expect("readable") {
                self.said += &line;
                self.said.push('\n');
                if words.iter().all(|word| line.contains(word)) {
                    return true;
                }
            }
            false
        };
        let said = tokio::time::timeout(PATIENCE, reading).await;
        assert!(matches!(said, Ok(true)), "{words:?} is not said: {}", self.said);
    }

    /// Waits until it ends; how, and all it has logged.
    pub async fn ends(mut self) -> Told {
        let ended = tokio::time::timeout(PATIENCE, self.child.wait()).await;
        let code = ended.unwrap_or_else(|_| panic!("it does not end: {}", self.said)).expect("waited").code();
        self.lines.get_mut().read_to_string(&mut self.said).await.expect("UTF-8");
        Told { code, out: String::new(), err: self.said }
    }

    /// Sends it a signal.
    #[cfg(feature = "faults")]
    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = self.child.id().and_then(|pid| rustix::process::Pid::from_raw(pid.cast_signed())).expect("it runs");
        rustix::process::kill_process(pid, signal).expect("signalled");
    }

    /// Whether a fault has stopped it.
    #[cfg(feature = "faults")]
    pub fn is_stopped(&self) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id().expect("it runs")));
        // The state follows the command's name, which stands in brackets.
        stat.expect("it runs").rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with('T'))
    }

    /// Waits for as long as it lives; what it logs is not kept.
    #[cfg(feature = "faults")]
    pub async fn outlived(&mut self) {
        while self.lines.next_line().await.expect("readable").is_some() {}
        self.child.wait().await.expect("waited");
    }

    /// Ends it; all it has logged.
    pub async fn stop(mut self) -> String {
        self.child.start_kill().expect("it runs");
        self.ends().await.err
    }
}

/// `host:port` where nobody listens.
pub fn closed_port() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("an address").to_string()
}

/// A way to a server, shut at first: what connects is cut at once until it is opened.
pub struct Gate {
    pub address: String,
    open: watch::Sender<bool>,
}

impl Gate {
    pub async fn to(server: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address").to_string();
        let (open, state) = watch::channel(false);
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let server = server.clone();
                if *state.borrow() {
                    tokio::spawn(async move {
                        let Ok(mut server) = TcpStream::connect(server).await else { return };
                        let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
                    });
                }
            }
        });
        Self { address, open }
    }

    pub fn open(&self) {
        self.open.send_replace(true);
    }
}
