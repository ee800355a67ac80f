//! HTTP to a node of this machine: one connection a request.

use std::path::Path;
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::{HeaderMap, Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use swimring::runtime::admin::AdminAddress;

/// What came back.
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

/// How long a node may take to answer; a stopped one never does.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// Asks an admin endpoint.
pub(crate) async fn ask(
    address: &AdminAddress,
    token: Option<&Path>,
    method: Method,
    path: &str,
    body: Bytes,
    patience: Duration,
) -> anyhow::Result<Answer> {
    let asking = ask_and_wait(address, token, method, path, body);
    tokio::time::timeout(patience, asking).await.map_err(|_| anyhow::anyhow!("it was silent for {patience:?}"))?
}

async fn ask_and_wait(
    address: &AdminAddress,
    token: Option<&Path>,
    method: Method,
    path: &str,
    body: Bytes,
) -> anyhow::Result<Answer> {
    let host = match address {
        AdminAddress::Socket(_) => "localhost".to_owned(),
        AdminAddress::Tcp(address) => address.to_string(),
    };
    let mut request = Request::builder().method(method).uri(path).header("host", host);
    if let Some(token) = token {
        let token = std::fs::read_to_string(token)?;
        request = request.header("authorization", format!("Bearer {}", token.trim()));
    }
    let request = request.body(Full::new(body))?;
    match address {
        AdminAddress::Socket(path) => send(tokio::net::UnixStream::connect(path).await?, request).await,
        AdminAddress::Tcp(address) => send(tokio::net::TcpStream::connect(address).await?, request).await,
    }
}

async fn send(
    stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
    request: Request<Full<Bytes>>,
) -> anyhow::Result<Answer> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let response = sender.send_request(request).await?;
    let (parts, body) = response.into_parts();
    Ok(Answer { status: parts.status, headers: parts.headers, body: body.collect().await?.to_bytes() })
}
