//! Inbox rows and the marks on them.

use super::ids::PostId;
use super::time::Time;

/// What a viewer can set on an item.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mark {
    /// It was shown.
    Seen,
    /// It was opened; implies seen.
    Read,
    /// It was put away; it leaves the default list and the counts.
    Archived,
}

impl Mark {
    /// Every mark.
    pub const ALL: [Mark; 3] = [Mark::Seen, Mark::Read, Mark::Archived];

    /// The name in paths and bodies.
    pub fn name(self) -> &'static str {
        match self {
            Self::Seen => "seen",
            Self::Read => "read",
            Self::Archived => "archived",
        }
    }

    /// The mark of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|mark| mark.name() == name)
    }
}

/// The marks of one item: when each was set, `None` where it is not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Marks {
    /// When it was first seen.
    pub seen_at: Option<Time>,
    /// When it was read.
    pub read_at: Option<Time>,
    /// When it was archived.
    pub archived_at: Option<Time>,
}

impl Marks {
    /// These marks with `mark` set at `now` or cleared. Setting what is set keeps its first time; reading implies
    /// seeing; clearing `seen` clears `read` too, since nothing unseen has been read.
    pub fn with(mut self, mark: Mark, value: bool, now: Time) -> Self {
        match (mark, value) {
            (Mark::Seen, true) => self.seen_at = self.seen_at.or(Some(now)),
            (Mark::Seen, false) => (self.seen_at, self.read_at) = (None, None),
            (Mark::Read, true) => {
                self.seen_at = self.seen_at.or(Some(now));
                self.read_at = self.read_at.or(Some(now));
            }
            (Mark::Read, false) => self.read_at = None,
            (Mark::Archived, true) => self.archived_at = self.archived_at.or(Some(now)),
            (Mark::Archived, false) => self.archived_at = None,
        }
        self
    }

    /// Whether `mark` is set.
    pub fn has(&self, mark: Mark) -> bool {
        match mark {
            Mark::Seen => self.seen_at.is_some(),
            Mark::Read => self.read_at.is_some(),
            Mark::Archived => self.archived_at.is_some(),
        }
    }
}

/// One inbox row: (viewer, post). Ids only; the body comes from the post.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// Which post.
    pub post_id: PostId,
    /// The version that was fanned out here.
    pub version: u32,
    /// The post was retracted; kept so that a delta can name what is gone.
    pub deleted: bool,
    /// When the post stops being served.
    pub expires_at: Option<Time>,
    /// The viewer's marks.
    pub marks: Marks,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_imply_each_other() {
        let (early, late) = (Time::from_micros(1), Time::from_micros(2));
        let read = Marks::default().with(Mark::Read, true, early);
        assert!(read.has(Mark::Seen) && read.has(Mark::Read) && !read.has(Mark::Archived));
        assert_eq!(read.with(Mark::Read, true, late), read, "the first time stays");
        assert_eq!(read.with(Mark::Seen, false, late), Marks::default());
        assert_eq!(read.with(Mark::Read, false, late).seen_at, Some(early));
    }
}
