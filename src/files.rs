//! Files that hold secrets, and files that may change while they are in use.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

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

/// Writes a new file that only its owner may read. One that is there already is left alone.
pub fn write_private(path: &Path, text: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

/// Files that are read again when they change.
#[derive(Clone, Debug)]
pub struct Watch {
    paths: Vec<PathBuf>,
    seen: Vec<Option<Stamp>>,
    /// Looks in a row that found one of them missing.
    missed: u32,
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
        Self { paths, seen, missed: 0 }
    }

    /// Whether any of them differs from what was there the last time: then read them, and tell what comes of it. A file
    /// that is missing counts once, when two looks in a row do not find it, and again when it is back.
    pub fn has_changed(&mut self) -> bool {
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
