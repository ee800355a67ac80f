//! Calls whose bodies come in pieces both ways, over real QUIC.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use swimring::forwarder::{Outcome, Unknown, Why};
use swimring::runtime::DUPLEX_MAX;
use swimring::runtime::bodies::{BodyReader, BodyWriter, Cut};
use swimring::runtime::node::{CallRequest, Swimring};
use swimring::runtime::service::{Request, ServiceError, handler};
use tokio::sync::{Semaphore, mpsc};

use crate::library::Pair;

const LONG: Duration = Duration::from_secs(60);

fn bodies(request: &Request) -> Result<(BodyReader, BodyWriter), ServiceError> {
    request.duplex.take().ok_or_else(|| ServiceError("no duplex call".into()))
}

fn cut(_: Cut) -> ServiceError {
    ServiceError("cut off".into())
}

/// Sends every piece back, and says at the end how many bytes there were.
async fn echo(request: Request) -> Result<Bytes, ServiceError> {
    let (mut reader, mut writer) = bodies(&request)?;
    let mut count = 0;
    while let Some(piece) = reader.read().await.transpose().map_err(cut)? {
        count += piece.len();
        writer.write(piece).await.map_err(cut)?;
    }
    writer.finish().await.map_err(cut)?;
    Ok(format!("{count} {}", String::from_utf8_lossy(&request.body)).into())
}

fn duplex(service: &'static str, key: String) -> (CallRequest, BodyWriter, BodyReader) {
    CallRequest::new(service, key, "opening").timeout(LONG).duplex()
}

#[test]
fn bodies_go_both_ways_while_the_handler_runs() {
    let pair = Pair::new(|builder| builder.service("echo", handler(echo)));
    let long: Bytes = (0..20 << 20).map(|at: u32| (at % 251) as u8).collect();
    for owner in [&pair.one, &pair.two] {
        let (request, mut writer, mut reader) = duplex("echo", pair.key_of(owner));
        let (answered, written, read) = pair.runtime.block_on(async {
            let writing = async {
                writer.write(long.clone()).await?;
                writer.finish().await
            };
            tokio::join!(pair.one.call(request), writing, reader.read_to_end(usize::MAX))
        });
        assert_eq!(answered.outcome, Outcome::Ok(format!("{} opening", long.len()).into()));
        assert!(written.is_ok() && read == Ok(long.clone()));
    }
}

#[test]
fn question_and_answer_may_take_turns() {
    let pair = Pair::new(|builder| builder.service("echo", handler(echo)));
    for owner in [&pair.one, &pair.two] {
        let (request, mut writer, mut reader) = duplex("echo", pair.key_of(owner));
        let talking = async {
            for turn in 0..100 {
                let word = Bytes::from(format!("word {turn}"));
                writer.write(word.clone()).await.unwrap();
                assert_eq!(reader.read().await, Some(Ok(word)));
            }
            writer.finish().await.unwrap();
            assert_eq!(reader.read().await, None);
        };
        let (answered, ()) = pair.runtime.block_on(async { tokio::join!(pair.one.call(request), talking) });
        assert!(matches!(answered.outcome, Outcome::Ok(_)), "{answered:?}");
    }
}

/// Writes until nobody has taken anything for a while.
async fn fill(writer: &mut BodyWriter) -> usize {
    let mut count = 0;
    while let Ok(written) = tokio::time::timeout(Duration::from_millis(300), writer.write(vec![1; 1 << 16])).await {
        written.expect("the handler waits");
        count += 1 << 16;
    }
    count
}

#[test]
fn a_writer_waits_for_its_reader_and_everybody_else_does_not() {
    let gate = Arc::new(Semaphore::new(0));
    let (held, begun) = (Arc::clone(&gate), Arc::new(AtomicUsize::new(0)));
    let count = Arc::clone(&begun);
    let behind = handler(move |request: Request| {
        let (held, count) = (Arc::clone(&held), Arc::clone(&count));
        async move {
            count.fetch_add(1, Ordering::SeqCst);
            let _turn = held.acquire().await;
            let (mut reader, _writer) = bodies(&request)?;
            let body = reader.read_to_end(usize::MAX).await.map_err(cut)?;
            Ok(body.len().to_string().into())
        }
    });
    let pair = Pair::new(move |builder| {
        builder.service("behind", behind.clone()).service("quick", handler(async |request: Request| Ok(request.body)))
    });
    let key = pair.key_of(&pair.two);
    pair.runtime.block_on(async {
        let mut stuck = Vec::new();
        for _ in 0..DUPLEX_MAX {
            let (request, writer, _reader) = duplex("behind", key.clone());
            let node = pair.one.clone();
            stuck.push((tokio::spawn(async move { node.call(request).await }), writer));
        }
        let filling = stuck.iter_mut().map(|(_, writer)| fill(writer));
        let filled = futures_util::future::join_all(filling).await;
        assert_eq!(begun.load(Ordering::SeqCst), DUPLEX_MAX);
        let most = 6 << 20;
        assert!(filled.iter().all(|count| (1 << 18..most).contains(count)), "{filled:?}");
        // One more waits for its turn, and everything else has room.
        let (request, _writer, _reader) = duplex("behind", key.clone());
        let late = pair.one.call(request);
        tokio::pin!(late);
        assert!(futures_util::poll!(&mut late).is_pending());
        for body in [Bytes::from_static(b"small"), vec![7; 1 << 20].into()] {
            let answered = pair.one.call(CallRequest::new("quick", key.clone(), body.clone())).await;
            assert_eq!(answered.outcome, Outcome::Ok(body));
        }
        gate.add_permits(DUPLEX_MAX + 1);
        for ((call, writer), count) in stuck.into_iter().zip(filled) {
            writer.finish().await.unwrap();
            // What was being written when the patience ended is not counted.
            let Outcome::Ok(read) = call.await.unwrap().outcome else { panic!("it ends") };
            let read: usize = String::from_utf8_lossy(&read).parse().unwrap();
            assert_eq!(read, count);
        }
    });
}

/// Says so when it goes.
struct Over(mpsc::UnboundedSender<&'static str>);

impl Drop for Over {
    fn drop(&mut self) {
        _ = self.0.send("it is over");
    }
}

/// A handler that goes away as it is told to.
async fn go_away(request: Request, told: mpsc::UnboundedSender<&'static str>) -> Result<Bytes, ServiceError> {
    let (mut reader, mut writer) = bodies(&request)?;
    match request.body.as_ref() {
        b"read" => {
            let _over = Over(told.clone());
            while let Some(Ok(_)) = reader.read().await {
                _ = told.send("it reads");
            }
            _ = told.send("the body is cut off");
            Err(ServiceError("cut off".into()))
        }
        b"fail" => {
            writer.write("some").await.map_err(cut)?;
            Err(ServiceError("half way".into()))
        }
        b"stop reading" => {
            drop(reader);
            writer.finish().await.map_err(cut)?;
            std::future::pending().await
        }
        _ => Ok("without a look".into()),
    }
}

#[test]
fn whoever_goes_away_on_one_side_is_missed_on_the_other() {
    let (told, mut heard) = mpsc::unbounded_channel();
    let serve = handler(move |request: Request| go_away(request, told.clone()));
    let pair = Pair::new(move |builder| builder.service("serve", serve.clone()));
    let open = |owner: &Swimring, what: &'static str| {
        CallRequest::new("serve", pair.key_of(owner), what).timeout(LONG).duplex()
    };
    for owner in [&pair.one, &pair.two] {
        pair.runtime.block_on(async {
            let (request, mut writer, mut reader) = open(owner, "read");
            writer.write("some").await.unwrap();
            drop(writer);
            let answered = pair.one.call(request).await;
            assert_eq!(answered.outcome, Outcome::Executed("cut off".into()));
            assert_eq!(reader.read().await, Some(Err(Cut)));
            for word in ["it reads", "the body is cut off", "it is over"] {
                assert_eq!(heard.recv().await, Some(word));
            }

            let (request, mut writer, mut reader) = open(owner, "fail");
            assert_eq!(pair.one.call(request).await.outcome, Outcome::Executed("half way".into()));
            assert_eq!(reader.read().await, Some(Ok("some".into())));
            assert_eq!(reader.read().await, Some(Err(Cut)));
            while writer.write("more").await.is_ok() {}

            let (request, mut writer, _reader) = open(owner, "ignore");
            assert_eq!(pair.one.call(request).await.outcome, Outcome::Ok("without a look".into()));
            assert_eq!(writer.write("late").await, Err(Cut));

            let (request, mut writer, mut reader) = open(owner, "stop reading");
            let giving_up = async {
                assert_eq!(reader.read().await, None);
                while writer.write(vec![0; 1 << 16]).await.is_ok() {}
            };
            tokio::select! {
                answered = pair.one.call(request) => panic!("it never ends: {answered:?}"),
                () = giving_up => {}
            }
            // A caller that waits no more: the handler is dropped.
            let (request, mut writer, _reader) = open(owner, "read");
            let reading = async {
                writer.write("some").await.unwrap();
                assert_eq!(heard.recv().await, Some("it reads"));
            };
            tokio::select! {
                answered = pair.one.call(request) => panic!("it never ends: {answered:?}"),
                () = reading => {}
            }
            while writer.write("more").await.is_ok() {}
            while heard.recv().await != Some("it is over") {}
        });
    }
    assert_eq!(pair.two.admission_stats().admitted, 5, "each ran once");
}

#[test]
fn what_has_begun_is_made_once_also_where_it_may_run_twice() {
    let (told, mut begun) = mpsc::unbounded_channel();
    let serve = handler(move |request: Request| {
        let told = told.clone();
        async move {
            let (mut reader, _writer) = bodies(&request)?;
            _ = told.send(reader.read().await);
            std::future::pending().await
        }
    });
    let pair = Pair::new(move |builder| builder.service("serve", serve.clone()));
    pair.runtime.block_on(async {
        let request = CallRequest::new("serve", pair.key_of(&pair.two), "").timeout(LONG).idempotent();
        let (request, mut writer, mut reader) = request.duplex();
        let again = request.clone();
        let ending = async {
            writer.write("word").await.unwrap();
            assert_eq!(begun.recv().await, Some(Some(Ok("word".into()))));
            pair.two.close().await;
        };
        let (answered, ()) = tokio::join!(pair.one.call(request), ending);
        assert_eq!((answered.outcome, answered.repeats), (Outcome::Unknown(Unknown::Lost), 0));
        assert_eq!(reader.read().await, Some(Err(Cut)));
        let answered = pair.one.call(again).await;
        assert!(matches!(answered.outcome, Outcome::NotExecuted(no) if matches!(no.why(), Why::Invalid(_))));
    });
}

#[test]
fn a_handler_whose_caller_is_gone_with_its_connection_is_dropped() {
    let (told, mut heard) = mpsc::unbounded_channel();
    let serve = handler(move |request: Request| {
        let told = told.clone();
        async move {
            let _over = Over(told.clone());
            let _kept = bodies(&request)?;
            _ = told.send("it waits for something else");
            std::future::pending().await
        }
    });
    let pair = Pair::new(move |builder| builder.service("serve", serve.clone()));
    pair.runtime.block_on(async {
        let (request, _writer, _reader) = duplex("serve", pair.key_of(&pair.two));
        let node = pair.one.clone();
        let call = tokio::spawn(async move { node.call(request).await });
        assert_eq!(heard.recv().await, Some("it waits for something else"));
        pair.one.close().await;
        assert_eq!(heard.recv().await, Some("it is over"));
        assert!(matches!(call.await.unwrap().outcome, Outcome::Unknown(Unknown::Lost)));
    });
}

#[test]
fn calls_pass_a_body_that_flows_by() {
    let pair = Pair::new(|builder| {
        builder.service("echo", handler(echo)).service("quick", handler(async |request: Request| Ok(request.body)))
    });
    let key = pair.key_of(&pair.two);
    pair.runtime.block_on(async {
        let (request, mut writer, mut reader) = duplex("echo", key.clone());
        let node = pair.one.clone();
        let call = tokio::spawn(async move { node.call(request).await });
        let flowing = tokio::spawn(async move { while writer.write(vec![1; 1 << 16]).await.is_ok() {} });
        let reading = tokio::spawn(async move { while let Some(Ok(_)) = reader.read().await {} });
        for _ in 0..100 {
            let answered = pair.one.call(CallRequest::new("quick", key.clone(), "x")).await;
            assert_eq!(answered.outcome, Outcome::Ok("x".into()));
        }
        assert!(!flowing.is_finished());
        call.abort();
        flowing.await.unwrap();
        reading.await.unwrap();
    });
}
