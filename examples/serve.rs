use fanfold::config;
#[tokio::main]
async fn main() {
    let o = config::Overrides {
        listen: Some("127.0.0.1:18470".parse().unwrap()),
        data: Some(std::path::PathBuf::from(std::env::args().nth(1).unwrap())),
        ..Default::default()
    };
    let c = config::load(&o, []).unwrap();
    fanfold::telemetry::init_logging(&c.log).unwrap();
    if let Err(e) = fanfold::service::run(c).await {
        eprintln!("{e}");
    }
}
