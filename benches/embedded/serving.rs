//! What every arm that serves has in common: it prints its address, answers every line on standard input with its CPU time
//! in microseconds, and ends when standard input does: no arm outlives the benchmark that started it.

use std::io::{BufRead as _, Write as _};

use axum::Router;
use axum::serve::ListenerExt as _;
use tokio::net::TcpListener;
use tokio::sync::oneshot;

use crate::measure::{Result, process_cpu_us};

/// Serves on any free port until standard input ends.
pub async fn serve(router: Router) -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    announce(&listener.local_addr()?.to_string())?;
    let listener = listener.tap_io(|stream| {
        // The service sets it too; a connection without it still serves.
        let _ = stream.set_nodelay(true);
    });
    tokio::select! {
        served = axum::serve(listener, router).into_future() => Ok(served?),
        answered = answer_questions(|_| {}) => answered,
    }
}

/// Prints a line for the benchmark that started this arm.
pub fn announce(line: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}")?;
    Ok(out.flush()?)
}

/// Answers until standard input ends; on a thread that costs nothing while nobody asks. `asked` sees each line before it
/// is answered.
pub async fn answer_questions(mut asked: impl FnMut(&str) + Send + 'static) -> Result<()> {
    let (ended, end) = oneshot::channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines() {
            let Ok(line) = line else { break };
            asked(&line);
            if announce(&process_cpu_us().to_string()).is_err() {
                break;
            }
        }
        let _ = ended.send(());
    });
    Ok(end.await?)
}
