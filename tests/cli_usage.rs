//! The binary as a script sees it, without a service: exit codes, and which stream gets what.

#[path = "support/command.rs"]
mod command;
#[path = "support/wait.rs"]
mod wait;

use std::ffi::OsString;
use std::net::TcpListener;
use std::os::unix::ffi::OsStringExt as _;
use std::process::{Command, Output, Stdio};

use command::{CLI, NO_SETTINGS, std_command};

fn fanfold(line: &str) -> Command {
    std_command(CLI, line.split_whitespace(), NO_SETTINGS)
}

fn run(line: &str) -> Output {
    fanfold(line).output().expect("the binary runs")
}

#[test]
fn mistakes_exit_with_64_and_say_so_on_standard_error() {
    let mistakes = [
        "nonsense",
        "post --to ben",
        "inbox ..",
        "status not-an-id",
        "inbox ben --url ftp://example.org",
        "inbox ben --url https://127.0.0.1:1 --ca-file /nonexistent.pem",
        "replay --graph /nonexistent --url nonsense",
        "config check --config /nonexistent.toml",
    ];
    for line in mistakes {
        let output = run(line);
        assert_eq!(output.status.code(), Some(64), "{line}: {output:?}");
        assert!(output.stdout.is_empty() && !output.stderr.is_empty(), "{line}: {output:?}");
    }
}

#[test]
fn help_is_data_and_begins_with_examples() {
    for line in ["--help", "post --help", "watch -h", "help replay", "config check --help"] {
        let output = run(line);
        assert_eq!(output.status.code(), Some(0), "{line}");
        assert!(output.stdout.starts_with(b"Examples:\n") && output.stderr.is_empty(), "{line}: {output:?}");
    }
    assert!(run("--version").stdout.starts_with(b"fanfold "));
}

#[test]
fn nobody_listening_is_unavailable() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("bound");
    drop(listener);
    for line in ["inbox ben", "watch ben", "replay --people 2", "post --to ben --type t"] {
        let output = run(&format!("{line} --url http://{address}"));
        assert_eq!(output.status.code(), Some(69), "{line}: {output:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("cannot connect"), "{output:?}");
    }
}

#[test]
fn a_token_may_be_published_and_a_key_may_not_whatever_bytes_are_beside_it() {
    let token = format!("eyJhbGciOiJIUzI1NiJ9.{}.{}", "x".repeat(20), "y".repeat(20));
    let (secret, id) = ("ab".repeat(32), "01".repeat(8));
    let post = |data: Vec<u8>| {
        let args = ["post", "--to", "ben", "--type", "t", "--url", "http://127.0.0.1:1", "--data"];
        std_command(CLI, args, NO_SETTINGS).arg(OsString::from_vec(data)).output().expect("the binary runs")
    };
    let output = post(format!("{{\"token\": \"{token}\"}}").into_bytes());
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(69) && told.contains("cannot connect"), "it would be sent: {output:?}");
    let with_key = format!("{{\"key\": \"ffk_{id}_{secret}\", \"token\": \"{token}\"}}").into_bytes();
    for data in [[with_key.as_slice(), b"\xff"].concat(), with_key, format!("@{token}").into_bytes()] {
        let output = post(data);
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(64) && told.contains("rotate"), "{output:?}");
        assert!(!told.contains(&secret) && !told.contains(&token), "{told}");
    }
}

#[test]
fn the_defaults_are_a_configuration() {
    let output = run("config default");
    assert_eq!(output.status.code(), Some(0));
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("fanfold.toml");
    std::fs::write(&file, output.stdout).expect("written");
    let output = run(&format!("config check --config {}", file.display()));
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(0), &b"ok\n"[..]), "{output:?}");
}

#[test]
fn a_reader_that_leaves_early_is_no_error() {
    let mut child =
        fanfold("completions bash").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the binary runs");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("it ends");
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
}
