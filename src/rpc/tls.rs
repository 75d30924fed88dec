//! TLS as libvirt speaks it: certificates on both sides, a list of who may come, one byte that says "welcome".
//!
//! ```text
//! accepted ──handshake──▶ certificate ──name on the list──▶ 0x01 sent, frames follow
//!     └── too slow, no or a bad certificate, name not allowed: closed, the reason is in the log
//! ```
//!
//! The client waits for that byte before it sends its first frame: without it, it could not tell a refusal
//! from a network that failed.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use thiserror::Error;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::distinguished_name;
use crate::util::reason::Reason;
use crate::util::wildcard;

/// How long a client may take until it has shown who it is.
const HANDSHAKE: Duration = Duration::from_secs(15);
/// Tells the client that it is welcome.
const WELCOME: u8 = 1;

/// Where certificates are, and who may come with one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsSettings {
    pub authority: PathBuf,
    /// Need not be there.
    pub revoked: PathBuf,
    pub certificate: PathBuf,
    pub key: PathBuf,
    pub clients: Clients,
    /// Patterns of distinguished names; `None` lets everybody in who has a certificate.
    pub allowed: Option<Vec<String>>,
}

/// Whether clients need a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Clients {
    Verified,
    Anyone,
}

#[derive(Debug, Error)]
pub enum TlsError {
    #[error("Cannot read {what} '{}': {}", path.display(), Reason(source))]
    Read { what: &'static str, path: PathBuf, source: io::Error },
    #[error("Unable to import {what} '{}': {why}", path.display())]
    Import { what: &'static str, path: PathBuf, why: String },
    #[error("Unable to set x509 credentials: {0}")]
    Credentials(#[source] rustls::Error),
    #[error("Unable to set up the check of client certificates: {0}")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
}

/// Why a client is not let in.
#[derive(Debug, Error)]
pub enum Refused {
    #[error("TLS handshake failed: {0}")]
    Handshake(#[from] io::Error),
    #[error("TLS handshake took too long")]
    Slow,
    #[error("the client's certificate cannot be read")]
    Certificate,
    #[error("Client's Distinguished Name '{0}' is not on the list of allowed clients (tls_allowed_dn_list)")]
    NotAllowed(String),
}

/// What serves TLS clients; its certificates are read again on request.
#[derive(Debug)]
pub struct Tls {
    current: ArcSwap<Current>,
}

#[derive(Debug)]
struct Current {
    settings: TlsSettings,
    config: Arc<ServerConfig>,
}

impl Tls {
    pub fn load(settings: TlsSettings) -> Result<Self, TlsError> {
        let config = read(&settings)?;
        Ok(Self { current: ArcSwap::from_pointee(Current { settings, config }) })
    }

    /// Reads all files again. If one of them is wrong, those of before stay in use.
    pub fn reload(&self) -> Result<(), TlsError> {
        self.replace(self.current.load().settings.clone())
    }

    /// The same with other files, and others who may come.
    pub fn replace(&self, settings: TlsSettings) -> Result<(), TlsError> {
        let config = read(&settings)?;
        self.current.store(Arc::new(Current { settings, config }));
        Ok(())
    }

    /// From an accepted socket to a client that may speak, and its distinguished name.
    pub(super) async fn welcome(
        &self,
        socket: TcpStream,
    ) -> Result<(TlsStream<TcpStream>, Option<String>), Refused> {
        let welcome = async {
            let current = self.current.load_full();
            let mut stream = TlsAcceptor::from(Arc::clone(&current.config)).accept(socket).await?;
            let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
            let name = certificate.map(|it| distinguished_name::of_certificate(it)).transpose();
            let name = name.map_err(|_| Refused::Certificate)?;
            current.check(name.as_deref())?;
            stream.write_all(&[WELCOME]).await?;
            stream.flush().await?;
            Ok((stream, name))
        };
        tokio::time::timeout(HANDSHAKE, welcome).await.unwrap_or(Err(Refused::Slow))
    }
}

impl Current {
    fn check(&self, name: Option<&str>) -> Result<(), Refused> {
        let (Some(allowed), Some(name)) = (&self.settings.allowed, name) else { return Ok(()) };
        match allowed.iter().any(|pattern| wildcard::matches(pattern, name)) {
            true => Ok(()),
            false => Err(Refused::NotAllowed(name.to_owned())),
        }
    }
}

/// How long the keys are that a connection is encrypted with.
pub(super) fn key_bits(stream: &TlsStream<TcpStream>) -> u32 {
    let suite = stream.get_ref().1.negotiated_cipher_suite().and_then(|suite| suite.suite().as_str());
    if suite.is_some_and(|name| name.contains("AES_128")) { 128 } else { 256 }
}

fn read(settings: &TlsSettings) -> Result<Arc<ServerConfig>, TlsError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let chain: Vec<CertificateDer<'static>> = all("server certificate", &settings.certificate)?;
    let key = file("private key", &settings.key)?;
    let key = PrivateKeyDer::from_pem_slice(&key).map_err(|error| TlsError::Import {
        what: "private key",
        path: settings.key.clone(),
        why: error.to_string(),
    })?;
    let verifier = match settings.clients {
        Clients::Anyone => WebPkiClientVerifier::no_client_auth(),
        Clients::Verified => {
            let mut roots = rustls::RootCertStore::empty();
            for certificate in all::<CertificateDer<'static>>("CA certificate", &settings.authority)? {
                roots.add(certificate).map_err(|error| TlsError::Import {
                    what: "CA certificate",
                    path: settings.authority.clone(),
                    why: error.to_string(),
                })?;
            }
            let verifier =
                WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
            let verifier = match settings.revoked.exists() {
                true => verifier
                    .with_crls(all::<CertificateRevocationListDer<'static>>("CRL", &settings.revoked)?)
                    .allow_unknown_revocation_status(),
                false => verifier,
            };
            verifier.build()?
        }
    };
    let config = ServerConfig::builder_with_provider(provider);
    let config = config.with_safe_default_protocol_versions().map_err(TlsError::Credentials)?;
    let config = config.with_client_cert_verifier(verifier).with_single_cert(chain, key);
    let mut config = config.map_err(TlsError::Credentials)?;
    // Clients with GnuTLS take a ticket for the end of the first read.
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

fn file(what: &'static str, path: &Path) -> Result<Vec<u8>, TlsError> {
    std::fs::read(path).map_err(|source| TlsError::Read { what, path: path.to_owned(), source })
}

/// Everything of a kind that is in a file, at least one.
fn all<T: PemObject>(what: &'static str, path: &Path) -> Result<Vec<T>, TlsError> {
    let text = file(what, path)?;
    let failed = |why: String| TlsError::Import { what, path: path.to_owned(), why };
    let found: Vec<T> =
        T::pem_slice_iter(&text).collect::<Result<_, _>>().map_err(|error| failed(error.to_string()))?;
    if found.is_empty() { Err(failed("there is none in the file".to_owned())) } else { Ok(found) }
}
