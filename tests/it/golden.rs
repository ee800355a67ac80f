//! The bytes of every message, pinned: a change here is a change of the wire.

use std::fmt::Write;
use std::net::SocketAddr;

use swimring::core::hello::{Answer, Class, Hello, Refusal};
use swimring_forwarder::wire::{CallHeader, Frame, Refusal as CallRefusal, Scope};
use swimring_membership::codec::{Blob, Slice};
use swimring_membership::wire::{Header, Message, Range, RowBody, Summary, Update};
use swimring_membership::{Incarnation, NodeId, Peer, State};

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a string takes all");
        text
    })
}

fn node(number: u128) -> NodeId {
    NodeId::from_u128(number)
}

fn peer() -> Peer {
    Peer { id: node(3), address: SocketAddr::from(([10, 0, 0, 3], 7_946)) }
}

fn messages() -> Vec<Message> {
    let header = || Header {
        belief: Some((State::Suspect, Incarnation::new(2, 300))),
        digest: 0x0102_0304,
        fence: 9,
        fence_heard: 11,
        updates: vec![
            Update::Alive(Blob(vec![1, 2, 3])),
            Update::Notice(node(1), Incarnation::new(1, 0)),
            Update::Suspect(node(1), Incarnation::new(1, 1), node(2)),
            Update::Down(node(1), Incarnation::new(1, 1), vec![7, 40_000]),
            Update::Left(node(1), Incarnation::new(1, 2)),
        ],
    };
    let plain = || Header { belief: None, digest: 0, fence: 0, fence_heard: 0, updates: Vec::new() };
    let row =
        RowBody { id: node(1), state: State::Down, incarnation: Incarnation::new(1, 2), record: Some(Blob(vec![7])) };
    vec![
        Message::Ping { seq: 1, header: header() },
        Message::Ack { seq: 1, header: plain() },
        Message::PingReq { seq: 2, target: peer(), budget_ms: 300, header: plain() },
        Message::Reached { seq: 2, header: plain() },
        Message::Nack { seq: 2, header: plain() },
        Message::Rumours { header: plain() },
        Message::JoinRequest { record: Blob(vec![1]) },
        Message::JoinReply { list: 9, part: 0, parts: 1, settled: true, fence: 7, rows: vec![row.clone()] },
        Message::JoinHeld { incarnation: Incarnation::new(4, 0) },
        Message::JoinRefused { holder: peer() },
        Message::Ranges { ranges: vec![Range { low: NodeId::MIN, high: NodeId::MAX, count: 3, digest: 5 }] },
        Message::Summaries {
            ranges: vec![(NodeId::MIN, NodeId::MAX)],
            members: vec![Summary { id: node(1), incarnation: Incarnation::new(1, 2), hash: 77 }],
        },
        Message::Rows { fence: 7, rows: vec![row] },
        Message::Want { ids: vec![node(1)] },
    ]
}

fn frames() -> Vec<Frame<'static>> {
    let call = CallHeader {
        seq: 1,
        floor: 1,
        life: 9,
        deadline: 5_000_000_000,
        error_us: 200,
        hop: 1,
        service: "kv",
        key: Slice(b"k"),
        record: None,
        scope: Scope::Owners(3),
        context: Slice(b"00-1-2-01"),
    };
    vec![
        Frame::Call(call),
        Frame::Ok { seq: 1, fence: 3 },
        Frame::Executed { seq: 1, fence: 3 },
        Frame::Refused { seq: 1, why: CallRefusal::NotOwner, owner: Some(node(1)), record: Some(Blob(vec![1])) },
        Frame::Cancel { seq: 1 },
        Frame::Clock { sent: 7 },
        Frame::ClockIs { sent: 7, clock: 8 },
        Frame::Goodbye,
        Frame::Begun { seq: 1 },
        Frame::Piece,
    ]
}

/// Every message on a line of its own: name, bytes.
fn listing() -> String {
    let mut text = String::new();
    for message in messages() {
        let mut bytes = Vec::new();
        message.encode(&mut bytes);
        assert_eq!(Message::decode(&bytes), Ok(Some(message.clone())));
        writeln!(text, "{} {}", message.kind(), hex(&bytes)).expect("a string takes all");
    }
    for frame in frames() {
        let mut bytes = Vec::new();
        frame.encode(b"body", &mut bytes);
        let name = format!("{frame:?}");
        let name = name.split([' ', '(']).next().unwrap_or_default();
        writeln!(text, "{name} {}", hex(&bytes)).expect("a string takes all");
    }
    let hello = Hello { class: Class::Calls, peer: peer(), life: 5, fingerprint: [6; 16], clock: 1_000, anew: true };
    for (name, answer) in [("Welcome", Answer::Welcome(hello)), ("Refused", Answer::Refused(Refusal::Cluster))] {
        let mut bytes = Vec::new();
        answer.encode(&mut bytes);
        writeln!(text, "{name} {}", hex(&bytes)).expect("a string takes all");
    }
    text
}

#[test]
fn the_bytes_of_every_message_are_pinned() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/it/golden.txt");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(path, listing()).expect("the listing can be written");
    }
    let pinned = std::fs::read_to_string(path).expect("the listing is there");
    for (now, then) in listing().lines().zip(pinned.lines()) {
        assert_eq!(now, then);
    }
    assert_eq!(listing().lines().count(), pinned.lines().count());
}

#[test]
fn no_cut_and_no_flipped_bit_of_a_message_panics() {
    for message in messages() {
        let mut bytes = Vec::new();
        message.encode(&mut bytes);
        for end in 0..bytes.len() {
            assert!(Message::decode(&bytes[..end]).is_err());
        }
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut flipped = bytes.clone();
                flipped[at] ^= 1 << bit;
                let _ = Message::decode(&flipped);
            }
        }
        bytes[0] = 200;
        assert_eq!(Message::decode(&bytes), Ok(None), "an unknown kind is skipped");
        bytes[1] = 2;
        assert!(Message::decode(&bytes).is_err(), "a future version is refused");
    }
}
