//! The answers of a store on their way back: which of them say what became of a write, and which are lost.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::cql_frame::{HEADER, OPCODE};

/// The opcode of an answer that is no error.
const RESULT: u8 = 0x08;
/// The body of one that has nothing to say: what was to be written is written.
const VOID: [u8; 4] = 1_i32.to_be_bytes();
/// How the body of one begins that tells of a statement, not of what it did.
const PREPARED: [u8; 4] = 4_i32.to_be_bytes();
/// The first column of one to a conditional write.
const APPLIED: &[u8] = b"[applied]";

/// What an answer is to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// A write: it was applied.
    Write,
    /// A conditional write: it was applied, or refused.
    Conditional,
}

impl Answer {
    /// What a frame is; `None` for anything but the answer to a write.
    fn of(frame: &[u8]) -> Option<Self> {
        let body = &frame[HEADER..];
        if frame[OPCODE] != RESULT || body.starts_with(&PREPARED) {
            None
        } else if body == VOID {
            Some(Self::Write)
        } else {
            body.windows(APPLIED.len()).any(|part| part == APPLIED).then_some(Self::Conditional)
        }
    }
}

/// What became of them.
#[derive(Debug, Default)]
pub struct Answers([Counts; 2]);

/// Of one kind.
#[derive(Debug, Default)]
pub struct Counts {
    /// Those that the store has sent.
    pub came: AtomicUsize,
    /// Those of them that went no further.
    pub lost: AtomicUsize,
    /// So many of the next are to be lost.
    pub to_lose: AtomicUsize,
}

impl Answers {
    pub fn of(&self, answer: Answer) -> &Counts {
        &self.0[answer as usize]
    }

    /// Whether a frame goes on, on a line that may be deaf.
    pub fn pass(&self, frame: &[u8], deaf: bool) -> bool {
        let Some(answer) = Answer::of(frame) else { return !deaf };
        let counts = self.of(answer);
        let is_lost =
            deaf || counts.to_lose.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).is_ok();
        counts.came.fetch_add(1, Ordering::SeqCst);
        counts.lost.fetch_add(usize::from(is_lost), Ordering::SeqCst);
        !is_lost
    }
}
