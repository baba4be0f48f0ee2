//! Frees what tables held in memory, once it was written out, where no commit waits for it.
//!
//! The storage engine lets go of a memtable under the lock that every write to the table needs, and its entries are freed
//! one by one: some 80 ms for 32 MiB of inbox rows, in which nothing at all is committed (measured). What is held here as
//! well is not freed there but by this thread, when nobody else has it any more.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use fjall::{AbstractTree as _, Keyspace};

use super::tables::Tables;
use crate::error::{Error, Result};

/// Between two looks. A table that takes all that a disk can fills its memtable in a second or two; one that was never
/// seen here is freed as the engine does it.
const EVERY: Duration = Duration::from_millis(200);

/// The thread; it ends, and has let go of the tables, when this is dropped.
#[derive(Debug)]
pub struct Memtables {
    /// Nothing is ever sent.
    stop: Option<Sender<Infallible>>,
    thread: Option<JoinHandle<()>>,
}

impl Memtables {
    /// Starts to look after those of `tables`.
    pub fn look_after(tables: &Tables) -> Result<Self> {
        let tables: Vec<Keyspace> = tables.named().map(|(_, table)| table.clone()).into();
        let (stop, stopped) = channel();
        let thread = std::thread::Builder::new()
            .name("memtables".into())
            .spawn(move || look_until(&stopped, &tables))
            .map_err(|e| Error::internal("cannot start the thread that frees memtables").with_source(e))?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Memtables {
    fn drop(&mut self) {
        self.stop = None;
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread that frees memtables panicked");
        }
    }
}

fn look_until(stopped: &Receiver<Infallible>, tables: &[Keyspace]) {
    let mut held: Vec<_> = tables.iter().map(|table| vec![table.tree.active_memtable()]).collect();
    while stopped.recv_timeout(EVERY) == Err(RecvTimeoutError::Timeout) {
        for (table, held) in tables.iter().zip(&mut held) {
            look(held, table.tree.active_memtable());
        }
    }
}

/// Holds what is written to now as well, and frees what nobody else has any more.
fn look<M>(held: &mut Vec<Arc<M>>, active: Arc<M>) {
    if !held.iter().any(|known| Arc::ptr_eq(known, &active)) {
        held.push(active);
    }
    // Whoever has the last one cannot lose it to anybody: there is nobody to get another from.
    held.retain(|memtable| Arc::strong_count(memtable) > 1);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_else_has_is_freed() {
        let (mut held, first, second) = (Vec::new(), Arc::new(1), Arc::new(2));
        for _ in 0..2 {
            look(&mut held, Arc::clone(&first));
        }
        assert_eq!((held.len(), Arc::strong_count(&first)), (1, 2), "held once");
        look(&mut held, Arc::clone(&second));
        assert_eq!(held, [Arc::clone(&first), Arc::clone(&second)], "the table still has both");
        let freed = Arc::downgrade(&first);
        drop(first);
        assert!(freed.upgrade().is_some(), "by whom the table's is dropped frees nothing");
        look(&mut held, Arc::clone(&second));
        assert!(freed.upgrade().is_none() && held == [second]);
    }

    /// What this rests on: once written out, the engine has nothing of a memtable any more.
    #[test]
    fn the_engine_lets_go_of_what_it_has_written_out() {
        let folder = tempfile::tempdir().expect("a folder");
        let database = fjall::Database::builder(folder.path()).open().expect("open");
        let table = database.keyspace("rows", fjall::KeyspaceCreateOptions::default).expect("open");
        let mut held = Vec::new();
        for n in 0..8_u8 {
            look(&mut held, table.tree.active_memtable());
            table.insert([n], [n]).expect("written");
            table.rotate_memtable_and_wait().expect("written out");
        }
        assert!(held.len() <= 3, "{} of 8 are still in the engine's hands", held.len());
    }
}
