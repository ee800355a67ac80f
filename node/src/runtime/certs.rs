//! Making certificates: an authority for a cluster, and the nodes' own.

use std::fs;
use std::io::Write;
use std::path::Path;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ED25519, SanType,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use swimring_membership::Name;
use x509_parser::extensions::GeneralName;

use super::identity::names;

/// How long an authority is valid.
const CA_DAYS: i64 = 3_650;

/// Why a certificate could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CertsError {
    /// A file cannot be read or written.
    #[error("{0}: {1}")]
    File(std::path::PathBuf, std::io::Error),
    /// The directory is in use; nothing is overwritten.
    #[error("{0} exists already: nothing was changed")]
    Exists(std::path::PathBuf),
    /// The authority's files are not what they should be.
    #[error("{0}")]
    Authority(String),
    /// The certificate cannot be made.
    #[error(transparent)]
    Make(#[from] rcgen::Error),
}

/// Makes an authority for `cluster` and the cluster's secret, in `directory`.
///
/// # Errors
/// If there is one already, or the files cannot be written.
pub fn make_authority(cluster: &Name, directory: &Path) -> Result<(), CertsError> {
    let key = KeyPair::generate_for(&PKCS_ED25519)?;
    let mut params = CertificateParams::new(Vec::new())?;
    // Two authorities must not share a subject, or a stranger's certificate reads as a broken one of ours.
    let mut tag = [0; 4];
    random(&mut tag);
    params.distinguished_name = distinguished(&format!("swimring {cluster} authority {:08x}", u32::from_le_bytes(tag)));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.subject_alt_names = vec![SanType::URI(format!("swimring://{cluster}/").try_into()?)];
    validity(&mut params, CA_DAYS);
    let certificate = params.self_signed(&key)?;
    let mut secret = [0; 32];
    random(&mut secret);
    let hex: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
    write_all_new(
        directory,
        &[
            ("ca.key", &key.serialize_pem(), true),
            ("ca.pem", &certificate.pem(), false),
            ("cluster.key", &format!("{hex}\n"), true),
        ],
    )
}

/// Makes an identity directory for the node `name`, signed by the authority in `authority`.
///
/// # Errors
/// If the authority's files are not there, or the directory holds an identity already.
pub fn issue(authority: &Path, name: &Name, hosts: &[String], days: i64, directory: &Path) -> Result<(), CertsError> {
    let read = |path: &Path| fs::read_to_string(path).map_err(|e| CertsError::File(path.into(), e));
    let ca_pem = read(&authority.join("ca.pem"))?;
    let secret = read(&authority.join("cluster.key"))?;
    let cluster = cluster_of(&ca_pem)?;
    let ca_key = KeyPair::from_pem(&read(&authority.join("ca.key"))?)?;
    let issuer = Issuer::from_ca_cert_pem(&ca_pem, ca_key)?;
    let key = KeyPair::generate_for(&PKCS_ED25519)?;
    let mut names = vec![format!("{name}.{cluster}")];
    names.extend(hosts.iter().cloned());
    let mut params = CertificateParams::new(names)?;
    params.subject_alt_names.push(SanType::URI(format!("swimring://{cluster}/{name}").try_into()?));
    params.distinguished_name = distinguished(name.as_str());
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    validity(&mut params, days);
    let certificate = params.signed_by(&key, &issuer)?;
    write_all_new(
        directory,
        &[
            ("node.key", &key.serialize_pem(), true),
            ("node.pem", &certificate.pem(), false),
            ("ca.pem", &ca_pem, false),
            ("cluster.key", &secret, true),
        ],
    )
}

/// Writes files (name, content, whether it is a secret) that are not there yet: all of them, or none.
fn write_all_new(directory: &Path, files: &[(&str, &str, bool)]) -> Result<(), CertsError> {
    fs::create_dir_all(directory).map_err(|e| CertsError::File(directory.into(), e))?;
    if let Some(held) = files.iter().map(|(name, ..)| directory.join(name)).find(|path| path.exists()) {
        return Err(CertsError::Exists(held));
    }
    for (written, (name, content, secret)) in files.iter().enumerate() {
        if let Err(problem) = write_new(&directory.join(name), content.as_bytes(), *secret) {
            // A half identity would only be in the way of the next try.
            let own = if matches!(problem, CertsError::Exists(_)) { written } else { written + 1 };
            files[..own].iter().for_each(|(name, ..)| _ = fs::remove_file(directory.join(name)));
            return Err(problem);
        }
    }
    Ok(())
}

fn cluster_of(ca_pem: &str) -> Result<Name, CertsError> {
    let certificate = CertificateDer::from_pem_slice(ca_pem.as_bytes())
        .map_err(|problem| CertsError::Authority(format!("ca.pem: {problem}")))?;
    let parsed = webpki::EndEntityCert::try_from(&certificate)
        .map_err(|problem| CertsError::Authority(format!("ca.pem: {problem}")))?;
    let uri = parsed.valid_uri_names().find_map(|uri| uri.strip_prefix("swimring://").map(str::to_owned));
    let name = uri.and_then(|uri| Name::new(uri.trim_end_matches('/')).ok());
    name.ok_or_else(|| CertsError::Authority("ca.pem is not an authority made by `swimring certs ca`".into()))
}

fn distinguished(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}

/// From an hour ago, so that clocks need not agree to the second; of one that is over already, from an hour before its end.
fn validity(params: &mut CertificateParams, days: i64) {
    let now = time::OffsetDateTime::now_utc();
    params.not_after = now + time::Duration::days(days);
    params.not_before = now.min(params.not_after) - time::Duration::hours(1);
}

pub(crate) fn random(bytes: &mut [u8]) {
    getrandom::fill(bytes).expect("a system without randomness cannot run TLS either");
}

fn write_new(path: &Path, bytes: &[u8], secret: bool) -> Result<(), CertsError> {
    let mut options = fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        options.mode(if secret { 0o600 } else { 0o644 });
    }
    let mut file = options.open(path).map_err(|error| match error.kind() {
        std::io::ErrorKind::AlreadyExists => CertsError::Exists(path.into()),
        _ => CertsError::File(path.into(), error),
    })?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(|e| CertsError::File(path.into(), e))
}

/// What a certificate says, for a person.
///
/// # Errors
/// If the file holds none.
pub fn describe(path: &Path) -> Result<String, CertsError> {
    let bytes = fs::read(path).map_err(|e| CertsError::File(path.into(), e))?;
    let certificate = CertificateDer::from_pem_slice(&bytes)
        .map_err(|problem| CertsError::Authority(format!("{}: {problem}", path.display())))?;
    let unreadable = |problem: String| CertsError::Authority(format!("{}: {problem}", path.display()));
    let whose = match names(&certificate) {
        Ok((cluster, node)) => format!("node {node} of cluster {cluster}"),
        Err(_) => format!("authority of cluster {}", cluster_of(&String::from_utf8_lossy(&bytes))?),
    };
    let (_, parsed) = x509_parser::parse_x509_certificate(&certificate).map_err(|e| unreadable(e.to_string()))?;
    let validity = parsed.validity();
    let mut lines = vec![
        whose,
        format!("valid from {} to {}", validity.not_before, validity.not_after),
        format!("fingerprint {}", blake3::hash(&certificate).to_hex()),
    ];
    if !validity.is_valid() {
        lines.push("not valid now".into());
    }
    if let Ok(Some(names)) = parsed.subject_alternative_name() {
        let names: Vec<String> = names.value.general_names.iter().filter_map(host).collect();
        if !names.is_empty() {
            lines.insert(1, format!("hosts {}", names.join(", ")));
        }
    }
    Ok(lines.join("\n"))
}

/// A name or an address of a certificate, as a person reads it.
fn host(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => match bytes.len() {
            4 => <[u8; 4]>::try_from(*bytes).ok().map(|bytes| std::net::Ipv4Addr::from(bytes).to_string()),
            _ => <[u8; 16]>::try_from(*bytes).ok().map(|bytes| std::net::Ipv6Addr::from(bytes).to_string()),
        },
        _ => None,
    }
}
