//! Every endpoint of the router's own list, with every kind of credential: the status and code of each.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use fanfold::access::KeyText;
use fanfold::domain::{KeyId, ProducerId, ProducerKey, Scope, SecretHash, Time};
use fanfold::ports::Keys as _;
use jsonwebtoken::Algorithm;
use serde_json::{Value, json};

use crate::ring::{SigningKey, claims_with, now};
use crate::support::Reply;
use crate::{Guarded, bearer};

/// Who may use an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Door {
    /// Everybody.
    Open,
    /// A key with this scope.
    Key(Scope),
    /// A key with this scope, if the post is its producer's.
    Own(Scope),
    /// The viewer, or a key with the scope `viewers`.
    Inbox,
}

/// What an endpoint needs in order to answer well.
struct Row {
    operation: &'static str,
    door: Door,
    /// The status when it answers well.
    ok: u16,
    body: fn() -> Option<Value>,
}

fn row(operation: &'static str, door: Door, ok: u16, body: fn() -> Option<Value>) -> Row {
    Row { operation, door, ok, body }
}

fn nothing() -> Option<Value> {
    None
}

fn post() -> Option<Value> {
    Some(json!({"type": "t", "data": {}, "audience": {"viewers": ["ben"]}}))
}

/// One row an endpoint. Whoever adds an endpoint decides here who may use it, or the test fails.
fn rows() -> Vec<Row> {
    let posts = || Some(json!({"posts": [post()]}));
    let query = || Some(json!({"viewers": [{"viewer_id": "ben"}]}));
    let marks = || Some(json!({"mark": "read", "value": true, "post_ids": ["019ab0c4-6f80-7a3c-8f5e-0c1d2e3f4a5b"]}));
    let key = || Some(json!({"name": "new", "scopes": ["read"]}));
    let token = || Some(json!({"viewer_id": "ben"}));
    let edit = || Some(json!({"type": "t2"}));
    use Scope::{Admin, Metrics, Publish, Read, Tokens, Viewers};
    vec![
        row("GET /livez", Door::Open, 200, nothing),
        row("GET /readyz", Door::Open, 200, nothing),
        row("GET /openapi.json", Door::Open, 200, nothing),
        row("GET /metrics", Door::Key(Metrics), 200, nothing),
        row("POST /v1/posts", Door::Key(Publish), 202, post),
        row("POST /v1/posts/batch", Door::Key(Publish), 200, posts),
        row("GET /v1/posts/{post_id}", Door::Own(Read), 200, nothing),
        row("PATCH /v1/posts/{post_id}", Door::Own(Publish), 202, edit),
        row("DELETE /v1/posts/{post_id}", Door::Own(Publish), 202, nothing),
        row("POST /v1/revisions/query", Door::Key(Viewers), 200, query),
        row("GET /v1/viewers/{viewer_id}/revision", Door::Inbox, 200, nothing),
        row("GET /v1/viewers/{viewer_id}/inbox", Door::Inbox, 200, nothing),
        row("GET /v1/viewers/{viewer_id}/changes", Door::Inbox, 304, nothing),
        row("PUT /v1/viewers/{viewer_id}/inbox/{post_id}/{mark}", Door::Inbox, 200, nothing),
        row("DELETE /v1/viewers/{viewer_id}/inbox/{post_id}/{mark}", Door::Inbox, 200, nothing),
        row("POST /v1/viewers/{viewer_id}/inbox/marks", Door::Inbox, 200, marks),
        row("GET /v1/keys", Door::Key(Admin), 200, nothing),
        row("POST /v1/keys", Door::Key(Admin), 201, key),
        row("DELETE /v1/keys/{key_id}", Door::Key(Admin), 200, nothing),
        row("POST /v1/keys/{key_id}/rotate", Door::Key(Admin), 201, || Some(json!({}))),
        row("POST /v1/viewer-tokens", Door::Key(Tokens), 201, token),
    ]
}

/// What a request shows, and how a door that is not open answers it.
struct Shown {
    name: String,
    authorization: Option<String>,
    expected: Expected,
}

/// How endpoints answer a credential.
#[derive(Clone, Copy, Debug)]
enum Expected {
    /// Every door refuses it alike.
    Refused(u16, &'static str),
    /// A key with every scope but one: opens the doors of the others.
    KeyWithout(Scope),
    /// A key with every scope, of the producer whose posts are asked for or of another.
    FullKey { own: bool },
    /// A good token, of the viewer whose inbox is asked for or of another.
    Viewer { own: bool },
}

impl Expected {
    /// The status and code at a door; `None` if it opens.
    fn at(self, door: Door) -> Option<(u16, &'static str)> {
        match (self, door) {
            (_, Door::Open) => None,
            (Self::Refused(status, code), _) => Some((status, code)),
            (Self::KeyWithout(missing), Door::Key(scope) | Door::Own(scope)) => {
                (missing == scope).then_some((403, "scope_missing"))
            }
            (Self::KeyWithout(missing), Door::Inbox) => (missing == Scope::Viewers).then_some((403, "scope_missing")),
            // Somebody else's post is as unknown as one that never was.
            (Self::FullKey { own: false }, Door::Own(_)) => Some((404, "post_not_found")),
            (Self::FullKey { .. }, _) => None,
            (Self::Viewer { own: true }, Door::Inbox) => None,
            (Self::Viewer { own: false }, Door::Inbox) => Some((403, "viewer_mismatch")),
            (Self::Viewer { .. }, Door::Key(_) | Door::Own(_)) => Some((403, "scope_missing")),
        }
    }
}

fn shown(name: impl Into<String>, authorization: impl Into<String>, expected: Expected) -> Shown {
    Shown { name: name.into(), authorization: Some(authorization.into()), expected }
}

const SHOP: &str = "shop";

async fn credentials(guarded: &Guarded) -> Vec<Shown> {
    let mut all = forged_keys(guarded).await;
    all.extend(tokens(guarded));
    for missing in Scope::ALL {
        let scopes: Vec<Scope> = Scope::ALL.into_iter().filter(|scope| *scope != missing).collect();
        let key = guarded.key(SHOP, &scopes).await;
        all.push(shown(format!("key without {}", missing.name()), bearer(&key), Expected::KeyWithout(missing)));
    }
    let other = guarded.key("other", &Scope::ALL).await;
    all.push(shown("another producer's key", bearer(&other), Expected::FullKey { own: false }));
    // Last, since it changes what it is let at.
    let full = guarded.key(SHOP, &Scope::ALL).await;
    all.push(shown("key", bearer(&full), Expected::FullKey { own: true }));
    let basic = base64_of(&format!("{}:{}", full.id, full.reveal_secret()));
    all.push(shown("key by Basic", format!("Basic {basic}"), Expected::FullKey { own: true }));
    all
}

fn base64_of(text: &str) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(text)
}

fn text_of(base64: &str) -> String {
    use base64::Engine as _;
    let bytes = base64::engine::general_purpose::STANDARD.decode(base64).expect("base64");
    String::from_utf8(bytes).expect("text")
}

async fn forged_keys(guarded: &Guarded) -> Vec<Shown> {
    let refused = Expected::Refused;
    let book = guarded.book();
    let (expired, revoked) = (guarded.key(SHOP, &Scope::ALL).await, guarded.key(SHOP, &Scope::ALL).await);
    book.revoke(revoked.id).await.expect("revoked");
    let past = ProducerKey {
        id: expired.id,
        producer: ProducerId::parse("p", SHOP).expect("valid"),
        name: SHOP.into(),
        scopes: Scope::ALL.into_iter().collect(),
        hash: SecretHash(expired.secret.hash().0),
        created_at: Time::ZERO,
        expires_at: Some(Time::from_millis((now() - 1) * 1_000)),
        made_until: None,
        revoked_at: None,
        last_used: None,
    };
    guarded.service.running.backends.store.create_key(&past).await.expect("made");
    let (live, unknown) = (
        guarded.key(SHOP, &Scope::ALL).await,
        KeyText { id: KeyId::from_bytes(rand::random()), secret: revoked.secret },
    );
    let wrong = KeyText { id: live.id, secret: revoked.secret };
    let mut cut = bearer(&live);
    cut.pop();
    vec![
        Shown { name: "nothing".into(), authorization: None, expected: refused(401, "credentials_missing") },
        shown("empty", "", refused(401, "credentials_malformed")),
        shown("another scheme", "Digest username=x", refused(401, "credentials_malformed")),
        shown("no scheme", live.reveal(), refused(401, "credentials_malformed")),
        shown("garbage", "Bearer garbage", refused(401, "viewer_token_invalid")),
        shown("bad Basic", "Basic !!!", refused(401, "credentials_malformed")),
        shown("key cut short", cut, refused(401, "credentials_malformed")),
        shown("key with a wrong secret", bearer(&wrong), refused(401, "key_invalid")),
        shown("unknown key", bearer(&unknown), refused(401, "key_invalid")),
        shown("expired key", bearer(&expired), refused(401, "key_expired")),
        shown("revoked key", bearer(&revoked), refused(401, "key_revoked")),
    ]
}

fn tokens(guarded: &Guarded) -> Vec<Shown> {
    let (ring, bad) = (&guarded.ring, Expected::Refused(401, "viewer_token_invalid"));
    let es = ring.by(Algorithm::ES256);
    let es_with = |more: Value| format!("Bearer {}", es.sign(&claims_with("ben", more)));
    let stranger = SigningKey::generate("es", Algorithm::ES256);
    let unnamed = SigningKey::generate("nobody's", Algorithm::ES256);
    let bearer = |token: &str| format!("Bearer {token}");
    let mut all = vec![
        shown("expired token", es_with(json!({"exp": now() - 61})), Expected::Refused(401, "viewer_token_expired")),
        shown(
            "early token",
            // However long all of this takes, it does not come to be valid meanwhile.
            es_with(json!({"nbf": now() + 86_400, "exp": now() + 90_000})),
            Expected::Refused(401, "viewer_token_not_yet_valid"),
        ),
        shown("token of a wrong key", bearer(&stranger.token("ben")), bad),
        shown("token of an unknown key", bearer(&unnamed.token("ben")), bad),
        shown("token for another service", es_with(json!({"aud": "shop"})), bad),
        shown("token for nobody", es_with(json!({"aud": null})), bad),
        shown("token without end", es_with(json!({"exp": null})), bad),
        shown("token without viewer", es_with(json!({"sub": null})), bad),
        shown("token for ..", es_with(json!({"sub": ".."})), bad),
        shown("huge token", bearer(&"e".repeat(9_000)), Expected::Refused(431, "credentials_too_large")),
    ];
    let named = |name: &'static str, tokens: Vec<String>| {
        tokens.into_iter().enumerate().map(move |(n, token)| (format!("{name} {n}"), token)).collect::<Vec<_>>()
    };
    let forged = named("alg none", ring.unsigned("ben")).into_iter().chain(named("public key", ring.confused("ben")));
    all.extend(forged.map(|(name, token)| shown(name, bearer(&token), bad)));
    for key in &ring.keys {
        let own = Expected::Viewer { own: true };
        all.push(shown(format!("{:?} token", key.algorithm), bearer(&key.token("ben")), own));
    }
    all.push(shown("another viewer's token", bearer(&ring.token("cleo")), Expected::Viewer { own: false }));
    all
}

/// Something to point an endpoint at: a post of the shop's in ben's inbox, a key to end, a token for `since`.
struct Target {
    post: String,
    key: String,
    since: String,
}

impl Target {
    async fn new(guarded: &Guarded) -> Self {
        let service = &guarded.service;
        let all = bearer(&guarded.key(SHOP, &Scope::ALL).await);
        let asked = service.ask("POST", "/v1/posts").header("authorization", &all).json(post().expect("a post"));
        let id = asked.send().await.json()["post_id"].as_str().expect("an id").to_owned();
        let get = |path: String| service.ask("GET", &path).header("authorization", &all).send();
        assert_eq!(get(format!("/v1/posts/{id}?wait=30")).await.json()["fanout"]["status"], "done");
        let since = get("/v1/viewers/ben/inbox".to_owned()).await.json()["token"].as_str().expect("a token").to_owned();
        Self { post: id, key: guarded.key("victim", &[Scope::Read]).await.id.to_string(), since }
    }

    fn path(&self, template: &str) -> String {
        let path = template.replace("{post_id}", &self.post).replace("{key_id}", &self.key);
        let path = path.replace("{viewer_id}", "ben").replace("{mark}", "read");
        if path.ends_with("/changes") { format!("{path}?since={}", self.since) } else { path }
    }
}

async fn ask(guarded: &Guarded, target: &Target, row: &Row, shown: &Shown) -> Reply {
    let (method, template) = row.operation.split_once(' ').expect("a method and a path");
    let mut ask = guarded.service.ask(method, &target.path(template));
    if let Some(value) = &shown.authorization {
        ask = ask.header("authorization", value);
    }
    if method == "PATCH" {
        ask = ask.header("if-match", "*");
    }
    if let Some(body) = (row.body)() {
        ask = ask.json(body);
    }
    ask.send().await
}

/// What of a credential no answer may repeat: the whole of it, and the part that proves it, be that the secret of a key
/// or the signature of a token.
fn secrets(authorization: &str) -> Vec<String> {
    let whole = authorization.rsplit(' ').next().expect("the last word");
    let of_key = whole.strip_prefix("ffk_").and_then(|rest| rest.split_once('_')).map(|(_, secret)| secret);
    let signature = whole.split('.').nth(2).filter(|signature| !signature.is_empty());
    let basic = authorization.strip_prefix("Basic ").map(text_of);
    let password = basic.as_deref().and_then(|text| text.split_once(':')).map(|(_, password)| password);
    [Some(whole), of_key, signature, password].into_iter().flatten().map(str::to_owned).collect()
}

fn check(row: &Row, shown: &Shown, reply: &Reply) {
    let what = format!("{} with {}: {reply:?}", row.operation, shown.name);
    if let Some(value) = shown.authorization.as_deref().filter(|value| value.len() > 24) {
        let headers: Vec<_> = reply.headers.values().map(|value| String::from_utf8_lossy(value.as_bytes())).collect();
        for secret in secrets(value) {
            assert!(!reply.text.contains(&secret), "the credential is repeated, or what proves it: {what}");
            let told = headers.iter().any(|header| header.contains(&secret));
            assert!(!told, "the credential is repeated in a header, or what proves it: {what}");
        }
    }
    match shown.expected.at(row.door) {
        None => assert_eq!(reply.status, row.ok, "{what}"),
        Some((status, code)) => {
            assert_eq!((reply.status, reply.json()["code"].as_str()), (status, Some(code)), "{what}");
            assert_eq!(reply.header("www-authenticate").is_empty(), ![401, 403].contains(&status), "{what}");
        }
    }
}

/// The operations that the router serves.
fn served() -> BTreeSet<String> {
    let document = serde_json::to_value(fanfold::http::document()).expect("JSON");
    let paths = document["paths"].as_object().expect("paths").clone();
    let each = paths.into_iter().flat_map(|(path, item)| {
        let methods: Vec<String> = item.as_object().expect("an item").keys().cloned().collect();
        methods.into_iter().map(move |method| format!("{} {path}", method.to_uppercase()))
    });
    each.collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_endpoint_answers_every_credential_as_it_should() {
    let rows = rows();
    let decided: BTreeSet<String> = rows.iter().map(|row| row.operation.to_owned()).collect();
    assert_eq!(served(), decided, "every endpoint has a row here, and every row an endpoint");

    let guarded = Guarded::start().await;
    let credentials = credentials(&guarded).await;
    let (mut summary, mut asked) = (String::new(), 0);
    for row in &rows {
        let mut target = Target::new(&guarded).await;
        let (mut opened, mut refused) = (Vec::new(), 0);
        for shown in &credentials {
            let reply = ask(&guarded, &target, row, shown).await;
            check(row, shown, &reply);
            asked += 1;
            if shown.expected.at(row.door).is_some() {
                refused += 1;
                continue;
            }
            opened.push(shown.name.as_str());
            if reply.status < 300 && !row.operation.starts_with("GET") {
                // It was let at its target, which is another one now.
                target = Target::new(&guarded).await;
            }
        }
        let whom = if refused == 0 { "everybody".to_owned() } else { opened.join(", ") };
        let _ = writeln!(summary, "{:<58} refused {refused:>2}, opened to {whom}", row.operation);
    }
    println!("{summary}{asked} requests: {} endpoints x {} credentials", rows.len(), credentials.len());
}

#[tokio::test]
async fn what_is_not_served_is_not_guarded_and_what_is_guarded_is_not_served_by_another_method() {
    let guarded = Guarded::start().await;
    let reply = guarded.service.get("/v1/nothing").await;
    assert_eq!((reply.status, reply.json()["code"].as_str()), (404, Some("route_not_found")));
    for (method, path, allow) in [("PUT", "/v1/posts", "POST"), ("OPTIONS", "/v1/viewers/ben/inbox", "GET,HEAD")] {
        let reply = guarded.service.ask(method, path).send().await;
        assert_eq!((reply.status, reply.header("allow")), (405, allow), "{reply:?}");
    }
    let head = guarded.service.ask("HEAD", "/v1/viewers/ben/inbox").send().await;
    assert_eq!((head.status, head.header("www-authenticate")), (401, "Bearer realm=\"fanfold\""));
    let token = format!("Bearer {}", guarded.ring.token("ben"));
    let head = guarded.service.ask("HEAD", "/v1/viewers/ben/inbox").header("authorization", &token).send().await;
    assert_eq!(head.status, 200);
    let twice = guarded.service.ask("GET", "/v1/viewers/ben/inbox").header("authorization", &token);
    let twice = twice.header("authorization", &token).send().await;
    assert_eq!(twice.json()["code"], "credentials_malformed", "of two, which one did a proxy look at?");
}

#[tokio::test]
async fn a_viewer_is_the_same_however_the_path_writes_them() {
    let guarded = Guarded::start().await;
    let as_viewer = |viewer: &str, path: &str| {
        let token = format!("Bearer {}", guarded.ring.token(viewer));
        guarded.service.ask("GET", path).header("authorization", &token).send()
    };
    for (viewer, path) in [
        ("ben", "/v1/viewers/%62en/inbox"),
        ("a/b", "/v1/viewers/a%2Fb/inbox"),
        ("z\u{f6}e", "/v1/viewers/z%C3%B6e/inbox"),
    ] {
        assert_eq!(as_viewer(viewer, path).await.status, 200, "{viewer} at {path}");
    }
    for (viewer, path) in
        [("ben", "/v1/viewers/Ben/inbox"), ("ben", "/v1/viewers/ben%20/inbox"), ("a", "/v1/viewers/a%2Fb/inbox")]
    {
        let reply = as_viewer(viewer, path).await;
        assert_eq!((reply.status, reply.json()["code"].as_str()), (403, Some("viewer_mismatch")), "{viewer} at {path}");
    }
}
