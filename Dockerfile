# All three processes in one image: `fanfold` (the service, or an API node, and the command line), `fanfold-fanout` and
# `fanfold-relay`. docker-compose.yml says which runs where. It needs BuildKit, for the caches.

FROM rust:1.95-trixie AS build
WORKDIR /src
COPY . .
# The caches stay on the builder: a second build compiles what has changed.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    cargo build --locked --release --features tls --bins \
    && install --strip -D --target-directory=/out \
        target/release/fanfold target/release/fanfold-fanout target/release/fanfold-relay

# The same Debian as above: the binaries use its C library.
FROM debian:trixie-slim
# Public authorities, for connections to servers by TLS.
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
RUN groupadd --gid 10001 fanfold \
    && useradd --uid 10001 --gid fanfold --no-create-home --home-dir /var/lib/fanfold \
        --shell /usr/sbin/nologin fanfold \
    && install --directory --owner=fanfold --group=fanfold /var/lib/fanfold \
    && install --directory --owner=fanfold --group=fanfold --mode=0700 /etc/fanfold
COPY --from=build /out/ /usr/local/bin/
USER 10001:10001
# Embedded mode keeps its data in ./fanfold-data; cluster mode writes nothing here.
WORKDIR /var/lib/fanfold
# A new volume mounted at /etc/fanfold takes over its owner and mode: `fanfold init` writes its secrets there.
# No ENTRYPOINT: the command names the process. There is no curl here; `fanfold health --url URL` asks /readyz.
CMD ["fanfold", "serve"]
