// What client libraries need around them: a way to an issuer that is somewhere else than its URL says,
// and a browser without scripts whose user signs in.

// `fetch` for an issuer that is served at `base`.
export function fetchAt(base, issuer) {
  return (url, options) => {
    const text = String(url);
    if (!text.startsWith(issuer)) throw new Error(`${text} is not of ${issuer}`);
    return fetch(base + text.slice(issuer.length), options);
  };
}

// Follows an authorization request to where its answer goes, by name and password.
export async function signIn(base, issuer, request, username, password) {
  const cookies = new Map();
  const send = async (url, options = {}) => {
    const cookie = [...cookies].map(([name, value]) => `${name}=${value}`).join("; ");
    const headers = cookie ? { cookie } : {};
    const answer = await fetch(url, { ...options, headers, redirect: "manual" });
    for (const set of answer.headers.getSetCookie()) {
      const [name, value] = set.split(";")[0].split("=");
      cookies.set(name, value);
    }
    return answer;
  };
  const page = await (await send(base + String(request).slice(issuer.length))).text();
  const flow = /name="flow" value="([^"]+)"/.exec(page)?.[1];
  if (!flow) throw new Error(`this is no page to sign in on: ${page}`);
  const body = new URLSearchParams({ flow, username, password });
  const answer = await send(`${base}/signin`, { method: "POST", body });
  if (answer.status !== 303) throw new Error(`${answer.status}: ${await answer.text()}`);
  return new URL(answer.headers.get("location"));
}
