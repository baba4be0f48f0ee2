//! Revision tokens and page cursors: opaque outside, compared by the server only.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::ids::PostId;
use super::revision::Revision;
use super::time::Time;
use crate::error::{Error, Kind, Result};

const TOKEN_FORM: u8 = 1;
const CURSOR_FORM: u8 = 2;
const TOKEN_BYTES: usize = 33;
const CURSOR_BYTES: usize = 2 + 16 + 32;

/// What a client holds: the revision its copy is at, and when that copy must be read afresh even if nothing bumps
/// (because an item of it will have expired).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token {
    /// The state of the inbox that the client has read.
    pub revision: Revision,
    /// From this instant on the token matches nothing.
    pub refresh_by: Time,
}

impl Token {
    /// The text form: 44 characters of URL-safe base64.
    pub fn encode(&self) -> String {
        let mut bytes = [0_u8; TOKEN_BYTES];
        bytes[0] = TOKEN_FORM;
        bytes[1..].copy_from_slice(&self.to_bytes());
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// Parses what [`Token::encode`] gave; `field` names where it came from.
    pub fn parse(field: &str, text: &str) -> Result<Self> {
        let mut bytes = [0_u8; TOKEN_BYTES];
        let read = URL_SAFE_NO_PAD.decode_slice(text, &mut bytes);
        if read != Ok(TOKEN_BYTES) || bytes[0] != TOKEN_FORM {
            let detail = "is not a revision token of this service";
            return Err(Error::new(Kind::Malformed, "invalid_token", detail).with_field(field));
        }
        Ok(Self::from_bytes(&bytes[1..]))
    }

    /// Whether a client with this token has seen everything at `current`. No honest token is good for longer than
    /// `age_max`: one that says so was made by a clock that ran ahead, and what it hid then is visible now.
    pub fn matches(&self, current: Option<Revision>, now: Time, age_max: Duration) -> bool {
        current == Some(self.revision) && self.is_fresh(now, age_max)
    }

    /// Whether the token need not be refreshed yet.
    pub fn is_fresh(&self, now: Time, age_max: Duration) -> bool {
        now < self.refresh_by && self.refresh_by <= now.after(age_max)
    }

    /// The same promise about another revision, refreshed no later than `by`.
    pub fn moved_to(self, revision: Revision, by: Time) -> Self {
        Self { revision, refresh_by: self.refresh_by.min(by) }
    }

    fn to_bytes(self) -> [u8; 32] {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&self.revision.nonce.to_be_bytes());
        bytes[8..16].copy_from_slice(&self.revision.epoch.to_be_bytes());
        bytes[16..24].copy_from_slice(&self.revision.counter.to_be_bytes());
        bytes[24..].copy_from_slice(&self.refresh_by.micros().to_be_bytes());
        bytes
    }

    fn from_bytes(bytes: &[u8]) -> Self {
        let at = |i: usize| {
            let mut eight = [0; 8];
            eight.copy_from_slice(&bytes[i..i + 8]);
            u64::from_be_bytes(eight)
        };
        Self {
            revision: Revision { nonce: at(0), epoch: at(8), counter: at(16) },
            refresh_by: Time::from_micros(at(24).cast_signed()),
        }
    }
}

/// Where a walk over pages goes on, with the token of its first page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cursor {
    /// The walk is over the archived items.
    pub archived: bool,
    /// The last item that was served.
    pub after: PostId,
    /// What every page of the walk answers; `None` over archived items, or when the revisions were unavailable.
    pub token: Option<Token>,
}

impl Cursor {
    /// The text form, URL-safe base64.
    pub fn encode(&self) -> String {
        let mut bytes = [0_u8; CURSOR_BYTES];
        bytes[0] = CURSOR_FORM;
        bytes[1] = u8::from(self.archived) | u8::from(self.token.is_some()) << 1;
        bytes[2..18].copy_from_slice(self.after.as_bytes());
        if let Some(token) = self.token {
            bytes[18..].copy_from_slice(&token.to_bytes());
        }
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// Parses what [`Cursor::encode`] gave.
    pub fn parse(field: &str, text: &str) -> Result<Self> {
        let mut bytes = [0_u8; CURSOR_BYTES];
        let read = URL_SAFE_NO_PAD.decode_slice(text, &mut bytes);
        if read != Ok(CURSOR_BYTES) || bytes[0] != CURSOR_FORM || bytes[1] > 3 {
            let detail = "is not a cursor of this service";
            return Err(Error::new(Kind::Malformed, "invalid_cursor", detail).with_field(field));
        }
        let mut after = [0; 16];
        after.copy_from_slice(&bytes[2..18]);
        Ok(Self {
            archived: bytes[1] & 1 != 0,
            after: PostId::from_bytes(after),
            token: (bytes[1] & 2 != 0).then(|| Token::from_bytes(&bytes[18..])),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token() -> Token {
        let revision = Revision { nonce: 1, epoch: u64::MAX, counter: 3 };
        Token { revision, refresh_by: Time::from_micros(4) }
    }

    #[test]
    fn tokens_and_cursors_survive_their_text_form() {
        let text = token().encode();
        assert_eq!(text.len(), 44);
        assert_eq!(Token::parse("since", &text).expect("own"), token());
        for token in [None, Some(token())] {
            let cursor = Cursor { archived: token.is_none(), after: PostId::from_bytes([9; 16]), token };
            assert_eq!(Cursor::parse("cursor", &cursor.encode()).expect("own"), cursor);
            assert_eq!(Token::parse("since", &cursor.encode()).expect_err("a cursor").code(), "invalid_token");
        }
        for bad in ["", "x", "äöü", &"A".repeat(44), &"A".repeat(10_000)] {
            assert_eq!(Token::parse("since", bad).expect_err(bad).code(), "invalid_token");
            assert_eq!(Cursor::parse("cursor", bad).expect_err(bad).code(), "invalid_cursor");
        }
    }

    #[test]
    fn a_token_matches_its_revision_until_it_must_be_refreshed() {
        let token = token();
        let matches = |current, now| token.matches(current, Time::from_micros(now), Duration::from_micros(2));
        assert!(matches(Some(token.revision), 3) && matches(Some(token.revision), 2));
        assert!(!matches(Some(token.revision), 4));
        assert!(!matches(Some(token.revision), 1), "made by a clock that ran ahead");
        assert!(!matches(None, 3), "a missing record equals nothing");
        assert!(!matches(Some(Revision { counter: 4, ..token.revision }), 3));
    }
}
