"""Verifies the access token on standard input with PyJWT, a verifier we did not write.

Usage: python verify.py JWKS_FILE ISSUER AUDIENCE < token. Prints the claims as one line of JSON.
"""

import json
import sys

import jwt

# RFC 9068 §2.2
REQUIRED = ["iss", "exp", "aud", "sub", "client_id", "iat", "jti"]


def verify(token, jwks, issuer, audience):
    kid = jwt.get_unverified_header(token).get("kid")
    if kid is None:
        raise jwt.InvalidTokenError("the header has no kid")
    verified = jwt.decode_complete(
        token,
        jwt.PyJWKSet.from_dict(jwks)[kid].key,
        algorithms=["ES256"],
        issuer=issuer,
        audience=audience,
        options={"require": REQUIRED},
    )
    # PyJWT leaves `typ` to the caller.
    if verified["header"].get("typ") != "at+jwt":
        raise jwt.InvalidTokenError("typ is not at+jwt")
    return verified["payload"]


if __name__ == "__main__":
    jwks_file, issuer, audience = sys.argv[1:]
    with open(jwks_file, encoding="utf-8") as file:
        jwks = json.load(file)
    try:
        print(json.dumps(verify(sys.stdin.read().strip(), jwks, issuer, audience)))
    except (jwt.PyJWTError, KeyError) as error:
        sys.exit(f"verify.py: {type(error).__name__}: {error}")
