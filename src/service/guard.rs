//! A look at access control, for `fanfold doctor`: what lets in nobody, or everybody, and what is about to end.

use std::time::Duration;

use crate::access::{KeyBook, Tokens};
use crate::adapters::Store;
use crate::adapters::finding::Finding;
use crate::clock::Clock;
use crate::config::{AccessMode, Config};
use crate::domain::{ProducerKey, Scope, Time};
use crate::error::{Error, Result};
use crate::http::Tls;

const ACCESS: &str = "access";
const TLS: &str = "tls";
/// How long before the end of a key or a certificate it is told: two weeks, so that a holiday lies in between.
const SOON: Duration = Duration::from_secs(14 * 86_400);

/// Looks at everything that can be looked at; `store` is `None` where it cannot be reached.
pub(super) async fn inspect(config: &Config, store: Option<&Store>, clock: &Clock) -> Vec<Finding> {
    let mut findings = match config.access.mode {
        AccessMode::Off => open(config),
        AccessMode::On => {
            let mut findings = match store {
                Some(store) => {
                    let book = KeyBook::new(store, &config.access, clock.clone());
                    keys(book.list().await, clock.now())
                }
                None => vec![Finding::warning(ACCESS, "keys cannot be looked at without the store", "see the store")],
            };
            findings.push(tokens(config, clock));
            findings.extend(clear_text(config));
            findings.extend(clear_metrics(config));
            findings
        }
    };
    findings.extend(config.tls.is_on().then(|| certificate(config, clock.now())));
    findings
}

/// What it means that nobody has to show anything.
fn open(config: &Config) -> Vec<Finding> {
    let advice = "set access.mode = \"on\"; `fanfold init` writes a configuration with it";
    let reachable = [("http.listen", config.http.listen), ("worker.listen", config.worker.listen)];
    let reachable = reachable.into_iter().filter(|(_, addr)| !addr.ip().to_canonical().is_loopback());
    let mut findings: Vec<Finding> = reachable
        .map(|(name, addr)| {
            let what = format!("it is off, and {name} ({addr}) can be reached from other machines");
            Finding::warning(ACCESS, what, advice)
        })
        .collect();
    if findings.is_empty() {
        findings.push(Finding::fine(ACCESS, "it is off, and nothing listens beyond loopback"));
    }
    if config.quota.is_set() {
        findings.push(Finding::warning(ACCESS, "quotas are set, and count nothing while it is off", advice));
    }
    findings
}

fn keys(listed: Result<Vec<ProducerKey>>, now: Time) -> Vec<Finding> {
    let listed = match listed {
        Ok(listed) => listed,
        Err(error) => return vec![Finding::wrong(ACCESS, format!("keys cannot be read: {error}"), "see the store")],
    };
    let live: Vec<_> = listed.iter().filter(|key| key.is_live(now)).collect();
    let admins = live.iter().filter(|key| key.scopes.has(Scope::Admin)).count();
    let what = format!("{} keys work, {admins} of them with the scope admin", live.len());
    let mut findings = vec![match admins {
        0 => Finding::wrong(ACCESS, what, "run `fanfold keys create --local --name admin --scope admin --save FILE`"),
        _ => Finding::fine(ACCESS, what),
    }];
    let ending = live.iter().filter_map(|key| Some((key.expires_at?, key)));
    let ending: Vec<_> = ending.filter(|(end, _)| end.since(now) < SOON).collect();
    if let Some((end, first)) = ending.iter().min_by_key(|(end, _)| *end) {
        let what =
            format!("{} keys end soon, the first ({}, {}) in {}", ending.len(), first.id, first.name, days(*end, now));
        findings.push(Finding::warning(ACCESS, what, format!("run `fanfold keys rotate {}`", first.id)));
    }
    findings
}

/// The keys of viewers' tokens, as the processes would read them at their start.
fn tokens(config: &Config, clock: &Clock) -> Finding {
    match Tokens::open(&config.access, clock.clone()) {
        Ok(tokens) if tokens.key_count() == 0 => {
            let what = "no viewer can get in: neither access.jwks nor access.jwks_file names a key for tokens";
            Finding::warning(ACCESS, what, "name one, unless all readers are backends with the scope viewers")
        }
        Ok(tokens) => {
            Finding::fine(ACCESS, format!("keys that viewers' tokens are checked with: {}", tokens.key_count()))
        }
        Err(error) => Finding::wrong(ACCESS, error.to_string(), advice(&error)),
    }
}

fn clear_text(config: &Config) -> Option<Finding> {
    let listen = config.http.listen;
    if config.tls.is_on() || listen.ip().to_canonical().is_loopback() {
        return None;
    }
    let what = format!("http.listen ({listen}) can be reached from other machines, and keys go there in plain text");
    Some(Finding::warning(ACCESS, what, "set [tls], unless a proxy in front does that or the network is closed"))
}

/// A worker's page has no TLS of its own, and beyond loopback its metrics take a key.
fn clear_metrics(config: &Config) -> Option<Finding> {
    let listen = config.worker.listen;
    if listen.ip().to_canonical().is_loopback() {
        return None;
    }
    let what = format!("worker.listen ({listen}) can be reached from other machines, and keys go there in plain text");
    let advice = "show no key there that has more than the scope metrics; close the network, or put a proxy in front";
    Some(Finding::warning(ACCESS, what, advice))
}

fn certificate(config: &Config, now: Time) -> Finding {
    match Tls::open(&config.tls).and_then(|_| Tls::ends(&config.tls)) {
        Err(error) => Finding::wrong(TLS, error.to_string(), advice(&error)),
        Ok(None) => Finding::fine(TLS, "the certificate and its key can be used"),
        Ok(Some(end)) if end <= now => {
            let what = format!("the certificate ended {} ago", days(now, end));
            Finding::wrong(TLS, what, "put a new one in its place: it is read without a restart")
        }
        Ok(Some(end)) if end.since(now) < SOON => {
            let what = format!("the certificate ends in {}", days(end, now));
            Finding::warning(TLS, what, "put a new one in its place: it is read without a restart")
        }
        Ok(Some(end)) => Finding::fine(TLS, format!("the certificate is good for {} more", days(end, now))),
    }
}

fn advice(error: &Error) -> &'static str {
    match error.code() {
        "secret_file_exposed" => "and rotate what is in it: others may have read it",
        "file_unusable" => "check the path, and that the user of the processes may read it",
        "invalid_jwks" | "invalid_tls" => "mend the file; what runs goes on with what it had, and does not start again",
        _ => "see the configuration",
    }
}

fn days(later: Time, earlier: Time) -> String {
    let time = later.since(earlier).as_secs();
    if time < 2 * 86_400 { format!("{} h", time / 3_600) } else { format!("{} days", time / 86_400) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapters::finding::Severity::{self, Fine, Warning, Wrong};
    use crate::config::{self, Overrides, Secret};
    use crate::domain::{KeyId, ProducerId, SecretHash};

    const NOW: Time = Time::from_millis(1_767_225_600_000);
    const DAY: Duration = Duration::from_secs(86_400);

    fn defaults() -> Config {
        config::load(&Overrides::default(), []).expect("the defaults")
    }

    fn is(findings: &[Finding], expected: &[(Severity, &str)]) {
        assert_eq!(findings.len(), expected.len(), "{findings:?}");
        for (finding, (severity, words)) in findings.iter().zip(expected) {
            assert_eq!(finding.severity, *severity, "{finding:?}");
            assert!(finding.what.contains(words), "{words:?} is not in {finding:?}");
            assert_eq!(finding.advice.is_empty(), *severity == Fine, "what to do: {finding:?}");
        }
    }

    #[test]
    fn no_access_control_is_told_where_others_can_connect() {
        let mut config = defaults();
        is(&open(&config), &[(Fine, "nothing listens beyond loopback")]);
        config.http.listen = ([0, 0, 0, 0], 8470).into();
        config.worker.listen = ([10, 0, 0, 1], 8471).into();
        config.quota.polls_per_s = 5;
        is(&open(&config), &[(Warning, "0.0.0.0:8470"), (Warning, "10.0.0.1:8471"), (Warning, "quotas")]);
    }

    fn key(scope: Scope, ends: Option<Time>) -> ProducerKey {
        ProducerKey {
            id: KeyId::from_bytes([7; 8]),
            producer: ProducerId::local(),
            name: "shop".into(),
            scopes: [scope].into_iter().collect(),
            hash: SecretHash([0; 32]),
            created_at: NOW.before(DAY),
            expires_at: ends,
            made_until: None,
            revoked_at: None,
            last_used: None,
        }
    }

    #[test]
    fn keys_that_are_missing_or_end_soon_are_told() {
        is(&keys(Ok(Vec::new()), NOW), &[(Wrong, "0 keys work")]);
        let ended = key(Scope::Admin, Some(NOW));
        is(&keys(Ok(vec![ended, key(Scope::Read, None)]), NOW), &[(Wrong, "1 keys work, 0 of them")]);
        let admin = key(Scope::Admin, Some(NOW.after(400 * DAY)));
        is(&keys(Ok(vec![admin.clone()]), NOW), &[(Fine, "1 of them")]);
        let soon = key(Scope::Read, Some(NOW.after(3 * DAY)));
        is(&keys(Ok(vec![admin, soon]), NOW), &[(Fine, "2 keys work"), (Warning, "in 3 days")]);
        is(&keys(Err(Error::unavailable("store_unavailable", "away")), NOW), &[(Wrong, "away")]);
    }

    #[test]
    fn keys_for_tokens_are_looked_at_as_a_start_would() {
        let mut config = defaults();
        let tokens = |config: &Config| [tokens(config, &Clock::system())];
        is(&tokens(&config), &[(Warning, "no viewer can get in")]);
        config.access.jwks = Secret::from("{");
        is(&tokens(&config), &[(Wrong, "no JWK set")]);
        config.access.jwks = Secret::default();
        let file = tempfile::NamedTempFile::new().expect("a file");
        config.access.jwks_file = file.path().display().to_string();
        is(&tokens(&config), &[(Wrong, "JWK set")]);
        config.access.jwks_file = "/nowhere/jwks.json".to_owned();
        is(&tokens(&config), &[(Wrong, "/nowhere/jwks.json")]);
        let key =
            r#"{"keys":[{"kty":"OKP","crv":"Ed25519","kid":"a","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}"#;
        config.access.jwks = Secret::from(key);
        config.access.jwks_file = String::new();
        is(&tokens(&config), &[(Fine, "checked with: 1")]);
    }

    #[test]
    fn keys_in_plain_text_are_told() {
        let mut config = defaults();
        assert_eq!(clear_text(&config), None, "loopback");
        config.http.listen = ([0, 0, 0, 0], 8470).into();
        is(&clear_text(&config).into_iter().collect::<Vec<_>>(), &[(Warning, "plain text")]);
        config.tls.certificate_file = "c.pem".to_owned();
        assert_eq!((clear_text(&config), clear_metrics(&config)), (None, None));
        // A worker's page has no TLS, whatever the API has.
        config.worker.listen = ([0, 0, 0, 0], 8471).into();
        is(&clear_metrics(&config).into_iter().collect::<Vec<_>>(), &[(Warning, "worker.listen (0.0.0.0:8471)")]);
    }

    #[test]
    fn certificates_that_end_or_cannot_be_used_are_told() {
        let dir = tempfile::tempdir().expect("a folder");
        let mut config = defaults();
        let file = |name: &str| dir.path().join(name).display().to_string();
        (config.tls.certificate_file, config.tls.key_file) = (file("cert.pem"), file("key.pem"));
        is(&[certificate(&config, NOW)], &[(Wrong, "cert.pem")]);
        let mut params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).expect("a name");
        params.not_after = rcgen::date_time_ymd(2026, 3, 1);
        let key = rcgen::KeyPair::generate().expect("a key");
        std::fs::write(dir.path().join("cert.pem"), params.self_signed(&key).expect("signed").pem()).expect("written");
        crate::files::write_private(&dir.path().join("key.pem"), &key.serialize_pem()).expect("written");
        let at = |month, day| Time::from_millis(rcgen::date_time_ymd(2026, month, day).unix_timestamp() * 1_000);
        is(&[certificate(&config, at(1, 1))], &[(Fine, "59 days more")]);
        is(&[certificate(&config, at(2, 20))], &[(Warning, "ends in 9 days")]);
        is(&[certificate(&config, at(3, 2))], &[(Wrong, "ended 24 h ago")]);
    }
}
