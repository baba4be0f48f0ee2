//! The operations on records and quotas as Lua scripts: atomic, and a hundred records a call.

use redis::aio::MultiplexedConnection;
use redis::{ErrorKind, RedisResult, Script, ServerErrorKind};

use crate::domain::revision::RING_MAX;
use crate::domain::{Change, Charge, Holder, PostId};

/// What a script answers of a record: `epoch | counter | floor`.
pub type Head = Vec<u8>;

/// Records a call of the bump script takes: enough to be quick, few enough that others need not wait long.
pub const BUMP_RECORDS: usize = 100;

/// The scripts. Each call loads its script again where the server does not know it (any more).
#[derive(Debug)]
pub struct Scripts {
    bump: Script,
    mark: Script,
    open: Script,
    quota: Script,
}

impl Scripts {
    /// The scripts, those on records each with the functions they share.
    pub fn new() -> Self {
        let script = |body: &str| Script::new(&[include_str!("lua/record.lua"), body].concat());
        Self {
            bump: script(include_str!("lua/bump.lua")),
            mark: script(include_str!("lua/mark.lua")),
            open: script(include_str!("lua/open.lua")),
            quota: Script::new(include_str!("lua/quota.lua")),
        }
    }

    /// Gives all of them to the server.
    pub async fn load(&self, connection: &mut MultiplexedConnection) -> RedisResult<()> {
        for script in [&self.bump, &self.mark, &self.open, &self.quota] {
            script.load_async(connection).await?;
        }
        Ok(())
    }

    /// Bumps the records `viewers` have, and rings their channels.
    pub async fn bump<'a>(
        &self,
        mut connection: MultiplexedConnection,
        keys: &Keys,
        viewers: impl ExactSizeIterator<Item = &'a str>,
        change: Change,
    ) -> RedisResult<()> {
        // Not by way of [`Script`], which copies every key twice; this is the most frequent call there is.
        let mut call = redis::cmd("EVALSHA");
        call.arg(self.bump.get_hash()).arg(viewers.len());
        let mut key = keys.records.clone();
        for viewer in viewers {
            key.truncate(keys.records.len());
            key.push_str(viewer);
            call.arg(&key);
        }
        call.arg(change.post_id.as_bytes())
            .arg(&change.version.to_be_bytes())
            .arg(&keys.channels)
            .arg(keys.records.len());
        match call.query_async(&mut connection).await {
            Err(error) if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript) => {
                self.bump.load_async(&mut connection).await?;
                call.query_async(&mut connection).await
            }
            bumped => bumped,
        }
    }

    /// Marks `posts` in a viewer's record; its head before and after, if there is one.
    pub async fn mark(
        &self,
        mut connection: MultiplexedConnection,
        keys: &Keys,
        viewer: &str,
        stamp: u32,
        posts: &[PostId],
    ) -> RedisResult<Option<(Head, Head)>> {
        // Too many leave a gap, for which the script need not know their ids.
        let named = if posts.len() > RING_MAX { &[] } else { posts };
        let ids: Vec<u8> = named.iter().flat_map(|post| *post.as_bytes()).collect();
        let mut call = self.mark.key(keys.record(viewer));
        call.arg(&stamp.to_be_bytes()).arg(keys.channel(viewer)).arg(posts.len()).arg(ids);
        call.invoke_async(&mut connection).await
    }

    /// The head of a viewer's record, which is made with `epoch` if there is none, and lives for `ttl_s` from now or
    /// at least half of it.
    pub async fn open(
        &self,
        mut connection: MultiplexedConnection,
        keys: &Keys,
        viewer: &str,
        epoch: u64,
        ttl_s: u64,
    ) -> RedisResult<Head> {
        let mut call = self.open.key(keys.record(viewer));
        call.arg(&epoch.to_be_bytes()).arg(ttl_s).invoke_async(&mut connection).await
    }

    /// Takes what a charge asks for or puts it back, or says what it lacks: a byte, and what is left of each allowance.
    pub async fn quota(
        &self,
        mut connection: MultiplexedConnection,
        keys: &Keys,
        charge: &Charge<'_>,
    ) -> RedisResult<Vec<u8>> {
        let mut call = self.quota.key(keys.allowances(charge.holder));
        call.arg(charge.terms as u8);
        for take in charge.takes {
            let (per_s, burst, cost) = take.map_or((0, 0, 0), |take| (take.rate.per_s, take.rate.burst, take.cost));
            call.arg(per_s).arg(burst).arg(cost);
        }
        call.invoke_async(&mut connection).await
    }
}

/// Where records, wake-ups and quotas are in Redis.
#[derive(Clone, Debug)]
pub struct Keys {
    records: String,
    channels: String,
    key_quotas: String,
    poll_quotas: String,
}

impl Keys {
    /// Everything under `prefix`.
    pub fn new(prefix: &str) -> Self {
        Self {
            records: format!("{prefix}:r:"),
            channels: format!("{prefix}:c:"),
            key_quotas: format!("{prefix}:q:"),
            poll_quotas: format!("{prefix}:p:"),
        }
    }

    /// The key of a viewer's record.
    pub fn record(&self, viewer: &str) -> String {
        [&self.records, viewer].concat()
    }

    /// The key of what is left to a holder.
    pub fn allowances(&self, holder: Holder<'_>) -> String {
        match holder {
            Holder::Key(id) => format!("{}{id}", self.key_quotas),
            Holder::Viewer(viewer) => [&self.poll_quotas, viewer.as_str()].concat(),
        }
    }

    /// The channel that is rung when a viewer's record has moved.
    pub fn channel(&self, viewer: &str) -> String {
        [&self.channels, viewer].concat()
    }

    /// Whose channel it is.
    pub fn viewer_of<'a>(&self, channel: &'a str) -> Option<&'a str> {
        channel.strip_prefix(&self.channels)
    }
}
