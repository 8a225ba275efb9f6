//! `GET /metrics` of the admin listener.

use actix_web::{
    HttpResponse,
    http::header,
    web::{self, Data},
};

use super::Services;
use crate::{
    keys::lifecycle::KeyState,
    metrics::{CONTENT_TYPE, Reading},
};

/// Metrics in the text format of `OpenMetrics` 1.0, for whoever reaches the admin listener.
pub(super) async fn metrics(services: Data<Services>) -> HttpResponse {
    let reading = reading(&services);
    let metrics = services.token.minter.metrics.clone();
    // Reads files, if only those of /proc.
    match web::block(move || metrics.text(&reading)).await {
        Ok(text) => HttpResponse::Ok()
            .insert_header((header::CONTENT_TYPE, CONTENT_TYPE))
            .insert_header((header::CACHE_CONTROL, "no-store"))
            .body(text),
        Err(_) => HttpResponse::ServiceUnavailable().finish(),
    }
}

fn reading(services: &Services) -> Reading {
    let snapshots = &services.snapshots;
    let ring = snapshots.ring();
    let now = services.clock.now();
    let in_state = |wanted: KeyState| {
        ring.list(now)
            .filter(move |(_, state, _)| *state == wanted)
            .map(|(_, _, times)| times)
    };
    let freshness = &snapshots.freshness;
    Reading {
        keys: KeyState::ALL
            .iter()
            .map(|state| (state.as_str(), in_state(*state).count()))
            .collect(),
        key_age: in_state(KeyState::Active)
            .map(|times| now.since(times.activates_at))
            .next(),
        key_next_transition: in_state(KeyState::Next)
            .map(|times| times.activates_at.since(now))
            .min(),
        sync_lag: snapshots.age(services.clock.monotonic()),
        database_up: freshness.succeeded(),
        clock_offset_ms: services.clock.offset_ms(),
        revocation_entries: services.revocation.tokens.revocations.len(),
        queues: vec![
            ("database_look", freshness.waiting()),
            ("refresh", services.token.rotations.len()),
        ],
    }
}
