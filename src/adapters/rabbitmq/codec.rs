//! Tasks as messages: `form u8 | lane u8 | post id 16 | version u32 | chunk u32 | attempt u32 | count u32`, then each
//! viewer as `length u8 | bytes`; all big-endian.

use std::sync::Arc;

use lapin::types::{AMQPValue, FieldTable};

use crate::domain::{Chunk, Lane, PostId, Task, TraceId, ViewerId};

/// The form written here. A reader that meets a higher one leaves the message to a newer release.
const FORM: u8 = 1;
const HEAD: usize = 34;

/// Why bytes are no task.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// A newer release wrote it.
    #[error("the message has form {0} of a newer release, this one reads {FORM}")]
    Newer(u8),
    /// Nobody wrote it like that.
    #[error("the message is malformed")]
    Malformed,
}

/// A task as bytes.
pub fn encode(task: &Task) -> Vec<u8> {
    let viewers = &task.chunk.viewers;
    let mut bytes = Vec::with_capacity(HEAD + viewers.iter().map(|viewer| 1 + viewer.as_str().len()).sum::<usize>());
    bytes.extend([FORM, u8::from(task.lane == Lane::Bulk)]);
    bytes.extend(task.post_id.as_bytes());
    let count = u32::try_from(viewers.len()).expect("chunks are bounded far below 2^32 viewers");
    for number in [task.version, task.chunk.no, task.attempt, count] {
        bytes.extend(number.to_be_bytes());
    }
    for viewer in viewers.iter() {
        let viewer = viewer.as_str().as_bytes();
        bytes.push(u8::try_from(viewer.len()).expect("viewer ids have at most 128 bytes"));
        bytes.extend(viewer);
    }
    bytes
}

/// The task in `bytes`.
pub fn decode(bytes: &[u8]) -> Result<Task, Unreadable> {
    match bytes.first() {
        Some(&FORM) => read(&bytes[1..]).ok_or(Unreadable::Malformed),
        Some(&form) if form > FORM => Err(Unreadable::Newer(form)),
        _ => Err(Unreadable::Malformed),
    }
}

/// The header that carries the trace, as in HTTP.
const TRACE_PARENT: &str = "traceparent";

/// The headers that go with a task's bytes.
pub fn headers(task: &Task) -> FieldTable {
    let mut headers = FieldTable::default();
    if let Some(trace) = task.trace {
        let parent = trace.to_parent(rand::random());
        headers.insert(TRACE_PARENT.into(), AMQPValue::LongString(parent.into()));
    }
    headers
}

/// The header of a task that no worker survived, and that has one more chance.
const LAST_CHANCE: &str = "fanfold-last-chance";

/// The same headers, and that this is the last chance.
pub fn with_last_chance(mut headers: FieldTable) -> FieldTable {
    headers.insert(LAST_CHANCE.into(), AMQPValue::Boolean(true));
    headers
}

/// Whether a message has its last chance.
pub fn is_last_chance(headers: Option<&FieldTable>) -> bool {
    headers.is_some_and(|headers| headers.inner().contains_key(LAST_CHANCE))
}

/// Of a message's headers those that a release of ours has written. The broker's own begin with `x-`, and tell of a way
/// that is over.
pub fn own_headers(headers: Option<&FieldTable>) -> FieldTable {
    let mut own = FieldTable::default();
    for (name, value) in headers.iter().flat_map(|headers| headers.inner()) {
        if !name.as_str().starts_with("x-") {
            own.insert(name.clone(), value.clone());
        }
    }
    own
}

/// The trace that a message's headers carry.
pub fn trace(headers: Option<&FieldTable>) -> Option<TraceId> {
    match headers?.inner().get(TRACE_PARENT)? {
        AMQPValue::LongString(value) => TraceId::of_parent(&value.to_string()),
        _ => None,
    }
}

fn read(bytes: &[u8]) -> Option<Task> {
    let (&lane, mut rest) = bytes.split_first()?;
    let lane = match lane {
        0 => Lane::Small,
        1 => Lane::Bulk,
        _ => return None,
    };
    let post_id = PostId::from_bytes(*take(&mut rest)?);
    let mut number = || Some(u32::from_be_bytes(*take(&mut rest)?));
    let (version, no, attempt, count) = (number()?, number()?, number()?, number()?);
    let mut viewers = Vec::with_capacity((count as usize).min(rest.len() / 2));
    for _ in 0..count {
        let (&length, after) = rest.split_first()?;
        let (viewer, after) = after.split_at_checked(usize::from(length))?;
        viewers.push(ViewerId::parse("viewers", std::str::from_utf8(viewer).ok()?).ok()?);
        rest = after;
    }
    let chunk = Chunk { no, viewers: Arc::from(viewers) };
    rest.is_empty().then_some(Task { post_id, version, chunk, lane, attempt, trace: None })
}

fn take<'a, const N: usize>(bytes: &mut &'a [u8]) -> Option<&'a [u8; N]> {
    let (taken, rest) = bytes.split_first_chunk()?;
    *bytes = rest;
    Some(taken)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task() -> Task {
        let viewers = ["ben", "ü b", &"x".repeat(128)].map(|v| ViewerId::parse("v", v).expect("valid"));
        let chunk = Chunk { no: 7, viewers: viewers.into() };
        Task { post_id: PostId::from_bytes([9; 16]), version: 3, chunk, lane: Lane::Bulk, attempt: 2, trace: None }
    }

    #[test]
    fn tasks_survive_and_nothing_else_is_read() {
        let bytes = encode(&task());
        assert_eq!(decode(&bytes), Ok(task()));
        for end in 0..bytes.len() {
            assert_eq!(decode(&bytes[..end]), Err(Unreadable::Malformed), "cut at {end}");
        }
        assert_eq!(decode(&[&bytes[..], &[0]].concat()), Err(Unreadable::Malformed));
        let many = [&bytes[..30], &u32::MAX.to_be_bytes(), &bytes[34..]].concat();
        assert_eq!(decode(&many), Err(Unreadable::Malformed), "a count beyond the bytes");
    }

    #[test]
    fn the_trace_goes_in_the_headers() {
        let trace = TraceId::of_parent("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01");
        assert_eq!(super::trace(Some(&headers(&Task { trace, ..task() }))), trace);
        assert_eq!(super::trace(Some(&headers(&task()))), None);
        assert_eq!(super::trace(None), None);
    }

    #[test]
    fn a_newer_form_is_told_from_a_broken_one() {
        let mut bytes = encode(&task());
        bytes[0] = 2;
        assert_eq!(decode(&bytes), Err(Unreadable::Newer(2)));
        bytes[0] = 0;
        assert_eq!(decode(&bytes), Err(Unreadable::Malformed));
    }
}
