//! Why a command ends early: what to tell on standard error, and the exit code a script decides by.

use std::fmt;
use std::time::Duration;

use serde::Deserialize;

use crate::error::{Error, Kind};

/// A result of the command line.
pub type Result<T, E = Fault> = std::result::Result<T, E>;

/// The command was used in a way that cannot work.
pub const EXIT_USAGE: u8 = 64;
/// The service, or what it needs, cannot be used now.
pub const EXIT_UNAVAILABLE: u8 = 69;
/// It may work in a moment.
pub const EXIT_TRY_AGAIN: u8 = 75;
/// The service refused the caller.
pub const EXIT_DENIED: u8 = 77;

/// Why a command ends early.
#[derive(Debug)]
pub enum Fault {
    /// An argument, a file or a configuration that cannot be used.
    Usage(String),
    /// No connection, or it broke.
    Connect(String),
    /// No answer in time.
    Timeout(String),
    /// An error that the service answered with.
    Problem(Box<Problem>),
    /// The service answered something that is not in its interface: a proxy, or another service.
    Answer(String),
    /// This machine failed: no runtime, standard output cannot be written.
    Local(String),
    /// The embedded service could not start or run.
    Service(Error),
    /// Whoever read standard output has had enough (`| head`): nothing to report.
    PipeClosed,
}

/// An RFC 9457 problem document, with what its headers say.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Problem {
    /// The HTTP status.
    pub status: u16,
    /// What kind of problem, for people.
    pub title: String,
    /// What kind of problem, for programs.
    pub code: String,
    /// What went wrong this time.
    pub detail: String,
    /// The field at fault.
    pub field: Option<String>,
    /// The limit that was exceeded.
    pub limit: Option<u64>,
    /// Why a client must read afresh (410).
    pub reason: Option<String>,
    /// Finds the request in the service's log.
    pub request_id: Option<String>,
    /// How long the service asks to wait.
    #[serde(skip)]
    pub retry_after: Option<Duration>,
}

impl Fault {
    /// The exit code for scripts.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::PipeClosed => 0,
            Self::Usage(_) => EXIT_USAGE,
            Self::Connect(_) | Self::Answer(_) | Self::Local(_) => EXIT_UNAVAILABLE,
            Self::Timeout(_) => EXIT_TRY_AGAIN,
            Self::Problem(problem) => match problem.status {
                401 | 403 => EXIT_DENIED,
                408 | 410 | 425 | 429 | 504 => EXIT_TRY_AGAIN,
                500.. => EXIT_UNAVAILABLE,
                _ => EXIT_USAGE,
            },
            Self::Service(error) => match error.kind() {
                Kind::Malformed | Kind::Invalid | Kind::NotFound | Kind::Precondition => EXIT_USAGE,
                Kind::Unauthenticated | Kind::Forbidden => EXIT_DENIED,
                Kind::Resync | Kind::Limited => EXIT_TRY_AGAIN,
                Kind::Conflict | Kind::Unavailable | Kind::StorageFull | Kind::Corrupt | Kind::Internal => {
                    EXIT_UNAVAILABLE
                }
            },
        }
    }

    /// How long to wait before asking again, or `None` if the same request would fail again. Without a word from the
    /// service it is `default`.
    pub fn retry_after(&self, default: Duration) -> Option<Duration> {
        match self {
            Self::Connect(_) | Self::Timeout(_) => Some(default),
            Self::Problem(problem) => match problem.status {
                408 | 425 | 429 | 502 | 503 | 504 => Some(problem.retry_after.unwrap_or(default)),
                _ => None,
            },
            _ => None,
        }
    }

    /// The most that the service takes of `field`, if it refused `asked` for being more than that.
    pub fn limit(&self, field: &str, asked: u32) -> Option<u32> {
        let Self::Problem(problem) = self else { return None };
        let limit = u32::try_from(problem.limit?).ok()?;
        let refused = problem.status == 422 && problem.field.as_deref() == Some(field);
        // Whoever took up a limit that is no lower would ask the same again, for ever.
        (refused && (1..asked).contains(&limit)).then_some(limit)
    }

    /// Whether the service asks to read the inbox afresh.
    pub fn is_resync(&self) -> bool {
        matches!(self, Self::Problem(problem) if problem.status == 410)
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Self::Service(error)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Usage(text) | Self::Connect(text) | Self::Timeout(text) | Self::Answer(text) | Self::Local(text) => {
                f.write_str(text)
            }
            Self::Problem(problem) => problem.fmt(f),
            Self::Service(error) => write!(f, "{error} [{}]", error.code()),
            Self::PipeClosed => f.write_str("standard output was closed"),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.title, self.status)?;
        let wait = self.retry_after.map(|after| format!("{} s", after.as_secs_f64().ceil()));
        let lines = [
            ("detail", Some(&self.detail)),
            ("code", Some(&self.code)),
            ("field", self.field.as_ref()),
            ("reason", self.reason.as_ref()),
            ("try again after", wait.as_ref()),
            ("request", self.request_id.as_ref()),
        ];
        for (name, value) in lines {
            if let Some(value) = value.filter(|value| !value.is_empty()) {
                write!(f, "\n  {name}: {value}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(status: u16) -> Fault {
        Fault::Problem(Box::new(Problem { status, ..Problem::default() }))
    }

    #[test]
    fn exit_codes_tell_scripts_what_to_do() {
        for (status, code) in [(401, 77), (403, 77), (404, 64), (422, 64), (429, 75), (500, 69), (503, 69), (504, 75)] {
            assert_eq!(problem(status).exit_code(), code, "{status}");
        }
        assert_eq!(Fault::Connect(String::new()).exit_code(), 69);
        assert_eq!(Fault::Timeout(String::new()).exit_code(), 75);
        assert_eq!(Fault::Service(Error::invalid("x", "y", "z")).exit_code(), 64);
    }

    #[test]
    fn only_what_may_pass_is_tried_again() {
        let default = Duration::from_secs(2);
        assert_eq!(problem(503).retry_after(default), Some(default));
        assert_eq!(problem(422).retry_after(default), None);
        let asked = Problem { status: 429, retry_after: Some(Duration::from_secs(9)), ..Problem::default() };
        assert_eq!(Fault::Problem(Box::new(asked)).retry_after(default), Some(Duration::from_secs(9)));
    }

    #[test]
    fn a_lower_limit_is_taken_from_the_refusal() {
        let refused = |status, field: &str, limit| {
            let field = Some(field.to_owned());
            Fault::Problem(Box::new(Problem { status, field, limit, ..Problem::default() }))
        };
        assert_eq!(refused(422, "limit", Some(20)).limit("limit", 100), Some(20));
        for other in [
            refused(422, "limit", Some(100)),
            refused(422, "limit", Some(0)),
            refused(422, "limit", None),
            refused(422, "cursor", Some(20)),
            refused(429, "limit", Some(20)),
            Fault::Usage("limit".to_owned()),
        ] {
            assert_eq!(other.limit("limit", 100), None, "{other:?}");
        }
    }

    #[test]
    fn a_problem_reads_well() {
        let text = r#"{"type":"x","title":"Invalid value","status":422,"code":"too_large","detail":"is too large",
            "field":"data","request_id":"r1","limit":3}"#;
        let problem: Problem = serde_json::from_str(text).expect("a problem");
        let expected = "Invalid value (422)\n  detail: is too large\n  code: too_large\n  field: data\n  request: r1";
        assert_eq!(problem.to_string(), expected);
    }
}
