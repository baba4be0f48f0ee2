//! Who is friends with whom: an edge list from a file, or a graph made from a seed.

use std::collections::HashMap;
use std::io::Read as _;
use std::path::Path;

use flate2::read::MultiGzDecoder;
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;
use rand_distr::{Distribution as _, Zipf};

use crate::cli::fault::{Fault, Result};
use crate::domain::ViewerId;

const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];
/// Gives a mean of about 45 friends for 1,000 people, like real graphs of that size, and a few with hundreds.
const ZIPF_EXPONENT: f64 = 1.3;
/// Nobody of a made graph has more friends than an inbox serves items.
const FRIENDS_MAX: usize = 1_000;

/// An undirected graph without double edges and self-loops.
#[derive(Debug, PartialEq, Eq)]
pub struct Graph {
    /// Everybody's viewer id.
    pub names: Vec<String>,
    /// Everybody's friends by index, ascending.
    pub friends: Vec<Vec<u32>>,
}

impl Graph {
    /// Reads an edge list: `u v` a line, `#` comments; plain or gzip, which its first bytes tell.
    pub fn read(file: &Path) -> Result<Self> {
        let failed = |e| Fault::Usage(format!("--graph: cannot read {}: {e}", file.display()));
        let mut bytes = std::fs::read(file).map_err(failed)?;
        if bytes.starts_with(&GZIP_MAGIC) {
            let mut plain = Vec::new();
            MultiGzDecoder::new(bytes.as_slice()).read_to_end(&mut plain).map_err(failed)?;
            bytes = plain;
        }
        let text = String::from_utf8(bytes)
            .map_err(|_| Fault::Usage(format!("--graph: {} is neither text nor gzip", file.display())))?;
        Self::parse(&text)
    }

    /// Parses an edge list. Columns after the second (weights, times) are ignored.
    pub fn parse(text: &str) -> Result<Self> {
        let mut indices: HashMap<&str, u32> = HashMap::new();
        let mut names = Vec::new();
        let mut edges = Vec::new();
        for (number, line) in (1..).zip(text.lines()) {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let mut columns = line.split_whitespace();
            let (Some(u), Some(v)) = (columns.next(), columns.next()) else {
                return Err(Fault::Usage(format!("--graph: line {number} is not `u v`")));
            };
            let mut index = |id| -> Result<u32> {
                if let Some(index) = indices.get(id) {
                    return Ok(*index);
                }
                let name = format!("person-{id}");
                ViewerId::parse("id", &name).map_err(|e| Fault::Usage(format!("--graph: line {number}: {e}")))?;
                let index = u32::try_from(names.len())
                    .map_err(|_| Fault::Usage(format!("--graph: line {number}: too many people")))?;
                names.push(name);
                indices.insert(id, index);
                Ok(index)
            };
            edges.push((index(u)?, index(v)?));
        }
        Ok(Self::new(names, &edges))
    }

    /// A graph of `people` whose degrees follow Zipf's law: everybody draws how many friends they want, and the wishes
    /// are paired at random. The same seed gives the same graph.
    pub fn zipf(people: u32, seed: u64) -> Result<Self> {
        let most = FRIENDS_MAX.min(people.saturating_sub(1) as usize);
        let law = Zipf::new(most as f64, ZIPF_EXPONENT)
            .map_err(|_| Fault::Usage("--people: must be at least 2".to_owned()))?;
        let mut random = StdRng::seed_from_u64(seed);
        let mut wishes = Vec::new();
        for person in 0..people {
            // A draw is a whole number between 1 and `most`, so the cast loses nothing.
            let count = law.sample(&mut random) as usize;
            wishes.extend(std::iter::repeat_n(person, count));
        }
        wishes.shuffle(&mut random);
        let edges: Vec<(u32, u32)> = wishes.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect();
        Ok(Self::new((0..people).map(|i| format!("person-{i}")).collect(), &edges))
    }

    fn new(names: Vec<String>, edges: &[(u32, u32)]) -> Self {
        let mut friends = vec![Vec::new(); names.len()];
        for &(u, v) in edges.iter().filter(|(u, v)| u != v) {
            friends[u as usize].push(v);
            friends[v as usize].push(u);
        }
        for list in &mut friends {
            list.sort_unstable();
            list.dedup();
        }
        Self { names, friends }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn edge_lists_are_undirected_and_simple() {
        let graph = Graph::parse("# SNAP\n0 7\n7 0\n\n 7\t7 \r\n7 anna 12\n0 7\nx x\n").expect("a graph");
        assert_eq!(graph.names, ["person-0", "person-7", "person-anna", "person-x"]);
        assert_eq!(graph.friends, [vec![1], vec![0, 2], vec![1], vec![]]);
        assert!(Graph::parse("").expect("empty").names.is_empty());
        for bad in ["1", "1 2\n3\n", &format!("1 {}", "x".repeat(200))] {
            assert_eq!(Graph::parse(bad).expect_err(bad).exit_code(), 64);
        }
    }

    #[test]
    fn gzip_is_told_by_its_first_bytes() {
        let folder = tempfile::tempdir().expect("a folder");
        let (plain, packed) = (folder.path().join("a.gz"), folder.path().join("b"));
        std::fs::write(&plain, "1 2\n").expect("written");
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(b"1 2\n").expect("to memory");
        std::fs::write(&packed, encoder.finish().expect("to memory")).expect("written");
        assert_eq!(Graph::read(&plain).expect("plain"), Graph::read(&packed).expect("gzip"));
        std::fs::write(&packed, [0x1f, 0x8b, 1, 2]).expect("written");
        assert!(Graph::read(&packed).is_err());
        assert!(Graph::read(&folder.path().join("nothing")).is_err());
    }

    #[test]
    fn a_seed_makes_one_graph() {
        let graph = Graph::zipf(1_000, 42).expect("a graph");
        assert_eq!(graph, Graph::zipf(1_000, 42).expect("a graph"));
        assert_ne!(graph, Graph::zipf(1_000, 43).expect("a graph"));
        let mut degrees: Vec<usize> = graph.friends.iter().map(Vec::len).collect();
        degrees.sort_unstable();
        let mean = degrees.iter().sum::<usize>() / degrees.len();
        assert!((15..80).contains(&mean), "mean {mean}");
        assert!(degrees[500] * 4 < mean, "median {}", degrees[500]);
        assert!(degrees[999] > 200, "most {}", degrees[999]);
        for (person, friends) in graph.friends.iter().enumerate() {
            assert!(friends.iter().all(|f| graph.friends[*f as usize].contains(&(person as u32))), "undirected");
        }
        assert!(Graph::zipf(2, 1).is_ok());
        assert!(Graph::zipf(1, 1).is_err() && Graph::zipf(0, 1).is_err());
    }
}
