//! The data folder: one process at a time, one format.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};

use crate::error::{Error, Kind, Result};

/// The format this release writes. A folder with a higher number is left alone.
const FORMAT: u32 = 1;

/// A data folder that this process holds.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    /// The lock lasts as long as the file is open, and goes with the process however that ends.
    _lock: File,
}

impl Folder {
    /// Makes the folder where missing, locks it and checks its format.
    pub fn open(path: &Path) -> Result<Self> {
        fs::create_dir_all(path).map_err(|e| unusable(path, "cannot be created", e))?;
        let lock = lock(path)?;
        check_format(path)?;
        Ok(Self { path: path.to_owned(), _lock: lock })
    }

    /// The folder itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the storage engine keeps its files.
    pub fn store(&self) -> PathBuf {
        self.path.join("store")
    }
}

fn lock(path: &Path) -> Result<File> {
    let file = path.join("LOCK");
    let mut lock = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&file)
        .map_err(|e| unusable(&file, "cannot be opened", e))?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            let _ = lock.read_to_string(&mut holder);
            let detail =
                format!("the data folder {} is in use by another process (pid {})", path.display(), holder.trim());
            return Err(Error::new(Kind::Conflict, "data_locked", detail).with_field("store.data"));
        }
        Err(TryLockError::Error(e)) => return Err(unusable(&file, "cannot be locked", e)),
    }
    lock.set_len(0)
        .and_then(|()| write!(lock, "{}", std::process::id()))
        .map_err(|e| unusable(&file, "cannot be written", e))?;
    Ok(lock)
}

fn check_format(path: &Path) -> Result<()> {
    let file = path.join("FORMAT");
    let text = match fs::read_to_string(&file) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return write_format(path, &file),
        Err(e) => return Err(unusable(&file, "cannot be read", e)),
    };
    let found: u32 = text.trim().parse().map_err(|_| {
        let detail = format!("{} does not hold a format number but {:?}", file.display(), text.trim());
        Error::new(Kind::Corrupt, "data_unusable", detail).with_field("store.data")
    })?;
    if found > FORMAT {
        let detail = format!(
            "the data folder {} has format {found}, this release knows up to {FORMAT}: use a newer release",
            path.display()
        );
        return Err(Error::new(Kind::Conflict, "data_newer", detail).with_field("store.data"));
    }
    Ok(())
}

/// Written under another name and renamed, so that a process killed here leaves no half a number.
fn write_format(folder: &Path, file: &Path) -> Result<()> {
    let temporary = folder.join("FORMAT.new");
    let write = || {
        let mut f = File::create(&temporary)?;
        writeln!(f, "{FORMAT}")?;
        f.sync_all()?;
        fs::rename(&temporary, file)?;
        File::open(folder)?.sync_all()
    };
    write().map_err(|e| unusable(file, "cannot be written", e))
}

fn unusable(path: &Path, what: &str, source: std::io::Error) -> Error {
    let full = source.kind() == std::io::ErrorKind::StorageFull;
    let (kind, code) = if full { (Kind::StorageFull, "storage_full") } else { (Kind::Unavailable, "data_unusable") };
    Error::new(kind, code, format!("{} {what}", path.display())).with_field("store.data").with_source(source)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_process_one_format() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let held = Folder::open(dir.path()).expect("first");
        let error = Folder::open(dir.path()).expect_err("second");
        assert_eq!(error.code(), "data_locked");
        assert!(error.detail().contains(&std::process::id().to_string()), "{error}");
        drop(held);
        fs::write(dir.path().join("FORMAT"), "2\n").expect("written");
        assert_eq!(Folder::open(dir.path()).expect_err("newer").code(), "data_newer");
        fs::write(dir.path().join("FORMAT"), "one").expect("written");
        assert_eq!(Folder::open(dir.path()).expect_err("broken").code(), "data_unusable");
    }
}
