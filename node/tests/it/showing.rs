//! What the command shows: for people and for machines.

use std::process::Stdio;

use serde_json::Value;

use crate::harness::{SOON, Site, agree, eventually, run, swimring, text};

#[test]
fn the_commands_answer_people_and_machines() {
    let site = Site::new();
    let a = site.start("a", &[]);
    let b = site.start("b", &[&a]);
    agree(&[&a, &b], 2);
    let admin = a.admin.to_string_lossy().into_owned();
    let ask = |arguments: &[&str]| {
        let output = run(&[arguments, &["--admin", &admin]].concat());
        (output.status.code(), text(&output.stdout))
    };
    let json = |arguments: &[&str]| {
        serde_json::from_str::<Value>(&ask(&[arguments, &["--json"]].concat()).1).expect("JSON alone")
    };
    let members = json(&["members"]);
    let names: Vec<_> =
        members["members"].as_array().expect("a list").iter().map(|member| member["name"].clone()).collect();
    assert_eq!(names, ["a", "b"]);
    let shares: f64 =
        members["members"].as_array().expect("a list").iter().filter_map(|member| member["share"].as_f64()).sum();
    assert!((shares - 1.0).abs() < 1e-9);
    assert!(ask(&["members"]).1.contains("alive"));
    assert_eq!(json(&["ring"])["arcs"], 1 << 20);
    assert_eq!(json(&["health"])["ready"], true);
    assert_eq!(ask(&["put", "k", "some value"]).0, Some(0));
    assert_eq!(ask(&["get", "k"]), (Some(0), "some value".into()));
    let owner = json(&["lookup", "k"])["owner"].clone();
    assert_eq!(json(&["get", "k"])["owner"], owner);
    assert_eq!(ask(&["del", "k"]).0, Some(0));
    assert_eq!(ask(&["get", "k"]).0, Some(1), "nothing is stored");
}

#[test]
fn a_short_demo_holds_and_leaves_nobody_behind() {
    let demo = run(&["demo", "--nodes", "4", "--seconds", "10", "--rate", "300", "--json"]);
    let report: Value = serde_json::from_slice(&demo.stdout).unwrap_or_else(|_| panic!("{}", text(&demo.stderr)));
    assert_eq!(demo.status.code(), Some(0), "{report}");
    let count = |name: &str| report[name].as_u64().unwrap_or_else(|| panic!("{name} in {report}"));
    assert_eq!(count("calls"), count("ok") + count("executed_error") + count("not_executed") + count("unknown"));
    assert_eq!((count("wrong_value"), count("wrong_owner")), (0, 0));
    assert!(count("hops_max") <= 2 && count("forwarded") > count("calls") / 2);
    assert_eq!(report["left"]["errors"], 0);
}

#[test]
fn a_rolling_restart_loses_and_fails_no_call() {
    let demo = run(&["demo", "--nodes", "4", "--rate", "400", "--rolling", "1", "--json"]);
    let report: Value = serde_json::from_slice(&demo.stdout).unwrap_or_else(|_| panic!("{}", text(&demo.stderr)));
    assert_eq!(demo.status.code(), Some(0), "{report}");
    let round = &report["rounds"][0];
    assert!(round["calls"].as_u64() > Some(500) && round["own_calls"].as_u64() > Some(100), "{report}");
    assert_eq!([&round["failed"], &round["own_failed"], &round["ran_twice"]], [0, 0, 0], "{report}");
}

#[test]
fn a_demo_that_is_killed_takes_its_children_with_it() {
    let mut demo = swimring()
        .args(["demo", "--nodes", "3", "--seconds", "60"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("it starts");
    let parent = demo.id();
    let children =
        eventually("three children", SOON, || Some(children_of(parent)).filter(|children| children.len() == 3));
    demo.kill().expect("it can be killed");
    let _ = demo.wait();
    eventually("the children end", SOON, || children.iter().all(|child| !is_running(*child)).then_some(()));
}

fn children_of(parent: u32) -> Vec<u32> {
    let path = format!("/proc/{parent}/task");
    let tasks = std::fs::read_dir(path).into_iter().flatten().flatten();
    let lists = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok());
    lists.flat_map(|list| list.split_whitespace().filter_map(|id| id.parse().ok()).collect::<Vec<u32>>()).collect()
}

fn is_running(process: u32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    !(status.is_empty() || status.contains(") Z "))
}
