//! Bytes of the embedded store's values. Each begins with the number of its form, so that a later release can tell.

use std::sync::Arc;

use crate::domain::{Chunk, ChunkState, Done, Fence, Marks, Post, PostId, PostState, ProducerId, Row, Time, ViewerId};
use crate::error::{Error, Kind, Result};
use crate::ports::{FenceEntry, KeyHolder};

const FORM: u8 = 1;

fn corrupt(what: &'static str) -> Error {
    Error::new(Kind::Corrupt, "store_corrupt", format!("{what} in the store cannot be read"))
}

/// Appends values to a buffer.
struct Writer(Vec<u8>);

impl Writer {
    fn new(capacity: usize) -> Self {
        let mut bytes = Vec::with_capacity(capacity + 1);
        bytes.push(FORM);
        Self(bytes)
    }

    fn u8(&mut self, value: u8) {
        self.0.push(value);
    }

    fn u32(&mut self, value: u32) {
        self.0.extend_from_slice(&value.to_be_bytes());
    }

    fn i64(&mut self, value: i64) {
        self.0.extend_from_slice(&value.to_be_bytes());
    }

    fn text(&mut self, value: &str) {
        self.u32(u32::try_from(value.len()).expect("every text in the store is bounded far below 4 GiB"));
        self.0.extend_from_slice(value.as_bytes());
    }

    fn option_text(&mut self, value: Option<&str>) {
        self.u8(u8::from(value.is_some()));
        if let Some(value) = value {
            self.text(value);
        }
    }

    fn option_time(&mut self, value: Option<Time>) {
        self.u8(u8::from(value.is_some()));
        if let Some(value) = value {
            self.i64(value.micros());
        }
    }
}

/// Takes values from a slice; every step may find it too short.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn new(bytes: &'a [u8]) -> Option<Self> {
        let (form, rest) = bytes.split_first()?;
        (*form == FORM).then_some(Self(rest))
    }

    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(head)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    fn u8(&mut self) -> Option<u8> {
        self.array::<1>().map(|[byte]| byte)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    fn i64(&mut self) -> Option<i64> {
        self.array().map(i64::from_be_bytes)
    }

    fn text(&mut self) -> Option<&'a str> {
        let len = self.u32()? as usize;
        std::str::from_utf8(self.take(len)?).ok()
    }

    fn option_text(&mut self) -> Option<Option<Arc<str>>> {
        if self.u8()? == 0 { Some(None) } else { self.text().map(|text| Some(text.into())) }
    }

    fn option_time(&mut self) -> Option<Option<Time>> {
        if self.u8()? == 0 { Some(None) } else { self.i64().map(|micros| Some(Time::from_micros(micros))) }
    }
}

/// A post. Its version stands first, so that [`post_version`] need not read on.
pub fn encode_post(post: &Post) -> Vec<u8> {
    let mut out = Writer::new(96 + post.data.len());
    out.u32(post.version);
    out.u8(u8::from(post.state == PostState::Retracted));
    out.i64(post.ts);
    out.option_time(post.expires_at);
    out.u32(post.audience_size);
    out.u32(post.chunk_size);
    out.text(post.producer.as_str());
    out.text(&post.kind);
    out.option_text(post.actor.as_deref());
    out.option_text(post.thread_key.as_deref());
    out.text(&post.data);
    out.0
}

/// The version of an encoded post.
pub fn post_version(bytes: &[u8]) -> Result<u32> {
    Reader::new(bytes).and_then(|mut r| r.u32()).ok_or_else(|| corrupt("a post"))
}

/// The inverse of [`encode_post`].
pub fn decode_post(id: PostId, bytes: &[u8]) -> Result<Post> {
    fn read(id: PostId, bytes: &[u8]) -> Option<Post> {
        let mut r = Reader::new(bytes)?;
        Some(Post {
            id,
            version: r.u32()?,
            state: if r.u8()? == 0 { PostState::Live } else { PostState::Retracted },
            ts: r.i64()?,
            expires_at: r.option_time()?,
            audience_size: r.u32()?,
            chunk_size: r.u32()?,
            producer: ProducerId::parse("producer", r.text()?).ok()?,
            kind: r.text()?.into(),
            actor: r.option_text()?,
            thread_key: r.option_text()?,
            data: r.text()?.into(),
        })
    }
    read(id, bytes).ok_or_else(|| corrupt("a post"))
}

/// The viewers of a chunk.
pub fn encode_viewers(viewers: &[ViewerId]) -> Vec<u8> {
    let mut out = Writer::new(viewers.iter().map(|v| 1 + v.as_str().len()).sum::<usize>() + 4);
    out.u32(u32::try_from(viewers.len()).expect("a chunk is bounded far below 4 billion viewers"));
    for viewer in viewers {
        out.u8(u8::try_from(viewer.as_str().len()).expect("viewer ids have at most 128 bytes"));
        out.0.extend_from_slice(viewer.as_str().as_bytes());
    }
    out.0
}

/// The inverse of [`encode_viewers`].
pub fn decode_chunk(no: u32, bytes: &[u8]) -> Result<Chunk> {
    fn read(bytes: &[u8]) -> Option<Arc<[ViewerId]>> {
        let mut r = Reader::new(bytes)?;
        let count = r.u32()?;
        let one = |r: &mut Reader<'_>| {
            let len = usize::from(r.u8()?);
            let text = std::str::from_utf8(r.take(len)?).ok()?;
            ViewerId::parse("viewer_id", text).ok()
        };
        (0..count).map(|_| one(&mut r)).collect()
    }
    read(bytes).map(|viewers| Chunk { no, viewers }).ok_or_else(|| corrupt("a chunk"))
}

/// How far a chunk has come.
pub fn encode_chunk_state(state: ChunkState) -> Vec<u8> {
    let mut out = Writer::new(16);
    out.0.extend_from_slice(&state.done.map_or(0, Done::pack).to_be_bytes());
    out.u32(state.rows_version.unwrap_or(0));
    out.u8(u8::from(state.parked));
    out.0
}

/// The inverse of [`encode_chunk_state`]. Versions count from 1, so 0 stands for none.
pub fn decode_chunk_state(bytes: &[u8]) -> Result<ChunkState> {
    fn read(bytes: &[u8]) -> Option<ChunkState> {
        let mut r = Reader::new(bytes)?;
        let done = Done::unpack(u64::from_be_bytes(r.array()?));
        let rows = r.u32()?;
        let parked = r.u8()? != 0;
        Some(ChunkState { done: (done.version > 0).then_some(done), rows_version: (rows > 0).then_some(rows), parked })
    }
    read(bytes).ok_or_else(|| corrupt("a chunk's state"))
}

/// A row without its marks: at most 14 bytes, so that it fits inside the store's small values.
pub fn encode_row(version: u32, deleted: bool, expires_at: Option<Time>) -> Vec<u8> {
    let mut out = Writer::new(13);
    out.u32(version);
    out.u8(u8::from(deleted));
    if let Some(at) = expires_at {
        out.i64(at.micros());
    }
    out.0
}

/// The inverse of [`encode_row`], without marks.
pub fn decode_row(post_id: PostId, bytes: &[u8]) -> Result<Row> {
    fn read(post_id: PostId, bytes: &[u8]) -> Option<Row> {
        let mut r = Reader::new(bytes)?;
        let (version, deleted) = (r.u32()?, r.u8()? != 0);
        let expires_at = if r.0.is_empty() { None } else { Some(Time::from_micros(r.i64()?)) };
        Some(Row { post_id, version, deleted, expires_at, marks: Marks::default() })
    }
    read(post_id, bytes).ok_or_else(|| corrupt("an inbox row"))
}

/// The marks of an item.
pub fn encode_marks(marks: &Marks) -> Vec<u8> {
    let mut out = Writer::new(27);
    out.option_time(marks.seen_at);
    out.option_time(marks.read_at);
    out.option_time(marks.archived_at);
    out.0
}

/// The inverse of [`encode_marks`].
pub fn decode_marks(bytes: &[u8]) -> Result<Marks> {
    fn read(bytes: &[u8]) -> Option<Marks> {
        let mut r = Reader::new(bytes)?;
        Some(Marks { seen_at: r.option_time()?, read_at: r.option_time()?, archived_at: r.option_time()? })
    }
    read(bytes).ok_or_else(|| corrupt("a mark"))
}

/// Who holds an idempotency key.
pub fn encode_holder(holder: &KeyHolder) -> Vec<u8> {
    let mut out = Writer::new(52);
    out.0.extend_from_slice(&holder.fingerprint);
    out.0.extend_from_slice(holder.post_id.as_bytes());
    out.u32(holder.chunk_size);
    out.0
}

/// The inverse of [`encode_holder`].
pub fn decode_holder(bytes: &[u8]) -> Result<KeyHolder> {
    fn read(bytes: &[u8]) -> Option<KeyHolder> {
        let mut r = Reader::new(bytes)?;
        Some(KeyHolder { fingerprint: r.array()?, post_id: PostId::from_bytes(r.array()?), chunk_size: r.u32()? })
    }
    read(bytes).ok_or_else(|| corrupt("an idempotency key"))
}

/// An entry of the fence registry; it has no time here.
pub fn decode_fence((key, value): (fjall::Slice, fjall::Slice)) -> Result<FenceEntry> {
    let read = || {
        let (seq, (nonce, replid)) = (key.first_chunk().copied()?, value.split_first_chunk()?);
        let fence = Fence { seq: u32::from_be_bytes(seq), nonce: u64::from_be_bytes(*nonce) };
        Some(FenceEntry { fence, replid: String::from_utf8(replid.to_vec()).ok()?, at: Time::ZERO })
    };
    read().ok_or_else(|| Error::internal("a fence of unknown form"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn post() -> Post {
        Post {
            id: PostId::new(Time::from_millis(5), [1; 10]),
            producer: ProducerId::local(),
            kind: "story.posted".into(),
            actor: Some("ana".into()),
            data: r#"{"title":"Dawn"}"#.into(),
            thread_key: None,
            version: 3,
            state: PostState::Retracted,
            ts: -7,
            expires_at: Some(Time::from_millis(9)),
            audience_size: 12,
            chunk_size: 5,
        }
    }

    #[test]
    fn values_survive_and_cut_ones_are_refused() {
        let bytes = encode_post(&post());
        assert_eq!(decode_post(post().id, &bytes).expect("whole"), post());
        assert_eq!(post_version(&bytes).expect("whole"), 3);
        for len in 0..bytes.len() {
            assert_eq!(decode_post(post().id, &bytes[..len]).expect_err("cut").code(), "store_corrupt");
        }
        let viewers: Vec<_> = ["a", "böb"].iter().map(|v| ViewerId::parse("v", v).expect("valid")).collect();
        let bytes = encode_viewers(&viewers);
        assert_eq!(*decode_chunk(4, &bytes).expect("whole").viewers, *viewers);
        assert!(decode_chunk(4, &bytes[..bytes.len() - 1]).is_err());
        let marks = Marks { seen_at: Some(Time::from_micros(1)), read_at: None, archived_at: Some(Time::ZERO) };
        assert_eq!(decode_marks(&encode_marks(&marks)).expect("whole"), marks);
        let state = ChunkState { done: Some(Done { version: 2, fence: 9 }), rows_version: Some(1), parked: true };
        assert_eq!(decode_chunk_state(&encode_chunk_state(state)).expect("whole"), state);
        assert_eq!(
            decode_chunk_state(&encode_chunk_state(ChunkState::default())).expect("whole"),
            ChunkState::default()
        );
        let row = decode_row(post().id, &encode_row(2, true, Some(Time::MAX))).expect("whole");
        assert_eq!((row.version, row.deleted, row.expires_at), (2, true, Some(Time::MAX)));
        assert!(decode_row(post().id, &[9]).is_err(), "a form of a later release");
    }
}
