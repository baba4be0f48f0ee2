//! Pages of an inbox, as long as the service gives them.

use std::sync::atomic::{AtomicU32, Ordering};

use serde::de::DeserializeOwned;

use super::client::{Answer, Call};
use super::fault::Result;

/// What a page is asked for at first; a service that gives less at once says so.
const ITEMS: u32 = 100;

/// Items to ask for on a page: as many as the service gives at once, as far as it has said.
pub struct Pages {
    max: AtomicU32,
}

impl Default for Pages {
    fn default() -> Self {
        Self { max: AtomicU32::new(ITEMS) }
    }
}

impl Pages {
    /// The page that `call` asks for, of `most` items at most; `send` sends it.
    pub async fn read<T, Sent>(&self, call: &Call, most: u32, send: impl Fn(Call) -> Sent) -> Result<T>
    where
        T: DeserializeOwned,
        Sent: Future<Output = Result<Answer>>,
    {
        loop {
            let asked = most.min(self.max.load(Ordering::Relaxed));
            let fault = match send(call.clone().query("limit", asked)).await {
                Ok(answer) => return answer.json(),
                Err(fault) => fault,
            };
            let Some(limit) = fault.limit("limit", asked) else { return Err(fault) };
            // From now on nobody who shares this asks for more.
            self.max.fetch_min(limit, Ordering::Relaxed);
        }
    }
}
