//! The few shapes that the charts need.

use std::fmt::Write as _;

/// Dark text.
pub const INK: &str = "#1f2933";
/// Text that explains.
pub const FAINT: &str = "#616e7c";
/// Fanfold.
pub const OURS: &str = "#2f6fab";
/// What it is measured against.
pub const THEIRS: &str = "#b8c4d0";
/// Limits, and what is over them.
pub const LIMIT: &str = "#c2410c";
/// What is within its limit.
pub const GOOD: &str = "#2e7d32";
const GRID: &str = "#e4e7eb";

/// Where a text is held.
#[derive(Clone, Copy, Debug)]
pub enum Anchor {
    /// It begins here.
    Start,
    /// It is centred here.
    Middle,
    /// It ends here.
    End,
}

/// A drawing that grows downwards.
#[derive(Debug)]
pub struct Svg {
    width: f64,
    body: String,
}

impl Svg {
    /// An empty one.
    pub fn new(width: f64) -> Self {
        Self { width, body: String::new() }
    }

    /// A filled rectangle.
    pub fn bar(&mut self, x: f64, y: f64, width: f64, height: f64, fill: &str) {
        self.add(format_args!(
            r#"<rect x="{x:.1}" y="{y:.1}" width="{width:.1}" height="{height:.1}" rx="2" fill="{fill}"/>"#
        ));
    }

    /// A line that separates or measures.
    pub fn rule(&mut self, from: (f64, f64), to: (f64, f64)) {
        self.line(from, to, GRID, "1", "none");
    }

    /// A dashed line that marks a limit.
    pub fn limit(&mut self, from: (f64, f64), to: (f64, f64)) {
        self.line(from, to, LIMIT, "1.5", "5 3");
    }

    fn line(&mut self, (x1, y1): (f64, f64), (x2, y2): (f64, f64), stroke: &str, width: &str, dashes: &str) {
        self.add(format_args!(
            r#"<line x1="{x1:.1}" y1="{y1:.1}" x2="{x2:.1}" y2="{y2:.1}" stroke="{stroke}" stroke-width="{width}" stroke-dasharray="{dashes}"/>"#
        ));
    }

    /// A line through points.
    pub fn path(&mut self, points: &[(f64, f64)], stroke: &str) {
        let points: Vec<String> = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        self.add(format_args!(
            r#"<polyline points="{}" fill="none" stroke="{stroke}" stroke-width="2"/>"#,
            points.join(" ")
        ));
    }

    /// Text of a size and weight.
    pub fn text(&mut self, (x, y): (f64, f64), anchor: Anchor, style: Style, text: &str) {
        let anchor = match anchor {
            Anchor::Start => "start",
            Anchor::Middle => "middle",
            Anchor::End => "end",
        };
        let Style { size, weight, fill } = style;
        let text = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
        self.add(format_args!(
            r#"<text x="{x:.1}" y="{y:.1}" text-anchor="{anchor}" font-size="{size}" font-weight="{weight}" fill="{fill}">{text}</text>"#
        ));
    }

    fn add(&mut self, element: std::fmt::Arguments<'_>) {
        // Writing to a string does not fail.
        let _ = writeln!(self.body, "{element}");
    }

    /// The whole document, as high as it has become.
    pub fn finish(self, height: f64) -> String {
        let Self { width, body } = self;
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width:.0}\" height=\"{height:.0}\" \
             viewBox=\"0 0 {width:.0} {height:.0}\" font-family=\"Helvetica, Arial, 'DejaVu Sans', sans-serif\">\n\
             <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n{body}</svg>\n"
        )
    }
}

/// How a text looks.
#[derive(Clone, Copy, Debug)]
pub struct Style {
    /// Pixels.
    pub size: u32,
    /// 400 or 700.
    pub weight: u32,
    /// Colour.
    pub fill: &'static str,
}

/// A heading.
pub const HEADING: Style = Style { size: 18, weight: 700, fill: INK };
/// The name of something.
pub const NAME: Style = Style { size: 14, weight: 700, fill: INK };
/// Ordinary text.
pub const PLAIN: Style = Style { size: 12, weight: 400, fill: INK };
/// Text that explains.
pub const NOTE: Style = Style { size: 12, weight: 400, fill: FAINT };
