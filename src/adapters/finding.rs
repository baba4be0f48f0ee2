//! What an inspection of a backend finds.

/// How good or bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// As it should be.
    Fine,
    /// It works, but somebody should look at it.
    Warning,
    /// It does not work, or will lose its promises.
    Wrong,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// `store`, `queue`, `revisions`, `workers`, `access` or `tls`.
    pub part: &'static str,
    /// How it is.
    pub severity: Severity,
    /// What was found.
    pub what: String,
    /// What to do about it; empty where there is nothing to do.
    pub advice: String,
}

impl Finding {
    /// As it should be.
    pub fn fine(part: &'static str, what: impl Into<String>) -> Self {
        Self { part, severity: Severity::Fine, what: what.into(), advice: String::new() }
    }

    /// It works, but somebody should look at it.
    pub fn warning(part: &'static str, what: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { part, severity: Severity::Warning, what: what.into(), advice: advice.into() }
    }

    /// It does not work.
    pub fn wrong(part: &'static str, what: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { part, severity: Severity::Wrong, what: what.into(), advice: advice.into() }
    }
}
