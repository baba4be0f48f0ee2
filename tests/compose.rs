//! docker-compose.yml, the Dockerfile and what the service knows of itself, held together: their text, where no Docker
//! engine runs. dev/image-check runs those of the image's steps that need none.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use fanfold::config::{Config, Mode, Overrides, load};

fn read(name: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).expect(name)
}

/// Lines without their comments and indentation.
fn lines(text: &str) -> impl Iterator<Item = &str> {
    text.lines().map(str::trim).filter(|line| !line.starts_with('#') && !line.is_empty())
}

/// Every `FANFOLD_…: value` of the file, whichever service it is for.
fn environment(compose: &str) -> BTreeMap<String, String> {
    let variables = lines(compose).filter(|line| line.starts_with("FANFOLD_"));
    let pairs = variables.map(|line| line.split_once(": ").unwrap_or_else(|| panic!("no value in {line}")));
    pairs.map(|(name, value)| (name.to_owned(), value.trim_matches('"').to_owned())).collect()
}

/// What the processes have from their environment. Of the file that `init` writes only that access control is on.
fn config(compose: &str) -> Config {
    let mut environment = environment(compose);
    environment.remove("FANFOLD_CONFIG").expect("the file of `init`");
    environment.insert("FANFOLD_ACCESS__MODE".to_owned(), "on".to_owned());
    load(&Overrides::default(), environment).expect("every variable is a known key with a value it takes")
}

#[test]
fn nobody_gets_in_without_a_key_and_secrets_are_made_not_written_down() {
    let compose = read("docker-compose.yml");
    assert!(!lines(&compose).any(|line| line.to_lowercase().contains("insecure")), "access control is on");
    assert!(!config(&compose).http.insecure_listen_beyond_loopback);
    let init = service(&compose, "init");
    let command = lines(init).find_map(|line| line.strip_prefix("command: ")).expect("a command");
    assert!(command.contains("--if-missing") && command.contains("--mode, cluster"), "{command}");
    // Written by `init`, read by the others, and by nobody before it.
    let folder = environment(&compose)["FANFOLD_CONFIG"].rsplit_once('/').expect("a path").0.to_owned();
    assert!(lines(init).any(|line| line == format!("volumes: [\"config:{folder}\"]")), "{init}");
    let (_, shared) = compose.split_once("x-fanfold: ").expect("what all processes share");
    assert!(lines(shared).any(|line| line == format!("volumes: [\"config:{folder}:ro\"]")));
    let migrate = service(&compose, "migrate");
    assert!(lines(migrate).any(|line| line == "environment: *servers") && migrate.contains("volumes: []"));
    let (_, needs) = compose.split_once("x-needs: ").expect("what processes wait for");
    assert_eq!(lines(needs).nth(1), Some("init: {condition: service_completed_successfully}"));
    assert!(lines(init).any(|line| line == "migrate: {condition: service_completed_successfully}"));
    let docker = read("Dockerfile");
    assert!(docker.contains(&format!("--group=fanfold --mode=0700 {folder}")), "the volume belongs to its user");
}

#[test]
fn every_variable_is_known_and_they_make_a_cluster() {
    let config = config(&read("docker-compose.yml"));
    assert_eq!(config.service.mode, Mode::Cluster);
    assert_eq!(config.scylla.contact_points, ["scylla:9042"]);
    assert_eq!(config.scylla.replication_factor, 1, "there is one node");
    assert_eq!(config.rabbitmq.url.expose(), "amqp://fanfold:fanfold@rabbitmq:5672/%2f");
    assert_eq!(config.redis.urls.iter().map(|url| url.expose()).collect::<Vec<_>>(), ["redis://redis:6379"]);
}

#[test]
fn a_process_is_asked_where_it_listens() {
    let compose = read("docker-compose.yml");
    let config = config(&compose);
    for listen in [config.http.listen, config.worker.listen] {
        assert!(listen.ip().is_unspecified(), "{listen} cannot be reached from other containers");
        let health = format!("test: [CMD, fanfold, health, --url, \"http://127.0.0.1:{}\"]", listen.port());
        assert!(lines(&compose).any(|line| line == health), "{health}");
    }
}

#[test]
fn the_api_alone_is_published_on_loopback_and_workers_can_be_scaled() {
    let compose = read("docker-compose.yml");
    let published: Vec<&str> = lines(&compose).filter_map(|line| line.strip_prefix("ports: ")).collect();
    // Of a server, its management page included, everybody knows the password.
    assert_eq!(published, ["[\"127.0.0.1:8470:8470\"]"]);
    assert!(service(&compose, "api").contains("ports: "));
    for word in ["container_name", "network_mode", "ports:\n"] {
        assert!(!compose.contains(word), "{word}");
    }
    assert!(!service(&compose, "fanout").contains("ports:"));
}

/// What is indented below the name of a service.
fn service<'a>(compose: &'a str, name: &str) -> &'a str {
    let (_, rest) = compose.split_once(&format!("\n  {name}:\n")).expect(name);
    let end = rest.match_indices("\n  ").find(|(at, _)| !rest[at + 3..].starts_with(' '));
    &rest[..end.map_or(rest.len(), |(at, _)| at)]
}

/// A process may take its grace, and a little longer to tell what is left and to close the store.
#[test]
fn a_process_has_the_time_to_stop() {
    let compose = read("docker-compose.yml");
    let (_, fanfold) = compose.split_once("x-fanfold: ").expect("what all processes share");
    let patience = lines(fanfold).find_map(|line| line.strip_prefix("stop_grace_period: ")).expect("a bound");
    let patience: u32 = patience.trim_end_matches('s').parse().expect("seconds");
    let grace = config(&compose).http.shutdown_grace_s;
    assert!(patience >= grace + 10, "{patience} s are not enough for http.shutdown_grace_s = {grace}");
}

#[test]
fn the_image_has_every_process_and_what_it_is_built_from() {
    let (docker, ignore, manifest) = (read("Dockerfile"), read(".dockerignore"), read("Cargo.toml"));
    let compose = read("docker-compose.yml");
    let commands = lines(&compose).filter_map(|line| line.strip_prefix("command: ["));
    let started: Vec<&str> = commands.filter_map(|command| command.split([',', ']']).next()).collect();
    let binaries = manifest.split("[[bin]]\nname = \"").skip(1).map(|rest| rest.split('"').next().expect("a name"));
    for binary in binaries {
        assert!(docker.contains(&format!("target/release/{binary}")), "{binary} is not in the image");
        assert!(started.contains(&binary), "{binary} is not started");
    }
    for source in ["src/main.rs", "workers/relay.rs", "cql/001_schema.cql", "config.default.toml", "Cargo.lock"] {
        let top = source.split('/').next().unwrap_or(source);
        assert!(Path::new(env!("CARGO_MANIFEST_DIR")).join(source).exists(), "{source}");
        assert!(lines(&ignore).any(|line| line.strip_prefix('!') == Some(top)), "{source} is kept from the build");
    }
    let version = lines(&manifest).find_map(|line| line.strip_prefix("rust-version = ")).expect("a version");
    let version = version.trim_matches('"');
    assert!(docker.contains(&format!("FROM rust:{version}-")), "the image builds with another Rust than {version}");
    let user = lines(&docker).filter_map(|line| line.strip_prefix("USER ")).last().expect("a user");
    assert!(!user.starts_with('0') && !user.starts_with("root"), "{user}");
}
