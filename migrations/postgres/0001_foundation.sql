-- Twin of ../sqlite/0001_foundation.sql: same tables, same columns, same order.
-- Times are milliseconds since 1970; lists and documents are JSON text.

create table change_head (
    id smallint primary key check (id = 1),
    epoch uuid not null,
    seq bigint not null
);

-- What the database is for: development or production.
create table installation (
    id smallint primary key check (id = 1),
    environment text not null
);

create table change (
    seq bigint primary key,
    topic text not null,
    target text not null,
    at bigint not null
);

create table key_schedule (
    key_use text primary key,
    revision bigint not null,
    primary_master uuid
);

create table sealed_key (
    kid text primary key,
    key_use text not null references key_schedule (key_use),
    algorithm text not null,
    published_at bigint not null,
    activates_at bigint not null,
    withdrawn_at bigint,
    revoked_at bigint,
    master_id uuid not null,
    ciphertext bytea not null
);

-- At no moment may two keys of one use become active that could both sign.
create unique index sealed_key_activation on sealed_key (key_use, activates_at) where revoked_at is null;

create table client (
    client_id text primary key,
    client_name text not null,
    auth_method text not null,
    grant_types text not null,
    scope text not null,
    resources text not null,
    default_resource text,
    allowed_origins text not null,
    access_token_ttl_seconds bigint,
    disabled bigint not null,
    demo bigint not null,
    revision bigint not null,
    created_at bigint not null,
    updated_at bigint not null
);

create table client_secret (
    id uuid primary key,
    client_id text not null references client (client_id) on delete cascade,
    hash bytea not null,
    created_at bigint not null
);

create index client_secret_client on client_secret (client_id);

create table resource (
    id uuid primary key,
    resource text not null unique,
    name text not null,
    scopes text not null,
    introspection_clients text not null,
    demo bigint not null
);

create table node (
    id uuid primary key,
    name text not null,
    master_keys text not null,
    seen_at bigint not null
);

create table event (
    id uuid primary key,
    at bigint not null,
    type text not null,
    actor text not null,
    target text not null,
    address text,
    user_agent text,
    request_id text,
    reason text,
    before text,
    after text
);

create index event_at on event (at);

-- Entries of the revocation feed. `value` is the SHA-256 of what is revoked.
create table revocation (
    seq bigint primary key,
    kind text not null,
    value bytea not null,
    not_before bigint,
    expires_at bigint
);
