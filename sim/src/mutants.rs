//! Mutants: known bugs put back into a copy of the sources, one at a time. A sweep of each has to fail, and says
//! which oracle caught it, or a unit test; a mutant that survives is a rule that nothing holds.
//!
//! A mutant is a patch in `sim/mutants`: what it breaks in its first line, then a unified diff. Where the plans of a profile
//! have no chance to notice it, its second line names others: `sweep --profile forward`, or `sweep --plan sim/plans/FILE`.
//! Where no plan has one, for something else mends what it breaks before anybody is wronged, that line names the unit test
//! that holds the rule: `test PACKAGE NAME`.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Output, Stdio};
use std::time::Duration;

use diffy::patch_set::{ParseOptions, PatchSet};
use serde::Serialize;
use serde_json::Value;

/// What a copy of the sources consists of.
const SOURCES: [&str; 8] = ["Cargo.toml", "Cargo.lock", "membership", "ring", "forwarder", "node", "sim", "tests"];
/// How long a mutant's sweep may take before it counts as one that hangs.
const PATIENCE: Duration = Duration::from_secs(1_800);

/// Why no table came out.
#[derive(Debug, thiserror::Error)]
pub enum MutantsError {
    /// A file cannot be read or written.
    #[error("{}: {_1}", _0.display())]
    File(PathBuf, std::io::Error),
    /// The patch does not fit the sources.
    #[error("{0} does not apply: {1}")]
    Patch(String, String),
    /// The patched sources do not compile, so nothing was tried.
    #[error("{0} does not compile:\n{1}")]
    Build(String, String),
    /// The test that holds the rule neither passed nor failed.
    #[error("{0}: its test did not run:\n{1}")]
    Test(String, String),
    /// The sweep gave no answer.
    #[error("{0}: the sweep ended without an answer")]
    Sweep(String),
}

/// A bug to put back.
#[derive(Clone, Debug)]
pub struct Mutant {
    /// Its patch's name.
    pub name: String,
    /// What it breaks.
    pub about: String,
    witness: Option<Witness>,
    text: String,
}

/// What notices a mutant.
#[derive(Clone, Debug)]
enum Witness {
    /// A family of plans.
    Profile(String),
    /// A plan, in a file of the repository.
    Plan(PathBuf),
    /// A unit test of a package.
    Test { package: String, name: String },
}

impl Witness {
    fn read(line: &str) -> Option<Self> {
        let (kind, rest) = line.split_once(' ')?;
        let (first, second) = rest.split_once(' ')?;
        match (kind, first) {
            ("sweep", "--profile") => Some(Self::Profile(second.into())),
            ("sweep", "--plan") => Some(Self::Plan(second.into())),
            ("test", _) => Some(Self::Test { package: first.into(), name: second.into() }),
            _ => None,
        }
    }
}

/// What became of a mutant.
#[derive(Serialize)]
struct Row {
    mutant: String,
    oracle: String,
    /// How many seeds were tried, the fatal one included; 1 for a test.
    seeds: u64,
}

#[derive(Default, Serialize)]
struct Table {
    rows: Vec<Row>,
    survivors: Vec<String>,
}

/// What to try.
#[derive(Clone, Debug)]
pub struct Trial {
    /// The sources: the repository's root.
    pub sources: PathBuf,
    /// Which family of plans, for those that name neither plans nor a test.
    pub profile: String,
    /// How many seeds a mutant may survive.
    pub seeds: u64,
}

impl Mutant {
    /// Reads a patch.
    ///
    /// # Errors
    /// If the file cannot be read, or names plans or a test in another way.
    pub fn read(path: &Path) -> Result<Self, MutantsError> {
        let text = std::fs::read_to_string(path).map_err(failed(path))?;
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let mut lines = text.lines();
        let about = lines.next().unwrap_or_default().into();
        let second = lines.next().unwrap_or_default();
        let witness = Witness::read(second);
        if witness.is_none() && !second.is_empty() && !second.starts_with("---") {
            return Err(MutantsError::Patch(name, format!("neither plans nor a test are called {second:?}")));
        }
        Ok(Self { name, about, witness, text })
    }

    /// Every mutant of the repository, by name.
    ///
    /// # Errors
    /// If they cannot be read.
    pub fn all(sources: &Path) -> Result<Vec<Self>, MutantsError> {
        let directory = sources.join("sim/mutants");
        let entries = std::fs::read_dir(&directory).map_err(failed(&directory))?;
        let mut paths: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
        paths.retain(|path| path.extension().is_some_and(|extension| extension == "patch"));
        paths.sort();
        paths.iter().map(|path| Self::read(path)).collect()
    }

    /// The files that it changes, as they were and as they become.
    ///
    /// # Errors
    /// If the patch does not fit.
    pub fn changes(&self, sources: &Path) -> Result<Vec<Change>, MutantsError> {
        let misfit = |problem: String| MutantsError::Patch(self.name.clone(), problem);
        let mut changes = Vec::new();
        for file in PatchSet::parse(&self.text, ParseOptions::unidiff()) {
            let file = file.map_err(|problem| misfit(problem.to_string()))?;
            let patch = file.patch().as_text().ok_or_else(|| misfit("it is not text".into()))?;
            let path = patch.original().and_then(|name| name.strip_prefix("a/"));
            let path = PathBuf::from(path.ok_or_else(|| misfit("a file's name does not begin with a/".into()))?);
            let full = sources.join(&path);
            let before = std::fs::read_to_string(&full).map_err(failed(&full))?;
            let after =
                diffy::apply(&before, patch).map_err(|problem| misfit(format!("{}: {problem}", path.display())))?;
            changes.push(Change { path, before, after });
        }
        if changes.is_empty() { Err(misfit("it changes nothing".into())) } else { Ok(changes) }
    }
}

/// One file of a mutant.
#[derive(Clone, Debug)]
pub struct Change {
    path: PathBuf,
    before: String,
    after: String,
}

/// Tries every mutant and prints what caught it.
///
/// # Errors
/// If one cannot be tried.
pub fn run(trial: &Trial, mutants: &[Mutant], json: bool) -> Result<ExitCode, MutantsError> {
    let scratch = trial.sources.join("target/mutants");
    SOURCES.iter().try_for_each(|name| copy(&trial.sources.join(name), &scratch.join("sources").join(name)))?;
    let mut table = Table::default();
    for mutant in mutants {
        let row = attempt(trial, mutant, &scratch)?;
        let killed = row.is_some();
        let (oracle, seeds) = row.as_ref().map_or(("SURVIVES", trial.seeds), |row| (&*row.oracle, row.seeds));
        if !json {
            say!("{:<44} {oracle:<9} {seeds:>5} seeds   {}", mutant.name, mutant.about);
        }
        table.rows.extend(row);
        if !killed {
            table.survivors.push(mutant.name.clone());
        }
    }
    if json {
        say!("{}", serde_json::to_string(&table).expect("a table has only text keys"));
    } else {
        say!("{} killed, {} survive", table.rows.len(), table.survivors.len());
    }
    Ok(if table.survivors.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

/// Puts the bug into the copy, sweeps, and takes it out again.
fn attempt(trial: &Trial, mutant: &Mutant, scratch: &Path) -> Result<Option<Row>, MutantsError> {
    let copied = scratch.join("sources");
    let changes = mutant.changes(&trial.sources)?;
    changes.iter().try_for_each(|change| write(&copied.join(&change.path), &change.after))?;
    let result = match mutant.witness.clone().unwrap_or_else(|| Witness::Profile(trial.profile.clone())) {
        Witness::Profile(profile) => sweep(trial, mutant, scratch, ["--profile".into(), profile.into()]),
        Witness::Plan(plan) => sweep(trial, mutant, scratch, ["--plan".into(), trial.sources.join(plan).into()]),
        Witness::Test { package, name } => test(mutant, scratch, &package, &name),
    };
    changes.iter().try_for_each(|change| write(&copied.join(&change.path), &change.before))?;
    result
}

/// `cargo`, in the copy.
fn cargo(scratch: &Path, command: &str, arguments: &[&str]) -> Result<Output, MutantsError> {
    let manifest = scratch.join("sources/Cargo.toml");
    Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args([command, "--quiet", "--profile", "mutant", "--manifest-path"])
        .arg(&manifest)
        .arg("--target-dir")
        .arg(scratch.join("target"))
        .args(arguments)
        .env("RUSTFLAGS", "-Awarnings")
        .output()
        .map_err(failed(&manifest))
}

fn build(mutant: &Mutant, scratch: &Path, command: &str, arguments: &[&str]) -> Result<(), MutantsError> {
    let output = cargo(scratch, command, arguments)?;
    let said = || String::from_utf8_lossy(&output.stderr).into_owned();
    if output.status.success() { Ok(()) } else { Err(MutantsError::Build(mutant.name.clone(), said())) }
}

/// Runs the unit test that holds the rule. One that is not there, or cannot be run, is an error.
fn test(mutant: &Mutant, scratch: &Path, package: &str, name: &str) -> Result<Option<Row>, MutantsError> {
    build(mutant, scratch, "test", &["--package", package, "--lib", "--no-run"])?;
    let output = cargo(scratch, "test", &["--package", package, "--lib", name, "--", "--exact"])?;
    let said = String::from_utf8_lossy(&output.stdout);
    if said.contains("0 passed; 1 failed") {
        return Ok(Some(Row { mutant: mutant.name.clone(), oracle: "test".into(), seeds: 1 }));
    }
    if said.contains("1 passed; 0 failed") {
        Ok(None)
    } else {
        Err(MutantsError::Test(mutant.name.clone(), said.into()))
    }
}

#[expect(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "the sweep of a mutant is another process, which may hang; no world sees this clock"
)]
fn sweep(trial: &Trial, mutant: &Mutant, scratch: &Path, plans: [OsString; 2]) -> Result<Option<Row>, MutantsError> {
    build(mutant, scratch, "build", &["--package", "swimring-sim"])?;
    let program = scratch.join("target/mutant/swimring-sim");
    let answer = scratch.join("answer.json");
    let file = |path: &Path| std::fs::File::create(path).map_err(failed(path));
    let mut child = Command::new(&program)
        .args(["sweep", "--json", "--until-failure", "--seeds", &format!("0..{}", trial.seeds)])
        .args(plans)
        .stdin(Stdio::null())
        .stdout(file(&answer)?)
        .stderr(Stdio::null())
        .spawn()
        .map_err(failed(&program))?;
    let patience = std::time::Instant::now() + PATIENCE;
    while let Ok(None) = child.try_wait() {
        if std::time::Instant::now() > patience {
            let _ = child.kill();
            let _ = child.wait();
            return Ok(Some(Row { mutant: mutant.name.clone(), oracle: "hang".into(), seeds: trial.seeds }));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    let text = std::fs::read(&answer).map_err(failed(&answer))?;
    let answer: Value = serde_json::from_slice(&text).map_err(|_| MutantsError::Sweep(mutant.name.clone()))?;
    let first = answer["failures"].get(0);
    Ok(first.map(|failure| Row {
        mutant: mutant.name.clone(),
        oracle: failure["oracle"].as_str().unwrap_or_default().into(),
        seeds: failure["seed"].as_u64().unwrap_or_default() + 1,
    }))
}

/// Copies what differs, so that a build of the copy only does what is new.
fn copy(from: &Path, to: &Path) -> Result<(), MutantsError> {
    if from.is_dir() {
        for entry in std::fs::read_dir(from).map_err(failed(from))? {
            let name = entry.map_err(failed(from))?.file_name();
            if name != "target" {
                copy(&from.join(&name), &to.join(&name))?;
            }
        }
        return Ok(());
    }
    let text = std::fs::read(from).map_err(failed(from))?;
    if std::fs::read(to).is_ok_and(|held| held == text) { Ok(()) } else { write(to, text) }
}

fn write(path: &Path, text: impl AsRef<[u8]>) -> Result<(), MutantsError> {
    path.parent().map_or(Ok(()), std::fs::create_dir_all).map_err(failed(path))?;
    std::fs::write(path, text).map_err(failed(path))
}

fn failed(path: &Path) -> impl FnOnce(std::io::Error) -> MutantsError + use<> {
    let path = path.to_owned();
    |error| MutantsError::File(path, error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mutant_still_applies_and_says_what_it_breaks() {
        let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let mutants = Mutant::all(&sources).expect("the repository has mutants");
        assert!(!mutants.is_empty());
        for mutant in mutants {
            assert!(mutant.about.len() > 10 && !mutant.about.starts_with("---"), "{}", mutant.name);
            let changes = mutant.changes(&sources).expect("a patch fits the sources as they are");
            assert!(changes.iter().all(|change| change.before != change.after), "{}", mutant.name);
        }
    }
}
