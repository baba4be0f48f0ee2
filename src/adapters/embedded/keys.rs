//! Keys of the embedded store. Byte order is the order that scans want.

use crate::domain::{PostId, ProducerId, Time, ViewerId};
use crate::ports::Pending;

/// What an inbox key stands for; the marks of an item sort right behind its row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InboxPart {
    /// What fan-out wrote.
    Row,
    /// What the viewer did. Kept apart, so that no rewrite of the row can undo it.
    Marks,
}

const ROW: u8 = 0;
const MARKS: u8 = 1;

/// `viewer NUL`: the prefix of an inbox. Viewer ids contain no control characters, so no inbox is a prefix of another.
pub fn inbox_prefix(viewer: &ViewerId) -> Vec<u8> {
    let mut key = Vec::with_capacity(viewer.as_str().len() + 18);
    key.extend_from_slice(viewer.as_str().as_bytes());
    key.push(0);
    key
}

/// `viewer NUL !post_id part`: the id inverted, so that the newest comes first.
pub fn inbox(viewer: &ViewerId, post_id: PostId, part: InboxPart) -> Vec<u8> {
    let mut key = inbox_prefix(viewer);
    key.extend(post_id.as_bytes().iter().map(|byte| !byte));
    key.push(if part == InboxPart::Row { ROW } else { MARKS });
    key
}

/// The post and part of an inbox key.
pub fn split_inbox(key: &[u8]) -> Option<(PostId, InboxPart)> {
    let (part, rest) = key.split_last()?;
    let part = match *part {
        ROW => InboxPart::Row,
        MARKS => InboxPart::Marks,
        _ => return None,
    };
    let id: &[u8; 16] = rest.last_chunk()?;
    Some((PostId::from_bytes(id.map(|byte| !byte)), part))
}

/// `post_id chunk_no`.
pub fn chunk(id: PostId, no: u32) -> [u8; 20] {
    let mut key = [0; 20];
    key[..16].copy_from_slice(id.as_bytes());
    key[16..].copy_from_slice(&no.to_be_bytes());
    key
}

/// `since post_id version`: oldest first, so that the relay's head only moves forward.
pub fn pending(entry: &Pending) -> [u8; 28] {
    let mut key = [0; 28];
    key[..8].copy_from_slice(&entry.since.micros().to_be_bytes());
    key[8..24].copy_from_slice(entry.post_id.as_bytes());
    key[24..].copy_from_slice(&entry.version.to_be_bytes());
    key
}

/// The inverse of [`pending`].
pub fn split_pending(key: &[u8]) -> Option<Pending> {
    let key: &[u8; 28] = key.try_into().ok()?;
    Some(Pending {
        since: Time::from_micros(i64::from_be_bytes(*key.first_chunk()?)),
        post_id: leading_post_id(&key[8..])?,
        version: u32::from_be_bytes(*key.last_chunk()?),
    })
}

/// `producer NUL key`.
pub fn idempotency(producer: &ProducerId, key: &str) -> Vec<u8> {
    [producer.as_str().as_bytes(), b"\0", key.as_bytes()].concat()
}

/// The id that a key of `posts`, `chunks` or `progress` begins with.
pub fn leading_post_id(key: &[u8]) -> Option<PostId> {
    key.first_chunk().map(|id| PostId::from_bytes(*id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inboxes_sort_newest_first_with_marks_behind_their_row() {
        let viewer = ViewerId::parse("v", "ben").expect("valid");
        let old = PostId::new(Time::from_millis(1), [0; 10]);
        let new = PostId::new(Time::from_millis(2), [0; 10]);
        let keys = [
            inbox(&viewer, new, InboxPart::Row),
            inbox(&viewer, new, InboxPart::Marks),
            inbox(&viewer, old, InboxPart::Row),
        ];
        assert!(keys.is_sorted());
        assert!(keys.iter().all(|key| key.starts_with(&inbox_prefix(&viewer))));
        assert_eq!(split_inbox(&keys[1]), Some((new, InboxPart::Marks)));
        let longer = ViewerId::parse("v", "benny").expect("valid");
        assert!(!inbox(&longer, new, InboxPart::Row).starts_with(&inbox_prefix(&viewer)));
    }

    #[test]
    fn pending_entries_survive() {
        let entry = Pending { since: Time::from_millis(3), post_id: PostId::from_bytes([7; 16]), version: 9 };
        assert_eq!(split_pending(&pending(&entry)), Some(entry));
    }
}
