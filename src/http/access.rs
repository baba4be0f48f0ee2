//! Who asks, and whether they may: decided before a request is routed, told as 401 and 403.

use std::net::SocketAddr;

use axum::body::Body;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, Request, Response, header};
use axum::response::IntoResponse;

use super::App;
use super::params;
use super::problem::{Failure, Problem};
use super::routes::Route;
use crate::access::audit::Place;
use crate::access::{Allowance, Caller, Need, decide};
use crate::domain::{Holder, PostId, Rate, ViewerId};
use crate::error::{Error, Kind, Result};

/// Lets a request in, or answers it. `None` where nobody was asked who they are.
pub(super) async fn admit<B>(
    app: &App,
    route: Route,
    request: &Request<B>,
    peer: SocketAddr,
    request_id: &str,
) -> Result<Option<Caller>, Response<Body>> {
    if !app.access.is_on() {
        return Ok(None);
    }
    if route == Route::Unknown {
        // Said here as well: whatever the router might make of such a path, nobody has decided who may have it.
        let nothing = Error::new(Kind::NotFound, "route_not_found", "nothing is served under this path");
        return Err(Problem(nothing).into_response());
    }
    let need = match route.need(request.method()) {
        Some(Need::Open) => return Ok(None),
        Some(need) => need,
        // Here and not in the router, so that it serves nothing that has no row in the table of needs.
        None => return Err(not_served(route)),
    };
    let mut known = None;
    match enter(app, route, need, request, &mut known).await {
        Ok(caller) => Ok(Some(caller)),
        Err(error) => {
            if let Some(refusals) = app.access.refusals().filter(|_| is_refusal(&error)) {
                refusals.tell(&error, known.as_ref(), &Place { route: route.template(), post: None, peer, request_id });
            }
            let limited = error.kind() == Kind::Limited;
            let mut response = Problem(error).into_response();
            // Before a request is let in nothing of it is counted but whose inbox it is about.
            if let (true, Ok(viewer)) = (limited, params::viewer_of(request.uri().path())) {
                tell_allowances(app, Holder::Viewer(&viewer), response.headers_mut());
            }
            Err(response)
        }
    }
}

/// `known` becomes whoever it turned out to be, also if they may not.
async fn enter<B>(
    app: &App,
    route: Route,
    need: Need,
    request: &Request<B>,
    known: &mut Option<Caller>,
) -> Result<Caller> {
    let caller = app.access.identify(authorization(request.headers())?).await?;
    *known = Some(caller.clone());
    let viewer = permit(&caller, need, request.uri().path())?;
    // A poll is the viewer's whoever asks; what else a backend reads and marks for its viewers is its own affair.
    if let Some(viewer) = viewer.filter(|_| route == Route::Poll || matches!(caller, Caller::Viewer(_))) {
        app.access.count_poll(&viewer).await?;
    }
    Ok(caller)
}

/// That `caller` may have what is under `path`; the viewer whose it is, if it is a viewer's.
fn permit(caller: &Caller, need: Need, path: &str) -> Result<Option<ViewerId>> {
    let viewer = if need == Need::Inbox { Some(params::viewer_of(path)?) } else { None };
    decide(caller, need, viewer.as_ref())?;
    Ok(viewer)
}

/// Whether who was let in a while ago, and has waited for an answer since or took their time to send a body, may still have
/// it: the key may have been revoked meanwhile, the token have expired. It is the same request, and counts once.
pub(super) async fn still_admits(app: &App, route: Route, head: &Parts) -> Result<()> {
    let need = route.need(&head.method).filter(|need| app.access.is_on() && *need != Need::Open);
    let Some(need) = need else { return Ok(()) };
    let caller = app.access.identify(authorization(&head.headers)?).await?;
    permit(&caller, need, head.uri.path()).map(drop)
}

/// The post that a path names, for [`tell_refused`].
pub(super) fn named_post(route: Route, path: &str) -> Option<PostId> {
    let text = (route == Route::Post).then(|| params::segment(path, 3))?.ok()?;
    PostId::parse(&text)
}

/// Somebody was let in and refused all the same: having waited, or sent a body so slowly, that their key or token was no
/// good any more, or asking for a post that is another producer's, or none. Which of these two they are not told, and
/// neither is the log; who tries one id after the other shows by their number.
pub(super) fn tell_refused(app: &App, response: &Response<Body>, caller: Option<&Caller>, place: &Place<'_>) {
    let (Some(refusals), Some(Failure(error))) = (app.access.refusals(), response.extensions().get()) else { return };
    if is_refusal(error) || place.post.is_some() && error.code() == "post_not_found" {
        refusals.tell(error, caller, place);
    }
}

/// The one `Authorization` there may be. Of two, somebody in between might have looked at the other.
pub(super) fn authorization(headers: &HeaderMap) -> Result<Option<&str>> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let Some(value) = values.next() else { return Ok(None) };
    match value.to_str() {
        Ok(text) if values.next().is_none() => Ok(Some(text)),
        _ => {
            let detail = "must stand once, in visible ASCII";
            Err(Error::new(Kind::Unauthenticated, "credentials_malformed", detail).with_field("Authorization"))
        }
    }
}

pub(super) fn is_refusal(error: &Error) -> bool {
    matches!(error.kind(), Kind::Unauthenticated | Kind::Forbidden) || error.code() == "credentials_too_large"
}

fn not_served(route: Route) -> Response<Body> {
    let detail = "the path does not take this method; see Allow";
    let mut response = Problem(Error::new(Kind::Invalid, "method_not_allowed", detail)).into_response();
    let methods = route.operations().iter().flat_map(|(method, _)| match *method {
        "GET" => vec!["GET", "HEAD"],
        other => vec![other],
    });
    let methods = methods.collect::<Vec<_>>().join(",");
    if let Ok(allow) = HeaderValue::try_from(methods) {
        response.headers_mut().insert(header::ALLOW, allow);
    }
    response
}

/// What `WWW-Authenticate` says beside an error (RFC 6750, 3), if it is about access.
pub(super) fn challenge(error: &Error) -> Option<HeaderValue> {
    let value = match (error.kind(), error.code()) {
        (Kind::Unauthenticated, "credentials_missing") => "Bearer realm=\"fanfold\"",
        (Kind::Unauthenticated, "credentials_malformed") => "Bearer realm=\"fanfold\", error=\"invalid_request\"",
        (Kind::Unauthenticated, _) => "Bearer realm=\"fanfold\", error=\"invalid_token\"",
        (Kind::Forbidden, _) => "Bearer realm=\"fanfold\", error=\"insufficient_scope\"",
        _ => return None,
    };
    Some(HeaderValue::from_static(value))
}

/// What is left to whoever publishes or polls (draft-ietf-httpapi-ratelimit-headers): each policy with its quota and
/// window, and of each what remains and when it is full again.
pub(super) fn tell_allowances(app: &App, holder: Holder<'_>, headers: &mut HeaderMap) {
    let allowances = app.access.allowances(holder);
    if allowances.is_empty() {
        return;
    }
    let list = |one: &dyn Fn(&Allowance) -> String| {
        HeaderValue::try_from(allowances.iter().map(one).collect::<Vec<_>>().join(", ")).ok()
    };
    let window = |rate: Rate| rate.burst.div_ceil(rate.per_s);
    let policy = |told: &Allowance| format!("\"{}\";q={};w={}", told.name, told.rate.burst, window(told.rate));
    let rest = |told: &Allowance| format!("\"{}\";r={};t={}", told.name, told.left, told.full_in.as_secs_f64().ceil());
    if let (Some(policy), Some(rest)) = (list(&policy), list(&rest)) {
        headers.insert("ratelimit-policy", policy);
        headers.insert("ratelimit", rest);
    }
}

/// Who was let in with this request.
pub(super) fn caller(app: &App, head: &Parts) -> Result<Caller> {
    match head.extensions.get::<Caller>() {
        Some(caller) => Ok(caller.clone()),
        None if !app.access.is_on() => Ok(Caller::Anyone),
        // Nothing may be done in nobody's name.
        None => Err(Error::internal("a request has come to its handler without a caller")),
    }
}
