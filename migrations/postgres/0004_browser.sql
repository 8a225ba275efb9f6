-- Twin of ../sqlite/0004_browser.sql: same tables, same columns, same order.

alter table client add column redirect_uris text not null default '[]';
alter table client add column post_logout_redirect_uris text not null default '[]';
-- Off only for clients that authenticate and use OpenID Connect, whose nonce does the like.
alter table client add column require_pkce bigint not null default 1;

-- A user's sign-in at the service itself, in one browser. What its use changes is in no index.
create table browser_session (
    id uuid primary key,
    -- SHA-256 of what the cookie holds.
    hash bytea not null,
    subject uuid not null,
    user_epoch bigint not null,
    auth_time bigint not null,
    amr text not null,
    seen_at bigint not null,
    expires_at bigint not null,
    ended_at bigint,
    first_address text,
    first_agent text,
    last_address text,
    last_agent text
) with (fillfactor = 70);

create unique index browser_session_hash on browser_session (hash);
create index browser_session_subject on browser_session (subject, id);
create index browser_session_expiry on browser_session (expires_at);
-- The sign-ins at clients that a session has brought.
create index family_session on family (session_id) where session_id is not null;

-- What users have allowed clients.
create table consent (
    subject uuid not null,
    client_id text not null,
    -- Another one now means that this is over.
    client_epoch bigint not null,
    -- Each a resource and a scope token, with a space between them.
    permissions text not null,
    given_at bigint not null,
    primary key (subject, client_id)
);
