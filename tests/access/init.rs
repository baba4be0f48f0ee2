//! `fanfold init` run again and again, and what of it goes to the audit log.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Output;

use fanfold::access::KeyText;
use fanfold::access::credential::KeySecret;
use fanfold::domain::KeyId;

use crate::command::{CLI, NO_SETTINGS, std_command};

fn fanfold(dir: &Path, line: &str) -> Output {
    let mut command = std_command(CLI, line.split_whitespace(), NO_SETTINGS);
    command.current_dir(dir).output().expect("the binary runs")
}

fn good(dir: &Path, line: &str) -> (String, String) {
    let output = fanfold(dir, line);
    assert!(output.status.success(), "{line}: {output:?}");
    (String::from_utf8_lossy(&output.stdout).into_owned(), String::from_utf8_lossy(&output.stderr).into_owned())
}

fn refused(dir: &Path, line: &str, words: &[&str]) {
    let output = fanfold(dir, line);
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(64), "{told}");
    for word in words {
        assert!(told.contains(word), "{word:?} is not in {told}");
    }
}

const AGAIN: &str = "init --if-missing";
const FILES: [&str; 2] = ["fanfold.toml", "fanfold-admin.key"];

fn texts(dir: &Path) -> [String; 2] {
    FILES.map(|name| {
        let path = dir.join(name);
        let mode = std::fs::metadata(&path).expect(name).permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{name}");
        std::fs::read_to_string(&path).expect(name)
    })
}

#[test]
fn init_can_be_run_at_every_start() {
    let folder = tempfile::tempdir().expect("a folder");
    let dir = folder.path();
    good(dir, AGAIN);
    let first = texts(dir);
    let (told, _) = good(dir, AGAIN);
    assert!(told.contains("nothing was changed"), "{told}");
    assert_eq!(texts(dir), first);
    refused(dir, "init", &["fanfold.toml", "is there already"]);

    // Cut short between the two, or in the middle of one: the other half follows, what is there stays.
    std::fs::remove_file(dir.join(FILES[1])).expect("removed");
    good(dir, AGAIN);
    let second = texts(dir);
    assert!(second[0] == first[0] && second[1] != first[1], "another key, the same configuration");
    std::fs::write(dir.join(FILES[0]), "").expect("emptied");
    good(dir, AGAIN);
    let third = texts(dir);
    assert!(third[0] != second[0] && third[1] == second[1], "another configuration, the same key");
}

#[test]
fn init_looks_at_what_is_there_and_takes_nothing_for_good_that_is_not() {
    let folder = tempfile::tempdir().expect("a folder");
    let dir = folder.path();
    good(dir, AGAIN);
    let [config, key] = texts(dir);
    // A store that does not know the key: it was wiped, or is another. The key is not made valid again.
    std::fs::rename(dir.join("fanfold-data"), dir.join("elsewhere")).expect("moved");
    refused(dir, AGAIN, &["fanfold-admin.key", "there is no such key", "move the file away"]);
    assert_eq!(texts(dir), [config.clone(), key.clone()]);
    good(dir, "keys create --name ops --scope admin --local --config fanfold.toml --save ops.key");
    let (_, note) = good(dir, AGAIN);
    assert!(note.contains("another key with the scope admin works"), "{note}");

    std::fs::write(dir.join(FILES[1]), "nonsense\n").expect("written");
    refused(dir, AGAIN, &["fanfold-admin.key", "is no key"]);
    std::fs::write(dir.join(FILES[1]), key).expect("written");
    std::fs::write(dir.join(FILES[0]), config.replace("mode = \"on\"", "mode = \"off\"")).expect("written");
    refused(dir, AGAIN, &["fanfold.toml", "access.mode is off"]);
}

#[test]
fn a_first_key_that_cannot_be_written_down_is_taken_back() {
    let folder = tempfile::tempdir().expect("a folder");
    let dir = folder.path();
    let output = fanfold(dir, "init --key-file nowhere/admin.key");
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(69), "{told}");
    assert!(told.contains("cannot write nowhere/admin.key") && told.contains("is revoked again"), "{told}");
    let key = |event: &str| {
        let line = told.lines().find(|line| line.contains(&format!("audit: event=\"{event}\""))).expect(event);
        line.split_whitespace().find(|word| word.starts_with("key=")).expect("a key")
    };
    assert_eq!(key("key_created"), key("key_revoked"));
    assert!(!dir.join(FILES[0]).exists(), "the same command can be given again");

    // By the store, too: whoever shows a key that it does not know is told that no other lets them in.
    let unknown = KeyText { id: KeyId::from_bytes([7; 8]), secret: KeySecret::random() };
    fanfold::files::write_private(&dir.join(FILES[1]), &unknown.reveal()).expect("written");
    refused(dir, AGAIN, &["there is no such key", "no other has the scope admin"]);
    std::fs::remove_file(dir.join(FILES[1])).expect("removed");
    good(dir, "init");
}

#[test]
fn quotas_are_proposed_and_the_proposal_can_be_taken() {
    let folder = tempfile::tempdir().expect("a folder");
    let dir = folder.path();
    good(dir, "init");
    let [text, _] = texts(dir);
    let (before, proposal) = text.split_once("# [quota]").expect("a proposal");
    assert!(!before.contains("[quota]"), "nothing is limited until somebody says so");
    let taken = format!("{before}[quota]{}", proposal.replace("\n# ", "\n"));
    std::fs::write(dir.join(FILES[0]), taken).expect("written");
    good(dir, "config check --config fanfold.toml");
}

#[test]
fn keys_that_are_made_without_a_service_live_no_longer_than_others() {
    let folder = tempfile::tempdir().expect("a folder");
    let local = "keys create --name ops --scope read --local --data d";
    let max = crate::defaults().access.key_ttl_s_max;
    refused(folder.path(), &format!("{local} --expires {}s", max + 1), &["ttl_seconds", &max.to_string()]);
    good(folder.path(), &format!("{local} --expires {max}s"));
}

#[test]
fn keys_that_are_made_without_a_service_are_in_the_audit_log_too() {
    let folder = tempfile::tempdir().expect("a folder");
    let dir = folder.path();
    let (_, init) = good(dir, "init");
    let (secret, local) = good(dir, "keys create --name ops --scope read --local --config fanfold.toml");
    let admin = std::fs::read_to_string(dir.join(FILES[1])).expect("readable");
    for (log, text, scope) in [(init, admin, "admin"), (local, secret, "read")] {
        let key = KeyText::parse(text.trim()).expect("a key");
        let line = log.lines().find(|line| line.contains("audit: event=\"key_created\"")).expect("a line");
        for part in [key.id.to_string(), format!("scopes=\"{scope}\""), "by=\"command line\"".to_owned()] {
            assert!(line.contains(&part), "{part} is not in {line}");
        }
        assert!(!log.contains(&key.reveal_secret()), "{log}");
    }
}
