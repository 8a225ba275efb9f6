// Passkeys: asks the browser for one, and puts its answer into the form. Without this the pages work, too.
(async () => {
  const form = document.querySelector("form[data-passkey]");
  const known = window.PublicKeyCredential;
  if (!form) return;
  if (!known?.parseRequestOptionsFromJSON) {
    document.querySelector("[data-no-passkeys]")?.removeAttribute("hidden");
    return;
  }
  const { passkey, options } = form.dataset;
  const button = form.querySelector("button");
  const failed = form.querySelector("[role=alert]");
  const asked = JSON.parse(options);
  let waiting = new AbortController();
  const ask = (more) => passkey === "create"
    ? navigator.credentials.create({ publicKey: known.parseCreationOptionsFromJSON(asked), ...more })
    : navigator.credentials.get({ publicKey: known.parseRequestOptionsFromJSON(asked), ...more });
  const send = (credential) => {
    form.elements.passkey.value = JSON.stringify(credential);
    form.submit();
  };
  form.hidden = false;
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    waiting.abort();
    button.disabled = true;
    failed.hidden = true;
    try {
      send(await ask({}));
    } catch {
      button.disabled = false;
      failed.hidden = false;
    }
  });
  if (passkey === "autofill" && await known.isConditionalMediationAvailable?.()) {
    ask({ mediation: "conditional", signal: waiting.signal }).then(send, () => {});
  }
})();
