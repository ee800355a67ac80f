//! TLS 1.3 with certificates both ways, always.
//!
//! rustls checks chains and signatures; only the rule for names is ours: the certificate must name a node of
//! this cluster, and when a certain node was dialled, that one.

use std::sync::Arc;
use std::time::Duration;

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{IdleTimeout, TransportConfig, VarInt};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, verify_server_cert_signed_by_trust_anchor};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, ParsedCertificate, WebPkiClientVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, RootCertStore, SignatureScheme,
};
use swimring_membership::{Name, NodeId};

use super::calls::duplex::{DUPLEX_BYTES, DUPLEX_MAX};
use super::calls::streams::LANES;
use super::congestion::{Clamp, PACKETS_UNACKNOWLEDGED, Steady};
use super::identity::{Identity, names};
use crate::core::hello::Class;

/// Most bytes of datagrams that wait on a connection.
pub(crate) const DATAGRAM_BYTES_MAX: usize = 64 << 10;

/// The TLS side of one node.
#[derive(Clone)]
pub(crate) struct Tls {
    provider: Arc<CryptoProvider>,
    roots: Arc<RootCertStore>,
    cluster: Name,
    client: rustls::ClientConfig,
    server: Arc<rustls::ServerConfig>,
    idle: IdleTimeouts,
}

/// How long a connection may be silent before it counts as lost.
#[derive(Copy, Clone, Debug)]
pub(crate) struct IdleTimeouts {
    /// Of gossip: longer than the time between two probes of one member, for nothing else keeps it alive.
    pub(crate) gossip: Duration,
    /// Of calls: kept alive, for a handler may run longer.
    pub(crate) calls: Duration,
}

impl Default for IdleTimeouts {
    fn default() -> Self {
        Self { gossip: Duration::from_secs(600), calls: Duration::from_secs(120) }
    }
}

/// Why an identity cannot be used; the operator's fault.
#[derive(Debug, thiserror::Error)]
#[error("the identity cannot be used: {0}")]
pub struct TlsError(#[from] Error);

impl Tls {
    pub(crate) fn new(identity: &Identity, idle: IdleTimeouts) -> Result<Self, TlsError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = RootCertStore::empty();
        for authority in &identity.authorities {
            roots.add(authority.clone())?;
        }
        let roots = Arc::new(roots);
        let chain = WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider))
            .build()
            .map_err(|problem| Error::General(problem.to_string()))?;
        let verifier = Arc::new(MemberVerifier { chain, cluster: identity.cluster.clone() });
        let mut server = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(verifier)
            .with_single_cert(identity.chain.clone(), identity.key.clone_key())?;
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.send_tls13_tickets = 0;
        server.max_early_data_size = 0;
        let anyone = SeedVerifier {
            provider: Arc::clone(&provider),
            roots: Arc::clone(&roots),
            cluster: identity.cluster.clone(),
            expect: None,
        };
        let mut client = rustls::ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(anyone))
            .with_client_auth_cert(identity.chain.clone(), identity.key.clone_key())?;
        client.resumption = Resumption::disabled();
        client.enable_early_data = false;
        Ok(Self { provider, roots, cluster: identity.cluster.clone(), client, server: Arc::new(server), idle })
    }

    /// For those who dial this node.
    pub(crate) fn server(&self, class: Class) -> quinn::ServerConfig {
        let mut tls = self.server.as_ref().clone();
        tls.alpn_protocols = vec![alpn(class).to_vec()];
        let tls = QuicServerConfig::try_from(tls).expect("TLS 1.3 with the initial cipher suite, which ring has");
        let mut config = quinn::ServerConfig::with_crypto(Arc::new(tls));
        config.transport_config(Arc::new(transport(class, self.idle)));
        // A cluster's peers have ids: a changed address is a new connection.
        config.migration(false);
        config.max_incoming(1_024).incoming_buffer_size(64 << 10).incoming_buffer_size_total(8 << 20);
        config
    }

    /// For dialling `expect`, or any node of the cluster.
    pub(crate) fn client(&self, class: Class, expect: Option<NodeId>) -> quinn::ClientConfig {
        let mut tls = self.client.clone();
        tls.alpn_protocols = vec![alpn(class).to_vec()];
        let verifier = SeedVerifier {
            provider: Arc::clone(&self.provider),
            roots: Arc::clone(&self.roots),
            cluster: self.cluster.clone(),
            expect,
        };
        tls.dangerous().set_certificate_verifier(Arc::new(verifier));
        let tls = QuicClientConfig::try_from(tls).expect("TLS 1.3 with the initial cipher suite, which ring has");
        let mut config = quinn::ClientConfig::new(Arc::new(tls));
        config.transport_config(Arc::new(transport(class, self.idle)));
        config
    }
}

/// Whether other members would take this node's certificate today, whichever end dials. What is wrong with it, if not.
pub(crate) fn check_own(
    chain: &[CertificateDer<'static>],
    authorities: &[CertificateDer<'static>],
) -> Result<(), String> {
    let (own, intermediates) = chain.split_first().ok_or("holds no certificate")?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let algorithms = provider.signature_verification_algorithms.all;
    let mut roots = RootCertStore::empty();
    authorities.iter().try_for_each(|authority| roots.add(authority.clone())).map_err(|problem| problem.to_string())?;
    let (roots, now) = (Arc::new(roots), UnixTime::now());
    let as_client = WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), provider)
        .build()
        .map_err(|problem| problem.to_string())?;
    as_client.verify_client_cert(own, intermediates, now).map_err(|problem| in_words(&problem))?;
    let parsed = ParsedCertificate::try_from(own).map_err(|problem| in_words(&problem))?;
    verify_server_cert_signed_by_trust_anchor(&parsed, &roots, intermediates, now, algorithms)
        .map_err(|problem| in_words(&problem))
}

/// What is wrong with a certificate of this node's own, and what helps.
fn in_words(problem: &Error) -> String {
    let span = |from: UnixTime, to: UnixTime| match to.as_secs().saturating_sub(from.as_secs()) / 86_400 {
        0 => "less than a day".into(),
        1 => "a day".into(),
        days => format!("{days} days"),
    };
    match problem {
        Error::InvalidCertificate(CertificateError::ExpiredContext { time, not_after }) => format!(
            "the certificate expired {} ago: `swimring certs issue` makes an identity with a new one",
            span(*not_after, *time)
        ),
        Error::InvalidCertificate(CertificateError::NotValidYetContext { time, not_before }) => format!(
            "the certificate is not valid yet, but in {}: is a clock wrong, here or where it was made?",
            span(*time, *not_before)
        ),
        Error::InvalidCertificate(CertificateError::UnknownIssuer) => "is not signed by the authority in ca.pem".into(),
        other => other.to_string(),
    }
}

fn alpn(class: Class) -> &'static [u8] {
    match class {
        Class::Gossip => b"swimring-gossip/1",
        Class::Calls => b"swimring-calls/1",
    }
}

/// Longest packet of calls, where the path is found to carry it, in bytes: fewer packets on loopback and between jumbo
/// frames. quinn hands the system up to ten at a time, and Linux drops what is longer than 65,507 bytes in all.
pub(crate) const CALLS_PACKET_BYTES_MAX: u16 = 6_500;

/// How much of one stream of calls may be on its way, or unread, in bytes.
const STREAM_WINDOW: u32 = DUPLEX_BYTES as u32;

/// quinn's defaults are for the open internet. A cluster wants few streams (each allowed one is allocated at
/// connect), bounded windows, a short first round trip, and connections that stay.
fn transport(class: Class, idle: IdleTimeouts) -> TransportConfig {
    let mut config = TransportConfig::default();
    config.initial_rtt(Duration::from_millis(20));
    let streams = |count: u32| VarInt::from_u32(count);
    match class {
        Class::Gossip => {
            config.max_idle_timeout(Some(timeout(idle.gossip)));
            config.max_concurrent_bidi_streams(streams(2)).max_concurrent_uni_streams(streams(16));
            config.stream_receive_window(streams(256 << 10)).receive_window(streams(2 << 20)).send_window(2 << 20);
            config.datagram_receive_buffer_size(Some(256 << 10)).datagram_send_buffer_size(DATAGRAM_BYTES_MAX);
            config.congestion_controller_factory(Arc::new(Steady));
        }
        Class::Calls => {
            config.max_idle_timeout(Some(timeout(idle.calls)));
            // quinn says that a place is free once there are a few.
            let bidi = (LANES + DUPLEX_MAX + 4) as u32;
            config.max_concurrent_bidi_streams(streams(bidi)).max_concurrent_uni_streams(streams(16));
            // What is left unread of duplex calls, of this end's or the other's, is in nobody else's way.
            let all = (16 << 20) + 2 * DUPLEX_MAX as u32 * STREAM_WINDOW;
            config.stream_receive_window(streams(STREAM_WINDOW)).receive_window(streams(all)).send_window(8 << 20);
            // A handler may run longer than a connection may be silent.
            config.keep_alive_interval(Some(idle.calls / 4));
            config.congestion_controller_factory(Arc::new(Clamp));
            config.datagram_receive_buffer_size(None);
            let mut acknowledgements = quinn::AckFrequencyConfig::default();
            acknowledgements
                .ack_eliciting_threshold(streams(PACKETS_UNACKNOWLEDGED))
                .max_ack_delay(Some(Duration::from_millis(5)));
            config.ack_frequency_config(Some(acknowledgements));
            let mut discovery = quinn::MtuDiscoveryConfig::default();
            discovery.upper_bound(CALLS_PACKET_BYTES_MAX);
            config.mtu_discovery_config(Some(discovery));
        }
    }
    config
}

fn timeout(idle: Duration) -> IdleTimeout {
    IdleTimeout::try_from(idle).unwrap_or(VarInt::MAX.into())
}

/// The node that the certificate of a connection's other end names.
pub(crate) fn certified(connection: &quinn::Connection) -> Option<NodeId> {
    let chain = connection.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    let (cluster, name) = names(chain.first()?).ok()?;
    Some(NodeId::of(&cluster, &name))
}

fn check_names(certificate: &CertificateDer<'_>, cluster: &Name, expect: Option<NodeId>) -> Result<(), Error> {
    let (named, node) = names(certificate).map_err(misnamed)?;
    if named != *cluster {
        return Err(misnamed(format!("the certificate is for cluster {named}, not {cluster}")));
    }
    match expect {
        Some(expect) if NodeId::of(&named, &node) != expect => {
            Err(misnamed(format!("the certificate is for node {node}, which was not dialled")))
        }
        _ => Ok(()),
    }
}

/// The other end hears that its certificate was not accepted; this one says why.
fn misnamed(problem: String) -> Error {
    Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(Misnamed(problem)))))
}

#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Misnamed(String);

/// Judges whoever is dialled.
#[derive(Debug)]
struct SeedVerifier {
    provider: Arc<CryptoProvider>,
    roots: Arc<RootCertStore>,
    cluster: Name,
    expect: Option<NodeId>,
}

impl ServerCertVerifier for SeedVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let parsed = ParsedCertificate::try_from(end_entity)?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        verify_server_cert_signed_by_trust_anchor(&parsed, &self.roots, intermediates, now, algorithms)?;
        check_names(end_entity, &self.cluster, self.expect)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::InvalidCertificate(CertificateError::BadSignature))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// Judges whoever dials.
#[derive(Debug)]
struct MemberVerifier {
    chain: Arc<dyn ClientCertVerifier>,
    cluster: Name,
}

impl ClientCertVerifier for MemberVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chain.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.chain.verify_client_cert(end_entity, intermediates, now)?;
        check_names(end_entity, &self.cluster, None)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::InvalidCertificate(CertificateError::BadSignature))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}
