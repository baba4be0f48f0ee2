//! What ties log lines of several processes together: the trace of the request that caused them (W3C Trace Context).

use std::fmt;

use super::PostId;

/// A trace's id; never zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceId(u128);

impl TraceId {
    /// The id of a `traceparent`, if it is a valid one.
    pub fn of_parent(value: &str) -> Option<Self> {
        let mut fields = value.split('-');
        let (version, trace, parent, flags) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
        let hex =
            |text: &str, len: usize| text.len() == len && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        let valid = hex(version, 2) && version != "ff" && hex(trace, 32) && hex(parent, 16) && hex(flags, 2);
        u128::from_str_radix(trace, 16).ok().filter(|id| valid && *id != 0).map(Self)
    }

    /// The post's own: of what is done for it without a request that brought one.
    pub fn of_post(post: PostId) -> Self {
        Self(u128::from_be_bytes(*post.as_bytes()).max(1))
    }

    /// A `traceparent` that makes `parent` the cause of what carries it.
    pub fn to_parent(self, parent: u64) -> String {
        format!("00-{self}-{:016x}-01", parent.max(1))
    }
}

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_post_has_a_trace_of_its_own() {
        let post = PostId::parse("019ab0c4-6f80-7a3c-8f5e-0c1d2e3f4a5b").expect("valid");
        let own = TraceId::of_post(post);
        assert_eq!(own.to_string(), "019ab0c46f807a3c8f5e0c1d2e3f4a5b");
        assert_eq!(TraceId::of_parent(&own.to_parent(0)), Some(own));
    }

    #[test]
    fn only_valid_parents_have_a_trace() {
        let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
        let id = TraceId::of_parent(&format!("00-{trace}-00f067aa0ba902b7-01")).expect("valid");
        assert_eq!(id.to_string(), trace);
        assert_eq!(TraceId::of_parent(&id.to_parent(7)), Some(id));
        for bad in [
            "",
            "00",
            &format!("ff-{trace}-00f067aa0ba902b7-01"),
            &format!("00-{}-00f067aa0ba902b7-01", "0".repeat(32)),
            &format!("00-{}-00f067aa0ba902b7-01", trace.to_uppercase()),
        ] {
            assert_eq!(TraceId::of_parent(bad), None, "{bad}");
        }
    }
}
