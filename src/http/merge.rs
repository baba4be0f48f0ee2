//! JSON merge patches (RFC 7396) on the text of `data`: what a patch does not name keeps its spelling and its place.
//!
//! Parsed values would not do: as an `f64` a long number becomes another one, and a map forgets the order.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::data;
use crate::error::{Error, Result};

/// A patch for `data`: an object, nested no deeper than `data` may be.
#[derive(Debug)]
pub(super) struct Patch(String);

impl Patch {
    /// Checks a patch as `data` is checked, before anything follows it down.
    pub(super) fn check(raw: Box<RawValue>) -> Result<Self> {
        data::check(Some(raw)).map(Self)
    }

    /// How many bytes of text it has.
    pub(super) fn bytes(&self) -> u64 {
        self.0.len() as u64
    }

    /// The text of `stored` with the patch applied: checked data again, since it nests no deeper than the deeper of the
    /// two and has no token that neither has.
    pub(super) fn apply(&self, stored: &str) -> Result<String> {
        let unreadable = |e: serde_json::Error| Error::internal("stored data cannot be read").with_source(e);
        let target: Members<'_> = serde_json::from_str(stored).map_err(unreadable)?;
        let patch = Members::of(&self.0).map_err(unreadable)?;
        let mut merged = String::with_capacity(stored.len() + self.0.len());
        merge(&target, &patch, &mut merged).map_err(unreadable)?;
        Ok(merged)
    }
}

/// Writes `target` as `patch` leaves it: what was there in its order, then what is new. It goes as deep as the patch has
/// objects, and takes everything else as text.
fn merge<'a>(target: &Members<'a>, patch: &Members<'a>, out: &mut String) -> serde_json::Result<()> {
    let there = target.iter().map(|(name, key, value)| (key, value, patch.value(name)));
    let new = patch.iter().filter(|(name, ..)| target.value(name).is_none());
    let new = new.map(|(_, key, change)| (key, "", Some(change)));
    out.push('{');
    let mut is_first = true;
    for (key, before, change) in there.chain(new) {
        if change == Some("null") {
            continue;
        }
        if !is_first {
            out.push(',');
        }
        is_first = false;
        out.push_str(key);
        out.push(':');
        match change {
            None => out.push_str(before),
            // Also where there is no object yet: a null must not get in with a new one.
            Some(change) if change.starts_with('{') => merge(&Members::of(before)?, &Members::of(change)?, out)?,
            Some(change) => out.push_str(change),
        }
    }
    out.push('}');
    Ok(())
}

/// The members of an object, names and values as they are spelled. Of repeated ones the last counts, as with most
/// parsers.
#[derive(Default)]
struct Members<'a> {
    /// Each name once, read and as it is spelled, in the order of their first places.
    names: Vec<(Cow<'a, str>, &'a str)>,
    values: HashMap<Cow<'a, str>, &'a str>,
}

impl<'a> Members<'a> {
    /// Of the value that `text` is; none if that is no object.
    fn of(text: &'a str) -> serde_json::Result<Self> {
        if text.starts_with('{') { serde_json::from_str(text) } else { Ok(Self::default()) }
    }

    fn put(&mut self, key: &'a str, value: &'a str) -> serde_json::Result<()> {
        // Two spellings of a name are one name.
        let name: Cow<'a, str> = if key.contains('\\') {
            Cow::Owned(serde_json::from_str::<String>(key)?)
        } else {
            Cow::Borrowed(key.trim_matches('"'))
        };
        if self.values.insert(name.clone(), value).is_none() {
            self.names.push((name, key));
        }
        Ok(())
    }

    fn value(&self, name: &str) -> Option<&'a str> {
        self.values.get(name).copied()
    }

    /// Each name, its spelling and its value.
    fn iter(&self) -> impl Iterator<Item = (&str, &'a str, &'a str)> {
        self.names.iter().filter_map(move |(name, key)| Some((&**name, *key, self.value(name)?)))
    }
}

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(MembersVisitor)
    }
}

struct MembersVisitor;

impl<'de> Visitor<'de> for MembersVisitor {
    type Value = Members<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Members<'de>, A::Error> {
        let mut members = Members::default();
        while let Some((key, value)) = entries.next_entry::<&'de RawValue, &'de RawValue>()? {
            members.put(key.get(), value.get()).map_err(<A::Error as serde::de::Error>::custom)?;
        }
        Ok(members)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Map, Value};

    use super::*;

    fn check(patch: &str) -> Result<Patch> {
        Patch::check(RawValue::from_string(patch.to_owned()).expect("JSON"))
    }

    fn patched(target: &str, patch: &str) -> String {
        check(patch).expect("a patch").apply(target).expect("merged")
    }

    fn parsed(text: &str) -> Value {
        serde_json::from_str(text).expect("JSON")
    }

    /// The examples of RFC 7396, appendix A, as far as both sides are objects.
    #[test]
    fn patches_merge_as_the_rfc_says() {
        for (target, patch, result) in [
            (r#"{"a":"b"}"#, r#"{"a":"c"}"#, r#"{"a":"c"}"#),
            (r#"{"a":"b"}"#, r#"{"b":"c"}"#, r#"{"a":"b","b":"c"}"#),
            (r#"{"a":"b"}"#, r#"{"a":null}"#, r#"{}"#),
            (r#"{"a":"b","b":"c"}"#, r#"{"a":null}"#, r#"{"b":"c"}"#),
            (r#"{"a":["b"]}"#, r#"{"a":"c"}"#, r#"{"a":"c"}"#),
            (r#"{"a":"c"}"#, r#"{"a":["b"]}"#, r#"{"a":["b"]}"#),
            (r#"{"a":{"b":"c"}}"#, r#"{"a":{"b":"d","c":null}}"#, r#"{"a":{"b":"d"}}"#),
            (r#"{"a":[{"b":"c"}]}"#, r#"{"a":[1]}"#, r#"{"a":[1]}"#),
            (r#"{"e":null}"#, r#"{"a":1}"#, r#"{"e":null,"a":1}"#),
            (r#"{}"#, r#"{"a":{"bb":{"ccc":null}}}"#, r#"{"a":{"bb":{}}}"#),
        ] {
            assert_eq!(patched(target, patch), result, "{target} with {patch}");
        }
    }

    #[test]
    fn what_is_not_patched_keeps_its_text_and_its_place() {
        for (target, patch, result) in [
            (r#"{"id":123456789012345678901234,"t":1}"#, r#"{"t":2}"#, r#"{"id":123456789012345678901234,"t":2}"#),
            (r#"{"z":1.50,"a":2,"m":3}"#, r#"{"b":1E2,"a":null,"x":null}"#, r#"{"z":1.50,"m":3,"b":1E2}"#),
            (
                r#"{"z":{"y":0.10000000000000000001,"b":[1.0, {"k": null}],"\u00e9":-0},"a":"\u00e9"}"#,
                r#"{"z":{"n":10000000000000000000000,"b":null}}"#,
                r#"{"z":{"y":0.10000000000000000001,"\u00e9":-0,"n":10000000000000000000000},"a":"\u00e9"}"#,
            ),
            (r#"{"a":{"b": 1.0 , "c": [ ]}}"#, r#"{"d":{}}"#, r#"{"a":{"b": 1.0 , "c": [ ]},"d":{}}"#),
            (" { \"a\" : 1 ,\n\"b\" : [ 2 ] } ", r#"{ "c" : 3 }"#, r#"{"a":1,"b":[ 2 ],"c":3}"#),
            // Names that are one name, and one that serde_json has a use of its own for.
            (r#"{"\u0061":1,"\"":2,"":3}"#, r#"{"a":4,"\u0022":null,"":5}"#, r#"{"\u0061":4,"":5}"#),
            (
                r#"{"$serde_json::private::RawValue":1,"a":1}"#,
                r#"{"a":2}"#,
                r#"{"$serde_json::private::RawValue":1,"a":2}"#,
            ),
        ] {
            assert_eq!(patched(target, patch), result, "{target} with {patch}");
        }
    }

    #[test]
    fn of_repeated_names_the_last_counts() {
        assert_eq!(patched(r#"{"a":1,"b":2,"a":3}"#, "{}"), r#"{"a":3,"b":2}"#);
        assert_eq!(patched(r#"{"a":1}"#, r#"{"a":null,"b":{"c":1},"a":4,"b":{"d":2}}"#), r#"{"a":4,"b":{"d":2}}"#);
        assert_eq!(patched(r#"{"a":{"b":1},"a":{"c":2}}"#, r#"{"a":{"d":3}}"#), r#"{"a":{"c":2,"d":3}}"#);
    }

    #[test]
    fn a_patch_is_checked_before_it_is_followed() {
        let nested = |depth: usize| format!("{}1{}", "{\"a\":".repeat(depth), "}".repeat(depth));
        assert_eq!(patched("{}", &nested(64)), nested(64));
        assert_eq!(patched(&nested(64), &nested(64)), nested(64));
        for (bad, code) in [
            ("[1]", "invalid_value"),
            ("\"x\"", "invalid_value"),
            (r#"{"a":1e999}"#, "malformed_json"),
            (&nested(65), "data_too_deep"),
            (&nested(200), "data_too_deep"),
            (&nested(30_000), "data_too_deep"),
        ] {
            let error = check(bad).expect_err("bad");
            assert_eq!((error.code(), error.field()), (code, Some("data")));
        }
        assert_eq!(check("{}").expect("a patch").apply("{").expect_err("broken").code(), "internal");
    }

    fn object(value: BoxedStrategy<Value>) -> BoxedStrategy<Value> {
        let name = prop::sample::select(vec!["a", "b", "\"", "\u{e9}\\", "null"]).prop_map(str::to_owned);
        let members = prop::collection::btree_map(name, value, 0..4);
        members.prop_map(|members| Value::Object(members.into_iter().collect())).boxed()
    }

    /// Values whose numbers an `f64` can hold.
    fn value() -> BoxedStrategy<Value> {
        let plain = prop_oneof![
            2 => Just(Value::Null),
            1 => any::<bool>().prop_map(Value::from),
            1 => any::<i64>().prop_map(Value::from),
            1 => any::<i32>().prop_map(|eighths| Value::from(f64::from(eighths) / 8.0)),
            1 => "[a-c\"\\\\{}:,]{0,4}".prop_map(Value::from),
        ];
        let nested = plain.prop_recursive(4, 32, 4, |inner| {
            let list = prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from);
            prop_oneof![2 => object(inner), 1 => list]
        });
        nested.boxed()
    }

    /// The algorithm of RFC 7396, section 2.
    fn merged(target: Value, patch: Value) -> Value {
        let Value::Object(patch) = patch else { return patch };
        let mut target = if let Value::Object(target) = target { target } else { Map::new() };
        for (name, value) in patch {
            let before = target.remove(&name).unwrap_or_default();
            if !value.is_null() {
                target.insert(name, merged(before, value));
            }
        }
        Value::Object(target)
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn texts_merge_as_values_do(target in object(value()), patch in object(value())) {
            let text = patched(&target.to_string(), &patch.to_string());
            prop_assert_eq!(parsed(&text), merged(target, patch), "{}", text);
        }
    }
}
