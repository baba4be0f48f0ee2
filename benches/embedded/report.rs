//! The report: a table for people, the same as Markdown, everything as JSON.

use serde_json::{Value, json};

use crate::MODE;
use crate::findings::{Comparison, Figure, Findings};
use crate::measure::{Limit, Measure};

/// Cells of a table, the first row its head.
type Cells = Vec<Vec<String>>;

/// A number with as many digits as mean something.
pub fn number(value: f64) -> String {
    let digits = match value.abs() {
        size if size >= 100.0 || size == 0.0 => 0,
        size if size >= 10.0 => 1,
        size if size >= 0.1 => 2,
        _ => 4,
    };
    let text = format!("{value:.digits$}");
    let (whole, rest) = text.split_once('.').map_or((text.as_str(), String::new()), |(w, r)| (w, format!(".{r}")));
    let (sign, whole) = whole.strip_prefix('-').map_or(("", whole), |whole| ("-", whole));
    let mut grouped = String::new();
    for (at, digit) in whole.chars().enumerate() {
        if at > 0 && (whole.len() - at).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    format!("{sign}{grouped}{rest}")
}

fn verdict(holds: Option<bool>) -> &'static str {
    match holds {
        Some(true) => "ok",
        Some(false) => "OVER",
        None => "",
    }
}

fn limit_text(limit: Limit, about: &str) -> String {
    match limit {
        Limit::AtMost(bound) => format!("<= {bound} {about}"),
        Limit::AtLeast(bound) => format!(">= {bound} {about}"),
    }
}

fn comparison_cells(comparisons: &[Comparison]) -> Cells {
    let head = [
        "scenario",
        "against",
        "op",
        "CPU µs/op",
        "theirs",
        "ops/s",
        "theirs",
        "ratio",
        "min..max",
        "limit",
        "verdict",
    ];
    let mut cells = vec![head.map(str::to_owned).to_vec()];
    for comparison in comparisons {
        let (ours, theirs, ratio) = (comparison.ours(), comparison.theirs(), comparison.ratio());
        let about = if comparison.measure == Measure::Cpu { "CPU" } else { "ops/s" };
        cells.push(vec![
            comparison.scenario.to_owned(),
            comparison.other.to_owned(),
            comparison.op.to_owned(),
            number(ours.cpu_per_op),
            number(theirs.cpu_per_op),
            number(ours.per_second),
            number(theirs.per_second),
            format!("{:.2} {about}", ratio.median),
            format!("{:.2}..{:.2}", ratio.min, ratio.max),
            comparison.limit.map_or(String::new(), |limit| limit_text(limit, about)),
            verdict(comparison.holds()).to_owned(),
        ]);
    }
    cells
}

fn figure_cells(figures: &[Figure]) -> Cells {
    let head = ["scenario", "figure", "value", "unit", "limit", "verdict"];
    let mut cells = vec![head.map(str::to_owned).to_vec()];
    for figure in figures {
        cells.push(vec![
            figure.scenario.to_owned(),
            figure.what.clone(),
            number(figure.value),
            figure.unit.to_owned(),
            figure.limit.map_or(String::new(), |limit| limit_text(limit, "")),
            verdict(figure.holds()).to_owned(),
        ]);
    }
    cells
}

fn tables(findings: &Findings) -> Vec<Cells> {
    let tables = [comparison_cells(&findings.comparisons), figure_cells(&findings.figures)];
    tables.into_iter().filter(|cells| cells.len() > 1).collect()
}

/// Columns of numbers line up at their ends.
fn is_number(cells: &Cells, column: usize) -> bool {
    cells.iter().skip(1).all(|row| row[column].starts_with(|c: char| c.is_ascii_digit() || c == '-'))
}

fn aligned(cells: &Cells, (left, between, right): (&str, &str, &str)) -> Vec<String> {
    let widths: Vec<usize> =
        (0..cells[0].len()).map(|at| cells.iter().map(|row| row[at].chars().count()).max().unwrap_or(0)).collect();
    let cell = |row: &[String], at: usize| {
        if is_number(cells, at) {
            format!("{:>width$}", row[at], width = widths[at])
        } else {
            format!("{:<width$}", row[at], width = widths[at])
        }
    };
    let line = |row: &Vec<String>| {
        let row: Vec<String> = (0..row.len()).map(|at| cell(row, at)).collect();
        format!("{left}{}{right}", row.join(between)).trim_end().to_owned()
    };
    cells.iter().map(line).collect()
}

/// The tables for a terminal.
pub fn text(findings: &Findings) -> String {
    let tables: Vec<String> = tables(findings).iter().map(|cells| aligned(cells, ("", "  ", "")).join("\n")).collect();
    tables.join("\n\n")
}

/// The tables as Markdown, with what each comparison is.
pub fn markdown(findings: &Findings, machine: &str) -> String {
    let mut parts = vec![format!("# Benchmarks of the {MODE} mode\n\n{machine}. Medians of alternating pairs.")];
    for cells in tables(findings) {
        let mut lines = aligned(&cells, ("| ", " | ", " |"));
        let rule: Vec<&str> =
            (0..cells[0].len()).map(|at| if is_number(&cells, at) { "---:" } else { "---" }).collect();
        lines.insert(1, format!("| {} |", rule.join(" | ")));
        parts.push(lines.join("\n"));
    }
    let explain = |comparison: &Comparison| format!("- `{}`: {}", comparison.scenario, comparison.what);
    parts.push(findings.comparisons.iter().map(explain).collect::<Vec<_>>().join("\n"));
    parts.join("\n\n") + "\n"
}

/// Everything, every pair included.
pub fn json(findings: &Findings, machine: &str, quick: bool) -> Value {
    let comparison = |c: &Comparison| {
        let (ours, theirs) = (c.ours(), c.theirs());
        json!({
            "scenario": c.scenario, "what": c.what, "op": c.op, "against": c.other,
            "cpu_us_per_op": { "ours": ours.cpu_per_op, "theirs": theirs.cpu_per_op },
            "ops_per_second": { "ours": ours.per_second, "theirs": theirs.per_second },
            "cpu_ratio": c.ratio_of(Measure::Cpu), "throughput_ratio": c.ratio_of(Measure::Throughput),
            "limit_is_about": c.measure, "limit": c.limit, "holds": c.holds(), "pairs": c.pairs,
        })
    };
    let figure = |f: &Figure| {
        json!({
            "scenario": f.scenario, "what": f.what, "value": f.value, "unit": f.unit,
            "limit": f.limit, "holds": f.holds(),
        })
    };
    json!({
        "machine": machine, "quick": quick, "version": env!("CARGO_PKG_VERSION"),
        "comparisons": findings.comparisons.iter().map(comparison).collect::<Vec<_>>(),
        "figures": findings.figures.iter().map(figure).collect::<Vec<_>>(),
    })
}
