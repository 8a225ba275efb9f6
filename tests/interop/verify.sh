#!/usr/bin/env bash
# Verifies the ES256 signature of the token on standard input with openssl alone, so that a mistake
# shared by all JOSE libraries would still show. Claims are for verify.mjs and verify.py.
# Usage: verify.sh JWKS_FILE < token. Prints the claims, byte for byte as they were signed.
#
# JSON is picked apart by sed. That suffices for a set as we publish it: flat keys, no escapes.
set -euo pipefail

fail() {
    echo "verify.sh: $*" >&2
    exit 1
}

# base64url → bytes
decode() {
    local text=$1
    while ((${#text} % 4)); do text+='='; done
    tr '_-' '/+' <<<"$text" | base64 --decode
}

# bytes → hex
to_hex() { od -An -v -tx1 | tr -d ' \n'; }

# hex → bytes
from_hex() { printf '%b' "$(sed 's/../\\x&/g' <<<"$1")"; }

# field NAME: the string value of NAME in the flat JSON object on standard input
field() { sed -n "s/.*\"$1\" *: *\"\([^\"]*\)\".*/\1/p"; }

# 32 bytes of hex → the hex of a DER INTEGER, which is minimal and negative if its top bit is set
integer() {
    local hex=$1
    while [[ $hex == 00?* && ! $hex == 00[89a-f]* ]]; do hex=${hex#00}; done
    [[ $hex != [89a-f]* ]] || hex=00$hex
    printf '02%02x%s' $((${#hex} / 2)) "$hex"
}

jwks=${1:?usage: verify.sh JWKS_FILE < token}
read -r token || true
[[ $token =~ ^[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+$ ]] || fail 'not a compact JWS'
IFS=. read -r header payload signature <<<"$token"

head=$(decode "$header")
[[ $(field alg <<<"$head") == ES256 ]] || fail 'alg is not ES256'
kid=$(field kid <<<"$head")
[[ $kid =~ ^[A-Za-z0-9_-]+$ ]] || fail 'no kid, or not a thumbprint'
key=$(tr -d ' \n' <"$jwks" | tr '{}' '\n\n' | grep -F "\"kid\":\"$kid\"") || fail "no key $kid"
[[ $(field kty <<<"$key") == EC && $(field crv <<<"$key") == P-256 ]] || fail 'not a P-256 key'

x=$(decode "$(field x <<<"$key")" | to_hex)
y=$(decode "$(field y <<<"$key")" | to_hex)
rs=$(decode "$signature" | to_hex)
((${#x} == 64 && ${#y} == 64)) || fail 'a coordinate is not 32 bytes'
((${#rs} == 128)) || fail 'the signature is not 64 bytes'

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# SubjectPublicKeyInfo of an uncompressed point on P-256 (RFC 5480 §2)
from_hex "3059301306072a8648ce3d020106082a8648ce3d03010703420004$x$y" >"$work/key.der"
# ECDSA-Sig-Value ::= SEQUENCE { r INTEGER, s INTEGER } (RFC 3279 §2.2.3)
sequence=$(integer "${rs:0:64}")$(integer "${rs:64}")
from_hex "30$(printf '%02x' $((${#sequence} / 2)))$sequence" >"$work/signature.der"

openssl pkey -pubin -inform DER -in "$work/key.der" -out "$work/key.pem"
printf '%s' "$header.$payload" |
    openssl dgst -sha256 -verify "$work/key.pem" -signature "$work/signature.der" >/dev/null ||
    fail 'the signature does not verify'
decode "$payload"
echo
