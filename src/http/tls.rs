//! TLS of our own: certificate and key from files, which are read again when they change.

use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use metrics::counter;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tracing::{info, warn};

use crate::config;
use crate::error::{Error, Result};
use crate::files::{self, Watch};

const CERTIFICATE: &str = "tls.certificate_file";
const KEY: &str = "tls.key_file";

/// What connections shake hands with.
#[derive(Debug)]
pub struct Tls {
    present: RwLock<Arc<ServerConfig>>,
    watch: std::sync::Mutex<Watch>,
    config: config::Tls,
}

impl Tls {
    /// What the configuration asks for; `None` if it asks for none.
    pub fn open(config: &config::Tls) -> Result<Option<Self>> {
        if !config.is_on() {
            return Ok(None);
        }
        let paths = vec![config.certificate_file.clone().into(), config.key_file.clone().into()];
        // Before they are read: a change in between is seen.
        let watch = std::sync::Mutex::new(Watch::new(paths));
        Ok(Some(Self { present: RwLock::new(Arc::new(load(config)?)), watch, config: config.clone() }))
    }

    /// For the next connection.
    pub(super) fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(Arc::clone(&self.present.read().unwrap_or_else(PoisonError::into_inner)))
    }

    /// How long a client may take to shake hands.
    pub(super) fn handshake_timeout(&self) -> Duration {
        Duration::from_millis(self.config.handshake_timeout_ms)
    }

    /// Looks at the files for ever. A pair that is broken changes nothing, and is told.
    pub(super) async fn reload(&self) {
        let mut ticks = tokio::time::interval(Duration::from_millis(self.config.reload_ms));
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            if !self.watch.lock().unwrap_or_else(PoisonError::into_inner).has_changed() {
                continue;
            }
            let result = match load(&self.config) {
                Ok(fresh) => {
                    *self.present.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(fresh);
                    info!(file = %self.config.certificate_file, "the certificate was read again");
                    "ok"
                }
                Err(error) => {
                    warn!(%error, code = error.code(), "the new certificate cannot be used; the old one stays");
                    "error"
                }
            };
            counter!("fanfold_tls_reloads_total", "result" => result).increment(1);
        }
    }
}

fn load(config: &config::Tls) -> Result<ServerConfig> {
    let wrong = |field: &str, path: &str, what: &str| Error::invalid("invalid_tls", field, format!("{path} {what}"));
    let (certificate_file, key_file) = (&config.certificate_file, &config.key_file);
    let text = files::read(Path::new(certificate_file), CERTIFICATE)?;
    let chain: std::result::Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text.as_bytes()).collect();
    let chain = chain.map_err(|e| wrong(CERTIFICATE, certificate_file, "has no certificates").with_source(e))?;
    if chain.is_empty() {
        return Err(wrong(CERTIFICATE, certificate_file, "has no certificates"));
    }
    let text = files::read_private(Path::new(key_file), KEY)?;
    let key = PrivateKeyDer::from_pem_slice(text.as_bytes())
        // The cause is left out: it must not come to show a piece of the key.
        .map_err(|_| wrong(KEY, key_file, "has no private key"))?;
    let mut server = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|e| Error::internal("TLS cannot be set up").with_source(e))?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(|e| wrong(KEY, key_file, "does not belong to the certificate").with_source(e))?;
    server.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(server)
}
