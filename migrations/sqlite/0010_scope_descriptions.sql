-- Twin of ../postgres/0010_scope_descriptions.sql: same tables, same columns, same order.

-- What scopes mean to people: a JSON object of texts by scope token.
alter table resource add column scope_descriptions text not null default '{}';
