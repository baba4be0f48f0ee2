//! Counts store reads by the path that caused them.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::ports::Path;

/// One counter a [`Path`]; shared by all handles of a store.
#[derive(Debug, Default)]
pub struct Reads([AtomicU64; Path::ALL.len()]);

impl Reads {
    /// One read more on behalf of `path`.
    pub fn count(&self, path: Path) {
        self.0[path as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// How many reads `path` has caused.
    pub fn of(&self, path: Path) -> u64 {
        self.0[path as usize].load(Ordering::Relaxed)
    }
}
