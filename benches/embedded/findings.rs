//! What the scenarios found: comparisons with a raw ceiling, and plain figures.

use crate::measure::{Limit, Measure, Pair, Spread};

/// Ours and another arm, pair by pair.
#[derive(Clone, Debug)]
pub struct Comparison {
    /// Which scenario; also the name that `dev/bench` takes.
    pub scenario: &'static str,
    /// One line that says what is compared.
    pub what: &'static str,
    /// What one operation is.
    pub op: &'static str,
    /// The name of the other arm.
    pub other: &'static str,
    /// What the ratio and the limit are about.
    pub measure: Measure,
    /// Where the median ratio has to stay, if anywhere.
    pub limit: Option<Limit>,
    /// The runs.
    pub pairs: Vec<Pair>,
}

/// Medians over the runs of one arm.
#[derive(Clone, Copy, Debug)]
pub struct Arm {
    /// CPU microseconds an operation.
    pub cpu_per_op: f64,
    /// Operations a second.
    pub per_second: f64,
}

impl Comparison {
    /// Fanfold.
    pub fn ours(&self) -> Arm {
        self.arm(|pair| pair.ours)
    }

    /// What it is measured against.
    pub fn theirs(&self) -> Arm {
        self.arm(|pair| pair.other)
    }

    fn arm(&self, side: fn(&Pair) -> crate::measure::Sample) -> Arm {
        let median = |measure: Measure| Spread::of(self.pairs.iter().map(|pair| measure.of(&side(pair)))).median;
        Arm { cpu_per_op: median(Measure::Cpu), per_second: median(Measure::Throughput) }
    }

    /// The ratios pair by pair, ours to theirs.
    pub fn ratio(&self) -> Spread {
        self.ratio_of(self.measure)
    }

    /// The ratios of either measure.
    pub fn ratio_of(&self, measure: Measure) -> Spread {
        Spread::of(self.pairs.iter().map(|pair| measure.ratio(pair)))
    }

    /// Whether the median ratio stays within the limit; `None` without one.
    pub fn holds(&self) -> Option<bool> {
        self.limit.map(|limit| limit.holds(self.ratio().median))
    }
}

/// One number.
#[derive(Clone, Debug)]
pub struct Figure {
    /// Which scenario.
    pub scenario: &'static str,
    /// What the number is.
    pub what: String,
    /// The number.
    pub value: f64,
    /// Its unit.
    pub unit: &'static str,
    /// Where it has to stay, if anywhere.
    pub limit: Option<Limit>,
}

/// The unit of the figures that the second chart shows.
pub const POSTS_A_MINUTE: &str = "posts/min";

impl Figure {
    /// A number without a limit.
    pub fn new(scenario: &'static str, what: impl Into<String>, value: f64, unit: &'static str) -> Self {
        Self { scenario, what: what.into(), value, unit, limit: None }
    }

    /// The same with a limit.
    pub fn with_limit(self, limit: Limit) -> Self {
        Self { limit: Some(limit), ..self }
    }

    /// Whether it stays within its limit; `None` without one.
    pub fn holds(&self) -> Option<bool> {
        self.limit.map(|limit| limit.holds(self.value))
    }
}

/// All that a scenario, or a run, found.
#[derive(Clone, Debug, Default)]
pub struct Findings {
    /// Ratios.
    pub comparisons: Vec<Comparison>,
    /// Numbers.
    pub figures: Vec<Figure>,
}

impl Findings {
    /// Adds what another scenario found.
    pub fn add(&mut self, other: Self) {
        self.comparisons.extend(other.comparisons);
        self.figures.extend(other.figures);
    }

    /// The scenarios that are over a limit.
    pub fn over_limit(&self) -> Vec<&'static str> {
        let compared = self.comparisons.iter().filter(|c| c.holds() == Some(false)).map(|c| c.scenario);
        compared.chain(self.figures.iter().filter(|f| f.holds() == Some(false)).map(|f| f.scenario)).collect()
    }
}

impl From<Comparison> for Findings {
    fn from(comparison: Comparison) -> Self {
        Self { comparisons: vec![comparison], figures: Vec::new() }
    }
}

impl From<Vec<Figure>> for Findings {
    fn from(figures: Vec<Figure>) -> Self {
        Self { comparisons: Vec::new(), figures }
    }
}
