use swimring_forwarder::wire::{LANE_BODY_BYTES_MAX, Refusal, Scope};
use swimring_membership::NodeId;

use super::super::breaker::ASKED_AFTER;
use super::*;

const TO: Instance = Instance { node: NodeId::from_u128(1), life: 7 };
const NOW: Instant = Instant::from_millis(100);

fn outbound(deadline: Instant) -> Outbound<Vec<u8>> {
    with_body(deadline, b"v".to_vec())
}

fn with_body(deadline: Instant, body: Vec<u8>) -> Outbound<Vec<u8>> {
    let (service, key, context) = ("kv".into(), b"k".to_vec(), Vec::new());
    let payload = Arc::new(Payload { service, key, body, scope: Scope::Owner, context, duplex: false });
    Outbound { payload, deadline, idempotent: false, hop: 1, record: None }
}

type TestLink = Link<&'static str, Vec<u8>>;

fn link() -> TestLink {
    let mut link = Link::new(NOW, TO, LinkLimits { calls_max: 2, bytes_max: 100_000 });
    // Asked at 90, heard at 100, and its clock showed 1,000: at 95 here.
    link.connected(NOW, ConnId(1), Some(Instant::from_millis(90)), Instant::from_millis(1_000));
    link
}

/// What is written now.
fn take(link: &mut TestLink) -> Vec<Frame<'static>> {
    take_at(link, NOW)
}

/// What is written at a time; the bytes are kept for ever.
fn take_at(link: &mut TestLink, at: Instant) -> Vec<Frame<'static>> {
    let mut bytes = Vec::new();
    link.take(at, ConnId(1), 1 << 20, &mut bytes);
    let mut frames = Vec::new();
    let mut rest: &[u8] = bytes.leak();
    while let Some(length) = Frame::length(rest, 1 << 20).unwrap() {
        frames.push(Frame::decode(&rest[..length]).unwrap().unwrap().0);
        rest = &rest[length..];
    }
    frames
}

#[test]
fn a_deadline_is_told_in_the_others_time() {
    let mut link = link();
    link.enqueue(outbound(NOW + Duration::from_millis(50)), "a").unwrap();
    let Some(Frame::Call(header)) = take(&mut link).pop() else { panic!("a call waits") };
    assert_eq!(header.deadline, Instant::from_millis(1_055).as_nanos());
    assert_eq!(header.error_us, 5_000);
}

#[test]
fn at_its_deadline_an_attempt_is_taken_back_or_cancelled() {
    let mut link = link();
    link.enqueue(outbound(NOW), "handed over").unwrap();
    take(&mut link);
    link.enqueue(outbound(NOW), "queued").unwrap();
    assert_eq!(link.earliest(), Some(NOW));
    let (over, _) = link.expire(NOW);
    assert_eq!(over.lost, ["handed over"]);
    assert_eq!(over.unsent.iter().map(|(token, _)| *token).collect::<Vec<_>>(), ["queued"]);
    assert!(matches!(take(&mut link)[..], [Frame::Cancel { .. }]), "the other end hears of it, and of nothing else");
    assert_eq!(
        (link.open_count(), link.earliest()),
        (0, Some(NOW + ASKED_AFTER)),
        "then it is asked whether it is there"
    );
}

#[test]
fn what_has_time_left_stays() {
    let mut link = link();
    let later = NOW + Duration::from_millis(1);
    link.enqueue(outbound(later), "later").unwrap();
    link.enqueue(outbound(NOW), "now").unwrap();
    assert_eq!(link.expire(NOW).0.unsent.len(), 1);
    assert_eq!((link.open_count(), link.earliest()), (1, Some(later)));
    assert_eq!(take(&mut link).len(), 1);
    assert!(link.expire(NOW).0.lost.is_empty());
    assert_eq!(link.expire(later).0.lost, ["later"]);
}

#[test]
fn what_nobody_waits_for_is_taken_back_or_cancelled() {
    let mut link = link();
    let first = link.enqueue(outbound(NOW), "a").unwrap();
    link.abandon(first);
    assert!(take(&mut link).is_empty(), "it was never sent");
    let second = link.enqueue(outbound(NOW), "b").unwrap();
    take(&mut link);
    link.abandon(second);
    assert!(matches!(take(&mut link)[..], [Frame::Cancel { seq }] if seq == second));
    link.abandon(second);
    assert!(take(&mut link).is_empty(), "once is enough");
}

#[test]
fn frames_that_were_encoded_before_go_in_their_order_and_count() {
    let mut link = link();
    let mut before = Vec::new();
    (0..3).for_each(|seq| Frame::Ok { seq, fence: 1 }.encode(&vec![0; LANE_BODY_BYTES_MAX], &mut before));
    link.reply_encoded(ConnId(1), &mut before);
    link.answer(ConnId(1), &Frame::Ok { seq: 3, fence: 1 }, b"last".to_vec());
    assert!(before.is_empty() && link.has_work());
    let seqs = take(&mut link).into_iter().map(|frame| if let Frame::Ok { seq, .. } = frame { seq } else { u64::MAX });
    assert_eq!(seqs.collect::<Vec<_>>(), [0, 1, 2, 3]);
    assert!(!link.has_work() && !link.has_large_work());
}

#[test]
fn the_end_of_a_connection_tells_the_lost_from_the_unsent() {
    let mut link = link();
    link.enqueue(outbound(NOW), "handed over").unwrap();
    take(&mut link);
    link.enqueue(outbound(NOW), "queued").unwrap();
    let cut = link.closed(NOW, ConnId(1), Unsent::Unreachable);
    assert_eq!(cut.lost, ["handed over"]);
    assert_eq!(cut.unsent.iter().map(|(token, _)| *token).collect::<Vec<_>>(), ["queued"]);
}

#[test]
fn nothing_is_handed_to_a_connection_that_has_ended_or_is_not_kept() {
    let mut link = link();
    link.connected(NOW, ConnId(2), Some(NOW), NOW);
    link.prefer(Some(ConnId(1)));
    link.enqueue(outbound(NOW), "a").unwrap();
    let taken = |link: &mut TestLink, conn| {
        let mut bytes = Vec::new();
        link.take(NOW, ConnId(conn), 1 << 20, &mut bytes);
        !bytes.is_empty()
    };
    assert!(!taken(&mut link, 2), "the other one is kept");
    link.closed(NOW, ConnId(1), Unsent::Unreachable);
    assert!(!taken(&mut link, 1), "it has ended");
    assert!(taken(&mut link, 2), "now it is the only one");
}

#[test]
fn a_reply_goes_back_on_the_connection_on_which_it_is_waited_for() {
    let mut link = link();
    link.connected(NOW, ConnId(2), Some(NOW), NOW);
    link.prefer(Some(ConnId(1)));
    let taken = |link: &mut TestLink, conn| {
        let mut bytes = Vec::new();
        link.take(NOW, ConnId(conn), 1 << 20, &mut bytes);
        bytes.len()
    };
    let (answer, long) = (Frame::Ok { seq: 1, fence: 1 }, vec![0; LANE_BODY_BYTES_MAX + 1]);
    link.answer(ConnId(2), &answer, b"late".to_vec());
    link.answer(ConnId(2), &answer, long.clone());
    assert!(!link.has_work() && link.returns_on() == Some(ConnId(2)), "the other end may have lost the kept one");
    assert!(taken(&mut link, 1) == 0 && taken(&mut link, 2) > 0);
    assert_eq!(link.take_large(NOW, ConnId(2)).map(|large| large.body.len()), Some(long.len()));
    assert_eq!((taken(&mut link, 2), link.returns_on()), (0, None), "once is enough");
    link.reply(ConnId(2), &Frame::Refused { seq: 2, why: Refusal::Expired, owner: None, record: None });
    link.closed(NOW, ConnId(2), Unsent::Unreachable);
    assert!(link.returns_on().is_none() && taken(&mut link, 1) > 0, "whoever waits may not know yet that it has ended");
    link.answer(ConnId(2), &answer, b"still".to_vec());
    assert!(taken(&mut link, 1) > 0, "what came on a connection that has ended is answered where that can be");
}

#[test]
fn a_question_that_went_with_its_connection_is_asked_again() {
    let mut link = TestLink::new(NOW, TO, LinkLimits::default());
    link.connected(NOW, ConnId(2), None, NOW);
    let mut lost = Vec::new();
    link.take(NOW, ConnId(2), 1 << 20, &mut lost);
    link.connected(NOW, ConnId(1), None, NOW);
    take(&mut link);
    link.closed(NOW, ConnId(2), Unsent::Unreachable);
    assert!(matches!(take(&mut link)[..], [Frame::Clock { .. }]), "no call goes before the clock is known");
}

#[test]
fn a_call_that_waits_for_a_clock_asks_for_it_though_the_first_question_was_passed_over() {
    let mut link = TestLink::new(NOW, TO, LinkLimits::default());
    link.connected(NOW, ConnId(1), None, NOW);
    assert!(matches!(take(&mut link)[..], [Frame::Clock { .. }]));
    link.enqueue(outbound(NOW + Duration::from_secs(9)), "a").unwrap();
    assert!(link.has_work() && matches!(take(&mut link)[..], [Frame::Clock { .. }]));
    assert!(!link.has_work(), "the answer is waited for");
    assert_eq!(link.earliest(), Some(NOW + ASKED_AFTER), "not for long");
    let mut answer = Vec::new();
    Frame::ClockIs { sent: NOW.as_nanos(), clock: NOW.as_nanos() }.encode(&[], &mut answer);
    link.handle_frame(NOW, ConnId(1), &answer).unwrap();
    assert!(matches!(take(&mut link)[..], [Frame::Call(_)]));
}

#[test]
fn a_clock_that_was_read_long_ago_is_read_again_before_any_call() {
    let mut link = link();
    let later = NOW + Duration::from_secs(3_600);
    link.enqueue(Outbound { idempotent: true, ..outbound(later) }, "a").unwrap();
    let taken = |link: &mut TestLink, now| {
        let mut bytes = Vec::new();
        link.take(now, ConnId(1), 1 << 20, &mut bytes);
        Frame::decode(bytes.leak()).unwrap().map(|(frame, _)| frame)
    };
    let Some(Frame::Clock { sent }) = taken(&mut link, later) else { panic!("the clock is asked for first") };
    let mut answer = Vec::new();
    Frame::ClockIs { sent, clock: later.as_nanos() }.encode(&[], &mut answer);
    link.handle_frame(later, ConnId(1), &answer).unwrap();
    let Some(Frame::Call(header)) = taken(&mut link, later) else { panic!("now the call goes") };
    assert_eq!(header.error_us, 0);
}

#[test]
fn an_answer_finds_its_attempt_once() {
    let mut link = link();
    let seq = link.enqueue(outbound(NOW), "a").unwrap();
    take(&mut link);
    let mut answer = Vec::new();
    Frame::Ok { seq, fence: 3 }.encode(b"yes", &mut answer);
    assert!(matches!(link.handle_frame(NOW, ConnId(1), &answer), Ok(Arrival::Ran("a", Ok(b"yes"), 3))));
    assert!(matches!(link.handle_frame(NOW, ConnId(1), &answer), Ok(Arrival::Nothing)));
}

#[test]
fn too_many_under_way_are_refused_with_proof() {
    let mut link = link();
    assert!(link.enqueue(outbound(NOW), "a").is_ok() && link.enqueue(outbound(NOW), "b").is_ok());
    assert!(matches!(link.enqueue(outbound(NOW), "c"), Err(("c", _))));
}

#[test]
fn the_floor_is_the_first_attempt_that_is_waited_for() {
    let mut link = link();
    let first = link.enqueue(outbound(NOW), "a").unwrap();
    take(&mut link);
    link.enqueue(outbound(NOW), "b").unwrap();
    let Some(Frame::Call(header)) = take(&mut link).pop() else { panic!("a call waits") };
    assert_eq!((header.seq, header.floor), (first + 1, first));
}

#[test]
fn a_large_body_takes_a_way_of_its_own_and_bytes_are_limited() {
    let mut link = link();
    let large = |size| with_body(NOW, vec![7; size]);
    let seq = link.enqueue(large(LANE_BODY_BYTES_MAX + 1), "large").unwrap();
    assert!(matches!(link.enqueue(large(50_000), "too much"), Err((_, _))));
    assert!(take(&mut link).is_empty() && link.has_large_work() && !link.has_work());
    let Some(Large { head, body }) = link.take_large(NOW, ConnId(1)) else { panic!("it waits") };
    assert!(matches!(Frame::decode(&[head, body].concat()), Ok(Some((Frame::Call(header), _))) if header.seq == seq));
    assert!(link.is_pending(seq), "it is handed over");
    assert!(link.enqueue(large(50_000), "there is room again").is_ok());
}

#[test]
fn after_a_goodbye_nothing_new_goes_there_and_answers_still_come() {
    let mut link = link();
    let seq = link.enqueue(outbound(NOW), "handed over").unwrap();
    take(&mut link);
    link.enqueue(outbound(NOW), "queued").unwrap();
    let (mut goodbye, mut answer) = (Vec::new(), Vec::new());
    Frame::Goodbye.encode(&[], &mut goodbye);
    Frame::Ok { seq, fence: 3 }.encode(b"yes", &mut answer);
    let Ok(Arrival::Goodbye(back)) = link.handle_frame(NOW, ConnId(1), &goodbye) else { panic!("a goodbye") };
    assert_eq!(back.iter().map(|(token, _)| *token).collect::<Vec<_>>(), ["queued"]);
    assert!(!link.is_connected() && !link.is_idle());
    assert_eq!(link.over().count(), 0, "an answer is missing");
    assert!(matches!(link.handle_frame(NOW, ConnId(1), &answer), Ok(Arrival::Ran("handed over", ..))));
    assert_eq!(link.over().collect::<Vec<_>>(), [ConnId(1)]);
}

#[test]
fn a_silent_connection_is_asked_before_it_is_trusted_with_a_call_that_may_not_run_twice() {
    let mut link = link();
    let later = NOW + FRESH * 2;
    let take = |link: &mut TestLink| {
        let mut bytes = Vec::new();
        link.take(later, ConnId(1), 1 << 20, &mut bytes);
        Frame::decode(bytes.leak()).ok().flatten().map(|(frame, _)| frame)
    };
    link.enqueue(Outbound { idempotent: true, ..outbound(later) }, "may run twice").unwrap();
    assert!(matches!(take(&mut link), Some(Frame::Call(_))));
    link.enqueue(outbound(later), "may not").unwrap();
    assert!(matches!(take(&mut link), Some(Frame::Clock { .. })));
    assert!(take(&mut link).is_none() && !link.has_work());
    let mut answer = Vec::new();
    Frame::ClockIs { sent: later.as_nanos(), clock: later.as_nanos() }.encode(&[], &mut answer);
    link.handle_frame(later, ConnId(1), &answer).unwrap();
    assert!(link.has_work() && matches!(take(&mut link), Some(Frame::Call(_))));
}

#[test]
fn a_question_that_was_passed_over_is_asked_again_after_a_while() {
    let mut link = link();
    let later = NOW + FRESH * 2;
    link.enqueue(outbound(later), "may not run twice").unwrap();
    let take = |link: &mut TestLink| {
        let mut bytes = Vec::new();
        link.take(later, ConnId(1), 1 << 20, &mut bytes);
        Frame::decode(bytes.leak()).ok().flatten().map(|(frame, _)| frame)
    };
    assert!(matches!(take(&mut link), Some(Frame::Clock { .. })));
    assert!(take(&mut link).is_none(), "the answer is waited for");
    link.keep_clock(later);
    assert!(matches!(take(&mut link), Some(Frame::Clock { .. })));
}

/// Looks whenever the link says so, until a time; and which connection it gave up.
fn wait(link: &mut TestLink, until: Instant) -> (CutOff<&'static str>, Option<ConnId>) {
    let (mut all, mut given_up) = (CutOff { lost: Vec::new(), unsent: Vec::new() }, None);
    while let Some(due) = link.earliest().filter(|due| *due <= until) {
        let (mut over, silent) = link.expire(due);
        all.lost.append(&mut over.lost);
        all.unsent.append(&mut over.unsent);
        given_up = given_up.or(silent);
    }
    (all, given_up)
}

#[test]
fn whoever_answers_nothing_is_handed_nothing_more_until_it_does() {
    let mut link = Link::new(NOW, TO, LinkLimits::default());
    link.connected(NOW, ConnId(1), Some(NOW), NOW);
    let (soon, later) = (NOW + Duration::from_millis(300), NOW + Duration::from_secs(60));
    link.enqueue(outbound(soon), "first").unwrap();
    take(&mut link);
    assert_eq!(wait(&mut link, soon).0.lost, ["first"], "nobody waits for anything now");
    let at = NOW + Duration::from_millis(900);
    link.enqueue(outbound(later), "second").unwrap();
    assert_eq!(link.earliest(), Some(NOW + Duration::from_millis(500)), "it has been silent since the first");
    wait(&mut link, at);
    let frames = take_at(&mut link, at);
    assert!(matches!(frames[..], [Frame::Cancel { .. }, Frame::Clock { .. }, Frame::Call(_)]), "{frames:?}");

    let at = NOW + Duration::from_secs(3);
    wait(&mut link, at);
    assert!(link.is_broken());
    for _ in 0..HELD_MAX {
        link.enqueue(Outbound { idempotent: true, ..outbound(later) }, "held").unwrap();
    }
    let Err((_, proof)) = link.enqueue(outbound(later), "too many") else { panic!("enough wait") };
    assert_eq!(proof, NeverSent::testify(Unsent::Silent));
    assert!(take_at(&mut link, at).iter().all(|frame| matches!(frame, Frame::Clock { .. })));
    let over = wait(&mut link, NOW + Duration::from_secs(29)).1;
    assert_eq!(over, None, "the second may be answered yet");
    let (over, silent) = wait(&mut link, later);
    assert_eq!(silent, Some(ConnId(1)), "not after so long");
    assert_eq!(over.lost, ["second"]);
    assert!(over.unsent.iter().all(|(_, proof)| *proof == NeverSent::testify(Unsent::Silent)));
    assert_eq!(over.unsent.len(), HELD_MAX);

    link.enqueue(outbound(later + FRESH), "third").unwrap();
    let mut answer = Vec::new();
    Frame::ClockIs { sent: later.as_nanos(), clock: later.as_nanos() }.encode(&[], &mut answer);
    link.handle_frame(later, ConnId(1), &answer).unwrap();
    assert!(matches!(take_at(&mut link, later)[..], [.., Frame::Call(_)]) && !link.is_broken());
}

#[test]
fn a_link_made_anew_never_gives_a_number_again() {
    let mut link = link();
    let first = link.enqueue(outbound(NOW), "a").unwrap();
    let mut later = Link::new(NOW + Duration::from_millis(1), TO, LinkLimits::default());
    later.connected(NOW, ConnId(2), Some(NOW), NOW);
    assert!(later.enqueue(outbound(NOW), "b").unwrap() > first);
}

#[test]
fn whoever_does_not_read_its_answers_chokes_the_link() {
    let mut link = link();
    let reply = vec![0; LANE_BODY_BYTES_MAX];
    while !link.is_choked() {
        link.answer(ConnId(1), &Frame::Ok { seq: 1, fence: 1 }, reply.clone());
    }
    let mut bytes = Vec::new();
    link.take(NOW, ConnId(1), usize::MAX, &mut bytes);
    assert!(!link.is_choked());
}
