//! `/admin/v1/clients` and what is below it.

use super::*;
use crate::support::server::Setup;

#[tokio::test]
async fn a_client_is_registered_shown_changed_and_removed() {
    let server = TestServer::start().await;
    let desk = Desk::of(&server, ALL).await;
    let written = json!({
        "client_name": "Orders", "scope": "read", "resources": [API], "default_resource": API,
    });
    let created = desk.post("/admin/v1/clients", &written).await;
    assert_eq!(created.status, 201, "{created:?}");
    let mut client = created.json();
    let id = client["client_id"].as_str().unwrap().to_owned();
    let place = format!("/admin/v1/clients/{id}");
    assert_eq!(created.header("location"), Some(place.as_str()));
    let secret = client
        .as_object_mut()
        .unwrap()
        .remove("client_secret")
        .unwrap();
    assert!(secret.as_str().unwrap().starts_with("cs_cs_"));
    assert_eq!(desk.get(&place).await.json(), client);
    assert_eq!(client["revision"], 1);

    let registered = Registered {
        id,
        secret: secret.as_str().unwrap().to_owned(),
        secret_id: None,
    };
    let token = server.token_for(&registered).await;
    assert_eq!(token.json()["scope"], "read");

    let patch = json!({ "client_name": "Orders, Europe", "default_resource": null, "revision": 1 });
    let changed = desk.patch(&place, &patch).await;
    assert_eq!(changed.status, 200, "{changed:?}");
    assert_eq!(changed.json()["client_name"], "Orders, Europe");
    assert_eq!(changed.json()["default_resource"], Value::Null);
    assert_eq!(changed.json()["scope"], "read");
    assert_eq!(changed.json()["revision"], 2);

    let removed = desk.delete(&place).await;
    assert_eq!((removed.status, removed.body.as_str()), (204, ""));
    for answer in [desk.get(&place).await, desk.delete(&place).await] {
        is_problem(&answer, 404, "not-found");
    }
}

/// `OpenID` Connect Registration 1.0 §2.
#[tokio::test]
async fn id_tokens_are_signed_with_rs256_only_where_the_service_has_opted_in() {
    let field = "id_token_signed_response_alg";
    let off = TestServer::start().await;
    let desk = Desk::of(&off, ALL).await;
    let written = |alg: Value| json!({ "client_name": "Portal", "scope": "openid", field: alg });
    for alg in [Value::Null, json!("ES256")] {
        let created = desk.post("/admin/v1/clients", &written(alg)).await;
        assert_eq!(created.status, 201, "{created:?}");
        assert_eq!(created.json()[field], "ES256");
    }
    for (alg, detail) in [
        (
            "RS256",
            "RS256 is for services whose setting keys.rs256_id_tokens is true",
        ),
        ("PS256", "must be ES256 or RS256"),
        ("none", "must be ES256 or RS256"),
        ("", "must be ES256 or RS256"),
    ] {
        let created = desk.post("/admin/v1/clients", &written(json!(alg))).await;
        let patch = json!({ field: alg });
        let changed = desk.patch("/admin/v1/clients/app", &patch).await;
        for refused in [created, changed] {
            assert_eq!(pointers(&refused), [format!("/{field}")]);
            assert_eq!(refused.json()["errors"][0]["detail"], detail);
        }
    }
    let setup = Setup::new().set("keys.rs256_id_tokens", "true");
    let on = setup.start().await;
    let desk = Desk::of(&on, ALL).await;
    let created = desk
        .post("/admin/v1/clients", &written(json!("RS256")))
        .await;
    assert_eq!(created.status, 201, "{created:?}");
    assert_eq!(created.json()[field], "RS256");
    let changed = desk
        .patch("/admin/v1/clients/app", &json!({ field: "RS256" }))
        .await;
    assert_eq!(changed.json()[field], "RS256");
    let changed = desk
        .patch("/admin/v1/clients/app", &json!({ field: null }))
        .await;
    assert_eq!(changed.json()[field], "ES256");
}

#[tokio::test]
async fn a_stale_revision_is_a_conflict_and_changes_nothing() {
    let server = TestServer::start().await;
    let desk = Desk::of(&server, ALL).await;
    let place = "/admin/v1/clients/app";
    let first = json!({ "client_name": "First", "revision": 1 });
    assert_eq!(desk.patch(place, &first).await.status, 200);
    for revision in [1, 3, 0, -1, i64::MAX] {
        let late = json!({ "client_name": "Late", "revision": revision });
        is_problem(&desk.patch(place, &late).await, 409, "conflict");
    }
    assert_eq!(desk.get(place).await.json()["client_name"], "First");
}

#[tokio::test]
async fn an_id_can_be_chosen_once() {
    let server = TestServer::start().await;
    let desk = Desk::of(&server, ALL).await;
    let written = json!({ "client_id": "orders", "client_name": "Orders" });
    let created = desk.post("/admin/v1/clients", &written).await;
    assert_eq!(created.header("location"), Some("/admin/v1/clients/orders"));
    let again = desk.post("/admin/v1/clients", &written).await;
    is_problem(&again, 409, "conflict");
}

#[tokio::test]
async fn a_public_client_has_no_secret() {
    let server = TestServer::start().await;
    let desk = Desk::of(&server, ALL).await;
    let written = json!({ "client_name": "App", "token_endpoint_auth_method": "none" });
    let created = desk.post("/admin/v1/clients", &written).await.json();
    assert!(created.get("client_secret").is_none(), "{created}");
    let id = created["client_id"].as_str().unwrap();
    let secrets = format!("/admin/v1/clients/{id}/secrets");
    is_problem(&desk.post(&secrets, &json!({})).await, 409, "conflict");
}

#[tokio::test]
async fn secrets_are_exchanged_without_a_gap() {
    let server = TestServer::start().await;
    let desk = Desk::of(&server, ALL).await;
    let secrets = "/admin/v1/clients/app/secrets";
    // Without a body, too.
    let added = desk.send(desk.request("POST", secrets)).await;
    assert_eq!(added.status, 201, "{added:?}");
    let new = added.json();
    let place = format!("{secrets}/{}", new["id"].as_str().unwrap());
    assert_eq!(added.header("location"), Some(place.as_str()));
    let third = desk.send(desk.request("POST", secrets)).await;
    is_problem(&third, 409, "conflict");
    let renewed = Registered {
        id: "app".to_owned(),
        secret: new["client_secret"].as_str().unwrap().to_owned(),
        secret_id: None,
    };
    assert_eq!(server.token().await.status, 200);
    assert_eq!(server.token_for(&renewed).await.status, 200);
    let old = server.app.secret_id.unwrap();
    assert_eq!(desk.delete(&format!("{secrets}/{old}")).await.status, 204);
    let again = desk.delete(&format!("{secrets}/{old}")).await;
    is_problem(&again, 404, "not-found");
    while server.token().await.status == 200 {}
    assert_eq!(server.token_for(&renewed).await.status, 200);
}

#[tokio::test]
async fn everything_wrong_is_told_at_once_with_its_pointer() {
    let server = TestServer::start().await;
    let desk = Desk::of(&server, ALL).await;
    let written = json!({
        "client_id": "a b",
        "client_name": "with a \0 in it",
        "token_endpoint_auth_method": "magic",
        "scope": 7,
        "resources": [API, "https://nobody.example"],
        "default_resource": {},
        "allowed_origins": ["https://app.example/"],
        "access_token_ttl_seconds": 3601,
        "disabled": null,
        "unheard/of": 1,
    });
    let refused = desk.post("/admin/v1/clients", &written).await;
    let expected = [
        "/access_token_ttl_seconds",
        "/allowed_origins/0",
        "/client_id",
        "/client_name",
        "/default_resource",
        "/disabled",
        "/resources/1",
        "/scope",
        "/token_endpoint_auth_method",
        "/unheard~1of",
    ];
    assert_eq!(pointers(&refused), expected);
    assert_eq!(
        pointers(&desk.post("/admin/v1/clients", &json!({})).await),
        ["/client_name"]
    );

    let place = "/admin/v1/clients/app";
    let patch = json!({
        "client_name": null, "client_id": "other", "secrets": [], "unheard": null,
        "access_token_ttl_seconds": 1e300, "disabled": "yes",
    });
    let expected = [
        "/access_token_ttl_seconds",
        "/client_id",
        "/client_name",
        "/disabled",
        "/secrets",
        "/unheard",
    ];
    assert_eq!(pointers(&desk.patch(place, &patch).await), expected);
    for revision in [json!("1"), json!(null), json!(1.5), json!(u64::MAX)] {
        let refused = desk.patch(place, &json!({ "revision": revision })).await;
        assert_eq!(pointers(&refused), ["/revision"]);
    }
    assert_eq!(desk.get(place).await.json()["revision"], 1);
}

/// RFC 6749 §3.1.2, RFC 8252 §7, RFC 9700 §2.1: where codes go, and what they are bound to.
#[tokio::test]
async fn redirect_uris_are_registered_exactly_and_pkce_is_required() {
    let server = TestServer::start().await;
    let desk = Desk::of(&server, ALL).await;
    let written = json!({
        "client_id": "site",
        "client_name": "Site",
        "redirect_uris": ["https://site.example/cb?a=b", "http://127.0.0.1/cb", "https://site.example/cb?a=b"],
        "post_logout_redirect_uris": ["https://site.example/"],
        "response_types": ["code"],
    });
    let created = desk.post("/admin/v1/clients", &written).await.json();
    let uris = json!(["https://site.example/cb?a=b", "http://127.0.0.1/cb"]);
    assert_eq!(created["redirect_uris"], uris);
    assert_eq!(
        created["post_logout_redirect_uris"],
        json!(["https://site.example/"])
    );
    assert_eq!(created["response_types"], json!(["code"]));
    assert_eq!(created["require_pkce"], true);

    let place = "/admin/v1/clients/site";
    let many: Vec<_> = (0..51)
        .map(|number| format!("https://a.example/{number}"))
        .collect();
    for (patch, pointer) in [
        (
            json!({ "redirect_uris": ["https://a.example/cb", "https://a.example/#cb"] }),
            "/redirect_uris/1",
        ),
        (json!({ "redirect_uris": ["/cb"] }), "/redirect_uris/0"),
        (json!({ "redirect_uris": many }), "/redirect_uris"),
        (
            json!({ "post_logout_redirect_uris": ["http://a.example/"] }),
            "/post_logout_redirect_uris/0",
        ),
        (
            json!({ "response_types": ["code", "code token"] }),
            "/response_types/1",
        ),
        // It must use OpenID Connect …
        (json!({ "require_pkce": false }), "/require_pkce"),
        // … and authenticate.
        (
            json!({
                "require_pkce": false, "scope": "openid",
                "token_endpoint_auth_method": "none", "grant_types": null,
            }),
            "/require_pkce",
        ),
    ] {
        assert_eq!(pointers(&desk.patch(place, &patch).await), [pointer]);
    }
    let shown = desk.get(place).await.json();
    assert_eq!(
        (&shown["redirect_uris"], &shown["revision"]),
        (&uris, &json!(1))
    );
    let relaxed = json!({ "require_pkce": false, "scope": "openid" });
    let relaxed = desk.patch(place, &relaxed).await.json();
    assert_eq!(relaxed["require_pkce"], false);
    // What it rests on cannot be taken away from under it.
    let patch = json!({ "scope": "" });
    assert_eq!(
        pointers(&desk.patch(place, &patch).await),
        ["/require_pkce"]
    );
    // Nothing comes from the authorization endpoint for whom there is no way back.
    let patch = json!({ "redirect_uris": null });
    let without = desk.patch(place, &patch).await.json();
    assert_eq!(without["response_types"], json!([]));
}

/// What `forward_auth` and `session_tokens` rest on, when a client is registered and when it is changed.
#[tokio::test]
async fn who_asks_for_hosts_and_pages_has_what_that_needs() {
    let server = TestServer::start().await;
    let desk = Desk::of(&server, ALL).await;
    let callback = "https://wiki.example/session/callback";
    let mut wiki = json!({
        "client_id": "wiki", "client_name": "Wiki", "forward_auth": true, "resources": [API],
        "default_resource": API, "redirect_uris": ["https://wiki.example/other", callback],
    });
    let board = json!({
        "client_id": "board", "client_name": "Board", "session_tokens": true,
        "token_endpoint_auth_method": "none", "allowed_origins": ["https://board.example"],
    });
    let basic = "needs token_endpoint_auth_method client_secret_basic: the proxy authenticates so";
    let for_each = "needs a redirect URI https://<host>/session/callback for each host";
    let hosts = [
        (
            json!({ "token_endpoint_auth_method": "client_secret_post" }),
            basic,
        ),
        (
            json!({ "token_endpoint_auth_method": "none", "grant_types": ["authorization_code"] }),
            basic,
        ),
        (
            json!({ "grant_types": ["client_credentials"] }),
            "needs the grant authorization_code",
        ),
        (
            json!({ "default_resource": null }),
            "needs a default_resource: what the tokens of the hosts are for",
        ),
        (json!({ "redirect_uris": null }), for_each),
        (
            json!({ "redirect_uris": ["https://wiki.example/session/callback/"] }),
            for_each,
        ),
    ];
    let pages = [
        (
            json!({ "token_endpoint_auth_method": "client_secret_basic" }),
            "is for public clients: token_endpoint_auth_method none",
        ),
        (
            json!({ "allowed_origins": null }),
            "needs the origins of its pages in allowed_origins",
        ),
    ];
    for (pointer, client, cases) in [
        ("/forward_auth", &wiki, &hosts[..]),
        ("/session_tokens", &board, &pages),
    ] {
        let place = format!(
            "/admin/v1/clients/{}",
            client["client_id"].as_str().unwrap()
        );
        let is_refused = |refused: &Answer, detail: &str| {
            assert_eq!(refused.status, 400, "{refused:?}");
            let expected = json!([{ "pointer": pointer, "detail": detail }]);
            assert_eq!(refused.json()["errors"], expected);
        };
        for (patch, detail) in cases {
            let mut written = client.clone();
            let members = patch.as_object().unwrap().iter();
            for (name, value) in members {
                written[name] = value.clone();
            }
            written
                .as_object_mut()
                .unwrap()
                .retain(|_, value| !value.is_null());
            is_refused(&desk.post("/admin/v1/clients", &written).await, detail);
        }
        assert_eq!(desk.get(&place).await.status, 404);
        assert_eq!(desk.post("/admin/v1/clients", client).await.status, 201);
        for (patch, detail) in cases {
            is_refused(&desk.patch(&place, patch).await, detail);
        }
        let shown = desk.get(&place).await.json();
        assert_eq!(
            (&shown["revision"], &shown[&pointer[1..]]),
            (&json!(1), &json!(true))
        );
        // Without it nothing of that is needed.
        let (patch, _) = cases.last().unwrap();
        let mut patch = patch.clone();
        patch[&pointer[1..]] = json!(false);
        assert_eq!(desk.patch(&place, &patch).await.status, 200);
    }
    // One that had neither gets none by a patch alone.
    wiki["client_id"] = json!("bare");
    wiki["forward_auth"] = json!(false);
    wiki["redirect_uris"] = json!([]);
    assert_eq!(desk.post("/admin/v1/clients", &wiki).await.status, 201);
    let patch = json!({ "forward_auth": true });
    let refused = desk.patch("/admin/v1/clients/bare", &patch).await;
    assert_eq!(pointers(&refused), ["/forward_auth"]);
}

#[tokio::test]
async fn bodies_must_be_json_objects_of_the_right_type_and_size() {
    let server = TestServer::start().await;
    let desk = Desk::of(&server, ALL).await;
    let post = || desk.request("POST", "/admin/v1/clients");
    let json = |body: &[u8]| {
        post()
            .header(CONTENT_TYPE, "application/json")
            .body(body.to_vec())
    };
    for body in [
        &b""[..],
        b"{",
        b"{}{}",
        b"{\"a\":1,\"a\":2}",
        b"\xff",
        b"{\"client_name\":\"\\ud800\"}",
        b"{\"access_token_ttl_seconds\":1e999}",
        &[b'['; 5000],
    ] {
        is_problem(&desk.send(json(body)).await, 400, "malformed");
    }
    for body in [&b"[]"[..], b"null", b"\"text\"", b"7"] {
        assert_eq!(pointers(&desk.send(json(body)).await), [""]);
    }
    for media_type in [
        "text/plain",
        "application/x-www-form-urlencoded",
        "",
        "application/merge-patch+json",
    ] {
        let request = post()
            .header(CONTENT_TYPE, media_type)
            .body("{\"client_name\":\"x\"}");
        is_problem(&desk.send(request).await, 415, "unsupported-media-type");
    }
    let untyped = post().body("{\"client_name\":\"x\"}");
    is_problem(&desk.send(untyped).await, 415, "unsupported-media-type");
    let compressed = json(b"x").header("content-encoding", "gzip");
    is_problem(&desk.send(compressed).await, 415, "unsupported-media-type");
    let large = format!("{{\"client_name\":\"{}\"}}", "x".repeat(70_000));
    is_problem(&desk.send(json(large.as_bytes())).await, 413, "too-large");
    let charset = post()
        .header(CONTENT_TYPE, "Application/JSON; charset=utf-8")
        .body("{\"client_name\":\"x\"}");
    assert_eq!(desk.send(charset).await.status, 201);
    // A merge patch may call itself plain JSON.
    let patch = desk
        .request("PATCH", "/admin/v1/clients/app")
        .json(&json!({ "client_name": "y" }));
    assert_eq!(desk.send(patch).await.status, 200);
}

#[tokio::test]
async fn lists_come_in_parts_that_stay_in_step_while_clients_come_and_go() {
    let server = TestServer::start().await;
    let desk = Desk::of(&server, ALL).await;
    for name in ["b1", "b2", "b3", "b4", "b5"] {
        let written = json!({ "client_id": name, "client_name": name });
        assert_eq!(desk.post("/admin/v1/clients", &written).await.status, 201);
    }
    let mut seen = Vec::new();
    let mut path = "/admin/v1/clients?limit=2".to_owned();
    loop {
        let part = desk.get(&path).await.json();
        let items = part["items"].as_array().unwrap();
        assert!(items.len() <= 2);
        seen.extend(
            items
                .iter()
                .map(|item| item["client_id"].as_str().unwrap().to_owned()),
        );
        if seen.len() == 2 {
            desk.delete(&format!("/admin/v1/clients/{}", seen[1])).await;
            let early = json!({ "client_id": "a0", "client_name": "Before what was seen" });
            desk.post("/admin/v1/clients", &early).await;
            let late = json!({ "client_id": "b6", "client_name": "After it" });
            desk.post("/admin/v1/clients", &late).await;
        }
        match part["next_cursor"].as_str() {
            Some(cursor) => path = format!("/admin/v1/clients?limit=2&cursor={cursor}"),
            None => break,
        }
    }
    seen.retain(|id| id.starts_with('b') || id.starts_with("a0"));
    assert_eq!(seen, ["b1", "b2", "b3", "b4", "b5", "b6"]);
}

#[tokio::test]
async fn a_limit_or_cursor_that_cannot_be_is_told() {
    let server = TestServer::start().await;
    let desk = Desk::of(&server, ALL).await;
    for list in ["clients", "events", "keys", "resources"] {
        let get = |query: &str| desk.request("GET", &format!("/admin/v1/{list}?{query}"));
        for limit in [
            "0",
            "201",
            "-1",
            "1.5",
            "ten",
            "18446744073709551616",
            "%00",
        ] {
            let refused = desk.send(get(&format!("limit={limit}"))).await;
            assert_eq!(pointers(&refused), ["/limit"]);
        }
        for cursor in ["x", "%00", "b3RoZXI6YQ", &"x".repeat(2000)] {
            let refused = desk.send(get(&format!("limit=9&cursor={cursor}"))).await;
            assert_eq!(pointers(&refused), ["/cursor"]);
        }
        assert_eq!(
            pointers(&desk.send(get("limit=0&cursor=x")).await),
            ["/cursor", "/limit"]
        );
        for query in ["limit=1&limit=2", "limit=%zz", "cursor=%ff"] {
            is_problem(&desk.send(get(query)).await, 400, "malformed");
        }
        let unknown = desk.send(get("limit=200&other=1")).await;
        assert_eq!(pointers(&unknown), ["/other"]);
    }
}

/// The natural use of revisions.
#[tokio::test]
async fn what_was_shown_can_be_sent_back_with_something_changed() {
    let server = TestServer::start().await;
    let desk = Desk::of(&server, ALL).await;
    let place = "/admin/v1/clients/app";
    let mut shown = desk.get(place).await.json();
    shown["client_name"] = "Renamed".into();
    let changed = desk.patch(place, &shown).await;
    assert_eq!(changed.status, 200, "{changed:?}");
    assert_eq!(changed.json()["client_name"], "Renamed");
    // By now it is an old one.
    assert_eq!(desk.patch(place, &shown).await.status, 409);
}

/// The audit trail calls the service itself by this name.
#[tokio::test]
async fn no_client_is_named_like_the_service_itself() {
    let server = TestServer::start().await;
    let desk = Desk::of(&server, ALL).await;
    let client = json!({ "client_id": "system", "client_name": "x" });
    let refused = desk.post("/admin/v1/clients", &client).await;
    assert_eq!(pointers(&refused), ["/client_id"]);
}

/// RFC 9700 §2.2.2: "Refresh tokens for public clients MUST be sender-constrained or use refresh token
/// rotation".
#[tokio::test]
async fn the_tokens_of_a_public_client_rotate() {
    let server = TestServer::start().await;
    let desk = Desk::of(&server, ALL).await;
    let public = json!({
        "client_name": "x",
        "token_endpoint_auth_method": "none",
        "grant_types": ["authorization_code", "refresh_token"],
    });
    let mut unrotated = public.clone();
    unrotated["refresh_policy"] = "none".into();
    let refused = desk.post("/admin/v1/clients", &unrotated).await;
    assert_eq!(pointers(&refused), ["/refresh_policy"]);
    let registered = async |client: &Value| {
        let created = desk.post("/admin/v1/clients", client).await;
        assert_eq!(created.status, 201, "{created:?}");
        created.header("location").unwrap().to_owned()
    };
    let place = registered(&public).await;
    assert_eq!(desk.get(&place).await.json()["refresh_policy"], "standard");
    let refused = desk
        .patch(&place, &json!({ "refresh_policy": "none" }))
        .await;
    assert_eq!(pointers(&refused), ["/refresh_policy"]);
    // Nor does a client become public that has tokens which do not rotate.
    unrotated["token_endpoint_auth_method"] = "client_secret_basic".into();
    let place = registered(&unrotated).await;
    let patch = json!({ "token_endpoint_auth_method": "none" });
    let refused = desk.patch(&place, &patch).await;
    assert_eq!(pointers(&refused), ["/refresh_policy"], "{refused:?}");
    let patch = json!({ "token_endpoint_auth_method": "none", "refresh_policy": "strict" });
    let changed = desk.patch(&place, &patch).await;
    assert_eq!(changed.status, 200, "{changed:?}");
    // What hides most thieves is never there by mistake.
    for policy in [json!("shared"), json!("lax"), json!(true)] {
        let refused = desk
            .patch(&place, &json!({ "refresh_policy": policy }))
            .await;
        assert_eq!(pointers(&refused), ["/refresh_policy"], "{policy}");
    }
}
