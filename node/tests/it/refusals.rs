//! Bad input: a clear error, and the cluster goes on.

use std::net::UdpSocket;
use std::os::unix::fs::PermissionsExt;

use crate::harness::{Site, agree, run, text};

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
fn whoever_has_a_wrong_certificate_or_secret_does_not_get_in_and_hears_why() {
    let site = Site::new();
    let a = site.start("a", &[]);
    site.authority("other-ca", "test");
    site.issue("other-ca", "stranger", "stranger", "2");
    site.issue("ca", "late", "late", "-1");
    site.authority("elsewhere-ca", "elsewhere");
    site.issue("elsewhere-ca", "foreign", "foreign", "2");
    site.issue("ca", "keyless", "keyless", "2");
    std::fs::copy(site.path.join("other-ca/cluster.key"), site.path.join("keyless/cluster.key"))
        .expect("it can be copied");
    for (identity, reason) in [
        ("stranger", "UnknownIssuer"),
        ("late", "certificate"),
        ("foreign", "UnknownIssuer"),
        ("keyless", "cluster.key"),
    ] {
        let node =
            site.start_with(identity, identity, std::slice::from_ref(&a.gossip), &[]).expect("it listens, and tries");
        node.says("cannot connect");
        assert!(node.log().contains(reason), "{identity}: {}", node.log());
        // It goes on trying; it is not in, and nobody lists it.
        let own = node.ask("/health").expect("it answers");
        assert_eq!(own["ready"], false, "{identity}");
        assert!(a.believes(identity).is_none(), "{identity}");
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
        vec!["members", "--admin", "10.0.0.1:80"],
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
    let answer = a.http("GET", "/kv/ttl", b"");
    for header in ["x-swimring-owner: a", "x-swimring-hops: 0", "x-swimring-fence: "] {
        assert!(answer.head.contains(header), "{}", answer.head);
    }
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
    for number in 0..20 {
        assert_eq!(b.put(&format!("k{number}"), "v"), 204);
        assert_eq!(a.get(&format!("k{number}")).as_deref(), Some("v"));
    }
    agree(&[&a, &b], 2);
}
