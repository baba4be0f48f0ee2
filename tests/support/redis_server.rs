//! A Redis server of a test's own, to be killed, stopped, flushed and demoted without disturbing the others. A program with
//! this module has the module `wait` beside it.

#![allow(dead_code, reason = "each test program uses its part")]

use std::process::{Child, Command, Stdio};

use redis::aio::MultiplexedConnection;
use tempfile::TempDir;

use crate::wait::{eventually, eventually_some};

/// A running `redis-server`; killed when dropped.
pub struct RedisServer {
    child: Child,
    port: u16,
    dir: TempDir,
    password: Option<&'static str>,
}

impl RedisServer {
    /// A fresh one.
    pub async fn start() -> Self {
        Self::start_with(tempfile::tempdir().expect("a temporary folder"), &[]).await
    }

    /// One on a folder, with more arguments. [`RedisServer::revive`] does not know them.
    pub async fn start_with(dir: TempDir, more: &[&str]) -> Self {
        let port = free_port();
        let server = Self { child: spawn(&dir, port, more), port, dir, password: None };
        server.connection().await;
        server
    }

    /// From now on it asks for a password.
    pub async fn require(&mut self, password: &'static str) {
        self.run::<String>(&format!("CONFIG SET requirepass {password}")).await;
        self.password = Some(password);
    }

    /// A sentinel that watches `master` as "main".
    pub async fn sentinel(master: &Self) -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let port = free_port();
        let conf = dir.path().join("sentinel.conf");
        let text = format!("port {port}\nbind 127.0.0.1\nsentinel monitor main 127.0.0.1 {} 1\n", master.port);
        std::fs::write(&conf, text).expect("a temporary file");
        let child = Command::new("redis-server").arg(&conf).arg("--sentinel").stdout(Stdio::null()).spawn();
        let server = Self { child: child.expect("redis-server is installed"), port, dir, password: None };
        server.connection().await;
        server
    }

    /// With the password, if it asks for one.
    pub fn url(&self) -> String {
        let password = self.password.map_or(String::new(), |password| format!(":{password}@"));
        format!("redis://{password}127.0.0.1:{}", self.port)
    }

    pub fn dir(&self) -> &std::path::Path {
        self.dir.path()
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn kill(&mut self) {
        self.child.kill().expect("it was running");
        self.child.wait().expect("it is our child");
    }

    /// Starts it again after [`RedisServer::kill`], with its data.
    pub async fn revive(&mut self) {
        self.child = spawn(&self.dir, self.port, &[]);
        self.connection().await;
    }

    /// Makes it a replica of `master`, and waits until they are linked.
    pub async fn follow(&self, master: &Self) {
        self.run::<String>(&format!("REPLICAOF 127.0.0.1 {}", master.port)).await;
        eventually("a replica is linked to its master", async || {
            self.run::<String>("INFO replication").await.contains("master_link_status:up")
        })
        .await;
    }

    /// Sends it a signal by name.
    pub fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-s", name, &pid]).status().expect("kill runs").success());
    }

    /// A connection, once it answers.
    pub async fn connection(&self) -> MultiplexedConnection {
        let client = redis::Client::open(self.url()).expect("a valid URL");
        eventually_some(&format!("redis-server on port {} answers", self.port), async || {
            let mut connection = client.get_multiplexed_async_connection().await.ok()?;
            redis::cmd("PING").exec_async(&mut connection).await.ok()?;
            Some(connection)
        })
        .await
    }

    /// Runs a command, its words separated by spaces.
    pub async fn run<T: redis::FromRedisValue>(&self, command: &str) -> T {
        let mut words = command.split(' ');
        let mut call = redis::cmd(words.next().expect("a command"));
        words.for_each(|word| {
            call.arg(word);
        });
        call.query_async(&mut self.connection().await).await.expect(command)
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A port that nobody uses now.
pub fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("an address").port()
}

fn spawn(dir: &TempDir, port: u16, more: &[&str]) -> Child {
    Command::new("redis-server")
        .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--appendonly", "yes", "--save", ""])
        .args(["--appendfsync", "always", "--repl-diskless-sync-delay", "0"])
        .arg("--dir")
        .arg(dir.path())
        .args(more)
        .stdout(Stdio::null())
        .spawn()
        .expect("redis-server is installed where FANFOLD_TEST_REDIS is set")
}
