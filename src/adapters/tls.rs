//! Encrypted connections to the backends, where the build has the feature `tls`.

use std::path::Path;

use crate::error::{Error, Result};

/// The text of a file of authorities (PEM).
pub fn authorities(file: &Path) -> Result<String> {
    std::fs::read_to_string(file).map_err(|error| {
        let detail = format!("the file of authorities {} cannot be read", file.display());
        Error::unavailable("tls_unusable", detail).with_source(error)
    })
}

/// An error unless this build can encrypt.
#[cfg(not(feature = "tls"))]
pub fn available() -> Result<()> {
    use crate::error::Kind;
    let detail = "this build has no TLS to the backends: build with --features tls, as the image does";
    Err(Error::new(Kind::Conflict, "tls_not_built", detail))
}

/// An error unless this build can encrypt.
#[cfg(feature = "tls")]
pub fn available() -> Result<()> {
    Ok(())
}

/// How a client trusts: the authorities of a file, or the system's.
#[cfg(feature = "tls")]
pub fn client_config(file: Option<&Path>) -> Result<std::sync::Arc<tokio_rustls::rustls::ClientConfig>> {
    use tokio_rustls::rustls::pki_types::CertificateDer;
    use tokio_rustls::rustls::pki_types::pem::PemObject as _;
    use tokio_rustls::rustls::{ClientConfig, RootCertStore};

    let unusable = |detail: String| Error::unavailable("tls_unusable", detail);
    let mut roots = RootCertStore::empty();
    match file {
        Some(file) => {
            for authority in CertificateDer::pem_slice_iter(authorities(file)?.as_bytes()) {
                let authority =
                    authority.map_err(|e| unusable(format!("{} is not PEM", file.display())).with_source(e))?;
                let added = roots.add(authority);
                added.map_err(|e| unusable(format!("{} has no usable authority", file.display())).with_source(e))?;
            }
        }
        None => {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    if roots.is_empty() {
        return Err(unusable("there is no authority to trust".to_owned()));
    }
    Ok(std::sync::Arc::new(ClientConfig::builder().with_root_certificates(roots).with_no_client_auth()))
}
