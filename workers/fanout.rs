//! `fanfold-fanout`: a worker process that takes fan-out tasks, writes inbox rows, bumps revisions.

fn main() -> std::process::ExitCode {
    fanfold::cli::worker::main(fanfold::service::worker::Role::Fanout)
}
