//! The figures that README.md tells operators to watch, as its table names them, and whether a page of metrics has
//! them.

#![allow(dead_code, reason = "each test program uses its part")]

/// Counters of what goes wrong, each with what it counts. The exporter shows a counter from its first count on, and
/// these have none as long as all is well.
pub const FROM_THE_FIRST_ON: [(&str, &str); 4] = [
    (DRIVEN, "a task that a relay brought again, for it was lost or waited too long"),
    (REFUSALS, "a task that RabbitMQ has not taken"),
    (PARKED, "a chunk that has failed too often"),
    (UNSURVIVED, "a chunk that no worker has survived"),
];
/// By relays.
pub const DRIVEN: &str = "fanfold_relay_driven_total";
/// By relays.
pub const UNSURVIVED: &str = "fanfold_relay_parked_total";
/// By API nodes.
pub const REFUSALS: &str = "fanfold_queue_refusals_total";
/// By fan-out workers.
pub const PARKED: &str = "fanfold_fanout_parked_total";

/// Which processes have a figure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Of {
    Every,
    Api,
    Fanout,
    Relay,
}

/// A figure of the table.
#[derive(Clone, Debug)]
pub struct Figure {
    pub name: String,
    /// As it stands in brackets behind the name; without brackets it is every process.
    pub of: Of,
}

/// All of the table.
pub fn table() -> Vec<Figure> {
    let readme = document("README.md");
    let (_, after) = readme.split_once("**What to watch**").expect("the table's title");
    let rows = after.lines().skip_while(|line| !line.starts_with('|')).take_while(|line| line.starts_with('|'));
    // Below its head and the line under that.
    let figures: Vec<Figure> = rows.skip(2).flat_map(of_row).collect();
    // A table that is not read any more must not pass.
    assert!(figures.len() >= 10, "{figures:?}");
    for (name, _) in FROM_THE_FIRST_ON {
        assert!(figures.iter().any(|figure| figure.name == name), "{name} is not in the table");
    }
    figures
}

/// What is quoted stands in every second piece of a row, and what says whose it is begins the next.
fn of_row(row: &str) -> Vec<Figure> {
    let pieces: Vec<&str> = row.split('`').skip(1).collect();
    let quoted = pieces.chunks_exact(2).filter(|pair| is_metric(pair[0]));
    quoted.map(|pair| Figure { name: pair[0].to_owned(), of: of(pair[1]) }).collect()
}

fn is_metric(word: &str) -> bool {
    let known = ["fanfold_", "process_"].iter().any(|prefix| word.starts_with(prefix));
    known && word.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_')
}

fn of(text: &str) -> Of {
    let bracket = text.trim_start().strip_prefix('(').and_then(|rest| rest.split_once(')'));
    match bracket.map(|(who, _)| who) {
        None => Of::Every,
        Some("API nodes") => Of::Api,
        Some("fan-out workers") => Of::Fanout,
        Some("relays") => Of::Relay,
        Some(who) => panic!("the table of README.md has a figure of {who:?}: which processes are these?"),
    }
}

/// Whether a figure is one of [`FROM_THE_FIRST_ON`].
pub fn counts_what_goes_wrong(name: &str) -> bool {
    FROM_THE_FIRST_ON.iter().any(|(known, _)| *known == name)
}

/// Whether a page of metrics has a figure, whatever its labels.
pub fn has(page: &str, name: &str) -> bool {
    page.lines().any(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' '])))
}

/// A file of the project.
pub fn document(name: &str) -> String {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
