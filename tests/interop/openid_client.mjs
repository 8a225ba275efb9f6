// Signs a user in with openid-client, a relying party we did not write.
// Usage: node openid_client.mjs BASE ISSUER CLIENT_ID SECRET REDIRECT_URI SCOPE USERNAME PASSWORD
// Prints one line of JSON: the claims of the ID Token, userinfo, and the claims of the next ID Token.
import * as client from "openid-client";
import { fetchAt, signIn } from "./browser.mjs";

const [base, issuer, id, secret, redirect_uri, scope, username, password] = process.argv.slice(2);
const there = { [client.customFetch]: fetchAt(base, issuer) };
const basic = client.ClientSecretBasic(secret);
const config = await client.discovery(new URL(issuer), id, undefined, basic, there);
// Signatures, too, although the ID Token comes straight from its issuer.
client.enableNonRepudiationChecks(config);
const pkceCodeVerifier = client.randomPKCECodeVerifier();
const [expectedNonce, expectedState] = [client.randomNonce(), client.randomState()];
const request = client.buildAuthorizationUrl(config, {
  redirect_uri,
  scope,
  code_challenge: await client.calculatePKCECodeChallenge(pkceCodeVerifier),
  code_challenge_method: "S256",
  nonce: expectedNonce,
  state: expectedState,
});
const answer = await signIn(base, issuer, request, username, password);
const checks = { pkceCodeVerifier, expectedNonce, expectedState, idTokenExpected: true };
const tokens = await client.authorizationCodeGrant(config, answer, checks);
const id_token = tokens.claims();
const userinfo = await client.fetchUserInfo(config, tokens.access_token, id_token.sub);
const next = await client.refreshTokenGrant(config, tokens.refresh_token);
console.log(JSON.stringify({ id_token, userinfo, refreshed: next.claims() }));
