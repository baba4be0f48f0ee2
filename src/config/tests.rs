//! Where values come from, which win, and what is refused.

use std::collections::BTreeSet;
use std::io::Write;

use super::load::variable;
use super::rules::{RULES, Rule};
use super::*;
use crate::error::{Error, Kind, Result};

fn load_env(env: &[(&str, &str)]) -> Result<Config> {
    load(&Overrides::default(), env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())))
}

fn file(text: &str) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
    file.write_all(text.as_bytes()).expect("written");
    file
}

fn load_file(text: &str) -> Result<Config> {
    let file = file(text);
    load(&Overrides { file: Some(file.path().to_owned()), ..Overrides::default() }, [])
}

fn refused(result: Result<Config>, code: &str, field: &str, words: &[&str]) -> Error {
    let error = result.expect_err(field);
    assert_eq!((error.code(), error.field()), (code, Some(field)), "{error}");
    for word in words {
        assert!(error.detail().contains(word), "{word:?} is not in {error}");
    }
    error
}

#[test]
fn the_defaults_load_and_are_what_the_manual_says() {
    let config = load_env(&[]).expect("the defaults");
    assert_eq!(config.http.listen.to_string(), "127.0.0.1:8470");
    assert_eq!(config.store.data, PathBuf::from("./fanfold-data"));
    assert_eq!(config.log.format, LogFormat::Text);
    let largest_post = u64::from(config.publish.audience_max) * 131 + u64::from(config.publish.data_bytes_max);
    assert!(largest_post < config.http.request_body_bytes_max);
}

/// The struct refuses unknown keys and misses absent ones, so that the defaults load at all ties it to the manual;
/// this ties the rules to it.
#[test]
fn the_manual_and_the_rules_have_the_same_keys_and_bounds() {
    let (mut section, mut bounds, mut keys) = (String::new(), None, BTreeSet::new());
    for line in DEFAULT_TOML.lines() {
        if let Some(name) = line.strip_prefix('[') {
            section = name.trim_end_matches(']').to_owned();
        } else if line.starts_with('#') {
            let bracket = line.rsplit_once('[').and_then(|(_, rest)| rest.split_once(']'));
            bounds = bracket.and_then(|(inside, _)| inside.split_once("..")).or(bounds);
        } else if let Some((key, _)) = line.split_once(" = ") {
            let key = format!("{section}.{key}");
            let documented = bounds.take().map(|(min, max)| (min.parse().expect(min), max.parse().expect(max)));
            match rules::rule(&key).expect(&key) {
                Rule::Whole { min, max } => assert_eq!(documented, Some((min, max)), "{key}"),
                _ => assert_eq!(documented, None::<(u64, u64)>, "{key}"),
            }
            keys.insert(key);
        } else {
            assert_eq!(line, "", "a key must follow its comment");
        }
    }
    assert_eq!(keys, rules::keys().map(str::to_owned).collect());
}

#[test]
fn every_bound_fits_its_field_and_what_is_beyond_is_refused() {
    let with = |key: &str, value: String| load_env(&[(&variable(key), &value)]);
    for (key, rule) in RULES {
        let Rule::Whole { min, max } = *rule else { continue };
        for value in [min, max] {
            // Some ends clash with other keys' defaults; that must be all that is wrong with them.
            let told = with(key, value.to_string()).err().map(|error| error.to_string()).unwrap_or_default();
            assert!(told.is_empty() || told.contains("at most") || told.contains("more than"), "{told}");
        }
        let error = refused(with(key, (max + 1).to_string()), "invalid_config", key, &[&max.to_string()]);
        assert_eq!(error.limit_and_value(), Some((max, max + 1)));
        let below = min.checked_sub(1).map_or("-1".to_owned(), |below| below.to_string());
        refused(with(key, below.clone()), "invalid_config", key, &[&min.to_string(), &below]);
    }
}

#[test]
fn flags_beat_environment_beats_file_beats_defaults() {
    let file =
        file("[http]\nlisten = \"127.0.0.1:1\"\nwait_s_max = 11\n[store]\ndata = \"file\"\n[inbox]\nitems_max = 500");
    let env = [
        ("FANFOLD_CONFIG", file.path().to_str().expect("a UTF-8 path")),
        ("FANFOLD_LISTEN", "127.0.0.1:2"),
        ("FANFOLD_STORE__DATA", "env"),
        ("FANFOLD_FANOUT__CHUNK_SIZE", "1_00"),
        ("FANFOLD_HTTP__INSECURE_LISTEN_BEYOND_LOOPBACK", "true"),
        ("FANFOLD_LOG__FORMAT", "json"),
        ("FANFOLD_LOG", ""),
    ];
    let env = env.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let flags = Overrides { listen: Some("127.0.0.1:3".parse().expect("an address")), ..Overrides::default() };
    let config = load(&flags, env.clone()).expect("valid");
    assert_eq!(config.http.listen.port(), 3, "flag over environment and file");
    assert_eq!(config.store.data, PathBuf::from("env"), "environment over file");
    assert_eq!((config.http.wait_s_max, config.inbox.items_max), (11, 500), "file over defaults");
    assert_eq!((config.fanout.chunk_size, config.log.format), (100, LogFormat::Json), "nested in the environment");
    assert!(config.http.insecure_listen_beyond_loopback, "an absent flag turns nothing off");
    assert!(config.log.filter.starts_with("info,"), "an empty variable counts as unset");

    let other = self::file("[http]\nwait_s_max = 12");
    let flags = Overrides { file: Some(other.path().to_owned()), log_format: Some(LogFormat::Text), ..flags };
    let config = load(&flags, env).expect("valid");
    assert_eq!((config.http.wait_s_max, config.log.format), (12, LogFormat::Text), "the flag's file");
}

#[test]
fn unknown_keys_name_the_nearest_known_one_and_the_line() {
    let code = "unknown_config_key";
    refused(load_file("[http]\n\nlisen = \"x\""), code, "http.lisen", &["line 3", "known one is http.listen"]);
    refused(load_file("[http]\nchunk_size = 1"), code, "http.chunk_size", &["known one is fanout.chunk_size"]);
    refused(load_file("[fan-out]\nchunk_size = 1"), code, "fan-out", &["line 1", "known one is fanout"]);
    refused(load_file("chunk_sice = 1"), code, "chunk_sice", &["known one is fanout.chunk_size"]);
    for (unknown, nearest) in [
        ("FANFOLD_LISTN", "FANFOLD_LISTEN"),
        ("FANFOLD_CHUNK_SIZE", "FANFOLD_FANOUT__CHUNK_SIZE"),
        ("FANFOLD_INBOX_TTL_S", "FANFOLD_INBOX__TTL_S"),
        ("FANFOLD_CONFIG_FILE", "FANFOLD_CONFIG"),
    ] {
        refused(load_env(&[(unknown, "1")]), code, unknown, &[&format!("known one is {nearest}")]);
    }
}

#[test]
fn variables_of_others_are_left_alone() {
    load_env(&[
        ("PATH", "/bin"),
        ("FANFOLD_URL", "http://127.0.0.1:8470"),
        ("FANFOLD_TEST_SEED", "1"),
        ("FANFOLD_STACK_DIR", "x"),
        ("FANFOLD_BENCH_POSTS", "1"),
        ("FANFOLD_PORT", "tcp://10.0.0.1:8470"),
        ("FANFOLD_SERVICE_HOST", "10.0.0.1"),
        ("FANFOLD_SERVICE_PORT_HTTP", "8470"),
        ("FANFOLD_PORT_8470_TCP_ADDR", "10.0.0.1"),
    ])
    .expect("none of them is ours");
    refused(load_env(&[("FANFOLD_PORT", "9000")]), "unknown_config_key", "FANFOLD_PORT", &[]);
}

#[test]
fn wrong_values_name_key_value_and_what_was_expected() {
    let code = "invalid_config";
    refused(
        load_file("[fanout]\nchunk_size = \"many\""),
        code,
        "fanout.chunk_size",
        &["whole number", "many", "line 2"],
    );
    refused(load_file("[http]\nlisten = \"localhost\""), code, "http.listen", &["IP address", "localhost"]);
    refused(load_file("[log.format]\nx = 1"), code, "log.format", &["\"text\" or \"json\""]);
    refused(load_file("http = 1"), code, "http", &["section", "line 1"]);
    refused(load_file("[relay]\ntick_ms = 99999999999999999999"), code, "relay.tick_ms", &["10 to 60000", "line 2"]);
    refused(load_env(&[("FANFOLD_DATA", "a"), ("FANFOLD_STORE__DATA", "b")]), code, "store.data", &["FANFOLD_DATA"]);
    let env = [("FANFOLD_HTTP__INSECURE_LISTEN_BEYOND_LOOPBACK", "yes")];
    refused(load_env(&env), code, "http.insecure_listen_beyond_loopback", &["true or false", "yes", env[0].0]);
}

#[test]
fn files_that_cannot_be_used_are_told_apart() {
    let error = load_file("[http]\nlisten = ").expect_err("half a line");
    assert_eq!((error.kind(), error.code()), (Kind::Invalid, "invalid_config"));
    assert!(error.detail().contains("line 2"), "{error}");
    let error = load_env(&[("FANFOLD_CONFIG", "/nowhere/fanfold.toml")]).expect_err("missing");
    assert_eq!((error.kind(), error.code()), (Kind::NotFound, "config_not_found"));
    assert!(error.detail().contains("/nowhere/fanfold.toml"), "{error}");
    assert_eq!(load_env(&[("FANFOLD_CONFIG", "/")]).expect_err("a directory").code(), "invalid_config");
}

#[test]
fn values_that_do_not_go_together_are_refused() {
    // Nothing but the first key differs from the defaults unless it says so.
    let bodies = |max: &'static str| Some(("http.bodies_bytes_max", max));
    for (key, value, also, other) in [
        ("http.request_body_bytes_max", "2001", bodies("2000"), "http.bodies_bytes_max (2000)"),
        ("http.batch_body_bytes_max", "67108864", bodies("2097152"), "http.bodies_bytes_max (2097152)"),
        ("inbox.page_default", "101", None, "inbox.page_max (100)"),
        ("inbox.page_max", "1000", Some(("inbox.items_max", "999")), "inbox.items_max (999)"),
        ("poll.interval_s", "121", None, "poll.interval_s_max (120)"),
        ("relay.redrive_after_ms", "50", Some(("relay.redrive_after_ms_max", "49")), "relay.redrive_after_ms_max (49)"),
        ("relay.garbage_after_s", "86400", None, "publish.idempotency_ttl_s (86400)"),
        ("store.memtable_bytes", "268435457", None, "store.journal_bytes_max (268435456)"),
    ] {
        let env: Vec<_> = [Some((key, value)), also].into_iter().flatten().map(|(k, v)| (variable(k), v)).collect();
        let env: Vec<_> = env.iter().map(|(name, value)| (&**name, *value)).collect();
        refused(load_env(&env), "invalid_config", key, &[other, value]);
    }
}

#[test]
fn beyond_loopback_only_with_the_flag_of_that_name() {
    for reachable in ["0.0.0.0:8470", "[::]:8470", "192.168.0.1:1", "[::ffff:10.0.0.1]:1"] {
        let env = [("FANFOLD_LISTEN", reachable)];
        let flag = "--insecure-listen-beyond-loopback";
        refused(load_env(&env), "listen_beyond_loopback", "http.listen", &[flag, reachable]);
        let flags = Overrides { insecure_listen_beyond_loopback: true, ..Overrides::default() };
        let worker = [("FANFOLD_WORKER__LISTEN", reachable)];
        refused(load_env(&worker), "listen_beyond_loopback", "worker.listen", &[flag, reachable]);
        load_env(&[worker[0], ("FANFOLD_ACCESS__MODE", "on")]).expect("its metrics take a key");
        for env in [env, worker] {
            load(&flags, env.map(|(name, value)| (name.to_owned(), value.to_owned()))).expect("insisted upon");
        }
    }
    for safe in ["127.0.0.2:1", "[::1]:1", "[::ffff:127.0.0.1]:0"] {
        load_env(&[("FANFOLD_LISTEN", safe), ("FANFOLD_WORKER__LISTEN", safe)]).expect(safe);
    }
}
