//! Who posts what to whom, and what every inbox must hold in the end.

use uuid::Uuid;

use super::graph::Graph;

/// The most viewers that a post names where the service does not ask for less: what it takes by default.
pub const AUDIENCE_MAX: usize = 10_000;

/// A run over one graph.
pub struct Plan {
    /// Tells the posts of this run from all others.
    pub run: String,
    /// Everybody's viewer id.
    pub names: Vec<String>,
    /// The posts, in the order in which they are sent.
    pub posts: Vec<Planned>,
    /// Which posts belong into whose inbox, by index.
    pub expected: Vec<Vec<u32>>,
    /// How many inbox rows that makes.
    pub rows: usize,
}

/// One post to send.
pub struct Planned {
    /// Who posts.
    pub author: u32,
    /// For whom it is.
    pub audience: Vec<u32>,
    /// Who is asked when it becomes visible: the viewer with the fewest friends, whose inbox tells it soonest.
    pub witness: u32,
}

impl Plan {
    /// Everybody posts once to all friends; whoever has more than `audience_max` posts in parts.
    pub fn new(graph: &Graph, audience_max: usize) -> Self {
        let Graph { names, friends } = graph;
        let mut posts = Vec::new();
        let mut expected = vec![Vec::new(); names.len()];
        for (author, list) in (0..).zip(friends) {
            for audience in list.chunks(audience_max.max(1)) {
                // Chunks are never empty; the author only stands in for what cannot be.
                let witness = audience.iter().copied().min_by_key(|v| friends[*v as usize].len()).unwrap_or(author);
                for viewer in audience {
                    expected[*viewer as usize].push(posts.len() as u32);
                }
                posts.push(Planned { author, audience: audience.to_vec(), witness });
            }
        }
        let rows = posts.iter().map(|post| post.audience.len()).sum();
        Self { run: Uuid::new_v4().simple().to_string(), names: names.clone(), posts, expected, rows }
    }

    /// Which posts to follow: `count` of them, evenly spaced.
    pub fn sample(&self, count: usize) -> Vec<bool> {
        let total = self.posts.len();
        let count = count.min(total);
        let mut sampled = vec![false; total];
        for i in 0..count {
            sampled[i * total / count] = true;
        }
        sampled
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everybody_posts_to_all_friends() {
        let plan = Plan::new(&Graph::parse("a b\nb c\nd d\n").expect("a graph"), AUDIENCE_MAX);
        let audiences: Vec<_> = plan.posts.iter().map(|p| (p.author, p.audience.clone(), p.witness)).collect();
        assert_eq!(audiences, [(0, vec![1], 1), (1, vec![0, 2], 0), (2, vec![1], 1)]);
        assert_eq!(plan.expected, [vec![1], vec![0, 2], vec![1], vec![]]);
        assert_eq!(plan.rows, 4);
    }

    #[test]
    fn a_crowd_gets_its_post_in_parts() {
        let edges: String = (1..=10_001).map(|i| format!("0 {i}\n")).collect();
        let graph = Graph::parse(&edges).expect("a graph");
        let plan = Plan::new(&graph, AUDIENCE_MAX);
        assert_eq!(plan.posts.len(), 2 + 10_001);
        assert_eq!((plan.posts[0].audience.len(), plan.posts[1].audience.len()), (10_000, 1));
        assert_eq!(plan.expected[10_001], [1]);
        let plan = Plan::new(&graph, 5_000);
        assert_eq!((plan.posts.len(), plan.rows), (3 + 10_001, 2 * 10_001));
    }

    #[test]
    fn samples_are_evenly_spaced() {
        let edges: String = (0..10).map(|i| format!("{i} {}\n", i + 1)).collect();
        let plan = Plan::new(&Graph::parse(&edges).expect("a graph"), AUDIENCE_MAX);
        let chosen = |n| plan.sample(n).iter().filter(|s| **s).count();
        assert_eq!((chosen(0), chosen(3), chosen(11), chosen(99)), (0, 3, 11, 11));
        assert!(plan.sample(1)[0]);
    }
}
