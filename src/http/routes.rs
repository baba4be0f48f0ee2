//! Which route a path belongs to: the label of metrics, and which headers its answers carry. The router itself is
//! built from the handlers; a test holds the two together.

use axum::http::Method;

use crate::access::Need;
use crate::domain::Scope;

/// A route of the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Route {
    Posts,
    Batch,
    Post,
    Poll,
    Query,
    Inbox,
    Changes,
    Mark,
    Marks,
    Livez,
    Readyz,
    Metrics,
    Openapi,
    Keys,
    Key,
    Rotate,
    ViewerTokens,
    Unknown,
}

impl Route {
    /// Every route.
    pub(super) const ALL: [Route; 18] = [
        Route::Posts,
        Route::Batch,
        Route::Post,
        Route::Poll,
        Route::Query,
        Route::Inbox,
        Route::Changes,
        Route::Mark,
        Route::Marks,
        Route::Livez,
        Route::Readyz,
        Route::Metrics,
        Route::Openapi,
        Route::Keys,
        Route::Key,
        Route::Rotate,
        Route::ViewerTokens,
        Route::Unknown,
    ];

    /// The route of a path.
    pub(super) fn of(path: &str) -> Self {
        let Some((_, tail)) = path.strip_prefix("/v1/viewers/").and_then(|rest| rest.split_once('/')) else {
            return Self::elsewhere(path);
        };
        match tail {
            "revision" => Self::Poll,
            "inbox" => Self::Inbox,
            "changes" => Self::Changes,
            "inbox/marks" => Self::Marks,
            _ => match tail.strip_prefix("inbox/").and_then(|rest| rest.split_once('/')) {
                Some((_, mark)) if !mark.contains('/') => Self::Mark,
                _ => Self::Unknown,
            },
        }
    }

    fn elsewhere(path: &str) -> Self {
        match path {
            "/v1/posts" => Self::Posts,
            "/v1/posts/batch" => Self::Batch,
            "/v1/revisions/query" => Self::Query,
            "/livez" => Self::Livez,
            "/readyz" => Self::Readyz,
            "/metrics" => Self::Metrics,
            "/openapi.json" => Self::Openapi,
            "/v1/keys" => Self::Keys,
            "/v1/viewer-tokens" => Self::ViewerTokens,
            _ => Self::of_one(path),
        }
    }

    /// The route of a path that has an id in it, viewers' apart.
    fn of_one(path: &str) -> Self {
        if let Some(id) = path.strip_prefix("/v1/posts/") {
            return if !id.is_empty() && !id.contains('/') { Self::Post } else { Self::Unknown };
        }
        match path.strip_prefix("/v1/keys/").map(|rest| rest.split_once('/').unwrap_or((rest, ""))) {
            Some((id, "")) if !id.is_empty() && !path.ends_with('/') => Self::Key,
            Some((id, "rotate")) if !id.is_empty() => Self::Rotate,
            _ => Self::Unknown,
        }
    }

    /// What the route serves, and what each method asks of whoever calls it. The router has exactly these; a test
    /// holds the two together, so that nothing is served that nobody has decided about.
    pub(super) fn operations(self) -> &'static [(&'static str, Need)] {
        match self {
            Self::Posts | Self::Batch => &[("POST", Need::Key(Scope::Publish))],
            Self::Post => &[
                ("GET", Need::Key(Scope::Read)),
                ("PATCH", Need::Key(Scope::Publish)),
                ("DELETE", Need::Key(Scope::Publish)),
            ],
            Self::Poll | Self::Inbox | Self::Changes => &[("GET", Need::Inbox)],
            Self::Mark => &[("PUT", Need::Inbox), ("DELETE", Need::Inbox)],
            Self::Marks => &[("POST", Need::Inbox)],
            Self::Query => &[("POST", Need::Key(Scope::Viewers))],
            Self::Livez | Self::Readyz | Self::Openapi => &[("GET", Need::Open)],
            Self::Metrics => &[("GET", Need::Key(Scope::Metrics))],
            Self::Keys => &[("GET", Need::Key(Scope::Admin)), ("POST", Need::Key(Scope::Admin))],
            Self::Key => &[("DELETE", Need::Key(Scope::Admin))],
            Self::Rotate => &[("POST", Need::Key(Scope::Admin))],
            Self::ViewerTokens => &[("POST", Need::Key(Scope::Tokens))],
            Self::Unknown => &[],
        }
    }

    /// What a request asks of its caller; `None` if nothing is served under this method.
    pub(super) fn need(self, method: &Method) -> Option<Need> {
        // The router answers HEAD with what GET would.
        let name = if *method == Method::HEAD { "GET" } else { method.as_str() };
        self.operations().iter().find(|(served, _)| *served == name).map(|(_, need)| *need)
    }

    /// The path as the specification and the metrics have it.
    pub(super) fn template(self) -> &'static str {
        match self {
            Self::Posts => "/v1/posts",
            Self::Batch => "/v1/posts/batch",
            Self::Post => "/v1/posts/{post_id}",
            Self::Poll => "/v1/viewers/{viewer_id}/revision",
            Self::Query => "/v1/revisions/query",
            Self::Inbox => "/v1/viewers/{viewer_id}/inbox",
            Self::Changes => "/v1/viewers/{viewer_id}/changes",
            Self::Mark => "/v1/viewers/{viewer_id}/inbox/{post_id}/{mark}",
            Self::Marks => "/v1/viewers/{viewer_id}/inbox/marks",
            Self::Livez => "/livez",
            Self::Readyz => "/readyz",
            Self::Metrics => "/metrics",
            Self::Openapi => "/openapi.json",
            Self::Keys => "/v1/keys",
            Self::Key => "/v1/keys/{key_id}",
            Self::Rotate => "/v1/keys/{key_id}/rotate",
            Self::ViewerTokens => "/v1/viewer-tokens",
            Self::Unknown => "unknown",
        }
    }

    /// Whether its answers tell when to poll again.
    pub(super) fn paced(self) -> bool {
        matches!(self, Self::Poll | Self::Query | Self::Inbox | Self::Changes)
    }

    /// Whether its answers belong to whoever asked, and must be asked about again.
    pub(super) fn private(self) -> bool {
        self.paced() || matches!(self, Self::Posts | Self::Batch | Self::Post | Self::Mark | Self::Marks)
    }

    /// Whether its answers may hold secrets, which nothing on the way may keep.
    pub(super) fn secret(self) -> bool {
        matches!(self, Self::Keys | Self::Key | Self::Rotate | Self::ViewerTokens)
    }

    /// Whether what is done there counts against quotas.
    pub(super) fn publishes(self) -> bool {
        matches!(self, Self::Posts | Self::Batch | Self::Post)
    }

    /// Whether it can answer that the inbox must be read afresh.
    pub(super) fn resyncs(self) -> bool {
        matches!(self, Self::Changes | Self::Marks)
    }
}

/// Methods as labels.
pub(super) const METHODS: [&str; 6] = ["GET", "POST", "PUT", "PATCH", "DELETE", "other"];

/// The place of a method in [`METHODS`].
pub(super) fn method_index(method: &Method) -> usize {
    match *method {
        Method::GET => 0,
        Method::POST => 1,
        Method::PUT => 2,
        Method::PATCH => 3,
        Method::DELETE => 4,
        _ => 5,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_belong_to_their_own_routes() {
        for (index, route) in Route::ALL.into_iter().enumerate() {
            assert_eq!((Route::of(route.template()), route as usize), (route, index));
        }
        for path in ["/", "", "/v1/posts/", "/v1/posts/a/b", "/v1/viewers/a", "/v1/viewers/a/inbox/b/c/d", "/V1/posts"]
            .into_iter()
            .chain(["/v1/keys/", "/v1/keys/a/", "/v1/keys/a/b", "/v1/keys//rotate", "/v1/keys/a/rotate/b"])
        {
            assert_eq!(Route::of(path), Route::Unknown, "{path}");
        }
    }

    #[test]
    fn a_head_is_as_guarded_as_a_get() {
        assert_eq!(Route::Inbox.need(&Method::HEAD), Some(Need::Inbox));
        assert_eq!(Route::Posts.need(&Method::HEAD), None);
        assert_eq!(Route::Livez.need(&Method::OPTIONS), None);
    }
}
