//! The data folder: one process at a time, one format.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Write as _};
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
        let folder = Self { path: path.to_owned(), _lock: lock };
        clear_half_made(&folder.store()).map_err(|e| unusable(&folder.store(), "cannot be looked at", e))?;
        Ok(folder)
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

/// Removes what a first start left that was killed while it made the store. The storage engine would neither open it, for
/// want of its mark, nor make it anew, because of the journal that is there already. Nothing was ever in it: the engine
/// sets its mark before it makes the first of its folders, and so before anything is written.
fn clear_half_made(store: &Path) -> io::Result<()> {
    let is_marked = fs::metadata(store.join("version")).is_ok_and(|mark| mark.len() > 0);
    if is_marked || !store.try_exists()? {
        return Ok(());
    }
    for entry in fs::read_dir(store)? {
        let path = entry?.path();
        let is_empty = if path.is_dir() { fs::read_dir(&path)?.next().is_none() } else { is_blank(&path)? };
        // Whatever this is, it is not for us to remove.
        if !is_empty {
            return Ok(());
        }
    }
    fs::remove_dir_all(store)
}

/// Whether a file has nothing but zeros, which is what a journal begins as.
fn is_blank(path: &Path) -> io::Result<bool> {
    let (mut file, mut part) = (File::open(path)?, vec![0; 1 << 16]);
    loop {
        match file.read(&mut part)? {
            0 => return Ok(true),
            length if part[..length].iter().any(|byte| *byte != 0) => return Ok(false),
            _ => {}
        }
    }
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

    #[test]
    fn what_a_killed_first_start_left_goes_and_nothing_else() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let store = dir.path().join("store");
        let write = |name: &str, bytes: &[u8]| fs::write(store.join(name), bytes).expect("written");
        let is_kept = || Folder::open(dir.path()).map(|_| store.exists()).expect("the folder is free");
        assert!(!is_kept(), "there is none yet");
        let half_made = || {
            fs::create_dir_all(store.join("keyspaces")).expect("made");
            write("lock", &[]);
            write("0.jnl", &[0; 100_000]);
        };
        half_made();
        assert!(!is_kept());
        half_made();
        write("version", &[]);
        assert!(!is_kept(), "the mark was not written yet");
        half_made();
        write("version", b"FJL3");
        assert!(is_kept(), "the engine opens it");
        fs::remove_file(store.join("version")).expect("removed");
        fs::create_dir(store.join("keyspaces/0")).expect("made");
        assert!(is_kept(), "somebody has removed the mark");
        fs::remove_dir(store.join("keyspaces/0")).expect("removed");
        let mut journal = vec![0; 70_000];
        journal.push(1);
        write("1.jnl", &journal);
        assert!(is_kept(), "somebody has put a journal there");
    }
}
