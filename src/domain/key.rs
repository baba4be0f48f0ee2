//! Producers' keys: who holds one, what it opens, until when. The secret itself is nowhere, only its hash.

use std::fmt;
use std::time::Duration;

use super::ids::ProducerId;
use super::time::Time;

/// What a key is found by: eight random bytes, written as sixteen hexadecimal digits. No secret.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId([u8; 8]);

impl KeyId {
    /// From its eight bytes.
    pub const fn from_bytes(bytes: [u8; 8]) -> Self {
        Self(bytes)
    }

    /// The eight bytes.
    pub const fn as_bytes(&self) -> &[u8; 8] {
        &self.0
    }

    /// Parses the sixteen digits, in lower case.
    pub fn parse(text: &str) -> Option<Self> {
        from_hex(text).map(Self)
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// `2 * N` hexadecimal digits in lower case as bytes.
pub fn from_hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let text = text.as_bytes();
    if text.len() != 2 * N {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}

/// SHA-256 of a key's secret. Never shown, not even for debugging.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct SecretHash(pub [u8; 32]);

impl fmt::Debug for SecretHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[hash]")
    }
}

/// One thing that a key opens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scope {
    /// Publish posts; edit and retract one's own.
    Publish,
    /// Look at one's own posts and their fan-out.
    Read,
    /// Read and mark on behalf of any viewer: for a backend in front of its clients.
    Viewers,
    /// Hand out viewers' tokens.
    Tokens,
    /// Read the metrics.
    Metrics,
    /// Make, list, rotate and revoke keys.
    Admin,
}

impl Scope {
    /// Every scope.
    pub const ALL: [Scope; 6] =
        [Scope::Publish, Scope::Read, Scope::Viewers, Scope::Tokens, Scope::Metrics, Scope::Admin];

    /// The scope's name, everywhere.
    pub fn name(self) -> &'static str {
        match self {
            Self::Publish => "publish",
            Self::Read => "read",
            Self::Viewers => "viewers",
            Self::Tokens => "tokens",
            Self::Metrics => "metrics",
            Self::Admin => "admin",
        }
    }

    /// The scope of a name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|scope| scope.name() == name)
    }
}

/// A set of scopes.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Scopes(u8);

impl Scopes {
    /// Whether `scope` is among them.
    pub fn has(self, scope: Scope) -> bool {
        self.0 & (1 << scope as u8) != 0
    }

    /// Whether there is none.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Those that are among them, in the order of [`Scope::ALL`].
    pub fn iter(self) -> impl Iterator<Item = Scope> {
        Scope::ALL.into_iter().filter(move |scope| self.has(*scope))
    }

    /// Their names, separated by commas: how stores keep them.
    pub fn names(self) -> String {
        self.iter().map(Scope::name).collect::<Vec<_>>().join(",")
    }

    /// The inverse of [`Scopes::names`]. A name that this release does not know opens nothing here, so it is left out.
    pub fn from_names(names: &str) -> Self {
        names.split(',').filter_map(Scope::from_name).collect()
    }
}

impl FromIterator<Scope> for Scopes {
    fn from_iter<I: IntoIterator<Item = Scope>>(scopes: I) -> Self {
        Self(scopes.into_iter().fold(0, |set, scope| set | 1 << scope as u8))
    }
}

impl fmt::Debug for Scopes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.names())
    }
}

/// A producer's key, as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProducerKey {
    /// What it is found by.
    pub id: KeyId,
    /// Whom it stands for. Several keys may stand for one producer: a rotated one does beside its successor.
    pub producer: ProducerId,
    /// What people call it.
    pub name: String,
    /// What it opens.
    pub scopes: Scopes,
    /// SHA-256 of its secret.
    pub hash: SecretHash,
    /// When it was made.
    pub created_at: Time,
    /// When it stops working by itself.
    pub expires_at: Option<Time>,
    /// When it would have, as it was made, if that end was brought forward since: [`Time::MAX`] for never. Releases that
    /// knew nothing of this brought ends forward without it.
    pub made_until: Option<Time>,
    /// When it was taken back.
    pub revoked_at: Option<Time>,
    /// When it was last used, roughly.
    pub last_used: Option<Time>,
}

impl ProducerKey {
    /// Whether it works at `now`.
    pub fn is_live(&self, now: Time) -> bool {
        self.revoked_at.is_none() && self.expires_at.is_none_or(|at| now < at)
    }

    /// When it stopped working, if it has.
    pub fn ended_at(&self, now: Time) -> Option<Time> {
        let expired = self.expires_at.filter(|at| *at <= now);
        [self.revoked_at, expired].into_iter().flatten().min()
    }

    /// How long it was made for, whatever has brought its end forward since; `None` is for ever.
    pub fn life(&self) -> Option<Duration> {
        let until = self.made_until.or(self.expires_at).filter(|until| *until < Time::MAX)?;
        Some(until.since(self.created_at))
    }
}

/// How a key ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyEnd {
    /// Taken back, from this instant on and for good.
    Revoked(Time),
    /// It goes on working until this instant, but no longer than it would have anyway.
    Expires(Time),
}

impl KeyEnd {
    /// `key` with this end. Neither a revocation nor an expiry is ever put off; how long it was made for stays known.
    pub fn apply(self, key: &mut ProducerKey) {
        match self {
            Self::Revoked(at) => key.revoked_at = Some(key.revoked_at.map_or(at, |known| known.min(at))),
            Self::Expires(at) if key.expires_at.is_none_or(|known| at < known) => {
                key.made_until = key.made_until.or(key.expires_at).or(Some(Time::MAX));
                key.expires_at = Some(at);
            }
            Self::Expires(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_sixteen_digits_in_lower_case() {
        let id = KeyId::from_bytes([0, 1, 2, 0xab, 0xcd, 0xef, 8, 9]);
        assert_eq!(id.to_string(), "000102abcdef0809");
        assert_eq!(KeyId::parse("000102abcdef0809"), Some(id));
        for bad in
            ["", "000102abcdef080", "000102abcdef08091", "000102ABCDEF0809", "000102abcdef080g", "ä00102abcdef08"]
        {
            assert_eq!(KeyId::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn scopes_keep_their_names_and_pass_over_unknown_ones() {
        let scopes: Scopes = [Scope::Admin, Scope::Publish].into_iter().collect();
        assert_eq!(scopes.names(), "publish,admin");
        assert_eq!(Scopes::from_names("admin,later,publish"), scopes);
        assert!(scopes.has(Scope::Admin) && !scopes.has(Scope::Read) && Scopes::from_names("").is_empty());
    }

    fn key(expires_at: Option<Time>) -> ProducerKey {
        ProducerKey {
            id: KeyId::from_bytes([1; 8]),
            producer: ProducerId::local(),
            name: "shop".into(),
            scopes: Scopes::default(),
            hash: SecretHash([7; 32]),
            created_at: Time::from_millis(0),
            expires_at,
            made_until: None,
            revoked_at: None,
            last_used: None,
        }
    }

    #[test]
    fn an_end_is_never_put_off() {
        let at = Time::from_millis;
        let mut key = key(Some(at(100)));
        KeyEnd::Expires(at(200)).apply(&mut key);
        assert_eq!(key.expires_at, Some(at(100)));
        KeyEnd::Expires(at(50)).apply(&mut key);
        assert!(key.is_live(at(49)) && !key.is_live(at(50)));
        KeyEnd::Revoked(at(20)).apply(&mut key);
        KeyEnd::Revoked(at(30)).apply(&mut key);
        assert_eq!((key.revoked_at, key.ended_at(at(60))), (Some(at(20)), Some(at(20))));
        assert!(!format!("{key:?}").contains('7'), "the hash is not shown");
    }

    #[test]
    fn how_long_a_key_was_made_for_stays_known() {
        let at = Time::from_millis;
        for (made_until, life) in [(Some(at(100)), Some(Duration::from_millis(100))), (None, None)] {
            let mut key = key(made_until);
            for end in [KeyEnd::Expires(at(50)), KeyEnd::Expires(at(20)), KeyEnd::Expires(at(80))] {
                assert_eq!(key.life(), life);
                end.apply(&mut key);
            }
            assert_eq!((key.expires_at, key.life()), (Some(at(20)), life));
        }
        let mut late = key(Some(at(100)));
        KeyEnd::Expires(at(200)).apply(&mut late);
        assert_eq!(late, key(Some(at(100))), "nothing came earlier, so there is nothing to remember");
    }
}
