//! Errors are values: a kind to decide by, a stable code to look up, and a sentence to read.

use std::any::Any;
use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

/// The crate's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What a caller can do about an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The request is not understood: malformed JSON, a broken cursor.
    Malformed,
    /// Understood, but a value is out of its limits.
    Invalid,
    /// Nobody has shown who they are, or not in a way that can be believed.
    Unauthenticated,
    /// It is known who asks, and they may not.
    Forbidden,
    /// Too much, too often; later it may be taken.
    Limited,
    /// Nothing of that name.
    NotFound,
    /// It clashes with the present state.
    Conflict,
    /// A precondition (`If-Match`) is missing or did not hold.
    Precondition,
    /// What the client holds cannot be brought up to date piecewise; it must read afresh.
    Resync,
    /// A dependency cannot be used now; trying again later may work.
    Unavailable,
    /// The disk is full or nearly so; reads go on.
    StorageFull,
    /// Bytes in the store that this release cannot read; trying again will not help.
    Corrupt,
    /// A bug or a broken machine.
    Internal,
}

/// An error with everything a problem document needs.
#[derive(Debug)]
pub struct Error(Box<Inner>);

#[derive(Debug)]
struct Inner {
    kind: Kind,
    code: &'static str,
    detail: Cow<'static, str>,
    field: Option<String>,
    limit: Option<(u64, u64)>,
    retry_after: Option<Duration>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// An error of `kind` with a stable `code` (see [`crate::http::codes`]) and a sentence.
    pub fn new(kind: Kind, code: &'static str, detail: impl Into<Cow<'static, str>>) -> Self {
        Self(Box::new(Inner {
            kind,
            code,
            detail: detail.into(),
            field: None,
            limit: None,
            retry_after: None,
            source: None,
        }))
    }

    /// A value that cannot be taken, with the field it stood in.
    pub fn invalid(code: &'static str, field: &str, detail: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Kind::Invalid, code, detail).with_field(field)
    }

    /// A value beyond a limit: names the field, the limit and the value.
    pub fn limit(
        code: &'static str,
        field: &str,
        detail: impl Into<Cow<'static, str>>,
        limit: u64,
        value: u64,
    ) -> Self {
        let mut error = Self::invalid(code, field, detail);
        error.0.limit = Some((limit, value));
        error
    }

    /// Nothing of that name.
    pub fn not_found(code: &'static str, detail: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Kind::NotFound, code, detail)
    }

    /// The client must read its inbox afresh; `reason` is one of the documented words.
    pub fn resync(reason: &'static str) -> Self {
        Self::new(Kind::Resync, "resync_required", reason)
    }

    /// A dependency that cannot be used now.
    pub fn unavailable(code: &'static str, detail: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Kind::Unavailable, code, detail)
    }

    /// A bug or a broken machine: the detail goes to the log, never to the client.
    pub fn internal(detail: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Kind::Internal, "internal", detail)
    }

    /// A panic that was caught: what panicked, and what the panic says.
    pub fn panicked(what: &str, panic: &(dyn Any + Send)) -> Self {
        let text = panic.downcast_ref::<&str>().copied();
        let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
        Self::internal(format!("{what} panicked: {}", text.unwrap_or("it does not say why")))
    }

    /// Adds the name of the field at fault.
    pub fn with_field(mut self, field: &str) -> Self {
        self.0.field = Some(field.to_owned());
        self
    }

    /// Puts `prefix` before the field's name, for a value inside a list.
    pub fn inside(mut self, prefix: &str) -> Self {
        self.0.field = Some(match self.0.field.take() {
            Some(field) => format!("{prefix}.{field}"),
            None => prefix.to_owned(),
        });
        self
    }

    /// Adds how long to wait before trying again.
    pub fn with_retry_after(mut self, after: Duration) -> Self {
        self.0.retry_after = Some(after);
        self
    }

    /// Adds the error that caused this one.
    pub fn with_source(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// What a caller can do about it.
    pub fn kind(&self) -> Kind {
        self.0.kind
    }

    /// The stable code.
    pub fn code(&self) -> &'static str {
        self.0.code
    }

    /// The sentence.
    pub fn detail(&self) -> &str {
        &self.0.detail
    }

    /// The field at fault.
    pub fn field(&self) -> Option<&str> {
        self.0.field.as_deref()
    }

    /// The limit and the value that was beyond it.
    pub fn limit_and_value(&self) -> Option<(u64, u64)> {
        self.0.limit
    }

    /// How long to wait before trying again.
    pub fn retry_after(&self) -> Option<Duration> {
        self.0.retry_after
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(field) = &self.0.field {
            write!(f, "{field}: ")?;
        }
        f.write_str(&self.0.detail)?;
        if let Some(source) = &self.0.source {
            write!(f, ": {source}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_deref().map(|source| source as _)
    }
}
