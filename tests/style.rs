//! Style that can be checked is a test: dependencies point down, files stay readable, nothing is left half done.

use std::fs;
use std::path::{Path, PathBuf};

const LINES_MAX: usize = 500;

/// What the files below a folder (or one file) may name of the crate. Longest match wins.
const LAYERS: &[(&str, &[&str])] = &[
    ("src/error.rs", &[]),
    ("src/clock.rs", &["domain"]),
    ("src/domain/", &["domain", "error"]),
    ("src/ports/", &["domain", "error"]),
    ("src/adapters/", &["adapters", "clock", "domain", "error", "faults", "ports"]),
    ("src/faults.rs", &[]),
    ("src/flights.rs", &["error"]),
    ("src/turns.rs", &["error"]),
    ("src/trace.rs", &["domain"]),
    ("src/tuning.rs", &["adapters", "clock", "domain", "error", "ports"]),
    ("src/withdrawals.rs", &["adapters", "domain", "error", "ports", "turns"]),
    ("src/intents.rs", &["adapters", "domain", "error", "faults", "ports"]),
    ("src/parked.rs", &["adapters", "domain", "error", "ports"]),
    ("src/leases.rs", &["adapters", "domain", "error", "ports", "relay", "tuning"]),
    ("src/handover.rs", &["adapters", "domain", "ports", "trace"]),
    (
        "src/publish.rs",
        &["adapters", "clock", "domain", "error", "faults", "handover", "ports", "trace", "withdrawals"],
    ),
    ("src/fanout.rs", &["adapters", "clock", "domain", "error", "faults", "ports", "tuning"]),
    ("src/relay.rs", &["adapters", "clock", "domain", "error", "faults", "intents", "ports", "withdrawals"]),
    ("src/reader.rs", &["adapters", "clock", "domain", "error", "faults", "flights", "ports", "withdrawals"]),
    ("src/marks.rs", &["adapters", "clock", "domain", "error", "faults", "intents", "ports", "publish", "reader"]),
    ("src/files.rs", &["error"]),
    ("src/access/", &["access", "adapters", "clock", "config", "domain", "error", "files", "ports", "tuning", "turns"]),
    ("src/config/", &["config", "error", "files"]),
    ("src/telemetry.rs", &["config", "error"]),
    (
        "src/http/",
        &[
            "access",
            "clock",
            "config",
            "domain",
            "error",
            "files",
            "http",
            "marks",
            "ports",
            "publish",
            "reader",
            "service",
            "telemetry",
            "trace",
        ],
    ),
    ("src/cli/", &["access", "cli", "config", "domain", "error", "files", "service", "telemetry"]),
    ("src/cli/ops/", &["adapters", "cli", "clock", "config", "domain", "error", "service", "telemetry"]),
];

fn sources(folder: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("readable").map(|entry| entry.expect("readable").path()) {
            if entry.is_dir() {
                folders.push(entry);
            } else if entry.extension().is_some_and(|extension| extension == "rs") {
                found.push(entry);
            }
        }
    }
    found.sort();
    found
}

fn shown(path: &Path) -> String {
    path.strip_prefix(env!("CARGO_MANIFEST_DIR")).unwrap_or(path).display().to_string()
}

/// The text without its unit tests and comments.
fn code(text: &str) -> String {
    let text = text.split("\n#[cfg(test)]\nmod tests {").next().unwrap_or(text);
    text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

/// The modules of this crate that a text names: `crate::x` alone or the first names in `crate::{…}`.
fn named_modules(code: &str) -> Vec<String> {
    let mut names = Vec::new();
    for rest in code.split("crate::").skip(1) {
        let word = |text: &str| text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
        if let Some(group) = rest.strip_prefix('{') {
            names.extend(group.split('}').next().unwrap_or("").split(',').map(|part| word(part.trim())));
        } else {
            names.push(word(rest));
        }
    }
    names.retain(|name| name.chars().next().is_some_and(char::is_lowercase));
    names
}

#[test]
fn dependencies_point_down() {
    let mut wrong = Vec::new();
    for path in sources("src") {
        let name = shown(&path);
        let layer = LAYERS.iter().filter(|(prefix, _)| name.starts_with(prefix)).max_by_key(|(prefix, _)| prefix.len());
        let Some((_, allowed)) = layer else { continue };
        let text = fs::read_to_string(&path).expect("readable");
        for module in named_modules(&code(&text)) {
            if !allowed.contains(&module.as_str()) {
                wrong.push(format!("{name} names crate::{module}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_module_has_a_layer() {
    let free = ["src/lib.rs", "src/main.rs", "src/service/"];
    let known = |name: &str| {
        free.iter().any(|free| name.starts_with(free)) || LAYERS.iter().any(|(prefix, _)| name.starts_with(prefix))
    };
    let stray: Vec<_> = sources("src").iter().map(|path| shown(path)).filter(|name| !known(name)).collect();
    assert!(stray.is_empty(), "no layer for {stray:?}");
}

#[test]
fn files_stay_readable() {
    let mut wrong = Vec::new();
    for path in ["src", "tests", "benches"].iter().filter(|f| Path::new(f).exists()).flat_map(|f| sources(f)) {
        let text = fs::read_to_string(&path).expect("readable");
        let (name, lines) = (shown(&path), text.lines().count());
        if lines > LINES_MAX {
            wrong.push(format!("{name} has {lines} lines, the bound is {LINES_MAX}"));
        }
        if !text.starts_with("//!") {
            wrong.push(format!("{name} does not begin by saying what it is"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn nothing_is_left_half_done() {
    // Those that print, to standard error too, panic where nobody reads it any more.
    let unwanted = ["todo!(", "unimplemented!(", "dbg!(", ".unwrap()", "unsafe {", "panic!(", "print!(", "println!("];
    let mut wrong = Vec::new();
    for path in sources("src").into_iter().filter(|path| !path.ends_with("tests.rs")) {
        let text = fs::read_to_string(&path).expect("readable");
        for (number, line) in code(&text).lines().enumerate() {
            for word in unwanted.iter().filter(|word| line.contains(**word)) {
                wrong.push(format!("{}: about line {}: {word}", shown(&path), number + 1));
            }
        }
        for word in ["TO".to_owned() + "DO", "FIX".to_owned() + "ME"] {
            if text.contains(&word) {
                wrong.push(format!("{}: {word}", shown(&path)));
            }
        }
    }
    for path in sources("tests") {
        let text = fs::read_to_string(&path).expect("readable");
        if text.contains(&("#[ig".to_owned() + "nore")) {
            wrong.push(format!("{} leaves a test out", shown(&path)));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The tests that SECURITY.md names are there, under those names.
#[test]
fn what_is_said_to_be_shown_is_shown() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = fs::read_to_string(root.join("SECURITY.md")).expect("readable");
    let quoted = text.split('`').skip(1).step_by(2);
    let named: Vec<&str> = quoted.filter(|name| name.contains("::") && *name != "program::module::test").collect();
    let has = |file: String, test: &str| {
        fs::read_to_string(root.join(file)).is_ok_and(|text| test == "*" || text.contains(&format!("fn {test}(")))
    };
    let is_there = |name: &&str| match name.split("::").collect::<Vec<_>>()[..] {
        [program, module, test] => has(format!("tests/{program}/{module}.rs"), test),
        // A program of one file, or the unit tests of a module.
        [program, test] => has(format!("tests/{program}.rs"), test) || has(format!("src/{program}/{test}.rs"), "*"),
        _ => false,
    };
    let missing: Vec<_> = named.iter().filter(|name| !is_there(name)).collect();
    assert!(missing.is_empty() && named.len() > 20, "{missing:?} of {}", named.len());
}
