//! Files that hold secrets, and files that may change while they are in use.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::error::{Error, Kind, Result};

/// The largest file that is read whole: far more than any set of keys or chain of certificates.
const BYTES_MAX: u64 = 1 << 20;

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
}

/// What changes with a file.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Stamp {
    modified: Option<SystemTime>,
    bytes: u64,
    inode: u64,
}

impl Watch {
    /// Takes the files as they are now for known: call it before they are read for the first time.
    pub fn new(paths: Vec<PathBuf>) -> Self {
        let seen = paths.iter().map(|path| stamp(path)).collect();
        Self { paths, seen }
    }

    /// Whether any of them differs from what was there the last time. A file that is missing is about to be replaced:
    /// it counts when it is back.
    pub fn has_changed(&mut self) -> bool {
        let now: Vec<_> = self.paths.iter().map(|path| stamp(path)).collect();
        if now.iter().any(Option::is_none) || now == self.seen {
            return false;
        }
        self.seen = now;
        true
    }
}

fn stamp(path: &Path) -> Option<Stamp> {
    let metadata = fs::metadata(path).ok()?;
    Some(Stamp { modified: metadata.modified().ok(), bytes: metadata.len(), inode: metadata.ino() })
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
        fs::remove_file(&path).expect("removed");
        assert!(!watch.has_changed(), "it will come back");
        fs::write(&path, "ab").expect("written");
        assert!(watch.has_changed());
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
