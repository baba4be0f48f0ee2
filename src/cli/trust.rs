//! HTTPS: whom the command line trusts, and what it says when a connection cannot be trusted.

use std::error::Error;
use std::io;
use std::path::Path;
use std::sync::Arc;

use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::{self, CertificateError, ClientConfig, RootCertStore};

use super::fault::{Fault, Result};
use crate::files;

/// What messages call the option.
const OPTION: &str = "--ca-file";

/// How connections are encrypted: trusting the authorities of `ca_file` and nobody else, or the system's without one. A
/// client that speaks plain HTTP alone needs none.
pub fn client_config(encrypted: bool, ca_file: Option<&Path>) -> Result<ClientConfig> {
    let roots = match (encrypted, ca_file) {
        (false, _) => RootCertStore::empty(),
        (true, Some(file)) => authorities(file)?,
        (true, None) => system()?,
    };
    let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()));
    let builder = builder.with_safe_default_protocol_versions();
    let builder = builder.map_err(|e| Fault::Local(format!("cannot set up TLS: {e}")))?;
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

fn authorities(file: &Path) -> Result<RootCertStore> {
    let unusable = |what: &str| Fault::Usage(format!("{OPTION} {}: {what}", file.display()));
    let text = files::read(file, OPTION)?;
    let mut roots = RootCertStore::empty();
    for authority in CertificateDer::pem_slice_iter(text.as_bytes()) {
        let authority = authority.map_err(|e| unusable(&format!("is no file of certificates (PEM): {e}")))?;
        roots.add(authority).map_err(|e| unusable(&format!("has a certificate that cannot be used: {e}")))?;
    }
    if roots.is_empty() {
        return Err(unusable("has no certificate in it (-----BEGIN CERTIFICATE-----)"));
    }
    Ok(roots)
}

fn system() -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    // Systems have some that nobody can read; those that can be read are enough.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() {
        let detail = "this system has no file of trusted authorities (Debian: ca-certificates)";
        return Err(Fault::Usage(format!("{detail}; install it, or name the one to trust with {OPTION}")));
    }
    Ok(roots)
}

/// What went wrong on the way to `base`, and what to do, if encryption has to do with it.
pub fn explain(error: &reqwest::Error, base: &str, ca_file: Option<&Path>) -> Option<Fault> {
    if let Some(error) = find::<rustls::Error>(error) {
        return Some(of_tls(error, base, ca_file));
    }
    if base.starts_with("http://") && find::<hyper::Error>(error).is_some_and(hyper::Error::is_parse) {
        let what = "what answers there is not HTTP; if the service has TLS, the URL begins with https://";
        return Some(Fault::Usage(format!("--url {base}: {what}")));
    }
    None
}

fn of_tls(error: &rustls::Error, base: &str, ca_file: Option<&Path>) -> Fault {
    let rustls::Error::InvalidCertificate(certificate) = error else {
        return match error {
            rustls::Error::InvalidMessage(_) => {
                let what =
                    "what answers there does not speak TLS; if the service is plain HTTP, the URL begins with http://";
                Fault::Usage(format!("--url {base}: {what}"))
            }
            other => Fault::Connect(format!("cannot connect to {base}: {other}")),
        };
    };
    let usage = |what: &str| Fault::Usage(format!("--url {base}: {what}"));
    match (certificate, ca_file) {
        (CertificateError::UnknownIssuer | CertificateError::BadSignature, Some(file)) => usage(&format!(
            "its certificate is not trusted: {OPTION} {} does not have the authority that signed it",
            file.display()
        )),
        (CertificateError::UnknownIssuer | CertificateError::BadSignature, None) => usage(&format!(
            "its certificate is not trusted: no authority of this system has signed it; give the certificate of your own \
             authority with {OPTION} (FANFOLD_CA_FILE)"
        )),
        (CertificateError::NotValidForNameContext { presented, .. }, _) => usage(&format!(
            "its certificate is for {}; use a name that stands in it",
            if presented.is_empty() { "no name at all".to_owned() } else { presented.join(", ") }
        )),
        (CertificateError::NotValidForName, _) => usage("its certificate is for another name"),
        (CertificateError::Other(other), _) if other.to_string().contains("CaUsedAsEndEntity") => usage(
            "its certificate is that of an authority (CA:TRUE), with which nobody may serve: sign another with it, or make \
             one that is none (openssl: -addext basicConstraints=critical,CA:FALSE)",
        ),
        // Time heals these, or whoever runs the service.
        (other, _) => Fault::Connect(format!("cannot connect to {base}: its certificate cannot be trusted: {other}")),
    }
}

/// The first cause of the kind `E`. What an [`io::Error`] holds is none of its sources, so those are opened.
fn find<'a, E: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a E> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<E>() {
            return Some(found);
        }
        let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        next = match inner {
            Some(inner) => Some(inner as &(dyn Error + 'static)),
            None => error.source(),
        };
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_found_however_it_is_wrapped() {
        let inner = io::Error::new(io::ErrorKind::InvalidData, rustls::Error::NoApplicationProtocol);
        let outer = io::Error::other(inner);
        assert_eq!(find::<rustls::Error>(&outer), Some(&rustls::Error::NoApplicationProtocol));
        assert!(find::<rustls::Error>(&io::Error::other("else")).is_none());
    }

    #[test]
    fn files_that_hold_no_authority_are_told() {
        let dir = tempfile::tempdir().expect("a folder");
        let file = dir.path().join("ca.pem");
        let told = |text: Option<&str>| {
            if let Some(text) = text {
                std::fs::write(&file, text).expect("written");
            }
            let fault = client_config(true, Some(&file)).expect_err("unusable");
            assert_eq!(fault.exit_code(), 64);
            fault.to_string()
        };
        let garbage = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        for (text, words) in [
            (None, "cannot be read"),
            (Some(""), "no certificate in it"),
            (Some("-----BEGIN CERTIFICATE-----\n*\n-----END CERTIFICATE-----\n"), "no file of certificates"),
            (Some(garbage), "cannot be used"),
        ] {
            let told = told(text);
            assert!(told.contains(words) && told.contains("--ca-file") && told.contains("ca.pem"), "{told}");
        }
        client_config(false, Some(Path::new("/nowhere"))).expect("nobody asks for it");
    }
}
