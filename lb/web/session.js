// Asking the instance: every answer that is an error becomes one with the instance's own words,
// and where it wants a token the page asks for one. The token is swapped for a cookie that no
// script can read; nothing of it stays here.

import { byId, setText } from "./page.js";

const GIVE_UP_MS = 5000;
const SIGNED_IN = "lb-signed-in"; // Only that there is a session, so that it can be ended.

export class NoTokenError extends Error {}

export async function ask(path, method = "GET", body = undefined) {
  const options = { method, signal: AbortSignal.timeout(GIVE_UP_MS) };
  if (body !== undefined) {
    options.headers = { "Content-Type": "application/json" };
    options.body = JSON.stringify(body);
  }
  const answer = await fetch(path, options);
  if (answer.ok) return answer.status === 204 ? null : answer.json();
  const problem = await answer.json().catch(() => ({}));
  const words = problem.detail ?? `${path} answered ${answer.status}`;
  throw answer.status === 401 ? new NoTokenError(words) : new Error(words);
}

export function askForToken(why) {
  if (!byId("session").hidden) return;
  byId("session").hidden = false;
  byId("panels").hidden = true;
  byId("sign-out").hidden = true;
  setText(byId("session-trouble"), sessionStorage.getItem(SIGNED_IN) ? why : "");
  sessionStorage.removeItem(SIGNED_IN);
  byId("token").focus();
}

export function listenForToken(signedIn) {
  if (sessionStorage.getItem(SIGNED_IN)) byId("sign-out").hidden = false;
  byId("session").addEventListener("submit", async (event) => {
    event.preventDefault();
    const token = byId("token").value;
    byId("token").value = "";
    try {
      await ask("/v1/session", "POST", { token });
    } catch (error) {
      setText(byId("session-trouble"), error.message);
      return;
    }
    sessionStorage.setItem(SIGNED_IN, "yes");
    byId("session").hidden = true;
    byId("panels").hidden = false;
    byId("sign-out").hidden = false;
    signedIn();
  });
  byId("sign-out").addEventListener("click", async () => {
    sessionStorage.removeItem(SIGNED_IN);
    await ask("/v1/session", "DELETE").catch(() => null);
    location.reload();
  });
}
