//! The service in a process of its own, asked over HTTP as its clients ask.

use std::path::Path;
use std::time::Duration;

use fanfold::domain::Lane;
use fanfold::ports::Path as ReadPath;
use tempfile::TempDir;

use crate::child::Child;
use crate::client::{Connection, Request, get, with_key};
use crate::context::{self, Context};
use crate::keys::Keys;
use crate::load;
use crate::measure::Result;
use crate::posts;
use crate::wait::until;

/// How often to look whether the fan-out has caught up: seldom enough that looking costs nothing.
const LOOK: Duration = Duration::from_millis(20);
/// Longest wait for it. The relay brings what found its lane full, in its own time.
const CATCH_UP: Duration = Duration::from_secs(300);

/// A running service and its data.
#[derive(Debug)]
pub struct Service {
    /// Its process.
    pub child: Child,
    /// For questions beside the load.
    side: Connection,
    /// What they are asked with, under access control.
    key: Option<String>,
    folder: TempDir,
}

/// Rows that fan-out has written, and store reads on behalf of readers.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counters {
    /// Rows written, those that were written twice included.
    pub rows: u64,
    /// Tasks that wait in both lanes.
    pub waiting: u64,
    /// Tasks that the relay has brought, again or for the first time.
    pub driven: u64,
    /// Reads for polls.
    pub polls: u64,
    /// Reads for pages.
    pub pages: u64,
    /// Reads for deltas.
    pub deltas: u64,
}

impl Counters {
    /// Reads on behalf of readers.
    pub fn reads(&self) -> u64 {
        self.polls + self.pages + self.deltas
    }
}

impl Service {
    /// Starts one over an empty folder.
    pub async fn start(context: &Context, name: &str) -> Result<Self> {
        Self::start_arm(context, "service", name, &[]).await
    }

    /// The same with settings of its own.
    pub async fn start_with(context: &Context, name: &str, settings: &[(&str, &str)]) -> Result<Self> {
        Self::start_arm(context, "service", name, settings).await
    }

    /// The same with settings of its own and a clock that stands still until it is moved.
    pub async fn start_moved(context: &Context, name: &str, settings: &[(&str, &str)]) -> Result<Self> {
        Self::start_arm(context, "service-moved", name, settings).await
    }

    /// Starts one with access control, and makes the keys to it. Questions beside the load are asked with the one that may
    /// read everything.
    pub async fn start_guarded(context: &Context, name: &str) -> Result<(Self, Keys)> {
        let folder = context.fresh_folder(name)?;
        let keys = Keys::make(&context::config(folder.path())?).await?;
        let mut service = Self::start_in(context, "service", name, folder, &[("FANFOLD_ACCESS__MODE", "on")]).await?;
        service.key = Some(keys.all_seeing.clone());
        Ok((service, keys))
    }

    async fn start_arm(context: &Context, arm: &str, name: &str, settings: &[(&str, &str)]) -> Result<Self> {
        Self::start_in(context, arm, name, context.fresh_folder(name)?, settings).await
    }

    async fn start_in(
        context: &Context,
        arm: &str,
        name: &str,
        folder: TempDir,
        settings: &[(&str, &str)],
    ) -> Result<Self> {
        let path = folder.path().to_str().ok_or("the folder's name is not UTF-8")?;
        let child = Child::start_with(&[arm, path], &context.log(name)?, settings).await?;
        let side = Connection::open(child.addr()).await?;
        Ok(Self { child, side, key: None, folder })
    }

    /// A question as the service has to be asked.
    fn asked(&self, question: Request) -> Request {
        match &self.key {
            Some(key) => with_key(&question, key),
            None => question,
        }
    }

    /// The tables it has on disk, in MiB. Not the journals: those come and go.
    pub fn disk_mib(&self) -> Result<f64> {
        Ok(table_bytes(self.folder.path())? as f64 / 1024.0 / 1024.0)
    }

    /// Sends each of `requests` once, over `connections`.
    pub async fn send_all(&self, requests: Vec<Request>, connections: usize, status: u16) -> Result<u64> {
        load::drive(self.child.addr(), connections, load::once(requests, connections, status)).await
    }

    /// Makes records for the first `viewers`: each reads its inbox.
    pub async fn open_records(&self, viewers: usize) -> Result<u64> {
        let read = |number| self.asked(get(&format!("/v1/viewers/{}/inbox?limit=1", posts::viewer(number))));
        self.send_all((0..viewers).map(read).collect(), 16, 200).await
    }

    /// What the service counts.
    pub async fn counters(&mut self) -> Result<Counters> {
        let metrics = self.asked(get("/metrics"));
        let answer = self.side().await?.send(&metrics).await?.expect(200)?;
        let text = answer.text();
        let of = |series: &str| {
            text.lines().find_map(|line| line.strip_prefix(series)?.trim_start().parse().ok()).unwrap_or(0)
        };
        let reads = |path: ReadPath| of(&format!("fanfold_store_reads_total{{path=\"{}\"}}", path.name()));
        Ok(Counters {
            rows: of("fanfold_fanout_rows_total{result=\"written\"}"),
            waiting: Lane::ALL.iter().map(|lane| of(&format!("fanfold_queue_tasks{{lane=\"{}\"}}", lane.name()))).sum(),
            driven: of("fanfold_relay_driven_total "),
            polls: reads(ReadPath::Poll),
            pages: reads(ReadPath::Page),
            deltas: reads(ReadPath::Changes),
        })
    }

    /// Waits until every post of `ids` is fanned out. [`Service::until_written`] is cheaper, but where the relay has driven
    /// tasks again, rows count twice.
    pub async fn until_done(&mut self, ids: &[String]) -> Result<()> {
        let mut done = 0;
        until(LOOK, CATCH_UP, async || {
            while let Some(id) = ids.get(done) {
                let status = self.asked(get(&format!("/v1/posts/{id}")));
                if !self.side.send(&status).await?.expect(200)?.text().contains("\"status\":\"done\"") {
                    return Ok(Some(format!("post {id} is not fanned out after {CATCH_UP:?}")));
                }
                done += 1;
            }
            Ok(None)
        })
        .await
    }

    /// Waits until `rows` have been written since the start.
    pub async fn until_written(&mut self, rows: u64) -> Result<()> {
        until(LOOK, CATCH_UP, async || {
            let written = self.counters().await?.rows;
            Ok((written < rows).then(|| format!("{written} of {rows} rows are written after {CATCH_UP:?}")))
        })
        .await
    }

    /// Waits until no task is queued.
    pub async fn until_drained(&mut self) -> Result<()> {
        until(LOOK, CATCH_UP, async || {
            let waiting = self.counters().await?.waiting;
            Ok((waiting > 0).then(|| format!("{waiting} tasks still wait after {CATCH_UP:?}")))
        })
        .await
    }

    /// The connection for questions; a new one if the service has closed it for being idle.
    async fn side(&mut self) -> Result<&mut Connection> {
        if self.side.send(&get("/livez")).await.is_err() {
            self.side = Connection::open(self.child.addr()).await?;
        }
        Ok(&mut self.side)
    }
}

fn table_bytes(folder: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        bytes += match std::fs::symlink_metadata(&path) {
            Ok(found) if found.is_dir() => table_bytes(&path)?,
            Ok(found) if path.extension().is_none_or(|extension| extension != "jnl") => found.len(),
            Ok(_) => 0,
            // Files go while one looks.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => 0,
            Err(error) => return Err(error.into()),
        };
    }
    Ok(bytes)
}
