-- Twin of ../postgres/0006_logout.sql: same tables, same columns, same order.

-- Whom an event is about, where that is a user; none for those of the version before.
alter table event add column subject text;
create index event_subject on event (subject, seq) where subject is not null;

-- Codes under way that the user takes back.
create index authorization_code_subject on authorization_code (subject);
