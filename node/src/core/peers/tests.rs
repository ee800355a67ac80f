use super::*;

fn peer(number: u128) -> Peer {
    Peer { id: NodeId::from_u128(number), address: SocketAddr::from(([127, 0, 0, 1], number as u16)) }
}

fn peers(number: u128) -> Peers {
    Peers::new(Class::Gossip, peer(number), number as u64, PeersConfig::default(), Rng::new(1))
}

fn hello(number: u128, life: u64) -> Hello {
    Hello { class: Class::Gossip, peer: peer(number), life, fingerprint: [0; 16], clock: 0, anew: false }
}

fn target(number: u128) -> Target {
    Target::Peer(peer(number), peer(number).address)
}

fn dialled(peers: &mut Peers) -> DialId {
    match peers.poll_command() {
        Some(Command::Dial { dial, .. }) => dial,
        other => panic!("expected a dial, got {other:?}"),
    }
}

#[test]
fn two_ends_that_dial_at_once_keep_the_same_connection() {
    let now = Instant::ORIGIN;
    // Connection 1 was dialled by the lower id, connection 2 by the higher one; both ends see both.
    for order in [[1, 2], [2, 1]] {
        let (mut low, mut high) = (peers(1), peers(2));
        assert_eq!(low.route(now, target(2)), Route::Dialling);
        assert_eq!(high.route(now, target(1)), Route::Dialling);
        let (low_dial, high_dial) = (dialled(&mut low), dialled(&mut high));
        for conn in order {
            if conn == 1 {
                low.handle_dialled(now, low_dial, ConnId(1), &hello(2, 2));
                high.handle_accepted(now, ConnId(1), &hello(1, 1));
            } else {
                high.handle_dialled(now, high_dial, ConnId(2), &hello(1, 1));
                low.handle_accepted(now, ConnId(2), &hello(2, 2));
            }
        }
        assert_eq!((low.connection(peer(2)), high.connection(peer(1))), (Some(ConnId(1)), Some(ConnId(1))));
        // The loser lingers for what is under way on it, and its dialler closes it.
        high.handle_timeout(now + PeersConfig::default().linger);
        low.handle_timeout(now + PeersConfig::default().linger);
        assert_eq!(high.poll_command(), Some(Command::Close { conn: ConnId(2), why: Goodbye::Duplicate }));
        assert_eq!(low.poll_command(), None);
    }
}

#[test]
fn a_restarted_process_replaces_the_connection_of_its_earlier_life() {
    let now = Instant::ORIGIN;
    let mut low = peers(1);
    low.handle_accepted(now, ConnId(1), &hello(2, 20));
    low.handle_accepted(now, ConnId(2), &hello(2, 21));
    assert_eq!(low.connection(peer(2)), Some(ConnId(2)));
    assert_eq!(low.poll_command(), Some(Command::Close { conn: ConnId(1), why: Goodbye::Gone }));
}

#[test]
fn a_process_that_dials_anew_has_given_up_what_stands_here_unless_that_may_have_crossed() {
    let mut low = peers(1);
    low.route(Instant::ORIGIN, target(2));
    let dial = dialled(&mut low);
    assert!(low.is_anew(dial));
    low.handle_dialled(Instant::ORIGIN, dial, ConnId(1), &hello(2, 2));
    let anew = Hello { anew: true, ..hello(2, 2) };
    let crossed = Instant::ORIGIN + PeersConfig::default().dial_timeout * 2;
    low.handle_accepted(crossed, ConnId(2), &anew);
    assert_eq!(low.connection(peer(2)), Some(ConnId(1)), "the lower one's stands");
    low.handle_closed(ConnId(2));

    let later = crossed + Duration::from_millis(1);
    low.handle_accepted(later, ConnId(3), &hello(2, 2));
    assert_eq!(low.connection(peer(2)), Some(ConnId(1)), "it has that one, too");
    low.handle_accepted(later, ConnId(4), &anew);
    assert_eq!(low.connection(peer(2)), Some(ConnId(4)));
    assert_eq!(low.poll_command(), Some(Command::Close { conn: ConnId(1), why: Goodbye::Gone }));
}

#[test]
fn whoever_is_full_has_room_for_a_process_that_dials_anew() {
    let config = PeersConfig { connections_max: 1, ..PeersConfig::default() };
    let mut low = Peers::new(Class::Gossip, peer(1), 1, config.clone(), Rng::new(1));
    low.handle_accepted(Instant::ORIGIN, ConnId(1), &hello(2, 2));
    let later = Instant::ORIGIN + config.dial_timeout * 3;
    let (other, anew) = (hello(3, 3), Hello { anew: true, ..hello(2, 2) });
    assert_eq!(low.judge(later, &other, other.peer.id, &[0; 16]), Err(Refusal::Full));
    assert_eq!(low.judge(Instant::ORIGIN, &anew, anew.peer.id, &[0; 16]), Err(Refusal::Full), "they may have crossed");
    assert_eq!(low.judge(later, &anew, anew.peer.id, &[0; 16]), Ok(()));
    low.handle_accepted(later, ConnId(2), &anew);
    assert_eq!(low.connection(peer(2)), Some(ConnId(2)));
}

#[test]
fn a_failed_dial_waits_longer_each_time_and_a_success_forgets_it() {
    let mut now = Instant::ORIGIN;
    let mut low = peers(1);
    let mut waits = Vec::new();
    for _ in 0..4 {
        assert_eq!(low.route(now, target(2)), Route::Dialling);
        let dial = dialled(&mut low);
        low.handle_dial_failed(now, dial, "refused".into());
        assert_eq!(low.route(now, target(2)), Route::Unreachable);
        let retry = low.poll_timeout().unwrap();
        waits.push(retry.since(now));
        now = retry;
        low.handle_timeout(now);
    }
    assert!(waits.windows(2).all(|pair| pair[0] < pair[1]), "{waits:?}");
    assert_eq!(low.route(now, target(2)), Route::Dialling);
    let dial = dialled(&mut low);
    low.handle_dialled(now, dial, ConnId(1), &hello(2, 2));
    assert_eq!(low.route(now, target(2)), Route::Connected(ConnId(1)));
}

#[test]
fn a_seed_that_is_asked_for_while_it_waits_is_dialled_when_that_is_over() {
    let mut now = Instant::ORIGIN;
    let mut low = peers(1);
    let seed = Target::Seed(peer(2).address);
    let fails = |low: &mut Peers, now| {
        assert_eq!(low.route(now, seed), Route::Dialling);
        let dial = dialled(low);
        low.handle_dial_failed(now, dial, "refused".into());
        assert!(matches!(low.poll_event(), Some(PeersEvent::Failed { target, .. }) if target == seed));
        low.poll_timeout().expect("it waits")
    };
    now = fails(&mut low, now);
    low.handle_timeout(now);
    assert_eq!(low.poll_command(), None, "nobody asked for it");
    now = fails(&mut low, now);
    assert_eq!((low.route(now, seed), low.poll_command()), (Route::Dialling, None));
    low.handle_timeout(low.poll_timeout().expect("it waits"));
    let dial = dialled(&mut low);
    low.handle_dialled(now, dial, ConnId(1), &hello(2, 2));
    assert!(matches!(low.poll_event(), Some(PeersEvent::Up { dialled, .. }) if dialled == Some(seed)));
    // Whoever was there comes by itself the next time, while the seed waits.
    low.handle_closed(ConnId(1));
    assert_eq!(low.poll_event(), Some(PeersEvent::Down { peer: peer(2) }));
    let later = fails(&mut low, now);
    assert_eq!(low.route(now, seed), Route::Dialling);
    low.handle_accepted(now, ConnId(2), &hello(2, 2));
    assert!(matches!(low.poll_event(), Some(PeersEvent::Up { dialled: None, .. })));
    low.handle_timeout(later);
    let up = PeersEvent::Up { peer: peer(2), conn: ConnId(2), dialled: Some(seed) };
    assert_eq!((low.poll_event(), low.poll_command()), (Some(up), None), "what waits for the seed goes there");
}

#[test]
fn a_dial_that_takes_too_long_is_given_up() {
    let now = Instant::ORIGIN;
    let mut low = peers(1);
    assert_eq!(low.route(now, target(2)), Route::Dialling);
    let dial = dialled(&mut low);
    low.handle_timeout(now + PeersConfig::default().dial_timeout);
    assert_eq!(low.poll_command(), Some(Command::Abort { dial }));
    // Its late success is closed.
    low.handle_dialled(now, dial, ConnId(1), &hello(2, 2));
    assert_eq!(low.poll_command(), Some(Command::Close { conn: ConnId(1), why: Goodbye::Late }));
}

#[test]
fn a_seed_that_is_this_process_is_not_dialled_again() {
    let now = Instant::ORIGIN;
    let mut low = peers(1);
    let seed = SocketAddr::from(([127, 0, 0, 1], 99));
    assert_eq!(low.route(now, Target::Seed(seed)), Route::Dialling);
    let dial = dialled(&mut low);
    low.handle_oneself(now, dial);
    assert_eq!(low.poll_event(), Some(PeersEvent::Oneself { address: seed }));
    assert_eq!(low.route(now, Target::Seed(seed)), Route::Refused);
    assert_eq!(low.route(now, Target::Seed(peer(1).address)), Route::Refused);
}

#[test]
fn a_peer_whose_address_is_this_process_is_tried_again_after_a_while() {
    let now = Instant::ORIGIN;
    let mut low = peers(1);
    assert_eq!(low.route(now, target(2)), Route::Dialling);
    let dial = dialled(&mut low);
    low.handle_oneself(now, dial);
    assert!(matches!(low.poll_event(), Some(PeersEvent::Failed { target: at, .. }) if at == target(2)));
    assert_eq!(low.route(now, target(2)), Route::Unreachable);
}

#[test]
fn whoever_had_this_address_before_is_not_looked_for_here() {
    let mut low = peers(1);
    let before = Peer { id: NodeId::from_u128(9), address: peer(1).address };
    assert_eq!(low.route(Instant::ORIGIN, Target::Peer(before, before.address)), Route::Unreachable);
    assert_eq!(low.poll_command(), None);
}

#[test]
fn a_hello_is_refused_for_each_reason() {
    let low = peers(1);
    let certified = NodeId::from_u128(2);
    let judge = |hello: Hello, certified| low.judge(Instant::ORIGIN, &hello, certified, &[0; 16]);
    assert_eq!(judge(hello(2, 2), certified), Ok(()));
    assert_eq!(judge(hello(2, 2), NodeId::from_u128(3)), Err(Refusal::Identity));
    assert_eq!(judge(hello(2, 1), certified), Err(Refusal::Oneself));
    assert_eq!(judge(Hello { class: Class::Calls, ..hello(2, 2) }, certified), Err(Refusal::Class));
    assert_eq!(judge(Hello { fingerprint: [1; 16], ..hello(2, 2) }, certified), Err(Refusal::Cluster));
}

#[test]
fn an_old_connection_is_replaced_by_a_new_one_before_it_is_closed() {
    let (mut low, mut high) = (peers(1), peers(2));
    let begun = Instant::ORIGIN;
    let (config, target) = (PeersConfig::default(), target(2));
    low.route(begun, target);
    let dial = dialled(&mut low);
    low.handle_dialled(begun, dial, ConnId(1), &hello(2, 2));
    high.handle_accepted(begun, ConnId(1), &hello(1, 1));
    let old = low.poll_timeout().expect("it grows old");
    assert!(old >= begun + config.age_max / 2);
    low.handle_timeout(old);
    let again = dialled(&mut low);
    assert_eq!(low.connection(peer(2)), Some(ConnId(1)), "until the new one stands");
    low.handle_dialled(old, again, ConnId(2), &hello(2, 2));
    high.handle_accepted(old, ConnId(2), &hello(1, 1));
    assert_eq!((low.connection(peer(2)), high.connection(peer(1))), (Some(ConnId(2)), Some(ConnId(2))));
    low.handle_timeout(old + config.linger);
    assert_eq!(low.poll_command(), Some(Command::Close { conn: ConnId(1), why: Goodbye::Duplicate }));
}

#[test]
fn an_old_connection_that_is_kept_again_is_replaced_after_all() {
    let config = PeersConfig { linger: Duration::from_secs(24 * 3_600), ..PeersConfig::default() };
    let mut low = Peers::new(Class::Gossip, peer(1), 1, config, Rng::new(1));
    let next = |low: &mut Peers| {
        let at = low.poll_timeout().expect("it grows old");
        low.handle_timeout(at);
        at
    };
    low.route(Instant::ORIGIN, target(2));
    let dial = dialled(&mut low);
    low.handle_dialled(Instant::ORIGIN, dial, ConnId(1), &hello(2, 2));
    let old = next(&mut low);
    let again = dialled(&mut low);
    low.handle_dialled(old, again, ConnId(2), &hello(2, 2));
    // It is looked at while the new one stands; then the new one ends.
    assert!(next(&mut low) > old && low.poll_command().is_none());
    low.handle_closed(ConnId(2));
    assert_eq!(low.connection(peer(2)), Some(ConnId(1)));
    next(&mut low);
    dialled(&mut low);
}
