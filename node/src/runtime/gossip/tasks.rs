//! The tasks around the driver: greeting, dialling, receiving, sending by stream. Each tells the driver what came.

use super::*;

/// Tells the driver, if it is still there.
async fn tell(inbox: &mpsc::WeakSender<Input>, input: Input) {
    if let Some(inbox) = inbox.upgrade() {
        let _ = inbox.send(input).await;
    }
}

/// Greets whoever dials.
pub(super) async fn accept(port: Port, inbox: mpsc::WeakSender<Input>) {
    let greetings = Arc::new(Semaphore::new(GREETINGS_MAX));
    while let Some((incoming, place)) = port.accept(&greetings).await {
        let (port, inbox) = (port.clone(), inbox.clone());
        tokio::spawn(async move {
            let address = incoming.remote_address();
            match Port::greet(incoming).await {
                Ok((established, node)) => {
                    tell(&inbox, Input::Greeted(Box::new(established), node, place)).await;
                }
                Err(problem) => {
                    metrics::handshake_refused(Class::Gossip, &problem);
                    if port.is_new(address, &metrics::dial_reason(&problem)) {
                        tracing::warn!(%address, %problem, "refused a handshake");
                    }
                }
            }
        });
    }
}

/// Dials, and reports what came of it.
pub(super) async fn dial_task(
    port: Port,
    inbox: mpsc::WeakSender<Input>,
    dial: DialId,
    address: SocketAddr,
    expect: Option<NodeId>,
    hello: Hello,
) {
    let input = match port.dial(address, expect, hello).await {
        Ok(established) => Input::Dialled(dial, Box::new(established)),
        Err(super::super::endpoint::DialError::Refused(Refusal::Oneself)) => Input::Oneself(dial),
        Err(problem) => {
            metrics::dial_failed(Class::Gossip, metrics::dial_reason(&problem));
            Input::DialFailed(dial, problem.explain())
        }
    };
    tell(&inbox, input).await;
}

/// Takes in what comes on a connection until it ends.
pub(super) async fn receive(mut established: Established, answer: Option<Answer>, inbox: mpsc::WeakSender<Input>) {
    if let Some(answer) = answer {
        established.answer(&answer).await;
    }
    let (id, connection) = (established.id, established.connection.clone());
    loop {
        let bytes = tokio::select! {
            datagram = connection.read_datagram() => datagram.map(|bytes| bytes.to_vec()).ok(),
            stream = connection.accept_uni() => match stream {
                Ok(mut stream) => {
                    let inbox = inbox.clone();
                    tokio::spawn(async move {
                        let whole = stream.read_to_end(BODY_BYTES_MAX + ENVELOPE_BYTES);
                        if let Ok(Ok(bytes)) = tokio::time::timeout(STREAM_TIMEOUT, whole).await {
                            tell(&inbox, Input::Message(id, bytes)).await;
                        }
                    });
                    continue;
                }
                Err(_) => None,
            },
        };
        match bytes {
            Some(bytes) => {
                tell(&inbox, Input::Message(id, bytes)).await;
            }
            None => break,
        }
    }
    tell(&inbox, Input::Closed(id)).await;
}

/// Sends one message on a stream of its own, and reports when it has arrived or cannot.
pub(super) async fn send_stream(connection: Connection, id: ConnId, bytes: Vec<u8>, inbox: mpsc::WeakSender<Input>) {
    let sent = async {
        let mut stream = connection.open_uni().await.ok()?;
        stream.write_all(&bytes).await.ok()?;
        stream.finish().ok()?;
        // Only what was acknowledged survives the end of the connection.
        stream.stopped().await.ok()
    };
    let _ = tokio::time::timeout(STREAM_TIMEOUT, sent).await;
    tell(&inbox, Input::StreamDone(id)).await;
}
