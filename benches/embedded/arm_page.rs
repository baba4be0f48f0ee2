//! The ceiling of a changed page: a raw prefix scan of the inbox, twenty bodies from a cache, the same JSON.
//!
//! It walks over the whole inbox, since the counts on the page are of the whole inbox. What it leaves out is what makes
//! it a service: marks, life spans, withdrawals, revisions, checks of the request, metrics, log spans.

use std::path::Path;
use std::sync::Arc;

use axum::Router;
use axum::extract::{Path as Segment, State};
use axum::response::IntoResponse;
use axum::routing::get;
use fanfold::domain::{PostId, Time};
use fjall::Slice;
use serde_json::value::RawValue;

use crate::measure::Result;
use crate::page_json::{self, Body};
use crate::posts;
use crate::raw::RawStore;
use crate::scenarios::page::{PAGE, ROWS, VIEWERS};

/// A row's value as the service has it: form, version, not deleted.
const ROW: [u8; 6] = [1, 0, 0, 0, 1, 0];

type Id = [u8; 16];

struct RawPages {
    raw: RawStore,
    bodies: moka::sync::Cache<Id, Arc<Body>>,
}

/// Fills a database in `folder` and answers as an inbox does.
pub fn router(folder: &Path) -> Result<Router> {
    let raw = RawStore::open(&folder.join("store"), &["inbox"])?;
    let bodies = moka::sync::Cache::new(100_000);
    for number in 0..ROWS {
        let time = Time::from_millis(1_763_805_600_000 + i64::try_from(number)?);
        let id = PostId::new(time, rand::random());
        let data = RawValue::from_string(posts::content().2.to_owned())?;
        let body = Body { post_id: id.to_string(), published_at: "2025-11-22T10:00:00.000Z".to_owned(), data };
        bodies.insert(*id.as_bytes(), Arc::new(body));
        let group = (0..VIEWERS).map(|viewer| (0, key(&posts::viewer(viewer), &id), Slice::from(ROW))).collect();
        raw.commit([&group], VIEWERS)?;
    }
    let state = Arc::new(RawPages { raw, bodies });
    Ok(Router::new().route("/v1/viewers/{viewer_id}/inbox", get(page)).with_state(state))
}

/// `viewer NUL !post_id row`, as the service has it.
fn key(viewer: &str, id: &PostId) -> Slice {
    let mut key = prefix(viewer);
    key.extend(id.as_bytes().iter().map(|byte| !byte));
    key.push(0);
    key.into()
}

fn prefix(viewer: &str) -> Vec<u8> {
    [viewer.as_bytes(), b"\0"].concat()
}

async fn page(State(pages): State<Arc<RawPages>>, Segment(viewer): Segment<String>) -> impl IntoResponse {
    let (mut found, mut count) = (Vec::with_capacity(PAGE), 0);
    for entry in pages.raw.keyspace(0).prefix(prefix(&viewer)) {
        let (key, value) = entry.into_inner().expect("the raw store can be read");
        let id = key[key.len() - 17..key.len() - 1].as_array().expect("a key ends with an id and a part");
        count += u32::from(value[5] == 0);
        if found.len() < PAGE {
            found.extend(pages.bodies.get(&id.map(|byte| !byte)));
        }
    }
    page_json::answer(&viewer, found.iter().map(AsRef::as_ref), count)
}
