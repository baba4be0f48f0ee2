//! How to reach the cluster, and the limits of what is asked of it.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use crate::clock::Clock;
use crate::error::{Error, Result};

/// Posts and chunks stay this much longer than the rows that point to them.
pub(super) const OUTLIVES_ROWS: Duration = Duration::from_secs(7 * 24 * 3600);

/// The longest keyspace name that both ScyllaDB and Cassandra take.
const KEYSPACE_BYTES_MAX: usize = 48;

/// In place of a data centre's name: each of them.
pub(super) const EVERYWHERE: &str = "replication_factor";

/// A user of the cluster.
#[derive(Clone)]
pub struct Credentials {
    /// The name.
    pub user: String,
    /// The password; never shown.
    pub password: String,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("user", &self.user).finish_non_exhaustive()
    }
}

/// How many copies must agree on a read or write of rows. Less than a quorum would let an "unchanged" lie.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Consistency {
    /// A quorum of this data centre.
    #[default]
    LocalQuorum,
    /// A quorum of all copies.
    Quorum,
    /// Writes take a quorum of each data centre, reads a local one.
    EachQuorum,
}

/// How connections are encrypted.
#[derive(Clone, Debug)]
pub struct TlsOptions {
    /// Authorities (PEM) that sign the nodes' certificates; `None`: the system's.
    pub ca_file: Option<PathBuf>,
}

/// Where the cluster is, and which keyspace.
#[derive(Clone, Debug)]
pub struct ClusterOptions {
    /// `host:port`; the driver finds the other nodes itself, under the same port.
    pub contact_points: Vec<String>,
    /// Lower case, digits and underscores.
    pub keyspace: String,
    /// The data centre to stay in; requests do not leave it. `None`: there is only one.
    pub datacenter: Option<String>,
    /// Copies of each row in a data centre; used when the keyspace is created.
    pub replication_factor: u32,
    /// The same by data centre, `name: number` separated by commas; empty: `replication_factor` holds.
    pub replication: String,
    /// How many copies must agree.
    pub consistency: Consistency,
    /// Encrypts the connections.
    pub tls: Option<TlsOptions>,
    /// Who we are, where the cluster asks.
    pub credentials: Option<Credentials>,
    /// How long to try to connect.
    pub connect_timeout: Duration,
}

impl ClusterOptions {
    /// The name goes into CQL text, so it is checked rather than quoted.
    pub(super) fn check(&self) -> Result<()> {
        let name = &self.keyspace;
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        let first = name.chars().next().is_some_and(|c| c.is_ascii_lowercase());
        if !first || !name.chars().all(plain) || name.len() > KEYSPACE_BYTES_MAX {
            let detail = format!(
                "must begin with a letter and have 1 to {KEYSPACE_BYTES_MAX} of a-z, 0-9 and _, but is {name:?}"
            );
            return Err(Error::invalid("invalid_keyspace", "scylla.keyspace", detail));
        }
        if self.datacenter.as_deref().is_some_and(|name| name.is_empty() || name.contains(['\'', '\\'])) {
            return Err(Error::invalid("invalid_datacenter", "scylla.datacenter", "must be the name of a data centre"));
        }
        if self.replication_factor == 0 {
            return Err(Error::invalid("invalid_replication", "scylla.replication_factor", "must be at least 1"));
        }
        let copies = self.copies()?;
        if let Some(here) = self.datacenter.as_ref().filter(|here| !copies.contains_key(*here)) {
            let detail =
                format!("must have the data centre whose nodes are used ({here:?}), is {:?}", self.replication);
            return Err(Error::invalid("invalid_replication", "scylla.replication", detail));
        }
        Ok(())
    }

    /// Copies of each row by data centre; under [`EVERYWHERE`] where none is named.
    pub(super) fn copies(&self) -> Result<BTreeMap<String, u32>> {
        if self.replication.trim().is_empty() {
            let where_to = self.datacenter.as_deref().unwrap_or(EVERYWHERE);
            return Ok([(where_to.to_owned(), self.replication_factor)].into());
        }
        let one = |part: &str| {
            let (name, copies) = part.rsplit_once(':')?;
            let copies = copies.trim().parse().ok().filter(|copies| *copies > 0)?;
            let name = name.trim();
            let fits = !name.is_empty() && !name.contains(['\'', '\\']) && name != EVERYWHERE;
            fits.then(|| (name.to_owned(), copies))
        };
        let parts: Option<Vec<_>> = self.replication.split(',').map(one).collect();
        let copies = parts.map(|parts| (parts.len(), parts.into_iter().collect::<BTreeMap<_, _>>()));
        match copies {
            Some((named, copies)) if copies.len() == named => Ok(copies),
            _ => {
                let detail =
                    format!("must be data centres with numbers, \"dc1: 3, dc2: 3\", is {:?}", self.replication);
                Err(Error::invalid("invalid_replication", "scylla.replication", detail))
            }
        }
    }

    /// The replication of a keyspace, in CQL. What cannot be read was refused before.
    pub(super) fn replication(&self) -> String {
        let copies = self.copies().unwrap_or_default();
        let copies: Vec<String> = copies.iter().map(|(name, copies)| format!("'{name}': {copies}")).collect();
        format!("{{'class': 'NetworkTopologyStrategy', {}}}", copies.join(", "))
    }
}

/// How to open the store.
#[derive(Clone, Debug)]
pub struct ScyllaOptions {
    /// Where the cluster is.
    pub cluster: ClusterOptions,
    /// Connections to each shard; a Cassandra node counts as one shard, so it wants several.
    pub connections_per_shard: usize,
    /// Requests under way at the same time, of this process. Past it they wait here: a request the driver gave up still
    /// occupies its connection.
    pub in_flight_max: usize,
    /// How long a read for a client may take.
    pub read_timeout: Duration,
    /// How long a write may take. One whose outcome is unknown is tried three times in all.
    pub write_timeout: Duration,
    /// How long a conditional write may take.
    pub lwt_timeout: Duration,
    /// Rows of one replica set in a batch; 1 turns batches off.
    pub batch_rows_max: usize,
    /// Rows of fan-out under way at the same time, of this process.
    pub rows_in_flight_max: usize,
    /// Requests of one chunk, page or batch that are under way at the same time.
    pub request_concurrency: usize,
    /// How long rows live.
    pub inbox_ttl: Duration,
    /// How long idempotency keys live.
    pub idempotency_ttl: Duration,
    /// What time it is.
    pub clock: Clock,
    /// What time it is by the store's clock; `None`: it is asked. Tests move both.
    pub store_clock: Option<Clock>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(keyspace: &str) -> ClusterOptions {
        ClusterOptions {
            contact_points: Vec::new(),
            keyspace: keyspace.into(),
            datacenter: None,
            replication_factor: 3,
            replication: String::new(),
            consistency: Consistency::default(),
            tls: None,
            credentials: Some(Credentials { user: "ana".into(), password: "hush".into() }),
            connect_timeout: Duration::ZERO,
        }
    }

    #[test]
    fn names_that_could_break_out_of_the_text_are_refused() {
        assert!(named("fanfold_2").check().is_ok());
        for bad in ["", "2x", "Fanfold", "a b", "a;drop", "a\"", &"x".repeat(49)] {
            assert_eq!(named(bad).check().expect_err(bad).code(), "invalid_keyspace");
        }
        let datacenter = Some("dc' : 1".into());
        let error = ClusterOptions { datacenter, ..named("f") }.check().expect_err("quoted");
        assert_eq!(error.code(), "invalid_datacenter");
    }

    #[test]
    fn replication_names_the_data_centre_if_there_is_one() {
        assert_eq!(named("f").replication(), "{'class': 'NetworkTopologyStrategy', 'replication_factor': 3}");
        let here = ClusterOptions { datacenter: Some("dc1".into()), ..named("f") };
        assert_eq!(here.replication(), "{'class': 'NetworkTopologyStrategy', 'dc1': 3}");
        assert!(!format!("{here:?}").contains("hush"));
    }

    #[test]
    fn several_data_centres_have_a_number_each() {
        let of = |text: &str, here: Option<&str>| ClusterOptions {
            replication: text.into(),
            datacenter: here.map(Into::into),
            ..named("f")
        };
        let two = of(" dc1: 3,dc2:2", Some("dc2"));
        assert!(two.check().is_ok());
        assert_eq!(two.replication(), "{'class': 'NetworkTopologyStrategy', 'dc1': 3, 'dc2': 2}");
        for bad in
            ["3", "dc1", "dc1: 0", "dc1: 3,", "dc1: -1", "d'c: 3", ": 3", "dc1: 3, dc1: 2", "replication_factor: 3"]
        {
            let error = of(bad, None).check().expect_err(bad);
            assert_eq!((error.code(), error.field()), ("invalid_replication", Some("scylla.replication")), "{bad}");
        }
        assert_eq!(of("dc1: 3", Some("dc2")).check().expect_err("not there").code(), "invalid_replication");
    }
}
