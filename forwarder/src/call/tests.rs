use super::*;
use crate::outcome::Unsent;

const DEADLINE: Instant = Instant::from_millis(1_000);
const NOW: Instant = Instant::from_millis(10);
const A: Instance = Instance { node: NodeId::from_u128(1), life: 10 };
const B: Instance = Instance { node: NodeId::from_u128(2), life: 20 };

struct Story {
    call: Call<&'static str>,
    budget: Budget,
}

fn story(idempotent: bool) -> Story {
    let spec = CallSpec { deadline: DEADLINE, idempotent };
    Story { call: Call::new(spec, CallConfig::default(), Rng::new(1)), budget: Budget::default() }
}

impl Story {
    /// Resolves to `to` and returns the attempt that is queued for it.
    fn send_to(&mut self, to: Instance) -> u32 {
        assert_eq!(self.call.step(), Step::Resolve);
        assert_eq!(self.call.resolved(NOW, Resolution::There(to)), None);
        self.sent(to, 1)
    }

    fn sent(&mut self, to: Instance, hop: u8) -> u32 {
        match self.call.step() {
            Step::Send { attempt, to: seen, hop: taken } if (seen, taken) == (to, hop) => attempt,
            other => panic!("expected an attempt to {to:?}, got {other:?}"),
        }
    }

    fn outcome(&mut self) -> Outcome<&'static str> {
        match self.call.step() {
            Step::Done(outcome) => outcome,
            other => panic!("expected an outcome, got {other:?}"),
        }
    }

    fn is_pausing(&mut self) -> bool {
        matches!(self.call.step(), Step::Wait(until) if until < DEADLINE)
    }
}

#[test]
fn the_owner_itself_runs_the_handler_in_place() {
    let mut story = story(false);
    assert_eq!(story.call.step(), Step::Resolve);
    assert_eq!(story.call.resolved(NOW, Resolution::Here), Some(Step::Run));
    story.call.ran(Ok("answer"));
    assert_eq!(story.outcome(), Outcome::Ok("answer"));
}

#[test]
fn nobody_to_ask_is_an_error_at_once() {
    let mut story = story(true);
    story.call.step();
    story.call.resolved(NOW, Resolution::Nobody);
    assert_eq!(story.outcome(), Outcome::NotExecuted(NotExecuted::because(Why::NoOwner)));
}

#[test]
fn an_answer_of_the_handler_ends_the_call_whether_it_failed_or_not() {
    for (result, expected) in [(Ok("fine"), Outcome::Ok("fine")), (Err("bad"), Outcome::Executed("bad"))] {
        let mut story = story(false);
        let attempt = story.send_to(A);
        story.call.answered(attempt, result);
        assert_eq!(story.outcome(), expected);
    }
}

#[test]
fn a_call_that_may_not_run_twice_is_never_tried_again_once_it_was_handed_over() {
    let mut story = story(false);
    let attempt = story.send_to(A);
    story.call.lost(NOW, attempt, &mut story.budget);
    assert_eq!(story.outcome(), Outcome::Unknown(Unknown::Lost));
}

#[test]
fn a_call_that_may_run_twice_is_tried_again_after_a_lost_connection() {
    let mut story = story(true);
    let attempt = story.send_to(A);
    story.call.lost(NOW, attempt, &mut story.budget);
    assert!(story.is_pausing());
    story.call.timeout(NOW + Duration::from_millis(200));
    story.send_to(B);
}

#[test]
fn what_was_never_handed_over_is_tried_again_however_often_it_may_run() {
    for idempotent in [false, true] {
        let mut story = story(idempotent);
        let attempt = story.send_to(A);
        story.call.unsent(NOW, attempt, NeverSent::testify(Unsent::Unreachable), &mut story.budget);
        assert!(story.is_pausing());
    }
}

#[test]
fn a_process_that_is_not_the_owner_names_it_and_that_is_one_hop_more() {
    let mut story = story(false);
    let attempt = story.send_to(A);
    story.call.refused(NOW, attempt, Refusal::NotOwner, Some(B.node), &mut story.budget);
    assert_eq!(story.call.step(), Step::Find(B.node));
    story.call.named(NOW, Resolution::There(B), &mut story.budget);
    let second = story.sent(B, 2);
    // Two hops are the most: now it waits for the views to agree.
    story.call.refused(NOW, second, Refusal::NotOwner, Some(A.node), &mut story.budget);
    assert!(story.is_pausing());
    assert_eq!(story.call.hops, 2);
}

#[test]
fn a_refusal_by_the_addressee_makes_another_try_safe() {
    for why in [Refusal::Overloaded { retry_after_ms: 1 }, Refusal::Unconfirmed, Refusal::NotOwner] {
        let mut story = story(false);
        let attempt = story.send_to(A);
        story.call.refused(NOW, attempt, why, None, &mut story.budget);
        assert!(story.is_pausing(), "{why:?}");
    }
}

#[test]
fn a_refusal_that_will_not_pass_ends_the_call() {
    let mut story = story(true);
    let attempt = story.send_to(A);
    story.call.refused(NOW, attempt, Refusal::NoService, None, &mut story.budget);
    assert!(matches!(story.outcome(), Outcome::NotExecuted(_)));
}

#[test]
fn an_open_attempt_of_an_earlier_try_keeps_the_outcome_unknown() {
    let mut story = story(true);
    let attempt = story.send_to(A);
    story.call.lost(NOW, attempt, &mut story.budget);
    story.call.timeout(NOW + Duration::from_millis(200));
    let second = story.send_to(B);
    story.call.refused(NOW, second, Refusal::NoService, None, &mut story.budget);
    assert_eq!(story.outcome(), Outcome::Unknown(Unknown::Lost));
}

#[test]
fn the_deadline_ends_a_call_of_which_nothing_was_sent() {
    let mut early = story(false);
    early.call.step();
    early.call.timeout(DEADLINE);
    assert_eq!(early.outcome(), Outcome::NotExecuted(NotExecuted::because(Why::Deadline)));
}

#[test]
fn at_the_deadline_it_counts_whether_the_attempt_was_handed_over() {
    let mut back = story(false);
    let attempt = back.send_to(A);
    back.call.timeout(DEADLINE);
    assert_eq!(back.call.step(), Step::Await, "whoever holds the attempt knows");
    back.call.unsent(DEADLINE, attempt, NeverSent::testify(Unsent::Late), &mut back.budget);
    assert_eq!(back.outcome(), Outcome::NotExecuted(NotExecuted::because(Why::Deadline)));
    let mut gone = story(false);
    let attempt = gone.send_to(A);
    gone.call.late(attempt);
    assert_eq!(gone.outcome(), Outcome::Unknown(Unknown::Deadline));
}

#[test]
fn repeats_end_with_the_budget() {
    let mut story = story(true);
    while story.budget.spend(Repeat::Trouble) {}
    let attempt = story.send_to(A);
    let full = Refusal::Overloaded { retry_after_ms: 40 };
    story.call.refused(NOW, attempt, full, None, &mut story.budget);
    let Outcome::NotExecuted(why) = story.outcome() else { panic!("it did not run") };
    assert_eq!(why.retry_after(), Some(Duration::from_millis(40)));
}

#[test]
fn whoever_finds_no_room_stays_away_for_as_long_as_was_said() {
    let mut story = story(true);
    let attempt = story.send_to(A);
    story.call.refused(NOW, attempt, Refusal::Overloaded { retry_after_ms: 40 }, None, &mut story.budget);
    let Step::Wait(until) = story.call.step() else { panic!("it waits") };
    assert!((40..80).contains(&until.since(NOW).as_millis()), "{until:?}");
    story.call.timeout(until);

    let attempt = story.send_to(A);
    story.call.refused(NOW, attempt, Refusal::Overloaded { retry_after_ms: u32::MAX }, None, &mut story.budget);
    assert!(matches!(story.outcome(), Outcome::NotExecuted(_)), "it would come after its deadline");
}

#[test]
fn whoever_waits_for_a_key_to_move_takes_no_repeat_from_the_others() {
    let mut story = story(false);
    while story.budget.spend(Repeat::Trouble) {}
    let attempt = story.send_to(A);
    story.call.refused(NOW, attempt, Refusal::NotOwner, None, &mut story.budget);
    assert!(story.is_pausing());
    assert_eq!((story.call.repeats(Repeat::Moving), story.call.repeats(Repeat::Trouble)), (1, 0));
}

#[test]
fn reports_of_earlier_attempts_are_passed_over() {
    let mut story = story(true);
    let attempt = story.send_to(A);
    story.call.unsent(NOW, attempt, NeverSent::testify(Unsent::Unreachable), &mut story.budget);
    story.call.answered(attempt, Ok("late"));
    assert!(story.is_pausing());
}

#[test]
fn nothing_begins_when_the_owner_is_found_after_the_deadline() {
    for resolution in [Resolution::Here, Resolution::There(A)] {
        let mut late = story(true);
        assert_eq!(late.call.resolved(DEADLINE, resolution), None);
        assert_eq!(late.outcome(), Outcome::NotExecuted(NotExecuted::because(Why::Deadline)));
    }
}
