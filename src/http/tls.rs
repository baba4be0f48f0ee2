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
use crate::domain::Time;
use crate::error::{Error, Result};
use crate::files::{self, Watch};

const CERTIFICATE: &str = "tls.certificate_file";
const KEY: &str = "tls.key_file";

/// What connections shake hands with.
#[derive(Debug)]
pub struct Tls {
    present: RwLock<Arc<ServerConfig>>,
    /// As the files were before they were read.
    watch: Watch,
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
        let watch = Watch::new(paths);
        Ok(Some(Self { present: RwLock::new(Arc::new(load(config)?)), watch, config: config.clone() }))
    }

    /// When the certificate that the configuration names ends, if that can be read from it.
    pub fn ends(config: &config::Tls) -> Result<Option<Time>> {
        let text = files::read(Path::new(&config.certificate_file), CERTIFICATE)?;
        let first = CertificateDer::pem_slice_iter(text.as_bytes()).next();
        Ok(first.and_then(std::result::Result::ok).and_then(|certificate| not_after(&certificate)))
    }

    /// For the next connection.
    pub(super) fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(Arc::clone(&self.present.read().unwrap_or_else(PoisonError::into_inner)))
    }

    /// How long a client may take to shake hands.
    pub(super) fn handshake_timeout(&self) -> Duration {
        Duration::from_millis(self.config.handshake_timeout_ms)
    }

    /// Looks at the files for ever. A pair that is broken changes nothing, is told once, and tried again.
    pub(super) async fn reload(&self) {
        let take = |loaded: Result<ServerConfig>| {
            let result = match loaded {
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
        };
        let every = Duration::from_millis(self.config.reload_ms);
        self.watch.clone().follow(every, || load(&self.config), take).await;
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

/// The end of a certificate (RFC 5280, 4.1): nothing that checks certificates here tells it.
fn not_after(certificate: &[u8]) -> Option<Time> {
    const SEQUENCE: u8 = 0x30;
    let (_, body, _) = element(certificate)?;
    let (_, mut rest, _) = element(body)?;
    // Version (tag 0xa0, may be left out), serial number, algorithm, issuer; then the first sequence but two.
    let mut sequences = 0;
    loop {
        let (tag, content, after) = element(rest)?;
        rest = after;
        sequences += usize::from(tag == SEQUENCE);
        if sequences == 3 {
            let (_, _, end) = element(content)?;
            let (tag, end, _) = element(end)?;
            return instant(tag, std::str::from_utf8(end).ok()?);
        }
    }
}

/// The first element of some DER: its tag, its content, and what follows it.
fn element(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, rest) = der.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (length, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        0x81..=0x84 => {
            let (digits, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
            (digits.iter().fold(0, |length, digit| length << 8 | usize::from(*digit)), rest)
        }
        _ => return None,
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((tag, content, rest))
}

/// `YYMMDDHHMMSSZ` (UTCTime, 1950 to 2049) or `YYYYMMDDHHMMSSZ` (GeneralizedTime).
fn instant(tag: u8, text: &str) -> Option<Time> {
    const UTC_TIME: u8 = 0x17;
    let text = text.strip_suffix('Z')?;
    let text = match tag {
        UTC_TIME if text.as_bytes().first()? < &b'5' => format!("20{text}"),
        UTC_TIME => format!("19{text}"),
        _ => text.to_owned(),
    };
    let format = time::macros::format_description!("[year][month][day][hour][minute][second]");
    let at = time::PrimitiveDateTime::parse(&text, &format).ok()?.assume_utc();
    Some(Time::from_millis(at.unix_timestamp().saturating_mul(1_000)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_certificate_is_read() {
        for (year, month, day) in [(2_031, 7, 9), (2_049, 12, 31), (2_050, 1, 1), (1_999, 2, 28)] {
            let mut params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).expect("a name");
            params.not_before = rcgen::date_time_ymd(1_990, 1, 1);
            params.not_after = rcgen::date_time_ymd(year, month, day);
            let key = rcgen::KeyPair::generate().expect("a key");
            let made = params.self_signed(&key).expect("signed");
            let end = rcgen::date_time_ymd(year, month, day).unix_timestamp() * 1_000;
            assert_eq!(not_after(made.der()), Some(Time::from_millis(end)), "{year}");
            for cut in 0..made.der().len() {
                // Whatever is missing, it is no end of another day, and no panic.
                assert!([None, Some(Time::from_millis(end))].contains(&not_after(&made.der()[..cut])), "{cut}");
            }
        }
        assert_eq!(instant(0x17, "310709"), None);
    }
}
