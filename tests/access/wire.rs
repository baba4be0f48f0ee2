//! What is on the wire around an answer: headers for browsers, cross-origin requests, TLS.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use fanfold::domain::Scope;
use rcgen::{CertifiedKey, generate_simple_self_signed};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use crate::support::{Reply, Service};
use crate::wait::eventually;
use crate::{Guarded, bearer};

#[tokio::test]
async fn an_answer_tells_browsers_to_run_and_keep_nothing() {
    let service = Service::start().await;
    for path in ["/v1/viewers/ben/inbox", "/livez", "/v1/nothing", "/openapi.json"] {
        let reply = service.get(path).await;
        assert_eq!(reply.header("x-content-type-options"), "nosniff", "{path}");
        assert_eq!(reply.header("content-security-policy"), "default-src 'none'; frame-ancestors 'none'", "{path}");
        assert_eq!(reply.header("referrer-policy"), "no-referrer", "{path}");
        assert_eq!(reply.header("access-control-allow-origin"), "", "{path}: nobody has asked for it");
        assert_eq!(reply.header("strict-transport-security"), "", "{path}: not without TLS");
    }
}

async fn preflight(service: &Service, origin: &str) -> Reply {
    let ask = service.ask("OPTIONS", "/v1/viewers/ben/inbox").header("origin", origin);
    ask.header("access-control-request-method", "GET").send().await
}

#[tokio::test]
async fn pages_of_listed_origins_may_call_and_others_may_not() {
    const APP: &str = "https://app.example.org";
    let guarded = Guarded::start_with(|config| config.cors.origins = format!("{APP}, http://localhost:3000")).await;
    let service = &guarded.service;
    let reply = preflight(service, APP).await;
    assert_eq!((reply.status, reply.header("access-control-allow-origin")), (204, APP));
    assert!(reply.header("access-control-allow-headers").contains("authorization"), "{reply:?}");
    assert!(reply.header("access-control-allow-methods").contains("DELETE"), "{reply:?}");
    for origin in ["https://evil.example.org", "https://app.example.org.evil", "null", "http://app.example.org"] {
        let reply = preflight(service, origin).await;
        assert_eq!((reply.status, reply.header("access-control-allow-origin")), (405, ""), "{origin}");
    }
    // A refusal, too, is for the page to read.
    let refused = service.ask("GET", "/v1/viewers/ben/inbox").header("origin", APP).send().await;
    assert_eq!((refused.status, refused.header("access-control-allow-origin")), (401, APP));
    assert!(refused.header("vary").contains("Origin"), "{refused:?}");
    assert!(refused.header("access-control-expose-headers").contains("x-poll-interval"));
    assert_eq!(refused.header("access-control-allow-credentials"), "", "cookies are never involved");
}

#[tokio::test]
async fn all_origins_may_if_the_configuration_says_so_and_none_if_it_says_nothing() {
    let all = Guarded::start_with(|config| config.cors.origins = "*".into()).await;
    assert_eq!(preflight(&all.service, "https://any.example").await.header("access-control-allow-origin"), "*");
    let none = Guarded::start().await;
    assert_eq!(preflight(&none.service, "https://any.example").await.status, 405);
}

struct Pair {
    certificate: CertificateDer<'static>,
}

/// A certificate and key of its own in two files.
fn certify(dir: &Path) -> Pair {
    let CertifiedKey { cert, signing_key } = generate_simple_self_signed(vec!["localhost".to_owned()]).expect("made");
    let (certificate, key) = (dir.join("cert.pem"), dir.join("key.pem"));
    let _ = std::fs::remove_file(&key);
    fanfold::files::write_private(&key, &signing_key.serialize_pem()).expect("written");
    std::fs::write(&certificate, cert.pem()).expect("written");
    Pair { certificate: cert.der().clone() }
}

/// `GET /livez` over TLS, trusting one certificate.
async fn get(service: &Service, trusted: &Pair) -> std::io::Result<String> {
    get_path(service, trusted, "/livez").await
}

async fn get_path(service: &Service, trusted: &Pair, path: &str) -> std::io::Result<String> {
    let mut roots = RootCertStore::empty();
    roots.add(trusted.certificate.clone()).expect("a certificate");
    let provider = Arc::new(tokio_rustls::rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let stream = TcpStream::connect(service.running.addr).await?;
    let name = ServerName::try_from("localhost").expect("a name");
    let mut stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

async fn start(dir: &Path) -> Service {
    let file = |name: &str| dir.join(name).display().to_string();
    Service::start_with(|config| {
        config.tls.certificate_file = file("cert.pem");
        config.tls.key_file = file("key.pem");
        config.tls.reload_ms = 20;
        config.tls.handshake_timeout_ms = 500;
    })
    .await
}

#[tokio::test]
async fn it_speaks_tls_and_takes_a_new_certificate_without_a_restart() {
    let dir = tempfile::tempdir().expect("a folder");
    let old = certify(dir.path());
    let service = start(dir.path()).await;
    let answer = get(&service, &old).await.expect("trusted");
    assert!(answer.starts_with("HTTP/1.1 200"));
    assert!(answer.contains("strict-transport-security: max-age=31536000\r\n"), "come back this way: {answer}");

    // A broken one changes nothing.
    let broken = async || {
        let metrics = get_path(&service, &old, "/metrics").await.expect("trusted");
        let line = "fanfold_tls_reloads_total{result=\"error\"} ";
        metrics.lines().find_map(|text| text.strip_prefix(line)?.parse::<u64>().ok()).unwrap_or(0)
    };
    let before = broken().await;
    std::fs::write(dir.path().join("cert.pem"), "no certificate").expect("written");
    eventually("the broken certificate is met", async || broken().await > before).await;
    assert!(get(&service, &old).await.expect("still trusted").starts_with("HTTP/1.1 200"));

    let new = certify(dir.path());
    eventually("the new certificate is taken", async || get(&service, &new).await.is_ok()).await;
    get(&service, &old).await.expect_err("the old one has gone");
}

#[tokio::test]
async fn who_does_not_shake_hands_is_cut_and_others_are_served() {
    let dir = tempfile::tempdir().expect("a folder");
    let pair = certify(dir.path());
    let service = start(dir.path()).await;
    let mut silent = TcpStream::connect(service.running.addr).await.expect("connected");
    let mut plain = TcpStream::connect(service.running.addr).await.expect("connected");
    plain.write_all(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n").await.expect("sent");
    assert!(get(&service, &pair).await.expect("served").starts_with("HTTP/1.1 200"));
    let mut rest = Vec::new();
    let cut = tokio::time::timeout(Duration::from_secs(20), silent.read_to_end(&mut rest)).await;
    assert!(cut.is_ok(), "it is not waited for");
    let _ = tokio::time::timeout(Duration::from_secs(20), plain.read_to_end(&mut rest)).await.expect("nor is this one");
    assert!(!String::from_utf8_lossy(&rest).contains("HTTP/1.1"), "no plain text where TLS is asked for");
}

#[tokio::test]
async fn a_certificate_that_cannot_be_used_is_told_at_the_start() {
    use std::os::unix::fs::PermissionsExt as _;

    let dir = tempfile::tempdir().expect("a folder");
    certify(dir.path());
    let open = |certificate: &str, key: &str| {
        let mut config = crate::defaults().tls;
        config.certificate_file = dir.path().join(certificate).display().to_string();
        config.key_file = dir.path().join(key).display().to_string();
        fanfold::http::Tls::open(&config).expect_err("unusable")
    };
    assert_eq!(
        (open("nowhere", "key.pem").code(), open("cert.pem", "nowhere").code()),
        ("file_unusable", "file_unusable")
    );
    assert_eq!(open("key.pem", "key.pem").code(), "invalid_tls");
    let other = tempfile::tempdir().expect("a folder");
    certify(other.path());
    std::fs::copy(other.path().join("key.pem"), dir.path().join("other.pem")).expect("copied");
    let error = open("cert.pem", "other.pem");
    assert!(error.to_string().contains("does not belong"), "{error}");
    std::fs::set_permissions(dir.path().join("key.pem"), std::fs::Permissions::from_mode(0o644)).expect("set");
    assert_eq!(open("cert.pem", "key.pem").code(), "secret_file_exposed");
}

#[tokio::test]
async fn whose_key_is_revoked_while_they_send_a_body_has_done_nothing() {
    let guarded = Guarded::start().await;
    let service = &guarded.service;
    let admin = bearer(&guarded.key("ops", &[Scope::Admin]).await);
    let leaked = guarded.key("leaked", &[Scope::Admin, Scope::Publish]).await;
    let keys = async || service.ask("GET", "/v1/keys").header("authorization", &admin).send().await.json();
    let before = keys().await["keys"].as_array().expect("keys").len();
    let post = r#"{"type":"t","audience":{"viewers":["ben"]}}"#;
    let mut slow = Vec::new();
    for (path, body) in [("/v1/keys", r#"{"name":"back door","scopes":["admin"]}"#), ("/v1/posts", post)] {
        let mut stream = TcpStream::connect(service.running.addr).await.expect("connected");
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: x\r\nauthorization: {}\r\ncontent-type: application/json\r\n\
             content-length: {}\r\nexpect: 100-continue\r\nconnection: close\r\n\r\n",
            bearer(&leaked),
            body.len()
        );
        stream.write_all(head.as_bytes()).await.expect("sent");
        // The body is asked for: the head has been let in.
        let mut told = [0; 25];
        stream.read_exact(&mut told).await.expect("an interim answer");
        assert_eq!(told.as_slice(), b"HTTP/1.1 100 Continue\r\n\r\n", "{path}");
        slow.push((path, body, stream));
    }
    let revoke = service.ask("DELETE", &format!("/v1/keys/{}", leaked.id)).header("authorization", &admin);
    assert_eq!(revoke.send().await.status, 200);
    for (path, body, mut stream) in slow {
        stream.write_all(body.as_bytes()).await.expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("an answer");
        assert!(answer.starts_with("HTTP/1.1 401 ") && answer.contains("\"key_revoked\""), "{path}: {answer}");
    }
    assert_eq!(keys().await["keys"].as_array().expect("keys").len(), before, "there is no new key");
}
