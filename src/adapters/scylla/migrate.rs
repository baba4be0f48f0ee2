//! Brings the schema up to what this release needs: numbered files, each applied once, by one process at a time.

use std::time::{Duration, Instant};

use scylla::client::session::Session;
use scylla::serialize::row::SerializeRow;
use scylla::statement::unprepared::Statement;
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use super::options::ClusterOptions;
use super::session::{Conditional, connect, corrupt, judge, pause_before, store_error};
use crate::clock::Clock;
use crate::error::{Error, Kind, Result};

/// One numbered file.
struct File {
    number: i32,
    name: &'static str,
    text: &'static str,
}

const KEYSPACE: &str = include_str!("../../../cql/000_keyspace.cql");
const KEYSPACE_SCYLLA: &str = include_str!("../../../cql/scylla/000_keyspace.cql");
const MIGRATIONS: &str = include_str!("../../../cql/000_migrations.cql");

/// Applied everywhere, in this order. Add to the end; a file that was released is never changed.
const FILES: &[File] = &[
    File { number: 1, name: "001_schema.cql", text: include_str!("../../../cql/001_schema.cql") },
    File { number: 2, name: "002_control.cql", text: include_str!("../../../cql/002_control.cql") },
    File { number: 3, name: "003_access.cql", text: include_str!("../../../cql/003_access.cql") },
    File { number: 4, name: "004_mark_intents.cql", text: include_str!("../../../cql/004_mark_intents.cql") },
    File { number: 5, name: "005_key_lives.cql", text: include_str!("../../../cql/005_key_lives.cql") },
];

/// Applied where the configuration asks for it.
const FILES_SCYLLA: &[File] = &[File {
    number: 1,
    name: "scylla/001_incremental_compaction.cql",
    text: include_str!("../../../cql/scylla/001_incremental_compaction.cql"),
}];

/// How long a lease lasts without being renewed, which it is before each statement; more than any one of them takes.
const LEASE_S: i32 = 120;
/// Tries to renew a lease while rivals ask for it.
const RENEW_ATTEMPTS: u32 = 10;
/// Between looks at a lease that somebody else holds.
const LEASE_LOOK: Duration = Duration::from_millis(250);
/// One connection is enough, and a statement that changes the schema may take long.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(60);

/// What only ScyllaDB understands.
#[derive(Clone, Copy, Debug, Default)]
pub struct ScyllaOnly {
    /// Whether a new keyspace uses tablets; `None` leaves it to the cluster (and is what Cassandra needs).
    pub tablets: Option<bool>,
    /// Apply the files of `cql/scylla/`.
    pub incremental_compaction: bool,
}

/// How to migrate.
#[derive(Clone, Debug)]
pub struct MigrateOptions {
    /// Where the cluster is.
    pub cluster: ClusterOptions,
    /// What only ScyllaDB understands.
    pub scylla: ScyllaOnly,
    /// How long to wait for another process that is migrating.
    pub lease_wait: Duration,
    /// What time it is.
    pub clock: Clock,
}

/// What a migration did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MigrationReport {
    /// The files that were applied now, in order.
    pub applied: Vec<&'static str>,
    /// The number the schema has come to.
    pub version: u32,
}

/// Makes the keyspace where missing and applies the files that have not been applied. Safe to run again, and from
/// several nodes at once: whoever comes second waits and finds nothing left to do.
///
/// One caveat: the two tables that make it safe have to be made first. ScyllaDB puts schema changes in one order by
/// itself; on a Cassandra of several nodes let the very first migration be run by one node alone.
pub async fn migrate(options: &MigrateOptions) -> Result<MigrationReport> {
    let session = connect(&options.cluster, 1, STATEMENT_TIMEOUT).await?;
    let migration = Migration { session: &session, keyspace: &options.cluster.keyspace, options };
    migration.prepare().await?;
    let owner = migration.acquire().await?;
    let outcome = migration.run(owner).await;
    let released = migration.release(owner).await;
    let report = outcome?;
    if let Err(error) = released {
        tracing::warn!(%error, "the migration's lease could not be released; it ends by itself");
    }
    Ok(report)
}

/// The number the schema is at, which is at least the one this release needs: an error if it is lower or there is none.
/// A higher one is no error, since during a rolling upgrade the newer release migrates first.
pub(super) async fn check(session: &Session, keyspace: &str) -> Result<i32> {
    let known = known_version();
    check_exists(session, keyspace)?;
    let recorded = recorded(session, keyspace, "schema").await?;
    let version = recorded.last().map_or(0, |(number, _)| *number);
    if version < known {
        let detail =
            format!("the schema of {keyspace} is at {version}, this release needs {known}: run its `fanfold migrate`");
        return Err(Error::new(Kind::Conflict, "schema_older", detail));
    }
    if version > known {
        tracing::warn!(version, known, keyspace, "the schema is newer than this release, which goes on working");
    }
    Ok(version)
}

/// An error unless the keyspace is there, with the table that every migration is recorded in.
fn check_exists(session: &Session, keyspace: &str) -> Result<()> {
    let state = session.get_cluster_state();
    let detail = match state.get_keyspace(keyspace) {
        Some(found) if found.tables.contains_key("schema_migrations") => return Ok(()),
        Some(_) => format!("the keyspace {keyspace} (scylla.keyspace) has no schema: run `fanfold migrate`"),
        None => {
            format!("there is no keyspace {keyspace} (scylla.keyspace): run `fanfold migrate`, or correct the name")
        }
    };
    Err(Error::new(Kind::Conflict, "schema_missing", detail))
}

/// The number of the newest file.
pub(super) fn known_version() -> i32 {
    FILES.last().map_or(0, |file| file.number)
}

fn checksum(text: &str) -> String {
    Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The statements of a file, without its comments. No file has a `--` or a `;` inside a string.
fn statements(text: &str) -> Vec<String> {
    let code: Vec<&str> = text.lines().map(|line| line.split("--").next().unwrap_or_default().trim_end()).collect();
    let code = code.join("\n");
    code.split(';').map(str::trim).filter(|statement| !statement.is_empty()).map(str::to_owned).collect()
}

/// What was applied of `scope`: numbers and checksums, in order.
async fn recorded(session: &Session, keyspace: &str, scope: &str) -> Result<Vec<(i32, String)>> {
    let text = format!("SELECT number, checksum FROM {keyspace}.schema_migrations WHERE scope = ?");
    let mut statement = Statement::new(text);
    statement.set_is_idempotent(true);
    let result = session.query_unpaged(statement, (scope,)).await.map_err(store_error)?;
    let rows = result.into_rows_result().map_err(corrupt)?;
    rows.rows::<(i32, String)>().map_err(corrupt)?.map(|row| row.map_err(corrupt)).collect()
}

struct Migration<'a> {
    session: &'a Session,
    keyspace: &'a str,
    options: &'a MigrateOptions,
}

impl Migration<'_> {
    /// The keyspace, and the tables that migrating itself needs.
    async fn prepare(&self) -> Result<()> {
        let keyspace = if self.options.scylla.tablets.is_some() { KEYSPACE_SCYLLA } else { KEYSPACE };
        self.apply(keyspace, None).await?;
        self.apply(MIGRATIONS, None).await?;
        self.agree().await
    }

    async fn run(&self, owner: Uuid) -> Result<MigrationReport> {
        let mut applied = self.apply_files("schema", FILES, owner).await?;
        if self.options.scylla.incremental_compaction {
            applied.extend(self.apply_files("scylla", FILES_SCYLLA, owner).await?);
        }
        self.agree().await?;
        Ok(MigrationReport { applied, version: known_version().cast_unsigned() })
    }

    async fn apply_files(&self, scope: &str, files: &[File], owner: Uuid) -> Result<Vec<&'static str>> {
        let recorded = recorded(self.session, self.keyspace, scope).await?;
        check_recorded(scope, files, &recorded)?;
        let mut applied = Vec::new();
        for file in files.iter().filter(|file| recorded.iter().all(|(number, _)| *number != file.number)) {
            self.apply(file.text, Some(owner)).await?;
            // Recorded only when every node has it: one that lags would refuse what is prepared next.
            self.renew(owner).await?;
            self.agree().await?;
            self.renew(owner).await?;
            self.record(scope, file).await?;
            tracing::info!(file = file.name, keyspace = self.keyspace, "migrated");
            applied.push(file.name);
        }
        Ok(applied)
    }

    /// Every statement says IF NOT EXISTS or may be repeated: killed in the middle, the file is applied again. Each may
    /// take long, so each begins with the whole lease; who has lost it changes nothing more.
    async fn apply(&self, text: &str, owner: Option<Uuid>) -> Result<()> {
        let tablets = self.options.scylla.tablets.unwrap_or(false).to_string();
        for statement in statements(text) {
            let statement = statement
                .replace("{keyspace}", self.keyspace)
                .replace("{replication}", &self.options.cluster.replication())
                .replace("{tablets}", &tablets);
            if let Some(owner) = owner {
                self.renew(owner).await?;
            }
            self.session.query_unpaged(statement.as_str(), ()).await.map_err(|error| {
                let first = statement.lines().next().unwrap_or_default().to_owned();
                let detail = format!("the schema cannot be changed ({first})");
                Error::unavailable("schema_unusable", detail).with_source(error)
            })?;
        }
        Ok(())
    }

    async fn agree(&self) -> Result<()> {
        self.session.await_schema_agreement().await.map(|_| ()).map_err(|error| {
            Error::unavailable("schema_disagreement", "the nodes do not agree on the schema").with_source(error)
        })
    }

    async fn record(&self, scope: &str, file: &File) -> Result<()> {
        let text = format!(
            "INSERT INTO {}.schema_migrations (scope, number, name, checksum, applied_at) VALUES (?, ?, ?, ?, ?)",
            self.keyspace
        );
        let now = self.options.clock.now().micros();
        let values = (scope, file.number, file.name, checksum(file.text), now);
        self.session.query_unpaged(text, values).await.map(|_| ()).map_err(store_error)
    }

    /// Waits for the lease. Where an answer was lost it may be ours already: renewing it tells.
    async fn acquire(&self) -> Result<Uuid> {
        let (owner, begun) = (Uuid::from_bytes(rand::random()), Instant::now());
        let mut maybe_ours = false;
        loop {
            let text = format!(
                "INSERT INTO {}.leases (name, owner) VALUES ('migrate', ?) IF NOT EXISTS USING TTL ?",
                self.keyspace
            );
            match self.conditional(text, (owner, LEASE_S)).await? {
                Conditional::Applied => return Ok(owner),
                Conditional::Refused if maybe_ours && self.renew(owner).await.is_ok() => return Ok(owner),
                Conditional::Refused => {}
                Conditional::Unknown(_) => maybe_ours = true,
            }
            if begun.elapsed() >= self.options.lease_wait {
                let detail = format!("another process has been migrating {} for too long", self.keyspace);
                return Err(Error::new(Kind::Conflict, "schema_locked", detail).with_retry_after(LEASE_LOOK));
            }
            tokio::time::sleep(LEASE_LOOK).await;
            pause_before(0).await;
        }
    }

    async fn renew(&self, owner: Uuid) -> Result<()> {
        let text =
            format!("UPDATE {}.leases USING TTL ? SET owner = ? WHERE name = 'migrate' IF owner = ?", self.keyspace);
        for attempt in 0..RENEW_ATTEMPTS {
            match self.conditional(text.clone(), (LEASE_S, owner, owner)).await? {
                Conditional::Applied => return Ok(()),
                Conditional::Refused => break,
                Conditional::Unknown(_) => pause_before(attempt).await,
            }
        }
        Err(Error::new(Kind::Conflict, "schema_locked", "another process has taken over the migration"))
    }

    async fn release(&self, owner: Uuid) -> Result<()> {
        let text = format!("DELETE FROM {}.leases WHERE name = 'migrate' IF owner = ?", self.keyspace);
        self.conditional(text, (owner,)).await.map(|_| ())
    }

    async fn conditional(&self, text: String, values: impl SerializeRow) -> Result<Conditional> {
        judge(self.session.query_unpaged(text, values).await)
    }
}

/// An error if what was applied is not what this release brings.
fn check_recorded(scope: &str, files: &[File], recorded: &[(i32, String)]) -> Result<()> {
    let known = files.last().map_or(0, |file| file.number);
    for (number, recorded) in recorded {
        if *number > known {
            let detail = format!(
                "the {scope} is at {number}, this release knows up to {known}: a newer release has migrated it; nothing \
                 was changed"
            );
            return Err(Error::new(Kind::Conflict, "schema_newer", detail));
        }
        let file = files.iter().find(|file| file.number == *number);
        if let Some(file) = file.filter(|file| checksum(file.text) != *recorded) {
            let detail = format!("{} is not what was applied under its number", file.name);
            return Err(Error::new(Kind::Conflict, "schema_changed", detail));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_cut_into_statements_without_comments() {
        let text = "-- one; two\nCREATE a ( -- inside; too\n  b\n);\n\nALTER c;\n-- the end\n";
        assert_eq!(statements(text), ["CREATE a (\n  b\n)", "ALTER c"]);
        assert_eq!(statements(MIGRATIONS).len(), 2);
        assert_eq!(statements(FILES[0].text).len(), 9);
    }

    #[test]
    fn what_was_applied_has_to_be_known_and_unchanged() {
        let good = checksum(FILES[0].text);
        assert!(check_recorded("schema", FILES, &[]).is_ok());
        assert!(check_recorded("schema", FILES, &[(1, good.clone())]).is_ok());
        let error = check_recorded("schema", FILES, &[(1, good.clone()), (99, good)]).expect_err("newer");
        assert_eq!(error.code(), "schema_newer");
        let error = check_recorded("schema", FILES, &[(1, "other".into())]).expect_err("changed");
        assert_eq!(error.code(), "schema_changed");
    }

    #[test]
    fn portable_files_have_nothing_of_one_server_alone() {
        let portable = [KEYSPACE, MIGRATIONS].into_iter().chain(FILES.iter().map(|file| file.text));
        for text in portable {
            let code = statements(text).join(";").to_lowercase();
            for word in ["tablets", "incremental", "bypass", "using timeout", "unifiedcompaction", "cdc", "sai"] {
                assert!(!code.contains(word), "{word}");
            }
        }
    }
}
