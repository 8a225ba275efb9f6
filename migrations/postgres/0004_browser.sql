-- Twin of ../sqlite/0004_browser.sql: same tables, same columns, same order.

alter table client add column redirect_uris text not null default '[]';
alter table client add column post_logout_redirect_uris text not null default '[]';
-- Off only for clients that authenticate and use OpenID Connect, whose nonce does the like.
alter table client add column require_pkce bigint not null default 1;
