//! A store that asks for a user and a password: a door that does stands before that of dev/stack, which asks nobody.

use crate::cluster::{CLI, CONTACT_POINTS, Cluster, PROCESSES, SERVE, found};
use crate::command::Told;
use crate::cql_door::Door;
use crate::support::servers::server;

const USER: &str = "FANFOLD_SCYLLA__USER";
const PASSWORD: &str = "FANFOLD_SCYLLA__PASSWORD";
const MIGRATE: &[&str] = &["migrate"];

/// Whom the door lets in.
const NAME: &str = "feeder";
const RIGHT: &str = "the-one-it-was-given";
const WRONG: &str = "not-the-password-at-all";

/// A cluster whose store asks who comes, and does not know it of us.
async fn behind_a_door() -> Option<(Cluster, Door)> {
    let mut cluster = Cluster::on(&["FANFOLD_TEST_CQL"])?;
    let nodes = server("FANFOLD_TEST_CQL")?;
    let door = Door::before(nodes.split(',').next().expect("a node"), NAME, RIGHT).await;
    cluster.set(CONTACT_POINTS, &door.address);
    Some((cluster, door))
}

fn keeps_passwords(told: &Told) {
    let hidden = |password: &str| !told.out.contains(password) && !told.err.contains(password);
    assert!(hidden(RIGHT) && hidden(WRONG), "{told:?}");
}

/// Each process and `fanfold migrate` end with the words after they have shown `shown`; `fanfold doctor` finds them.
async fn is_told(cluster: &Cluster, door: &Door, shown: &[&str], words: &[&str]) {
    for (program, args) in PROCESSES.into_iter().chain([(CLI, MIGRATE)]) {
        let told = cluster.run(program, args).await;
        told.check(69, &[words, &["[store_unavailable]"]].concat());
        keeps_passwords(&told);
        // What the driver advises is for those who call it; it may log it, but the reason we give is for operators.
        let reason = told.err.lines().last().expect("a reason");
        assert!(!reason.contains("SessionBuilder"), "{reason}");
        // Once: a store may lock a user out who is refused again and again.
        assert_eq!(door.take_shown(), shown, "{told:?}");
    }
    let told = cluster.doctor().await;
    told.check(1, words);
    keeps_passwords(&told);
    let advice = "set scylla.user and scylla.password (FANFOLD_SCYLLA__PASSWORD)";
    found(&cluster.findings("store").await, &[&["WRONG"][..], words, &[advice]].concat());
    assert!(door.take_shown().iter().all(|one| shown.contains(&one.as_str())), "only what is configured");
}

#[tokio::test]
async fn the_right_password_opens_the_store() {
    let Some((mut cluster, door)) = behind_a_door().await else { return };
    cluster.set(USER, NAME);
    cluster.set(PASSWORD, RIGHT);
    let told = cluster.run(CLI, MIGRATE).await;
    told.check(0, &["applied 001_"]);
    keeps_passwords(&told);
    // The driver's first connection, and those of its pool.
    let (shown, right) = (door.take_shown(), format!("{NAME}:{RIGHT}"));
    assert!(shown.len() > 1 && shown.iter().all(|one| *one == right), "{shown:?}");

    let findings = cluster.findings("store").await;
    found(&findings, &["ok", "every statement can be prepared"]);
    assert!(findings.iter().all(|finding| !finding.starts_with("WRONG")), "{findings:#?}");
    assert!(!door.take_shown().is_empty(), "the door was passed by");
    keeps_passwords(&cluster.doctor().await);
}

#[tokio::test]
async fn a_wrong_password_is_told_by_its_settings_and_not_shown() {
    let Some((mut cluster, door)) = behind_a_door().await else { return };
    let at = format!("the store at {}", door.address);
    for (name, password) in [(NAME, WRONG), ("nobody", RIGHT)] {
        cluster.set(USER, name);
        cluster.set(PASSWORD, password);
        let refuses = format!("refuses the user {name:?} or its password");
        // The store's own words are kept: it may refuse for another reason than a mistake of ours.
        let own = format!("Provided username {name} and/or password are incorrect");
        let words = ["scylla.user", &at, &refuses, "scylla.password (FANFOLD_SCYLLA__PASSWORD)", &own];
        is_told(&cluster, &door, &[&format!("{name}:{password}")], &words).await;
    }
}

#[tokio::test]
async fn a_store_that_demands_a_password_says_so_to_who_has_none() {
    let Some((mut cluster, door)) = behind_a_door().await else { return };
    let demands = format!("the store at {} demands a user and a password", door.address);
    let words = ["scylla.user", &demands, "scylla.password (FANFOLD_SCYLLA__PASSWORD)"];
    is_told(&cluster, &door, &[], &words).await;
    // A password without its user is nobody's.
    cluster.set(PASSWORD, RIGHT);
    is_told(&cluster, &door, &[], &words).await;
    cluster.set(USER, NAME);
    cluster.set(PASSWORD, "");
    is_told(&cluster, &door, &[&format!("{NAME}:")], &words).await;
}

/// A new store makes its first user some seconds after it has begun to answer, so that a refusal may pass: who waits
/// for the store goes on waiting, and says at once why.
#[tokio::test]
async fn a_user_that_is_made_later_is_waited_for() {
    let Some((mut cluster, door)) = behind_a_door().await else { return };
    cluster.set(USER, NAME);
    cluster.set(PASSWORD, RIGHT);
    cluster.migrate().await;
    door.let_in("nobody", WRONG);
    let (program, args) = SERVE;
    let args = [args, &["--wait-for", "60s"]].concat();
    let mut node = cluster.start((program, &args));
    let refuses = format!("refuses the user {NAME:?} or its password");
    node.says(&["waiting for the store", &refuses, "FANFOLD_SCYLLA__PASSWORD", "wait_for_s=60"]).await;
    door.let_in(NAME, RIGHT);
    // It has its store: now it looks for the others, which are not there.
    node.says(&["revisions are not available"]).await;
    let said = node.stop().await;
    assert!(!said.contains(RIGHT), "{said}");
}
