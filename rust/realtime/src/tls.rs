//! TLS of the listener, out of a certificate chain and its key in PEM.

use std::fmt;
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// A certificate or key that cannot be used, and why.
#[derive(Debug)]
pub struct UnusableTls(String);

impl fmt::Display for UnusableTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for UnusableTls {}

/// What a listener needs to speak TLS 1.2 and 1.3, and one of these protocols on it.
pub fn server(chain_pem: &[u8], key_pem: &[u8], protocols: &[&str]) -> Result<Arc<ServerConfig>, UnusableTls> {
    let wrong = |what: &str, error: &dyn fmt::Display| UnusableTls(format!("{what}: {error}"));
    let chain = CertificateDer::pem_slice_iter(chain_pem).collect::<Result<Vec<_>, _>>();
    let chain = chain.map_err(|error| wrong("the certificate", &error))?;
    let key = PrivateKeyDer::from_pem_slice(key_pem).map_err(|error| wrong("the key", &error))?;
    let mut config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .and_then(|config| config.with_no_client_auth().with_single_cert(chain, key))
        .map_err(|error| wrong("the certificate and its key", &error))?;
    config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
    Ok(Arc::new(config))
}
