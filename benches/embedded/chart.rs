//! The plot: what an operation costs beside its ceiling, and posts a minute beside what such systems are asked for.
//!
//! Columns do not share pixels: names, bars, values, verdicts each have their own, so no text meets another or a line.

use crate::MODE;
use crate::findings::{Comparison, Figure, Findings, POSTS_A_MINUTE};
use crate::measure::{Limit, Measure};
use crate::report::number;
use crate::svg::{Anchor, GOOD, HEADING, LIMIT, NAME, NOTE, OURS, PLAIN, Style, Svg, THEIRS};

const WIDTH: f64 = 1000.0;
const LEFT: f64 = 28.0;
const BARS: f64 = 230.0;
const BARS_WIDTH: f64 = 400.0;
const VALUES: f64 = 642.0;
const VERDICT: f64 = 972.0;
const BAR: f64 = 16.0;
/// Posts a minute that such systems are asked for.
const ASKED_FOR: f64 = 100_000.0;

/// The plot of a run.
pub fn draw(findings: &Findings, machine: &str) -> String {
    let mut svg = Svg::new(WIDTH);
    let mut y = 40.0;
    svg.text((LEFT, y), Anchor::Start, HEADING, &format!("Fanfold, {MODE}: cost beside its raw ceiling"));
    y += 20.0;
    svg.text(
        (LEFT, y),
        Anchor::Start,
        NOTE,
        &format!("{machine}. Medians of alternating pairs; each row has a scale of its own."),
    );
    y += 28.0;
    legend(&mut svg, y);
    y += 22.0;
    let about_cpu = |scenario| {
        findings
            .comparisons
            .iter()
            .any(|comparison| comparison.scenario == scenario && comparison.measure == Measure::Cpu)
    };
    for comparison in &findings.comparisons {
        // Of what a scenario compares in both measures, each by its own.
        if comparison.measure == Measure::Cpu || !about_cpu(comparison.scenario) {
            y = compare(&mut svg, y, comparison, Measure::Cpu);
        }
        if comparison.measure == Measure::Throughput {
            y = compare(&mut svg, y, comparison, Measure::Throughput);
        }
    }
    let posts: Vec<&Figure> = findings.figures.iter().filter(|figure| figure.unit == POSTS_A_MINUTE).collect();
    if !posts.is_empty() {
        y = posts_a_minute(&mut svg, y + 34.0, &posts);
    }
    let rest: Vec<&Figure> = findings.figures.iter().filter(|figure| figure.unit != POSTS_A_MINUTE).collect();
    if !rest.is_empty() {
        y = figures(&mut svg, y + 34.0, &rest);
    }
    svg.finish(y + 24.0)
}

fn legend(svg: &mut Svg, y: f64) {
    svg.bar(BARS, y - 11.0, 14.0, 12.0, OURS);
    svg.text((BARS + 20.0, y), Anchor::Start, PLAIN, "Fanfold");
    svg.bar(BARS + 90.0, y - 11.0, 14.0, 12.0, THEIRS);
    svg.text((BARS + 110.0, y), Anchor::Start, PLAIN, "what it is measured against");
    svg.limit((BARS + 300.0, y - 5.0), (BARS + 328.0, y - 5.0));
    svg.text((BARS + 334.0, y), Anchor::Start, PLAIN, "limit");
}

/// One comparison by one measure: two bars, the limit if it is about that measure, the ratio.
fn compare(svg: &mut Svg, top: f64, comparison: &Comparison, measure: Measure) -> f64 {
    let pick = |cpu: f64, rate: f64| if measure == Measure::Cpu { cpu } else { rate };
    let (ours, theirs) = (comparison.ours(), comparison.theirs());
    let (ours, theirs) = (pick(ours.cpu_per_op, ours.per_second), pick(theirs.cpu_per_op, theirs.per_second));
    let limit = comparison.limit.filter(|_| measure == comparison.measure);
    let mark = limit.map(|limit| theirs * limit.bound());
    let scale = BARS_WIDTH / ours.max(theirs).max(mark.unwrap_or(0.0)).max(1e-9);
    let unit = match measure {
        Measure::Cpu => format!("CPU µs/{}", comparison.op),
        Measure::Throughput => format!("{}s/s", comparison.op),
    };
    svg.rule((LEFT, top), (VERDICT, top));
    svg.text((LEFT, top + 26.0), Anchor::Start, NAME, comparison.scenario);
    svg.text((LEFT, top + 44.0), Anchor::Start, NOTE, &unit);
    for (offset, value, fill, name) in [(12.0, ours, OURS, "Fanfold"), (34.0, theirs, THEIRS, comparison.other)] {
        svg.bar(BARS, top + offset, value * scale, BAR, fill);
        svg.text((VALUES, top + offset + 12.0), Anchor::Start, PLAIN, &format!("{}  {name}", number(value)));
    }
    if let Some(mark) = mark {
        let x = BARS + mark * scale;
        svg.limit((x, top + 6.0), (x, top + 56.0));
    }
    let ratio = comparison.ratio_of(measure);
    let style = verdict_style(limit.map(|limit| limit.holds(ratio.median)));
    svg.text((VERDICT, top + 24.0), Anchor::End, style, &format!("{:.2} x", ratio.median));
    let range = format!("{:.2} to {:.2}", ratio.min, ratio.max);
    let note = limit.map_or(range.clone(), |limit| format!("{range}, limit {}", limit_text(limit)));
    svg.text((VERDICT, top + 44.0), Anchor::End, NOTE, &note);
    top + 64.0
}

fn posts_a_minute(svg: &mut Svg, top: f64, posts: &[&Figure]) -> f64 {
    svg.text((LEFT, top), Anchor::Start, HEADING, "Posts a minute, accepted and fanned out, over HTTP");
    svg.text(
        (LEFT, top + 20.0),
        Anchor::Start,
        NOTE,
        "The dashed line: the 100,000 a minute that such systems are asked for.",
    );
    let most = posts.iter().map(|figure| figure.value).fold(ASKED_FOR, f64::max);
    let scale = BARS_WIDTH / most;
    let first = top + 34.0;
    let mut y = first;
    for figure in posts {
        let name = figure.what.split(':').next().unwrap_or_default();
        svg.text((LEFT, y + 13.0), Anchor::Start, PLAIN, name);
        svg.bar(BARS, y, figure.value * scale, BAR + 2.0, OURS);
        svg.text((VALUES, y + 13.0), Anchor::Start, PLAIN, &format!("{} posts a minute", number(figure.value)));
        y += 28.0;
    }
    let x = BARS + ASKED_FOR * scale;
    svg.limit((x, first - 8.0), (x, y));
    y
}

fn figures(svg: &mut Svg, top: f64, figures: &[&Figure]) -> f64 {
    svg.text((LEFT, top), Anchor::Start, HEADING, "Figures");
    let mut y = top + 26.0;
    for figure in figures {
        svg.text((LEFT, y), Anchor::Start, NAME, figure.scenario);
        svg.text((LEFT + 90.0, y), Anchor::Start, PLAIN, &figure.what);
        svg.text((VALUES, y), Anchor::Start, PLAIN, &format!("{} {}", number(figure.value), figure.unit));
        if let Some(limit) = figure.limit {
            let style = verdict_style(figure.holds());
            svg.text((VERDICT, y), Anchor::End, style, &format!("limit {}", limit_text(limit)));
        }
        y += 22.0;
    }
    y
}

fn verdict_style(holds: Option<bool>) -> Style {
    match holds {
        Some(true) => Style { fill: GOOD, ..NAME },
        Some(false) => Style { fill: LIMIT, ..NAME },
        None => NAME,
    }
}

fn limit_text(limit: Limit) -> String {
    match limit {
        Limit::AtMost(bound) => format!("at most {bound}"),
        Limit::AtLeast(bound) => format!("at least {bound}"),
    }
}
