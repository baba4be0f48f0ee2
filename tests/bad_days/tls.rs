//! Encrypted connections. Redis speaks TLS itself; before the store and the broker of dev/stack stands an end of the
//! connection that does, so that what is tried is how the drivers shake hands and whom they trust.

#[cfg(not(feature = "tls"))]
use crate::cluster::{CLI, CONTACT_POINTS, Cluster, RABBITMQ_URL, REDIS_URLS, closed_port};

/// Only where the feature is off: dev/test has it on.
#[cfg(not(feature = "tls"))]
#[tokio::test]
async fn a_build_without_it_refuses_rather_than_send_passwords_in_the_clear() {
    let mut cluster = Cluster::on(&[]).expect("it needs no server");
    let nobody = closed_port();
    cluster.set(CONTACT_POINTS, &nobody);
    for (setting, value) in [
        ("FANFOLD_SCYLLA__TLS", "true".to_owned()),
        (RABBITMQ_URL, format!("amqps://guest:guest@{nobody}/%2f")),
        (REDIS_URLS, format!("rediss://{nobody}")),
    ] {
        cluster.set(setting, value);
        cluster.run(CLI, &["doctor"]).await.check(1, &["this build has no TLS", "--features tls"]);
    }
}

#[cfg(feature = "tls")]
mod built_in {
    use std::net::SocketAddr;
    use std::sync::Arc;

    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
    use tokio::net::{TcpListener, TcpStream};
    use tokio_rustls::TlsAcceptor;
    use tokio_rustls::rustls::ServerConfig;
    use tokio_rustls::rustls::pki_types::pem::PemObject as _;
    use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

    use crate::cluster::{CONTACT_POINTS, Cluster, RABBITMQ_URL, REDIS_URLS, SERVE, found};
    use crate::redis_server::{RedisServer, free_port};
    use crate::support::Service;
    use crate::support::servers::server;

    /// An authority, and a certificate for this machine that it has signed, in a folder.
    struct Trust {
        dir: tempfile::TempDir,
    }

    impl Trust {
        fn new() -> Self {
            let dir = tempfile::tempdir().expect("a folder");
            let mut params = CertificateParams::new(Vec::new()).expect("no names");
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            let key = KeyPair::generate().expect("a key");
            let authority = params.self_signed(&key).expect("signed");
            let issuer = Issuer::new(params, key);
            let own = KeyPair::generate().expect("a key");
            let names = CertificateParams::new(vec!["localhost".to_owned(), "127.0.0.1".to_owned()]).expect("names");
            let certificate = names.signed_by(&own, &issuer).expect("signed");
            for (file, text) in
                [("ca.pem", authority.pem()), ("cert.pem", certificate.pem()), ("key.pem", own.serialize_pem())]
            {
                std::fs::write(dir.path().join(file), text).expect("written");
            }
            Self { dir }
        }

        fn path(&self, file: &str) -> String {
            self.dir.path().join(file).to_str().expect("UTF-8").to_owned()
        }

        /// The end of encrypted connections to `server`; its port.
        async fn before(&self, server: SocketAddr) -> u16 {
            let certificate = CertificateDer::from_pem_file(self.path("cert.pem")).expect("a certificate");
            let key = PrivateKeyDer::from_pem_file(self.path("key.pem")).expect("a key");
            let config = ServerConfig::builder().with_no_client_auth().with_single_cert(vec![certificate], key);
            let acceptor = TlsAcceptor::from(Arc::new(config.expect("a pair")));
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
            let port = listener.local_addr().expect("an address").port();
            tokio::spawn(async move {
                while let Ok((client, _)) = listener.accept().await {
                    let acceptor = acceptor.clone();
                    tokio::spawn(async move {
                        let Ok(mut client) = acceptor.accept(client).await else { return };
                        let Ok(mut server) = TcpStream::connect(server).await else { return };
                        let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
                    });
                }
            });
            port
        }
    }

    /// A Redis that speaks TLS, and its encrypted port.
    async fn redis(trust: &Trust) -> (RedisServer, u16) {
        let port = free_port();
        let (cert, key, ca) = (trust.path("cert.pem"), trust.path("key.pem"), trust.path("ca.pem"));
        let tls = port.to_string();
        let args = ["--tls-port", &tls, "--tls-cert-file", &cert, "--tls-key-file", &key, "--tls-ca-cert-file", &ca];
        let args = [&args[..], &["--tls-auth-clients", "no"]].concat();
        (RedisServer::start_with(tempfile::tempdir().expect("a folder"), &args).await, port)
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn redis_is_polled_over_tls_and_trusted_by_the_file_alone() {
        if server("FANFOLD_TEST_REDIS").is_none() {
            return;
        }
        let trust = Trust::new();
        let (_redis, port) = redis(&trust).await;
        let url = format!("rediss://localhost:{port}");
        let mut cluster = Cluster::on(&[]).expect("it needs no server");
        cluster.set(REDIS_URLS, &url);
        // Nobody has told the system of that authority.
        found(&cluster.findings("revisions").await, &["warning", "certificate", "redis.tls_ca_file"]);
        let stranger = Trust::new();
        cluster.set("FANFOLD_REDIS__TLS_CA_FILE", stranger.path("ca.pem"));
        found(&cluster.findings("revisions").await, &["warning", "certificate", "redis.tls_ca_file"]);
        let nothing = stranger.path("nothing.pem");
        cluster.set("FANFOLD_REDIS__TLS_CA_FILE", &nothing);
        found(&cluster.findings("revisions").await, &["warning", "redis.tls_ca_file cannot be read", &nothing]);
        cluster.set("FANFOLD_REDIS__TLS_CA_FILE", trust.path("ca.pem"));
        found(&cluster.findings("revisions").await, &["ok", "is the master"]);
        found(&cluster.findings("revisions").await, &["ok", "takes writes"]);

        let over_tls = Service::on_cluster(|config| {
            config.redis.urls = vec![url.as_str().into()];
            config.redis.tls_ca_file = trust.path("ca.pem").into();
        });
        let Some(service) = over_tls.await else { return };
        service.publish("Dawn", &["ben"]).await;
        let token = service.token("ben").await;
        let poll = format!("/v1/viewers/ben/revision?since={token}");
        assert_eq!(service.get(&poll).await.status, 304);
        service.publish("Noon", &["ben"]).await;
        assert_eq!(service.get(&poll).await.status, 200);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn the_store_and_the_broker_are_reached_over_tls_and_trusted_by_the_file_alone() {
        let Some(mut cluster) = Cluster::on(&["FANFOLD_TEST_CQL", "FANFOLD_TEST_AMQP", "FANFOLD_TEST_REDIS"]) else {
            return;
        };
        let trust = Trust::new();
        let address = |text: &str| text.parse().expect("an address");
        let cql = server("FANFOLD_TEST_CQL").expect("it is there");
        let amqp = server("FANFOLD_TEST_AMQP").expect("it is there");
        let (credentials, rest) = amqp.trim_start_matches("amqp://").rsplit_once('@').expect("credentials");
        let (broker, vhost) = rest.split_once('/').expect("a virtual host");
        let first = cql.split(',').next().expect("a node");
        let (store_port, broker_port) = (trust.before(address(first)).await, trust.before(address(broker)).await);
        cluster.set(CONTACT_POINTS, format!("127.0.0.1:{store_port}"));
        cluster.set("FANFOLD_SCYLLA__TLS", "true");
        cluster.set(RABBITMQ_URL, format!("amqps://{credentials}@localhost:{broker_port}/{vhost}"));
        let stranger = Trust::new();
        for setting in ["FANFOLD_SCYLLA__TLS_CA_FILE", "FANFOLD_RABBITMQ__TLS_CA_FILE"] {
            cluster.set(setting, stranger.path("ca.pem"));
        }
        found(&cluster.findings("store").await, &["WRONG", "certificate", "scylla.tls_ca_file"]);
        found(&cluster.findings("queue").await, &["WRONG", "certificate", "rabbitmq.tls_ca_file"]);
        let nothing = stranger.path("nothing.pem");
        cluster.set("FANFOLD_SCYLLA__TLS_CA_FILE", &nothing);
        cluster.set("FANFOLD_RABBITMQ__TLS_CA_FILE", &nothing);
        found(&cluster.findings("store").await, &["WRONG", &nothing, "cannot be read", "scylla.tls_ca_file"]);
        found(&cluster.findings("queue").await, &["WRONG", &nothing, "cannot be read", "rabbitmq.tls_ca_file"]);
        for setting in ["FANFOLD_SCYLLA__TLS_CA_FILE", "FANFOLD_RABBITMQ__TLS_CA_FILE"] {
            cluster.set(setting, trust.path("ca.pem"));
        }
        cluster.migrate().await;
        found(&cluster.findings("store").await, &["ok", "every statement can be prepared"]);
        found(&cluster.findings("queue").await, &["ok", "as this release needs them"]);
        let mut node = cluster.start(SERVE);
        node.says(&["revisions are available"]).await;
        let said = node.stop().await;
        assert!(!said.contains("starting without"), "{said}");
    }
}
