-- Twin of ../postgres/0007_second_factors.sql: same tables, same columns, same order.

-- Whether a password alone is not enough: for the user anywhere, for anybody at the client.
alter table end_user add column second_factor_required integer not null default 0;
alter table client add column second_factor_required integer not null default 0;

-- What an unfinished sign-in without a browser has proved so far.
alter table challenge_session add column proved text;

-- Secrets of apps that make one-time passwords, sealed under a master key.
create table totp (
    subject blob primary key references end_user (id) on delete cascade,
    master_id blob not null,
    ciphertext blob not null,
    -- The last step whose code was accepted: none up to it counts again.
    last_step integer not null,
    created_at integer not null
) strict;

create index totp_master on totp (master_id);

-- SHA-256 of each code that has not been used.
create table recovery_code (
    subject blob not null references end_user (id) on delete cascade,
    hash blob not null,
    primary key (subject, hash)
) strict;

create table passkey (
    credential_id blob primary key,
    subject blob not null references end_user (id) on delete cascade,
    name text not null,
    -- The public key and what else is known of the credential, as JSON.
    credential text not null,
    -- How often it has signed, as its authenticator counts; zero where it does not.
    counter integer not null,
    created_at integer not null,
    last_used_at integer
) strict;

create index passkey_subject on passkey (subject);
