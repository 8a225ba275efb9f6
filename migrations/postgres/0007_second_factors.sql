-- Twin of ../sqlite/0007_second_factors.sql: same tables, same columns, same order.

-- Whether a password alone is not enough: for the user anywhere, for anybody at the client.
alter table end_user add column second_factor_required bigint not null default 0;
alter table client add column second_factor_required bigint not null default 0;

-- What an unfinished sign-in without a browser has proved so far.
alter table challenge_session add column proved text;

-- Secrets of apps that make one-time passwords, sealed under a master key.
create table totp (
    subject uuid primary key references end_user (id) on delete cascade,
    master_id uuid not null,
    ciphertext bytea not null,
    -- The last step whose code was accepted: none up to it counts again.
    last_step bigint not null,
    created_at bigint not null
);

create index totp_master on totp (master_id);

-- SHA-256 of each code that has not been used.
create table recovery_code (
    subject uuid not null references end_user (id) on delete cascade,
    hash bytea not null,
    primary key (subject, hash)
);

create table passkey (
    credential_id bytea primary key,
    subject uuid not null references end_user (id) on delete cascade,
    name text not null,
    -- The public key and what else is known of the credential, as JSON.
    credential text not null,
    -- How often it has signed, as its authenticator counts; zero where it does not.
    counter bigint not null,
    created_at bigint not null,
    last_used_at bigint
);

create index passkey_subject on passkey (subject);
