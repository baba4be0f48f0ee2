//! The plot of the soak: resident memory over time, from zero, so that a slope looks as steep as it is.

use crate::scenarios::soak::Memory;
use crate::svg::{Anchor, HEADING, NOTE, OURS, Svg, THEIRS};

const WIDTH: f64 = 900.0;
const HEIGHT: f64 = 380.0;
const LEFT: f64 = 80.0;
const RIGHT: f64 = 870.0;
const TOP: f64 = 70.0;
const BOTTOM: f64 = 330.0;
const STEPS: u32 = 5;

/// The plot of these samples.
pub fn draw(samples: &[Memory]) -> String {
    let mut svg = Svg::new(WIDTH);
    svg.text((LEFT, 34.0), Anchor::Start, HEADING, "Resident memory under the mix, MiB");
    let (first, last) = (samples.first().map_or(0.0, |s| s.seconds), samples.last().map_or(1.0, |s| s.seconds));
    let longest = (last - first).max(1.0);
    let highest = samples.iter().map(|sample| sample.mib).fold(1.0, f64::max) * 1.1;
    let x_of = |seconds: f64| LEFT + (RIGHT - LEFT) * (seconds - first) / longest;
    for step in 0..=STEPS {
        let part = f64::from(step) / f64::from(STEPS);
        let y = BOTTOM - (BOTTOM - TOP) * part;
        svg.rule((LEFT, y), (RIGHT, y));
        svg.text((LEFT - 8.0, y + 4.0), Anchor::End, NOTE, &format!("{:.0}", highest * part));
        let seconds = last.max(0.0) * part;
        svg.text((x_of(seconds), BOTTOM + 20.0), Anchor::Middle, NOTE, &format!("{:.1} min", seconds / 60.0));
    }
    let point = |sample: &Memory| (x_of(sample.seconds), BOTTOM - (BOTTOM - TOP) * sample.mib / highest);
    let (warm_up, measured): (Vec<&Memory>, Vec<&Memory>) = samples.iter().partition(|sample| sample.seconds < 0.0);
    if let Some(until) = measured.first() {
        svg.rule((x_of(until.seconds), TOP), (x_of(until.seconds), BOTTOM));
        svg.text((LEFT, BOTTOM + 20.0), Anchor::Start, NOTE, "warming up");
    }
    svg.path(&warm_up.into_iter().map(point).collect::<Vec<_>>(), THEIRS);
    svg.path(&measured.into_iter().map(point).collect::<Vec<_>>(), OURS);
    svg.finish(HEIGHT)
}
