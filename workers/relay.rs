//! `fanfold-relay`: a worker process that drives again what is not done, and clears up behind it.

fn main() -> std::process::ExitCode {
    fanfold::cli::worker::main(fanfold::service::worker::Role::Relay)
}
