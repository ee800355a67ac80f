//! The command as people use it: what it prints, and what it exits with.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

fn sim(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_swimring-sim")).args(arguments).output().expect("the command runs")
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("no JSON: {output:?}"))
}

fn file(name: &str, text: &str) -> PathBuf {
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::write(&path, text).expect("the directory for tests is there");
    path
}

const SMALL: &str = "plan 1\nworld nodes=4 arcs=2^8\nload rate=5\nat 20s cut half for 20s\nquiet at 50s core=70%\n";

#[test]
fn a_plan_comes_from_a_file_or_from_standard_input() {
    let path = file("small.plan", SMALL);
    let from_file = sim(&["--json", "run", path.to_str().unwrap(), "--seed", "5"]);
    assert_eq!(from_file.status.code(), Some(0));
    let mut piped = Command::new(env!("CARGO_BIN_EXE_swimring-sim"))
        .args(["--json", "run", "-", "--seed", "5"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    piped.stdin.take().unwrap().write_all(SMALL.as_bytes()).unwrap();
    let piped = piped.wait_with_output().unwrap();
    assert_eq!(json(&from_file), json(&piped));
    let other = sim(&["--json", "run", path.to_str().unwrap(), "--seed", "6"]);
    assert_ne!(json(&from_file)["hash"], json(&other)["hash"]);
}

#[test]
fn the_same_seeds_are_the_same_in_another_process_and_a_change_shows() {
    let output = sim(&["--json", "determinism", "--seeds", "11..13"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let answer = json(&output);
    assert_eq!((&answer["seeds"], &answer["mismatches"]), (&2.into(), &0.into()));
    assert_eq!((&answer["flips"], &answer["unseen_flips"]), (&2.into(), &0.into()));
}

#[test]
fn another_hash_than_the_expected_one_is_a_mismatch() {
    let expect = file("hashes", "11 00000000000000000000000000000000\n");
    let output = sim(&["--json", "determinism", "--seeds", "11..12", "--expect", expect.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(json(&output)["mismatches"], 1);
    let torn = file("torn", "11\n");
    let output = sim(&["determinism", "--seeds", "11..12", "--expect", torn.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("line 1 is not a seed and a hash"), "{output:?}");
}

#[test]
fn a_sweep_goes_on_where_it_was() {
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("progress");
    _ = std::fs::remove_file(&path);
    let sweep = |seeds: &str, progress: bool| {
        let kept = ["--progress", path.to_str().unwrap()];
        let mut arguments = vec!["--json", "sweep", "--profile", "pr", "--seeds", seeds];
        arguments.extend(if progress { &kept[..] } else { &[] });
        json(&sim(&arguments))
    };
    sweep("1..2", true);
    let mut resumed = sweep("1..3", true);
    let mut whole = sweep("1..3", false);
    assert_eq!(resumed["plans"], 2);
    [&mut resumed, &mut whole].into_iter().for_each(|answer| answer["wall_s"] = 0.into());
    assert_eq!(resumed, whole);
    let output = sim(&["sweep", "--profile", "forward", "--seeds", "1..2", "--progress", path.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("is the progress of a sweep of pr"), "{output:?}");
}

#[test]
fn a_failing_plan_is_made_small_and_still_fails() {
    let text = "plan 1\nworld nodes=9 zones=2 seeds=2 arcs=2^8\nload rate=5\nat 10s cut half for 20s\n\
                at 20s pause n3 for 5s\nat 40s loss 20% for 5s\nquiet at 60s core=70%\nexpect converged<=0s\n";
    let path = file("failing.plan", text);
    let small = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("small-failing.plan");
    let (path, out) = (path.to_str().unwrap(), small.to_str().unwrap());
    let output = sim(&["--json", "shrink", path, "--seed", "1", "--out", out]);
    let answer = json(&output);
    assert_eq!((output.status.code(), &answer["oracle"]), (Some(0), &"L4".into()));
    assert_eq!((&answer["faults_before"], &answer["faults_after"]), (&3.into(), &0.into()));
    assert!(answer["nodes_after"].as_u64() < answer["nodes_before"].as_u64(), "{answer}");
    assert_eq!(sim(&["run", out, "--seed", "1"]).status.code(), Some(3), "not converged, as before");
}

#[test]
fn a_run_is_a_page_at_once_or_later() {
    let path = file("shown.plan", SMALL);
    let within = |name: &str| PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
    let (trace, now, later) = (within("trace"), within("now.html"), within("later.html"));
    let [path, trace, now, later] = [&path, &trace, &now, &later].map(|path| path.to_str().unwrap());
    let plain = sim(&["--json", "run", path, "--seed", "5"]);
    let output = sim(&["--json", "run", path, "--seed", "5", "--trace", trace, "--report", now]);
    assert_eq!((output.status.code(), json(&output)), (Some(0), json(&plain)), "looking changes nothing");
    assert_eq!(sim(&["report", trace, "--out", later]).status.code(), Some(0));
    let [now, later] = [now, later].map(|path| std::fs::read_to_string(path).expect("the page was written"));
    assert!(now == later && now.contains(json(&plain)["hash"].as_str().unwrap()));
    let output = sim(&["--json", "run", path, "--seed", "5", "--report", "no/such/directory"]);
    assert_eq!((output.status.code(), json(&output)), (Some(2), json(&plain)), "what was found is told all the same");
    let output = sim(&["report", path, "--out", "never.html"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("shown.plan: line 1"), "{output:?}");
}

#[test]
fn an_experiment_shows_what_was_published_beside_what_is_measured() {
    let answer = json(&sim(&["--json", "experiment", "swim"]));
    let rows = answer["rows"].as_array().expect("rows");
    let mean = |row: usize| rows[row]["measured"]["means"][0].as_f64().expect("a mean");
    // A ping and its answer a member and period, whatever the size; and nobody goes at 10 % loss.
    assert!((1.9..2.1).contains(&mean(1)), "{answer}");
    assert_eq!(mean(3), 17.0, "{answer}");
}

#[test]
fn wrong_usage_is_told_and_exits_with_two() {
    let good = file("good.plan", SMALL);
    let bad = file("bad.plan", "plan 1\nworld nodes=0\n");
    let good = good.to_str().unwrap();
    for (arguments, says) in [
        (vec!["shrink", good, "--seed", "5"], "there is nothing to shrink"),
        (vec!["run", bad.to_str().unwrap()], "line 2"),
        (vec!["run", "no-such-file"], "no-such-file"),
        (vec!["sweep", "--profile", "pr", "--seeds", "9..3"], "A below B"),
        (vec!["shrink", good, "--seed", "5", "--budget", "60"], "has no unit"),
        (vec!["run", good, "--report", "no/such/directory"], "no/such/directory"),
        (vec!["experiment", "lifeguard", "--only", "nobody"], "there is no row nobody; there are swim, "),
        (vec!["experiment", "swim", "--only", "swim"], "no rows to choose from"),
        (vec!["experiment", "swim", "--repetitions", "0"], "0 is not in 1.."),
    ] {
        let output = sim(&arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {output:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains(says), "{arguments:?}: {output:?}");
    }
}
