//! Files that hold secrets, and files that may change while they are in use.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use tokio::time::MissedTickBehavior;

use crate::error::{Error, Kind, Result};

/// The largest file that is read whole: far more than any set of keys or chain of certificates.
const BYTES_MAX: u64 = 1 << 20;
/// Looks in a row after which a file that is missing counts as gone: whoever replaces one in two steps leaves none for
/// an instant.
const LOOKS_MISSED: u32 = 2;

/// Reads a small text file; `field` names the setting it comes from.
pub fn read(path: &Path, field: &str) -> Result<String> {
    let unreadable = |error: io::Error| {
        let detail = format!("{} cannot be read", path.display());
        Error::new(Kind::Invalid, "file_unusable", detail).with_field(field).with_source(error)
    };
    let bytes = fs::metadata(path).map_err(unreadable)?.len();
    if bytes > BYTES_MAX {
        let detail = format!("{} must have at most {BYTES_MAX} bytes, has {bytes}", path.display());
        return Err(Error::limit("file_unusable", field, detail, BYTES_MAX, bytes));
    }
    fs::read_to_string(path).map_err(unreadable)
}

/// An error if users other than the file's own and its group can read or change it.
pub fn check_private(path: &Path, field: &str) -> Result<()> {
    let Ok(metadata) = fs::metadata(path) else { return Ok(()) };
    let mode = metadata.permissions().mode();
    // What is no file (a pipe, /dev/stdin) has no reader but this process.
    if !metadata.is_file() || mode & 0o007 == 0 {
        return Ok(());
    }
    let detail = format!(
        "{} holds a secret, and every user of this machine may open it (mode {:03o}); run: chmod 600 {}",
        path.display(),
        mode & 0o777,
        path.display()
    );
    Err(Error::invalid("secret_file_exposed", field, detail))
}

/// Reads a small text file that holds a secret, and that nobody else may read.
pub fn read_private(path: &Path, field: &str) -> Result<String> {
    check_private(path, field)?;
    read(path, field)
}

/// Writes a new file that only its owner may read, whole or not at all. One that is there already is left alone.
pub fn write_private(path: &Path, text: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    let written = file.write_all(text.as_bytes()).and_then(|()| file.sync_all());
    if written.is_err() {
        // It was made just now: half of it is of no use, and would be in the way of the next try.
        let _ = fs::remove_file(path);
    }
    written
}

/// Files that are read again when they change.
#[derive(Clone, Debug)]
pub struct Watch {
    paths: Vec<PathBuf>,
    seen: Vec<Option<Stamp>>,
    /// Looks in a row that found one of them missing.
    missed: u32,
    /// Why they could not be loaded the last time, if so.
    failure: Option<String>,
}

/// What changes with a file.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Stamp {
    modified: Option<SystemTime>,
    /// Seconds and nanoseconds of the last change of content, owner or mode; unlike the one above it cannot be chosen.
    changed: (i64, i64),
    /// By itself as well: a chmod within one tick of the clock leaves the times as they are.
    mode: u32,
    bytes: u64,
    inode: u64,
}

impl Watch {
    /// Takes the files as they are now for known: call it before they are read for the first time.
    pub fn new(paths: Vec<PathBuf>) -> Self {
        let seen = paths.iter().map(|path| stamp(path)).collect();
        Self { paths, seen, missed: 0, failure: None }
    }

    /// Looks every so often, for ever; `take` is given what is to be told and taken up.
    pub async fn follow<T>(mut self, every: Duration, load: impl Fn() -> Result<T>, mut take: impl FnMut(Result<T>)) {
        let mut ticks = tokio::time::interval(every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            if let Some(loaded) = self.look(&load) {
                take(loaded);
            }
        }
    }

    /// Loads the files if any of them differs from what was there the last time, and at every look while that fails: what
    /// has kept them from being read, such as too many open files, may pass without a trace on them. The answer is what
    /// is to be told and taken up: `None` while nothing is new, the same failure again included.
    fn look<T>(&mut self, load: impl FnOnce() -> Result<T>) -> Option<Result<T>> {
        let has_changed = self.has_changed();
        let is_being_replaced = (1..LOOKS_MISSED).contains(&self.missed);
        if !has_changed && (self.failure.is_none() || is_being_replaced) {
            return None;
        }
        let loaded = load();
        let failure = loaded.as_ref().err().map(ToString::to_string);
        let is_known = failure.is_some() && failure == self.failure;
        self.failure = failure;
        (has_changed || !is_known).then_some(loaded)
    }

    /// Whether any of them differs from what was there the last time. A file that is missing counts once, when two looks
    /// in a row do not find it, and again when it is back.
    fn has_changed(&mut self) -> bool {
        let now: Vec<_> = self.paths.iter().map(|path| stamp(path)).collect();
        if now.iter().any(Option::is_none) {
            self.missed = self.missed.saturating_add(1);
            return self.missed == LOOKS_MISSED;
        }
        let is_back = std::mem::take(&mut self.missed) > 0;
        if now == self.seen && !is_back {
            return false;
        }
        self.seen = now;
        true
    }
}

fn stamp(path: &Path) -> Option<Stamp> {
    let metadata = fs::metadata(path).ok()?;
    Some(Stamp {
        modified: metadata.modified().ok(),
        changed: (metadata.ctime(), metadata.ctime_nsec()),
        mode: metadata.mode(),
        bytes: metadata.len(),
        inode: metadata.ino(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_for_their_owner() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("secret");
        write_private(&path, "x").expect("written");
        assert_eq!(read_private(&path, "f").expect("private"), "x");
        assert!(write_private(&path, "y").is_err(), "what is there is left alone");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).expect("set");
        assert_eq!(read_private(&path, "f").expect("its group may"), "x");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("set");
        let error = read_private(&path, "f").expect_err("exposed");
        assert_eq!((error.code(), error.field()), ("secret_file_exposed", Some("f")));
        assert!(error.detail().contains("chmod 600"), "{error}");
    }

    #[test]
    fn changes_are_seen_once() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("file");
        fs::write(&path, "a").expect("written");
        let mut watch = Watch::new(vec![path.clone()]);
        assert!(!watch.has_changed());
        fs::write(&path, "ab").expect("written");
        assert!(watch.has_changed() && !watch.has_changed());
        fs::set_permissions(&path, fs::Permissions::from_mode(0o604)).expect("set");
        assert!(watch.has_changed() && !watch.has_changed(), "who may read it");
        fs::remove_file(&path).expect("removed");
        assert!(!watch.has_changed(), "it will come back");
        fs::write(&path, "ab").expect("written");
        assert!(watch.has_changed() && !watch.has_changed());
    }

    /// What a look comes to: nothing new, what was loaded, or why it was not.
    fn look(watch: &mut Watch, load: Result<u8, &'static str>) -> Option<Result<u8, String>> {
        let fail = |why| Error::unavailable("file_unusable", why);
        let told = watch.look(|| load.map_err(fail));
        told.map(|loaded| loaded.map_err(|error| error.detail().to_owned()))
    }

    #[test]
    fn what_cannot_be_loaded_is_tried_at_every_look_and_told_once() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("file");
        fs::write(&path, "a").expect("written");
        let mut watch = Watch::new(vec![path.clone()]);
        assert_eq!(look(&mut watch, Ok(1)), None, "there is no need to");
        fs::write(&path, "ab").expect("written");
        let told = |why: &str| Some(Err(why.to_owned()));
        assert_eq!(look(&mut watch, Err("busy")), told("busy"));
        assert_eq!(look(&mut watch, Err("busy")), None, "the same");
        assert_eq!(look(&mut watch, Err("broken")), told("broken"));
        // From here on the file stays as it is.
        assert_eq!(look(&mut watch, Ok(2)), Some(Ok(2)));
        assert_eq!(look(&mut watch, Ok(3)), None, "loaded");
        for text in ["abc", "abcd"] {
            fs::write(&path, text).expect("written");
            assert_eq!(look(&mut watch, Err("busy")), told("busy"), "another file, the same");
        }
        // One that is replaced in two steps is not missed, and one that is gone is told once.
        fs::remove_file(&path).expect("removed");
        assert_eq!(look(&mut watch, Err("gone")), None);
        assert_eq!(look(&mut watch, Err("gone")), told("gone"));
        assert_eq!(look(&mut watch, Err("gone")), None);
        fs::write(&path, "abcd").expect("written");
        assert_eq!(look(&mut watch, Ok(4)), Some(Ok(4)));
        assert_eq!(look(&mut watch, Ok(5)), None);
    }

    #[test]
    fn a_file_that_is_gone_is_told_once_until_it_is_back() {
        let dir = tempfile::tempdir().expect("a folder");
        let paths = ["one", "two"].map(|name| dir.path().join(name));
        let write = || paths.iter().for_each(|path| fs::write(path, "a").expect("written"));
        write();
        let mut watch = Watch::new(paths.to_vec());
        for _ in 0..2 {
            fs::remove_file(&paths[0]).expect("removed");
            assert_eq!([(); 4].map(|()| watch.has_changed()), [false, true, false, false]);
            fs::remove_file(&paths[1]).expect("removed");
            assert!(!watch.has_changed(), "that one is gone is known");
            write();
            assert!(watch.has_changed() && !watch.has_changed(), "back");
        }
    }

    #[test]
    fn large_and_missing_files_are_told() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("file");
        assert_eq!(read(&path, "f").expect_err("missing").code(), "file_unusable");
        fs::write(&path, vec![b'x'; (BYTES_MAX + 1) as usize]).expect("written");
        assert_eq!(read(&path, "f").expect_err("large").limit_and_value(), Some((BYTES_MAX, BYTES_MAX + 1)));
    }
}
