-- Twin of ../sqlite/0005_openid.sql: same tables, same columns, same order.

-- The standard claims of OpenID Connect about a user, as a JSON object.
alter table end_user add column profile text not null default '{}';

-- The claims that a client has asked for by name, as JSON; none where it has not.
alter table authorization_code add column claims text;
alter table family add column claims text;
