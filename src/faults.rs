//! Places at which a test kills or stops this process, and defects that it plants to see whether its checker notices.
//!
//! Without the feature `faults`, which no release has, all of it is nothing: the compiler removes every call.

/// A defect that a checker must find.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Planted {
    /// A chunk is done without its bumps.
    SkipBump,
    /// A task is done and acknowledged before its rows are written.
    AckBeforeRows,
    /// Every life of the revision store goes by the first one's fence.
    NoFence,
    /// A chunk counts as done whatever the fence of its bumps.
    DoneWithoutFence,
    /// An intent is cleared whatever the fence of its bump.
    IntentWithoutFence,
    /// Nothing is driven again.
    NoRelay,
    /// A page's rows are read before its token.
    RowsBeforeToken,
    /// An editor that lost removes the pending entry of the one that won.
    LoserRemovesPending,
}

impl Planted {
    /// Every one.
    pub const ALL: [Planted; 8] = [
        Planted::SkipBump,
        Planted::AckBeforeRows,
        Planted::NoFence,
        Planted::DoneWithoutFence,
        Planted::IntentWithoutFence,
        Planted::NoRelay,
        Planted::RowsBeforeToken,
        Planted::LoserRemovesPending,
    ];

    /// The name, as `FANFOLD_TEST_PLANT` has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::SkipBump => "skip-bump",
            Self::AckBeforeRows => "ack-before-rows",
            Self::NoFence => "no-fence",
            Self::DoneWithoutFence => "done-without-fence",
            Self::IntentWithoutFence => "intent-without-fence",
            Self::NoRelay => "no-relay",
            Self::RowsBeforeToken => "rows-before-token",
            Self::LoserRemovesPending => "loser-removes-pending",
        }
    }
}

/// A place with a name. `FANFOLD_TEST_FAULT=place=kill@3` kills this process when it comes here for the third time;
/// `stop` instead of `kill` stops it, until somebody continues it; `panic` makes whoever came here panic.
#[inline]
pub fn at(place: &str) {
    #[cfg(feature = "faults")]
    armed::at(place);
    #[cfg(not(feature = "faults"))]
    let _ = place;
}

/// Whether this defect is planted (`FANFOLD_TEST_PLANT=skip-bump`).
#[inline]
pub fn planted(defect: Planted) -> bool {
    #[cfg(feature = "faults")]
    return armed::planted(defect);
    #[cfg(not(feature = "faults"))]
    {
        let _ = defect;
        false
    }
}

#[cfg(feature = "faults")]
mod armed {
    use std::io::Write as _;
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::Duration;

    use rustix::process::{Signal, getpid, kill_process};

    use super::Planted;

    /// How long a signal takes to reach all threads, on a busy machine too.
    const TAKEN_WITHIN: Duration = Duration::from_millis(500);

    #[derive(Clone, Copy)]
    enum Deed {
        Signal(Signal),
        Panic,
    }

    struct Fault {
        place: String,
        deed: Deed,
        left: AtomicU32,
    }

    fn fault() -> Option<&'static Fault> {
        static FAULT: OnceLock<Option<Fault>> = OnceLock::new();
        let read = || {
            let text = std::env::var("FANFOLD_TEST_FAULT").ok()?;
            let (place, how) = text.split_once('=')?;
            let (deed, left) = how.split_once('@')?;
            let deed = match deed {
                "panic" => Deed::Panic,
                "stop" => Deed::Signal(Signal::STOP),
                _ => Deed::Signal(Signal::KILL),
            };
            Some(Fault { place: place.to_owned(), deed, left: AtomicU32::new(left.parse().ok()?) })
        };
        FAULT.get_or_init(read).as_ref()
    }

    pub fn at(place: &str) {
        let Some(fault) = fault().filter(|fault| fault.place == place) else { return };
        if fault.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)) == Ok(1) {
            let Deed::Signal(signal) = fault.deed else { std::panic::panic_any(format!("planted at {place}")) };
            let _ = writeln!(std::io::stderr(), "fault: {signal:?} at {place}");
            let sent = kill_process(getpid(), signal);
            assert!(sent.is_ok(), "a process may signal itself");
            // Another thread may be the one that takes the signal: this one must not go on before it has.
            std::thread::sleep(TAKEN_WITHIN);
        }
    }

    pub fn planted(defect: Planted) -> bool {
        static PLANTED: OnceLock<Option<String>> = OnceLock::new();
        PLANTED.get_or_init(|| std::env::var("FANFOLD_TEST_PLANT").ok()).as_deref() == Some(defect.name())
    }
}
