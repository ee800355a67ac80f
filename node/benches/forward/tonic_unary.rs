//! gRPC as tonic does it: unary calls without TLS, as it comes.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::http;
use bytes::{Buf, BufMut, Bytes};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tonic::body::Body;
use tonic::client::Grpc;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::server::NamedService;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Channel, Server};
use tonic::{Request, Response, Status};
use tower::Service;

use super::figures::Figures;
use super::{BODY, drive, runtime};

pub(crate) struct Tonic {
    client: Runtime,
    _server: Runtime,
    channel: Channel,
}

impl Tonic {
    pub(crate) fn start() -> Self {
        let (client, server) = (runtime(), runtime());
        let listener = server.block_on(TcpListener::bind("127.0.0.1:0")).expect("a socket");
        let address = listener.local_addr().expect("it is bound");
        let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
        server.spawn(Server::builder().add_service(Echo).serve_with_incoming(incoming));
        let target = tonic::transport::Endpoint::from_shared(format!("http://{address}")).expect("an address");
        let channel = client.block_on(target.connect()).expect("a connection");
        Self { client, _server: server, channel }
    }

    pub(crate) fn measure(&self, in_flight: usize, span: Duration) -> Figures {
        let channel = self.channel.clone();
        drive(&self.client, in_flight, span, move || {
            let mut grpc = Grpc::new(channel.clone());
            async move {
                grpc.ready().await.expect("a connection");
                let path = http::uri::PathAndQuery::from_static("/bench.Echo/Call");
                let body = Bytes::from_static(&[7; BODY]);
                let answer = grpc.unary(Request::new(body), path, Plain).await.expect("an answer");
                assert_eq!(answer.into_inner().len(), BODY);
            }
        })
    }
}

/// The service of the other end: gives every body back.
#[derive(Clone)]
struct Echo;

impl NamedService for Echo {
    const NAME: &'static str = "bench.Echo";
}

impl Service<http::Request<Body>> for Echo {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        Box::pin(async { Ok(tonic::server::Grpc::new(Plain).unary(Back, request).await) })
    }
}

struct Back;

impl Service<Request<Bytes>> for Back {
    type Response = Response<Bytes>;
    type Error = Status;
    type Future = Ready<Result<Response<Bytes>, Status>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Bytes>) -> Self::Future {
        ready(Ok(Response::new(request.into_inner())))
    }
}

/// Bodies as they are, without a schema.
#[derive(Clone)]
struct Plain;

impl Codec for Plain {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Plain {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.put(item);
        Ok(())
    }
}

impl Decoder for Plain {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining())))
    }
}
