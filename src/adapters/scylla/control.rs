//! Leases, the fan-out's tuning, and what workers tell of themselves.

use std::time::Duration;

use scylla::DeserializeRow;
use uuid::Uuid;

use super::session::{Conditional, pause_before};
use super::{ScyllaStore, corrupt, int, uint};
use crate::domain::{Knob, Time, Tuning, WorkerReport};
use crate::error::{Error, Result};
use crate::ports::Control;

/// There is one fan-out.
const SCOPE: &str = "fanout";
/// How long a worker that says nothing is still shown.
const REPORT_TTL_S: i32 = 10;
/// Tries of a conditional write whose outcome stays unknown.
const ATTEMPTS: u32 = 5;

#[derive(DeserializeRow)]
struct TuningCells {
    version: i32,
    paused: Option<bool>,
    knobs: Option<Vec<i32>>,
    changed_by: Option<String>,
    changed_at: Option<i64>,
}

impl TuningCells {
    fn decode(self) -> Result<Tuning> {
        let mut values = [None; Knob::ALL.len()];
        // A newer release may know more of them.
        for (value, known) in values.iter_mut().zip(self.knobs.unwrap_or_default()) {
            *value = Some(uint(known, "the tuning")?).filter(|value| *value > 0);
        }
        Ok(Tuning {
            version: uint(self.version, "the tuning")?,
            paused: self.paused.unwrap_or(false),
            values,
            by: self.changed_by.unwrap_or_default(),
            at: Time::from_micros(self.changed_at.unwrap_or(0)),
        })
    }
}

#[derive(DeserializeRow)]
struct ReportCells {
    id: Uuid,
    role: String,
    name: String,
    started_at: i64,
    at: i64,
    tuning: i32,
    in_hand: i32,
    tasks: Option<Vec<String>>,
    rows_written: i64,
    rows_per_s: i32,
}

impl ReportCells {
    fn decode(self) -> Result<WorkerReport> {
        let what = "a worker's report";
        Ok(WorkerReport {
            id: self.id.as_u128(),
            role: self.role,
            name: self.name,
            started_at: Time::from_micros(self.started_at),
            at: Time::from_micros(self.at),
            tuning: uint(self.tuning, what)?,
            in_hand: uint(self.in_hand, what)?,
            tasks: self.tasks.unwrap_or_default(),
            rows: u64::try_from(self.rows_written).map_err(|_| corrupt(what))?,
            rows_per_s: uint(self.rows_per_s, what)?,
        })
    }
}

impl ScyllaStore {
    /// Renews a lease that is ours.
    async fn renew(&self, name: &str, owner: Uuid, ttl_s: i32) -> Result<Conditional> {
        let values = (ttl_s, owner, name, owner);
        self.shared.requests.conditional(&self.statements().renew_lease, values).await
    }
}

impl Control for ScyllaStore {
    async fn lease(&self, name: &str, owner: u128, ttl: Duration) -> Result<bool> {
        let (owner, ttl_s) = (Uuid::from_u128(owner), i32::try_from(ttl.as_secs().max(1)).unwrap_or(i32::MAX));
        let mut unknown = None;
        for attempt in 0..ATTEMPTS {
            if attempt > 0 {
                pause_before(attempt).await;
            }
            // First as one who holds it, which is the rule, then as one who would like to.
            match self.renew(name, owner, ttl_s).await? {
                Conditional::Applied => return Ok(true),
                Conditional::Refused => {}
                Conditional::Unknown(error) => {
                    unknown = Some(error);
                    continue;
                }
            }
            let values = (name, owner, ttl_s);
            match self.shared.requests.conditional(&self.statements().take_lease, values).await? {
                Conditional::Applied => return Ok(true),
                Conditional::Refused => return Ok(false),
                // It may be ours: renewing it tells.
                Conditional::Unknown(error) => unknown = Some(error),
            }
        }
        Err(unknown.unwrap_or_else(|| Error::unavailable("store_unavailable", "a lease is not settled")))
    }

    async fn release(&self, name: &str, owner: u128) -> Result<()> {
        let values = (name, Uuid::from_u128(owner));
        match self.shared.requests.conditional(&self.statements().drop_lease, values).await? {
            Conditional::Applied | Conditional::Refused => Ok(()),
            Conditional::Unknown(error) => Err(error),
        }
    }

    async fn tuning(&self) -> Result<Tuning> {
        let found = self.select::<TuningCells>(&self.statements().tuning, (SCOPE,)).await?;
        found.into_iter().next().map_or_else(|| Ok(Tuning::default()), TuningCells::decode)
    }

    async fn set_tuning(&self, tuning: &Tuning) -> Result<bool> {
        let version = int(tuning.version)?;
        let knobs = tuning.values.iter().map(|value| int(value.unwrap_or(0))).collect::<Result<Vec<i32>>>()?;
        let (by, at) = (tuning.by.as_str(), tuning.at.micros());
        let outcome = if version == 1 {
            let values = (SCOPE, version, tuning.paused, knobs, by, at);
            self.shared.requests.conditional(&self.statements().begin_tuning, values).await?
        } else {
            let values = (version, tuning.paused, knobs, by, at, SCOPE, version - 1);
            self.shared.requests.conditional(&self.statements().move_tuning, values).await?
        };
        match outcome {
            Conditional::Applied => Ok(true),
            Conditional::Refused => Ok(false),
            // An operator looks and says it again.
            Conditional::Unknown(error) => Err(error),
        }
    }

    async fn report(&self, report: &WorkerReport) -> Result<()> {
        // Fan-out workers need the store's clock for nothing else, and how far theirs is off is to be seen as well.
        self.store_time().await?;
        let values = (
            SCOPE,
            Uuid::from_u128(report.id),
            report.role.as_str(),
            report.name.as_str(),
            report.started_at.micros(),
            report.at.micros(),
            int(report.tuning)?,
            int(report.in_hand)?,
            &report.tasks,
            i64::try_from(report.rows).unwrap_or(i64::MAX),
            int(report.rows_per_s)?,
            REPORT_TTL_S,
        );
        self.write(&self.statements().write_report, values).await
    }

    async fn reports(&self) -> Result<Vec<WorkerReport>> {
        let found = self.select::<ReportCells>(&self.statements().reports, (SCOPE,)).await?;
        found.into_iter().map(ReportCells::decode).collect()
    }
}
