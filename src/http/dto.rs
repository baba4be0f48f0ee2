//! What several routes say: times, items, counts, raw JSON.

use serde::ser::SerializeStruct as _;
use serde::{Serialize, Serializer};
use utoipa::ToSchema;

use crate::domain::view::Count;
use crate::domain::{Counts, PostId, Time};
use crate::error::{Error, Result};
use crate::reader::Item;

/// An instant as RFC 3339 in UTC with milliseconds: `2026-11-22T10:00:00.000Z`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stamp(pub Time);

const STAMP_BYTES: usize = 24;

impl Stamp {
    fn write(self) -> [u8; STAMP_BYTES] {
        // Beyond the years that four digits can write, the last one that they can.
        const YEAR_9999_END_MS: i64 = 253_402_300_799_999;
        let millis = self.0.millis().clamp(0, YEAR_9999_END_MS);
        let (days, in_day) = (millis / 86_400_000, millis % 86_400_000);
        let (year, month, day) = civil(days);
        let mut out = *b"0000-00-00T00:00:00.000Z";
        for (at, digits, value) in [
            (0, 4, year),
            (5, 2, month),
            (8, 2, day),
            (11, 2, in_day / 3_600_000),
            (14, 2, in_day / 60_000 % 60),
            (17, 2, in_day / 1_000 % 60),
            (20, 3, in_day % 1_000),
        ] {
            let mut rest = value;
            for digit in out[at..at + digits].iter_mut().rev() {
                *digit = b'0' + u8::try_from(rest % 10).unwrap_or(0);
                rest /= 10;
            }
        }
        out
    }
}

/// Year, month and day of a number of days since 1970-01-01, not before it (Howard Hinnant's `civil_from_days`).
fn civil(days: i64) -> (i64, i64, i64) {
    let shifted = days + 719_468;
    let era = shifted / 146_097;
    let day_of_era = shifted % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

impl Serialize for Stamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let bytes = self.write();
        serializer.serialize_str(std::str::from_utf8(&bytes).unwrap_or_default())
    }
}

/// Parses RFC 3339; finer than a millisecond is cut off, so that what comes out is what went in.
pub(super) fn parse_time(field: &str, text: &str) -> Result<Time> {
    let parsed = time::OffsetDateTime::parse(text, &time::format_description::well_known::Rfc3339);
    let parsed = parsed.map_err(|e| {
        let detail = format!("must be a time such as 2026-11-22T10:00:00Z, is {:?}", super::params::shortened(text));
        Error::invalid("invalid_time", field, detail).with_source(e)
    })?;
    let millis = parsed.unix_timestamp_nanos().div_euclid(1_000_000);
    Ok(Time::from_millis(i64::try_from(millis).unwrap_or(i64::MAX)))
}

/// Text that is JSON already, passed through byte for byte.
#[derive(Clone, Copy, Debug)]
pub(super) struct RawJson<'a>(pub &'a str);

impl Serialize for RawJson<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        // What serde_json's own RawValue does. Making one of those would check again what was checked at publish;
        // a test holds the two together.
        const TOKEN: &str = "$serde_json::private::RawValue";
        let mut raw = serializer.serialize_struct(TOKEN, 1)?;
        raw.serialize_field(TOKEN, self.0)?;
        raw.end()
    }
}

/// A post's id as text.
#[derive(Clone, Copy, Debug)]
pub(super) struct Id(pub PostId);

impl Serialize for Id {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut buffer = [0; uuid::fmt::Hyphenated::LENGTH];
        let id = uuid::Uuid::from_bytes(*self.0.as_bytes());
        serializer.serialize_str(id.as_hyphenated().encode_lower(&mut buffer))
    }
}

/// Who did what a post tells.
#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
#[schema(as = Actor)]
pub(super) struct ActorBody<'a> {
    /// Whatever the producer calls them.
    #[schema(example = "ana")]
    pub id: &'a str,
}

/// A count that stops at its cap.
#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
#[schema(as = Count)]
pub(super) struct CountBody {
    /// The number, at most 99.
    #[schema(example = 3, maximum = 99)]
    value: u32,
    /// There are more than that.
    capped: bool,
}

impl From<Count> for CountBody {
    fn from(count: Count) -> Self {
        Self { value: count.value, capped: count.capped }
    }
}

/// The counts of an inbox, in the order that bodies have them.
pub(super) fn counts(counts: Counts) -> (CountBody, CountBody) {
    (counts.unseen.into(), counts.unread.into())
}

/// One item of an inbox. What is not set is null.
#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
#[schema(as = Item)]
pub(super) struct ItemBody<'a> {
    #[schema(value_type = String, format = "uuid", example = "019ab0c4-6f80-7a3c-8f5e-0c1d2e3f4a5b")]
    post_id: Id,
    /// One more with every edit.
    #[schema(example = 1)]
    version: u32,
    /// What kind of notification it is; for the client to interpret.
    #[serde(rename = "type")]
    #[schema(example = "story.posted")]
    kind: &'a str,
    #[schema(required = true)]
    actor: Option<ActorBody<'a>>,
    /// The payload, as published.
    #[schema(value_type = Object, example = json!({"title": "Dawn"}))]
    data: RawJson<'a>,
    /// Groups posts on the client.
    #[schema(required = true)]
    thread_key: Option<&'a str>,
    #[schema(value_type = String, format = DateTime)]
    published_at: Stamp,
    #[schema(required = true, value_type = Option<String>, format = DateTime)]
    expires_at: Option<Stamp>,
    #[schema(required = true, value_type = Option<String>, format = DateTime)]
    seen_at: Option<Stamp>,
    #[schema(required = true, value_type = Option<String>, format = DateTime)]
    read_at: Option<Stamp>,
    #[schema(required = true, value_type = Option<String>, format = DateTime)]
    archived_at: Option<Stamp>,
}

impl<'a> From<&'a Item> for ItemBody<'a> {
    fn from(item: &'a Item) -> Self {
        let Item { post, marks } = item;
        Self {
            post_id: Id(post.id),
            version: post.version,
            kind: &post.kind,
            actor: post.actor.as_deref().map(|id| ActorBody { id }),
            data: RawJson(&post.data),
            thread_key: post.thread_key.as_deref(),
            published_at: Stamp(post.id.time()),
            expires_at: post.expires_at.map(Stamp),
            seen_at: marks.seen_at.map(Stamp),
            read_at: marks.read_at.map(Stamp),
            archived_at: marks.archived_at.map(Stamp),
        }
    }
}

#[cfg(test)]
mod tests {
    use time::format_description::well_known::Rfc3339;

    use super::*;

    fn text(value: impl Serialize) -> String {
        serde_json::to_string(&value).expect("writable")
    }

    #[test]
    fn times_are_written_as_the_time_crate_reads_them() {
        assert_eq!(text(Stamp(Time::from_millis(1_763_805_600_007))), "\"2025-11-22T10:00:00.007Z\"");
        assert_eq!(text(Stamp(Time::ZERO)), "\"1970-01-01T00:00:00.000Z\"");
        assert_eq!(text(Stamp(Time::MAX)), "\"9999-12-31T23:59:59.999Z\"");
        // Every eleventh hour and a bit of two centuries: leap years, ends of months, all digits.
        for n in 0..160_000_i64 {
            let millis = n * 39_600_123;
            let written = text(Stamp(Time::from_millis(millis)));
            let read = time::OffsetDateTime::parse(written.trim_matches('"'), &Rfc3339).expect("RFC 3339");
            assert_eq!(read.unix_timestamp_nanos(), i128::from(millis) * 1_000_000, "{written}");
        }
    }

    #[test]
    fn times_are_read_to_the_millisecond() {
        for text in ["2025-11-22T10:00:00.0079Z", "2025-11-22T12:00:00.007+02:00", "2025-11-22t10:00:00.007z"] {
            assert_eq!(parse_time("t", text).expect(text), Time::from_millis(1_763_805_600_007));
        }
        for text in ["", "now", "2025-11-22", "2025-11-22T10:00:00", "2025-13-22T10:00:00Z", "1763805600"] {
            assert_eq!(parse_time("t", text).expect_err(text).code(), "invalid_time");
        }
    }

    #[test]
    fn raw_json_passes_as_it_is() {
        let data = "{ \"b\":1.0,\n \"a\" : \"\\u00e9\" }";
        let raw = serde_json::value::RawValue::from_string(data.to_owned()).expect("JSON");
        assert_eq!(text(vec![RawJson(data)]), format!("[{data}]"));
        assert_eq!(text(RawJson(data)), text(raw));
    }
}
