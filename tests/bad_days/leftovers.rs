//! Entries that nobody ever committed to: they are kept for two days, and hide nothing from operators.

use std::time::Duration;

use fanfold::clock::Clock;
use fanfold::domain::{Post, PostId};
use fanfold::ports::{Changed, Store as _};
use fanfold::service::console::Console;

use crate::pending;
use crate::skew::without_its_task;
use crate::support::Service;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_lag_is_seen_behind_what_was_never_committed() {
    let Some(mut service) = Service::on_cluster(|_| {}).await else { return };
    service.stop_workers().await;
    let clock = Clock::system();
    let store = &service.running.backends.store;
    let console = Console::connect(service.config()).await.expect("connected");
    let template = without_its_task(&service, &clock).await;
    // Their shard follows from the last byte. A shard of their own: that of the template waits for its fan-out already.
    let mut bytes = *template.id.as_bytes();
    bytes[15] = bytes[15].wrapping_add(1);
    let nobodys = Post { id: PostId::from_bytes(bytes), ..template.clone() };
    for version in 2..70 {
        let changed = store.change_post(version - 1, &Post { version, ..nobodys.clone() }).await.expect("answered");
        assert!(matches!(changed, Changed::Missing), "{changed:?}");
    }
    let since = |id: PostId| {
        let store = store.clone();
        async move {
            for entries in pending(&store).await {
                if let Some(entry) = entries.iter().find(|entry| entry.post_id == id) {
                    store.settle(&[fanfold::ports::Settled::Done(*entry)]).await.expect("settled");
                    return entries.len();
                }
            }
            0
        }
    };
    assert_eq!(since(template.id).await, 1, "the template is out of the way");
    assert_eq!(
        console.status().await.expect("looked").lag,
        Duration::ZERO,
        "what was never committed waits for nobody"
    );
    // Behind them in their shard, as its last byte says.
    let mut bytes = *PostId::new(clock.now(), rand::random()).as_bytes();
    bytes[15] = nobodys.id.as_bytes()[15];
    let waits = Post { id: PostId::from_bytes(bytes), ..template };
    store.create_post(&waits, &[]).await.expect("created");
    let lag = console.status().await.expect("looked").lag;
    assert!(lag > Duration::ZERO, "it waits behind the leftovers");
    assert_eq!(since(waits.id).await, 69, "all in one shard");
}
