-- Twin of ../postgres/0009_id_token_alg.sql: same tables, same columns, same order.

-- What ID Tokens of the client are signed with.
alter table client add column id_token_signed_response_alg text not null default 'ES256';
