//! `cargo xtask crash`: the crash lab (`crates/fs/tests/it/crash.rs`) in its release build.

mod sum;

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};

use crate::proc::{self, Verdict};
use crate::shows::{self, Shown};
use sum::{Part, Sum, latest};

/// States that the whole of the long form must have judged.
const MOST_OF_IT: u64 = 50_000;

/// Where parts of the long form leave what they did, and what spares the next ones work.
const FOLDER: &str = "target/crash";

/// What is asked for.
#[derive(Debug, Default, PartialEq, Eq)]
struct Wanted {
    long: bool,
    /// All, if none is named.
    kinds: Vec<String>,
    /// One part of so many.
    part: Option<(u32, u32)>,
    /// All of so many parts.
    parts: Option<u32>,
    record: bool,
}

/// `cargo xtask crash [--long [I/N | --parts N]] [--kind NAME]… [--record]`: the short form; all scripts of one and two changes and a
/// sample of three; part I of N of them; or all N parts, those left out that have passed at this commit before. `SEED=` chooses the
/// samples. Ends with the counts and a verdict; `--record` adds them to docs/measured.md.
pub(crate) fn command(args: &[String]) -> Verdict {
    let wanted = parse(args)?;
    let all = kinds()?;
    if let Some(unknown) = wanted.kinds.iter().find(|kind| !all.contains(kind)) {
        return Err(format!("no kind {unknown}; there are {}", all.join(", ")));
    }
    let kinds = if wanted.kinds.is_empty() { all } else { wanted.kinds.clone() };
    let (sum, least) = match (wanted.part, wanted.parts) {
        (Some((i, n)), _) => (in_parts(&kinds, i..i + 1, n)?, 1),
        (None, Some(n)) => (in_parts(&kinds, 0..n, n)?, MOST_OF_IT),
        (None, None) => {
            let (sum, _) = lab(&filter(&wanted.kinds), wanted.long, None)?;
            (sum, if wanted.long { MOST_OF_IT } else { 1 })
        }
    };
    let held = sum.passed && sum.states >= least;
    println!("crash: {}: {sum}; at least {least} states asked for", if held { "pass" } else { "FAIL" });
    if wanted.record {
        let what =
            if wanted.kinds.is_empty() { "crash".into() } else { format!("crash {}", kinds.join(" ")) };
        let form = if wanted.long { "whole scripts of one and two changes" } else { "the short form" };
        let part = wanted.part.map_or(String::new(), |(i, n)| format!(", part {i}/{n} of"));
        let bound = format!("{form}: all consistent and all that was synced there, at least {least} states");
        shows::add_to_record(&what, &Shown::new(format!("{sum}{part}"), bound, held))?;
    }
    Ok(held)
}

fn parse(args: &[String]) -> Result<Wanted, String> {
    let mut wanted = Wanted::default();
    let mut args = args.iter();
    let number = |text: &str| text.parse::<u32>().map_err(|_| format!("{text} is not a number"));
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or_else(|| format!("{arg}: a value is missing"));
        match arg.as_str() {
            "--long" => wanted.long = true,
            "--record" => wanted.record = true,
            "--kind" => wanted.kinds.push(value()?.clone()),
            "--parts" => wanted.parts = Some(number(value()?)?),
            part => match part.split_once('/') {
                Some((i, n)) => wanted.part = Some((number(i)?, number(n)?)),
                None => {
                    return Err(format!(
                        "{part}: only --long, I/N, --parts N, --kind NAME and --record are known"
                    ));
                }
            },
        }
    }
    let parts = wanted.part.map(|(i, n)| i < n).or(wanted.parts.map(|n| n > 0));
    match (wanted.long, parts, wanted.part.is_some() && wanted.parts.is_some()) {
        (_, Some(false), _) => Err("parts are 0/N to N-1/N".into()),
        (_, _, true) => Err("I/N or --parts N".into()),
        (false, Some(_), _) => Err("only the long form has parts".into()),
        _ => Ok(wanted),
    }
}

/// The arguments that choose tests.
fn filter(kinds: &[String]) -> Vec<String> {
    match kinds {
        [] => vec!["crash::".into()],
        kinds => kinds.iter().map(|kind| format!("crash::{kind}")).chain(["--exact".into()]).collect(),
    }
}

fn tests(filter: &[String]) -> Command {
    let mut cargo = proc::cargo();
    cargo.args(["test", "--locked", "--release", "-p", "extant", "--test", "it", "--"]).args(filter);
    cargo.stdin(Stdio::null());
    cargo
}

/// The kinds of filesystem that the lab has.
fn kinds() -> Result<Vec<String>, String> {
    let list = proc::output(tests(&filter(&[])).arg("--list"))?;
    let name = |line: &str| Some(line.strip_prefix("crash::")?.strip_suffix(": test")?.to_owned());
    // What is in a module is no kind.
    Ok(list.lines().filter_map(name).filter(|name| !name.contains(":")).collect())
}

/// Runs the lab; what its lines add up to, and each of them.
fn lab(filter: &[String], long: bool, part: Option<(u32, u32)>) -> Result<(Sum, Vec<Part>), String> {
    let mut cargo = tests(filter);
    cargo.arg("--nocapture").stdout(Stdio::piped());
    if long {
        cargo.env("EXTANT_CRASH", "long");
    }
    if let Some((i, n)) = part {
        let folder = Path::new(FOLDER).canonicalize().map_err(|err| format!("{FOLDER}: {err}"))?;
        cargo.env("EXTANT_CRASH_PART", format!("{i}/{n}")).env("EXTANT_CRASH_DIR", folder);
    }
    let mut child = cargo.spawn().map_err(|err| format!("cargo: {err}"))?;
    let mut sum = Sum::none();
    let mut parts = Vec::new();
    for line in BufReader::new(child.stdout.take().ok_or("no output")?).lines() {
        let line = line.map_err(|err| format!("cargo: {err}"))?;
        println!("{line}");
        if let Some(part) = Part::of_line(&line) {
            sum.add(&part);
            parts.push(part);
        }
    }
    sum.passed = child.wait().map_err(|err| format!("cargo: {err}"))?.success();
    Ok((sum, parts))
}

/// Runs these parts of `n` of the long form, for each kind those that have not passed at this commit, and adds up all of them.
fn in_parts(kinds: &[String], parts: std::ops::Range<u32>, n: u32) -> Result<Sum, String> {
    std::fs::create_dir_all(FOLDER).map_err(|err| format!("{FOLDER}: {err}"))?;
    let record = Path::new(FOLDER).join("record");
    let mut sum = Sum::none();
    for kind in kinds {
        for i in parts.clone() {
            let run = format!("{} {kind} {i}/{n}", version()?);
            let text = std::fs::read_to_string(&record).unwrap_or_default();
            let before = latest(&text, &run).filter(|_| !run.starts_with("changed"));
            let part = match before {
                Some(part) => part,
                None => {
                    let (result, mut done) = lab(&filter(std::slice::from_ref(kind)), true, Some((i, n)))?;
                    let Some(part) = done.pop().filter(|_| result.passed) else {
                        println!("crash: {kind} {i}/{n} did not pass");
                        sum.passed = false;
                        continue;
                    };
                    let file = std::fs::OpenOptions::new().create(true).append(true).open(&record);
                    file.and_then(|mut file| writeln!(file, "{run} {part}"))
                        .map_err(|err| format!("{}: {err}", record.display()))?;
                    part
                }
            };
            sum.add(&part);
        }
    }
    Ok(sum)
}

/// What is run: the commit and the seed; `changed` where something is not committed, which is never taken for the same again.
fn version() -> Result<String, String> {
    let commit = proc::output(Command::new("git").args(["rev-parse", "--short", "HEAD"]))?;
    let changed = proc::output(Command::new("git").args(["status", "--porcelain", "--untracked-files=no"]))?;
    let commit = if changed.trim().is_empty() { commit.trim() } else { "changed" };
    Ok(format!("{commit} {}", std::env::var("SEED").unwrap_or_else(|_| "1".into())))
}

#[cfg(test)]
mod tests {
    use super::{Wanted, parse};

    fn wanted(args: &str) -> Result<Wanted, String> {
        parse(&args.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn what_is_asked_for() {
        assert_eq!(wanted("").unwrap(), Wanted::default());
        let long = Wanted { long: true, ..Wanted::default() };
        assert_eq!(wanted("--long").unwrap(), long);
        let part = wanted("--long 3/8 --kind ext2 --record").unwrap();
        assert_eq!((part.part, part.kinds, part.record), (Some((3, 8)), vec!["ext2".to_owned()], true));
        assert_eq!(wanted("--long --parts 8").unwrap().parts, Some(8));
        for wrong in
            ["--parts 3", "--long 8/8", "--long --parts 0", "--long 1/2 --parts 2", "--kind", "--lang"]
        {
            assert!(wanted(wrong).is_err(), "{wrong}");
        }
    }
}
