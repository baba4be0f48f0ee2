//! What a replay found out, as a table and as JSON.

use std::time::Duration;

use serde::Serialize;

use super::check::{Spread, Tally};
use super::polls::Polls;
use crate::cli::out;

/// What the phases measured.
pub struct Measured {
    /// Where.
    pub url: String,
    /// Which run.
    pub run: String,
    /// People in the graph.
    pub people: usize,
    /// Posts sent.
    pub posts: usize,
    /// Rows that makes.
    pub rows: usize,
    /// From the first POST until the last was answered.
    pub posting: Duration,
    /// From the first POST until the fan-out of all was seen to be done.
    pub fanning_out: Duration,
    /// How the fan-outs ended.
    pub spread: Spread,
    /// From send until visible, of the posts followed.
    pub visible: Vec<Option<Duration>>,
    /// What the inboxes hold.
    pub tally: Tally,
    /// What polling came to.
    pub polls: Polls,
    /// Requests made again.
    pub retries: u64,
    /// The whole run.
    pub wall: Duration,
}

/// The report. Field names are the JSON that scripts read.
#[derive(Debug, Serialize)]
pub struct Report {
    url: String,
    run: String,
    people: usize,
    posts: usize,
    rows_expected: usize,
    rows_found: usize,
    rows_missing: usize,
    rows_duplicate: usize,
    rows_misdelivered: usize,
    /// Not verified: the service serves no item of an inbox that is so old.
    rows_beyond_window: usize,
    rows_parked: u64,
    /// Posts whose fan-out was not done in time.
    pub unfinished_posts: usize,
    posts_per_second: f64,
    /// Of the rows found. `None` while the fan-out is not done: then there is no rate to tell.
    rows_per_second: Option<f64>,
    publish_to_visible_ms: Latency,
    polls: usize,
    share_304: Option<f64>,
    first_pages: usize,
    first_pages_share_304: Option<f64>,
    store_reads_by_unchanged_polls: Option<u64>,
    retries: u64,
    wall_seconds: f64,
}

#[derive(Debug, Serialize)]
struct Latency {
    samples: usize,
    not_seen: usize,
    p50: Option<f64>,
    p99: Option<f64>,
    max: Option<f64>,
}

impl Latency {
    fn of(visible: &[Option<Duration>]) -> Self {
        let mut seen: Vec<Duration> = visible.iter().flatten().copied().collect();
        seen.sort_unstable();
        let at = |percent| quantile(&seen, percent).map(|d| rounded(d.as_secs_f64() * 1_000.0, 100.0));
        Self { samples: visible.len(), not_seen: visible.len() - seen.len(), p50: at(50), p99: at(99), max: at(100) }
    }
}

/// The nearest-rank percentile of sorted values: always one that was measured.
fn quantile(sorted: &[Duration], percent: usize) -> Option<Duration> {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied()
}

fn rounded(value: f64, steps: f64) -> f64 {
    (value * steps).round() / steps
}

fn rate(count: usize, time: Duration) -> f64 {
    rounded(count as f64 / time.as_secs_f64().max(1e-9), 10.0)
}

fn share(part: usize, whole: usize) -> Option<f64> {
    (whole > 0).then(|| rounded(part as f64 / whole as f64, 1e6))
}

impl Report {
    /// Works out rates and percentiles.
    pub fn new(m: Measured) -> Self {
        // Rows that were never written, and that no inbox lacks within its limit, are among those beyond it: that much is
        // known of them, and they are missing.
        let unwritten = usize::try_from(m.spread.unwritten).unwrap_or(usize::MAX);
        let unserved = unwritten.saturating_sub(m.tally.missing).min(m.tally.beyond_window);
        Self {
            url: m.url,
            run: m.run,
            people: m.people,
            posts: m.posts,
            rows_expected: m.rows,
            rows_found: m.tally.found,
            rows_missing: m.tally.missing + unserved,
            rows_duplicate: m.tally.duplicate,
            rows_misdelivered: m.tally.misdelivered,
            rows_beyond_window: m.tally.beyond_window - unserved,
            rows_parked: m.spread.parked,
            unfinished_posts: m.spread.unfinished,
            posts_per_second: rate(m.posts, m.posting),
            rows_per_second: (m.spread.unfinished == 0).then(|| rate(m.tally.found, m.fanning_out)),
            publish_to_visible_ms: Latency::of(&m.visible),
            polls: m.polls.polls,
            share_304: share(m.polls.polls_304, m.polls.polls),
            first_pages: m.polls.pages,
            first_pages_share_304: share(m.polls.pages_304, m.polls.pages),
            store_reads_by_unchanged_polls: m.polls.store_reads,
            retries: m.retries,
            wall_seconds: rounded(m.wall.as_secs_f64(), 100.0),
        }
    }

    /// Whether every inbox holds exactly what it must, as far as it can be seen.
    pub fn ok(&self) -> bool {
        let wrong = self.rows_missing + self.rows_duplicate + self.rows_misdelivered;
        // Where other posts have pushed every row out of its inbox, nothing was shown.
        wrong == 0 && (self.rows_found > 0 || self.rows_expected == 0)
    }

    fn result(&self) -> String {
        let mut result = if self.ok() { "ok" } else { "FAILED" }.to_owned();
        if self.rows_beyond_window > 0 {
            let unseen = out::count(self.rows_beyond_window as u64, "row");
            result.push_str(&format!("; {unseen} not verified (beyond the inbox limit)"));
        }
        result
    }

    /// The report for people.
    pub fn table(&self) -> String {
        let latency = &self.publish_to_visible_ms;
        let ms = |value: Option<f64>| value.map_or("-".to_owned(), |ms| format!("{ms:.1}"));
        let percent = |share: Option<f64>| share.map_or("-".to_owned(), |share| format!("{:.2} %", share * 100.0));
        let mut rows = vec![
            ("people", thousands(self.people)),
            ("posts", thousands(self.posts)),
            ("rows expected", thousands(self.rows_expected)),
            ("rows found", thousands(self.rows_found)),
            ("missing", thousands(self.rows_missing)),
            ("duplicate", thousands(self.rows_duplicate)),
            ("not for that viewer", thousands(self.rows_misdelivered)),
            ("beyond the inbox limit", thousands(self.rows_beyond_window)),
            ("posts/s", format!("{:.0}", self.posts_per_second)),
            ("rows/s", self.rows_per_second.map_or("-".to_owned(), |rate| format!("{rate:.0}"))),
            (
                "publish to visible",
                format!("p50 {}, p99 {}, max {} ms", ms(latency.p50), ms(latency.p99), ms(latency.max)),
            ),
            ("  posts followed", format!("{} ({} not seen in time)", latency.samples, latency.not_seen)),
            ("polls", thousands(self.polls)),
            ("  share of 304", percent(self.share_304)),
            ("first pages", thousands(self.first_pages)),
            ("  share of 304", percent(self.first_pages_share_304)),
            (
                "store reads by those",
                self.store_reads_by_unchanged_polls.map_or("not told".to_owned(), |reads| reads.to_string()),
            ),
            ("requests tried again", self.retries.to_string()),
            ("wall time", format!("{:.1} s", self.wall_seconds)),
        ];
        if self.unfinished_posts > 0 {
            rows.push(("fan-out not done", format!("{} posts", self.unfinished_posts)));
        }
        if self.rows_parked > 0 {
            rows.push(("fan-out gave up", format!("{} (parked)", out::count(self.rows_parked, "row"))));
        }
        rows.push(("result", self.result()));
        let rows: Vec<Vec<String>> = rows.into_iter().map(|(name, value)| vec![name.to_owned(), value]).collect();
        out::columns(&rows)
    }
}

fn thousands(number: usize) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(tally: Tally) -> Measured {
        let ms = Duration::from_millis;
        Measured {
            url: "u".to_owned(),
            run: "r".to_owned(),
            people: 3,
            posts: 3,
            rows: 4_000,
            posting: ms(500),
            fanning_out: ms(2_000),
            spread: Spread::default(),
            visible: (1..=100).map(|i| Some(ms(i))).chain([None]).collect(),
            tally,
            polls: Polls { polls: 8, polls_304: 6, pages: 0, pages_304: 0, store_reads: Some(0) },
            retries: 0,
            wall: ms(2_500),
        }
    }

    #[test]
    fn rates_shares_and_percentiles() {
        let report = Report::new(measured(Tally { found: 4_000, ..Tally::default() }));
        assert!(report.ok());
        assert_eq!((report.posts_per_second, report.rows_per_second), (6.0, Some(2_000.0)));
        assert_eq!((report.share_304, report.first_pages_share_304), (Some(0.75), None));
        let latency = &report.publish_to_visible_ms;
        assert_eq!((latency.samples, latency.not_seen), (101, 1));
        assert_eq!((latency.p50, latency.p99, latency.max), (Some(50.0), Some(99.0), Some(100.0)));
        let table = report.table();
        assert!(table.contains("rows expected           4,000\n") && table.ends_with("result                  ok\n"));
    }

    #[test]
    fn a_row_too_few_or_too_many_fails() {
        for tally in [
            Tally { missing: 1, ..Tally::default() },
            Tally { duplicate: 1, ..Tally::default() },
            Tally { misdelivered: 1, ..Tally::default() },
        ] {
            assert!(!Report::new(measured(Tally { found: 3_999, ..tally })).ok());
        }
    }

    #[test]
    fn rows_that_nobody_can_see_are_no_rows_found() {
        let report = Report::new(measured(Tally { found: 3_990, beyond_window: 10, ..Tally::default() }));
        assert_eq!((report.ok(), report.rows_per_second), (true, Some(1_995.0)));
        let told = "result                  ok; 10 rows not verified (beyond the inbox limit)\n";
        assert!(report.table().ends_with(told), "{}", report.table());
        let blind = Report::new(measured(Tally { beyond_window: 4_000, ..Tally::default() }));
        assert!(!blind.ok() && blind.table().contains("FAILED; 4000 rows not verified"), "{}", blind.table());
    }

    #[test]
    fn rows_that_were_never_written_are_missing_wherever_they_would_be() {
        let report = |missing, beyond_window| {
            let tally = Tally { found: 3_990, missing, beyond_window, ..Tally::default() };
            let spread = Spread { unfinished: 0, unwritten: 3, parked: 3 };
            Report::new(Measured { spread, ..measured(tally) })
        };
        for (missing, beyond) in [(0, 10), (2, 8), (3, 7)] {
            let report = report(missing, beyond);
            assert_eq!((report.rows_missing, report.rows_beyond_window), (3, 7));
            assert!(!report.ok() && report.table().contains("3 rows (parked)"), "{}", report.table());
        }
        let late = report(0, 0);
        assert_eq!((late.rows_missing, late.rows_beyond_window), (0, 0), "written since it was looked at");
    }

    #[test]
    fn percentiles_of_little() {
        assert_eq!(quantile(&[], 50), None);
        let one = [Duration::from_secs(1)];
        assert_eq!(
            (quantile(&one, 0), quantile(&one, 50), quantile(&one, 100)),
            (Some(one[0]), Some(one[0]), Some(one[0]))
        );
        assert_eq!([0, 999, 1_000, 1_234_567].map(thousands), ["0", "999", "1,000", "1,234,567"]);
    }
}
