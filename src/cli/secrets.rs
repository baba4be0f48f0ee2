//! Secrets among the arguments of a command: refused before anything is done with them.

use std::ffi::OsString;
use std::process::ExitCode;

use super::fault::EXIT_USAGE;
use super::out;
use crate::access::looks_secret;

/// The options of `fanfold post` whose values are published. A signed token in them may be what somebody has to say; a
/// producer's key is not for anybody to see.
pub const PUBLISHED: &[&str] = &["--data", "--type", "--actor", "--thread"];

/// How `process` ends if one of its arguments is a secret; said without repeating it. `published` are the options of
/// its command `post` that take content, where it has that command.
pub fn refuse(process: &str, published: &[&str]) -> Option<ExitCode> {
    let args: Vec<OsString> = std::env::args_os().collect();
    let place = find(&args, published)?;
    out::note(format_args!(
        "{process}: argument {place} is a key or a token, or has one in it: every user of this machine can see a \
         command's arguments, and the shell's history keeps them. Put it into FANFOLD_KEY, or into a file for \
         --key-file; and since this one has been seen, rotate it"
    ));
    Some(ExitCode::from(EXIT_USAGE))
}

/// The place of the first argument that has a secret in it.
fn find(args: &[OsString], published: &[&str]) -> Option<usize> {
    // Bytes that are no text become a character that no secret has: they end one, and hide none.
    let args: Vec<String> = args.iter().map(|arg| arg.to_string_lossy().into_owned()).collect();
    let is_post = args.get(1).is_some_and(|command| command == "post");
    let is_secret = |place: usize| {
        let before = if place == 0 { "" } else { args[place - 1].as_str() };
        match content(published, before, &args[place]).filter(|_| is_post) {
            Some(content) => has_key(content),
            None => looks_secret(&args[place]),
        }
    };
    (0..args.len()).find(|place| is_secret(*place))
}

/// What `arg` gives to one of `options`: what follows `=`, or all of it where the option stands before it.
fn content<'a>(options: &[&str], before: &str, arg: &'a str) -> Option<&'a str> {
    let content = match arg.split_once('=') {
        Some((option, content)) if options.contains(&option) => content,
        _ if options.contains(&before) => arg,
        _ => return None,
    };
    // The name of a file is not published, and another option is no value.
    Some(content).filter(|content| !content.starts_with(['@', '-']))
}

/// Whether a producer's key is in `text`, whatever tokens are. These have dots in them and keys have none: between dots
/// only a key can be found.
fn has_key(text: &str) -> bool {
    text.split('.').any(looks_secret)
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt as _;

    use clap::CommandFactory as _;

    use super::*;
    use crate::cli::Cli;

    fn key() -> String {
        format!("ffk_{}_{}", "01".repeat(8), "ab".repeat(32))
    }

    fn token() -> String {
        format!("eyJhbGciOi.{}.{}", "x".repeat(20), "y".repeat(20))
    }

    fn found(args: &[&str]) -> Option<usize> {
        let args: Vec<OsString> = args.iter().map(OsString::from).collect();
        find(&args, PUBLISHED)
    }

    #[test]
    fn what_is_published_may_have_a_token_in_it() {
        let data = format!("{{\"token\": \"{}\", \"see\": \"https://a.example.org/?a=b\"}}", token());
        for option in PUBLISHED {
            assert_eq!(found(&["fanfold", "post", "--to", "ben", option, &data]), None, "{option}");
            assert_eq!(found(&["fanfold", "post", "--wait", &format!("{option}={data}"), "--to", "ben"]), None);
        }
    }

    #[test]
    fn what_is_published_may_have_no_key_in_it() {
        let key = key();
        let basic = format!("http://{}:{}@a.example.org", "01".repeat(8), "ab".repeat(32));
        for secret in [&key, &basic, &key[..21].to_owned()] {
            let data = format!("{{\"token\": \"{}\", \"key\": \"a.{secret}.b\"}}", token());
            for option in PUBLISHED {
                assert_eq!(found(&["fanfold", "post", "--to", "ben", option, &data]), Some(5), "{option} {secret}");
                assert_eq!(found(&["fanfold", "post", &format!("{option}={data}")]), Some(2), "{option} {secret}");
            }
        }
    }

    #[test]
    fn where_a_token_may_be_a_credential_it_is_refused() {
        let token = token();
        let (file, assigned_file) = (format!("@{token}"), format!("--data=@{token}"));
        let (option, assigned) = (format!("--key={token}"), format!("--idempotency-key={token}"));
        for args in [
            &["fanfold", "post", token.as_str()][..],
            &["fanfold", "post", "--to", &token],
            &["fanfold", "post", "--to-file", &token],
            &["fanfold", "post", "--idempotency-key", &token],
            &["fanfold", "post", &assigned],
            &["fanfold", "post", "--data", "{}", &token],
            &["fanfold", "post", "--data", &option],
            &["fanfold", "post", "--data", &file],
            &["fanfold", "post", &assigned_file],
            &["fanfold", "serve", "--data", &token],
            &["fanfold", "inbox", "post", "--data", &token],
            &["fanfold", "--data", &token],
        ] {
            assert_eq!(found(args), Some(args.len() - 1), "{args:?}");
        }
        let worker: Vec<OsString> = ["fanfold-relay", "post", "--data", &token].map(OsString::from).into();
        assert_eq!(find(&worker, &[]), Some(3), "workers publish nothing");
    }

    #[test]
    fn bytes_that_are_no_text_hide_no_secret() {
        let within = |before: &[u8], secret: &str, after: &[u8]| {
            let arg = OsString::from_vec([before, secret.as_bytes(), after].concat());
            find(&["fanfold".into(), arg], PUBLISHED)
        };
        for secret in [key(), token(), key()[..21].to_owned()] {
            assert_eq!(within(b"\xff", &secret, b""), Some(1), "{secret}");
            assert_eq!(within(b"", &secret, b"\xff"), Some(1), "{secret}");
            assert_eq!(within(b"caf\xe9\xc3", &secret, b"\xc3"), Some(1), "{secret}");
        }
        assert_eq!(within(b"caf", "", b"\xe9"), None);
    }

    #[test]
    fn what_is_published_goes_by_the_options_of_post() {
        let command = Cli::command();
        let post = command.find_subcommand("post").expect("a command");
        for option in PUBLISHED {
            let is_one = post.get_arguments().any(|arg| arg.get_long() == option.strip_prefix("--"));
            assert!(is_one, "{option}");
        }
    }
}
