//! The `data` of a post: one JSON object, checked once when it comes in and passed through as text from then on.

use std::cell::Cell;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::Value;
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};

use super::json::malformed;
use crate::error::{Error, Result};

/// How deep `data` may nest. Clients' parsers have limits too, often of 128 for the whole answer.
pub(super) const DEPTH_MAX: u32 = 64;

/// What a post without `data` has.
pub(super) const EMPTY: &str = "{}";

/// Checks that `raw` is an object which every parser can read, and takes its text as it is.
pub(super) fn check(raw: Option<Box<RawValue>>) -> Result<String> {
    let Some(raw) = raw else { return Ok(EMPTY.to_owned()) };
    let text = raw.get();
    if !text.starts_with('{') {
        return Err(Error::invalid("invalid_value", "data", "must be a JSON object"));
    }
    let too_deep = Cell::new(false);
    let mut deserializer = serde_json::Deserializer::from_str(text);
    match (Checked { depth: 1, too_deep: &too_deep }).deserialize(&mut deserializer) {
        Ok(()) => Ok(Box::<str>::from(raw).into_string()),
        Err(_) if too_deep.get() => {
            let (limit, value) = (u64::from(DEPTH_MAX), u64::from(DEPTH_MAX) + 1);
            let detail = format!("must nest at most {limit} deep, nests {value} deep or more");
            Err(Error::limit("data_too_deep", "data", detail, limit, value))
        }
        // The text was skipped over before; only now are escapes and numbers looked at.
        Err(error) => Err(malformed(&error).with_field("data")),
    }
}

/// Walks over a value and keeps nothing of it.
#[derive(Clone, Copy)]
struct Checked<'a> {
    depth: u32,
    too_deep: &'a Cell<bool>,
}

impl Checked<'_> {
    fn inner<E: serde::de::Error>(self) -> Result<Self, E> {
        if self.depth > DEPTH_MAX {
            self.too_deep.set(true);
            return Err(E::custom("too deep"));
        }
        Ok(Self { depth: self.depth + 1, ..self })
    }
}

impl<'de> DeserializeSeed<'de> for Checked<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Checked<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        let inner = self.inner()?;
        while items.next_element_seed(inner)?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<(), A::Error> {
        let inner = self.inner()?;
        // A key is a string, which `inner` takes as it takes any value.
        while entries.next_key_seed(inner)?.is_some() {
            entries.next_value_seed(inner)?;
        }
        Ok(())
    }
}

/// SHA-256 over parts, none of which can be taken for two others.
#[derive(Debug)]
pub(super) struct Fingerprint(Sha256);

impl Fingerprint {
    /// Of nothing yet. The number changes whenever the form does.
    pub(super) fn new() -> Self {
        Self(Sha256::new_with_prefix(b"fanfold request 2\0"))
    }

    /// Adds a part that is there, or one that is not.
    pub(super) fn text(mut self, part: Option<&str>) -> Self {
        match part {
            Some(text) => {
                self.0.update((text.len() as u64 + 1).to_be_bytes());
                self.0.update(text.as_bytes());
            }
            None => self.0.update(0_u64.to_be_bytes()),
        }
        self
    }

    /// Adds a number that is there, or one that is not.
    pub(super) fn number(self, part: Option<i128>) -> Self {
        self.text(part.map(|number| number.to_string()).as_deref())
    }

    /// Adds JSON text: spelled otherwise (order of keys, spaces, escapes) it is still the same part. A number is
    /// what it is spelled: read as `f64`, two that differ in a late digit would be one.
    pub(super) fn json(self, text: &str) -> Self {
        // Checked data is always JSON; anything else would be its own text.
        let value = serde_json::from_str(&tagged(text)).unwrap_or_else(|_| Value::from(text));
        let mut canonical = String::with_capacity(text.len());
        write_sorted(&value, &mut canonical);
        self.text(Some(&canonical))
    }

    /// Adds texts, how many there are, and their order.
    pub(super) fn texts<'a>(self, parts: impl ExactSizeIterator<Item = &'a str>) -> Self {
        let counted = self.number(Some(parts.len() as i128));
        parts.fold(counted, |all, part| all.text(Some(part)))
    }

    /// The hash.
    pub(super) fn finish(self) -> [u8; 32] {
        self.0.finalize().into()
    }
}

/// JSON text with each number `1` as the string `"n1"`, each string `"x"` as `"sx"`: parsers leave the digits alone, and
/// nothing that was different becomes the same.
fn tagged(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + text.len() / 2);
    let mut rest = text;
    while let Some(at) = rest.find(|c: char| c == '"' || c == '-' || c.is_ascii_digit()) {
        let (before, token) = rest.split_at(at);
        out.push_str(before);
        if let Some(string) = token.strip_prefix('"') {
            let mut is_escaped = false;
            let end = string.find(|c: char| {
                let is_end = c == '"' && !is_escaped;
                is_escaped = c == '\\' && !is_escaped;
                is_end
            });
            let (content, after) = string.split_at(end.unwrap_or(string.len()));
            out.extend(["\"s", content, "\""]);
            rest = after.strip_prefix('"').unwrap_or(after);
        } else {
            let end = token.find(|c: char| !matches!(c, '0'..='9' | '-' | '+' | '.' | 'e' | 'E'));
            let (number, after) = token.split_at(end.unwrap_or(token.len()));
            out.extend(["\"n", number, "\""]);
            rest = after;
        }
    }
    out.push_str(rest);
    out
}

fn write_sorted(value: &Value, out: &mut String) {
    match value {
        Value::Object(entries) => {
            let mut sorted: Vec<_> = entries.iter().collect();
            sorted.sort_unstable_by_key(|(key, _)| *key);
            out.push('{');
            for (key, value) in sorted {
                out.push_str(&Value::from(key.as_str()).to_string());
                out.push(':');
                write_sorted(value, out);
                out.push(',');
            }
            out.push('}');
        }
        Value::Array(items) => {
            out.push('[');
            for item in items {
                write_sorted(item, out);
                out.push(',');
            }
            out.push(']');
        }
        plain => out.push_str(&plain.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(text: &str) -> Box<RawValue> {
        RawValue::from_string(text.to_owned()).expect("JSON")
    }

    fn nested(depth: usize) -> String {
        format!("{{\"a\":{}{}}}", "[".repeat(depth - 1), "]".repeat(depth - 1))
    }

    #[test]
    fn data_is_an_object_that_every_parser_reads() {
        for good in ["{}", "{ \"a\": [1, -2.5e3, null, true, \"\\ud83d\\ude00\"] }", &nested(64)] {
            assert_eq!(check(Some(raw(good))).expect(good), good);
        }
        assert_eq!(check(None).expect("default"), "{}");
        for (bad, code) in [
            ("[]", "invalid_value"),
            ("\"x\"", "invalid_value"),
            ("1", "invalid_value"),
            (r#"{"a":"\ud800"}"#, "malformed_json"),
            (r#"{"\ud800":1}"#, "malformed_json"),
            (r#"{"a":1e999}"#, "malformed_json"),
            (&nested(65), "data_too_deep"),
            (&nested(30_000), "data_too_deep"),
        ] {
            let error = check(Some(raw(bad))).expect_err("bad");
            assert_eq!((error.code(), error.field()), (code, Some("data")));
        }
    }

    #[test]
    fn fingerprints_see_meaning_not_spelling() {
        let of = |text| Fingerprint::new().json(text).finish();
        assert_eq!(of(r#"{"a":1,"b":"é"}"#), of("{ \"b\": \"\\u00e9\", \"a\": 1 }"));
        assert_eq!(of(r#"{"a":"\"1","b":-1}"#), of("{\n\"\\u0062\": -1, \"a\":\"\\u00221\" }"));
        assert_eq!(of(r#"{"a":1,"a":[true,null]}"#), of(r#"{"a": [ true , null ]}"#));
        assert_ne!(of(r#"{"a":[1,2]}"#), of(r#"{"a":[2,1]}"#));
        let texts = |parts: &[&str]| Fingerprint::new().texts(parts.iter().copied()).finish();
        assert_ne!(texts(&["ab", "c"]), texts(&["a", "bc"]));
        assert_ne!(texts(&[]), texts(&[""]));
    }

    #[test]
    fn fingerprints_tell_values_apart_that_parsed_ones_would_not() {
        let of = |text| Fingerprint::new().json(text).finish();
        for (one, other) in [
            (r#"{"a":123456789012345678901234}"#, r#"{"a":123456789012345678901235}"#),
            (r#"{"a":[0.1]}"#, r#"{"a":[0.10000000000000000001]}"#),
            (r#"{"a":1}"#, r#"{"a":"1"}"#),
            (r#"{"a":1}"#, r#"{"a":"n1"}"#),
            (r#"{"a":"\\"}"#, r#"{"a":"\\\\"}"#),
            // A name that serde_json has a use of its own for.
            (r#"{"$serde_json::private::RawValue":1}"#, r#"{"$serde_json::private::RawValue":2}"#),
            (r#"{"$serde_json::private::RawValue":"{}"}"#, "{}"),
        ] {
            assert_ne!(of(one), of(other), "{one} and {other}");
        }
    }
}
