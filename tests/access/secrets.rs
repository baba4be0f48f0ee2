//! The whole way with the real binary, from `init` to a poll; and none of the secrets on that way is ever shown.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use fanfold::access::{Access, KeyText};
use fanfold::clock::Clock;
use fanfold::service::Backends;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};

use crate::ring::Ring;
use crate::support::Service;
use crate::{Guarded, defaults, guard};

/// The binary as somebody types it.
struct Shell<'a> {
    dir: &'a Path,
    url: String,
}

impl Shell<'_> {
    async fn run(&self, key: Option<&str>, line: &str) -> Output {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_fanfold"));
        command.args(line.split_whitespace()).current_dir(self.dir).stdin(Stdio::null());
        command.env_remove("FANFOLD_CONFIG").env_remove("FANFOLD_KEY_FILE").env("FANFOLD_URL", &self.url);
        match key {
            Some(key) => command.env("FANFOLD_KEY", key),
            None => command.env_remove("FANFOLD_KEY"),
        };
        command.output().await.expect("the binary runs")
    }

    async fn good(&self, key: Option<&str>, line: &str) -> String {
        let output = self.run(key, line).await;
        assert!(output.status.success(), "{line}: {output:?}");
        String::from_utf8(output.stdout).expect("UTF-8").trim().to_owned()
    }
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).expect("there").permissions().mode() & 0o777
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).expect("readable").trim().to_owned()
}

/// What a service prints, from its start to its end.
struct Watched {
    child: tokio::process::Child,
    url: String,
    stdout: tokio::task::JoinHandle<String>,
    stderr: tokio::task::JoinHandle<String>,
}

impl Watched {
    async fn start(dir: &Path, config: &str) -> Self {
        let mut child = tokio::process::Command::new(env!("CARGO_BIN_EXE_fanfold"))
            .args(["serve", "--config", config, "--listen", "127.0.0.1:0", "--log", "trace"])
            .current_dir(dir)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("the binary starts");
        let mut stderr = child.stderr.take().expect("piped");
        let stderr = tokio::spawn(async move {
            let mut text = String::new();
            stderr.read_to_string(&mut text).await.expect("UTF-8");
            text
        });
        let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let mut banner = String::new();
        let url = loop {
            let line = lines.next_line().await.expect("readable").expect("ready");
            banner.push_str(&line);
            if let Some(url) = line.trim().strip_prefix("API") {
                break url.trim().to_owned();
            }
        };
        let stdout = tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                banner.push_str(&line);
            }
            banner
        });
        Self { child, url, stdout, stderr }
    }

    async fn stop(mut self) -> (String, String) {
        let pid = rustix::process::Pid::from_raw(self.child.id().expect("running").cast_signed()).expect("a pid");
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("signalled");
        assert!(self.child.wait().await.expect("waited").success());
        (self.stdout.await.expect("read"), self.stderr.await.expect("read"))
    }
}

/// The parts of a credential that nobody but its holder may see.
fn secret_parts(credential: &str) -> Vec<String> {
    match KeyText::parse(credential) {
        Some(key) => vec![key.reveal_secret()],
        // A token's signature; its other parts are no secrets.
        None => vec![credential.rsplit('.').next().expect("a signature").to_owned()],
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn from_init_to_a_poll_and_no_secret_is_ever_shown() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut shell = Shell { dir: dir.path(), url: String::new() };
    shell.good(None, "init").await;
    let (config, key_file) = (dir.path().join("fanfold.toml"), dir.path().join("fanfold-admin.key"));
    assert_eq!((mode(&config), mode(&key_file)), (0o600, 0o600));
    assert_eq!(shell.run(None, "init").await.status.code(), Some(64), "what is there is left alone");
    let (admin, jwks) = (read(&key_file), read(&config));
    let shared = jwks.split("\"k\":\"").nth(1).and_then(|rest| rest.split('"').next()).expect("a secret").to_owned();

    let service = Watched::start(dir.path(), "fanfold.toml").await;
    shell.url.clone_from(&service.url);
    let shop = shell.good(Some(&admin), "keys create --name shop --scope publish,read,tokens --expires 90d").await;
    shell.good(Some(&admin), "keys create --name scraper --scope metrics --save scraper.key").await;
    assert_eq!(mode(&dir.path().join("scraper.key")), 0o600);
    let scraper = read(&dir.path().join("scraper.key"));
    let posted = shell.good(Some(&shop), "post --to ben --type t --wait --output json").await;
    assert!(posted.contains("post_id"), "{posted}");
    let token = shell.good(Some(&shop), "token --viewer ben --ttl 1h").await;
    let inbox = shell.good(Some(&token), "inbox ben --output json").await;
    assert!(inbox.contains("\"type\": \"t\""), "{inbox}");
    shell.good(Some(&token), "watch ben --count 1").await;

    let mut shown = String::new();
    let id = KeyText::parse(&shop).expect("a key").id;
    let rotated = shell.good(Some(&admin), &format!("keys rotate {id} --overlap 0s")).await;
    for (key, line, code) in [
        (None, "inbox ben", 77),
        (Some(&shop), "inbox ben", 77),
        (Some(&shop), "keys list", 77),
        (Some(&rotated), "inbox ben", 77),
        (Some(&token), "inbox cleo", 77),
        (Some(&token), "post --to ben --type t", 77),
        (Some(&admin[..60].to_owned()), "keys list", 77),
        (Some(&format!("{token}x")), "inbox ben", 77),
    ] {
        let output = shell.run(key.map(String::as_str), line).await;
        assert_eq!(output.status.code(), Some(code), "{line}: {output:?}");
        shown.push_str(&format!("{output:?}"));
    }
    let ended = shell.good(Some(&admin), "keys create --name old --scope read").await;
    let gone = KeyText::parse(&ended).expect("a key").id;
    assert_eq!(shell.good(Some(&admin), &format!("keys revoke {gone}")).await, format!("{gone}  revoked"));
    let again = shell.good(Some(&admin), &format!("keys revoke {gone} --output json")).await;
    assert!(again.contains("\"state\": \"revoked\""), "{again}");
    for (key, line) in [(&ended, format!("keys revoke {gone}")), (&shop, format!("keys revoke {gone}"))] {
        let output = shell.run(Some(key), &line).await;
        assert_eq!(output.status.code(), Some(77), "{line}: {output:?}");
        shown.push_str(&format!("{output:?}"));
    }
    shown.push_str(&shell.good(Some(&admin), "keys list").await);
    let metrics = reqwest::Client::builder().no_proxy().build().expect("a client");
    let metrics = metrics.get(format!("{}/metrics", service.url)).bearer_auth(&scraper).send().await.expect("answered");
    let metrics = metrics.text().await.expect("text");
    assert!(metrics.contains("fanfold_access_refused_total"), "{metrics}");
    shown.push_str(&metrics);
    let (stdout, log) = service.stop().await;

    for (event, by) in
        [("post_published", &id), ("key_rotated", &KeyText::parse(&admin).expect("a key").id), ("key_revoked", &gone)]
    {
        let line = log.lines().find(|line| line.contains("audit") && line.contains(&format!("event=\"{event}\"")));
        assert!(line.is_some_and(|line| line.contains(&by.to_string())), "{event} by {by}");
    }
    assert!(log.lines().any(|line| line.contains("audit") && line.contains("refused") && line.contains("127.0.0.1")));
    for secret in [&admin, &shop, &scraper, &rotated, &ended, &token]
        .map(|text| secret_parts(text))
        .concat()
        .iter()
        .chain([&shared])
    {
        for (place, text) in [("output", &shown), ("banner", &stdout), ("log", &log)] {
            assert!(!text.contains(secret.as_str()), "a secret is in the {place}");
        }
    }
}

#[tokio::test]
async fn the_first_key_is_made_while_the_service_is_stopped_and_not_while_it_runs() {
    let dir = tempfile::tempdir().expect("a folder");
    let create = |data: &Path| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_fanfold"));
        command.args(["keys", "create", "--name", "ops", "--scope", "admin", "--local", "--data"]).arg(data);
        command.env_remove("FANFOLD_CONFIG").stdin(Stdio::null()).output().expect("the binary runs")
    };
    let output = create(dir.path());
    let key = String::from_utf8(output.stdout).expect("UTF-8");
    let key = KeyText::parse(key.trim()).expect("a key, and nothing else, on standard output");
    let ring = Ring::new();
    let start = |data| Service::embedded(data, |config| guard(config, &ring));
    let ask = |service: &Service| service.ask("GET", "/v1/keys").header("authorization", &crate::bearer(&key)).send();
    let other = start(tempfile::tempdir().expect("a folder")).await;
    let reply = ask(&other).await;
    assert_eq!(reply.status, 401, "another service: {reply:?}");
    let busy = create(other.data.path());
    assert_eq!(busy.status.code(), Some(69), "{busy:?}");
    let reply = ask(&start(dir).await).await;
    assert_eq!(reply.status, 200, "{reply:?}");
}

#[tokio::test]
async fn nothing_that_is_printed_for_debugging_shows_a_secret() {
    let guarded = Guarded::start().await;
    let mut config = defaults();
    guard(&mut config, &guarded.ring);
    let Backends { store, revisions, .. } = &guarded.service.running.backends;
    let opened = Access::open(&config.access, &config.quota, store, revisions, &Clock::system());
    let (access, _) = opened.expect("opened");
    let issued = guarded.key("shop", &fanfold::domain::Scope::ALL).await;
    access.identify(Some(&crate::bearer(&issued))).await.expect("let in");
    let shown = format!("{config:?} {access:?} {issued:?} {:?}", guarded.book().list().await.expect("listed"));
    let k = guarded.ring.keys[0].jwk()["k"].as_str().expect("a secret").to_owned();
    assert!(!shown.contains(&k) && !shown.contains(&issued.reveal_secret()), "{shown}");
    let hash: Vec<String> = issued.secret.hash().0.iter().map(u8::to_string).collect();
    assert!(!shown.contains(&hash.join(", ")), "nor its hash");
}
