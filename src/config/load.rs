//! Loading: defaults, file, environment, flags, each over the one before; every value is checked where it comes in.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::IntoDeserializer;
use toml::de::{DeTable, DeValue};
use toml::{Spanned, Table, Value};

use super::rules::{self, Rule};
use super::{AccessMode, Config, LogFormat, Mode};
use crate::error::{Error, Kind, Result};
use crate::files;

/// The manual, and the very defaults.
pub const DEFAULT_TOML: &str = include_str!("../../config.default.toml");

const PREFIX: &str = "FANFOLD_";
/// Names the configuration file.
const FILE_VARIABLE: &str = "FANFOLD_CONFIG";
/// The variables with a short name, and the keys they set.
const SHORT_NAMES: [(&str, &str); 4] = [
    ("FANFOLD_MODE", "service.mode"),
    ("FANFOLD_LISTEN", "http.listen"),
    ("FANFOLD_DATA", "store.data"),
    ("FANFOLD_LOG", "log.filter"),
];
/// Variables that are not the service's: where the command line talks to, whom it trusts and with which key, and what
/// belongs to development.
const FOREIGN_NAMES: [&str; 4] = ["FANFOLD_URL", "FANFOLD_CA_FILE", "FANFOLD_KEY", "FANFOLD_KEY_FILE"];
const FOREIGN_PREFIXES: [&str; 3] = ["FANFOLD_TEST_", "FANFOLD_STACK_", "FANFOLD_BENCH_"];

/// What the command line sets, stronger than all else.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    /// `--config`: the file to read, instead of the one that `FANFOLD_CONFIG` names.
    pub file: Option<PathBuf>,
    /// `--listen`.
    pub listen: Option<SocketAddr>,
    /// `--data`.
    pub data: Option<PathBuf>,
    /// `--insecure-listen-beyond-loopback`; false leaves the decision to the file and the environment.
    pub insecure_listen_beyond_loopback: bool,
    /// `--mode`.
    pub mode: Option<Mode>,
    /// `--wait-for`, in seconds.
    pub wait_for_s: Option<u32>,
    /// `--listen` of a worker.
    pub worker_listen: Option<SocketAddr>,
    /// `--log-format`.
    pub log_format: Option<LogFormat>,
    /// `--log`.
    pub log_filter: Option<String>,
}

/// The configuration: `overrides` beat `env` beats the file beats the defaults. The environment is passed in, so that
/// tests have their own; only the command line reads the real one.
pub fn load(overrides: &Overrides, env: impl IntoIterator<Item = (String, String)>) -> Result<Config> {
    // Sorted, so that of several faults it is always the same one that is reported.
    let env: BTreeMap<_, _> = env.into_iter().filter(|(name, value)| is_ours(name, value)).collect();
    let mut settings = Table::new();
    apply_toml(&mut settings, DEFAULT_TOML, "config.default.toml")?;
    let file = overrides.file.clone().or_else(|| env.get(FILE_VARIABLE).map(PathBuf::from));
    if let Some(file) = file {
        let (text, name) = (read(&file)?, file.display().to_string());
        let mut own = Table::new();
        apply_toml(&mut own, &text, &name)?;
        check_secrets(&settings, &own, &file)?;
        apply_toml(&mut settings, &text, &name)?;
    }
    apply_env(&mut settings, env)?;
    // The rules have been through every value, so what fails here is a rule at odds with its field.
    let mut config = Config::deserialize(settings.into_deserializer())
        .map_err(|error| Error::internal("the configuration's rules do not match its fields").with_source(error))?;
    overrides.apply(&mut config);
    check_together(&config)?;
    Ok(config)
}

impl Overrides {
    fn apply(&self, config: &mut Config) {
        let Self {
            file: _,
            listen,
            data,
            insecure_listen_beyond_loopback,
            mode,
            wait_for_s,
            worker_listen,
            log_format,
            log_filter,
        } = self;
        config.service.mode = mode.unwrap_or(config.service.mode);
        config.service.wait_for_s = wait_for_s.unwrap_or(config.service.wait_for_s);
        config.worker.listen = worker_listen.unwrap_or(config.worker.listen);
        config.http.listen = listen.unwrap_or(config.http.listen);
        config.http.insecure_listen_beyond_loopback |= insecure_listen_beyond_loopback;
        config.log.format = log_format.unwrap_or(config.log.format);
        if let Some(data) = data {
            config.store.data.clone_from(data);
        }
        if let Some(filter) = log_filter {
            config.log.filter.clone_from(filter);
        }
    }
}

/// An error if the file sets a secret and others may read it. What stands in the defaults is known to everybody.
fn check_secrets(defaults: &Table, own: &Table, file: &Path) -> Result<()> {
    fn find<'a>(settings: &'a Table, key: &str) -> Option<&'a Value> {
        let (section, name) = key.split_once('.')?;
        settings.get(section)?.get(name)
    }
    // An address holds one only if it has a password in it.
    let is_secret = |value: &Value| {
        value.as_str().is_some_and(|text| !text.is_empty() && (!text.contains("://") || text.contains('@')))
    };
    let holds_secret = |key: &&str| {
        let value = find(own, key).filter(|value| find(defaults, key) != Some(value));
        value.is_some_and(|value| is_secret(value) || value.as_array().is_some_and(|list| list.iter().any(is_secret)))
    };
    match rules::keys().filter(|key| rules::is_secret(key)).find(holds_secret) {
        Some(key) => files::check_private(file, key),
        None => Ok(()),
    }
}

fn read(file: &Path) -> Result<String> {
    std::fs::read_to_string(file).map_err(|error| {
        let shown = file.display();
        if error.kind() == std::io::ErrorKind::NotFound {
            return Error::not_found("config_not_found", format!("there is no configuration file {shown}"));
        }
        Error::new(Kind::Invalid, "invalid_config", format!("cannot read {shown}")).with_source(error)
    })
}

/// Puts the keys of a TOML text over what `settings` has; `name` is what messages call the text.
fn apply_toml(settings: &mut Table, text: &str, name: &str) -> Result<()> {
    let origin = |span: Range<usize>| format!("{name}, line {}", line(text, span.start));
    let document = DeTable::parse(text).map_err(|error| {
        let place = origin(error.span().unwrap_or_default());
        Error::new(Kind::Invalid, "invalid_config", format!("{place}: {}", error.message()))
    })?;
    for (section, content) in document.into_inner() {
        let place = origin(section.span());
        let section = section.into_inner();
        let DeValue::Table(entries) = content.into_inner() else {
            return Err(not_in_a_section(&section, &place));
        };
        if !rules::sections().any(|known| known == section) {
            return Err(unknown_key(&section, &place, rules::nearest(&section, ".", rules::sections())));
        }
        for (key, value) in entries {
            let place = origin(key.span());
            let key = format!("{section}.{}", key.into_inner());
            let Some(rule) = rules::rule(&key) else {
                return Err(unknown_key(&key, &place, rules::nearest(&key, ".", rules::keys())));
            };
            set(settings, &key, rule, to_value(&key, rule, value, &place)?, &place)?;
        }
    }
    Ok(())
}

fn to_value(key: &str, rule: Rule, value: Spanned<DeValue<'_>>, origin: &str) -> Result<Value> {
    Value::deserialize(toml::de::ValueDeserializer::from(value)).map_err(|_| {
        // The document is well-formed, so this is all that can be wrong with a value.
        let detail = format!("must be {}, is a number beyond 64 bits ({origin})", rule.expected());
        Error::invalid("invalid_config", key, detail)
    })
}

/// The number of the line that byte `offset` of `text` stands in.
fn line(text: &str, offset: usize) -> usize {
    1 + text.bytes().take(offset).filter(|byte| *byte == b'\n').count()
}

/// A key at the top of the file, or a section's name with a plain value.
fn not_in_a_section(name: &str, origin: &str) -> Error {
    if rules::sections().any(|known| known == name) {
        return Error::invalid("invalid_config", name, format!("must be a section, [{name}] ({origin})"));
    }
    unknown_key(name, origin, rules::nearest(name, ".", rules::keys()))
}

fn unknown_key(name: &str, origin: &str, nearest: &str) -> Error {
    let detail = format!("is not a configuration key ({origin}); the nearest known one is {nearest}");
    Error::invalid("unknown_config_key", name, detail)
}

/// Puts the variables of the environment over what `settings` has.
fn apply_env(settings: &mut Table, env: BTreeMap<String, String>) -> Result<()> {
    let mut set_by = BTreeMap::<&str, String>::new();
    for (name, text) in env {
        if name == FILE_VARIABLE {
            continue;
        }
        let Some((key, rule)) = key_of_variable(&name) else {
            return Err(unknown_variable(&name));
        };
        if let Some(other) = set_by.get(key) {
            let detail = format!("must be set once, is set by {other} and by {name}");
            return Err(Error::invalid("invalid_config", key, detail));
        }
        set(settings, key, rule, rule.read(text), &name)?;
        set_by.insert(key, name);
    }
    Ok(())
}

/// The long name of a key's variable.
pub(super) fn variable(key: &str) -> String {
    format!("{PREFIX}{}", key.replace('.', "__").to_uppercase())
}

fn key_of_variable(name: &str) -> Option<(&'static str, Rule)> {
    let short = SHORT_NAMES.iter().find(|(short, _)| *short == name).map(|(_, key)| *key);
    rules::RULES.iter().find(|(key, _)| short == Some(key) || variable(key) == name).copied()
}

fn unknown_variable(name: &str) -> Error {
    let known: Vec<String> = rules::keys()
        .map(variable)
        .chain(SHORT_NAMES.iter().map(|(short, _)| (*short).to_owned()))
        .chain([FILE_VARIABLE.to_owned()])
        .collect();
    // Without the prefix, which all share and which would be the whole tail of a name without a section.
    let bare = known.iter().filter_map(|known| known.strip_prefix(PREFIX));
    let nearest = rules::nearest(name.strip_prefix(PREFIX).unwrap_or(name), "__", bare);
    let detail = format!("is not a variable of the configuration; the nearest known one is {PREFIX}{nearest}");
    Error::invalid("unknown_config_key", name, detail)
}

/// Whether a variable is meant for the configuration at all.
fn is_ours(name: &str, value: &str) -> bool {
    // Kubernetes describes a service named fanfold to every container in these words; refusing to start over them
    // would help nobody.
    let service_link = name.ends_with("_SERVICE_HOST")
        || name.contains("_SERVICE_PORT")
        || name.contains("_TCP")
        || value.starts_with("tcp://");
    name.starts_with(PREFIX)
        && !value.is_empty()
        && !FOREIGN_NAMES.contains(&name)
        && !FOREIGN_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
        && !service_link
}

/// Checks one value and puts it in its place.
fn set(settings: &mut Table, key: &str, rule: Rule, value: Value, origin: &str) -> Result<()> {
    rule.check(key, &value, origin)?;
    let (section, name) = key.split_once('.').unwrap_or((key, ""));
    let entries = settings.entry(section).or_insert_with(|| Value::Table(Table::new()));
    if let Value::Table(entries) = entries {
        entries.insert(name.to_owned(), value);
    }
    Ok(())
}

/// The checks that need more than one value.
fn check_together(config: &Config) -> Result<()> {
    let Config { http, publish, inbox, poll, relay, store, .. } = config;
    check_access(config)?;
    let bodies = ("http.bodies_bytes_max", http.bodies_bytes_max);
    at_most(("http.request_body_bytes_max", http.request_body_bytes_max), bodies)?;
    at_most(("http.batch_body_bytes_max", http.batch_body_bytes_max), bodies)?;
    at_most(("inbox.page_default", inbox.page_default.into()), ("inbox.page_max", inbox.page_max.into()))?;
    at_most(("inbox.page_max", inbox.page_max.into()), ("inbox.items_max", inbox.items_max.into()))?;
    at_most(("poll.interval_s", poll.interval_s.into()), ("poll.interval_s_max", poll.interval_s_max.into()))?;
    at_most(
        ("relay.redrive_after_ms", relay.redrive_after_ms),
        ("relay.redrive_after_ms_max", relay.redrive_after_ms_max),
    )?;
    let redis = &config.redis;
    at_most(
        ("redis.fence_check_ms", redis.fence_check_ms),
        ("redis.fence_confirm_ms_max", redis.fence_confirm_ms_max),
    )?;
    let age = config.revisions.token_age_s_max;
    if config.service.mode == Mode::Cluster && redis.record_ttl_s <= age {
        let detail = format!(
            "must be more than revisions.token_age_s_max ({age}), is {}: tokens would end early",
            redis.record_ttl_s
        );
        return Err(Error::limit("invalid_config", "redis.record_ttl_s", detail, age, redis.record_ttl_s));
    }
    at_most(("store.memtable_bytes", store.memtable_bytes), ("store.journal_bytes_max", store.journal_bytes_max))?;
    let (garbage, keys) = (relay.garbage_after_s, publish.idempotency_ttl_s);
    if garbage <= keys {
        let detail = format!(
            "must be more than publish.idempotency_ttl_s ({keys}), is {garbage}: a retry would find its chunks swept"
        );
        return Err(Error::limit("invalid_config", "relay.garbage_after_s", detail, keys, garbage));
    }
    Ok(())
}

/// Who can connect, and what they have to show.
fn check_access(config: &Config) -> Result<()> {
    let Config { http, worker, access, cors, tls, .. } = config;
    let open = access.mode == AccessMode::Off && !http.insecure_listen_beyond_loopback;
    // A mapped IPv4 address is judged as what it maps to.
    let reachable = |listen: &SocketAddr| !listen.ip().to_canonical().is_loopback();
    let each = [("http.listen", http.listen), ("worker.listen", worker.listen)];
    if let Some((key, listen)) = each.into_iter().find(|(_, listen)| open && reachable(listen)) {
        let detail = format!(
            "{listen} can be reached from other machines and nobody is authenticated; set access.mode = \"on\" (`fanfold \
             init` writes a configuration), listen on 127.0.0.1, or pass --insecure-listen-beyond-loopback if something \
             in front authenticates"
        );
        return Err(Error::invalid("listen_beyond_loopback", key, detail));
    }
    if !access.jwks.is_empty() && !access.jwks_file.is_empty() {
        let detail = "must not be set together with access.jwks: which of them is meant?";
        return Err(Error::invalid("invalid_config", "access.jwks_file", detail));
    }
    if tls.certificate_file.is_empty() != tls.key_file.is_empty() {
        let detail = "must be set together with tls.certificate_file, or not at all";
        return Err(Error::invalid("invalid_config", "tls.key_file", detail));
    }
    let is_origin = |origin: &str| {
        let host = origin.strip_prefix("https://").or_else(|| origin.strip_prefix("http://"));
        let visible = |byte: u8| byte.is_ascii_graphic() && byte != b'/';
        origin == "*" || host.is_some_and(|host| !host.is_empty() && host.bytes().all(visible))
    };
    if let Some(odd) = cors.origins().find(|origin| !is_origin(origin)) {
        let detail = format!("must be origins such as https://app.example.org separated by commas, or *; has {odd:?}");
        return Err(Error::invalid("invalid_config", "cors.origins", detail));
    }
    Ok(())
}

fn at_most((key, value): (&str, u64), (bound, limit): (&str, u64)) -> Result<()> {
    if value <= limit {
        return Ok(());
    }
    let detail = format!("must be at most {bound} ({limit}), is {value}");
    Err(Error::limit("invalid_config", key, detail, limit, value))
}
