#[tokio::main]
async fn main() {
    let app = axum::Router::new()
        .route("/v1/viewers/{v}/revision", axum::routing::get(|| async { axum::http::StatusCode::NOT_MODIFIED }));
    let l = tokio::net::TcpListener::bind("127.0.0.1:18471").await.unwrap();
    loop {
        let (s, _) = l.accept().await.unwrap();
        let _ = s.set_nodelay(true);
        let app = app.clone();
        tokio::spawn(async move {
            let svc = hyper_util::service::TowerToHyperService::new(app);
            let _ =
                hyper::server::conn::http1::Builder::new().serve_connection(hyper_util::rt::TokioIo::new(s), svc).await;
        });
    }
}
