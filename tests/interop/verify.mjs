// Verifies the access token on standard input with jose, a verifier we did not write.
// Usage: node verify.mjs JWKS_FILE ISSUER AUDIENCE < token. Prints the claims as one line of JSON.
import { readFileSync } from "node:fs";
import { createLocalJWKSet, jwtVerify } from "jose";

const [jwksFile, issuer, audience] = process.argv.slice(2);
try {
  const keys = createLocalJWKSet(JSON.parse(readFileSync(jwksFile, "utf8")));
  const { payload } = await jwtVerify(readFileSync(0, "utf8").trim(), keys, {
    algorithms: ["ES256"],
    typ: "at+jwt",
    issuer,
    audience,
    // RFC 9068 §2.2
    requiredClaims: ["iss", "exp", "aud", "sub", "client_id", "iat", "jti"],
  });
  console.log(JSON.stringify(payload));
} catch (error) {
  console.error(`verify.mjs: ${error}`);
  process.exit(1);
}
