//! What goes wrong one day: huge tokens, exposed files, settings that cannot be meant.

use std::path::Path;
use std::process::{Output, Stdio};

use fanfold::access::KeyText;
use fanfold::access::credential::KeySecret;
use fanfold::domain::KeyId;
use jsonwebtoken::Algorithm;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::Guarded;
use crate::command::{CLI, FANOUT, RELAY, std_command};
use crate::ring::SigningKey;

/// Runs the binary to its end.
fn fanfold(dir: &Path, arguments: &[&str], env: &[(&str, &str)]) -> Output {
    let mut command = std_command(CLI, arguments, env.iter().copied());
    command.current_dir(dir).output().expect("the binary runs")
}

/// The same with a worker.
fn worker(binary: &str, arguments: &[&str], env: &[(&str, &str)]) -> Output {
    std_command(binary, arguments, env.iter().copied()).output().expect("the binary runs")
}

const WORKERS: [&str; 2] = [FANOUT, RELAY];

fn refused(output: &Output, words: &[&str]) {
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(64), "{told}");
    for word in words {
        assert!(told.contains(word), "{word:?} is not in {told}");
    }
}

#[tokio::test]
async fn a_token_of_a_hundred_thousand_bytes_is_refused_unread() {
    let guarded = Guarded::start().await;
    let mut stream = tokio::net::TcpStream::connect(guarded.service.running.addr).await.expect("connected");
    let token = "e".repeat(100_000);
    let request = format!("GET /v1/viewers/ben/revision HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\n\r\n");
    // The service may answer and hang up before all of it is sent.
    let _ = stream.write_all(request.as_bytes()).await;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    let answer = String::from_utf8_lossy(&answer);
    assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
    let token = format!("Bearer {}", guarded.ring.token("ben"));
    let reply = guarded.service.ask("GET", "/v1/viewers/ben/revision").header("authorization", &token).send().await;
    assert_eq!(reply.status, 200, "others are served");
}

#[test]
fn files_with_secrets_that_others_can_read_are_refused() {
    use std::os::unix::fs::PermissionsExt as _;

    let dir = tempfile::tempdir().expect("a folder");
    let expose = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).expect("written");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).expect("set");
        path.display().to_string()
    };
    let shared = json!({"keys": [SigningKey::generate("a", Algorithm::HS256).jwk()]}).to_string();
    let config = expose("fanfold.toml", &format!("[access]\nmode = \"on\"\njwks = '{shared}'\n"));
    refused(
        &fanfold(dir.path(), &["config", "check", "--config", &config], &[]),
        &["access.jwks", "chmod 600", &config],
    );

    let file = expose("jwks.json", &shared);
    let env = [("FANFOLD_ACCESS__MODE", "on"), ("FANFOLD_ACCESS__JWKS_FILE", file.as_str()), ("FANFOLD_DATA", "d")];
    refused(&fanfold(dir.path(), &["serve", "--listen", "127.0.0.1:0"], &env), &["access.jwks_file", "chmod 600"]);

    let key = expose("my.key", "ffk_0");
    refused(&fanfold(dir.path(), &["keys", "list", "--key-file", &key], &[]), &["--key-file", "chmod 600"]);
}

#[test]
fn keys_that_cannot_be_meant_keep_the_service_from_starting() {
    let dir = tempfile::tempdir().expect("a folder");
    let key = SigningKey::generate("a", Algorithm::ES256).jwk();
    let twice = json!({"keys": [key, key]}).to_string();
    let serve = |env: &[(&str, &str)]| {
        let env: Vec<_> = env.iter().copied().chain([("FANFOLD_DATA", "d"), ("FANFOLD_ACCESS__MODE", "on")]).collect();
        fanfold(dir.path(), &["serve", "--listen", "127.0.0.1:0"], &env)
    };
    refused(&serve(&[("FANFOLD_ACCESS__JWKS", &twice)]), &["access.jwks", "keys[1]", "\"kid\" \"a\""]);
    refused(&serve(&[("FANFOLD_ACCESS__JWKS", "{")]), &["access.jwks", "no JWK set"]);
    refused(&serve(&[("FANFOLD_ACCESS__JWKS_FILE", "nowhere.json")]), &["access.jwks_file", "nowhere.json"]);
    let both = [("FANFOLD_ACCESS__JWKS_FILE", "x"), ("FANFOLD_ACCESS__JWKS", "y")];
    refused(&serve(&both), &["access.jwks_file", "together"]);
    refused(&serve(&[("FANFOLD_TLS__CERTIFICATE_FILE", "c.pem")]), &["tls.key_file", "together"]);
    refused(&serve(&[("FANFOLD_CORS__ORIGINS", "app.example.org")]), &["cors.origins", "app.example.org"]);
}

#[test]
fn a_quota_of_nothing_is_no_quota_and_a_burst_of_nothing_is_refused() {
    let dir = tempfile::tempdir().expect("a folder");
    for (rate, burst) in [
        ("POSTS_PER_S", "POSTS_BURST"),
        ("ROWS_PER_S", "ROWS_BURST"),
        ("BYTES_PER_S", "BYTES_BURST"),
        ("POLLS_PER_S", "POLLS_BURST"),
    ] {
        let (rate, burst) = (format!("FANFOLD_QUOTA__{rate}"), format!("FANFOLD_QUOTA__{burst}"));
        let output = fanfold(dir.path(), &["config", "check"], &[(&rate, "0")]);
        assert!(output.status.success(), "{rate}: {output:?}");
        let key = burst.to_lowercase().replace("fanfold_quota__", "quota.");
        refused(&fanfold(dir.path(), &["config", "check"], &[(&burst, "0")]), &[&key, "is 0", &burst]);
    }
}

#[tokio::test]
async fn quotas_that_limit_nobody_are_told_at_the_start() {
    let dir = tempfile::tempdir().expect("a folder");
    let log = dir.path().join("log");
    let args = ["serve", "--listen", "127.0.0.1:0", "--log", "warn"];
    let mut child = std_command(CLI, args, [("FANFOLD_QUOTA__POLLS_PER_S", "5")])
        .current_dir(dir.path())
        .stdout(Stdio::null())
        .stderr(std::fs::File::create(&log).expect("a file"))
        .spawn()
        .expect("the binary starts");
    let told = || std::fs::read_to_string(&log).is_ok_and(|log| log.contains("quotas are set and limit nobody"));
    crate::wait::eventually("it says so", async || told()).await;
    child.kill().expect("killed");
    child.wait().expect("waited");
}

#[tokio::test]
async fn a_quota_of_nothing_limits_nothing() {
    let guarded = Guarded::start_with(|config| {
        (config.quota.posts_per_s, config.quota.posts_burst) = (0, 1);
        (config.quota.polls_per_s, config.quota.polls_burst) = (0, 1);
    })
    .await;
    let key = crate::bearer(&guarded.key("shop", &[fanfold::domain::Scope::Publish]).await);
    let token = format!("Bearer {}", guarded.ring.token("ben"));
    for _ in 0..20 {
        let body = json!({"type": "t", "audience": {"viewers": ["ben"]}});
        let post = guarded.service.ask("POST", "/v1/posts").header("authorization", &key).json(body).send().await;
        assert_eq!((post.status, post.header("ratelimit")), (202, ""), "{post:?}");
        let poll = guarded.service.ask("GET", "/v1/viewers/ben/revision").header("authorization", &token).send().await;
        assert_eq!(poll.status, 200, "{poll:?}");
    }
}

#[test]
fn beyond_loopback_it_starts_with_access_control_and_not_without() {
    let dir = tempfile::tempdir().expect("a folder");
    let check = |env: &[(&str, &str)]| {
        let env: Vec<_> = env.iter().copied().chain([("FANFOLD_LISTEN", "0.0.0.0:8470")]).collect();
        fanfold(dir.path(), &["config", "check"], &env)
    };
    refused(&check(&[]), &["http.listen", "access.mode", "fanfold init"]);
    let output = check(&[("FANFOLD_ACCESS__MODE", "on")]);
    assert!(output.status.success(), "no flag that says insecure is needed: {output:?}");
    for binary in WORKERS {
        let words = ["worker.listen", "0.0.0.0:0", "--insecure-listen-beyond-loopback"];
        refused(&worker(binary, &["--listen", "0.0.0.0:0"], &[]), &words);
        refused(&worker(binary, &[], &[("FANFOLD_WORKER__LISTEN", "0.0.0.0:0")]), &words);
    }
}

#[test]
fn a_secret_on_the_command_line_is_refused_and_not_repeated() {
    let dir = tempfile::tempdir().expect("a folder");
    let key = KeyText { id: KeyId::from_bytes([7; 8]), secret: KeySecret::random() }.reveal();
    let token = SigningKey::generate("a", Algorithm::HS256).token("ben");
    let secret = key.rsplit('_').next().expect("the secret");
    let (assigned, basic) = (format!("--key={key}"), format!("http://{}:{secret}@127.0.0.1:1", "07".repeat(8)));
    let silent = |output: &Output| {
        let told = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
        assert!(!told.contains(secret) && !told.contains(&token) && !told.contains("hunter2"), "{told}");
    };
    for arguments in [
        vec!["inbox", "ben", "--key", &key],
        vec!["keys", "list", &assigned],
        vec!["watch", "ben", &token],
        vec!["keys", "list", "--url", &basic],
    ] {
        let output = fanfold(dir.path(), &arguments, &[]);
        refused(&output, &["FANFOLD_KEY", "--key-file", "rotate"]);
        silent(&output);
    }
    for text in [&key, &token] {
        for argument in [format!("Bearer {text}"), format!("http://127.0.0.1:1/?k={text}&x=1")] {
            let output = fanfold(dir.path(), &["inbox", "ben", &argument], &[]);
            refused(&output, &["FANFOLD_KEY", "--key-file", "rotate"]);
            silent(&output);
        }
    }
    // What is no key of ours may be a secret of others; and the environment is no argument.
    let password = "https://shop:hunter2@127.0.0.1:1";
    for url in
        [&basic, password, "http://hunter2@127.0.0.1:1", "http://shop:hunter2@", "http://127.0.0.1:1?key=hunter2"]
    {
        for output in [
            fanfold(dir.path(), &["inbox", "ben"], &[("FANFOLD_URL", url)]),
            fanfold(dir.path(), &["health"], &[("FANFOLD_URL", url)]),
        ] {
            refused(&output, &["--url"]);
            silent(&output);
        }
    }
    for binary in WORKERS {
        for argument in [&key, &token, &assigned] {
            let output = worker(binary, &[argument], &[]);
            refused(&output, &["rotate"]);
            silent(&output);
        }
    }
}
