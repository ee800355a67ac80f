//! The library, as an application links it: two nodes in this process, over real QUIC.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use swimring::core::arcs::ArcEvent;
use swimring::forwarder::{Outcome, Why};
use swimring::membership::{NodeId, Preset, Settings};
use swimring::ring::{ArcMove, Hashing};
use swimring::runtime::Answered;
use swimring::runtime::builder::Builder;
use swimring::runtime::node::{CallRequest, Swimring};
use swimring::runtime::service::{Request, ServiceError, handler};
use swimring::runtime::typed::{CallError, typed};
use tokio::sync::mpsc;

use crate::harness::{SOON, Site, agree, eventually};

/// Two nodes that know each other, with one service.
pub(crate) struct Pair {
    pub(crate) runtime: tokio::runtime::Runtime,
    _site: Site,
    pub(crate) one: Swimring,
    pub(crate) two: Swimring,
}

impl Pair {
    pub(crate) fn new(serve: impl Fn(Builder) -> Builder) -> Self {
        let site = Site::new();
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        let start = |name: &str, seed: Option<&Swimring>| {
            site.issue("ca", name, name, "2");
            let listen = "127.0.0.1:0".parse().expect("an address");
            let builder = serve(Swimring::builder(site.at(name)).listen(listen).preset(Preset::Local));
            let builder = match seed {
                Some(seed) => builder.seed(seed.gossip_address().to_string()),
                None => builder,
            };
            runtime.block_on(builder.start()).expect("it starts")
        };
        let one = start("one", None);
        let two = start("two", Some(&one));
        eventually("both own keys", SOON, || {
            let ring = |node: &Swimring| node.view().ring().members().len();
            (ring(&one) == 2 && ring(&two) == 2).then_some(())
        });
        Self { runtime, _site: site, one, two }
    }

    /// A key that `owner` owns.
    pub(crate) fn key_of(&self, owner: &Swimring) -> String {
        let id = owner.view().me().node;
        let own = |key: &String| self.one.owner(key.as_bytes()) == Ok(id);
        (0..).map(|number| format!("k{number}")).find(own).expect("half of all keys")
    }

    pub(crate) fn call(&self, request: CallRequest) -> Answered {
        self.runtime.block_on(self.one.call(request))
    }
}

pub(crate) fn id(node: &Swimring) -> NodeId {
    node.view().me().node
}

#[test]
fn a_cluster_places_keys_as_it_says() {
    let pair = Pair::new(|builder| {
        let echo = handler(async |request: Request| Ok(request.body));
        builder.arcs_log2(12).hashing(Hashing::Fast).service("echo", echo)
    });
    assert_eq!(pair.one.view().ring().arcs(), 1 << 12);
    assert_eq!(pair.one.hash(b"k"), pair.two.hash(b"k"));
    let answered = pair.call(CallRequest::new("echo", pair.key_of(&pair.two), "x"));
    assert_eq!((answered.outcome, answered.hops), (Outcome::Ok("x".into()), 1));
}

#[test]
fn a_change_of_the_profile_that_panics_is_its_callers_and_the_node_goes_on() {
    let pair = Pair::new(|builder| builder);
    let change = pair.one.update_profile(|_| panic!("as asked"));
    assert!(catch_unwind(AssertUnwindSafe(|| pair.runtime.block_on(change))).is_err());
    let weigh = pair.one.update_profile(|profile| profile.weight = 3);
    pair.runtime.block_on(weigh).expect("a weight may be 3");
    let of_one = || pair.two.view().member(id(&pair.one)).map(|member| member.record.profile().weight);
    eventually("the other node hears of it", SOON, || (of_one() == Some(3)).then_some(()));
    pair.runtime.block_on(pair.one.close());
    eventually("whoever has ended takes no keys", SOON, || (!pair.one.is_ready()).then_some(()));
}

#[test]
fn a_quick_service_may_answer_at_once_wait_fail_or_panic() {
    let quick = handler(async |request: Request| match request.body.as_ref() {
        b"wait" => {
            tokio::task::yield_now().await;
            Ok(request.body)
        }
        b"fail" => Err(ServiceError("no".into())),
        b"panic" => panic!("as asked"),
        _ => Ok(request.body),
    });
    let pair = Pair::new(move |builder| builder.quick_service("quick", quick.clone()));
    let key = pair.key_of(&pair.two);
    for _ in 0..3 {
        let ask = |body: &'static str| pair.call(CallRequest::new("quick", key.clone(), body)).outcome;
        assert_eq!(ask("at once"), Outcome::Ok("at once".into()));
        assert_eq!(ask("wait"), Outcome::Ok("wait".into()));
        assert_eq!(ask("fail"), Outcome::Executed("no".into()));
        assert_eq!(ask("panic"), Outcome::Executed("the handler panicked".into()));
    }
    assert_eq!(pair.two.admission_stats().admitted, 12, "each ran once");
}

#[test]
fn calls_of_many_keys_each_have_their_own_outcome_in_their_order() {
    let pair = Pair::new(|builder| {
        let echo = handler(async |request: Request| match request.key.as_ref() {
            b"k7" => Err(ServiceError("not this one".into())),
            _ => Ok(request.key),
        });
        builder.service("echo", echo)
    });
    let keys: Vec<String> = (0..3_000).map(|number| format!("k{number}")).collect();
    let requests = keys.iter().map(|key| CallRequest::new("echo", key.clone(), ""));
    let invalid = CallRequest::new("echo", "", "");
    let mut answers = pair.runtime.block_on(pair.one.call_each(requests.chain([invalid])));
    let last = answers.pop().expect("one each");
    assert!(matches!(last.outcome, Outcome::NotExecuted(no) if matches!(no.why(), Why::Invalid(_))));
    assert_eq!(answers.len(), keys.len());
    let owners = [id(&pair.one), id(&pair.two)];
    for (key, answered) in keys.iter().zip(&answers) {
        let expected =
            if key == "k7" { Outcome::Executed("not this one".into()) } else { Outcome::Ok(key.clone().into()) };
        assert_eq!(answered.outcome, expected);
        assert_eq!(answered.owner, pair.one.owner(key.as_bytes()).ok());
    }
    assert!(
        owners.iter().all(|owner| answers.iter().filter(|answered| answered.owner == Some(*owner)).count() > 1_000)
    );
    let late = (0..10).map(|_| CallRequest::new("echo", "k1", "").timeout(Duration::ZERO));
    let late = pair.runtime.block_on(pair.one.call_each(late));
    assert!(late.iter().all(|answered| matches!(answered.outcome, Outcome::NotExecuted(_))), "{late:?}");
}

#[test]
fn a_quick_service_that_panics_as_it_is_cloned_or_fails_for_good_ends_no_connection() {
    let (sick, failed) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let service = Fragile { sick: Arc::clone(&sick), failed: Arc::clone(&failed), broken: false };
    let pair = Pair::new(move |builder| builder.quick_service("fragile", service.clone()));
    let key = pair.key_of(&pair.two);
    let ask = || pair.call(CallRequest::new("fragile", key.clone(), "x")).outcome;
    sick.store(true, Ordering::Relaxed);
    assert_eq!(ask(), Outcome::Executed("the handler panicked".into()));
    sick.store(false, Ordering::Relaxed);
    assert_eq!(ask(), Outcome::Ok("x".into()));
    failed.store(true, Ordering::Relaxed);
    assert_eq!(ask(), Outcome::Executed("broken".into()));
    failed.store(false, Ordering::Relaxed);
    assert_eq!(ask(), Outcome::Ok("x".into()), "another handle is whole");
    assert_eq!(pair.two.admission_stats().admitted, 4);
    pair.runtime.block_on(async {
        let left = tokio::time::timeout(Duration::from_secs(10), pair.two.leave(Duration::from_secs(60))).await;
        assert!(left.is_ok(), "every place was given back");
    });
}

/// Panics when it is cloned while it is sick; a handle that was asked while it had failed stays broken.
struct Fragile {
    sick: Arc<AtomicBool>,
    failed: Arc<AtomicBool>,
    broken: bool,
}

impl Clone for Fragile {
    fn clone(&self) -> Self {
        assert!(!self.sick.load(Ordering::Relaxed), "sick");
        Self { sick: Arc::clone(&self.sick), failed: Arc::clone(&self.failed), broken: false }
    }
}

impl tower::Service<Request> for Fragile {
    type Response = Bytes;
    type Error = ServiceError;
    type Future = std::future::Ready<Result<Bytes, ServiceError>>;

    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), ServiceError>> {
        self.broken |= self.failed.load(Ordering::Relaxed);
        std::task::Poll::Ready(if self.broken { Err("broken".to_owned().into()) } else { Ok(()) })
    }

    fn call(&mut self, request: Request) -> Self::Future {
        std::future::ready(Ok(request.body))
    }
}

#[test]
fn a_node_that_closes_while_it_dials_leaves_no_call_waiting() {
    let pair = Pair::new(|builder| builder.service("echo", handler(async |request: Request| Ok(request.body))));
    let (key, one) = (pair.key_of(&pair.two), pair.one.clone());
    pair.runtime.block_on(async {
        // Gone without a word: whoever calls has to dial, and nobody answers.
        pair.two.close().await;
        let request = CallRequest::new("echo", key, "x").timeout(Duration::from_secs(300));
        // The call is under way before the node closes.
        let both = async { tokio::join!(biased; one.call(request), pair.one.close()) };
        let (answered, ()) = tokio::time::timeout(Duration::from_secs(10), both).await.expect("it ends with the node");
        assert!(matches!(answered.outcome, Outcome::NotExecuted(_)), "{answered:?}");
    });
}

#[test]
fn a_typed_service_takes_and_gives_values() {
    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Sum {
        numbers: Vec<i64>,
        name: String,
    }
    let pair = Pair::new(|builder| {
        let sum = typed(async |_: Request, Sum { numbers, name }: Sum| match numbers.iter().sum::<i64>() {
            0 => Err("nothing to add".to_owned()),
            sum => Ok((name, sum)),
        });
        builder.quick_service("sum", sum)
    });
    for owner in [&pair.one, &pair.two] {
        let ask = |numbers: &[i64]| {
            let sum = Sum { numbers: numbers.to_vec(), name: "a".into() };
            let request = CallRequest::with_value("sum", pair.key_of(owner), &sum).expect("it has a length");
            pair.call(request).value::<(String, i64)>()
        };
        assert_eq!(ask(&[1, 2, 39]), Ok(("a".into(), 42)));
        assert_eq!(ask(&[1, -1]), Err(CallError::Executed("nothing to add".into())));
        let other = pair.call(CallRequest::with_value("sum", pair.key_of(owner), &7u8).expect("a number"));
        assert_eq!(
            other.value::<(String, i64)>(),
            Err(CallError::Executed("the body is no value of this service".into()))
        );
    }
    let nobody = CallRequest::with_value("absent", pair.key_of(&pair.two), &7u8).expect("a number");
    let missing = pair.call(nobody).value::<u8>().expect_err("there is no such service");
    assert!(missing.is_not_executed(), "{missing}");
}

#[test]
fn an_answer_that_is_too_long_is_an_error_of_the_handler() {
    let long = handler(async |_: Request| Ok(Bytes::from(vec![0; (16 << 20) + 1])));
    let pair = Pair::new(move |builder| builder.service("long", long.clone()));
    let answered = pair.call(CallRequest::new("long", pair.key_of(&pair.two), "x"));
    assert_eq!(answered.outcome, Outcome::Executed(Bytes::from_static(b"the answer is too long")));
}

#[test]
fn a_handler_that_fails_or_panics_has_run_and_the_next_call_is_served() {
    let moody = handler(async |request: Request| match request.body.as_ref() {
        b"fail" => Err(ServiceError("no".into())),
        b"panic" => panic!("as asked"),
        _ => Ok(request.body),
    });
    // Before it gives a future, too.
    let hasty = handler(|request: Request| {
        assert!(request.body.is_empty(), "as asked");
        async { Ok(Bytes::new()) }
    });
    let pair = Pair::new(move |builder| builder.service("moody", moody.clone()).service("hasty", hasty.clone()));
    let key = pair.key_of(&pair.two);
    let ask = |body: &'static str| pair.call(CallRequest::new("moody", key.clone(), body)).outcome;
    assert_eq!(ask("fail"), Outcome::Executed("no".into()));
    assert_eq!(ask("panic"), Outcome::Executed("the handler panicked".into()));
    assert_eq!(ask("well"), Outcome::Ok("well".into()));
    for owner in [&pair.one, &pair.two] {
        let answered = pair.call(CallRequest::new("hasty", pair.key_of(owner), "x"));
        assert_eq!(answered.outcome, Outcome::Executed("the handler panicked".into()));
    }
}

#[test]
fn a_node_whose_runtime_has_ended_does_not_go_on_owning_keys() {
    let site = Site::new();
    let a = site.start("a", &[]);
    site.issue("ca", "app", "app", "2");
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let listen = "127.0.0.1:0".parse().expect("an address");
    let builder = Swimring::builder(site.at("app")).listen(listen).preset(Preset::Local).seed(&a.gossip);
    let app = runtime.block_on(builder.start()).expect("it starts");
    agree(&[&a], 2);
    drop(app);
    runtime.shutdown_background();
    a.waits_for("app", "down");
}

#[test]
fn a_service_that_the_owner_does_not_have_is_not_executed() {
    let pair = Pair::new(|builder| builder);
    for owner in [&pair.one, &pair.two] {
        let answered = pair.call(CallRequest::new("absent", pair.key_of(owner), "x"));
        let Outcome::NotExecuted(no) = answered.outcome else { panic!("{answered:?}") };
        assert!(no.to_string().contains("no such service"), "{no}");
    }
}

#[test]
fn a_caller_that_goes_away_ends_the_handler_at_the_owner() {
    let (entered, mut entries) = mpsc::unbounded_channel();
    let running = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&running);
    let pair = Pair::new(move |builder| {
        let (entered, running) = (entered.clone(), Arc::clone(&counted));
        builder.service(
            "slow",
            handler(move |_: Request| {
                let (entered, running) = (entered.clone(), Arc::clone(&running));
                async move {
                    running.fetch_add(1, Ordering::SeqCst);
                    let _gone = Gone(running);
                    let _ = entered.send(());
                    std::future::pending().await
                }
            }),
        )
    });
    let key = pair.key_of(&pair.two);
    pair.runtime.block_on(async {
        let call = pair.one.call(CallRequest::new("slow", key.clone(), "x"));
        tokio::select! {
            answered = call => panic!("it never ends: {answered:?}"),
            _ = entries.recv() => {}
        }
    });
    eventually("the handler is dropped", SOON, || (running.load(Ordering::SeqCst) == 0).then_some(()));
    // So does the deadline.
    let begun = std::time::Instant::now();
    let answered = pair.call(CallRequest::new("slow", key, "x").timeout(Duration::from_millis(200)));
    assert!(matches!(answered.outcome, Outcome::Unknown(_)), "{answered:?}");
    assert!(begun.elapsed() < SOON);
    eventually("the handler is dropped", SOON, || (running.load(Ordering::SeqCst) == 0).then_some(()));
}

struct Gone(Arc<AtomicUsize>);

impl Drop for Gone {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

#[test]
fn a_node_that_leaves_under_load_costs_nobody_a_call() {
    let pair = Pair::new(|builder| builder.service("echo", handler(async |request: Request| Ok(request.body))));
    let failures = pair.runtime.block_on(async {
        let left = pair.two.clone();
        let leaving = tokio::spawn(async move { left.leave(Duration::from_secs(5)).await });
        let mut failures = Vec::new();
        let mut number = 0_u32;
        while !leaving.is_finished() || number < 1_000 {
            number += 1;
            let key = format!("k{number}");
            let answered = pair.one.call(CallRequest::new("echo", key, "x")).await;
            if !matches!(answered.outcome, Outcome::Ok(_)) {
                failures.push(answered);
            }
        }
        failures
    });
    assert!(failures.is_empty(), "{failures:?}");
}

#[test]
fn whoever_holds_state_hears_which_arcs_it_may_win_and_which_it_has_won() {
    let pair = Pair::new(|builder| builder);
    let count = |arcs: &[ArcMove]| arcs.iter().map(|moved| moved.count).sum::<u32>();
    pair.runtime.block_on(async {
        let (mut events, ring) = (pair.one.arc_events(), Arc::clone(pair.one.view().ring()));
        let mut next = async || tokio::time::timeout(SOON, events.next()).await.expect("in time").expect("it runs");
        let ArcEvent::Won { arcs, fence } = next().await else { panic!("it owns some from the beginning") };
        assert_eq!(count(&arcs), ring.owned_count(id(&pair.one)));
        // Gone without a word: first it is suspected.
        pair.two.close().await;
        let ArcEvent::Expected { lose, win } = next().await else { panic!("it may be gone") };
        assert_eq!((count(&lose), count(&win)), (0, ring.owned_count(id(&pair.two))));
        let ArcEvent::Won { arcs, fence: later } = next().await else { panic!("it is gone") };
        assert!(arcs == win && later > fence, "{fence} and {later}");
        assert_eq!(next().await, ArcEvent::Expected { lose: Vec::new(), win: Vec::new() });
        pair.one.close().await;
        drop(pair.one);
        assert_eq!(tokio::time::timeout(SOON, events.next()).await.expect("in time"), None);
    });
}

#[test]
fn where_few_ask_each_member_all_hear_that_one_is_down() {
    // Everybody would ask everybody up to 256 members: here up to four.
    let settings = Settings { mesh_max: 4, ..Settings::preset(Preset::Local) };
    let (site, runtime) = (Site::new(), tokio::runtime::Runtime::new().expect("a runtime"));
    let mut nodes: Vec<Swimring> = Vec::new();
    for number in 0..16 {
        let name = format!("n{number}");
        site.issue("ca", &name, &name, "2");
        let listen = "127.0.0.1:0".parse().expect("an address");
        let mut builder = Swimring::builder(site.at(&name)).listen(listen).settings(settings.clone());
        if let Some(seed) = nodes.first() {
            builder = builder.seed(seed.gossip_address().to_string());
        }
        nodes.push(runtime.block_on(builder.start()).expect("it starts"));
    }
    let all_see = |nodes: &[Swimring], count: usize| {
        let present = |node: &Swimring| node.members().iter().filter(|member| member.state.is_present()).count();
        eventually(&format!("all see {count}"), SOON, || nodes.iter().all(|node| present(node) == count).then_some(()));
    };
    all_see(&nodes, 16);
    let gone = nodes.pop().expect("there are some");
    runtime.block_on(gone.close());
    all_see(&nodes, 15);
}

#[test]
fn a_call_for_several_owners_or_all_members_runs_where_it_is_for_and_only_if_the_service_takes_it() {
    let pair = Pair::new(|builder| {
        let told =
            |request: Request| async move { Ok(Bytes::from(format!("{:?} {:?}", request.scope, request.caller.node))) };
        builder.service("owned", handler(told)).service_everywhere("shared", handler(told))
    });
    let [one, two] = [id(&pair.one), id(&pair.two)];
    let ran = |scope: &str| Outcome::Ok(Bytes::from(format!("{scope} {one:?}")));
    for owner in [&pair.one, &pair.two] {
        let key = pair.key_of(owner);
        let shared = CallRequest::new("shared", key.clone(), "x");
        let both = pair.runtime.block_on(pair.one.call_owners(shared.clone(), 2, 2));
        assert!(both.is_reached() && both.answered() == 2, "{both:?}");
        let first = if id(owner) == one { [one, two] } else { [two, one] };
        assert_eq!(both.owners.iter().map(|(node, _)| *node).collect::<Vec<_>>(), first);
        for (node, answered) in &both.owners {
            let answered = answered.as_ref().expect("both were waited for");
            assert_eq!((answered.outcome.clone(), answered.owner), (ran("Owners(2)"), Some(*node)));
        }
        let too_few = pair.runtime.block_on(pair.one.call_owners(shared.clone(), 3, 3));
        assert!(!too_few.is_reached() && too_few.owners.iter().all(|(_, answered)| answered.is_none()));
        let all = pair.runtime.block_on(pair.one.call_members(shared.clone()));
        let mut at: Vec<NodeId> = all.iter().map(|(node, _)| *node).collect();
        at.sort_unstable();
        let mut expected = [one, two];
        expected.sort_unstable();
        assert_eq!(at, expected);
        assert!(all.iter().all(|(_, answered)| answered.outcome == ran("Members")), "{all:?}");
        assert_eq!(pair.call(shared).outcome, ran("Owner"), "to the owner as ever");
        let owned = CallRequest::new("owned", key, "x");
        let refused = pair.runtime.block_on(pair.one.call_owners(owned.clone(), 2, 1));
        assert!(!refused.is_reached(), "a service that is for owners runs nowhere else: {refused:?}");
        assert_eq!(pair.call(owned).outcome, ran("Owner"));
    }
}

#[test]
fn what_a_layer_holds_for_a_call_goes_with_it() {
    let held = Arc::new(AtomicUsize::new(0));
    let service = Queueing { held: Arc::clone(&held), waits: false };
    let pair = Pair::new(move |builder| builder.quick_service("queueing", service.clone()));
    for owner in [&pair.one, &pair.two] {
        let answered = pair.call(CallRequest::new("queueing", pair.key_of(owner), "x"));
        assert_eq!(answered.outcome, Outcome::Executed("too many".into()));
        eventually("nothing waits in its queue", SOON, || (held.load(Ordering::Relaxed) == 0).then_some(()));
    }
}

/// Sheds every call after it has taken a place in a queue for it, and gives that back when it is dropped.
struct Queueing {
    held: Arc<AtomicUsize>,
    waits: bool,
}

impl Clone for Queueing {
    fn clone(&self) -> Self {
        Self { held: Arc::clone(&self.held), waits: false }
    }
}

impl Drop for Queueing {
    fn drop(&mut self) {
        self.held.fetch_sub(usize::from(self.waits), Ordering::Relaxed);
    }
}

impl tower::Service<Request> for Queueing {
    type Response = Bytes;
    type Error = ServiceError;
    type Future = std::future::Ready<Result<Bytes, ServiceError>>;

    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), ServiceError>> {
        self.held.fetch_add(usize::from(!self.waits), Ordering::Relaxed);
        self.waits = true;
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request) -> Self::Future {
        std::future::ready(Err(ServiceError("too many".into())))
    }
}

#[test]
fn a_context_goes_with_its_call_wherever_it_runs() {
    let told = async |request: Request| Ok(request.context);
    let pair = Pair::new(|builder| builder.quick_service("quick", handler(told)).service("slow", handler(told)));
    let context: Bytes = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".into();
    for (service, owner) in [("quick", &pair.one), ("quick", &pair.two), ("slow", &pair.one), ("slow", &pair.two)] {
        let request = CallRequest::new(service, pair.key_of(owner), "x");
        assert_eq!(pair.call(request.clone()).outcome, Outcome::Ok(Bytes::new()), "none by itself");
        assert_eq!(pair.call(request.clone().context(context.clone())).outcome, Outcome::Ok(context.clone()));
        let long = pair.call(request.context(vec![0; 1_025])).outcome;
        assert!(matches!(long, Outcome::NotExecuted(no) if matches!(no.why(), Why::Invalid(_))), "{long:?}");
    }
}

#[test]
fn what_a_quorum_does_not_wait_for_goes_on_and_what_is_dropped_is_cancelled() {
    let (begun, mut begins) = mpsc::unbounded_channel();
    let (ended, mut ends) = mpsc::unbounded_channel();
    let open = Arc::new(tokio::sync::Semaphore::new(0));
    let gate = Arc::clone(&open);
    let pair = Pair::new(move |builder| {
        let (begun, ended, gate) = (begun.clone(), ended.clone(), Arc::clone(&gate));
        let slow_there = handler(move |request: Request| {
            let (begun, ended, gate) = (begun.clone(), ended.clone(), Arc::clone(&gate));
            async move {
                if request.view.me() != request.caller {
                    let _ = begun.send(());
                    let _told = Ended(ended);
                    gate.acquire().await.expect("it is never closed").forget();
                }
                Ok(request.body)
            }
        });
        builder.service_everywhere("slow", slow_there)
    });
    let request = CallRequest::new("slow", pair.key_of(&pair.one), "x").timeout(Duration::from_secs(60));
    pair.runtime.block_on(async {
        let gathered = pair.one.call_owners(request.clone(), 2, 1).await;
        assert!(gathered.is_reached() && gathered.answered() == 1);
        begins.recv().await.expect("it has begun there as well");
        assert!(ends.try_recv().is_err(), "and goes on");
        open.add_permits(1);
        ends.recv().await.expect("until it ends");
        let both = pair.one.call_owners(request, 2, 2);
        tokio::select! {
            _ = both => panic!("the gate is closed"),
            _ = begins.recv() => {}
        }
        ends.recv().await.expect("nobody waits for it any more");
    });
}

/// Tells when it is dropped.
struct Ended(mpsc::UnboundedSender<()>);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.send(());
    }
}
