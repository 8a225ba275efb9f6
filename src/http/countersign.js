// Countersign for single-page apps. Documented in docs/integration.md; no dependencies, no build step.
//
//   import { Countersign } from "https://id.example/assets/countersign.js";
//   const session = new Countersign({ issuer: "https://id.example", clientId: "board",
//                                     redirectUri: location.origin + "/", mode: "session" });
//
// Tokens are kept in memory alone: nothing that grants anything is in a storage that outlives the page.

/** What the service refuses, or what is wrong with an answer. `code` is a word for programs. */
export class CountersignError extends Error {
  constructor(code, description) {
    super(description || code);
    this.name = "CountersignError";
    this.code = code;
  }
}

/** How long before its end a token is renewed, at most, in milliseconds. */
const MARGIN = 60_000;
/** How long other tabs have to hand over what they have, in milliseconds. */
const ANSWER = 500;
/** How long the service has to answer, in milliseconds: other tabs may be waiting. */
const PATIENCE = 15_000;
/** The longest that a timer can wait, in milliseconds. */
const LONGEST_TIMER = 2 ** 31 - 1;

const base64url = (bytes) =>
  btoa(String.fromCharCode(...bytes)).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
const random = () => base64url(crypto.getRandomValues(new Uint8Array(32)));
const s256 = async (text) =>
  base64url(new Uint8Array(await crypto.subtle.digest("SHA-256", new TextEncoder().encode(text))));

/** Whose an access token is; undefined if it does not say. */
const subject = (token) => {
  try {
    return JSON.parse(atob(token.split(".")[1].replaceAll("-", "+").replaceAll("_", "/"))).sub;
  } catch {
    return undefined;
  }
};
const nobody = () => new CountersignError("login_required", "the user has to sign in");

/**
 * Who has signed in, in this browser, at one client. Dispatches `signedin` with the first token, and
 * `signedout` when there is none any more, in every tab; both when it is another user.
 */
export class Countersign extends EventTarget {
  #issuer;
  #clientId;
  #redirectUri;
  #mode;
  #scope;
  #resource;
  #apis;
  /** {accessToken, sub, at, expiresAt, renewAt, scope, refreshToken?}; times in milliseconds since 1970. */
  #token = null;
  /**
   * What happens in all tabs is numbered, as clocks are set: the last number that was heard of, and that of
   * the last sign-out. A token that was asked for before that, which is its `at`, is not taken any more.
   */
  #at = 0;
  #ended = 0;
  #renewing = null;
  #timer = 0;
  #channel = null;
  #name;

  /**
   * @param issuer      the URL of the service
   * @param clientId    a public client
   * @param redirectUri one of its redirect URIs, a page of this origin that calls handleRedirect()
   * @param mode        "session": tokens for the session cookie of the issuer's site, nothing else in
   *                    the browser (client field session_tokens); "code": a code for tokens of its own
   * @param scope       what tokens are to allow; all that the client may have if absent
   * @param resource    what they are for: one or several; the client's default if absent
   * @param apis        origins that fetch() sends tokens to; that of the page if absent
   */
  constructor({ issuer, clientId, redirectUri, mode = "code", scope, resource, apis }) {
    super();
    if (!issuer || !clientId || !["session", "code"].includes(mode)) {
      throw new CountersignError("configuration", "issuer, clientId or mode is missing or wrong");
    }
    this.#issuer = issuer.replace(/\/$/, "");
    this.#clientId = clientId;
    this.#redirectUri = redirectUri;
    this.#mode = mode;
    this.#scope = scope;
    this.#resource = [resource ?? []].flat();
    this.#apis = apis ?? [location.origin];
    this.#name = ["countersign", this.#issuer, clientId, mode, scope ?? "", ...this.#resource].join(" ");
    // Without both, each tab looks after itself: in the mode "code" with tokens of its own.
    if (globalThis.navigator?.locks && globalThis.BroadcastChannel) {
      this.#channel = new BroadcastChannel(this.#name);
      this.#channel.addEventListener("message", ({ data }) => this.#hear(data));
      // Held as long as the tab is there: so others know that they are not alone.
      navigator.locks.request(`${this.#name} tab`, { mode: "shared" }, () => new Promise(() => {}));
    }
    globalThis.document?.addEventListener("visibilitychange", () => this.#keepUp());
  }

  /** An access token that is good for a while; the error `login_required` if nobody has signed in. */
  async getToken() {
    if (!this.#isFresh()) {
      try {
        await this.#renew();
      } catch (error) {
        // What is left of it is good as long as nobody has said otherwise.
        if (!this.isSignedIn) throw error;
      }
    }
    if (this.#token === null) throw nobody();
    return this.#token.accessToken;
  }

  /** Whether there is a token now. Asks nobody. */
  get isSignedIn() {
    return this.#token !== null && Date.now() < this.#token.expiresAt;
  }

  /**
   * As window.fetch, with an access token. Only `apis` get one; a token that is refused is renewed once.
   * Follows no redirect unless asked to: the token would go along.
   */
  async fetch(input, init) {
    const own = input instanceof Request && input.redirect !== "follow" ? input.redirect : "error";
    const request = new Request(input, { ...init, redirect: init?.redirect ?? own });
    if (!this.#apis.includes(new URL(request.url).origin)) {
      throw new CountersignError("origin", `${new URL(request.url).origin} is not one of apis`);
    }
    const send = (one, token) => {
      one.headers.set("Authorization", `Bearer ${token}`);
      return fetch(one);
    };
    const again = request.clone();
    const token = await this.getToken();
    const response = await send(request, token);
    if (response.status !== 401) return response;
    // Revoked, perhaps: there may be another one, or nobody is signed in any more.
    if (this.#token?.accessToken === token) await this.#renew(this.#token);
    return send(again, await this.getToken());
  }

  /**
   * Sends the browser to the sign-in page. `returnTo` comes back from handleRedirect(); further members
   * are parameters of the request, such as prompt or login_hint.
   */
  async signIn({ returnTo, ...parameters } = {}) {
    const [state, verifier] = [random(), random()];
    const kept = JSON.stringify({ verifier, returnTo, issuer: this.#issuer });
    sessionStorage.setItem(this.#stateKey(state), kept);
    const url = new URL(`${this.#issuer}/oauth2/authorize`);
    const query = {
      response_type: "code",
      client_id: this.#clientId,
      redirect_uri: this.#redirectUri,
      state,
      code_challenge: await s256(verifier),
      code_challenge_method: "S256",
      ...(this.#scope && { scope: this.#scope }),
      ...parameters,
    };
    for (const [name, value] of Object.entries(query)) url.searchParams.set(name, value);
    for (const resource of this.#resource) url.searchParams.append("resource", resource);
    location.assign(url);
    // The page is on its way out.
    return new Promise(() => {});
  }

  /**
   * Takes the answer to signIn(), if the address of the page has one, and takes it out of the address;
   * `{returnTo}`, or null where there is none.
   */
  async handleRedirect() {
    const url = new URL(location.href);
    const answer = url.searchParams;
    const [code, error, state] = ["code", "error", "state"].map((name) => answer.get(name));
    if (state === null || (code === null && error === null)) return null;
    const [iss, description] = [answer.get("iss"), answer.get("error_description")];
    for (const name of ["code", "error", "error_description", "error_uri", "state", "iss"]) {
      answer.delete(name);
    }
    history.replaceState(history.state, "", url);
    // Whoever sends a browser here with another state has not asked for it in this tab.
    const kept = sessionStorage.getItem(this.#stateKey(state));
    if (kept === null) throw new CountersignError("state", "the answer belongs to no request of this tab");
    sessionStorage.removeItem(this.#stateKey(state));
    const { verifier, returnTo, issuer } = JSON.parse(kept);
    // RFC 9207 §2.4: the answer may be another server's.
    if (iss !== issuer || issuer !== this.#issuer) {
      throw new CountersignError("iss", "the answer is of another issuer");
    }
    if (error !== null) throw new CountersignError(error, description);
    // What other tabs have may be somebody else's by now. In the mode "session" the code is left to expire.
    await this.#inTurn(async () => {
      await this.#ask(() => false);
      await this.#obtain(() =>
        this.#mode === "session"
          ? this.#request()
          : this.#form("/oauth2/token", {
              grant_type: "authorization_code",
              code,
              code_verifier: verifier,
              redirect_uri: this.#redirectUri,
            }),
      );
    });
    return { returnTo };
  }

  /**
   * Signs out, in every tab. In the mode "session" that ends the session, and all that it has brought at
   * other apps; in the mode "code" the tokens of this app.
   */
  async signOut() {
    const isThere = () => this.#token !== null;
    // What is to be revoked another tab may have.
    if (this.#mode === "code" && !isThere()) await this.#ask(isThere);
    const before = this.#token;
    this.#end();
    if (this.#mode === "session") {
      const end = () => this.#session("/session/logout", { client_id: this.#clientId });
      // The cookie may have been replaced while the request was under way.
      await end().catch((error) => {
        if (error.code !== "login_required") throw error;
        return end();
      });
      // What a tab has got in the meantime is over, too.
      this.#end();
    } else if (before?.refreshToken) {
      await this.#form("/oauth2/revoke", { token: before.refreshToken, token_type_hint: "refresh_token" });
    }
  }

  #stateKey(state) {
    return `countersign ${this.#clientId} ${state}`;
  }

  #isFresh() {
    return this.#token !== null && Date.now() < this.#token.renewAt;
  }

  /** Gets another token than `before`, unless somebody else has: once for this tab, once for all tabs. */
  #renew(before = null) {
    const isThere = () => this.#isFresh() && this.#token.accessToken !== before?.accessToken;
    this.#renewing ??= this.#inTurn(async () => {
      if (isThere()) return;
      // Another tab may have come first, and what it has told may still be on its way.
      if (await this.#ask(isThere)) return;
      try {
        await this.#obtain(() => this.#request());
      } catch (error) {
        // What went wrong on the way is no reason to give up what is there.
        if (error instanceof CountersignError && error.code === "login_required") this.#end();
        throw error;
      }
    }).finally(() => {
      this.#renewing = null;
    });
    return this.#renewing;
  }

  /** Takes what is asked for, unless there was a sign-out meanwhile, and tells other tabs. */
  async #obtain(ask) {
    const [at, begun] = [++this.#at, Date.now()];
    const token = this.#read(await ask(), begun);
    if (at <= this.#ended) throw nobody();
    this.#take({ ...token, at });
    this.#tell();
  }

  #inTurn(act) {
    return this.#channel ? navigator.locks.request(`${this.#name} renewal`, act) : act();
  }

  /** Asks other tabs, if there are any, for what they have, until it is there or all have answered. */
  async #ask(isThere) {
    if (!this.#channel) return false;
    const { held } = await navigator.locks.query();
    let others = held.filter((lock) => lock.name === `${this.#name} tab`).length - 1;
    if (others < 1) return false;
    const asks = random();
    await new Promise((resolve) => {
      const heard = ({ detail }) => {
        if (detail === asks) others -= 1;
        if (isThere() || others < 1) resolve();
      };
      this.addEventListener("heard", heard);
      setTimeout(() => {
        this.removeEventListener("heard", heard);
        resolve();
      }, ANSWER);
      this.#channel.postMessage({ asks, at: this.#at });
    });
    return isThere();
  }

  #tell(answers) {
    const [at, ended, token] = [this.#at, this.#ended, this.#token];
    this.#channel?.postMessage({ answers, at, ended, token });
  }

  #hear({ asks, answers, at, ended = 0, token }) {
    this.#at = Math.max(this.#at, at);
    if (asks) this.#tell(asks);
    this.#ended = Math.max(this.#ended, ended);
    if (this.#token && this.#token.at <= this.#ended) this.#forget();
    // Nobody gives up a newer one for what comes late: its refresh token is spent.
    if (token && token.at > Math.max(this.#token?.at ?? 0, this.#ended)) this.#take(token);
    this.dispatchEvent(new CustomEvent("heard", { detail: answers }));
  }

  #take(token) {
    if (this.#token && this.#token.sub !== token.sub) this.#forget();
    const isFirst = this.#token === null;
    this.#token = token;
    clearTimeout(this.#timer);
    const wait = Math.min(Math.max(token.renewAt - Date.now(), 0), LONGEST_TIMER);
    this.#timer = setTimeout(() => this.#keepUp(), wait);
    if (isFirst) this.dispatchEvent(new Event("signedin"));
  }

  /** Renews in time where somebody may be looking; a tab that nobody sees keeps no session alive. */
  #keepUp() {
    if (this.#token === null || this.#isFresh()) return;
    // What is refused is told to whoever asks for a token next.
    if (globalThis.document?.visibilityState !== "hidden") this.#renew().catch(() => {});
  }

  /** Forgets the token, in every tab, and those that are being asked for. */
  #end() {
    this.#ended = ++this.#at;
    this.#forget();
    this.#tell();
  }

  #forget() {
    clearTimeout(this.#timer);
    const wasThere = this.#token !== null;
    this.#token = null;
    if (wasThere) this.dispatchEvent(new Event("signedout"));
  }

  #read(tokens, begun) {
    const life = tokens.expires_in * 1000;
    return {
      accessToken: tokens.access_token,
      scope: tokens.scope,
      refreshToken: tokens.refresh_token,
      sub: subject(tokens.access_token),
      expiresAt: begun + life,
      renewAt: begun + life - Math.min(MARGIN, life / 5),
    };
  }

  async #request() {
    if (this.#mode === "session") {
      return this.#session("/session/token", {
        client_id: this.#clientId,
        ...(this.#scope && { scope: this.#scope }),
        ...(this.#resource.length && { resource: this.#resource }),
      });
    }
    if (!this.#token?.refreshToken) throw nobody();
    try {
      return await this.#form("/oauth2/token", {
        grant_type: "refresh_token",
        refresh_token: this.#token.refreshToken,
      });
    } catch (error) {
      if (error.code !== "invalid_grant") throw error;
      throw new CountersignError("login_required", error.message);
    }
  }

  /** What the cookie does: no simple request, so that browsers ask first for whom they send it. */
  #session(path, body) {
    return this.#send(path, {
      credentials: "include",
      headers: { "Content-Type": "application/json", "Countersign-Session": "1" },
      body: JSON.stringify(body),
    });
  }

  #form(path, parameters) {
    const body = new URLSearchParams({ client_id: this.#clientId, ...parameters });
    return this.#send(path, { credentials: "omit", body });
  }

  async #send(path, init) {
    const signal = AbortSignal.timeout(PATIENCE);
    const response = await fetch(this.#issuer + path, { method: "POST", cache: "no-store", signal, ...init });
    const text = await response.text();
    let said = {};
    try {
      said = text ? JSON.parse(text) : {};
    } catch {
      // What is no JSON is not the service's answer.
    }
    if (response.ok) return said;
    throw new CountersignError(said.error ?? `http_${response.status}`, said.error_description);
  }
}
