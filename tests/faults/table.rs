//! The results as a table, for people and for programs.

use std::fmt::Write as _;
use std::path::Path;

use serde_json::{Value, json};

use crate::Outcome;
use crate::checker::DRAIN_MAX;
use crate::stage::Report;

/// A fault, over all its runs.
#[derive(Debug, Default)]
pub struct Row {
    pub fault: String,
    pub reports: Vec<Report>,
    /// Why a run could not be carried out.
    pub errors: Vec<String>,
}

impl Row {
    /// How often the fault came.
    fn times(&self) -> usize {
        self.reports.iter().map(|report| report.times).sum()
    }

    fn sum(&self, count: impl Fn(&Report) -> usize) -> usize {
        self.reports.iter().map(count).sum()
    }

    pub fn is_clean(&self) -> bool {
        self.errors.is_empty() && self.reports.iter().all(|report| report.verdict.is_clean())
    }

    fn drained(&self) -> String {
        if self.reports.iter().any(|report| report.verdict.drained.is_none()) {
            return "never".into();
        }
        let slowest = self.reports.iter().filter_map(|report| report.verdict.drained).max().unwrap_or_default();
        format!("{:.1}{}", slowest.as_secs_f64(), if slowest > DRAIN_MAX { "!" } else { "" })
    }

    fn cells(&self) -> [String; 8] {
        if self.reports.is_empty() {
            return [&self.fault, "0", "-", "-", "-", "-", "-", "could not run"].map(str::to_owned);
        }
        [
            self.fault.clone(),
            self.times().to_string(),
            self.sum(|r| r.accepted.total()).to_string(),
            self.sum(|r| r.verdict.lost.len()).to_string(),
            self.sum(|r| r.verdict.double.len()).to_string(),
            self.sum(|r| r.verdict.lies.len()).to_string(),
            self.sum(|r| r.verdict.wrong.len()).to_string(),
            self.drained(),
        ]
    }

    fn to_json(&self) -> Value {
        let runs = self.reports.iter().map(|report| {
            let (accepted, verdict) = (report.accepted, &report.verdict);
            json!({
                "times": report.times,
                "accepted": {
                    "posts": accepted.posts, "edits": accepted.edits,
                    "retracts": accepted.retracts, "marks": accepted.marks,
                },
                "unanswered": report.unanswered,
                "lost": verdict.lost, "double": verdict.double, "lies": verdict.lies, "other": verdict.wrong,
                "seconds_to_drain": verdict.drained.map(|drained| drained.as_secs_f64()),
                "seed": report.seed, "logs": report.folder,
            })
        });
        json!({ "fault": self.fault, "ok": self.is_clean(), "errors": self.errors, "runs": runs.collect::<Vec<_>>() })
    }
}

const HEAD: [&str; 8] = ["fault", "times", "accepted", "lost", "double", "lies", "other", "seconds to drain"];

/// The table, aligned.
pub fn text(rows: &[Row]) -> String {
    let mut lines = vec![HEAD.map(str::to_owned)];
    lines.extend(rows.iter().map(Row::cells));
    let width = |at: usize| lines.iter().map(|line| line[at].len()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..HEAD.len()).map(width).collect();
    let mut text = String::new();
    for line in &lines {
        for (at, cell) in line.iter().enumerate() {
            let _ = match at {
                0 => write!(text, "{cell:<w$}", w = widths[at]),
                _ => write!(text, "  {cell:>w$}", w = widths[at]),
            };
        }
        text.push('\n');
    }
    text
}

/// The same for a document.
fn markdown(rows: &[Row]) -> String {
    let mut text = format!("| {} |\n|{}\n", HEAD.join(" | "), "---|".repeat(HEAD.len()));
    for row in rows {
        let _ = writeln!(text, "| {} |", row.cells().join(" | "));
    }
    text
}

/// Writes both into a folder.
pub fn save(rows: &[Row], folder: &Path) -> Outcome<()> {
    let write = |name: &str, text: String| {
        std::fs::write(folder.join(name), text).map_err(|error| format!("{}: {error}", folder.join(name).display()))
    };
    write("faults.md", markdown(rows))?;
    let all: Vec<Value> = rows.iter().map(Row::to_json).collect();
    write("faults.json", format!("{:#}\n", json!(all)))
}
