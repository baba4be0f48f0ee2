//! What docker-compose.yml runs, run without Docker on the servers of dev/stack: the same commands in the same order,
//! with the same environment but for names, ports, passwords, colours and how much is logged: everything, and no secret
//! is in it.

#[path = "support/broker_user.rs"]
mod broker_user;
#[path = "support/command.rs"]
mod command;
#[allow(dead_code, reason = "the door lets in one user from the beginning")]
#[path = "support/cql_door.rs"]
mod cql_door;
#[path = "support/redis_server.rs"]
mod redis_server;
#[path = "support/shown.rs"]
mod shown;
mod support;
#[path = "support/wait.rs"]
mod wait;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use broker_user::BrokerUser;
use command::{CLI, FANOUT, RELAY, command};
use cql_door::Door;
use lapin::types::LongString;
use redis_server::RedisServer;
use rustix::process::{Pid, Signal, kill_process};
use shown::{Secrets, Shown};
use support::servers::{Ground, server};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};
use wait::eventually;

type Env = BTreeMap<String, String>;

/// What is indented below the line that ends in `head`, which begins with a line break and its own indentation.
fn block<'a>(text: &'a str, head: &str) -> &'a str {
    let (_, rest) = text.split_once(&format!("{head}\n")).unwrap_or_else(|| panic!("no {head:?}"));
    let indent = |line: &str| line.len() - line.trim_start().len();
    let depth = indent(head.trim_start_matches('\n'));
    let inside = |line: &&str| line.trim().is_empty() || indent(line) > depth;
    &rest[..rest.split_inclusive('\n').take_while(inside).map(str::len).sum()]
}

fn variables(text: &str) -> Env {
    let pairs = text.lines().map(str::trim).filter(|line| line.starts_with("FANFOLD_"));
    let pairs = pairs.map(|line| line.split_once(": ").expect("a value"));
    pairs.map(|(name, value)| (name.to_owned(), value.trim_matches('"').to_owned())).collect()
}

/// The variables that hold the passwords of the servers.
const PASSWORDS: [&str; 3] = ["FANFOLD_SCYLLA__PASSWORD", "FANFOLD_RABBITMQ__URL", "FANFOLD_REDIS__URLS"];

/// A password that is found nowhere else.
fn password() -> &'static str {
    format!("{:032x}", rand::random::<u128>()).leak()
}

/// The file, with what it names put in other places, on servers that ask for passwords.
struct Compose {
    text: String,
    dir: tempfile::TempDir,
    own: Env,
    shown: Shown,
    /// In the order of [`PASSWORDS`].
    passwords: [&'static str; 3],
    store: Door,
    _broker: BrokerUser,
    _redis: RedisServer,
}

impl Compose {
    /// `None`, said on standard error, where there are no servers.
    async fn read() -> Option<(Self, Ground)> {
        let cql = server("FANFOLD_TEST_CQL")?;
        let amqp = server("FANFOLD_TEST_AMQP")?;
        // That of the stack asks nobody; where it is, one of our own can be started.
        server("FANFOLD_TEST_REDIS")?;
        let name = format!("fanfold_compose_{}", std::process::id());
        let passwords = [(); 3].map(|()| password());
        let store = Door::before(cql.split(',').next().expect("a node"), &name, passwords[0]).await;
        let broker = BrokerUser::new(&name, passwords[1], ".*").await?;
        let (_, place) = amqp.rsplit_once('@').expect("credentials");
        let amqp = format!("amqp://{name}:{}@{place}", passwords[1]);
        let mut redis = RedisServer::start().await;
        redis.require(passwords[2]).await;
        let redis_url = redis.url();
        let own = [
            ("FANFOLD_SCYLLA__CONTACT_POINTS", store.address.as_str()),
            ("FANFOLD_SCYLLA__USER", &name),
            (PASSWORDS[0], passwords[0]),
            ("FANFOLD_SCYLLA__KEYSPACE", &name),
            // What stands in for ScyllaDB has no tablets to be turned off.
            ("FANFOLD_SCYLLA__TABLETS", "default"),
            (PASSWORDS[1], &amqp),
            ("FANFOLD_RABBITMQ__PREFIX", &name),
            (PASSWORDS[2], &redis_url),
            ("FANFOLD_REDIS__KEY_PREFIX", &name),
            ("FANFOLD_LOG", "trace"),
        ];
        let own: Env = own.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docker-compose.yml")).expect("there");
        let dir = tempfile::tempdir().expect("a folder");
        let shown = Shown::default();
        let compose = Self { text, dir, own, shown, passwords, store, _broker: broker, _redis: redis };
        Some((compose, Ground { name }))
    }

    /// Paths of the container become those of the test's folder.
    fn here(&self, text: &str) -> String {
        text.replace("/etc/fanfold", &self.dir.path().display().to_string())
    }

    /// The environment of a service, with any free port for each that it names.
    fn environment(&self, service: &str) -> Env {
        let mut env = variables(block(&self.text, "\nx-servers: &servers"));
        let own = block(&self.text, &format!("\n  {service}:"));
        if !own.contains("environment: *servers") {
            env.extend(variables(block(&self.text, "\nx-environment: &environment")));
            env.extend(variables(own));
        }
        let free =
            |value: String| self.here(&value).replace("0.0.0.0:8470", "0.0.0.0:0").replace("0.0.0.0:8471", "0.0.0.0:0");
        env.into_iter().map(|(name, value)| (name, free(value))).chain(self.own.clone()).collect()
    }

    /// The command of a service, ready to run.
    fn command(&self, service: &str) -> Command {
        let own = block(&self.text, &format!("\n  {service}:"));
        let words = own.lines().find_map(|line| line.trim().strip_prefix("command: [")).expect("a command");
        let words: Vec<String> = words.trim_end_matches(']').split(", ").map(|word| self.here(word)).collect();
        self.process(service, &words)
    }

    /// What `docker compose exec` would run in the container of a service.
    fn process(&self, service: &str, words: &[String]) -> Command {
        let binary = match words[0].as_str() {
            "fanfold" => CLI,
            "fanfold-fanout" => FANOUT,
            "fanfold-relay" => RELAY,
            other => panic!("no process of ours: {other}"),
        };
        let mut command = command(binary, &words[1..], self.environment(service));
        command.current_dir(self.dir.path());
        command
    }

    async fn completes(&self, service: &str) -> String {
        let said = self.said(service, self.command(service)).await;
        self.shown.keep(&format!("standard output of {service}"), said.as_str());
        said
    }

    /// `docker compose exec api`, with the API where it is.
    async fn exec(&self, url: &str, key: Option<&str>, line: &str) -> String {
        let said = self.issued(url, key, line).await;
        self.shown.keep(&format!("standard output of {line}"), said.as_str());
        said
    }

    /// The same, of what prints a new key or token: this once, and nothing with it.
    async fn issued(&self, url: &str, key: Option<&str>, line: &str) -> String {
        let words: Vec<String> = line.split_whitespace().map(|word| self.here(word)).collect();
        let mut command = self.process("api", &words);
        command.env("FANFOLD_URL", url);
        key.map(|key| command.env("FANFOLD_KEY", key));
        self.said(line, command).await
    }

    /// What a command that succeeds prints.
    async fn said(&self, name: &str, mut command: Command) -> String {
        let output = command.output().await.expect("the binary runs");
        assert!(output.status.success(), "{command:?}: {output:?}");
        self.shown.keep(&format!("standard error of {name}"), output.stderr);
        String::from_utf8(output.stdout).expect("UTF-8").trim().to_owned()
    }

    /// An answer to `GET`, with a key or without.
    async fn get(&self, url: &str, key: Option<&str>) -> (u16, String) {
        let client = reqwest::Client::builder().no_proxy().build().expect("a client");
        let mut request = client.get(url);
        if let Some(key) = key {
            request = request.bearer_auth(key);
        }
        let (status, headers, text) = self.shown.answer(url, request).await;
        assert_eq!(headers.contains_key("www-authenticate"), [401, 403].contains(&status), "{status} {headers:?}");
        (status, text)
    }

    /// A process that goes on; its log is a file of the folder.
    async fn start(&self, name: &str, mut command: Command) -> Running {
        let log = self.dir.path().join(format!("{name}.log"));
        command.stdout(Stdio::piped()).stderr(fs::File::create(&log).expect("a log file"));
        let mut child = command.spawn().expect("the binary starts");
        let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let mut said = String::new();
        loop {
            let Some(line) = lines.next_line().await.expect("readable") else {
                panic!("{name} ended before it was ready: {}", fs::read_to_string(&log).expect("UTF-8"));
            };
            said.push_str(&line);
            if let Some((_, address)) = line.split_once("http://") {
                let address = address.split('/').next().unwrap_or_default().replace("0.0.0.0", "127.0.0.1");
                let said = tokio::spawn(async move {
                    while let Ok(Some(line)) = lines.next_line().await {
                        said.push_str(&line);
                    }
                    said
                });
                return Running { name: name.to_owned(), child, url: format!("http://{address}"), said, log };
            }
        }
    }

    /// Ends it, and keeps all that it has said.
    async fn stop(&self, mut running: Running) {
        let pid = Pid::from_raw(running.child.id().expect("running").cast_signed()).expect("a pid");
        kill_process(pid, Signal::TERM).expect("signalled");
        let status = running.child.wait().await.expect("waited");
        let log = fs::read(&running.log).expect("a log");
        assert!(status.success(), "{}: {status}: {}", running.name, String::from_utf8_lossy(&log));
        assert!(log.windows(5).any(|word| word == b"TRACE" || word == b"DEBUG"), "{} logs everything", running.name);
        self.shown.keep(&format!("the log of {}", running.name), log);
        self.shown.keep(&format!("standard output of {}", running.name), running.said.await.expect("read"));
    }
}

/// A process that goes on, and where it can be asked from inside its container.
struct Running {
    name: String,
    child: Child,
    url: String,
    said: tokio::task::JoinHandle<String>,
    log: PathBuf,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_comes_up_with_access_control_on() {
    let Some((compose, _keyspace)) = Compose::read().await else { return };
    compose.completes("migrate").await;
    let first = compose.completes("init").await;
    assert!(first.contains("the first key"), "{first}");
    for file in ["fanfold.toml", "admin.key"] {
        let mode = fs::metadata(compose.dir.path().join(file)).expect(file).permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{file}");
    }
    // Every later `up` runs them again.
    compose.completes("migrate").await;
    let again = compose.completes("init").await;
    assert!(again.contains("nothing was changed"), "{again}");

    let api = compose.start("api", compose.command("api")).await;
    let fanout = compose.start("fanout", compose.command("fanout")).await;
    let relay = compose.start("relay", compose.command("relay")).await;
    let url = api.url.clone();
    for process in [&url, &fanout.url, &relay.url] {
        let ready = format!("{process}/readyz");
        eventually(&format!("{ready} says so"), async || compose.get(&ready, None).await.0 == 200).await;
        compose.exec(process, None, "fanfold health").await;
    }
    let doctor = compose.exec(&url, None, "fanfold doctor").await;
    assert!(!doctor.contains("WRONG") && doctor.contains("1 keys work, 1 of them with the scope admin"), "{doctor}");
    assert!(doctor.contains("viewers' tokens are checked with: 1"), "{doctor}");

    // As the file's own head says it.
    let create = "fanfold keys create --key-file /etc/fanfold/admin.key --name";
    let shop = compose.issued(&url, None, &format!("{create} shop --scope publish,read,tokens")).await;
    compose.exec(&url, Some(&shop), "fanfold post --to ben --type t --wait").await;
    let token = compose.issued(&url, Some(&shop), "fanfold token --viewer ben").await;
    let inbox = compose.exec(&url, Some(&token), "fanfold inbox ben --output json").await;
    assert!(inbox.contains("\"type\": \"t\""), "{inbox}");
    assert_eq!(compose.get(&format!("{url}/v1/viewers/ben/inbox"), None).await.0, 401);

    let scraper = compose.issued(&url, None, &format!("{create} scraper --scope metrics")).await;
    for worker in [&fanout.url, &relay.url] {
        let metrics = format!("{worker}/metrics");
        for (key, status, code) in [
            (None, 401, "credentials_missing"),
            (Some("nonsense"), 401, "viewer_token_invalid"),
            (Some(token.as_str()), 401, "viewer_token_invalid"),
            (Some(shop.as_str()), 403, "scope_missing"),
            (Some(&scraper[..scraper.len() - 1]), 401, "credentials_malformed"),
        ] {
            let (got, body) = compose.get(&metrics, key).await;
            assert_eq!(got, status, "{body}");
            assert!(body.contains(&format!("\"code\":\"{code}\"")), "{body}");
        }
        let (status, body) = compose.get(&metrics, Some(&scraper)).await;
        assert!(status == 200 && body.contains("fanfold_build_info"), "{status} {body}");
        assert_eq!(compose.get(&format!("{worker}/livez"), None).await.0, 200, "alive is no secret");
    }
    // On loopback, whoever can connect may look.
    let mut near = compose.command("fanout");
    near.env("FANFOLD_WORKER__LISTEN", "127.0.0.1:0");
    let near = compose.start("near", near).await;
    assert_eq!(compose.get(&format!("{}/metrics", near.url), None).await.0, 200);

    // The driver that would show its password logs what it may.
    let log = fs::read(&fanout.log).expect("a log");
    assert!(log.windows(7).any(|word| word == b"lapin::"), "{}", String::from_utf8_lossy(&log));
    for process in [near, relay, fanout, api] {
        compose.stop(process).await;
    }
    assert!(!compose.store.take_shown().is_empty(), "the store has asked for its password");
    let own = |name: &str| fs::read_to_string(compose.dir.path().join(name)).expect(name);
    let (admin, config) = (own("admin.key"), own("fanfold.toml"));
    let k = config.split("\"k\":\"").nth(1).and_then(|rest| rest.split('"').next()).expect("a secret");
    let mut secrets = Secrets::default();
    for credential in [admin.trim(), &shop, &scraper, &token] {
        secrets.credential(credential);
    }
    secrets.encoded(k);
    assert!(secrets.are_in(admin.as_bytes()) && secrets.are_in(config.as_bytes()), "found where they belong");
    for (variable, password) in PASSWORDS.into_iter().zip(compose.passwords) {
        let mut alone = Secrets::default();
        alone.password(password);
        // As it stands in the setting, as a driver has it in a frame, and as headers do.
        let frame = LongString::from(format!("\0feeder\0{password}"));
        let basic = STANDARD.encode(format!("feeder:{password}"));
        for form in [compose.own[variable].clone(), format!("{frame:?}"), basic] {
            assert!(alone.are_in(form.as_bytes()), "{variable} would not be found in {form}");
        }
        secrets.password(password);
    }
    compose.shown.hides(&secrets);
}
