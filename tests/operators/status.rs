//! `fanfold fanout status`: what waits and since when, what each worker has in hand, and how fast it is; the same for
//! programs and for people. Workers have tasks in hand for as long as Redis stands still: the rows are there, the bumps
//! get no answer, and a task is finished with after those only.

use std::cell::Cell;
use std::collections::HashSet;
use std::time::Instant;

use serde_json::{Value, json};

use crate::cluster::{API, Cluster, FANOUT, Process, RELAY, fanout_workers, sum, waiting};
use crate::redis_server::RedisServer;
use crate::tuning::taken_up;
use crate::wait::eventually;

/// Tasks of each lane: so many posts of a chunk, and a post of so many chunks.
const TASKS: usize = 7;
/// Viewers of a chunk.
const CHUNK: usize = 2;
/// Tasks of a lane that each of two workers has at hand, and in hand as soon as it takes any.
const PREFETCH: usize = 2;
/// Tasks of a lane that are left to wait then.
const LEFT: usize = TASKS - 2 * PREFETCH;
const LANES: [&str; 2] = ["small", "bulk"];

/// What was published.
struct Posts {
    /// The posts of a chunk first.
    ids: Vec<String>,
    rows: usize,
    /// When the oldest was accepted.
    since: Instant,
}

/// What is shown of a worker.
#[derive(Debug, PartialEq)]
struct Shown {
    in_hand: u64,
    rows_per_s: u64,
    rows: u64,
    tasks: Vec<String>,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_status_shows_what_waits_what_is_in_hand_and_how_fast_it_goes() {
    let Some(mut cluster) = Cluster::new().await else { return };
    let redis = RedisServer::start().await;
    let url = redis.url();
    for (name, value) in [
        ("FANFOLD_REDIS__URLS", url.as_str()),
        // Nobody who waits for Redis gives up while the test looks.
        ("FANFOLD_REDIS__RESPONSE_TIMEOUT_MS", "600000"),
        // With one queue a lane, what a worker has at hand of the lane is what it is told to, and no more.
        ("FANFOLD_RABBITMQ__FAIR_QUEUES", "1"),
        ("FANFOLD_FANOUT__CHUNK_SIZE", &CHUNK.to_string()),
    ] {
        cluster.set(name, value);
    }
    let api = cluster.start(API).await;
    let _workers = [cluster.start(FANOUT).await, cluster.start(FANOUT).await];
    cluster.until_both_work().await;

    let mut posts = wait_in_line(&cluster, &api).await;
    redis.signal("STOP");
    be_in_hand(&cluster, &posts).await;
    redis.signal("CONT");
    go_on(&cluster, &api, &mut posts).await;
    come_to_an_end(&cluster, &api, &posts).await;
}

/// Nobody takes a task: all wait in their lanes, and grow older.
async fn wait_in_line(cluster: &Cluster, api: &Process) -> Posts {
    cluster.say("fanout pause").await;
    let change = cluster.json(&format!("fanout set prefetch={PREFETCH}")).await;
    taken_up(cluster, &change["version"]).await;
    let mut posts = Posts { ids: vec![api.publish(&["viewer-0"], None).await], rows: TASKS, since: Instant::now() };
    for number in 1..TASKS {
        posts.ids.push(api.publish(&[&format!("viewer-{number}")], None).await);
    }
    publish_large(api, &mut posts).await;
    let all = Some(TASKS as u64);
    eventually("every task has come to its lane", async || lanes(&cluster.status().await) == [all; 2]).await;

    let mut before = 0.0;
    for _ in 0..2 {
        let least = posts.since.elapsed().as_secs_f64();
        let status = cluster.status().await;
        let lag = lag(&status);
        // The oldest was noted as pending before it was accepted.
        assert!(lag >= least && lag > before, "{least} s since the first post, {before} s before: {status}");
        assert_eq!((lanes(&status), sum(&fanout_workers(&status), "in_hand")), ([all; 2], 0), "{status}");
        before = lag;
    }
    let table = cluster.say("fanout status").await;
    assert!(table.contains(&format!("fan-out   paused, prefetch={PREFETCH}\n")), "{table}");
    check_table(&table, TASKS, true);
    assert!(read(&table).iter().all(|worker| worker.in_hand == 0 && worker.tasks.is_empty()), "{table}");
    posts
}

/// Each worker takes as many as it may, and is kept from finishing them: the others wait.
async fn be_in_hand(cluster: &Cluster, posts: &Posts) {
    cluster.say("fanout resume").await;
    let (each, left) = (LANES.len() * PREFETCH, Some(LEFT as u64));
    let mut status = Value::Null;
    eventually("each worker has in hand what it may, and the others wait", async || {
        status = cluster.status().await;
        let workers = fanout_workers(&status);
        let full = workers.len() == 2 && workers.iter().all(|worker| worker["in_hand"] == json!(each));
        full && lanes(&status) == [left; 2]
    })
    .await;
    assert!(lag(&status) > 0.0, "{status}");

    let workers: Vec<Shown> = fanout_workers(&status).iter().map(told).collect();
    let named: Vec<&String> = workers.iter().flat_map(|worker| &worker.tasks).collect();
    let (different, known) = (HashSet::<&String>::from_iter(named.iter().copied()), tasks(posts));
    assert_eq!((named.len(), different.len()), (2 * each, 2 * each), "each is with one worker: {named:?}");
    assert!(different.iter().all(|task| known.contains(*task)), "{named:?} are not among {known:?}");
    assert!(workers.iter().all(|worker| (worker.rows_per_s, worker.rows) == (0, 0)), "none is finished: {status}");
    // All of it stands still.
    let table = cluster.say("fanout status").await;
    check_table(&table, LEFT, true);
    assert_eq!(read(&table), workers, "people and programs are shown the same: {table}");
}

/// They finish what they have, and what waits. Posts go on coming until a rate was seen: it is that of the last second
/// only, and to ask may take longer.
async fn go_on(cluster: &Cluster, api: &Process, posts: &mut Posts) {
    let (mut for_programs, mut for_people) = (false, false);
    let seen = Cell::new(false);
    let looking = async {
        eventually("the rows a second of a worker are shown", async || {
            for_programs |= fanout_workers(&cluster.status().await).iter().any(|worker| told(worker).rows_per_s > 0);
            for_people |= read(&cluster.say("fanout status").await).iter().any(|worker| worker.rows_per_s > 0);
            for_programs && for_people
        })
        .await;
        seen.set(true);
    };
    let publishing = async {
        while !seen.get() {
            publish_large(api, posts).await;
        }
    };
    tokio::join!(looking, publishing);
}

/// Everything is done, and all numbers say so. Only a relay takes a post off the lag. It comes last: it has nothing to
/// bring then, and what it brings again may count again.
async fn come_to_an_end(cluster: &Cluster, api: &Process, posts: &Posts) {
    for post in &posts.ids {
        eventually("a post is fanned out", async || api.fanout(post).await["status"] == "done").await;
    }
    eventually("the workers tell of every row", async || {
        sum(&fanout_workers(&cluster.status().await), "rows") == posts.rows as u64
    })
    .await;
    let _relay = cluster.start(RELAY).await;
    let nothing = |worker: &Shown| (worker.in_hand, worker.rows_per_s) == (0, 0) && worker.tasks.is_empty();
    eventually("nothing waits, and nothing is in hand", async || {
        let status = cluster.status().await;
        let idle = fanout_workers(&status).iter().map(told).all(|worker| nothing(&worker));
        idle && lanes(&status) == [Some(0); 2] && status["lag_seconds"] == json!(0.0)
    })
    .await;
    let table = cluster.say("fanout status").await;
    check_table(&table, 0, false);
    assert!(read(&table).iter().all(nothing), "{table}");
}

/// A post of as many chunks as [`TASKS`].
async fn publish_large(api: &Process, posts: &mut Posts) {
    let viewers: Vec<String> = (0..TASKS * CHUNK).map(|number| format!("viewer-{number}")).collect();
    let viewers: Vec<&str> = viewers.iter().map(String::as_str).collect();
    posts.ids.push(api.publish(&viewers, None).await);
    posts.rows += viewers.len();
}

/// The tasks of the first posts, as workers name them.
fn tasks(posts: &Posts) -> HashSet<String> {
    let of_large = (0..TASKS).map(|chunk| format!("{}/{chunk}", posts.ids[TASKS]));
    posts.ids[..TASKS].iter().map(|post| format!("{post}/0")).chain(of_large).collect()
}

fn lanes(status: &Value) -> [Option<u64>; 2] {
    LANES.map(|lane| waiting(status, lane))
}

fn lag(status: &Value) -> f64 {
    status["lag_seconds"].as_f64().expect("a number")
}

/// A worker, as programs are told.
fn told(worker: &Value) -> Shown {
    let number = |field: &str| worker[field].as_u64().expect("a number");
    let tasks = worker["tasks"].as_array().expect("a list").iter();
    let tasks = tasks.map(|task| task.as_str().expect("a name").to_owned()).collect();
    Shown { in_hand: number("in_hand"), rows_per_s: number("rows_per_s"), rows: number("rows"), tasks }
}

/// The fan-out workers, as people read them.
fn read(table: &str) -> Vec<Shown> {
    let shown: Vec<Shown> = table.lines().filter(|line| line.starts_with("fanout ")).map(read_row).collect();
    assert_eq!(shown.len(), 2, "{table}");
    shown
}

fn read_row(line: &str) -> Shown {
    let cells: Vec<&str> = line.split_whitespace().collect();
    let [_role, _name, in_hand, rows_per_s, rows, tasks @ ..] = cells.as_slice() else { panic!("{line:?}") };
    let number = |cell: &str| cell.parse::<u64>().unwrap_or_else(|error| panic!("{cell:?}: {error}: {line:?}"));
    let tasks = tasks.iter().map(|task| (*task).to_owned()).collect();
    Shown { in_hand: number(in_hand), rows_per_s: number(rows_per_s), rows: number(rows), tasks }
}

/// The lines above the workers: so many tasks wait in each lane, and there is a lag or there is none.
fn check_table(table: &str, tasks: usize, late: bool) {
    for lane in LANES {
        let line = format!("lane      {lane:<6}  {tasks} tasks waiting\n");
        assert!(table.contains(&line), "{line:?} is not in\n{table}");
    }
    let lag = table.lines().find_map(|line| line.strip_prefix("lag       ")).expect("a line");
    let number: f64 = lag.split(' ').next().and_then(|number| number.parse().ok()).expect("a number");
    assert_eq!(number > 0.0, late, "{table}");
}
