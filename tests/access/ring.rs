//! Keys of every kind, and tokens signed with them: good ones and forged ones.

use std::time::{SystemTime, UNIX_EPOCH};

use aws_lc_rs::encoding::AsDer as _;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, RsaPublicKeyComponents};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde_json::{Value, json};

use crate::AUDIENCE;

/// One key.
pub struct SigningKey {
    pub kid: &'static str,
    pub algorithm: Algorithm,
    key: EncodingKey,
}

/// One key of each kind.
pub struct Ring {
    pub keys: [SigningKey; 4],
}

impl SigningKey {
    pub fn generate(kid: &'static str, algorithm: Algorithm) -> Self {
        let key = match algorithm {
            Algorithm::HS256 => EncodingKey::from_secret(&rand::random::<[u8; 32]>()),
            Algorithm::ES256 => {
                let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new());
                EncodingKey::from_ec_der(pkcs8.expect("generated").as_ref())
            }
            Algorithm::EdDSA => {
                // PKCS#8 of an Ed25519 seed (RFC 8410, 7).
                let head = [0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];
                EncodingKey::from_ed_der(&[&head[..], &rand::random::<[u8; 32]>()].concat())
            }
            _ => {
                let pair = aws_lc_rs::rsa::KeyPair::generate(KeySize::Rsa2048).expect("generated");
                // PKCS#1 is what PKCS#8 wraps; for 2,048 bits the wrapping has 26 bytes.
                EncodingKey::from_rsa_der(&pair.as_der().expect("encoded").as_ref()[26..])
            }
        };
        Self { kid, algorithm, key }
    }

    /// The public part, or the shared secret, as a JWK.
    pub fn jwk(&self) -> Value {
        let jwk = Jwk::from_encoding_key(&self.key, self.algorithm).expect("a JWK");
        let mut jwk = serde_json::to_value(jwk).expect("JSON");
        jwk["kid"] = json!(self.kid);
        jwk
    }

    /// A token with these claims.
    pub fn sign(&self, claims: &Value) -> String {
        self.sign_with(Header { kid: Some(self.kid.to_owned()), ..Header::new(self.algorithm) }, claims)
    }

    /// The same, under a header of the caller's.
    pub fn sign_with(&self, header: Header, claims: &Value) -> String {
        encode(&header, claims, &self.key).expect("signed")
    }

    /// A good token for an hour.
    pub fn token(&self, viewer: &str) -> String {
        self.sign(&claims(viewer))
    }
}

impl Ring {
    pub fn new() -> Self {
        let key = SigningKey::generate;
        Self {
            keys: [
                key("hs", Algorithm::HS256),
                key("es", Algorithm::ES256),
                key("ed", Algorithm::EdDSA),
                key("rs", Algorithm::RS256),
            ],
        }
    }

    /// The set that a service checks tokens with.
    pub fn jwks(&self) -> String {
        json!({"keys": self.keys.iter().map(SigningKey::jwk).collect::<Vec<_>>()}).to_string()
    }

    pub fn by(&self, algorithm: Algorithm) -> &SigningKey {
        self.keys.iter().find(|key| key.algorithm == algorithm).expect("one of each kind")
    }

    /// A good token.
    pub fn token(&self, viewer: &str) -> String {
        self.by(Algorithm::ES256).token(viewer)
    }

    /// Signed with a secret that is a public key: what fools who lets the token choose the algorithm. Each public key,
    /// under its own name, in each of the forms in which somebody may have it.
    pub fn confused(&self, viewer: &str) -> Vec<String> {
        // The beginnings of a SubjectPublicKeyInfo for P-256 (RFC 5480, 2) and for Ed25519 (RFC 8410, 4).
        const P256: [u8; 26] = [
            0x30, 0x59, 0x30, 0x13, 6, 7, 0x2a, 0x86, 0x48, 0xce, 0x3d, 2, 1, 6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1,
            7, 3, 0x42, 0,
        ];
        const ED25519: [u8; 12] = [0x30, 0x2a, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 3, 0x21, 0];

        let forge = |kid: &str, secret: &[u8]| {
            let header = Header { kid: Some(kid.to_owned()), ..Header::new(Algorithm::HS256) };
            encode(&header, &claims(viewer), &EncodingKey::from_secret(secret)).expect("signed")
        };
        let kinds = [(Algorithm::RS256, "n"), (Algorithm::ES256, "x"), (Algorithm::EdDSA, "x")];
        let each = kinds.into_iter().flat_map(|(algorithm, main)| {
            let key = self.by(algorithm);
            let jwk = key.jwk();
            let text = |name: &str| jwk[name].as_str().expect("a part of the key");
            let part = |name: &str| URL_SAFE_NO_PAD.decode(text(name)).expect("base64url");
            let (raw, der) = match algorithm {
                Algorithm::RS256 => {
                    let public = RsaPublicKeyComponents { n: part("n"), e: part("e") };
                    (part("n"), public.as_der().expect("encoded").as_ref().to_vec())
                }
                Algorithm::ES256 => {
                    let point = [vec![4], part("x"), part("y")].concat();
                    assert_eq!(point.len(), 65, "a point as it is, not squeezed");
                    let der = [&P256[..], &point].concat();
                    (point, der)
                }
                _ => {
                    assert_eq!(part("x").len(), 32, "all of the key");
                    (part("x"), [&ED25519[..], &part("x")].concat())
                }
            };
            let (pem, whole) = (pem(&der), jwk.to_string());
            let forms: [&[u8]; 6] =
                [&raw, text(main).as_bytes(), whole.as_bytes(), &der, pem.as_bytes(), pem.trim_end().as_bytes()];
            forms.map(|secret| forge(key.kid, secret))
        });
        each.collect()
    }

    /// Not signed at all, said in each of the ways that have worked somewhere.
    pub fn unsigned(&self, viewer: &str) -> Vec<String> {
        let part = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let good = self.token(viewer);
        let signature = good.rsplit('.').next().expect("a signature");
        ["none", "None", "NONE", "nOnE", ""]
            .iter()
            .flat_map(|alg| {
                let head = part(json!({"alg": alg, "typ": "JWT", "kid": "es"}));
                let body = part(claims(viewer));
                [format!("{head}.{body}."), format!("{head}.{body}"), format!("{head}.{body}.{signature}")]
            })
            .collect()
    }
}

/// A public key as people pass it on (RFC 7468, 13).
fn pem(der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let lines: Vec<_> = text.as_bytes().chunks(64).map(String::from_utf8_lossy).collect();
    format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", lines.join("\n"))
}

/// Seconds since 1970.
pub fn now() -> i64 {
    i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs()).expect("fits")
}

/// The claims of a good token.
pub fn claims(viewer: &str) -> Value {
    json!({"sub": viewer, "aud": AUDIENCE, "iat": now(), "exp": now() + 3_600})
}

/// The same, but for what `more` says; a null takes a claim away.
pub fn claims_with(viewer: &str, more: Value) -> Value {
    let mut claims = claims(viewer);
    for (name, value) in more.as_object().expect("an object") {
        match value {
            Value::Null => drop(claims.as_object_mut().expect("an object").remove(name)),
            value => claims[name] = value.clone(),
        }
    }
    claims
}
