//! What comes in `Authorization`, and what a producer's key looks like: `ffk_<id>_<secret>`, in hexadecimal digits.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest as _, Sha256};

use crate::domain::key::from_hex;
use crate::domain::{KeyId, SecretHash};
use crate::error::{Error, Kind, Result};

/// What every producer's key begins with.
const PREFIX: &str = "ffk_";

/// The secret of a producer's key: 32 random bytes. Shown once, to whoever asked for the key.
#[derive(Clone, Copy)]
pub struct KeySecret([u8; 32]);

impl KeySecret {
    /// A fresh one.
    pub fn random() -> Self {
        Self(rand::random())
    }

    /// What is kept of it. Not slowed down as a password would be: nobody guesses 256 random bits.
    pub fn hash(&self) -> SecretHash {
        SecretHash(Sha256::digest(self.0).into())
    }

    fn digits(&self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

impl fmt::Debug for KeySecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

/// A producer's key as its holder has it.
#[derive(Clone, Copy, Debug)]
pub struct KeyText {
    /// What it is found by.
    pub id: KeyId,
    /// What proves it.
    pub secret: KeySecret,
}

impl KeyText {
    /// The whole key, for `Authorization: Bearer`. This is the one way to the secret: for whoever made the key.
    pub fn reveal(&self) -> String {
        format!("{PREFIX}{}_{}", self.id, self.secret.digits())
    }

    /// The secret alone, the password of Basic.
    pub fn reveal_secret(&self) -> String {
        self.secret.digits()
    }

    /// Reads a whole key.
    pub fn parse(text: &str) -> Option<Self> {
        let (id, secret) = text.strip_prefix(PREFIX)?.split_once('_')?;
        Some(Self { id: KeyId::parse(id)?, secret: KeySecret(from_hex(secret)?) })
    }
}

/// Whether `text` is, or has in it, something that must be kept secret: a producer's key or a signed token. For telling
/// people who put one where others can see it.
pub fn looks_secret(text: &str) -> bool {
    // The user and password of an address are Basic. There may be several addresses, and several hosts in one.
    let before_hosts = text.split("://").skip(1).flat_map(|rest| rest.rsplit('@').skip(1));
    let mut users = before_hosts.filter_map(|part| part.rsplit([',', ';', '/', ' ']).next()?.split_once(':'));
    // Whatever a token cannot have in it ends one: a space, a quote, what stands between the parts of an address.
    let mut words = text.split(|c: char| !(c.is_ascii_alphanumeric() || "-_.".contains(c)));
    has_key(text) || words.any(is_token) || users.any(|(user, password)| key_of(user, password).is_some())
}

/// Whether a producer's key begins anywhere in `text`. Its id is enough, and so is the length of one: a key with a slip
/// of the pen in it is told as well.
fn has_key(text: &str) -> bool {
    text.split(PREFIX).skip(1).any(|rest| {
        let has_id = rest.split_once('_').is_some_and(|(id, _)| KeyId::parse(id).is_some());
        has_id || rest.bytes().take_while(|byte| byte.is_ascii_alphanumeric() || *byte == b'_').count() > 32
    })
}

fn is_token(word: &str) -> bool {
    let parts: Vec<&str> = word.split('.').collect();
    parts.len() == 3 && word.starts_with("eyJ") && parts.iter().all(|part| part.len() > 8)
}

/// What a request shows.
#[derive(Clone, Copy, Debug)]
pub enum Credential<'a> {
    /// A producer's key.
    Key(KeyText),
    /// Something that may be a viewer's token.
    Token(TokenText<'a>),
}

/// The text of a token, which is as good as a password while it lasts.
#[derive(Clone, Copy)]
pub struct TokenText<'a>(pub &'a str);

impl fmt::Debug for TokenText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[token]")
    }
}

impl<'a> Credential<'a> {
    /// Reads the value of an `Authorization` header.
    pub fn parse(value: &'a str, bytes_max: usize) -> Result<Self> {
        if value.len() > bytes_max {
            let (limit, size) = (bytes_max as u64, value.len() as u64);
            let detail = format!("must have at most {limit} bytes, has {size}");
            return Err(Error::limit("credentials_too_large", "Authorization", detail, limit, size));
        }
        let (scheme, rest) = value.trim().split_once(' ').ok_or_else(malformed)?;
        let rest = rest.trim_start();
        if scheme.eq_ignore_ascii_case("bearer") {
            if !rest.starts_with(PREFIX) {
                return Ok(Self::Token(TokenText(rest)));
            }
            return KeyText::parse(rest).map(Self::Key).ok_or_else(malformed);
        }
        if scheme.eq_ignore_ascii_case("basic") {
            return basic(rest).map(Self::Key).ok_or_else(malformed);
        }
        Err(malformed())
    }
}

/// The user is the key's id, the password its secret; the whole key is taken as a password as well.
fn basic(text: &str) -> Option<KeyText> {
    let decoded = STANDARD.decode(text).ok()?;
    let (user, password) = std::str::from_utf8(&decoded).ok()?.split_once(':')?;
    key_of(user, password)
}

fn key_of(user: &str, password: &str) -> Option<KeyText> {
    let id = KeyId::parse(user)?;
    let whole = || KeyText::parse(password).filter(|key| key.id == id).map(|key| key.secret);
    Some(KeyText { id, secret: from_hex(password).map(KeySecret).or_else(whole)? })
}

/// Never says what came: it may be a secret with a slip of the pen in it.
fn malformed() -> Error {
    let detail = "must be Bearer and a key or a viewer's token, or Basic with a key's id and secret";
    Error::new(Kind::Unauthenticated, "credentials_malformed", detail).with_field("Authorization")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> KeyText {
        KeyText { id: KeyId::from_bytes([1; 8]), secret: KeySecret([0xab; 32]) }
    }

    fn parse(value: &str) -> Result<Credential<'_>> {
        Credential::parse(value, 8_192)
    }

    #[test]
    fn a_key_is_read_in_each_of_its_forms() {
        let key = key();
        let text = key.reveal();
        assert_eq!(text, format!("ffk_{}_{}", "01".repeat(8), "ab".repeat(32)));
        let encode =
            |user: String, password: String| format!("Basic {}", STANDARD.encode(format!("{user}:{password}")));
        for value in [
            format!("Bearer {text}"),
            format!("bearer   {text}"),
            encode(key.id.to_string(), key.reveal_secret()),
            encode(key.id.to_string(), text.clone()),
        ] {
            let Credential::Key(read) = parse(&value).expect(&value) else { panic!("no key: {value}") };
            assert_eq!((read.id, read.secret.hash()), (key.id, key.secret.hash()));
        }
    }

    #[test]
    fn what_is_no_credential_is_refused_without_being_repeated() {
        let secret = key().reveal();
        let cut = &secret[..secret.len() - 1];
        for value in ["", "Bearer", "Digest x", "Basic !", "Basic eA==", &format!("Bearer {cut}"), &secret] {
            let error = parse(value).expect_err(value);
            assert_eq!((error.code(), error.kind()), ("credentials_malformed", Kind::Unauthenticated));
            assert!(!error.to_string().contains("abab"), "{error}");
        }
        let other = KeyText { id: KeyId::from_bytes([2; 8]), ..key() }.reveal();
        let value = format!("Basic {}", STANDARD.encode(format!("{}:{other}", key().id)));
        assert!(parse(&value).is_err(), "the id of one key with the whole of another");
        let huge = format!("Bearer {}", "x".repeat(100_000));
        assert_eq!(parse(&huge).expect_err("huge").limit_and_value(), Some((8_192, 100_007)));
    }

    #[test]
    fn secrets_are_not_shown_for_debugging() {
        let token = format!("{:?}", parse("Bearer a.b.c").expect("a token"));
        let key = format!("{:?}", parse(&format!("Bearer {}", key().reveal())).expect("a key"));
        assert!(!token.contains("a.b") && !key.contains("abab"), "{token} {key}");
    }

    #[test]
    fn secrets_are_recognised_where_they_should_not_be() {
        let key = key().reveal();
        let token = format!("eyJhbGciOi.{}.{}", "x".repeat(20), "y".repeat(20));
        let [basic, whole] = [&key[21..], &key].map(|password| format!("http://{}:{password}@h:1/", "01".repeat(8)));
        let query = format!("{basic}?x=1");
        for secret in [&key, &format!("--key={key}"), &token, &basic, &whole, &query, &format!("--url={basic}")] {
            assert!(looks_secret(secret), "{secret}");
        }
        for first in ["http://h:1/", "http://a:b@h:1/", "http://h:1/?to=http://a:b@h:1/"] {
            let hosts = basic.replace("://", "://a:b@h1,");
            for text in [format!("{first},{basic}"), format!("{first}?to={basic}"), format!("{basic} {first}"), hosts] {
                assert!(looks_secret(&text), "one address of several: {text}");
            }
        }
        assert!(!looks_secret("http://a:b@h:1/ http://c:d@h:1/"));
        for secret in [&key, &token] {
            for (before, after) in [("Bearer ", ""), ("http://h:1/?k=", "&x=1"), ("{\"k\":\"", "\"}"), ("k:'", "' x")] {
                let text = format!("{before}{secret}{after}");
                assert!(looks_secret(&text), "{text}");
            }
        }
        assert!(looks_secret(&format!("Bearer {}", &key[..21])), "its beginning");
        assert!(!looks_secret("what begins with ffk_ is a key, whoever made it and whatever it opens"));
        for harmless in ["ffk_", "ffk_0101010101010101", "ben", "--data={\"a\":1}", "a.b.c", "eyJ.b.c", "http://a:b@h"]
        {
            assert!(!looks_secret(harmless), "{harmless}");
        }
    }
}
