-- Twin of ../postgres/0011_session_families.sql: same tables, same columns, same order.

-- What a session has at a client is looked for with each of its requests.
create index family_for_session on family (session_id, client_id, id) where for_session = 1;

-- What is due for a client is put off, and given up, together.
create index logout_notice_client on logout_notice (client_id, due_at);
