//! The command line over HTTPS: whom it trusts, and what it says when a connection cannot be trusted.

use std::path::Path;
use std::process::Output;

use fanfold::domain::Scope;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};

use crate::Guarded;
use crate::command::{CLI, command};
use crate::support::Service;

/// An authority of one's own in `ca.pem`, and a certificate of its own for `localhost` with its key.
fn certify(dir: &Path) {
    let mut params = CertificateParams::new(Vec::new()).expect("no names");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("signed");
    let key = KeyPair::generate().expect("a key");
    let params = CertificateParams::new(vec!["localhost".to_owned()]).expect("a name");
    let certificate = params.signed_by(&key, &authority).expect("signed");
    std::fs::write(dir.join("ca.pem"), authority.pem()).expect("written");
    std::fs::write(dir.join("cert.pem"), certificate.pem()).expect("written");
    fanfold::files::write_private(&dir.join("key.pem"), &key.serialize_pem()).expect("written");
}

async fn start(dir: &Path) -> Guarded {
    certify(dir);
    let file = |name: &str| dir.join(name).display().to_string();
    Guarded::start_with(|config| {
        config.tls.certificate_file = file("cert.pem");
        config.tls.key_file = file("key.pem");
    })
    .await
}

/// Runs the binary to its end.
async fn run(dir: &Path, line: &str, env: &[(&str, &str)]) -> Output {
    let mut command = command(CLI, line.split_whitespace(), env.iter().copied());
    command.current_dir(dir).output().await.expect("the binary runs")
}

fn told(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_speak_tls_with_an_authority_of_ones_own() {
    let dir = tempfile::tempdir().expect("a folder");
    let guarded = start(dir.path()).await;
    let url = format!("https://localhost:{}", guarded.service.running.addr.port());
    let key = guarded.key("shop", &[Scope::Publish, Scope::Read]).await.reveal();
    let token = guarded.ring.token("ben");
    let here = [("FANFOLD_URL", url.as_str()), ("FANFOLD_CA_FILE", "ca.pem")];
    for (line, key) in [
        ("health", None),
        ("post --to ben --type t --wait", Some(&key)),
        ("inbox ben", Some(&token)),
        ("watch ben --count 1", Some(&token)),
    ] {
        let env: Vec<_> = here.into_iter().chain(key.map(|key| ("FANFOLD_KEY", key.as_str()))).collect();
        let output = run(dir.path(), line, &env).await;
        assert!(output.status.success(), "{line}: {output:?}");
        assert!(!told(&output).contains("warning"), "nobody reads along: {output:?}");
    }
    let output = run(dir.path(), &format!("health --url {url} --ca-file ca.pem"), &[]).await;
    assert!(output.status.success(), "{output:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_cannot_be_trusted_is_told_with_what_to_do() {
    let (dir, other) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let guarded = start(dir.path()).await;
    certify(other.path());
    let stranger = other.path().join("ca.pem").display().to_string();
    std::fs::write(dir.path().join("empty.pem"), "").expect("written");
    let plain = Service::start().await;
    let (port, plain) = (guarded.service.running.addr.port(), plain.running.addr.port());
    let own = "--ca-file ca.pem";
    for (line, words) in [
        (format!("--url https://localhost:{port}"), vec!["not trusted", "--ca-file", "FANFOLD_CA_FILE"]),
        (format!("--url https://localhost:{port} --ca-file {stranger}"), vec!["not trusted", &stranger]),
        (format!("--url https://127.0.0.1:{port} {own}"), vec!["its certificate is for", "localhost"]),
        (format!("--url http://localhost:{port}"), vec!["not HTTP", "https://"]),
        (format!("--url https://localhost:{plain} {own}"), vec!["does not speak TLS", "http://"]),
        (format!("--url https://localhost:{port} --ca-file empty.pem"), vec!["--ca-file empty.pem", "no certificate"]),
        (format!("--url https://localhost:{port} --ca-file nowhere.pem"), vec!["--ca-file", "nowhere.pem"]),
    ] {
        for command in ["health", "inbox ben"] {
            let output = run(dir.path(), &format!("{command} {line}"), &[]).await;
            let told = told(&output);
            assert_eq!(output.status.code(), Some(64), "{line}: {told}");
            assert!(output.stdout.is_empty() && !told.contains("panicked"), "{line}: {output:?}");
            for word in &words {
                assert!(told.contains(word), "{word:?} is not in {told}");
            }
        }
    }
}

/// What `openssl req -x509` makes unless it is told otherwise.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_authority_that_serves_by_itself_is_told_to_sign_another() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut params = CertificateParams::new(vec!["localhost".to_owned()]).expect("a name");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().expect("a key");
    let file = |name: &str| dir.path().join(name);
    std::fs::write(file("cert.pem"), params.self_signed(&key).expect("signed").pem()).expect("written");
    fanfold::files::write_private(&file("key.pem"), &key.serialize_pem()).expect("written");
    let service = Service::start_with(|config| {
        config.tls.certificate_file = file("cert.pem").display().to_string();
        config.tls.key_file = file("key.pem").display().to_string();
    })
    .await;
    let port = service.running.addr.port();
    let output = run(dir.path(), &format!("health --url https://localhost:{port} --ca-file cert.pem"), &[]).await;
    assert_eq!(output.status.code(), Some(64), "{output:?}");
    assert!(told(&output).contains("CA:TRUE"), "{output:?}");
}

#[tokio::test]
async fn a_key_that_others_can_read_along_is_told() {
    let dir = tempfile::tempdir().expect("a folder");
    let key = [("FANFOLD_KEY", "ffk_0")];
    // No such host: it is said before anything is sent.
    let far = run(dir.path(), "inbox ben --url http://feed.invalid:1", &key).await;
    assert_eq!(told(&far).matches("plain text").count(), 1, "{far:?}");
    assert!(!told(&far).contains("ffk_0"), "{far:?}");
    for line in ["inbox ben --url http://127.0.0.1:1", "inbox ben --url https://feed.invalid:1"] {
        assert!(!told(&run(dir.path(), line, &key).await).contains("plain text"), "{line}");
    }
    assert!(!told(&run(dir.path(), "inbox ben --url http://feed.invalid:1", &[]).await).contains("plain text"));
}
