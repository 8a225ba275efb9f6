-- Twin of ../postgres/0002_operations.sql: same tables, same columns, same order.

-- Keys of clients that authenticate by assertions (RFC 7523).
alter table client add column jwks text;
alter table client add column jwks_uri text;
-- Tokens of the client issued before this moment are revoked.
alter table client add column tokens_not_before integer;

-- The place of the change that the event tells of: events in the order of commits.
alter table event add column seq integer not null default 0;
update event set seq = ranked.place
    from (select id, row_number() over (order by id) as place from event) as ranked
    where ranked.id = event.id;
create index event_seq on event (seq);
create index event_target on event (target, seq);

-- Whose token an entry is about; bounds the number of entries of one client.
alter table revocation add column client_id text;
create unique index revocation_value on revocation (kind, value);
create index revocation_expiry on revocation (expires_at);
create index revocation_client on revocation (client_id);

-- Client assertions that were used: SHA-256 of client and jti.
create table used_assertion (
    id blob primary key,
    expires_at integer not null
) strict;

create index used_assertion_expiry on used_assertion (expires_at);
create index change_at on change (at);
