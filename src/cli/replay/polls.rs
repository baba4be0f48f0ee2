//! When nothing changes: every viewer polls, and the service's own metrics tell what that cost its store.

use std::sync::Arc;

use super::{Replay, Result, metrics};
use crate::cli::client::viewer_path;
use crate::cli::out;

/// What the polls came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Polls {
    /// Revision polls made.
    pub polls: usize,
    /// Of those answered with 304.
    pub polls_304: usize,
    /// First pages asked for with a token.
    pub pages: usize,
    /// Of those answered with 304.
    pub pages_304: usize,
    /// Reads of the store on behalf of viewers meanwhile; `None` if the service does not tell.
    pub store_reads: Option<u64>,
}

impl Replay {
    /// Every viewer polls `rounds` times and asks for the first page once, with the token of the last look.
    pub async fn poll_unchanged(self: &Arc<Self>, tokens: Vec<Option<String>>, rounds: usize) -> Result<Polls> {
        let viewers: Arc<[(usize, String)]> =
            tokens.into_iter().enumerate().filter_map(|(viewer, token)| Some((viewer, token?))).collect();
        if rounds == 0 || viewers.is_empty() {
            return Ok(Polls::default());
        }
        let before = self.store_reads().await;
        let (polls, polls_304) = self.unchanged("polls", "revision", &viewers, rounds).await?;
        let (pages, pages_304) = self.unchanged("first pages", "inbox", &viewers, 1).await?;
        let after = self.store_reads().await;
        let store_reads = before.zip(after).map(|(before, after)| after.saturating_sub(before));
        Ok(Polls { polls, polls_304, pages, pages_304, store_reads })
    }

    /// Asks for `resource` with everybody's token, `rounds` times: how often, and how often it was unchanged.
    async fn unchanged(
        self: &Arc<Self>,
        what: &'static str,
        resource: &'static str,
        viewers: &Arc<[(usize, String)]>,
        rounds: usize,
    ) -> Result<(usize, usize)> {
        let viewers = viewers.clone();
        let total = viewers.len() * rounds;
        let unchanged = self.each(what, total, move |replay, index| {
            let viewers = viewers.clone();
            async move {
                let (viewer, token) = &viewers[index % viewers.len()];
                let path = viewer_path(&replay.plan.names[*viewer], resource)?;
                Ok(replay.ask(replay.client.get(&path).query("since", token)).await?.is_unchanged())
            }
        });
        Ok((total, unchanged.await?.into_iter().filter(|unchanged| *unchanged).count()))
    }

    async fn store_reads(&self) -> Option<u64> {
        match self.ask(self.client.get("/metrics")).await {
            Ok(answer) => metrics::store_reads(&answer.text()),
            Err(fault) => {
                out::note(format_args!("store reads are not counted: {fault}"));
                None
            }
        }
    }
}
