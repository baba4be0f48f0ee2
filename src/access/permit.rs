//! Who may do what: one decision, for every route.

use crate::domain::{KeyId, ProducerId, Scope, Scopes, ViewerId};
use crate::error::{Error, Kind, Result};

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Caller {
    /// Nobody was asked who they are: access control is off.
    Anyone,
    /// A producer, by a key.
    Producer {
        /// Which key.
        key: KeyId,
        /// Whom it stands for.
        producer: ProducerId,
        /// What it opens.
        scopes: Scopes,
    },
    /// A viewer, by a token.
    Viewer(ViewerId),
}

impl Caller {
    /// The producer whose posts and idempotency keys the caller works with.
    pub fn producer(&self) -> Result<ProducerId> {
        match self {
            Self::Anyone => Ok(ProducerId::local()),
            Self::Producer { producer, .. } => Ok(producer.clone()),
            Self::Viewer(_) => Err(Error::internal("a viewer has come to where only producers may")),
        }
    }
}

/// What a route asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Nothing.
    Open,
    /// A producer's key with this scope.
    Key(Scope),
    /// The token of the viewer in the path, or a key with the scope [`Scope::Viewers`].
    Inbox,
}

/// An error unless `caller` may use a route that asks for `need`. `viewer` is whose inbox it is, where it is one.
pub fn decide(caller: &Caller, need: Need, viewer: Option<&ViewerId>) -> Result<()> {
    match (caller, need) {
        (Caller::Anyone, _) | (_, Need::Open) => Ok(()),
        (Caller::Producer { scopes, key, .. }, Need::Key(scope)) => has(*scopes, scope, *key),
        (Caller::Producer { scopes, key, .. }, Need::Inbox) => has(*scopes, Scope::Viewers, *key),
        // Every viewer has an inbox, be it empty: that there is one is no secret, so this need not be a 404.
        (Caller::Viewer(own), Need::Inbox) if viewer == Some(own) => Ok(()),
        (Caller::Viewer(_), Need::Inbox) => {
            Err(Error::new(Kind::Forbidden, "viewer_mismatch", "the token is for another viewer's inbox"))
        }
        (Caller::Viewer(_), Need::Key(scope)) => {
            let detail = format!(
                "a viewer's token opens that viewer's inbox alone; this takes a key with the scope {}",
                scope.name()
            );
            Err(Error::new(Kind::Forbidden, "scope_missing", detail))
        }
    }
}

fn has(scopes: Scopes, scope: Scope, key: KeyId) -> Result<()> {
    if scopes.has(scope) {
        return Ok(());
    }
    let detail = format!("the key {key} does not have the scope {}", scope.name());
    Err(Error::new(Kind::Forbidden, "scope_missing", detail))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn viewer(name: &str) -> ViewerId {
        ViewerId::parse("viewer", name).expect("valid")
    }

    fn key(scopes: &[Scope]) -> Caller {
        let scopes = scopes.iter().copied().collect();
        Caller::Producer { key: KeyId::from_bytes([1; 8]), producer: ProducerId::local(), scopes }
    }

    #[test]
    fn a_key_opens_what_its_scopes_say_and_nothing_else() {
        for held in Scope::ALL {
            for asked in Scope::ALL {
                let decided = decide(&key(&[held]), Need::Key(asked), None);
                assert_eq!(decided.is_ok(), held == asked, "{held:?} for {asked:?}: no scope includes another");
            }
            assert_eq!(decide(&key(&[held]), Need::Inbox, Some(&viewer("ben"))).is_ok(), held == Scope::Viewers);
            decide(&key(&[held]), Need::Open, None).expect("open");
        }
        assert_eq!(decide(&key(&[]), Need::Inbox, None).expect_err("none").code(), "scope_missing");
    }

    #[test]
    fn a_token_opens_its_viewers_inbox_and_nothing_else() {
        let ben = Caller::Viewer(viewer("ben"));
        decide(&ben, Need::Inbox, Some(&viewer("ben"))).expect("ben's own");
        for other in [Some(viewer("cleo")), Some(viewer("Ben")), None] {
            let error = decide(&ben, Need::Inbox, other.as_ref()).expect_err("another's");
            assert_eq!((error.code(), error.kind()), ("viewer_mismatch", Kind::Forbidden));
        }
        for scope in Scope::ALL {
            assert_eq!(decide(&ben, Need::Key(scope), None).expect_err("no key").code(), "scope_missing");
        }
        assert!(ben.producer().is_err(), "a viewer publishes nothing");
    }

    #[test]
    fn without_access_control_everybody_is_the_local_producer() {
        decide(&Caller::Anyone, Need::Key(Scope::Publish), None).expect("off");
        assert_eq!(Caller::Anyone.producer().expect("local"), ProducerId::local());
    }
}
