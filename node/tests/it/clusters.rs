//! Clusters of real processes: they find each other, serve, lose, regain.

use crate::harness::{Node, SOON, Site, agree, eventually};

#[test]
fn three_nodes_join_by_seed_and_read_each_others_keys_until_one_is_killed() {
    let site = Site::new();
    let a = site.start("a", &[]);
    let b = site.start("b", &[&a]);
    let mut c = site.start("c", &[&a]);
    agree(&[&a, &b, &c], 3);
    for number in 0..30 {
        assert_eq!(a.put(&format!("k{number}"), &format!("v{number}")), 204);
        for node in [&b, &c] {
            assert_eq!(node.get(&format!("k{number}")), Some(format!("v{number}")));
        }
    }
    let owner = |node: &Node, key: &str| {
        node.ask(&format!("/lookup?key={key}")).and_then(|answer| answer["owner"].as_str().map(str::to_owned))
    };
    let of_c: Vec<String> =
        (0..30).map(|n| format!("k{n}")).filter(|key| owner(&a, key).as_deref() == Some("c")).collect();
    assert!(!of_c.is_empty(), "thirty keys, and none at one of three nodes");
    c.kill();
    for node in [&a, &b] {
        node.waits_for("c", "down");
    }
    for key in &of_c {
        let (at_a, at_b) = (owner(&a, key), owner(&b, key));
        assert!(at_a == at_b && at_a.as_deref() != Some("c") && at_a.is_some(), "{key}: {at_a:?} and {at_b:?}");
        assert_eq!(b.put(key, "again"), 204);
        assert_eq!(a.get(key).as_deref(), Some("again"));
    }
}

#[test]
fn one_node_alone_is_a_cluster_and_two_survive_the_loss_of_either() {
    let site = Site::new();
    let a = site.start("a", &[]);
    agree(&[&a], 1);
    assert_eq!(a.put("k", "v"), 204);
    assert_eq!(a.get("k").as_deref(), Some("v"));
    let mut b = site.start("b", &[&a]);
    agree(&[&a, &b], 2);
    b.kill();
    a.waits_for("b", "down");
    for number in 0..10 {
        assert_eq!(a.put(&format!("k{number}"), "v"), 204);
    }
}

#[test]
fn a_node_restarted_under_its_old_name_is_believed_at_once() {
    let site = Site::new();
    let a = site.start("a", &[]);
    let mut b = site.start("b", &[&a]);
    agree(&[&a, &b], 2);
    let listen = b.gossip.clone();
    b.kill();
    let again = site.start_with("b", "b", std::slice::from_ref(&a.gossip), &["--listen", &listen]).expect("it listens");
    // Long before a suspicion could have ended.
    let seen = eventually("the second life of b", SOON, || a.incarnation("b").filter(|inc| inc.starts_with("2.")));
    assert!(seen.starts_with("2."));
    agree(&[&a, &again], 2);
}

#[test]
fn a_node_whose_state_was_lost_learns_from_the_cluster_how_far_its_name_had_come() {
    let site = Site::new();
    let a = site.start("a", &[]);
    let mut b = site.start("b", &[&a]);
    agree(&[&a, &b], 2);
    let listen = b.gossip.clone();
    b.kill();
    std::fs::remove_dir_all(site.path.join("b/state")).expect("the state can be removed");
    let again = site.start_with("b", "b", std::slice::from_ref(&a.gossip), &["--listen", &listen]).expect("it listens");
    agree(&[&a, &again], 2);
    let boot = a.incarnation("b").and_then(|inc| inc.split('.').next().and_then(|boot| boot.parse::<u32>().ok()));
    assert!(boot.is_some_and(|boot| boot >= 2), "{boot:?}");
    again.says("the boot was raised");
}

#[test]
fn whoever_takes_a_key_over_holds_it_above_all_who_had_it_before() {
    let site = Site::new();
    let fence = |node: &Node, key: &str| {
        let head = node.http("PUT", &format!("/kv/{key}"), b"v").head;
        let said = |name: &str| head.lines().find_map(|line| line.strip_prefix(name)).map(str::to_owned);
        (said("x-swimring-owner: ").expect("an owner"), said("x-swimring-fence: ").and_then(|fence| fence.parse().ok()))
    };
    let keys: Vec<String> = (0..20).map(|number| format!("k{number}")).collect();
    // A life that comes and goes makes the first one's fences rise.
    let a = site.start("a", &[]);
    let guest = site.start("guest", &[&a]);
    agree(&[&a, &guest], 2);
    drop(guest);
    a.waits_for("guest", "down");
    let held: Vec<(String, Option<u64>)> = keys.iter().map(|key| fence(&a, key)).collect();
    assert!(held.iter().all(|(owner, fence)| owner == "a" && fence.is_some()));
    let b = site.start("b", &[&a]);
    agree(&[&a, &b], 2);
    let now: Vec<(String, Option<u64>)> = keys.iter().map(|key| fence(&a, key)).collect();
    let taken: Vec<_> = held.iter().zip(&now).filter(|(_, (owner, _))| owner == "b").collect();
    assert!(!taken.is_empty(), "some of the keys are another's");
    taken.iter().for_each(|(before, after)| assert!(after.1 > before.1, "{before:?}, then {after:?}"));
    // And above its own last life, with nobody left to ask.
    drop(b);
    a.waits_for("b", "down");
    let last = fence(&a, "k").1;
    drop(a);
    let again = site.start("a", &[]);
    agree(&[&again], 1);
    assert!(fence(&again, "k").1 > last, "{last:?}");
}

#[test]
fn a_restart_of_every_node_at_once_ends_in_one_view() {
    let site = Site::new();
    let a = site.start("a", &[]);
    let b = site.start("b", &[&a]);
    let c = site.start("c", &[&a]);
    agree(&[&a, &b, &c], 3);
    let places: Vec<String> = [&a, &b, &c].iter().map(|node| node.gossip.clone()).collect();
    drop((a, b, c));
    let start = |index: usize, name: &str| {
        let seeds: Vec<String> =
            places.iter().enumerate().filter(|(i, _)| *i != index).map(|(_, place)| place.clone()).collect();
        site.start_with(name, name, &seeds, &["--listen", &places[index]]).expect("it listens")
    };
    let (a, b, c) = (start(0, "a"), start(1, "b"), start(2, "c"));
    agree(&[&a, &b, &c], 3);
}

#[test]
fn a_second_process_under_a_living_name_is_refused_and_one_under_a_dead_name_is_not() {
    let site = Site::new();
    let a = site.start("a", &[]);
    let mut b = site.start("b", &[&a]);
    agree(&[&a, &b], 2);
    let state = site.at("twin-state");
    let mut twin = site
        .start_with("b", "twin", std::slice::from_ref(&a.gossip), &["--state", &state])
        .expect("it listens at first");
    assert_eq!(twin.ended(), Some(3));
    assert!(twin.log().contains("has this name"), "{}", twin.log());
    agree(&[&a, &b], 2);
    b.kill();
    let heir = site.start_with("b", "heir", std::slice::from_ref(&a.gossip), &["--state", &state]).expect("it listens");
    agree(&[&a, &heir], 2);
}

#[test]
fn a_stopped_process_whose_name_was_taken_over_gives_up_its_keys_and_exits() {
    let site = Site::new();
    let a = site.start("a", &[]);
    let mut b = site.start("b", &[&a]);
    agree(&[&a, &b], 2);
    b.signal("-STOP");
    a.waits_for("b", "down");
    let heir = site
        .start_with("b", "heir", std::slice::from_ref(&a.gossip), &["--state", &site.at("heir-state")])
        .expect("it listens");
    agree(&[&a, &heir], 2);
    b.signal("-CONT");
    assert_eq!(b.ended(), Some(3));
    assert!(b.log().contains("a newer process"), "{}", b.log());
    agree(&[&a, &heir], 2);
}

#[test]
fn sigterm_leaves_in_an_orderly_way() {
    let site = Site::new();
    let a = site.start("a", &[]);
    let mut b = site.start("b", &[&a]);
    agree(&[&a, &b], 2);
    b.signal("-TERM");
    a.waits_for("b", "left");
    assert_eq!(b.ended(), Some(0));
}

#[test]
fn a_node_that_is_restarted_in_an_orderly_way_costs_nobody_a_call() {
    let site = Site::new();
    let a = site.start("a", &[]);
    let mut b = site.start("b", &[&a]);
    agree(&[&a, &b], 2);
    let listen = b.gossip.clone();
    let mut number = 0;
    let mut call = || {
        number += 1;
        assert_eq!(a.put(&format!("k{number}"), "v"), 204, "call {number}");
    };
    b.signal("-TERM");
    eventually("b ends", SOON, || {
        call();
        b.process.try_wait().ok().flatten()
    });
    let again = site.start_with("b", "b", std::slice::from_ref(&a.gossip), &["--listen", &listen]).expect("it listens");
    agree(&[&a, &again], 2);
    // For longer than the last words of its earlier life were waited for.
    let begun = std::time::Instant::now();
    eventually("some seconds", SOON, || {
        call();
        (begun.elapsed() > std::time::Duration::from_secs(4)).then_some(())
    });
}

#[test]
fn an_owner_that_was_stopped_and_removed_does_not_serve_what_it_held() {
    let site = Site::new();
    let a = site.start("a", &[]);
    let b = site.start("b", &[&a]);
    agree(&[&a, &b], 2);
    let of_b = |key: &String| a.ask(&format!("/lookup?key={key}")).is_some_and(|seen| seen["owner"] == "b");
    let keys: Vec<String> = (0..).map(|number| format!("k{number}")).filter(of_b).take(20).collect();
    keys.iter().for_each(|key| assert_eq!(a.put(key, "old"), 204));
    b.signal("-STOP");
    a.waits_for("b", "down");
    keys.iter().for_each(|key| assert_eq!(a.put(key, "new"), 204));
    b.signal("-CONT");
    agree(&[&a, &b], 2);
    for key in &keys {
        assert_ne!(a.get(key).as_deref(), Some("old"), "{key}: another one was acknowledged since");
    }
}
