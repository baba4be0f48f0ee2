//! A user of the broker of dev/stack, for who is to show a password of their own or may not do everything.

#![allow(dead_code, reason = "each test program uses its part")]

use serde_json::{Value, json};

use crate::support::servers::server;

/// Gone with the test.
pub struct BrokerUser {
    management: String,
    name: String,
}

impl BrokerUser {
    /// One that may do everything to the names of a pattern. `None`, said on standard error, where there is no broker.
    pub async fn new(name: &str, password: &str, pattern: &str) -> Option<Self> {
        let management = server("FANFOLD_TEST_AMQP_MANAGEMENT")?;
        let user = Self { management, name: name.to_owned() };
        user.put(format!("users/{name}"), json!({"password": password, "tags": ""})).await;
        user.may(pattern).await;
        Some(user)
    }

    /// From now on it may do so to other names.
    pub async fn may(&self, pattern: &str) {
        let rights = json!({"configure": pattern, "write": pattern, "read": pattern});
        self.put(format!("permissions/%2f/{}", self.name), rights).await;
    }

    async fn put(&self, path: String, body: Value) {
        manage(|client| client.put(format!("{}/api/{path}", self.management)).json(&body)).await;
    }
}

impl Drop for BrokerUser {
    fn drop(&mut self) {
        let place = format!("{}/api/users/{}", self.management, self.name);
        // A thread of its own, for the test's runtime is the one that drops it.
        let deleted = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(manage(|client| client.delete(&place)));
        });
        if deleted.join().is_err() && !std::thread::panicking() {
            panic!("the user of the broker could not be removed");
        }
    }
}

/// Asks the broker's management, as the administrator of dev/stack.
async fn manage(ask: impl FnOnce(&reqwest::Client) -> reqwest::RequestBuilder) {
    let client = reqwest::Client::builder().no_proxy().build().expect("a client");
    let answer = ask(&client).basic_auth("guest", Some("guest")).send().await.expect("the broker answers");
    assert!(answer.status().is_success(), "{answer:?}");
}
