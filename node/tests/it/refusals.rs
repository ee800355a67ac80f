//! Bad input: a clear error, and the cluster goes on.

use std::io::{Read, Write};
use std::net::{Shutdown, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use swimring::membership::Preset;
use swimring::ring::Hashing;
use swimring::runtime::builder::Builder;
use swimring::runtime::node::Swimring;

use crate::harness::{Node, SOON, Site, agree, eventually, exchange_with, run, text};

/// Starts a node that must not start, and gives its exit code and what it said.
fn refused(arguments: &[&str]) -> (Option<i32>, String) {
    let output = run(arguments);
    (output.status.code(), text(&output.stderr))
}

#[test]
fn an_identity_that_is_missing_exposed_or_for_another_node_is_refused_by_name() {
    let site = Site::new();
    site.issue("ca", "a", "a", "2");
    let missing = site.at("nowhere");
    let (code, said) = refused(&["node", "--identity", &missing]);
    assert!(code == Some(3) && said.contains("ca.pem") && said.contains("certs issue"), "{code:?} {said}");
    let identity = site.at("a");
    let (code, said) = refused(&["node", "--identity", &identity, "--name", "b"]);
    assert!(code == Some(2) && said.contains("is for node a, not b"), "{code:?} {said}");
    std::fs::write(site.path.join("a/node.pem"), "nothing").expect("it can be written");
    let (code, said) = refused(&["node", "--identity", &identity]);
    assert!(code == Some(3) && said.contains("holds no certificate"), "{code:?} {said}");
    site.issue("ca", "b", "b", "2");
    for secret in ["b/node.key", "b/cluster.key"] {
        let path = site.path.join(secret);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).expect("modes can be set");
        let (code, said) = refused(&["node", "--identity", &site.at("b")]);
        assert!(code == Some(3) && said.contains("chmod 600") && said.contains(secret), "{code:?} {said}");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("modes can be set");
    }
}

#[test]
fn a_certificate_that_nobody_would_take_is_refused_before_anybody_is_dialled() {
    let site = Site::new();
    site.issue("ca", "late", "late", "-2");
    let (code, said) = refused(&["node", "--identity", &site.at("late")]);
    assert!(code == Some(3) && said.contains("node.pem: the certificate expired 2 days ago"), "{code:?} {said}");
    site.issue("ca", "a", "a", "2");
    site.authority("other-ca", "test");
    std::fs::copy(site.path.join("other-ca/ca.pem"), site.path.join("a/ca.pem")).expect("it can be copied");
    let (code, said) = refused(&["node", "--identity", &site.at("a")]);
    assert!(code == Some(3) && said.contains("node.pem: is not signed by the authority in ca.pem"), "{code:?} {said}");
}

#[test]
fn whoever_has_a_wrong_certificate_or_secret_does_not_get_in_and_hears_why() {
    let site = Site::new();
    let a = site.start("a", &[]);
    site.authority("other-ca", "test");
    site.issue("other-ca", "stranger", "stranger", "2");
    site.authority("elsewhere-ca", "elsewhere");
    site.issue("elsewhere-ca", "foreign", "foreign", "2");
    site.issue("ca", "keyless", "keyless", "2");
    std::fs::copy(site.path.join("other-ca/cluster.key"), site.path.join("keyless/cluster.key"))
        .expect("it can be copied");
    site.issue_for("ca", "neighbours", "guest", "guest");
    let handshakes =
        |reason| a.counted("swimring_handshakes_refused_total", &[("class", "gossip"), ("reason", reason)]);
    for (identity, reason, counted) in [
        ("stranger", "UnknownIssuer", "certificate"),
        ("foreign", "UnknownIssuer", "certificate"),
        ("guest", "is for cluster test, not neighbours", "certificate"),
        ("keyless", "cluster.key", "cluster"),
    ] {
        let before = handshakes(counted);
        let node =
            site.start_with(identity, identity, std::slice::from_ref(&a.gossip), &[]).expect("it listens, and tries");
        node.says("cannot connect");
        assert!(node.log().contains(reason), "{identity}: {}", node.log());
        // It goes on trying; it is not in, and nobody lists it.
        let own = node.ask("/health").expect("it answers");
        assert_eq!(own["ready"], false, "{identity}");
        assert!(a.believes(identity).is_none(), "{identity}");
        node.counts_some("swimring_dials_failed_total", &[("class", "gossip"), ("reason", counted)]);
        eventually("it is counted", SOON, || (handshakes(counted) > before).then_some(()));
    }
    let said = a.log().matches("refused a").count();
    assert!(said <= 5, "each is said once, however often it tries: {}", a.log());
    agree(&[&a], 1);
}

#[test]
fn whoever_places_keys_by_another_rule_does_not_get_in() {
    let site = Site::new();
    let a = site.start("a", &[]);
    let refused = || a.counted("swimring_handshakes_refused_total", &[("class", "gossip"), ("reason", "cluster")]);
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    type Rule = fn(Builder) -> Builder;
    let rules: [(&str, Rule); 3] = [
        ("fast", |builder| builder.hashing(Hashing::Fast)),
        ("blake3", |builder| builder.hashing(Hashing::Blake3)),
        ("coarse", |builder| builder.arcs_log2(12)),
    ];
    for (name, rule) in rules {
        let before = refused();
        site.issue("ca", name, name, "2");
        let listen = "127.0.0.1:0".parse().expect("an address");
        let builder =
            rule(Swimring::builder(site.at(name)).listen(listen).preset(Preset::Local).seed(a.gossip.clone()));
        let node = runtime.block_on(builder.start()).expect("it listens, and tries");
        eventually("it is refused", SOON, || (refused() > before).then_some(()));
        assert!(!node.is_ready() && a.believes(name).is_none(), "{name}");
    }
    agree(&[&a], 1);
}

#[test]
fn a_port_in_use_is_told_with_its_address() {
    let site = Site::new();
    site.issue("ca", "a", "a", "2");
    let taken = UdpSocket::bind("127.0.0.1:0").expect("a port is free");
    let address = taken.local_addr().expect("it is bound").to_string();
    let (code, said) = refused(&["node", "--identity", &site.at("a"), "--listen", &address]);
    assert!(code == Some(3) && said.contains(&address), "{code:?} {said}");
}

#[test]
fn an_unreachable_seed_is_tried_again_and_said() {
    let site = Site::new();
    site.issue("ca", "a", "a", "2");
    let nobody = UdpSocket::bind("127.0.0.1:0").expect("a port is free");
    let seed = nobody.local_addr().expect("it is bound").to_string();
    let node = site.start_with("a", "a", &[seed], &[]).expect("it listens");
    node.says("no seed has answered; trying again");
    node.counts_some("swimring_dials_failed_total", &[("class", "gossip"), ("reason", "silent")]);
    let health = node.ask("/health").expect("it answers");
    assert_eq!(health["ready"], false);
}

#[test]
fn a_seed_that_is_the_node_itself_is_said_once_and_does_not_make_a_cluster() {
    let site = Site::new();
    site.issue("ca", "a", "a", "2");
    let free = UdpSocket::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a port is free");
    let listen = free.to_string();
    let localhost = format!("localhost:{}", free.port());
    let node = site.start_with("a", "a", &[localhost], &["--listen", &listen]).expect("it listens");
    node.says("no seed has answered");
    assert_eq!(node.ask("/health").expect("it answers")["ready"], false);
    node.counts_some("swimring_findings_total", &[("kind", "seed_is_oneself")]);
    assert_eq!(node.log().matches("this seed is the node itself").count(), 1);
}

#[test]
fn wrong_usage_exits_with_2() {
    let site = Site::new();
    site.issue("ca", "a", "a", "2");
    let (identity, long) = (site.at("a"), format!("k={}", "v".repeat(129)));
    for arguments in [
        vec!["node", "--identity", &identity, "--nonsense"],
        vec!["node", "--identity", &identity, "--tag", &long],
        vec!["node", "--identity", &identity, "--weight", "2000"],
        vec!["node", "--identity", &identity, "--name", "Not A Name"],
        vec!["node", "--identity", &identity, "--listen", "0.0.0.0:0"],
        vec!["node", "--identity", &identity, "--seed", "nowhere"],
        vec!["certs", "issue", "--ca", &identity, "--name", "b", "--out", &identity, "--days", "10000000"],
        vec!["members", "--admin", "10.0.0.1:80"],
        vec!["members", "--admin", "localhost:80"],
        vec!["demo", "--nodes", "1"],
    ] {
        let (code, said) = refused(&arguments);
        assert!(code == Some(2) && !said.is_empty(), "{arguments:?}: {code:?} {said}");
    }
}

#[test]
fn nobody_at_the_admin_socket_exits_with_3() {
    let (code, said) = refused(&["members", "--admin", "/nowhere/admin.sock"]);
    assert!(code == Some(3) && said.contains("/nowhere/admin.sock"), "{code:?} {said}");
}

#[test]
fn a_node_that_stands_still_answers_no_command_and_the_command_ends() {
    let site = Site::new();
    let a = site.start("a", &[]);
    a.signal("-STOP");
    let (code, said) = refused(&["members", "--admin", &site.at("a.sock")]);
    assert!(code == Some(3) && said.contains("silent for 10s"), "{code:?} {said}");
    a.signal("-CONT");
}

#[test]
fn an_admin_path_that_holds_something_else_is_left_alone() {
    let site = Site::new();
    site.issue("ca", "a", "a", "2");
    let notes = site.at("notes.txt");
    std::fs::write(&notes, "keep this").expect("it can be written");
    let (code, said) = refused(&["node", "--identity", &site.at("a"), "--listen", "127.0.0.1:0", "--admin", &notes]);
    assert!(code == Some(3) && said.contains("no socket"), "{code:?} {said}");
    assert_eq!(std::fs::read_to_string(&notes).expect("it is still there"), "keep this");
}

#[test]
fn the_admin_endpoint_on_tcp_wants_its_token_and_this_machine_as_host() {
    let site = Site::new();
    site.issue("ca", "a", "a", "2");
    let token_file = site.path.join("state/admin.token");
    std::fs::create_dir(site.path.join("state")).expect("it can be made");
    std::fs::write(&token_file, "left behind").expect("it can be written");
    let command = site.node("a", "a", &[], &["--state", &site.at("state"), "--admin", "127.0.0.1:0"]);
    let a = Node::start(command, site.at("a.log").into()).expect("the node says where it listens");
    let mode = std::fs::metadata(&token_file).expect("the token is stored").permissions().mode() & 0o777;
    assert_eq!(mode, 0o600, "whatever the file was before");
    let token = std::fs::read_to_string(&token_file).expect("it can be read");
    let place = a.admin.display().to_string();
    let ask = |token: &str, host: &str| {
        let stream = std::net::TcpStream::connect(&place).expect("it listens");
        let headers = [("authorization", format!("Bearer {token}"))];
        let headers: Vec<(&str, &str)> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        exchange_with(stream, host, "GET", "/health", &headers, b"").expect("it answers").status
    };
    assert_eq!((ask(&token, "localhost"), ask(&token, &place)), (200, 200));
    for (token, host) in [("wrong", "localhost"), (&*token, "localhost.evil.example"), (&*token, "evil.example")] {
        assert_eq!(ask(token, host), 401, "{token} {host}");
    }
    let file = token_file.display().to_string();
    let (code, said) = refused(&["members", "--admin", &place, "--admin-token", &file]);
    assert_eq!(code, Some(0), "{said}");
}

#[test]
fn keys_and_values_beyond_their_limits_are_refused() {
    let site = Site::new();
    let a = site.start("a", &[]);
    agree(&[&a], 1);
    assert_eq!(a.http("PUT", "/kv/", b"v").status, 400);
    assert_eq!(a.http("PUT", &format!("/kv/{}", "k".repeat(1_025)), b"v").status, 400);
    assert_eq!(a.http("PUT", &format!("/kv/{}", "k".repeat(1_024)), b"v").status, 204);
    assert_eq!(a.http("PUT", "/kv/big", &vec![0; 17 << 20]).status, 413);
    assert_eq!(a.http("PUT", "/kv/ttl", b"v").status, 204);
    assert_eq!(a.http("POST", "/kv/k", b"v").status, 405);
    assert_eq!(a.http("GET", "/kv/absent", b"").status, 404);
    assert_eq!(a.http("GET", "/kv/%zz", b"").status, 400);
    for (reason, count) in [("key", 3), ("body_too_long", 1), ("method", 1)] {
        a.counts("swimring_http_refused_total", &[("reason", reason)], count);
    }
    for answer in [a.http("GET", "/kv/ttl", b""), a.http("POST", "/kv/k", b"v")] {
        for header in ["x-swimring-owner: a", "x-swimring-hops: 0", "x-swimring-fence: "] {
            assert!(answer.head.contains(header), "{}", answer.head);
        }
    }
    let (code, said) = refused(&["lookup", "", "--admin", &site.at("a.sock")]);
    assert!(code == Some(2) && said.contains("1 to 1,024 bytes"), "{code:?} {said}");
}

#[test]
fn a_value_lives_for_as_long_as_it_was_told() {
    let site = Site::new();
    let a = site.start("a", &[]);
    agree(&[&a], 1);
    let put = |ttl: &str| {
        let headers = [("x-ttl-s", ttl)];
        exchange_with(a.http_stream(), "h", "PUT", "/kv/k", &headers, b"v").expect("HTTP answers").status
    };
    assert_eq!((put("0"), put("soon"), a.get("k")), (400, 400, None));
    a.counts("swimring_http_refused_total", &[("reason", "ttl")], 2);
    assert_eq!((put("3600"), a.get("k")), (204, Some("v".into())));
    assert_eq!(put("1"), 204);
    eventually("the value to be gone", SOON, || a.get("k").is_none().then_some(()));
}

#[test]
fn a_body_that_ends_early_is_refused_and_stores_nothing() {
    let site = Site::new();
    let a = site.start("a", &[]);
    agree(&[&a], 1);
    let mut stream = a.http_stream();
    stream.write_all(b"PUT /kv/k HTTP/1.1\r\nhost: h\r\ncontent-length: 100\r\n\r\nonly this").expect("it can be sent");
    stream.shutdown(Shutdown::Write).expect("it can be ended");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("it can be read");
    assert!(answer.starts_with("HTTP/1.1 400") && answer.contains("the body ended early"), "{answer}");
    a.counts("swimring_http_refused_total", &[("reason", "body_cut_off")], 1);
    assert_eq!(a.get("k"), None);
}

#[test]
fn a_state_directory_that_is_torn_or_of_another_node_is_set_aside_and_said() {
    let site = Site::new();
    let a = site.start("a", &[]);
    agree(&[&a], 1);
    for (name, content) in
        [("b", b"{\"id\":\"00".to_vec()), ("c", std::fs::read(site.at("a/state/state.json")).expect("a has state"))]
    {
        site.issue("ca", name, name, "2");
        std::fs::create_dir(site.at(&format!("{name}/state"))).expect("a directory can be made");
        std::fs::write(site.at(&format!("{name}/state/state.json")), content).expect("it can be written");
        let node = site.start(name, &[&a]);
        node.says("the state could not be used and was set aside");
        node.counts("swimring_findings_total", &[("kind", "state_unusable")], 1);
        assert!(Path::new(&site.at(&format!("{name}/state/state.json.unusable"))).exists());
        agree(&[&a, &node], 2);
        node.signal("-TERM");
        a.waits_for(name, "left");
    }
}

#[test]
fn a_copy_of_a_state_directory_does_not_make_two_of_one_life() {
    let site = Site::new();
    let a = site.start("a", &[]);
    let mut b = site.start("b", &[&a]);
    agree(&[&a, &b], 2);
    let copied = std::fs::read(site.at("b/state/state.json")).expect("b has state");
    std::fs::create_dir(site.at("copy")).expect("a directory can be made");
    std::fs::write(site.at("copy/state.json"), &copied).expect("it can be written");
    // While the one lives, the other is refused.
    let seeds = std::slice::from_ref(&a.gossip);
    let mut twin = site.start_with("b", "twin", seeds, &["--state", &site.at("copy")]).expect("it listens at first");
    assert_eq!(twin.ended(), Some(3));
    eventually("it is counted", SOON, || {
        let count = |node: &Node| node.counted("swimring_membership_total", &[("kind", "name_refused")]);
        (count(&a) + count(&b) > 0).then_some(())
    });
    agree(&[&a, &b], 2);
    // Two lives later an old copy knows less than the cluster does.
    for _ in 0..2 {
        b.kill();
        b = site.start("b", &[&a]);
        agree(&[&a, &b], 2);
    }
    b.kill();
    std::fs::write(site.at("copy/state.json"), &copied).expect("it can be written");
    let old = site.start_with("b", "old", seeds, &["--state", &site.at("copy")]).expect("it listens");
    agree(&[&a, &old], 2);
    old.counts("swimring_findings_total", &[("kind", "boot_raised")], 1);
}

#[test]
fn whoever_answers_in_the_place_of_a_member_is_not_taken_for_it() {
    let site = Site::new();
    let a = site.start("a", &[]);
    let mut b = site.start("b", &[&a]);
    agree(&[&a, &b], 2);
    let listen = b.gossip.clone();
    b.kill();
    site.issue("ca", "c", "c", "2");
    // A cluster of one, at the address of another member.
    let c = site.start_with("c", "c", &[], &["--listen", &listen]).expect("it listens");
    a.waits_for("b", "down");
    a.counts_some("swimring_dials_failed_total", &[("class", "gossip"), ("reason", "certificate")]);
    assert!(c.log().is_empty() || !c.log().contains("panicked"));
}

#[test]
fn garbage_on_the_ports_is_passed_over_and_the_cluster_goes_on() {
    let site = Site::new();
    let a = site.start("a", &[]);
    let b = site.start("b", &[&a]);
    agree(&[&a, &b], 2);
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a port is free");
    let mut noise = 0x9e37_79b9_u32;
    for size in (1..1_400).cycle().take(20_000) {
        let bytes: Vec<u8> = (0..size)
            .map(|_| {
                noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (noise >> 24) as u8
            })
            .collect();
        let _ = socket.send_to(&bytes, &a.gossip);
    }
    for reason in ["not_quic", "version", "no_connection"] {
        a.counts_some("swimring_datagrams_refused_total", &[("class", "gossip"), ("reason", reason)]);
    }
    assert_eq!(a.log().matches("datagrams come in that no node sends").count(), 1);
    for number in 0..20 {
        assert_eq!(b.put(&format!("k{number}"), "v"), 204);
        assert_eq!(a.get(&format!("k{number}")).as_deref(), Some("v"));
    }
    agree(&[&a, &b], 2);
}
