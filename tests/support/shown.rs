//! Everything that a test has seen, and the secrets that it must not find there, in whatever form.

#![allow(dead_code, reason = "each test program uses its part")]

use std::cell::RefCell;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use fanfold::access::KeyText;

/// The forms in which secrets might get out.
#[derive(Default)]
pub struct Secrets(Vec<Vec<u8>>);

impl Secrets {
    /// A producer's key, or a viewer's token.
    pub fn credential(&mut self, text: &str) {
        let Some(key) = KeyText::parse(text) else {
            // Its signature; the other parts of a token are no secrets.
            return self.encoded(text.rsplit('.').next().expect("a signature"));
        };
        let secret = key.reveal_secret();
        let digits = (0..secret.len()).step_by(2).map(|at| &secret[at..at + 2]);
        let bytes: Vec<u8> = digits.map(|two| u8::from_str_radix(two, 16).expect("hexadecimal digits")).collect();
        self.bytes(&bytes);
        for password in [secret, key.reveal()] {
            self.0.push(STANDARD.encode(format!("{}:{password}", key.id)).into_bytes());
        }
    }

    /// What is written in base64url: the `k` of a JWK, the signature of a token.
    pub fn encoded(&mut self, text: &str) {
        self.bytes(&URL_SAFE_NO_PAD.decode(text).expect("base64url"));
    }

    /// A server's password. Its driver puts a user's name before it, so in base64 it may begin at any of three places.
    pub fn password(&mut self, text: &str) {
        self.bytes(text.as_bytes());
        for before in 0..3_usize {
            let encoded = STANDARD_NO_PAD.encode([&[0; 2][..before], text.as_bytes()].concat()).into_bytes();
            // Without the characters that hold bits of what is beside it as well.
            self.0.push(encoded[(before * 8).div_ceil(6)..encoded.len() - 1].to_vec());
        }
    }

    /// Either half is too much, since some of what is shown to a service is cut short.
    pub fn bytes(&mut self, bytes: &[u8]) {
        let (first, second) = bytes.split_at(bytes.len() / 2);
        for half in [first, second] {
            let hex: String = half.iter().map(|byte| format!("{byte:02x}")).collect();
            let numbers: Vec<String> = half.iter().map(u8::to_string).collect();
            let texts = [hex.to_uppercase(), hex, numbers.join(", "), numbers.join(",")];
            self.0.extend(texts.map(String::into_bytes));
            self.0.push(half.to_vec());
        }
        self.0.extend([STANDARD_NO_PAD.encode(bytes), URL_SAFE_NO_PAD.encode(bytes)].map(String::into_bytes));
    }

    /// Whether one of them is in `bytes`.
    pub fn are_in(&self, bytes: &[u8]) -> bool {
        // By how they begin: a data folder is large, and this is no release build.
        let begin = |bytes: &[u8]| usize::from(u16::from_be_bytes([bytes[0], bytes[1]]));
        let mut begins = vec![false; 1 << 16];
        self.0.iter().for_each(|secret| begins[begin(secret)] = true);
        let is_at = |at: usize| self.0.iter().any(|secret| bytes[at..].starts_with(secret));
        bytes.windows(2).enumerate().any(|(at, two)| begins[begin(two)] && is_at(at))
    }
}

/// What was seen, and where.
#[derive(Default)]
pub struct Shown(RefCell<Vec<(String, Vec<u8>)>>);

impl Shown {
    /// Keeps it until the end.
    pub fn keep(&self, place: &str, bytes: impl Into<Vec<u8>>) {
        self.0.borrow_mut().push((place.to_owned(), bytes.into()));
    }

    /// Asks, and keeps all of the answer: its head, and its body.
    pub async fn answer(&self, what: &str, ask: reqwest::RequestBuilder) -> (u16, reqwest::header::HeaderMap, String) {
        let answer = ask.send().await.expect("answered");
        let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
        for (name, value) in &headers {
            self.keep(&format!("{name} of {what}"), value.as_bytes());
        }
        let text = answer.text().await.expect("text");
        self.keep(what, text.as_str());
        (status, headers, text)
    }

    /// Panics if any of `secrets` was seen anywhere.
    pub fn hides(&self, secrets: &Secrets) {
        for (place, bytes) in self.0.borrow().iter() {
            assert!(!secrets.are_in(bytes), "a secret is in what was shown: {place}");
        }
    }
}
