//! Says what a plain `cargo test` leaves out, for want of a feature. On standard error itself: what `eprintln!` says is kept
//! from the reader as long as a test passes.

#[cfg(not(all(feature = "faults", feature = "tls")))]
fn left_out(what: &str, feature: &str) {
    use std::io::Write as _;
    let how = "cargo test --features faults,tls, or dev/test";
    let _ = writeln!(std::io::stderr(), "left out: {what}: the feature `{feature}` is off ({how})");
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
