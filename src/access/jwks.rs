//! The keys that viewers' tokens are checked with: a JWK set (RFC 7517), read strictly.
//!
//! The algorithm belongs to the key, never to the token: a public RSA key can be nothing but RS256, so nobody can pass a
//! token that is signed with the bytes of that public key as if it were a shared secret.

use std::collections::HashMap;
use std::fmt;
use std::ops::RangeInclusive;

use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, ParsedPublicKey};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey};
use serde::Deserialize;
use serde_json::Value;

use crate::error::{Error, Result};

/// Keys in a set. A set has a few: the present one, and those that are being replaced.
const KEYS_MAX: usize = 100;
/// Bytes of a key's name.
const KID_BYTES_MAX: usize = 256;
/// The least of a shared secret: as much as the hash has (RFC 7518, 3.2).
const SECRET_BYTES_MIN: usize = 32;
/// Bits of an RSA modulus: the least by RFC 7518, 3.3, the most by the library that checks signatures.
const MODULUS_BITS: RangeInclusive<usize> = 2_048..=8_192;
/// Bits of an RSA exponent, by the same library: 1 is none, and long ones cost too much.
const EXPONENT_BITS: RangeInclusive<usize> = 2..=33;

/// A key that tokens are checked with.
pub struct TokenKey {
    /// The one algorithm it is for.
    pub algorithm: Algorithm,
    /// What checks.
    pub verifier: DecodingKey,
}

/// A key that tokens are signed with, for those that we hand out ourselves.
pub struct Signer {
    /// The name of the key.
    pub kid: String,
    /// What signs.
    pub key: EncodingKey,
}

/// The keys of one set.
#[derive(Default)]
pub struct KeySet {
    keys: HashMap<String, TokenKey>,
    signer: Option<Signer>,
}

impl fmt::Debug for KeySet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.keys.keys()).finish()
    }
}

/// One key as it stands in the set. Never printed.
#[derive(Deserialize)]
struct Jwk {
    kty: String,
    kid: Option<String>,
    alg: Option<String>,
    #[serde(rename = "use")]
    purpose: Option<String>,
    crv: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
    k: Option<String>,
    d: Option<String>,
}

impl KeySet {
    /// Reads a set; `field` names the setting it comes from. Keys of kinds that no viewer's token is signed with are
    /// passed over, as RFC 7517 asks for; what is wrong with the others is an error.
    pub fn parse(text: &str, field: &str) -> Result<Self> {
        let wrong = |detail: String| Error::invalid("invalid_jwks", field, detail);
        // serde's own words could repeat a piece of a secret; where it stands is told, what it is is not.
        let place = |e: &serde_json::Error| format!("is no JWK set (line {}, column {})", e.line(), e.column());
        let set: Value = serde_json::from_str(text).map_err(|e| wrong(place(&e)))?;
        let entries = set.get("keys").and_then(Value::as_array);
        let entries = entries.ok_or_else(|| wrong("is no JWK set: it has no list \"keys\"".to_owned()))?;
        if entries.len() > KEYS_MAX {
            let (limit, count) = (KEYS_MAX as u64, entries.len() as u64);
            let detail = format!("must have at most {limit} keys, has {count}");
            return Err(Error::limit("invalid_jwks", field, detail, limit, count));
        }
        let mut keys = Self::default();
        for (at, entry) in entries.iter().enumerate() {
            let jwk = Jwk::deserialize(entry).map_err(|_| wrong(format!("keys[{at}] is no JWK")))?;
            keys.add(&jwk).map_err(|what| wrong(format!("keys[{at}] {what}")))?;
        }
        if keys.keys.is_empty() {
            return Err(wrong("has no key for HS256, ES256, EdDSA or RS256".to_owned()));
        }
        Ok(keys)
    }

    fn add(&mut self, jwk: &Jwk) -> Result<(), String> {
        let Some(algorithm) = algorithm(jwk)? else { return Ok(()) };
        let kid = jwk.kid.clone().unwrap_or_default();
        if kid.is_empty() || kid.len() > KID_BYTES_MAX {
            return Err(format!("must have a \"kid\" of 1 to {KID_BYTES_MAX} bytes"));
        }
        if jwk.d.is_some() {
            return Err("has a private key (\"d\"): tokens are checked here, so give the public part only".to_owned());
        }
        let verifier = verifier(jwk, algorithm).map_err(|what| format!("with the \"kid\" {kid:?} {what}"))?;
        if algorithm == Algorithm::HS256 && self.signer.is_none() {
            let key = EncodingKey::from_secret(&bytes(jwk.k.as_deref(), "k")?);
            self.signer = Some(Signer { kid: kid.clone(), key });
        }
        if self.keys.insert(kid.clone(), TokenKey { algorithm, verifier }).is_some() {
            return Err(format!("has the \"kid\" {kid:?}, and so has another: which of them is meant?"));
        }
        Ok(())
    }

    /// The key of a token: by its name, or the only one there is.
    pub fn find(&self, kid: Option<&str>) -> Option<&TokenKey> {
        match kid {
            Some(kid) => self.keys.get(kid),
            None if self.keys.len() == 1 => self.keys.values().next(),
            None => None,
        }
    }

    /// What tokens are signed with here: the first shared secret of the set.
    pub fn signer(&self) -> Option<&Signer> {
        self.signer.as_ref()
    }

    /// Whether the set has a shared secret, which nobody else may read.
    pub fn is_secret(&self) -> bool {
        self.signer.is_some()
    }

    /// How many keys there are.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }
}

/// The algorithm of a key; `None` if it is for something else than we do.
fn algorithm(jwk: &Jwk) -> Result<Option<Algorithm>, String> {
    if jwk.purpose.as_deref().is_some_and(|purpose| purpose != "sig") {
        return Ok(None);
    }
    let (algorithm, names) = match (jwk.kty.as_str(), jwk.crv.as_deref()) {
        ("oct", _) => (Algorithm::HS256, ["HS256", "HS256"]),
        ("RSA", _) => (Algorithm::RS256, ["RS256", "RS256"]),
        ("EC", Some("P-256")) => (Algorithm::ES256, ["ES256", "ES256"]),
        ("OKP", Some("Ed25519")) => (Algorithm::EdDSA, ["EdDSA", "Ed25519"]),
        _ => return Ok(None),
    };
    match jwk.alg.as_deref() {
        // A key of the right kind for another algorithm of its kind, such as RS512.
        Some(named) if !names.contains(&named) => {
            let others = ["HS256", "RS256", "ES256", "EdDSA", "none"];
            let clash = others.contains(&named);
            if clash { Err(format!("is a key of kind {:?} with \"alg\" {named:?}", jwk.kty)) } else { Ok(None) }
        }
        _ => Ok(Some(algorithm)),
    }
}

/// What checks signatures. A key that none can be checked with is an error: it would be found out by nobody but viewers,
/// each of whose tokens would be refused.
fn verifier(jwk: &Jwk, algorithm: Algorithm) -> Result<DecodingKey, String> {
    match algorithm {
        Algorithm::HS256 => {
            let secret = bytes(jwk.k.as_deref(), "k")?;
            if secret.len() < SECRET_BYTES_MIN {
                return Err(format!("must have a secret of at least {SECRET_BYTES_MIN} bytes, has {}", secret.len()));
            }
            Ok(DecodingKey::from_secret(&secret))
        }
        Algorithm::RS256 => {
            let (n, e) = (bytes(jwk.n.as_deref(), "n")?, bytes(jwk.e.as_deref(), "e")?);
            check_number("n", &n, &MODULUS_BITS)?;
            check_number("e", &e, &EXPONENT_BITS)?;
            Ok(DecodingKey::from_rsa_raw_components(&n, &e))
        }
        Algorithm::ES256 => {
            let (x, y) = (bytes(jwk.x.as_deref(), "x")?, bytes(jwk.y.as_deref(), "y")?);
            if x.len() != 32 || y.len() != 32 {
                return Err("must have an \"x\" and a \"y\" of 32 bytes each".to_owned());
            }
            let point = [&[4], &x[..], &y[..]].concat();
            if ParsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, &point).is_err() {
                return Err("has an \"x\" and a \"y\" that are no point of P-256".to_owned());
            }
            Ok(DecodingKey::from_ec_der(&point))
        }
        _ => {
            // More than that the library that checks signatures does not tell before it has one.
            let x = bytes(jwk.x.as_deref(), "x")?;
            if x.len() != 32 {
                return Err("must have an \"x\" of 32 bytes".to_owned());
            }
            Ok(DecodingKey::from_ed_der(&x))
        }
    }
}

/// Whether the library that checks signatures takes a part of an RSA key; it says so only when it has a signature.
fn check_number(name: &str, bytes: &[u8], bits: &RangeInclusive<usize>) -> Result<(), String> {
    let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else { return Err(format!("has an empty {name:?}")) };
    if *first == 0 {
        // RFC 7518, 2 (Base64urlUInt): no more bytes than it takes.
        return Err(format!("has an {name:?} that begins with a byte of zeros"));
    }
    let has = bytes.len() * 8 - first.leading_zeros() as usize;
    if !bits.contains(&has) {
        let (least, most) = (bits.start(), bits.end());
        return Err(format!("must have an {name:?} of at least {least} bits and at most {most}, has {has}"));
    }
    if *last & 1 == 0 {
        return Err(format!("has an even {name:?}"));
    }
    Ok(())
}

fn bytes(text: Option<&str>, name: &str) -> Result<Vec<u8>, String> {
    let text = text.ok_or_else(|| format!("has no {name:?}"))?;
    URL_SAFE_NO_PAD.decode(text).map_err(|_| format!("has a {name:?} that is no base64url"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 7515, A.3 and A.2; RFC 8037, A.2.
    const P256: &str = r#""kty":"EC","crv":"P-256","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0""#;
    const ED: &str = r#""kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo""#;

    fn oct(bytes: usize) -> String {
        format!(r#""kty":"oct","k":"{}""#, URL_SAFE_NO_PAD.encode(vec![7; bytes]))
    }

    fn rsa(bytes: usize) -> String {
        format!(r#""kty":"RSA","e":"AQAB","n":"{}""#, URL_SAFE_NO_PAD.encode(vec![0xc1; bytes]))
    }

    fn set(keys: &[(&str, &str)]) -> String {
        let keys: Vec<_> = keys.iter().map(|(kid, rest)| format!(r#"{{"kid":"{kid}",{rest}}}"#)).collect();
        format!(r#"{{"keys":[{}]}}"#, keys.join(","))
    }

    #[test]
    fn each_kind_of_key_has_its_one_algorithm() {
        let text = set(&[("a", &oct(32)), ("b", &rsa(256)), ("c", P256), ("d", ED)]);
        let keys = KeySet::parse(&text, "f").expect("a set");
        let algorithm = |kid| keys.find(Some(kid)).expect(kid).algorithm;
        assert_eq!(
            ["a", "b", "c", "d"].map(algorithm),
            [Algorithm::HS256, Algorithm::RS256, Algorithm::ES256, Algorithm::EdDSA]
        );
        assert!(keys.find(None).is_none(), "four to choose from");
        assert!(keys.find(Some("e")).is_none());
        assert_eq!(keys.signer().map(|signer| signer.kid.as_str()), Some("a"));
        assert_eq!((keys.len(), keys.is_secret()), (4, true));
        let alone = KeySet::parse(&set(&[("c", P256)]), "f").expect("a set");
        assert!(alone.find(None).is_some() && !alone.is_secret() && alone.signer().is_none());
    }

    #[test]
    fn what_cannot_be_relied_on_is_refused_without_being_repeated() {
        let secret = oct(31);
        for (text, words) in [
            ("{", "line 1"),
            ("[]", "\"keys\""),
            (r#"{"keys":[5]}"#, "keys[0] is no JWK"),
            (r#"{"keys":[]}"#, "no key for"),
            (&set(&[("a", &secret)]), "32 bytes"),
            (&set(&[("a", &rsa(128))]), "2048 bits"),
            (&set(&[("", ED)]), "\"kid\""),
            (&set(&[("a", ED), ("b", P256), ("a", P256)]), "keys[2] has the \"kid\" \"a\""),
            (&set(&[("a", &format!(r#"{ED},"alg":"HS256""#))]), "\"OKP\" with \"alg\" \"HS256\""),
            (&set(&[("a", &format!(r#"{ED},"alg":"none""#))]), "\"none\""),
            (&set(&[("a", &format!(r#"{ED},"d":"x""#))]), "public part"),
            (&set(&[("a", r#""kty":"EC","crv":"P-256","x":"AA","y":"AA""#)]), "32 bytes each"),
            (&set(&[("a", r#""kty":"oct","k":"*""#)]), "base64url"),
            (&set(&[("a", r#""kty":"oct""#)]), "has no \"k\""),
        ] {
            let error = KeySet::parse(text, "access.jwks").expect_err(words);
            assert_eq!((error.code(), error.field()), ("invalid_jwks", Some("access.jwks")));
            assert!(error.detail().contains(words), "{words:?} is not in {error}");
            assert!(!error.to_string().contains("BwcH"), "{error}");
        }
        let many: Vec<(String, &str)> = (0..101).map(|n| (n.to_string(), ED)).collect();
        let many: Vec<(&str, &str)> = many.iter().map(|(kid, rest)| (&**kid, *rest)).collect();
        assert_eq!(KeySet::parse(&set(&many), "f").expect_err("many").limit_and_value(), Some((100, 101)));
    }

    #[test]
    fn what_no_signature_can_be_checked_with_is_refused_by_its_name() {
        let part = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        let ed = |x: &[u8]| format!(r#""kty":"OKP","crv":"Ed25519","x":"{}""#, part(x));
        let rsa = |n: &[u8], e: &[u8]| format!(r#""kty":"RSA","n":"{}","e":"{}""#, part(n), part(e));
        let (modulus, exponent) = (vec![0xc1; 256], vec![1, 0, 1]);
        let swapped = P256.replace(r#""x""#, r#""z""#).replace(r#""y""#, r#""x""#).replace(r#""z""#, r#""y""#);
        for (key, words) in [
            (swapped, r#"an "x" and a "y" that are no point of P-256"#),
            (ed(&[3; 31]), r#"an "x" of 32 bytes"#),
            (rsa(&[], &exponent), r#"an empty "n""#),
            (rsa(&[0; 256], &exponent), r#"an "n" that begins"#),
            (rsa(&[0xc2; 256], &exponent), r#"an even "n""#),
            (rsa(&[1; 256], &exponent), r#"an "n" of at least 2048 bits and at most 8192, has 2041"#),
            (rsa(&[1; 1_025], &exponent), "has 8193"),
            (rsa(&modulus, &[]), r#"an empty "e""#),
            (rsa(&modulus, &[0, 1, 0, 1]), r#"an "e" that begins"#),
            (rsa(&modulus, &[1]), r#"an "e" of at least 2 bits"#),
            (rsa(&modulus, &[1, 0]), r#"an even "e""#),
            (rsa(&modulus, &[3, 0, 0, 0, 1]), "has 34"),
        ] {
            let error = KeySet::parse(&set(&[("good", ED), ("bad", &key)]), "f").expect_err(words);
            assert_eq!(error.code(), "invalid_jwks");
            let kid = r#"keys[1] with the "kid" "bad" "#;
            assert!(error.detail().starts_with(kid) && error.detail().contains(words), "{words:?} is not in {error}");
        }
        for key in [ed(&[3; 32]), rsa(&modulus, &[3]), rsa(&[0xc1; 1_024], &[1, 0, 0, 0, 1])] {
            KeySet::parse(&set(&[("good", &key)]), "f").expect(&key);
        }
    }

    #[test]
    fn keys_for_other_ends_are_passed_over() {
        let text = set(&[
            ("a", ED),
            ("b", r#""kty":"EC","crv":"P-384","x":"AA","y":"AA""#),
            ("c", &format!(r#"{P256},"use":"enc""#)),
            ("d", &format!(r#"{},"alg":"RS512""#, rsa(256))),
            ("e", r#""kty":"AKP""#),
        ]);
        let keys = KeySet::parse(&text, "f").expect("a set");
        assert_eq!(keys.len(), 1);
        assert!(!format!("{keys:?}").contains("11qY"), "names alone");
    }
}
