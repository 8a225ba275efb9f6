//! `GET /metrics` of the admin listener.

use actix_web::{
    HttpResponse,
    http::header,
    web::{self, Data},
};

use super::Services;
use crate::{
    clock::Timestamp,
    domain::key::{KeyTimes, KeyUse},
    keys::lifecycle::KeyState,
    metrics::{CONTENT_TYPE, Keys, Reading},
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
    let now = services.clock.now();
    let signing: Vec<_> = snapshots
        .ring()
        .list(now)
        .map(|(_, state, times)| (state, times))
        .collect();
    let refresh_mac: Vec<_> = snapshots
        .mac_ring()
        .list(now)
        .map(|(_, state, times)| (state, times))
        .collect();
    let mut by_use = vec![
        keys(KeyUse::Signing, &signing, now),
        keys(KeyUse::RefreshMac, &refresh_mac, now),
    ];
    if let Some(rs256) = snapshots.ring().list_rs256(now) {
        let rs256: Vec<_> = rs256.map(|(_, state, times)| (state, times)).collect();
        by_use.push(keys(KeyUse::IdTokenRs256, &rs256, now));
    }
    let freshness = &snapshots.freshness;
    Reading {
        keys: by_use,
        sync_lag: snapshots.age(services.clock.monotonic()),
        database_up: freshness.succeeded(),
        clock_offset_ms: services.clock.offset_ms(),
        revocation_entries: services.revocation.tokens.revocations.len(),
        queues: vec![
            ("database_look", freshness.waiting()),
            ("passwords", services.admin.users.passwords.waiting()),
            ("refresh", services.token.rotations.len()),
        ],
    }
}

fn keys(key_use: KeyUse, keys: &[(KeyState, KeyTimes)], now: Timestamp) -> Keys {
    let in_state = |wanted: KeyState| {
        keys.iter()
            .filter(move |(state, _)| *state == wanted)
            .map(|(_, times)| times)
    };
    Keys {
        key_use: key_use.as_str(),
        states: KeyState::ALL
            .iter()
            .map(|state| (state.as_str(), in_state(*state).count()))
            .collect(),
        age: in_state(KeyState::Active)
            .map(|times| now.since(times.activates_at))
            .next(),
        next_transition: in_state(KeyState::Next)
            .map(|times| times.activates_at.since(now))
            .min(),
    }
}
