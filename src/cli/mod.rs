//! The command line: one binary that serves, and that talks to a running service.
//!
//! Data goes to standard output, messages to standard error; the exit code tells a script whether to fix the command
//! (64), wait for the service (69), try again (75) or ask for access (77).

mod client;
mod complete;
mod config;
mod duration;
mod fault;
mod inbox;
mod init;
mod keys;
mod mark;
mod ops;
mod out;
mod pages;
mod post;
mod replay;
mod secrets;
mod serve;
mod status;
mod token;
mod trust;
mod watch;
mod wire;
pub mod worker;

use std::process::ExitCode;

use clap::{CommandFactory as _, Parser, Subcommand};

use fault::{EXIT_USAGE, Fault, Result};

const EXAMPLES: &str = "\
Examples:
  fanfold                                   serve on 127.0.0.1:8470, data in ./fanfold-data
  fanfold post --to ben --type story.posted --data '{\"title\":\"Dawn\"}'
  fanfold inbox ben                         what ben sees
  fanfold watch ben                         poll as an app would
  fanfold replay --people 500               load a running service and check every inbox
  fanfold init                              a configuration with access control, and the first key

Exit codes: 0 done, 1 a check failed, 64 usage, 69 unavailable, 75 try again, 77 denied";

/// A fan-out feed service: publish once, one inbox row per viewer, polls that never touch the database
#[derive(Debug, Parser)]
#[command(name = "fanfold", version, before_help = EXAMPLES, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    serve: serve::Args,
}

#[derive(Debug, Subcommand)]
enum Command {
    Serve(serve::Args),
    Post(post::Args),
    Inbox(inbox::Args),
    Watch(watch::Args),
    Status(status::Args),
    Retract(post::RetractArgs),
    Mark(mark::Args),
    Keys(keys::Args),
    Token(token::Args),
    Init(init::Args),
    Replay(replay::Args),
    Config(config::Args),
    Migrate(ops::migrate::Args),
    Doctor(ops::doctor::Args),
    Fanout(ops::fanout::Args),
    Parked(ops::parked::Args),
    Fence(ops::fence::Args),
    Health(ops::health::Args),
    Completions(complete::Args),
}

/// Runs the command that the arguments name.
pub fn main() -> ExitCode {
    if let Some(code) = secrets::refuse("fanfold", secrets::PUBLISHED) {
        return code;
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(told) => {
            // Help goes to standard output, mistakes to standard error; a closed one is no reason to complain.
            let _ = told.print();
            return if told.use_stderr() { ExitCode::from(EXIT_USAGE) } else { ExitCode::SUCCESS };
        }
    };
    match dispatch(cli) {
        Ok(code) => code,
        Err(Fault::PipeClosed) => ExitCode::SUCCESS,
        Err(fault) => {
            out::note(format_args!("fanfold: {fault}"));
            ExitCode::from(fault.exit_code())
        }
    }
}

fn dispatch(cli: Cli) -> Result<ExitCode> {
    let done = |()| ExitCode::SUCCESS;
    match cli.command {
        None => serve::run(cli.serve).map(done),
        Some(Command::Serve(args)) => serve::run(args).map(done),
        Some(Command::Post(args)) => block_on(post::run(args))?.map(done),
        Some(Command::Inbox(args)) => block_on(inbox::run(args))?.map(done),
        Some(Command::Watch(args)) => block_on(watch::run(args))?.map(done),
        Some(Command::Status(args)) => block_on(status::run(args))?.map(done),
        Some(Command::Retract(args)) => block_on(post::retract(args))?.map(done),
        Some(Command::Mark(args)) => block_on(mark::run(args))?.map(done),
        Some(Command::Keys(args)) => block_on(keys::run(args))?.map(done),
        Some(Command::Token(args)) => block_on(token::run(args))?.map(done),
        Some(Command::Init(args)) => block_on(init::run(args))?.map(done),
        Some(Command::Replay(args)) => block_on(replay::run(args))?,
        Some(Command::Config(args)) => config::run(args).map(done),
        Some(Command::Migrate(args)) => block_on(ops::migrate::run(args))?.map(done),
        Some(Command::Doctor(args)) => block_on(ops::doctor::run(args))?,
        Some(Command::Fanout(args)) => block_on(ops::fanout::run(args))?.map(done),
        Some(Command::Parked(args)) => block_on(ops::parked::run(args))?.map(done),
        Some(Command::Fence(args)) => block_on(ops::fence::run(args))?.map(done),
        Some(Command::Health(args)) => block_on(ops::health::run(args))?.map(done),
        Some(Command::Completions(args)) => complete::run(args, Cli::command()).map(done),
    }
}

/// Runs `future` on a runtime of its own; the outer error is that there is none.
fn block_on<F: Future>(future: F) -> Result<F::Output> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    Ok(runtime.map_err(|e| Fault::Local(format!("cannot start the runtime: {e}")))?.block_on(future))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split_whitespace())
    }

    #[test]
    fn the_parser_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn serving_is_what_happens_without_a_command() {
        for line in ["fanfold", "fanfold --listen 127.0.0.1:0 --data d --log-format json"] {
            assert!(parse(line).expect(line).command.is_none(), "{line}");
        }
        assert!(matches!(parse("fanfold serve --config f").expect("serve").command, Some(Command::Serve(_))));
        assert!(parse("fanfold --data d inbox ben").is_err(), "flags of serve do not go with another command");
    }

    #[test]
    fn commands_are_read() {
        let good = [
            "fanfold post --to ben,cleo --to dan --type t --ttl 1h --dry-run --output json",
            "fanfold post --to-file f --type t --data @x --wait",
            "fanfold inbox ben --all --archived",
            "fanfold inbox ben --limit 5 --url http://h:1",
            "fanfold watch ben --interval 2 --wait 25 --count 3",
            "fanfold status p --wait",
            "fanfold retract p",
            "fanfold mark ben p seen --clear",
            "fanfold mark ben --all read",
            "fanfold replay --graph g --concurrency 8",
            "fanfold replay --people 10 --seed 3 --timeout 5m --poll-rounds 1",
            "fanfold keys create --name shop --scope publish,read --expires 90d",
            "fanfold keys create --name ops --scope admin --local --data d --save k",
            "fanfold keys list --output json",
            "fanfold keys revoke 0123456789abcdef",
            "fanfold keys rotate 0123456789abcdef --overlap 0s --key-file k",
            "fanfold token --viewer ben --ttl 1h",
            "fanfold init --listen 0.0.0.0:1 --data d --config c --key-file k",
            "fanfold config default",
            "fanfold config check --config f",
            "fanfold serve --mode cluster --wait-for 60s",
            "fanfold migrate --wait-for 1m --output json",
            "fanfold doctor --config f",
            "fanfold fanout status --output json",
            "fanfold fanout pause",
            "fanfold fanout resume",
            "fanfold fanout set prefetch=64 tasks-bulk=default",
            "fanfold parked list",
            "fanfold parked show 019a0b1c-8d2e-7f30-9a41-5b6c7d8e9f00/3",
            "fanfold parked redrive --all",
            "fanfold parked discard 019a0b1c-8d2e-7f30-9a41-5b6c7d8e9f00/3",
            "fanfold fence list",
            "fanfold fence renew",
            "fanfold health --url https://h:1 --ca-file ca.pem",
            "fanfold inbox ben --url https://h --ca-file ca.pem",
            "fanfold init --mode cluster --if-missing",
            "fanfold completions bash",
        ];
        for line in good {
            assert!(parse(line).is_ok(), "{line}: {}", parse(line).expect_err(line));
        }
    }

    #[test]
    fn nonsense_is_refused() {
        let bad = [
            "fanfold post --type t",
            "fanfold post --to ben",
            "fanfold post --to ben --type t --ttl never",
            "fanfold inbox",
            "fanfold inbox ben --limit 0",
            "fanfold inbox ben --limit 5 --all",
            "fanfold watch ben --wait 61",
            "fanfold mark ben",
            "fanfold mark ben p",
            "fanfold mark ben p loved",
            "fanfold mark ben p read --all read",
            "fanfold mark ben --all read --clear",
            "fanfold replay --graph g --people 10",
            "fanfold replay --concurrency 0",
            "fanfold keys",
            "fanfold keys create --name shop",
            "fanfold keys create --name shop --scope read --data d",
            "fanfold keys revoke shop",
            "fanfold token",
            "fanfold config",
            "fanfold serve --mode both",
            "fanfold fanout set",
            "fanfold fanout set speed=9",
            "fanfold parked redrive",
            "fanfold parked show 3",
            "fanfold nonsense",
        ];
        for line in bad {
            assert!(parse(line).is_err(), "{line}");
        }
    }

    #[test]
    fn every_help_begins_with_examples() {
        fn check(command: &mut clap::Command) {
            let help = command.render_long_help().to_string();
            assert!(help.starts_with("Examples:\n"), "{}:\n{help}", command.get_name());
            command.get_subcommands_mut().filter(|c| c.get_name() != "help").for_each(check);
        }
        let mut command = Cli::command();
        command.build();
        check(&mut command);
    }
}
