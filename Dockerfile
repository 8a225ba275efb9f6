FROM rust:1.95-slim-bookworm AS build
WORKDIR /src
COPY . .
RUN cargo build --release --locked

FROM debian:bookworm-slim
# A fixed uid, so that mounted volumes and secrets can be given to it.
RUN groupadd --gid 10001 countersign \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /var/lib/countersign \
        --shell /usr/sbin/nologin countersign \
    && install --directory --owner=10001 --group=10001 --mode=0700 \
        /var/lib/countersign /var/lib/countersign/data /var/lib/countersign/keys
# Outgoing TLS (a client's `jwks_uri`) needs the root certificates.
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/
COPY --from=build /src/target/release/countersign /usr/local/bin/

# Production takes an https issuer and a master key and refuses to start without. Both listeners
# answer beyond the container: publish the admin port (8081) to operators only.
ENV COUNTERSIGN__ENVIRONMENT=production \
    COUNTERSIGN__PUBLIC__LISTEN=0.0.0.0:8080 \
    COUNTERSIGN__ADMIN__LISTEN=0.0.0.0:8081
USER 10001:10001
WORKDIR /var/lib/countersign
VOLUME ["/var/lib/countersign/data", "/var/lib/countersign/keys"]
EXPOSE 8080 8081
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=10s CMD ["countersign", "health"]
ENTRYPOINT ["countersign"]
CMD ["serve"]
