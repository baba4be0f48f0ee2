//! `fanfold keys`: producers' keys, over the API or, while the service is stopped, in its data folder.

use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use reqwest::Method;
use serde::Deserialize;
use serde_json::{Value, json};

use super::client::{Client, Connect};
use super::fault::{Fault, Result};
use super::{duration, out, serve};
use crate::access::{Caller, IssuedKey, KeyBook, NewKey, audit, parse_scopes};
use crate::config::{Config, Log, Overrides};
use crate::domain::KeyId;
use crate::files;

const EXAMPLES: &str = "\
Examples:
  export FANFOLD_KEY=\"$(cat fanfold-admin.key)\"                       a key with the scope admin
  fanfold keys create --name shop --scope publish,read --expires 90d
  fanfold keys list
  fanfold keys rotate 3f6c0a9d5e21b784 --overlap 1h
  fanfold keys revoke 3f6c0a9d5e21b784";

const CREATE_EXAMPLES: &str = "\
Examples:
  fanfold keys create --name shop --scope publish,read
  fanfold keys create --name app --scope viewers,tokens --expires 90d --save app.key
  fanfold keys create --name ops --scope admin --local        the first one; an embedded service must be stopped";

const LIST_EXAMPLES: &str = "\
Examples:
  fanfold keys list
  fanfold keys list --output json";

const REVOKE_EXAMPLES: &str = "\
Examples:
  fanfold keys revoke 3f6c0a9d5e21b784";

const ROTATE_EXAMPLES: &str = "\
Examples:
  fanfold keys rotate 3f6c0a9d5e21b784                    both keys work for a day
  fanfold keys rotate 3f6c0a9d5e21b784 --overlap 0s       the old one ends now
  fanfold keys rotate 3f6c0a9d5e21b784 --save shop.key";

/// Make, list, rotate and revoke producers' keys
#[derive(Debug, clap::Args)]
#[command(before_help = EXAMPLES)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Make a key; it is shown once
    #[command(before_help = CREATE_EXAMPLES)]
    Create(CreateArgs),
    /// List keys; their secrets are nowhere
    #[command(before_help = LIST_EXAMPLES)]
    List {
        #[command(flatten)]
        connect: Connect,
    },
    /// Take a key back, for good
    #[command(before_help = REVOKE_EXAMPLES)]
    Revoke {
        /// The key's id
        #[arg(value_parser = key_id)]
        key: KeyId,
        #[command(flatten)]
        connect: Connect,
    },
    /// Make a key's successor; both work for a while
    #[command(before_help = ROTATE_EXAMPLES)]
    Rotate {
        /// The key's id
        #[arg(value_parser = key_id)]
        key: KeyId,
        /// How long the old key works on [default: a day]
        #[arg(long, value_name = "TIME", value_parser = duration::parse)]
        overlap: Option<Duration>,
        /// Write the new key to a file that only you can read, instead of showing it
        #[arg(long, value_name = "FILE")]
        save: Option<PathBuf>,
        #[command(flatten)]
        connect: Connect,
    },
}

#[derive(Debug, clap::Args)]
struct CreateArgs {
    /// What people call it
    #[arg(long)]
    name: String,
    /// What it opens: publish, read, viewers, tokens, metrics, admin; separated by commas, or repeated
    #[arg(long = "scope", required = true, value_delimiter = ',')]
    scopes: Vec<String>,
    /// Whom it stands for [default: the name]; `local` for what was published without keys
    #[arg(long)]
    producer: Option<String>,
    /// How long it works [default: for ever]
    #[arg(long, value_name = "TIME", value_parser = duration::parse)]
    expires: Option<Duration>,
    /// Write the key to a file that only you can read, instead of showing it
    #[arg(long, value_name = "FILE")]
    save: Option<PathBuf>,
    /// Make it in the store of the configuration, without a service: for the first key. An embedded service must be stopped
    #[arg(long)]
    local: bool,
    /// With --local: the service's configuration [env: FANFOLD_CONFIG]
    #[arg(long, value_name = "FILE", requires = "local")]
    config: Option<PathBuf>,
    /// With --local: the service's data folder [env: FANFOLD_DATA]
    #[arg(long, value_name = "DIR", requires = "local")]
    data: Option<PathBuf>,
    #[command(flatten)]
    connect: Connect,
}

fn key_id(text: &str) -> Result<KeyId, String> {
    KeyId::parse(text).ok_or_else(|| "must be sixteen hexadecimal digits, as `fanfold keys list` shows them".to_owned())
}

/// A key as the service tells of it.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Told {
    key_id: String,
    name: String,
    producer: String,
    scopes: Vec<String>,
    state: String,
    expires_at: Option<String>,
    last_used_at: Option<String>,
}

/// Runs `fanfold keys`.
pub async fn run(args: Args) -> Result<()> {
    match args.command {
        Command::Create(args) if args.local => create_local(args).await,
        Command::Create(args) => create(args).await,
        Command::List { connect } => list(&connect).await,
        Command::Revoke { key, connect } => {
            let client = connect.client()?;
            let told: Value = client.send(client.call(Method::DELETE, &format!("/v1/keys/{key}"))).await?.json()?;
            if connect.json() { out::json(&told) } else { out::line(format_args!("{key}  revoked")) }
        }
        Command::Rotate { key, overlap, save, connect } => {
            check_free(save.as_deref())?;
            let body = json!({"overlap_seconds": overlap.map(|overlap| overlap.as_secs())});
            let client = connect.client()?;
            let told = post(&client, &format!("/v1/keys/{key}/rotate"), &body).await?;
            let replaced: Told = serde_json::from_value(told["replaced"].clone()).unwrap_or_default();
            match replaced.expires_at.filter(|_| replaced.state == "live") {
                // What an older service answers says nothing of it: there a rotation without an end is an error.
                _ if told["replaced_ends"] == false => {
                    out::note(format_args!("{key} may work on, its end could not be written: revoke it"));
                }
                Some(until) => out::note(format_args!("{key} works until {until}")),
                None => out::note(format_args!("{key} works no more")),
            }
            hand_over(told["key"].clone(), save.as_deref(), connect.json())
        }
    }
}

async fn post(client: &Client, path: &str, body: &Value) -> Result<Value> {
    client.send(client.call(Method::POST, path).json(Bytes::from(body.to_string()))).await?.json()
}

async fn create(args: CreateArgs) -> Result<()> {
    check_free(args.save.as_deref())?;
    let ttl = args.expires.map(|ttl| ttl.as_secs());
    let body = json!({"name": args.name, "producer": args.producer, "scopes": args.scopes, "ttl_seconds": ttl});
    let client = args.connect.client()?;
    let told = post(&client, "/v1/keys", &body).await?;
    hand_over(told, args.save.as_deref(), args.connect.json())
}

async fn create_local(args: CreateArgs) -> Result<()> {
    check_free(args.save.as_deref())?;
    let config = serve::load(&Overrides { file: args.config, data: args.data, ..Overrides::default() })?;
    let scopes = parse_scopes(args.scopes.iter().map(String::as_str))?;
    let order = NewKey { name: args.name, producer: args.producer, scopes, ttl: args.expires };
    let issued = create_audited(&open_audited(&config).await?, &order).await?;
    let told = json!({
        "key_id": issued.key.id.to_string(),
        "name": issued.key.name,
        "producer": issued.key.producer.as_str(),
        "scopes": issued.key.scopes.names().split(',').collect::<Vec<_>>(),
        "secret_key": issued.text.reveal(),
    });
    hand_over(told, args.save.as_deref(), args.connect.json())
}

/// The keys in the store of a configuration. What is done to them goes to the audit log, here standard error: whoever
/// keeps that has it in one place with the service's.
pub async fn open_audited(config: &Config) -> Result<KeyBook> {
    let filter = "error,audit=info".to_owned();
    crate::telemetry::init_logging(&Log { filter, ..config.log.clone() })?;
    Ok(crate::service::open_keys(config).await?)
}

/// Makes a key.
pub async fn create_audited(book: &KeyBook, order: &NewKey) -> Result<IssuedKey> {
    let issued = book.create(order).await?;
    audit::key("key_created", &Caller::Anyone, &issued.key, None);
    Ok(issued)
}

/// Before a key is made: one that could not be saved would be lost.
fn check_free(save: Option<&Path>) -> Result<()> {
    match save.filter(|file| file.exists()) {
        Some(file) => Err(Fault::Usage(format!("--save {}: is there already", file.display()))),
        None => Ok(()),
    }
}

/// Shows a new key, or saves it. The key is what goes to standard output, so that it can be piped to where it belongs.
fn hand_over(mut told: Value, save: Option<&Path>, as_json: bool) -> Result<()> {
    let secret = told["secret_key"].as_str().unwrap_or_default().to_owned();
    let key: Told = serde_json::from_value(told.clone()).unwrap_or_default();
    let summary = format!("key {} for {}: {}", key.key_id, out::clip(&key.producer, 40), key.scopes.join(", "));
    if let Some(file) = save {
        files::write_private(file, &format!("{secret}\n"))
            .map_err(|e| Fault::Local(format!("cannot write {}: {e}; revoke {}", file.display(), key.key_id)))?;
        if let Some(told) = told.as_object_mut() {
            told.remove("secret_key");
        }
        out::note(format_args!("{summary}; saved to {}", file.display()));
        return if as_json { out::json(&told) } else { out::line(key.key_id) };
    }
    out::note(format_args!("{summary}; shown once, so keep it now"));
    if as_json { out::json(&told) } else { out::line(secret) }
}

async fn list(connect: &Connect) -> Result<()> {
    let client = connect.client()?;
    let told: Value = client.send(client.get("/v1/keys")).await?.json()?;
    if connect.json() {
        return out::json(&told);
    }
    let keys: Vec<Told> = serde_json::from_value(told["keys"].clone())
        .map_err(|e| Fault::Answer(format!("the list of keys is not what Fanfold's interface says: {e}")))?;
    let head = ["KEY", "NAME", "PRODUCER", "STATE", "SCOPES", "EXPIRES", "LAST USED"].map(str::to_owned).to_vec();
    let row = |key: &Told| {
        let or_dash =
            |text: &Option<String>| text.as_deref().map_or("-", |text| text.get(..16).unwrap_or(text)).to_owned();
        vec![
            key.key_id.clone(),
            out::clip(&key.name, 24),
            out::clip(&key.producer, 24),
            key.state.clone(),
            key.scopes.join(","),
            or_dash(&key.expires_at),
            or_dash(&key.last_used_at),
        ]
    };
    let rows: Vec<_> = std::iter::once(head).chain(keys.iter().map(row)).collect();
    out::raw(out::columns(&rows).as_bytes())
}
