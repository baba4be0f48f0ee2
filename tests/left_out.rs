//! Says what a plain `cargo test` leaves out, for want of a feature or of a mode. On standard error itself: what `eprintln!`
//! says is kept from the reader as long as a test passes.

use std::io::Write as _;

fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "left out: {text}");
}

#[cfg(not(all(feature = "faults", feature = "tls")))]
fn left_out(what: &str, feature: &str) {
    let how = "cargo test --features faults,tls, or dev/test";
    say(&format!("{what}: the feature `{feature}` is off ({how})"));
}

/// Programs that run in either mode, as dev/test names them where it runs them on a cluster.
#[test]
fn the_same_tests_on_a_cluster() {
    if std::env::var("FANFOLD_TEST_MODE").is_ok_and(|mode| mode == "cluster") {
        return;
    }
    let script = include_str!("../dev/test");
    let (_, rerun) = script.split_once("FANFOLD_TEST_MODE=cluster cargo test").expect("dev/test runs them");
    let (rerun, _) = rerun.split_once(" -- ").expect("its arguments end");
    let programs: Vec<&str> =
        rerun.split("--test ").skip(1).filter_map(|part| part.split_whitespace().next()).collect();
    assert!(!programs.is_empty(), "{rerun}");
    let how = "dev/stack up, FANFOLD_TEST_MODE=cluster and the variables of target/stack/env, or dev/test";
    say(&format!("{} on a cluster: this is the embedded mode ({how})", programs.join(", ")));
}

#[cfg(not(feature = "faults"))]
#[test]
fn the_faults_of_a_running_cluster() {
    left_out("tests/faults", "faults");
}

#[cfg(not(feature = "faults"))]
#[test]
fn defects_planted_in_processes() {
    left_out("tests/bad_days: poison, workers; tests/contract: a killed sweep", "faults");
}

#[cfg(not(feature = "tls"))]
#[test]
fn encrypted_connections_to_the_servers() {
    left_out("tests/bad_days: tls::built_in", "tls");
}
