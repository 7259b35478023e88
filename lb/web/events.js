// The events' panel: what changed since the page was opened, newest first, by EventSource, which
// goes on by itself where it was. Where it cannot, we open another, and say so if any are missed.

import { byId, make, setText } from "./page.js";

const SHOWN_MAX = 50;
const AGAIN_MS = 3000;

let source = null;
let timer = 0;
let next = null; // The first revision that was not seen; null: whatever comes.
let failed = 0; // Streams in a row that never opened.

export function followEvents() {
  if (source === null && !timer) open();
}

function open() {
  closeEvents();
  if (failed > 1 && next !== null) {
    show(make("li", "warn", `events from revision ${next} on were missed`));
    next = null;
  }
  source = new EventSource(next === null ? "/v1/events" : `/v1/events?from=${next}`);
  source.addEventListener("open", () => {
    failed = 0;
    state("following");
  });
  source.addEventListener("created", (event) => {
    next ??= JSON.parse(event.data).from;
  });
  source.addEventListener("bookmark", seen);
  source.addEventListener("closed", (event) => {
    seen(event);
    state(JSON.parse(event.data).detail);
  });
  source.addEventListener("message", (event) => {
    seen(event);
    const plain = JSON.parse(event.data);
    for (const line of lines(plain)) show(item(plain, line));
  });
  source.addEventListener("error", () => {
    if (source.readyState !== EventSource.CLOSED) {
      state("interrupted; going on in a moment");
      return;
    }
    failed += 1;
    state("no events at present; trying again");
    source = null;
    timer = setTimeout(open, AGAIN_MS);
  });
}

export function closeEvents() {
  clearTimeout(timer);
  timer = 0;
  source?.close();
  source = null;
}

function seen(event) {
  const number = Number(event.lastEventId);
  if (event.lastEventId && Number.isSafeInteger(number)) next = number + 1;
}

function state(text) {
  setText(byId("events-state"), text);
}

function show(line) {
  const list = byId("events");
  byId("events-none").hidden = true;
  list.prepend(line);
  while (list.children.length > SHOWN_MAX) list.lastElementChild.remove();
}

function item(plain, text) {
  const at = plain.at ? new Date(plain.at * 1000).toLocaleTimeString() : "";
  return make("li", "", make("span", "faint", `${plain.revision} ${at} `), text,
    make("span", "faint", ` ${whose(plain.by)}`));
}

function lines(plain) {
  const about = plain.member || plain.upstream || "";
  if (!plain.changes?.length) return [`${plain.kind} ${about}`];
  return plain.changes.map((change) => {
    const now = (change.fields ?? []).map((field) => `${field} ${said(change.backend?.[field])}`);
    const words = `${change.upstream}: ${change.key} ${change.what}`;
    return now.length ? `${words}: ${now.join(", ")}` : words;
  });
}

function said(value) {
  return typeof value === "string" ? value : JSON.stringify(value);
}

function whose(by) {
  if (!by) return "";
  const who = by.token || by.source || "";
  const through = by.member ? ` through ${by.member}` : "";
  return `(${who}${through}${by.note ? `: ${by.note}` : ""})`;
}
