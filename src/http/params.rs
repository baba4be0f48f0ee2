//! What comes with a request besides its body: path segments, query parameters, headers. Each with errors of its own.

use std::borrow::Cow;
use std::time::Duration;

use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use crate::domain::{KeyId, Mark, PostId, Token, ViewerId};
use crate::error::{Error, Kind, Result};

/// What stays as it is in a path segment (RFC 3986, unreserved).
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// `text` as one path segment.
pub(super) fn encode_segment(text: &str) -> impl std::fmt::Display {
    utf8_percent_encode(text, SEGMENT)
}

/// The values of the query parameters `names`, in that order. Any other parameter, and any that stands twice, is refused.
pub(super) fn query<'a, const N: usize>(
    query: Option<&'a str>,
    names: [&'static str; N],
) -> Result<[Option<Cow<'a, str>>; N]> {
    let mut values = [const { None }; N];
    for pair in query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let name = decode_parameter(name)?;
        let Some(at) = names.iter().position(|known| *known == name) else {
            let detail = format!("is not a parameter of this route, which takes {}", listed(&names));
            return Err(Error::invalid("unknown_parameter", &shortened(&name), detail));
        };
        if values[at].replace(decode_parameter(value)?).is_some() {
            return Err(Error::invalid("repeated_parameter", names[at], "must not stand twice"));
        }
    }
    Ok(values)
}

fn decode_parameter(text: &str) -> Result<Cow<'_, str>> {
    if !text.bytes().any(|byte| byte == b'%' || byte == b'+') {
        return Ok(Cow::Borrowed(text));
    }
    let spaced = text.replace('+', " ");
    let decoded = percent_decode_str(&spaced).decode_utf8();
    decoded.map(|text| Cow::Owned(text.into_owned())).map_err(|_| {
        Error::new(Kind::Malformed, "malformed_query", format!("{:?} does not decode to UTF-8", shortened(text)))
    })
}

fn listed(names: &[&str]) -> String {
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

/// Enough of a client's text to recognise it.
pub(super) fn shortened(text: &str) -> String {
    const CHARS_MAX: usize = 64;
    let cut = text.char_indices().nth(CHARS_MAX).map(|(at, _)| at);
    cut.map_or_else(|| text.to_owned(), |at| format!("{}…", &text[..at]))
}

pub(super) fn segment(path: &str, index: usize) -> Result<Cow<'_, str>> {
    let raw = path.split('/').nth(index).unwrap_or_default();
    if !raw.as_bytes().contains(&b'%') {
        return Ok(Cow::Borrowed(raw));
    }
    percent_decode_str(raw).decode_utf8().map_err(|_| {
        Error::new(Kind::Malformed, "malformed_path", format!("{:?} does not decode to UTF-8", shortened(raw)))
    })
}

/// The viewer of `/v1/viewers/{viewer_id}/…`.
pub(super) fn viewer(head: &Parts) -> Result<ViewerId> {
    viewer_of(head.uri.path())
}

/// The same, of a path.
pub(super) fn viewer_of(path: &str) -> Result<ViewerId> {
    ViewerId::parse("viewer_id", &segment(path, 3)?)
}

/// The key of `/v1/keys/{key_id}`. What can be no key's id is an id that there is no key of.
pub(super) fn key(head: &Parts) -> Result<KeyId> {
    let text = segment(head.uri.path(), 3)?;
    // Without repeating it: somebody may have put the whole key there.
    KeyId::parse(&text).ok_or_else(|| Error::not_found("key_not_found", "there is no key of that id"))
}

/// The post of `/v1/posts/{post_id}`.
pub(super) fn post(head: &Parts) -> Result<PostId> {
    post_id("post_id", &segment(head.uri.path(), 3)?)
}

/// The post and the mark of `/v1/viewers/{viewer_id}/inbox/{post_id}/{mark}`.
pub(super) fn post_and_mark(head: &Parts) -> Result<(PostId, Mark)> {
    let path = head.uri.path();
    Ok((post_id("post_id", &segment(path, 5)?)?, mark("mark", &segment(path, 6)?)?))
}

/// A post's id out of `field`.
pub(super) fn post_id(field: &str, text: &str) -> Result<PostId> {
    PostId::parse(text).ok_or_else(|| {
        Error::invalid("invalid_post_id", field, format!("must be a UUID of version 7, is {:?}", shortened(text)))
    })
}

/// A mark's name out of `field`.
pub(super) fn mark(field: &str, text: &str) -> Result<Mark> {
    Mark::from_name(text).ok_or_else(|| {
        Error::invalid("invalid_mark", field, format!("must be seen, read or archived, is {:?}", shortened(text)))
    })
}

/// `true` or `false` out of a query parameter; `None` if it is not there.
pub(super) fn flag(field: &str, text: Option<&str>) -> Result<Option<bool>> {
    match text {
        None => Ok(None),
        Some("true") => Ok(Some(true)),
        Some("false") => Ok(Some(false)),
        Some(other) => {
            let detail = format!("must be true or false, is {:?}", shortened(other));
            Err(Error::invalid("invalid_value", field, detail))
        }
    }
}

/// A whole number of `min..=max` out of a query parameter.
pub(super) fn whole(code: &'static str, field: &str, text: &str, min: u32, max: u32) -> Result<u32> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits {
        let detail = format!("must be a whole number from {min} to {max}, is {:?}", shortened(text));
        return Err(Error::invalid(code, field, detail));
    }
    // Only too many digits are left to fail here.
    let value: u64 = text.parse().unwrap_or(u64::MAX);
    match u32::try_from(value) {
        Ok(value) if (min..=max).contains(&value) => Ok(value),
        _ => {
            let limit = if value > u64::from(max) { max } else { min };
            Err(Error::limit(code, field, format!("must be {min} to {max}, is {text}"), u64::from(limit), value))
        }
    }
}

/// The token a client holds, and the tag to repeat when it is current.
#[derive(Debug)]
pub(super) struct Held {
    /// What is compared.
    pub token: Token,
    /// The weak entity tag of it.
    pub etag: HeaderValue,
}

impl Held {
    /// From `?since=` or, without it, from `If-None-Match`. A tag that is no token of ours just does not match.
    pub(super) fn find(since: Option<&str>, headers: &HeaderMap) -> Result<Option<Self>> {
        if let Some(text) = since {
            let token = Token::parse("since", text)?;
            return Ok(Some(Self { token, etag: weak_etag(text) }));
        }
        let tags = headers.get_all(header::IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
        let texts = tags.flat_map(|tags| tags.split(',')).filter_map(tag_text);
        Ok(texts
            .filter_map(|text| Some((Token::parse("If-None-Match", text).ok()?, text)))
            .next()
            .map(|(token, text)| Self { token, etag: weak_etag(text) }))
    }
}

fn tag_text(tag: &str) -> Option<&str> {
    let tag = tag.trim();
    tag.strip_prefix("W/").unwrap_or(tag).strip_prefix('"')?.strip_suffix('"')
}

/// `W/"text"`; `text` is a token, so it can stand in a header.
pub(super) fn weak_etag(text: &str) -> HeaderValue {
    let mut tag = Vec::with_capacity(text.len() + 4);
    tag.extend_from_slice(b"W/\"");
    tag.extend_from_slice(text.as_bytes());
    tag.push(b'"');
    HeaderValue::from_maybe_shared(bytes::Bytes::from(tag)).expect("a token is visible ASCII")
}

/// How long a request may wait for something to happen.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wait {
    /// Not at all, if zero.
    pub time: Duration,
    /// It came as a preference, and the answer says that it was heard.
    pub preferred: bool,
}

impl Wait {
    /// From `?wait=`, which is refused beyond the limit, or from `Prefer: wait=`, which is cut to it.
    pub(super) fn find(wait: Option<&str>, headers: &HeaderMap, seconds_max: u32) -> Result<Self> {
        if let Some(text) = wait {
            let seconds = whole("invalid_wait", "wait", text, 0, seconds_max)?;
            return Ok(Self { time: Duration::from_secs(u64::from(seconds)), preferred: false });
        }
        let preferred = preferred_wait(headers);
        let seconds = preferred.unwrap_or(0).min(u64::from(seconds_max));
        Ok(Self { time: Duration::from_secs(seconds), preferred: preferred.is_some() })
    }

    /// `Preference-Applied`, if there was a preference.
    pub(super) fn applied(&self) -> Option<(HeaderName, HeaderValue)> {
        let value = || HeaderValue::try_from(format!("wait={}", self.time.as_secs())).ok();
        let name = HeaderName::from_static("preference-applied");
        self.preferred.then(value).flatten().map(|value| (name, value))
    }
}

/// The preference `wait` (RFC 7240), in seconds. Of several the first counts, whatever line it is on.
fn preferred_wait(headers: &HeaderMap) -> Option<u64> {
    let lines = headers.get_all("prefer").iter().filter_map(|value| value.to_str().ok());
    let (_, seconds) = lines.flat_map(preferences).find(|(name, _)| name.eq_ignore_ascii_case("wait"))?;
    seconds.parse().ok()
}

/// The preferences of a line and their parameters, each with its value, which is empty where there is none.
fn preferences(line: &str) -> impl Iterator<Item = (&str, &str)> {
    let mut quoted = false;
    let each = line.split(move |c: char| {
        quoted ^= c == '"';
        !quoted && matches!(c, ',' | ';')
    });
    each.map(|one| {
        let (name, value) = one.split_once('=').unwrap_or((one, ""));
        let value = value.trim();
        let unquoted = value.strip_prefix('"').and_then(|value| value.strip_suffix('"'));
        (name.trim(), unquoted.unwrap_or(value))
    })
}

/// What `If-Match` demands of a post.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum IfMatch {
    /// `*`: whatever its version.
    Any,
    /// This version; 0, which no post has, for a tag that names none.
    Version(u32),
}

impl IfMatch {
    /// From the header; `None` without it.
    pub(super) fn find(headers: &HeaderMap) -> Result<Option<Self>> {
        let mut values = headers.get_all(header::IF_MATCH).iter();
        let Some(value) = values.next() else { return Ok(None) };
        let text = value.to_str().unwrap_or_default().trim();
        let single = values.next().is_none() && !text.contains(',');
        match (single, text, tag_text(text)) {
            (true, "*", _) => Ok(Some(Self::Any)),
            // A weak tag never matches where the comparison is strong.
            (true, text, Some(tag)) if !text.starts_with("W/") => Ok(Some(Self::Version(tag.parse().unwrap_or(0)))),
            (true, _, Some(_)) => Ok(Some(Self::Version(0))),
            _ => {
                let detail = "must be * or one entity tag such as \"1\", quotes included";
                Err(Error::new(Kind::Malformed, "invalid_if_match", detail).with_field("If-Match"))
            }
        }
    }

    /// The version that the post must have, `None` for any.
    pub(super) fn version(self) -> Option<u32> {
        match self {
            Self::Any => None,
            Self::Version(version) => Some(version),
        }
    }
}

/// The idempotency key: a quoted string (RFC 8941) or, because many send it so, the bare text.
pub(super) fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>> {
    const FIELD: &str = "Idempotency-Key";
    let mut values = headers.get_all("idempotency-key").iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(Error::invalid("invalid_idempotency_key", FIELD, "must not stand twice"));
    }
    let unreadable = || Error::invalid("invalid_idempotency_key", FIELD, "must be visible ASCII, quoted or bare");
    let text = value.to_str().map_err(|_| unreadable())?.trim();
    let Some(quoted) = text.strip_prefix('"') else { return Ok(Some(text.to_owned())) };
    let mut key = String::with_capacity(quoted.len());
    let mut rest = quoted.chars();
    loop {
        match rest.next().ok_or_else(unreadable)? {
            '"' if rest.as_str().is_empty() => return Ok(Some(key)),
            '"' => return Err(unreadable()),
            '\\' => key.push(rest.next().filter(|c| matches!(c, '"' | '\\')).ok_or_else(unreadable)?),
            other => key.push(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: &'static str, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(HeaderName::from_static(name), HeaderValue::from_str(value).expect("a value"))])
    }

    #[test]
    fn queries_take_what_they_know_once() {
        let [a, b] = query(Some("b=x%20y+z&&a"), ["a", "b"]).expect("known");
        assert_eq!((a.as_deref(), b.as_deref()), (Some(""), Some("x y z")));
        assert_eq!(query(None, ["a"]).expect("none"), [None]);
        for (text, code) in
            [("c=1", "unknown_parameter"), ("a=1&a=2", "repeated_parameter"), ("a=%ff", "malformed_query")]
        {
            assert_eq!(query(Some(text), ["a"]).expect_err(text).code(), code);
        }
    }

    #[test]
    fn numbers_say_their_limit_and_value() {
        assert_eq!(whole("invalid_limit", "limit", "7", 1, 9).expect("in bounds"), 7);
        for (text, limit) in [("0", Some((1, 0))), ("10", Some((9, 10))), ("99999999999999999999", Some((9, u64::MAX)))]
        {
            assert_eq!(whole("invalid_limit", "limit", text, 1, 9).expect_err(text).limit_and_value(), limit);
        }
        for text in ["", "x", "-1", "+1", "1.0", " 1"] {
            assert_eq!(whole("invalid_limit", "limit", text, 1, 9).expect_err(text).code(), "invalid_limit");
        }
    }

    #[test]
    fn keys_are_quoted_or_bare() {
        let parse = |text| idempotency_key(&headers("idempotency-key", text));
        for (text, key) in [("abc", "abc"), ("\"abc\"", "abc"), (r#""a\"b\\""#, "a\"b\\"), ("\"\"", "")] {
            assert_eq!(parse(text).expect(text).as_deref(), Some(key));
        }
        for text in ["\"abc", "\"a\"b\"", r#""a\n""#, "\"a\\"] {
            assert_eq!(parse(text).expect_err(text).code(), "invalid_idempotency_key");
        }
    }

    #[test]
    fn if_match_is_one_strong_tag() {
        let parse = |text| IfMatch::find(&headers("if-match", text)).map(Option::unwrap);
        assert_eq!(parse("*").expect("any"), IfMatch::Any);
        assert_eq!(parse("\"12\"").expect("a version"), IfMatch::Version(12));
        for never in ["W/\"12\"", "\"abc\"", "\"-1\"", "\"\""] {
            assert_eq!(parse(never).expect(never), IfMatch::Version(0));
        }
        for bad in ["12", "\"1\", \"2\"", "", "\"1"] {
            assert_eq!(parse(bad).expect_err(bad).code(), "invalid_if_match");
        }
    }

    #[test]
    fn preferences_are_cut_and_parameters_refused() {
        let wait = Wait::find(None, &headers("prefer", "respond-async, wait=100"), 60).expect("cut");
        assert_eq!(wait.applied().expect("heard").1, "wait=60");
        let wait = Wait::find(Some("5"), &headers("prefer", "wait=100"), 60).expect("in bounds");
        assert_eq!((wait.time, wait.preferred), (Duration::from_secs(5), false));
        assert_eq!(
            Wait::find(Some("61"), &HeaderMap::new(), 60).expect_err("beyond").limit_and_value(),
            Some((60, 61))
        );
    }

    #[test]
    fn a_preference_may_be_written_in_many_ways() {
        let find = |lines: &[&'static str]| {
            let named = |&line| (HeaderName::from_static("prefer"), HeaderValue::from_static(line));
            let headers: HeaderMap = lines.iter().map(named).collect();
            let wait = Wait::find(None, &headers, 60).expect("never refused");
            wait.preferred.then_some(wait.time.as_secs())
        };
        for lines in [
            &["wait=7"][..],
            &["Wait = 7"],
            &["WAIT=\"7\""],
            &["respond-async; a=\"b\", wait=7; c"],
            &["foo=\"x, wait=9\", wait=7"],
            &["return=minimal", "wait=7"],
            &["wait=7", "wait=9"],
        ] {
            assert_eq!(find(lines), Some(7), "{lines:?}");
        }
        assert_eq!(find(&[]), None);
        for line in ["wait", "wait=", "wait=soon", "wait=\"7", "waiting=7", "wait=-7", "foo=\"wait=7\""] {
            assert_eq!(find(&[line]), None, "{line}");
        }
    }

    #[test]
    fn any_listed_tag_may_be_the_token() {
        let revision = crate::domain::Revision { nonce: 1, epoch: 2, counter: 3 };
        let token = Token { revision, refresh_by: crate::domain::Time::ZERO };
        let list = format!("\"x\", W/\"{}\"", token.encode());
        let held = Held::find(None, &headers("if-none-match", &list)).expect("readable").expect("found");
        assert_eq!((held.token, held.etag), (token, weak_etag(&token.encode())));
        assert!(Held::find(None, &headers("if-none-match", "*, \"x\"")).expect("readable").is_none());
        assert_eq!(Held::find(Some("x"), &HeaderMap::new()).expect_err("no token").code(), "invalid_token");
    }
}
