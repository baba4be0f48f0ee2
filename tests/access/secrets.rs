//! The whole way with the real binary, from `init` to a poll; and none of the secrets on that way is ever shown.

#[path = "../support/shown.rs"]
mod shown;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use fanfold::access::{Access, KeyText};
use fanfold::clock::Clock;
use fanfold::service::Backends;
use reqwest::Method;
use serde_json::{Value, json};
use shown::{Secrets, Shown};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};

use crate::command::{CLI, NO_SETTINGS, command, std_command};
use crate::ring::Ring;
use crate::support::Service;
use crate::{Guarded, defaults, guard};

/// The trace of every request that is not made by a command.
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

/// The binary as somebody types it. All that it prints is kept, but for the credentials that it was asked for.
struct Shell<'a> {
    dir: &'a Path,
    url: String,
    shown: &'a Shown,
}

impl Shell<'_> {
    async fn run(&self, key: Option<&str>, line: &str) -> Output {
        let settings = [("FANFOLD_URL", self.url.as_str())].into_iter().chain(key.map(|key| ("FANFOLD_KEY", key)));
        let mut command = command(CLI, line.split_whitespace(), settings);
        let output = command.current_dir(self.dir).output().await.expect("the binary runs");
        self.shown.keep(&format!("standard error of {line}"), output.stderr.as_slice());
        output
    }

    async fn good(&self, key: Option<&str>, line: &str) -> String {
        let said = self.ends(key, line, 0).await;
        self.shown.keep(&format!("standard output of {line}"), said.as_str());
        said
    }

    async fn bad(&self, key: Option<&str>, line: &str, code: i32) {
        let said = self.ends(key, line, code).await;
        self.shown.keep(&format!("standard output of {line}"), said);
    }

    /// A new key or token, which is printed this once, and nothing with it.
    async fn issued(&self, key: &str, line: &str) -> String {
        let said = self.ends(Some(key), line, 0).await;
        assert!(!said.contains(char::is_whitespace), "{line} prints more than what it was asked for");
        said
    }

    async fn ends(&self, key: Option<&str>, line: &str, code: i32) -> String {
        let output = self.run(key, line).await;
        assert_eq!(output.status.code(), Some(code), "{line}: {output:?}");
        String::from_utf8(output.stdout).expect("UTF-8").trim().to_owned()
    }
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).expect("there").permissions().mode() & 0o777
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).expect("readable").trim().to_owned()
}

/// Every file below a folder.
fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

/// The secret that signs viewers' tokens, as the configuration has it.
fn shared(config: &Path) -> String {
    let text = read(config);
    text.split("\"k\":\"").nth(1).and_then(|rest| rest.split('"').next()).expect("a secret").to_owned()
}

fn client() -> reqwest::Client {
    reqwest::Client::builder().no_proxy().build().expect("a client")
}

/// What a service prints, from its start to its end.
struct Watched {
    child: tokio::process::Child,
    url: String,
    stdout: tokio::task::JoinHandle<String>,
    stderr: tokio::task::JoinHandle<String>,
}

impl Watched {
    async fn start(dir: &Path, config: &str, settings: &[(&str, &str)]) -> Self {
        let args = ["serve", "--config", config, "--listen", "127.0.0.1:0", "--log", "trace"];
        let mut command = command(CLI, args, settings.iter().copied());
        command.current_dir(dir).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the binary starts");
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn from_init_to_a_poll_and_no_secret_is_ever_shown() {
    let dir = tempfile::tempdir().expect("a folder");
    let (shown, mut secrets) = (Shown::default(), Secrets::default());
    let mut shell = Shell { dir: dir.path(), url: String::new(), shown: &shown };
    shell.good(None, "init").await;
    let (config, key_file) = (dir.path().join("fanfold.toml"), dir.path().join("fanfold-admin.key"));
    assert_eq!((mode(&config), mode(&key_file)), (0o600, 0o600));
    // What is there is left alone.
    shell.bad(None, "init", 64).await;
    let admin = read(&key_file);

    let service = Watched::start(dir.path(), "fanfold.toml", &[]).await;
    shell.url.clone_from(&service.url);
    let shop = shell.issued(&admin, "keys create --name shop --scope publish,read,tokens --expires 90d").await;
    shell.good(Some(&admin), "keys create --name scraper --scope metrics --save scraper.key").await;
    assert_eq!(mode(&dir.path().join("scraper.key")), 0o600);
    let scraper = read(&dir.path().join("scraper.key"));
    let posted = shell.good(Some(&shop), "post --to ben --type t --wait --output json").await;
    assert!(posted.contains("post_id"), "{posted}");
    let token = shell.issued(&shop, "token --viewer ben --ttl 1h").await;
    let inbox = shell.good(Some(&token), "inbox ben --output json").await;
    assert!(inbox.contains("\"type\": \"t\""), "{inbox}");
    shell.good(Some(&token), "watch ben --count 1").await;

    // As part of a trace, whose spans are in the log; and with the key's other form.
    let (client, parent) = (client(), format!("00-{TRACE}-00f067aa0ba902b7-01"));
    let at = |path: &str| format!("{}{path}", service.url);
    let ask = |method, path: &str| client.request(method, at(path)).header("traceparent", &parent);
    let key = KeyText::parse(&shop).expect("a key");
    let post = json!({"type": "t", "audience": {"viewers": ["ben"]}});
    let by_basic = || ask(Method::POST, "/v1/posts").basic_auth(key.id, Some(key.reveal_secret())).json(&post);
    let (status, _, posted) = shown.answer("a post by Basic", by_basic()).await;
    assert_eq!(status, 202, "{posted}");
    let inbox = ask(Method::GET, "/v1/viewers/ben/inbox").bearer_auth(&token);
    let (status, _, page) = shown.answer("an inbox", inbox).await;
    assert_eq!(status, 200, "{page}");
    let page: Value = serde_json::from_str(&page).expect("JSON");
    let path = format!("/v1/viewers/ben/revision?since={}", page["token"].as_str().expect("a token"));
    let (status, _, polled) = shown.answer("a poll", ask(Method::GET, &path).bearer_auth(&token)).await;
    assert!([200, 304].contains(&status), "{status} {polled}");

    let id = key.id;
    let rotated = shell.issued(&admin, &format!("keys rotate {id} --overlap 0s")).await;
    for (key, line) in [
        (None, "inbox ben"),
        (Some(&shop), "inbox ben"),
        (Some(&shop), "keys list"),
        (Some(&rotated), "inbox ben"),
        (Some(&token), "inbox cleo"),
        (Some(&token), "post --to ben --type t"),
        (Some(&admin[..60].to_owned()), "keys list"),
        (Some(&format!("{token}x")), "inbox ben"),
    ] {
        shell.bad(key.map(String::as_str), line, 77).await;
    }
    let (status, _, refused) = shown.answer("a post with a key that has ended", by_basic()).await;
    assert!(status == 401 && refused.contains("key_revoked"), "{status} {refused}");
    let basic = STANDARD.encode(format!("{id}:{}", key.reveal_secret()));
    let slip = ask(Method::POST, "/v1/posts").header("authorization", format!("Basic {basic}!")).json(&post);
    let (status, _, refused) = shown.answer("a post with a slip of the pen", slip).await;
    assert!(status == 401 && refused.contains("credentials_malformed"), "{status} {refused}");
    let ended = shell.issued(&admin, "keys create --name old --scope read").await;
    let gone = KeyText::parse(&ended).expect("a key").id;
    assert_eq!(shell.good(Some(&admin), &format!("keys revoke {gone}")).await, format!("{gone}  revoked"));
    let again = shell.good(Some(&admin), &format!("keys revoke {gone} --output json")).await;
    assert!(again.contains("\"state\": \"revoked\""), "{again}");
    for key in [&ended, &shop] {
        shell.bad(Some(key), &format!("keys revoke {gone}"), 77).await;
    }
    shell.good(Some(&admin), "keys list").await;
    let (_, _, metrics) = shown.answer("the metrics", ask(Method::GET, "/metrics").bearer_auth(&scraper)).await;
    assert!(metrics.contains("fanfold_access_refused_total"), "{metrics}");
    let (stdout, log) = service.stop().await;

    for (event, by) in
        [("post_published", &id), ("key_rotated", &KeyText::parse(&admin).expect("a key").id), ("key_revoked", &gone)]
    {
        let line = log.lines().find(|line| line.contains("audit") && line.contains(&format!("event=\"{event}\"")));
        assert!(line.is_some_and(|line| line.contains(&by.to_string())), "{event} by {by}");
    }
    assert!(log.lines().any(|line| line.contains("audit") && line.contains("refused") && line.contains("127.0.0.1")));
    assert!(log.lines().any(|line| line.contains(TRACE) && line.contains("published")), "spans are in the log");
    shown.keep("the banner", stdout);
    shown.keep("the log", log);

    for credential in [&admin, &shop, &scraper, &rotated, &ended, &token] {
        secrets.credential(credential);
    }
    secrets.encoded(&shared(&config));
    for own in [&config, &key_file] {
        assert!(secrets.are_in(&fs::read(own).expect("readable")), "a secret is found where it belongs");
    }
    shown.hides(&secrets);
    let mut hash = Secrets::default();
    hash.bytes(&key.secret.hash().0);
    let mut is_hash_stored = false;
    for file in files(&dir.path().join("fanfold-data")) {
        let stored = fs::read(&file).expect("readable");
        assert!(!secrets.are_in(&stored), "a secret is in {}", file.display());
        is_hash_stored |= hash.are_in(&stored);
    }
    assert!(is_hash_stored, "of a key its hash is stored, and was looked for where it would be");
}

#[cfg(feature = "faults")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_panic_with_a_secret_in_hand_shows_none() {
    let dir = tempfile::tempdir().expect("a folder");
    let (shown, mut secrets) = (Shown::default(), Secrets::default());
    let mut shell = Shell { dir: dir.path(), url: String::new(), shown: &shown };
    shell.good(None, "init").await;
    let admin = read(&dir.path().join("fanfold-admin.key"));
    secrets.credential(&admin);
    secrets.encoded(&shared(&dir.path().join("fanfold.toml")));
    // In the handler of a request with a key, in what it has begun, and in what one with a viewer's token has begun.
    for place in ["publish.asked", "publish.claimed", "mark.written"] {
        let fault = format!("{place}=panic@1");
        let settings = [("FANFOLD_TEST_FAULT", fault.as_str()), ("RUST_BACKTRACE", "1")];
        let service = Watched::start(dir.path(), "fanfold.toml", &settings).await;
        shell.url.clone_from(&service.url);
        let shop = shell.issued(&admin, "keys create --name shop --scope publish,read,tokens").await;
        let token = shell.issued(&shop, "token --viewer ben --ttl 1h").await;
        secrets.credential(&shop);
        secrets.credential(&token);
        let client = client();
        let (ask, done) = if place.starts_with("publish") {
            let post = json!({"type": "t", "audience": {"viewers": ["ben"]}});
            (client.post(format!("{}/v1/posts", service.url)).bearer_auth(&shop).json(&post), 202)
        } else {
            let posted = shell.good(Some(&shop), "post --to ben --type t --wait --output json").await;
            let posted: Value = serde_json::from_str(&posted).expect("JSON");
            let path = format!("/v1/viewers/ben/inbox/{}/read", posted["post_id"].as_str().expect("an id"));
            (client.put(format!("{}{path}", service.url)).bearer_auth(&token), 200)
        };
        let again = ask.try_clone().expect("its body is in memory");
        let (status, _, told) = shown.answer(&format!("a request that panics at {place}"), ask).await;
        assert_eq!(status, 500, "{place}: {told}");
        let (status, _, told) = shown.answer(&format!("the next request after {place}"), again).await;
        assert_eq!(status, done, "{place}: the service goes on: {told}");
        let (stdout, log) = service.stop().await;
        assert!(log.contains(&format!("planted at {place}")), "{place}: nothing has panicked");
        shown.keep("the banner", stdout);
        shown.keep(&format!("the log of {place}"), log);
    }
    shown.hides(&secrets);
}

#[tokio::test]
async fn the_first_key_is_made_while_the_service_is_stopped_and_not_while_it_runs() {
    let dir = tempfile::tempdir().expect("a folder");
    let create = |data: &Path| {
        let args = ["keys", "create", "--name", "ops", "--scope", "admin", "--local", "--data"];
        std_command(CLI, args, NO_SETTINGS).arg(data).output().expect("the binary runs")
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
    let mut secrets = Secrets::default();
    secrets.credential(&issued.reveal());
    secrets.encoded(&k);
    assert!(!secrets.are_in(shown.as_bytes()), "{shown}");
    let hash: Vec<String> = issued.secret.hash().0.iter().map(u8::to_string).collect();
    assert!(!shown.contains(&hash.join(", ")), "nor its hash");
}
