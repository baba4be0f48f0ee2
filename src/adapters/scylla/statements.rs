//! Every statement of the store, prepared once.
//!
//! What each is allowed to do is said here: reads and writes with a timestamp of their own may be repeated by the driver,
//! conditional writes may not (whoever makes them settles their outcome).

use futures::future::try_join_all;
use scylla::client::execution_profile::ExecutionProfileHandle;
use scylla::client::session::Session;
use scylla::errors::PrepareError;
use scylla::statement::Consistency;
use scylla::statement::batch::{Batch, BatchType};
use scylla::statement::prepared::PreparedStatement;

use super::session::Profiles;
use crate::error::{Error, Result};

/// Rows in a page of an answer: more than any window that is served, so that a window is one answer.
const PAGE_ROWS: i32 = 10_001;

/// How a statement is made.
#[derive(Clone, Copy)]
enum Way {
    /// A quorum read for a client.
    Read,
    /// A read that sees every conditional write that was answered, and settles those that were not.
    SerialRead,
    /// A write with a timestamp of its own.
    Write,
    /// A conditional write.
    Lwt,
}

macro_rules! statements {
    ($($(#[$doc:meta])* $name:ident: $way:ident $text:literal,)*) => {
        /// The statements.
        pub struct Statements {
            $($(#[$doc])* pub $name: PreparedStatement,)*
            /// Unlogged batches of `write_row`, by their size less one.
            pub row_batches: Vec<Batch>,
            /// How batches are made.
            pub batch_profile: ExecutionProfileHandle,
        }

        impl Statements {
            /// Prepares them all. `batch_rows_max` is the size of the largest batch of rows.
            pub async fn prepare(
                session: &Session,
                profiles: &Profiles,
                keyspace: &str,
                batch_rows_max: usize,
            ) -> Result<Self> {
                let texts = [$((stringify!($name), $text, Way::$way),)*];
                let prepared = try_join_all(
                    texts.map(|(name, text, way)| prepare(session, profiles, keyspace, name, text, way)),
                );
                let mut prepared = prepared.await?.into_iter();
                let mut statements = Self {
                    $($name: prepared.next().expect("one statement a text"),)*
                    row_batches: Vec::new(),
                    batch_profile: profiles.writes.clone(),
                };
                statements.row_batches = row_batches(&statements.write_row, &profiles.writes, batch_rows_max);
                Ok(statements)
            }
        }
    };
}

statements! {
    /// A post's present state.
    post: Read "SELECT post_id, producer, kind, actor, data, thread_key, version, state, ts, expires_at, audience_size, \
        chunk_size FROM {keyspace}.posts WHERE post_id = ?",
    /// Its version alone.
    post_version: Read "SELECT version FROM {keyspace}.posts WHERE post_id = ?",
    /// Who wrote a post's last versions.
    post_settled: SerialRead "SELECT op_ids, version FROM {keyspace}.posts WHERE post_id = ?",
    /// The commit of a new post. The timestamp is below that of any conditional write, whatever the clocks do.
    insert_post: Write "INSERT INTO {keyspace}.posts (post_id, producer, kind, actor, data, thread_key, version, state, ts, \
        expires_at, audience_size, chunk_size) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) USING TIMESTAMP 1 AND TTL ?",
    /// The commit of a later version. All cells, so that all have the time to live that is left.
    change_post: Lwt "UPDATE {keyspace}.posts USING TTL ? SET producer = ?, kind = ?, actor = ?, data = ?, thread_key = ?, \
        version = ?, state = ?, ts = ?, expires_at = ?, audience_size = ?, chunk_size = ?, op_ids[?] = ? \
        WHERE post_id = ? IF version = ?",
    /// A chunk's viewers.
    chunk: Read "SELECT viewers FROM {keyspace}.chunks WHERE post_id = ? AND chunk_no = ?",
    /// How far chunks have come.
    chunk_states: Read "SELECT chunk_no, done, rows_done, parked FROM {keyspace}.chunks \
        WHERE post_id = ? AND chunk_no >= ? AND chunk_no < ?",
    /// The numbers of a post's chunks.
    chunk_numbers: Read "SELECT chunk_no FROM {keyspace}.chunks WHERE post_id = ?",
    /// The chunks of a post, and which are set aside.
    parked_chunks: Read "SELECT chunk_no, parked FROM {keyspace}.chunks WHERE post_id = ?",
    /// Why they are.
    parked_reasons: Read "SELECT chunk_no, reason FROM {keyspace}.parked_reasons WHERE post_id = ?",
    /// Why a chunk is set aside.
    write_reason: Write "INSERT INTO {keyspace}.parked_reasons (post_id, chunk_no, reason) VALUES (?, ?, ?) USING TTL ?",
    /// When a chunk was last parked or taken up.
    chunk_parked: Read "SELECT WRITETIME(parked) FROM {keyspace}.chunks WHERE post_id = ? AND chunk_no = ?",
    /// A chunk's viewers.
    write_chunk: Write "UPDATE {keyspace}.chunks USING TIMESTAMP ? AND TTL ? SET viewers = ? \
        WHERE post_id = ? AND chunk_no = ?",
    /// The viewers as a cell, and of this attempt or an earlier one only.
    sweep_chunks: Write "DELETE viewers FROM {keyspace}.chunks USING TIMESTAMP ? WHERE post_id = ? AND chunk_no IN ?",
    /// How far a chunk has come.
    write_done: Write "UPDATE {keyspace}.chunks USING TIMESTAMP ? AND TTL ? SET done = ?, rows_done = ? \
        WHERE post_id = ? AND chunk_no = ?",
    /// Whether a chunk is set aside.
    write_parked: Write "UPDATE {keyspace}.chunks USING TIMESTAMP ? AND TTL ? SET parked = ? \
        WHERE post_id = ? AND chunk_no = ?",
    /// The newest rows of an inbox.
    window: Read "SELECT post_id, version, deleted, expires_at, seen_at, read_at, archived_at FROM {keyspace}.inbox \
        WHERE viewer_id = ? LIMIT ?",
    /// Some rows of an inbox.
    rows: Read "SELECT post_id, version, deleted, expires_at, seen_at, read_at, archived_at FROM {keyspace}.inbox \
        WHERE viewer_id = ? AND post_id IN ?",
    /// Some rows, and when their marks were written.
    rows_to_mark: Read "SELECT post_id, version, deleted, expires_at, seen_at, read_at, archived_at, \
        WRITETIME(seen_at) AS seen_ts, WRITETIME(read_at) AS read_ts, WRITETIME(archived_at) AS archived_ts \
        FROM {keyspace}.inbox WHERE viewer_id = ? AND post_id IN ?",
    /// A row, without its marks.
    write_row: Write "INSERT INTO {keyspace}.inbox (viewer_id, post_id, version, deleted, expires_at) \
        VALUES (?, ?, ?, ?, ?) USING TIMESTAMP ? AND TTL ?",
    /// Marks; those that do not change are left unset.
    write_marks: Write "UPDATE {keyspace}.inbox USING TIMESTAMP ? AND TTL ? SET seen_at = ?, read_at = ?, archived_at = ? \
        WHERE viewer_id = ? AND post_id = ?",
    /// Marks that are to be written and bumped.
    write_intent: Write "INSERT INTO {keyspace}.mark_intents (shard, minute, viewer_id, mark_id, value, marks) \
        VALUES (?, ?, ?, ?, ?, ?) USING TIMESTAMP 1 AND TTL ?",
    /// The intents of a bucket.
    intents: Read "SELECT viewer_id, mark_id FROM {keyspace}.mark_intents WHERE shard = ? AND minute = ? LIMIT ?",
    /// The marks of one.
    intent: Read "SELECT value, marks FROM {keyspace}.mark_intents \
        WHERE shard = ? AND minute = ? AND viewer_id = ? AND mark_id = ?",
    /// Their bump has come.
    clear_intent: Write "DELETE FROM {keyspace}.mark_intents USING TIMESTAMP 2 \
        WHERE shard = ? AND minute = ? AND viewer_id = ? AND mark_id = ?",
    /// The intents of a bucket, as releases before the fourth schema wrote them: with marks, or after them.
    old_intents: Read "SELECT viewer_id, mark_id FROM {keyspace}.intents WHERE shard = ? AND minute = ? LIMIT ?",
    /// The posts of one.
    old_intent: Read "SELECT post_ids FROM {keyspace}.intents \
        WHERE shard = ? AND minute = ? AND viewer_id = ? AND mark_id = ?",
    /// Their bump has come.
    clear_old_intent: Write "DELETE FROM {keyspace}.intents USING TIMESTAMP 2 \
        WHERE shard = ? AND minute = ? AND viewer_id = ? AND mark_id = ?",
    /// The oldest entries of a bucket from a point on.
    pending: Read "SELECT since, post_id, version FROM {keyspace}.pending WHERE shard = ? AND minute = ? \
        AND (since, post_id, version) >= (?, ?, ?) LIMIT ?",
    /// What the relay must look at.
    write_pending: Write "INSERT INTO {keyspace}.pending (shard, minute, since, post_id, version) VALUES (?, ?, ?, ?, ?) \
        USING TIMESTAMP ? AND TTL ?",
    /// It has been looked at.
    delete_pending: Write "DELETE FROM {keyspace}.pending USING TIMESTAMP ? \
        WHERE shard = ? AND minute = ? AND since = ? AND post_id = ? AND version = ?",
    /// The withdrawals of a minute.
    retracts: Read "SELECT post_id, version, hidden_from FROM {keyspace}.retracts WHERE minute = ?",
    /// A version that hides its post.
    write_retract: Write "INSERT INTO {keyspace}.retracts (minute, post_id, version, hidden_from) VALUES (?, ?, ?, ?) \
        USING TIMESTAMP ? AND TTL ?",
    /// Its rows say so themselves.
    delete_retract: Write "DELETE FROM {keyspace}.retracts USING TIMESTAMP ? \
        WHERE minute = ? AND post_id = ? AND version = ?",
    /// Who holds a key.
    key: Read "SELECT post_id, fingerprint, chunk_size FROM {keyspace}.idempotency WHERE producer = ? AND key = ?",
    /// Who holds a key that is being fought for.
    key_settled: SerialRead "SELECT post_id, fingerprint, chunk_size FROM {keyspace}.idempotency \
        WHERE producer = ? AND key = ?",
    /// The first claim of a key.
    claim_key: Lwt "INSERT INTO {keyspace}.idempotency (producer, key, post_id, fingerprint, chunk_size) \
        VALUES (?, ?, ?, ?, ?) IF NOT EXISTS USING TTL ?",
    /// A claim over one that has outlived itself.
    take_key: Lwt "UPDATE {keyspace}.idempotency USING TTL ? SET post_id = ?, fingerprint = ?, chunk_size = ? \
        WHERE producer = ? AND key = ? IF post_id = ?",
    /// The newest fence.
    newest_fence: Read "SELECT seq, nonce, replid FROM {keyspace}.fences WHERE scope = ? LIMIT 1",
    /// The newest fence while others may be registering theirs.
    newest_fence_settled: SerialRead "SELECT seq, nonce, replid FROM {keyspace}.fences WHERE scope = ? LIMIT 1",
    /// The last fences.
    fences: Read "SELECT seq, nonce, replid, created_at FROM {keyspace}.fences WHERE scope = ? LIMIT ?",
    /// The next fence.
    register_fence: Lwt "INSERT INTO {keyspace}.fences (scope, seq, nonce, replid, created_at) VALUES (?, ?, ?, ?, ?) \
        IF NOT EXISTS",
    /// Takes a lease that nobody has.
    take_lease: Lwt "INSERT INTO {keyspace}.leases (name, owner) VALUES (?, ?) IF NOT EXISTS USING TTL ?",
    /// Keeps a lease.
    renew_lease: Lwt "UPDATE {keyspace}.leases USING TTL ? SET owner = ? WHERE name = ? IF owner = ?",
    /// Gives a lease back.
    drop_lease: Lwt "DELETE FROM {keyspace}.leases WHERE name = ? IF owner = ?",
    /// How the fan-out is tuned.
    tuning: Read "SELECT version, paused, knobs, changed_by, changed_at FROM {keyspace}.tuning WHERE scope = ?",
    /// The first change of it.
    begin_tuning: Lwt "INSERT INTO {keyspace}.tuning (scope, version, paused, knobs, changed_by, changed_at) \
        VALUES (?, ?, ?, ?, ?, ?) IF NOT EXISTS",
    /// Every later one.
    move_tuning: Lwt "UPDATE {keyspace}.tuning SET version = ?, paused = ?, knobs = ?, changed_by = ?, changed_at = ? \
        WHERE scope = ? IF version = ?",
    /// What a worker tells of itself.
    write_report: Write "INSERT INTO {keyspace}.workers (scope, id, role, name, started_at, at, tuning, in_hand, tasks, \
        rows_written, rows_per_s) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) USING TTL ?",
    /// What the workers told.
    reports: Read "SELECT id, role, name, started_at, at, tuning, in_hand, tasks, rows_written, rows_per_s \
        FROM {keyspace}.workers WHERE scope = ?",
    /// What time it is by the clock of the node that answers.
    store_now: Read "SELECT toUnixTimestamp(now()) FROM system.local WHERE key = 'local'",
    /// Where a scan begins.
    scan: Read "SELECT low_minute, full_at FROM {keyspace}.relay WHERE scan = ?",
    /// Where the first scan ever begins.
    begin_scan: Lwt "INSERT INTO {keyspace}.relay (scan, low_minute, full_at) VALUES (?, ?, ?) IF NOT EXISTS",
    /// Where the next one begins.
    move_scan: Lwt "UPDATE {keyspace}.relay SET low_minute = ?, full_at = ? WHERE scan = ? IF EXISTS",
    /// A producer's key.
    producer_key: Read "SELECT key_id, producer, name, scopes, secret_sha256, created_at, expires_at, revoked_at, \
        last_used FROM {keyspace}.producer_keys WHERE scope = ? AND key_id = ?",
    /// All of them.
    producer_keys: Read "SELECT key_id, producer, name, scopes, secret_sha256, created_at, expires_at, revoked_at, \
        last_used FROM {keyspace}.producer_keys WHERE scope = ?",
    /// A new key. The timestamp is below that of any end, whatever the clocks do.
    create_key: Write "INSERT INTO {keyspace}.producer_keys (scope, key_id, producer, name, scopes, secret_sha256, \
        created_at, expires_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?) USING TIMESTAMP 1",
    /// It is taken back.
    revoke_key: Write "UPDATE {keyspace}.producer_keys USING TIMESTAMP ? SET revoked_at = ? \
        WHERE scope = ? AND key_id = ?",
    /// It ends by itself.
    expire_key: Write "UPDATE {keyspace}.producer_keys USING TIMESTAMP ? SET expires_at = ? \
        WHERE scope = ? AND key_id = ?",
    /// Until when a key was made that ends earlier now.
    key_life: Read "SELECT made_until FROM {keyspace}.key_lives WHERE scope = ? AND key_id = ?",
    /// The same for all of them.
    key_lives: Read "SELECT key_id, made_until FROM {keyspace}.key_lives WHERE scope = ?",
    /// Its end is about to be brought forward.
    write_key_life: Write "INSERT INTO {keyspace}.key_lives (scope, key_id, made_until) VALUES (?, ?, ?) \
        USING TIMESTAMP ?",
    /// It was used.
    note_key_used: Write "UPDATE {keyspace}.producer_keys USING TIMESTAMP ? SET last_used = ? \
        WHERE scope = ? AND key_id = ?",
    /// It has long ended.
    forget_key: Write "DELETE FROM {keyspace}.producer_keys USING TIMESTAMP ? WHERE scope = ? AND key_id = ?",
    /// And until when it was made.
    forget_key_life: Write "DELETE FROM {keyspace}.key_lives USING TIMESTAMP ? WHERE scope = ? AND key_id = ?",
}

async fn prepare(
    session: &Session,
    profiles: &Profiles,
    keyspace: &str,
    name: &'static str,
    text: &'static str,
    way: Way,
) -> Result<PreparedStatement> {
    let text = text.replace("{keyspace}", keyspace);
    let mut statement = session.prepare(text).await.map_err(|error| prepare_error(name, keyspace, error))?;
    statement.set_is_idempotent(!matches!(way, Way::Lwt));
    statement.set_page_size(PAGE_ROWS);
    let profile = match way {
        Way::Read => &profiles.reads,
        Way::Write => &profiles.writes,
        Way::SerialRead | Way::Lwt => &profiles.lwt,
    };
    statement.set_execution_profile_handle(Some(profile.clone()));
    match way {
        // The columns are named one by one, so the metadata that came with the preparation stays right.
        Way::Read => statement.set_use_cached_result_metadata(true),
        Way::SerialRead => statement.set_consistency(Consistency::LocalSerial),
        Way::Write | Way::Lwt => {}
    }
    Ok(statement)
}

fn prepare_error(name: &'static str, keyspace: &str, error: PrepareError) -> Error {
    let refused = matches!(&error, PrepareError::AllAttemptsFailed { .. });
    let detail = format!("the statement {name:?} cannot be prepared in keyspace {keyspace}");
    let code = if refused { "schema_unusable" } else { "store_unavailable" };
    Error::unavailable(code, detail).with_source(error)
}

fn row_batches(write_row: &PreparedStatement, profile: &ExecutionProfileHandle, rows_max: usize) -> Vec<Batch> {
    let of_size = |rows| {
        let mut batch = Batch::new(BatchType::Unlogged);
        (0..rows).for_each(|_| batch.append_statement(write_row.clone()));
        batch.set_is_idempotent(true);
        batch.set_execution_profile_handle(Some(profile.clone()));
        batch
    };
    (1..=rows_max.max(1)).map(of_size).collect()
}
