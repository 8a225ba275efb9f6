// Signs a user in with oauth4webapi, a relying party we did not write, one step after the other.
// Usage: node oauth4webapi.mjs BASE ISSUER CLIENT_ID SECRET REDIRECT_URI SCOPE USERNAME PASSWORD
// Prints one line of JSON: the claims of the ID Token, userinfo, and the claims of the next ID Token.
import * as oauth from "oauth4webapi";
import { fetchAt, signIn } from "./browser.mjs";

const [base, issuer, client_id, secret, redirect_uri, scope, username, password] =
  process.argv.slice(2);
const there = { [oauth.customFetch]: fetchAt(base, issuer) };
const url = new URL(issuer);
const discovered = await oauth.discoveryRequest(url, there);
const as = await oauth.processDiscoveryResponse(url, discovered);
const client = { client_id };
const basic = oauth.ClientSecretBasic(secret);
const verifier = oauth.generateRandomCodeVerifier();
const [expectedNonce, state] = [oauth.generateRandomNonce(), oauth.generateRandomState()];
const request = new URL(as.authorization_endpoint);
request.search = new URLSearchParams({
  client_id,
  redirect_uri,
  response_type: "code",
  scope,
  code_challenge: await oauth.calculatePKCECodeChallenge(verifier),
  code_challenge_method: "S256",
  nonce: expectedNonce,
  state,
});
const answer = await signIn(base, issuer, request, username, password);
const parameters = oauth.validateAuthResponse(as, client, answer, state);
const exchanged = await oauth.authorizationCodeGrantRequest(
  as, client, basic, parameters, redirect_uri, verifier, there,
);
const tokens = await oauth.processAuthorizationCodeResponse(as, client, exchanged, {
  expectedNonce,
  requireIdToken: true,
});
await oauth.validateApplicationLevelSignature(as, exchanged, there);
const id_token = oauth.getValidatedIdTokenClaims(tokens);
const told = await oauth.userInfoRequest(as, client, tokens.access_token, there);
const userinfo = await oauth.processUserInfoResponse(as, client, id_token.sub, told);
const refreshed = await oauth.refreshTokenGrantRequest(
  as, client, basic, tokens.refresh_token, there,
);
const next = await oauth.processRefreshTokenResponse(as, client, refreshed);
await oauth.validateApplicationLevelSignature(as, refreshed, there);
console.log(
  JSON.stringify({ id_token, userinfo, refreshed: oauth.getValidatedIdTokenClaims(next) }),
);
