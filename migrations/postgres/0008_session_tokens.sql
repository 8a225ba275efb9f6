-- Twin of ../sqlite/0008_session_tokens.sql: same tables, same columns, same order.

alter table client add column session_tokens bigint not null default 0;
alter table client add column forward_auth bigint not null default 0;

-- Stands for a session of a browser at a client, and has no refresh tokens.
alter table family add column for_session bigint not null default 0;
