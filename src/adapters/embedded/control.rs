//! One process agrees with itself: leases are always free, and what is tuned lasts until the next start.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::EmbeddedStore;
use crate::domain::{Tuning, WorkerReport};
use crate::error::Result;
use crate::ports::Control;

/// What is agreed on.
#[derive(Debug, Default)]
pub(super) struct Agreed(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    tuning: Tuning,
    reports: Vec<WorkerReport>,
}

impl Agreed {
    fn state(&self) -> MutexGuard<'_, State> {
        // Replaced as a whole: a panic elsewhere leaves nothing half changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Control for EmbeddedStore {
    async fn lease(&self, _: &str, _: u128, _: Duration) -> Result<bool> {
        Ok(true)
    }

    async fn release(&self, _: &str, _: u128) -> Result<()> {
        Ok(())
    }

    async fn tuning(&self) -> Result<Tuning> {
        Ok(self.agreed().state().tuning.clone())
    }

    async fn set_tuning(&self, tuning: &Tuning) -> Result<bool> {
        let mut state = self.agreed().state();
        let next = state.tuning.version + 1 == tuning.version;
        if next {
            state.tuning = tuning.clone();
        }
        Ok(next)
    }

    async fn report(&self, report: &WorkerReport) -> Result<()> {
        let mut state = self.agreed().state();
        state.reports.retain(|known| known.id != report.id);
        state.reports.push(report.clone());
        Ok(())
    }

    async fn reports(&self) -> Result<Vec<WorkerReport>> {
        Ok(self.agreed().state().reports.clone())
    }
}
