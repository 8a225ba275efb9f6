-- Twin of ../postgres/0003_sign_ins.sql: same tables, same columns, same order.

-- Refresh-MAC keys are named by a version in the tokens; signing keys have none.
alter table sealed_key add column version integer;
create unique index sealed_key_version on sealed_key (key_use, version);

alter table client add column first_party integer not null default 0;
alter table client add column refresh_policy text not null default 'standard';
-- Somebody has said that processes may share its refresh tokens, although that hides thieves.
alter table client add column refresh_sharing_acknowledged integer not null default 0;
-- What families of the client carry while they live: drawn anew to end them all at once.
alter table client add column session_epoch integer not null default 0;
update client set session_epoch = abs(random());

create table end_user (
    id blob primary key,
    username text not null,
    -- The form in which names are compared.
    username_key text not null,
    -- PHC string; none has no password.
    password_hash text,
    roles text not null,
    claims text not null,
    disabled integer not null,
    demo integer not null,
    -- What codes and families of the user carry while they live: drawn anew to end them all at once.
    session_epoch integer not null,
    tokens_not_before integer,
    revision integer not null,
    created_at integer not null,
    updated_at integer not null,
    password_changed_at integer
) strict;

create unique index end_user_username on end_user (username_key);
-- Production asks at its start whether there is one, among millions of others.
create index end_user_demo on end_user (id) where demo = 1;

-- Unfinished sign-ins without a browser.
create table challenge_session (
    -- SHA-256 of the auth_session.
    hash blob primary key,
    client_id text not null,
    client_epoch integer not null,
    username text not null,
    code_challenge text not null,
    scope text not null,
    resources text not null,
    dpop_jkt text,
    failures integer not null,
    expires_at integer not null
) strict;

create index challenge_session_expiry on challenge_session (expires_at);

create table authorization_code (
    -- SHA-256 of the code.
    hash blob primary key,
    client_id text not null,
    client_epoch integer not null,
    subject blob not null,
    user_epoch integer not null,
    session_id blob,
    redirect_uri text,
    code_challenge text,
    nonce text,
    scope text not null,
    resources text not null,
    auth_time integer not null,
    amr text not null,
    dpop_jkt text,
    expires_at integer not null,
    -- The family that it was exchanged for.
    family_id blob
) strict;

create index authorization_code_expiry on authorization_code (expires_at);

-- One row per sign-in, however often it is refreshed.
create table family (
    id blob primary key,
    client_id text not null,
    client_epoch integer not null,
    subject blob not null,
    user_epoch integer not null,
    session_id blob,
    scope text not null,
    resources text not null,
    auth_time integer not null,
    amr text not null,
    dpop_jkt text,
    counter integer not null,
    mac_version integer not null,
    -- The first counter whose token was minted with that key.
    mac_since integer not null,
    rotated_at integer not null,
    created_at integer not null,
    idle_expires_at integer not null,
    expires_at integer not null,
    revoked_at integer,
    revoke_reason text,
    first_address text,
    first_agent text,
    last_address text,
    last_agent text,
    notes text not null
) strict;

create index family_client on family (client_id, id);
create index family_subject on family (subject, id);
create index family_expiry on family (expires_at);
