"""Signs a user in with Authlib, a relying party we did not write.

Usage: authlib_client.py BASE ISSUER CLIENT_ID SECRET REDIRECT_URI SCOPE USERNAME PASSWORD
Prints one line of JSON: the claims of the ID Token, userinfo, and the claims of the next ID Token.
"""

import json
import re
import secrets
import sys

import requests
from authlib.integrations.requests_client import OAuth2Session
from authlib.oidc.core import CodeIDToken, UserInfo
from joserfc import jwt
from joserfc.jwk import KeySet
from requests.adapters import HTTPAdapter

base, issuer, client_id, secret, redirect_uri, scope, username, password = sys.argv[1:]


class There(HTTPAdapter):
    """The way to an issuer that is somewhere else than its URL says."""

    def send(self, request, **options):
        request.url = base + request.url.removeprefix(issuer)
        return super().send(request, **options)


def sign_in(url):
    """Follows an authorization request to where its answer goes."""
    cookies = {}

    def send(method, url, **options):
        header = {"cookie": "; ".join(f"{name}={value}" for name, value in cookies.items())}
        answer = requests.request(method, url, headers=header, allow_redirects=False, **options)
        cookies.update(
            value.split(";")[0].split("=", 1)
            for name, value in answer.raw.headers.items()
            if name.lower() == "set-cookie"
        )
        return answer

    page = send("GET", base + url.removeprefix(issuer)).text
    flow = re.search('name="flow" value="([^"]+)"', page)[1]
    form = {"flow": flow, "username": username, "password": password}
    answer = send("POST", f"{base}/signin", data=form)
    assert answer.status_code == 303, answer.text
    return answer.headers["location"]


session = OAuth2Session(
    client_id,
    secret,
    scope=scope,
    redirect_uri=redirect_uri,
    token_endpoint_auth_method="client_secret_basic",
    code_challenge_method="S256",
)
session.mount(issuer, There())
discovery = f"{issuer}/.well-known/openid-configuration"
metadata = session.get(discovery, withhold_token=True).json()
keys = KeySet.import_key_set(session.get(metadata["jwks_uri"], withhold_token=True).json())
verifier, nonce = secrets.token_urlsafe(48), secrets.token_urlsafe(16)


def claims_of(token, nonce):
    """The claims of a token response's ID Token, all that Core asks for being checked."""
    algorithms = metadata["id_token_signing_alg_values_supported"]
    decoded = jwt.decode(token["id_token"], keys, algorithms=algorithms)
    expected = {"client_id": client_id, "access_token": token["access_token"], "nonce": nonce}
    options = {"iss": {"essential": True, "values": [metadata["issuer"]]}}
    claims = CodeIDToken(decoded.claims, decoded.header, options, expected)
    claims.validate(leeway=5)
    return dict(claims)


url, state = session.create_authorization_url(
    metadata["authorization_endpoint"], code_verifier=verifier, nonce=nonce
)
answer = sign_in(url)
token = session.fetch_token(
    metadata["token_endpoint"],
    authorization_response=answer,
    state=state,
    code_verifier=verifier,
)
userinfo = session.get(metadata["userinfo_endpoint"])
userinfo.raise_for_status()
refreshed = session.refresh_token(metadata["token_endpoint"])
print(
    json.dumps(
        {
            "id_token": claims_of(token, nonce),
            "userinfo": dict(UserInfo(userinfo.json())),
            "refreshed": claims_of(refreshed, None),
        }
    )
)
