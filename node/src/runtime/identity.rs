//! A node's identity directory: who it is, and what proves it.
//!
//! `ca.pem`, `node.pem`, `node.key` (0600) and `cluster.key` (0600). The names of the node and of the cluster
//! stand in the certificate.

use std::path::{Path, PathBuf};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use swimring_membership::{Name, NodeId};
use swimring_ring::{Hashing, Placement};

use super::tls::check_own;

/// What is wrong with an identity directory; the operator's fault.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IdentityError {
    /// A file is missing or cannot be read.
    #[error("{path}: {source}; `swimring certs issue` makes an identity directory")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file holds something else than it should.
    #[error("{path}: {problem}")]
    Content {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// A secret can be read by others.
    #[error("{path} can be read by others (mode {mode:o}): run `chmod 600 {path}`")]
    Exposed {
        /// Which.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
}

/// Who a node is.
pub struct Identity {
    /// The cluster.
    pub cluster: Name,
    /// The node.
    pub name: Name,
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) key: PrivateKeyDer<'static>,
    pub(crate) authorities: Vec<CertificateDer<'static>>,
    pub(crate) secret: [u8; 32],
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Identity({}/{})", self.cluster, self.name)
    }
}

impl Identity {
    /// Reads a directory.
    ///
    /// # Errors
    /// What is missing, wrong, expired or exposed, with the path.
    pub fn load(directory: &Path) -> Result<Self, IdentityError> {
        let authorities = certificates(&directory.join("ca.pem"))?;
        let chain_path = directory.join("node.pem");
        let chain = certificates(&chain_path)?;
        let (cluster, name) = names(&chain[0]).map_err(|problem| content(&chain_path, problem))?;
        check_own(&chain, &authorities).map_err(|problem| content(&chain_path, problem))?;
        let key_path = directory.join("node.key");
        let key = secret_file(&key_path)?;
        let key = PrivateKeyDer::from_pem_slice(&key).map_err(|problem| content(&key_path, problem.to_string()))?;
        let secret = read_secret(&directory.join("cluster.key"))?;
        Ok(Self { cluster, name, chain, key, authorities, secret })
    }

    /// The node's id.
    pub fn id(&self) -> NodeId {
        NodeId::of(&self.cluster, &self.name)
    }

    /// What both ends of every connection must agree on: the secret, and the cluster's constants. Tells nothing
    /// about the secret.
    pub(crate) fn fingerprint(&self, placement: Placement, hashing: Hashing) -> [u8; 16] {
        let mut hasher = blake3::Hasher::new_keyed(&self.secret);
        hasher.update(b"swimring 1 cluster constants");
        hasher.update(self.cluster.as_str().as_bytes());
        hasher.update(&placement.arcs_log2.to_le_bytes());
        hasher.update(&[match hashing {
            Hashing::Keyed => 0,
            Hashing::Fast => 1,
            Hashing::Blake3 => 2,
        }]);
        let mut out = [0; 16];
        hasher.finalize_xof().fill(&mut out);
        out
    }
}

fn content(path: &Path, problem: impl Into<String>) -> IdentityError {
    IdentityError::Content { path: path.into(), problem: problem.into() }
}

fn read(path: &Path) -> Result<Vec<u8>, IdentityError> {
    std::fs::read(path).map_err(|source| IdentityError::Read { path: path.into(), source })
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    let bytes = read(path)?;
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    match certificates {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        Ok(_) => Err(content(path, "holds no certificate")),
        Err(problem) => Err(content(path, problem.to_string())),
    }
}

fn secret_file(path: &Path) -> Result<Vec<u8>, IdentityError> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let metadata = std::fs::metadata(path).map_err(|source| IdentityError::Read { path: path.into(), source })?;
        let mode = metadata.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(IdentityError::Exposed { path: path.into(), mode });
        }
    }
    read(path)
}

/// The cluster's secret: 64 hexadecimal digits.
pub(crate) fn read_secret(path: &Path) -> Result<[u8; 32], IdentityError> {
    let bytes = secret_file(path)?;
    let text = String::from_utf8_lossy(&bytes);
    let hex = text.trim();
    let byte = |at: usize| hex.get(2 * at..2 * at + 2).and_then(|pair| u8::from_str_radix(pair, 16).ok());
    let secret: Option<Vec<u8>> = (0..32).map(byte).collect();
    match secret.and_then(|bytes| <[u8; 32]>::try_from(bytes).ok()) {
        Some(secret) if hex.len() == 64 => Ok(secret),
        _ => Err(content(path, "is not 64 hexadecimal digits")),
    }
}

/// The cluster and the node that a certificate names in its URI `swimring://CLUSTER/NODE`.
pub(crate) fn names(certificate: &CertificateDer<'_>) -> Result<(Name, Name), String> {
    let parsed =
        webpki::EndEntityCert::try_from(certificate).map_err(|problem| format!("is no certificate: {problem}"))?;
    let mut uris = parsed.valid_uri_names().filter_map(|uri| uri.strip_prefix("swimring://"));
    let (Some(uri), None) = (uris.next(), uris.next()) else {
        return Err("does not name one node as swimring://CLUSTER/NODE".into());
    };
    let (cluster, node) = uri.split_once('/').ok_or("does not name one node as swimring://CLUSTER/NODE")?;
    let name = |text| Name::new(text).map_err(|problem| problem.to_string());
    Ok((name(cluster)?, name(node)?))
}
