//! Which route a path belongs to: the label of metrics, and which headers its answers carry. The router itself is
//! built from the handlers; a test holds the two together.

use axum::http::Method;

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
    Unknown,
}

impl Route {
    /// Every route.
    pub(super) const ALL: [Route; 14] = [
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
            _ => match path.strip_prefix("/v1/posts/") {
                Some(id) if !id.is_empty() && !id.contains('/') => Self::Post,
                _ => Self::Unknown,
            },
        }
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
        {
            assert_eq!(Route::of(path), Route::Unknown, "{path}");
        }
    }
}
