//! `fanfold init`: a configuration with access control on, fresh secrets, and the first key.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::fault::{Fault, Result};
use super::{out, serve};
use crate::access::NewKey;
use crate::config::Overrides;
use crate::domain::Scope;
use crate::files;

const EXAMPLES: &str = "\
Examples:
  fanfold init                                       fanfold.toml and fanfold-admin.key, for you alone
  fanfold init --listen 0.0.0.0:8470 --data /var/lib/fanfold --config /etc/fanfold.toml
  fanfold serve --config fanfold.toml";

/// Write a configuration with access control on, fresh secrets, and the first admin key
#[derive(Debug, clap::Args)]
#[command(before_help = EXAMPLES)]
pub struct Args {
    /// The configuration to write
    #[arg(long, value_name = "FILE", default_value = "fanfold.toml")]
    config: PathBuf,
    /// Where the first key goes
    #[arg(long, value_name = "FILE", default_value = "fanfold-admin.key")]
    key_file: PathBuf,
    /// Folder for the data
    #[arg(long, value_name = "DIR", default_value = "./fanfold-data")]
    data: String,
    /// Address to listen on
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8470")]
    listen: SocketAddr,
}

/// Writes both files, and makes the key in the data folder.
pub async fn run(args: Args) -> Result<()> {
    for file in [&args.config, &args.key_file] {
        if file.exists() {
            return Err(Fault::Usage(format!("{} is there already; nothing was changed", file.display())));
        }
    }
    write(&args.config, &configuration(args.listen, &args.data))?;
    let made = first_key(&args).await;
    if made.is_err() {
        // So that the same command can be given again once its cause is dealt with.
        let _ = std::fs::remove_file(&args.config);
    }
    made?;
    out::line(format_args!(
        "{}  the configuration, with the secret that signs viewers' tokens",
        args.config.display()
    ))?;
    out::line(format_args!("{}  the first key: scope admin", args.key_file.display()))?;
    out::note(format_args!(
        "next:\n  fanfold serve --config {}\n  fanfold keys create --name shop --scope publish,read,tokens --key-file {}",
        args.config.display(),
        args.key_file.display()
    ));
    Ok(())
}

async fn first_key(args: &Args) -> Result<()> {
    let config = serve::load(&Overrides { file: Some(args.config.clone()), ..Overrides::default() })?;
    let scopes = [Scope::Admin].into_iter().collect();
    let order = NewKey { name: "admin".to_owned(), producer: None, scopes, ttl: None };
    let issued = crate::service::open_keys(&config).await?.create(&order).await?;
    write(&args.key_file, &format!("{}\n", issued.text.reveal()))
}

fn write(file: &Path, text: &str) -> Result<()> {
    files::write_private(file, text).map_err(|e| Fault::Local(format!("cannot write {}: {e}", file.display())))
}

fn configuration(listen: SocketAddr, data: &str) -> String {
    let (kid, secret) = (rand::random::<u32>(), rand::random::<[u8; 32]>());
    let secret = URL_SAFE_NO_PAD.encode(secret);
    let data = toml::Value::from(data);
    format!(
        "# Written by `fanfold init`. It holds a secret: keep it to yourself (mode 0600).\n\
         # `fanfold config default` prints every setting, with its unit and reason.\n\n\
         [http]\nlisten = \"{listen}\"\n\n\
         [store]\ndata = {data}\n\n\
         [access]\nmode = \"on\"\n\
         # Signs and checks viewers' tokens. A backend that signs its own needs the same key.\n\
         jwks = '{{\"keys\":[{{\"kty\":\"oct\",\"alg\":\"HS256\",\"kid\":\"{kid:08x}\",\"k\":\"{secret}\"}}]}}'\n"
    )
}
