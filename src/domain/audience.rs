//! The viewers a post is for: distinct, in the order given, cut into chunks.

use std::collections::HashSet;
use std::sync::Arc;

use super::chunk::Chunk;
use super::ids::ViewerId;
use crate::error::{Error, Result};

/// A checked audience: at least one viewer, no viewer twice.
#[derive(Clone, Debug)]
pub struct Audience {
    viewers: Vec<ViewerId>,
    duplicates: u32,
}

impl Audience {
    /// Checks every id, drops repeats and counts them. `viewers_max` bounds the list as it was sent.
    pub fn parse<S: AsRef<str>>(field: &str, viewers: &[S], viewers_max: u32) -> Result<Self> {
        if viewers.is_empty() {
            return Err(Error::invalid("empty_audience", field, "must name at least one viewer"));
        }
        if viewers.len() > viewers_max as usize {
            return Err(Error::limit(
                "audience_too_large",
                field,
                format!("must name at most {viewers_max} viewers, names {}", viewers.len()),
                u64::from(viewers_max),
                viewers.len() as u64,
            ));
        }
        let mut seen = HashSet::with_capacity(viewers.len());
        let mut distinct = Vec::with_capacity(viewers.len());
        for (position, text) in viewers.iter().enumerate() {
            let text = text.as_ref();
            if seen.insert(text) {
                distinct.push(ViewerId::parse(&format!("{field}[{position}]"), text)?);
            }
        }
        let duplicates = u32::try_from(viewers.len() - distinct.len()).unwrap_or(u32::MAX);
        Ok(Self { viewers: distinct, duplicates })
    }

    /// How many distinct viewers.
    pub fn size(&self) -> u32 {
        u32::try_from(self.viewers.len()).unwrap_or(u32::MAX)
    }

    /// How many repeats were dropped.
    pub fn duplicates(&self) -> u32 {
        self.duplicates
    }

    /// The distinct viewers, in the order first named.
    pub fn viewers(&self) -> &[ViewerId] {
        &self.viewers
    }

    /// The numbered slices of at most `size` viewers. The same audience and size give the same chunks, so that a retry
    /// writes what the first try wrote.
    pub fn chunks(&self, size: u32) -> Vec<Chunk> {
        self.viewers
            .chunks(size.max(1) as usize)
            .zip(0..)
            .map(|(viewers, no)| Chunk { no, viewers: Arc::from(viewers) })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeats_are_dropped_and_counted() {
        let audience = Audience::parse("viewers", &["b", "a", "b", "b"], 10).expect("valid");
        assert_eq!((audience.size(), audience.duplicates()), (2, 2));
        let chunks = audience.chunks(1);
        assert_eq!(chunks.iter().map(|c| (c.no, c.viewers[0].as_str())).collect::<Vec<_>>(), [(0, "b"), (1, "a")]);
    }

    #[test]
    fn limits_name_the_field() {
        let none: [&str; 0] = [];
        assert_eq!(Audience::parse("viewers", &none, 3).expect_err("empty").code(), "empty_audience");
        let error = Audience::parse("viewers", &["a", "b", "c", "d"], 3).expect_err("too many");
        assert_eq!((error.code(), error.limit_and_value()), ("audience_too_large", Some((3, 4))));
        let error = Audience::parse("viewers", &["a", ""], 3).expect_err("empty id");
        assert_eq!(error.field(), Some("viewers[1]"));
    }
}
