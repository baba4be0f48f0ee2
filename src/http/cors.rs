//! Cross-origin requests (the Fetch standard): which web pages may call the API from a browser.

use std::collections::HashSet;

use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};

use crate::config;

const METHODS: HeaderValue = HeaderValue::from_static("GET, POST, PUT, PATCH, DELETE");
const REQUEST_HEADERS: HeaderValue = HeaderValue::from_static(
    "authorization, content-type, idempotency-key, if-match, if-none-match, prefer, traceparent, x-request-id",
);
const RESPONSE_HEADERS: HeaderValue = HeaderValue::from_static(
    "etag, link, location, preference-applied, ratelimit, ratelimit-policy, retry-after, www-authenticate, \
     x-poll-interval, x-request-id",
);
const ANY: HeaderValue = HeaderValue::from_static("*");
const VARY_PREFLIGHT: HeaderValue =
    HeaderValue::from_static("Origin, Access-Control-Request-Method, Access-Control-Request-Headers");

/// The origins that may.
#[derive(Debug)]
pub(super) struct Cors {
    /// `None` for all.
    origins: Option<HashSet<String>>,
    max_age: HeaderValue,
}

impl Cors {
    /// What the configuration asks for; `None` if no other origin may.
    pub(super) fn new(config: &config::Cors) -> Option<Self> {
        let origins: HashSet<String> = config.origins().map(str::to_owned).collect();
        if origins.is_empty() {
            return None;
        }
        let origins = if origins.contains("*") { None } else { Some(origins) };
        Some(Self { origins, max_age: HeaderValue::from(config.max_age_s) })
    }

    /// What `Access-Control-Allow-Origin` says to this request; `None` if its origin may not, or has none.
    pub(super) fn allowed(&self, headers: &HeaderMap) -> Option<HeaderValue> {
        let origin = headers.get(header::ORIGIN)?;
        match &self.origins {
            None => Some(ANY),
            Some(origins) => origin.to_str().ok().filter(|text| origins.contains(*text)).map(|_| origin.clone()),
        }
    }

    /// The answer to a browser that asks before it sends, if this is one whose page may.
    pub(super) fn preflight<B>(&self, request: &Request<B>) -> Option<Response<Body>> {
        let headers = request.headers();
        let asks = request.method() == Method::OPTIONS && headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
        self.allowed(headers).filter(|_| asks)?;
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::NO_CONTENT;
        let headers = response.headers_mut();
        headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, METHODS);
        headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, REQUEST_HEADERS);
        headers.insert(header::ACCESS_CONTROL_MAX_AGE, self.max_age.clone());
        headers.insert(header::VARY, VARY_PREFLIGHT);
        Some(response)
    }

    /// Tells the browser whether the page may have the answer.
    pub(super) fn dress(&self, response: &mut Response<Body>, allowed: Option<HeaderValue>) {
        let headers = response.headers_mut();
        if self.origins.is_some() && !headers.contains_key(header::VARY) {
            headers.insert(header::VARY, HeaderValue::from_static("Origin"));
        }
        if let Some(allowed) = allowed {
            headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, allowed);
            headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, RESPONSE_HEADERS);
        }
    }
}
