//! The rules that ARCHITECTURE.md states, checked.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the package is in the workspace").into()
}

/// Every package that `package` is built with, itself included.
fn tree(package: &str, more: &[&str]) -> BTreeSet<String> {
    let output = Command::new(env!("CARGO"))
        .args(["tree", "-p", package, "-e", "normal", "--prefix", "none", "--locked", "--offline"])
        .args(more)
        .current_dir(root())
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.lines().filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect()
}

#[test]
fn the_cores_and_the_simulator_know_no_tokio_and_no_quinn() {
    for package in ["swimring-membership", "swimring-ring", "swimring-forwarder", "swimring-sim"] {
        let tree = tree(package, &[]);
        for banned in ["tokio", "quinn", "quinn-proto", "rustls", "getrandom"] {
            assert!(!tree.contains(banned), "{package} is built with {banned}");
        }
    }
    assert!(!tree("swimring", &["--no-default-features"]).contains("tokio"));
}

/// What a decision must not ask: time and randomness come in, and nothing waits.
const ASKS: [&str; 9] =
    ["Instant::now", "SystemTime", "thread::", "env::var", "getrandom", "HashMap", "HashSet", "tokio::", "quinn::"];

#[test]
fn what_a_node_decides_asks_no_clock_no_randomness_and_no_socket() {
    let core = sources().into_iter().filter(|path| path.to_string_lossy().contains("node/src/core/"));
    for path in core {
        let text = std::fs::read_to_string(&path).expect("sources can be read");
        let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
        let asks = code.flat_map(|line| ASKS.iter().filter(move |asked| line.contains(**asked))).next();
        assert_eq!(asks, None, "{}", path.display());
    }
}

#[test]
fn dependencies_between_our_crates_point_one_way() {
    let order =
        ["swimring-membership", "swimring-ring", "swimring-forwarder", "swimring", "swimring-sim", "swimring-tests"];
    for (index, package) in order.iter().enumerate() {
        let tree = tree(package, &[]);
        for later in &order[index + 1..] {
            assert!(!tree.contains(*later), "{package} depends on {later}");
        }
    }
}

fn sources() -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders: Vec<PathBuf> =
        ["membership", "ring", "forwarder", "node", "sim", "tests"].iter().map(|folder| root().join(folder)).collect();
    while let Some(folder) = folders.pop() {
        for path in std::fs::read_dir(&folder).expect("folders can be read").flatten().map(|file| file.path()) {
            if path.is_dir() && path.file_name().is_some_and(|name| name != "target") {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

#[test]
fn every_file_says_what_it_owns() {
    for path in sources() {
        let text = std::fs::read_to_string(&path).expect("sources can be read");
        let tests = path.ends_with("tests.rs");
        assert!(tests || text.starts_with("//!"), "{} begins without a header", path.display());
    }
}

#[test]
fn no_file_has_two_heads() {
    for path in sources() {
        let text = std::fs::read_to_string(&path).expect("sources can be read");
        let lines = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default().lines().count();
        assert!(lines <= LINES_MAX, "{} has {lines} lines without its tests", path.display());
    }
}

/// A file past this is two files.
const LINES_MAX: usize = 600;
