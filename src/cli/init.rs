//! `fanfold init`: a configuration with access control on, fresh secrets, and the first key.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::fault::{Fault, Result};
use super::keys::{create_audited, open_audited};
use super::out;
use super::serve::{self, ModeArg};
use crate::access::{Caller, KeyBook, KeyText, NewKey, audit};
use crate::config::{AccessMode, Config, Mode, Overrides};
use crate::domain::{KeyId, Scope};
use crate::error::Kind;
use crate::files;

const EXAMPLES: &str = "\
Examples:
  fanfold init                                       fanfold.toml and fanfold-admin.key, for you alone
  fanfold init --listen 0.0.0.0:8470 --data /var/lib/fanfold --config /etc/fanfold.toml
  fanfold init --mode cluster --if-missing           after `fanfold migrate`; may be run again at every start
  fanfold serve --config fanfold.toml";

const AFTER: &str = "\
The key is made in the store: in embedded mode the service must not run yet, in cluster mode `fanfold migrate` comes
first. Servers are found by the FANFOLD_* variables of the environment, and are not written down.";

/// Write a configuration with access control on, fresh secrets, and the first admin key
#[derive(Debug, clap::Args)]
#[command(before_help = EXAMPLES, after_help = AFTER)]
pub struct Args {
    /// The configuration to write
    #[arg(long, value_name = "FILE", env = "FANFOLD_CONFIG", default_value = "fanfold.toml")]
    config: PathBuf,
    /// Where the first key goes
    #[arg(long, value_name = "FILE", default_value = "fanfold-admin.key")]
    key_file: PathBuf,
    /// Folder for the data, in embedded mode
    #[arg(long, value_name = "DIR", default_value = "./fanfold-data")]
    data: String,
    /// Address to listen on
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8470")]
    listen: SocketAddr,
    /// Where the truth lives: in one process, or in ScyllaDB, RabbitMQ and Redis [env: FANFOLD_MODE]
    #[arg(long, value_name = "MODE")]
    mode: Option<ModeArg>,
    /// Write only what is not there yet, and check the rest; for a start without anybody looking on
    #[arg(long)]
    if_missing: bool,
}

/// Writes both files, and makes the key in the store.
pub async fn run(args: Args) -> Result<()> {
    let (has_config, has_key) = (is_there(&args.config, &args)?, is_there(&args.key_file, &args)?);
    if !has_config {
        write(&args.config, &configuration(&args))?;
    }
    let done = complete(&args, has_key).await;
    if done.is_err() && !has_config {
        // So that the same command can be given again once its cause is dealt with.
        let _ = std::fs::remove_file(&args.config);
    }
    done?;
    let config = args.config.display();
    let key_file = args.key_file.display();
    if has_config && has_key {
        return out::line(format_args!("{config} and {key_file} are there already; nothing was changed"));
    }
    if !has_config {
        out::line(format_args!("{config}  the configuration, with the secret that signs viewers' tokens"))?;
    }
    if !has_key {
        out::line(format_args!("{key_file}  the first key: scope admin"))?;
    }
    out::note(format_args!(
        "next:\n  fanfold serve --config {config}\n  fanfold keys create --name shop --scope publish,read,tokens \
         --key-file {key_file}"
    ));
    Ok(())
}

/// Whether there is such a file. Without `--if-missing` that is an error. With it an empty one counts as missing and goes:
/// an earlier run was cut short there, and nothing can be lost with it.
fn is_there(file: &Path, args: &Args) -> Result<bool> {
    let Ok(metadata) = std::fs::metadata(file) else { return Ok(false) };
    if !args.if_missing {
        return Err(Fault::Usage(format!("{} is there already; nothing was changed", file.display())));
    }
    if !metadata.is_file() || metadata.len() > 0 {
        return Ok(true);
    }
    let gone = std::fs::remove_file(file);
    gone.map_err(|e| Fault::Local(format!("{} is empty and cannot be removed: {e}", file.display())))?;
    Ok(false)
}

/// The key that belongs to the configuration: made, or looked at if it is there.
async fn complete(args: &Args, has_key: bool) -> Result<()> {
    let mode = args.mode.map(Mode::from);
    let config = serve::load(&Overrides { file: Some(args.config.clone()), mode, ..Overrides::default() })?;
    if config.access.mode == AccessMode::Off {
        let what = "access.mode is off: set it to \"on\", or move the file away";
        return Err(Fault::Usage(format!("{}: {what}", args.config.display())));
    }
    if has_key {
        return check_key(&config, &args.key_file).await;
    }
    let scopes = [Scope::Admin].into_iter().collect();
    let order = NewKey { name: "admin".to_owned(), producer: None, scopes, ttl: None };
    let book = open_audited(&config).await?;
    let issued = create_audited(&book, &order).await?;
    match write(&args.key_file, &format!("{}\n", issued.text.reveal())) {
        Ok(()) => Ok(()),
        Err(unwritten) => Err(take_back(&book, issued.key.id, &unwritten).await),
    }
}

/// Revokes a key that could not be written down. Nobody has it, and while it worked it would count as an admin's: that
/// nobody can get in would be told to nobody.
async fn take_back(book: &KeyBook, id: KeyId, unwritten: &Fault) -> Fault {
    let what = match book.revoke(id).await {
        Ok(revoked) => {
            audit::key("key_revoked", &Caller::Anyone, &revoked, None);
            "is revoked again".to_owned()
        }
        Err(error) => format!("works, and cannot be revoked now ({error}): revoke it, nobody has it"),
    };
    Fault::Local(format!("{unwritten}; the key {id}, which was made for it, {what}"))
}

/// A key of another store, or one that has ended, would lock everybody out without a word. It is never made valid again:
/// it may have been taken back on purpose.
async fn check_key(config: &Config, file: &Path) -> Result<()> {
    let text = files::read_private(file, "--key-file")?;
    let unusable = |what: String| Fault::Usage(format!("--key-file {}: {what}", file.display()));
    let key = KeyText::parse(text.trim()).ok_or_else(|| unusable("is no key of a producer".to_owned()))?;
    let book = open_audited(config).await?;
    let error = match book.verify(&key).await {
        Ok(_) => return Ok(()),
        Err(error) if error.kind() == Kind::Unauthenticated => error,
        Err(error) => return Err(error.into()),
    };
    if book.has_admin().await? {
        out::note(format_args!("{}: {error}; another key with the scope admin works", file.display()));
        return Ok(());
    }
    Err(unusable(format!("{error}, and no other has the scope admin: move the file away and run this again")))
}

fn write(file: &Path, text: &str) -> Result<()> {
    files::write_private(file, text).map_err(|e| Fault::Local(format!("cannot write {}: {e}", file.display())))
}

fn configuration(args: &Args) -> String {
    let (kid, secret) = (rand::random::<u32>(), rand::random::<[u8; 32]>());
    let secret = URL_SAFE_NO_PAD.encode(secret);
    let (listen, data) = (args.listen, toml::Value::from(args.data.as_str()));
    let place = match args.mode.map(Mode::from) {
        Some(Mode::Cluster) => "[service]\nmode = \"cluster\"\n".to_owned(),
        _ => format!("[store]\ndata = {data}\n"),
    };
    format!(
        "# Written by `fanfold init`. It holds a secret: keep it to yourself (mode 0600).\n\
         # `fanfold config default` prints every setting, with its unit and reason.\n\n\
         [http]\nlisten = \"{listen}\"\n\n\
         {place}\n\
         [access]\nmode = \"on\"\n\
         # Signs and checks viewers' tokens. A backend that signs its own needs the same key.\n\
         jwks = '{{\"keys\":[{{\"kty\":\"oct\",\"alg\":\"HS256\",\"kid\":\"{kid:08x}\",\"k\":\"{secret}\"}}]}}'\n\n\
         # What one key may publish and one viewer may ask for; nothing is limited until this is. A proposal: take away the #.\n\
         # [quota]\n\
         # posts_per_s = 100\n\
         # rows_per_s = 10_000\n\
         # bytes_per_s = 1_048_576\n\
         # polls_per_s = 5\n"
    )
}
