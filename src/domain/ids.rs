//! Identifiers: posts (UUIDv7), viewers and producers (opaque strings).

use std::fmt;
use std::sync::Arc;

use uuid::Uuid;

use super::time::Time;
use crate::error::{Error, Result};

/// The longest viewer id, in bytes of UTF-8.
pub const VIEWER_ID_BYTES_MAX: usize = 128;

/// A post's id: a UUIDv7 (RFC 9562) of its publish time, so that ids sort by time and need no coordination.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PostId(Uuid);

impl PostId {
    /// A fresh id for a post published at `at`; `random` supplies the ten random bytes.
    pub fn new(at: Time, random: [u8; 10]) -> Self {
        let millis = u64::try_from(at.millis()).unwrap_or(0);
        Self(uuid::Builder::from_unix_timestamp_millis(millis, &random).into_uuid())
    }

    /// From its sixteen bytes, as stored in keys.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(Uuid::from_bytes(bytes))
    }

    /// The sixteen bytes, big-endian: byte order is time order.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        self.0.as_bytes()
    }

    /// Parses the hyphenated form. Anything but a version 7 UUID is no post id.
    pub fn parse(text: &str) -> Option<Self> {
        Uuid::try_parse(text).ok().filter(|id| id.get_version_num() == 7).map(Self)
    }

    /// The publish time that the id carries, to the millisecond. This *is* the post's time: a retry that only knows
    /// the id writes the same rows.
    pub fn time(&self) -> Time {
        let b = self.0.as_bytes();
        let millis = b[..6].iter().fold(0_i64, |acc, byte| (acc << 8) | i64::from(*byte));
        Time::from_millis(millis)
    }
}

impl fmt::Display for PostId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.as_hyphenated().fmt(f)
    }
}

impl fmt::Debug for PostId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Who owns an inbox: an opaque string of 1 to 128 bytes without control characters, not `.` or `..`
/// (those cannot stand in a URL path).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ViewerId(Arc<str>);

impl ViewerId {
    /// Checks and takes `text`; the error names `field`, the limit and the value.
    pub fn parse(field: &str, text: &str) -> Result<Self> {
        check_opaque(field, "invalid_viewer_id", text)?;
        if text == "." || text == ".." {
            return Err(Error::invalid("invalid_viewer_id", field, format!("must not be {text:?}")));
        }
        Ok(Self(text.into()))
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ViewerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ViewerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// Who published a post; idempotency keys are scoped to it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProducerId(Arc<str>);

impl ProducerId {
    /// The one producer there is while no keys are configured.
    pub fn local() -> Self {
        Self("local".into())
    }

    /// Checks and takes `text`.
    pub fn parse(field: &str, text: &str) -> Result<Self> {
        check_opaque(field, "invalid_producer_id", text)?;
        Ok(Self(text.into()))
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The rule that all opaque ids share: 1..=128 bytes, no control characters. Keys of the embedded store rely on it
/// (a NUL ends the viewer's part of a key).
fn check_opaque(field: &str, code: &'static str, text: &str) -> Result<()> {
    if text.is_empty() || text.len() > VIEWER_ID_BYTES_MAX {
        return Err(Error::limit(
            code,
            field,
            format!("must have 1 to {VIEWER_ID_BYTES_MAX} bytes, has {}", text.len()),
            VIEWER_ID_BYTES_MAX as u64,
            text.len() as u64,
        ));
    }
    if let Some(c) = text.chars().find(|c| c.is_control()) {
        let detail = format!("must not contain control characters, contains U+{:04X}", u32::from(c));
        return Err(Error::invalid(code, field, detail));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn post_ids_carry_their_time_and_sort_by_it() {
        let early = PostId::new(Time::from_millis(1_700_000_000_123), [0xff; 10]);
        let late = PostId::new(Time::from_millis(1_700_000_000_124), [0; 10]);
        assert!(early < late);
        assert_eq!(early.time(), Time::from_millis(1_700_000_000_123));
        assert_eq!(PostId::parse(&early.to_string()), Some(early));
        assert_eq!(PostId::parse("7d444840-9dc0-11d1-b245-5ffdce74fad2"), None, "a version 1 UUID");
    }

    #[test]
    fn viewer_ids_are_checked() {
        assert!(ViewerId::parse("v", "ben").is_ok());
        assert!(ViewerId::parse("v", &"x".repeat(128)).is_ok());
        for bad in ["", ".", "..", "a\u{0}b", "a\nb", &"x".repeat(129)] {
            let error = ViewerId::parse("v", bad).expect_err(bad);
            assert_eq!(error.code(), "invalid_viewer_id");
            assert_eq!(error.field(), Some("v"));
        }
    }
}
