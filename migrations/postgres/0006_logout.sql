-- Twin of ../sqlite/0006_logout.sql: same tables, same columns, same order.

-- Whom an event is about, where that is a user; none for those of the version before.
alter table event add column subject text;
create index event_subject on event (subject, seq) where subject is not null;

-- Codes under way that the user takes back.
create index authorization_code_subject on authorization_code (subject);

-- Where a client is told that users have been signed out (OpenID Connect Back-Channel Logout 1.0 §2.2).
alter table client add column backchannel_logout_uri text;
-- Whether it has to be told of which sign-in.
alter table client add column backchannel_logout_session_required bigint not null default 0;

-- What clients are still to be told.
create table logout_notice (
    id uuid primary key,
    client_id text not null,
    subject uuid not null,
    -- The sign-in that has ended; none are all of the user's at the client.
    family_id uuid,
    -- How often somebody has set out to tell it.
    attempts bigint not null,
    -- When somebody may set out next.
    due_at bigint not null,
    created_at bigint not null
);

create index logout_notice_due on logout_notice (due_at);
