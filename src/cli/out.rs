//! Writing: data to standard output, messages to standard error, and neither ever panics.

use std::fmt::Display;
use std::io::{self, IsTerminal as _, Write as _};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

use super::fault::{Fault, Result};

/// How results are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Table,
    /// One JSON document (`watch`: one a line).
    Json,
}

/// Writes one line of results. A reader that has gone ends the command without a complaint.
pub fn line(text: impl Display) -> Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{text}").and_then(|()| out.flush()).map_err(write_fault)
}

/// Writes text that ends its own lines.
pub fn raw(text: &[u8]) -> Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text).and_then(|()| out.flush()).map_err(write_fault)
}

/// Writes `value` as the one JSON document of a command.
pub fn json(value: &impl Serialize) -> Result<()> {
    line(serde_json::to_string_pretty(value).map_err(|e| Fault::Local(format!("cannot write JSON: {e}")))?)
}

/// Writes `value` as one line of JSON.
pub fn json_line(value: &impl Serialize) -> Result<()> {
    line(serde_json::to_string(value).map_err(|e| Fault::Local(format!("cannot write JSON: {e}")))?)
}

/// Writes a message for whoever looks on. Nobody looking on is no error.
pub fn note(text: impl Display) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

fn write_fault(error: io::Error) -> Fault {
    match error.kind() {
        io::ErrorKind::BrokenPipe => Fault::PipeClosed,
        _ => Fault::Local(format!("cannot write to standard output: {error}")),
    }
}

/// Whether somebody looks at standard error.
pub fn on_terminal() -> bool {
    io::stderr().is_terminal()
}

/// A progress bar on a terminal; elsewhere one line when it is finished.
pub struct Progress {
    bar: ProgressBar,
    what: &'static str,
}

impl Progress {
    /// A bar for `total` steps of `what` (`"posts sent"`).
    pub fn new(what: &'static str, total: u64) -> Self {
        let target = if on_terminal() { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(Some(total), target);
        let style = ProgressStyle::with_template("{msg:<18} [{bar:32}] {human_pos}/{human_len} {elapsed} {eta}");
        // The template is a constant; a bad one would only cost the bar its looks.
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> "));
        bar.set_message(what);
        if on_terminal() {
            bar.enable_steady_tick(Duration::from_millis(250));
        }
        Self { bar, what }
    }

    /// One step more.
    pub fn step(&self) {
        self.bar.inc(1);
    }

    /// So many steps are done, of so many.
    pub fn at(&self, done: u64, total: u64) {
        self.bar.set_length(total);
        self.bar.set_position(done);
    }

    /// Takes the bar away and, where there was none, says how far it came.
    pub fn finish(&self) {
        let (done, total) = (self.bar.position(), self.bar.length().unwrap_or(0));
        self.bar.finish_and_clear();
        if !on_terminal() {
            note(format_args!("{done} of {total} {} in {:.1} s", self.what, self.bar.elapsed().as_secs_f64()));
        }
    }
}

/// `text` made safe for a terminal (what producers post must not move the cursor) and at most `width` characters long.
pub fn clip(text: &str, width: usize) -> String {
    let mut clipped: String = text.chars().take(width).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
    if text.chars().nth(width).is_some() {
        clipped.pop();
        clipped.push('…');
    }
    clipped
}

/// `1 viewer`, `2 viewers`.
pub fn count(number: u64, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

/// Rows of text in columns as wide as their widest cell, the last one free.
pub fn columns(rows: &[Vec<String>]) -> String {
    let count = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|c| c.chars().count()).max();
    let widths: Vec<usize> = (0..count).map(|column| width(column).unwrap_or(0)).collect();
    let mut text = String::new();
    for row in rows {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_from_others_is_clipped_and_harmless() {
        assert_eq!(clip("a\u{1b}[31m", 10), "a\u{fffd}[31m");
        assert_eq!(clip("äöüß", 4), "äöüß");
        assert_eq!(clip("äöüßx", 4), "äöü…");
    }

    #[test]
    fn columns_line_up() {
        let row = |cells: [&str; 2]| cells.map(str::to_owned).to_vec();
        assert_eq!(columns(&[row(["a", "bc"]), row(["äbc", ""])]), "a    bc\näbc\n");
    }
}
