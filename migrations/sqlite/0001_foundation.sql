-- Twin of ../postgres/0001_foundation.sql: same tables, same columns, same order.
-- Times are milliseconds since 1970; lists and documents are JSON text.

create table change_head (
    id integer primary key check (id = 1),
    epoch blob not null,
    seq integer not null
) strict;

-- What the database is for: development or production.
create table installation (
    id integer primary key check (id = 1),
    environment text not null
) strict;

create table change (
    seq integer primary key,
    topic text not null,
    target text not null,
    at integer not null
) strict;

create table key_schedule (
    key_use text primary key,
    revision integer not null,
    primary_master blob
) strict;

create table sealed_key (
    kid text primary key,
    key_use text not null references key_schedule (key_use),
    algorithm text not null,
    published_at integer not null,
    activates_at integer not null,
    withdrawn_at integer,
    revoked_at integer,
    master_id blob not null,
    ciphertext blob not null
) strict;

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
    access_token_ttl_seconds integer,
    disabled integer not null,
    demo integer not null,
    revision integer not null,
    created_at integer not null,
    updated_at integer not null
) strict;

create table client_secret (
    id blob primary key,
    client_id text not null references client (client_id) on delete cascade,
    hash blob not null,
    created_at integer not null
) strict;

create index client_secret_client on client_secret (client_id);

create table resource (
    id blob primary key,
    resource text not null unique,
    name text not null,
    scopes text not null,
    introspection_clients text not null,
    demo integer not null
) strict;

create table node (
    id blob primary key,
    name text not null,
    master_keys text not null,
    seen_at integer not null
) strict;

create table event (
    id blob primary key,
    at integer not null,
    type text not null,
    actor text not null,
    target text not null,
    address text,
    user_agent text,
    request_id text,
    reason text,
    before text,
    after text
) strict;

create index event_at on event (at);

-- Entries of the revocation feed. `value` is the SHA-256 of what is revoked.
create table revocation (
    seq integer primary key,
    kind text not null,
    value blob not null,
    not_before integer,
    expires_at integer
) strict;
