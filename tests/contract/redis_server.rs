//! A Redis server of a test's own, to be killed, stopped, flushed and demoted without disturbing the others.

#![allow(dead_code, reason = "each test program uses its part")]

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use tempfile::TempDir;

/// A running `redis-server`; killed when dropped.
pub struct RedisServer {
    child: Child,
    port: u16,
    dir: TempDir,
}

impl RedisServer {
    /// A fresh one.
    pub async fn start() -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let port = free_port();
        let server = Self { child: spawn(&dir, port), port, dir };
        server.connection().await;
        server
    }

    /// A sentinel that watches `master` as "main".
    pub async fn sentinel(master: &Self) -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let port = free_port();
        let conf = dir.path().join("sentinel.conf");
        let text = format!("port {port}\nbind 127.0.0.1\nsentinel monitor main 127.0.0.1 {} 1\n", master.port);
        std::fs::write(&conf, text).expect("a temporary file");
        let child = Command::new("redis-server").arg(&conf).arg("--sentinel").stdout(Stdio::null()).spawn();
        let server = Self { child: child.expect("redis-server is installed"), port, dir };
        server.connection().await;
        server
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
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
        self.child = spawn(&self.dir, self.port);
        self.connection().await;
    }

    /// Sends it a signal by name.
    pub fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-s", name, &pid]).status().expect("kill runs").success());
    }

    /// A connection, once it answers.
    pub async fn connection(&self) -> MultiplexedConnection {
        let client = redis::Client::open(self.url()).expect("a valid URL");
        for _ in 0..200 {
            if let Ok(mut connection) = client.get_multiplexed_async_connection().await
                && redis::cmd("PING").exec_async(&mut connection).await.is_ok()
            {
                return connection;
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        panic!("redis-server on port {} does not answer", self.port);
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

fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("an address").port()
}

fn spawn(dir: &TempDir, port: u16) -> Child {
    Command::new("redis-server")
        .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--appendonly", "yes", "--save", ""])
        .args(["--appendfsync", "always", "--repl-diskless-sync-delay", "0"])
        .arg("--dir")
        .arg(dir.path())
        .stdout(Stdio::null())
        .spawn()
        .expect("redis-server is installed where FANFOLD_TEST_REDIS is set")
}
