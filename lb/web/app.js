// The dashboard: reads /v1/status and /v1/upstreams once a second and draws what they say.
// Rates are differences between two readings. `page` has what panels are made of, `session` asks
// the instance, `group` and `events` are panels of their own.

import { closeEvents, followEvents } from "./events.js";
import { alarm, drawGroup, isWell, listenForTransfer } from "./group.js";
import { byId, cell, facts, make, millis, number, setText, span, table, word } from "./page.js";
import { NoTokenError, ask, askForToken, listenForToken } from "./session.js";

const EVERY_MS = 1000;
const POINTS_MAX = 120;
const SVG = "http://www.w3.org/2000/svg";

const history = new Map(); // Name of a tile: its last values.
let last = null; // The reading before: { at, pid, requests, errors, backends }.
let timer = 0;
let round = 0; // Raised when the page is shown or hidden: a reading under way then is the last.

async function look() {
  const mine = round;
  try {
    const [status, upstreams, group] = await Promise.all(
      [ask("/v1/status"), ask("/v1/upstreams"), ask("/v1/group")]);
    if (mine !== round) return;
    draw(status, upstreams.upstreams);
    drawGroup(group);
    trouble(isWell(group) ? "" : `${alarm(group)}.`);
    followEvents();
  } catch (error) {
    if (mine !== round) return;
    if (error instanceof NoTokenError) {
      stop();
      mark("warn", "signed out");
      trouble("");
      askForToken(error.message);
      return;
    }
    mark("bad", "no answer");
    trouble(`The instance does not answer: ${error.message}. What is below is old.`);
    last = null;
  }
  timer = setTimeout(look, EVERY_MS);
}

function trouble(text) {
  byId("trouble").hidden = !text;
  setText(byId("trouble"), text);
}

function mark(className, text) {
  byId("state").className = className;
  setText(byId("state-text"), text);
}

function draw(status, upstreams) {
  const rates = measure(status, upstreams);
  const backends = upstreams.flatMap((upstream) => upstream.backends);
  const usable = backends.filter(isUsable).length;

  document.title = `${status.name} · Accord`;
  byId("name").textContent = status.name;
  if (status.stopping) mark("warn", "stopping");
  else if (status.ready) mark("good", "ready");
  else mark("bad", `not ready: ${status.unready}`);
  facts("facts", {
    group: status.group.role === "leader" ? "leads"
      : `${status.group.role}, leader ${status.group.leader || "none"}`,
    config: `generation ${status.config.generation}`,
    up: span(status.uptime_s),
    version: status.version,
  });
  tiles(status, rates, usable, backends.length);
  byId("upstreams").replaceChildren(...upstreams.map((each) => upstreamPanel(each, rates)));
  if (!upstreams.length) {
    byId("upstreams").replaceChildren(
      make("p", "faint", "No upstream yet. Add [upstream.app] to the config file, then ",
        make("code", "", "lb reload")));
  }
  byId("workers").replaceChildren(workersTable(status.workers));
  config(status.config);
}

// What a second brought

function measure(status, upstreams) {
  const now = {
    at: performance.now(),
    pid: status.pid,
    requests: status.traffic.requests,
    errors: status.traffic.errors,
    backends: new Map(),
  };
  for (const upstream of upstreams) {
    for (const backend of upstream.backends) {
      now.backends.set(key(upstream, backend), backend.requests);
    }
  }
  const before = last && last.pid === now.pid ? last : null;
  last = now;
  if (!before) return null;
  const seconds = (now.at - before.at) / 1000;
  const rate = (a, b) => Math.max(0, (a - (b ?? a)) / seconds);
  return {
    requests: rate(now.requests, before.requests),
    errors: rate(now.errors, before.errors),
    backend: (upstream, backend) =>
      rate(backend.requests, before.backends.get(key(upstream, backend))),
  };
}

function key(upstream, backend) {
  return `${upstream.name}/${backend.name ?? backend.address}`;
}

function isUsable(backend) {
  return backend.state === "active" && backend.health !== "unhealthy";
}

// Tiles

function tiles(status, rates, usable, all) {
  const { traffic } = status;
  const share = rates && rates.requests > 0 ? (100 * rates.errors) / rates.requests : 0;
  const list = [
    ["requests a second", rates && rates.requests, number(rates && rates.requests), ""],
    ["p50 / p99", traffic.latency_ms.p99,
      `${millis(traffic.latency_ms.p50).replace(" ms", "")} / ${millis(traffic.latency_ms.p99)}`, ""],
    ["errors", share, `${share.toFixed(share && share < 10 ? 1 : 0)} %`, share > 0 ? "bad" : ""],
    ["connections", traffic.connections, String(traffic.connections), ""],
    ["backends usable", usable, `${usable} of ${all}`,
      usable === all ? "" : usable ? "warn" : "bad"],
  ];
  byId("tiles").replaceChildren(...list.map(([label, value, text, className]) => {
    remember(label, value);
    return make("li", "",
      make("div", "label", label), make("div", `value ${className}`, text), sparkline(label));
  }));
}

function remember(name, value) {
  const values = history.get(name) ?? [];
  if (value !== null && value !== undefined) values.push(value);
  history.set(name, values.slice(-POINTS_MAX));
}

function sparkline(name) {
  const values = history.get(name);
  const top = Math.max(...values, 1e-9);
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", `0 0 ${POINTS_MAX} 26`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("aria-hidden", "true");
  const line = document.createElementNS(SVG, "polyline");
  const start = POINTS_MAX - values.length;
  line.setAttribute("points",
    values.map((value, i) => `${start + i},${(25 - (24 * value) / top).toFixed(1)}`).join(" "));
  svg.append(line);
  return svg;
}

// Upstreams and workers

function upstreamPanel(upstream, rates) {
  const usable = upstream.backends.filter(isUsable).length;
  const head = make("div", "",
    make("h3", "", upstream.name),
    make("span", "faint", `${upstream.balance ?? "not in the config"}, revision ${upstream.revision}`),
    make("span", usable ? "" : "bad", `${usable} of ${upstream.backends.length} usable`));
  if (upstream.panic) head.append(make("strong", "bad", "panic: health is ignored"));
  for (const each of upstream.leaving) {
    head.append(make("span", "warn", `${each.address} leaving: ${each.in_flight} left`));
  }
  const columns = ["Backend", "State", "Health", "Weight", "Requests/s", "Active", "Requests",
    "Errors", "p50", "p99", "Last check"];
  const rows = upstream.backends.map((backend) => backendRow(upstream, backend, rates));
  const panel = make("div", "upstream", head, table(columns, rows, `Backends of ${upstream.name}`));
  return panel;
}

function backendRow(upstream, backend, rates) {
  const check = backend.last_check;
  const name = backend.name && backend.name !== backend.address
    ? `${backend.name} (${backend.address})` : backend.address;
  return make("tr", isUsable(backend) ? "" : "out",
    make("td", "", name, backend.backup ? make("span", "faint", " backup") : ""),
    word(backend.state, { active: "good", draining: "warn", disabled: "bad" }),
    word(backend.health, { healthy: "good", checking: "warn", unhealthy: "bad" }),
    cell(backend.weight),
    cell(number(rates && rates.backend(upstream, backend))),
    cell(backend.in_flight),
    cell(backend.requests),
    make("td", `number ${backend.errors ? "bad" : ""}`, String(backend.errors)),
    cell(millis(backend.latency_ms.p50)),
    cell(millis(backend.latency_ms.p99)),
    make("td", "reason", check ? `${check.ok ? "" : "failed: "}${check.reason ?? ""}` : "none"));
}

function workersTable(workers) {
  const rows = workers.map((worker) => make("tr", worker.up ? "" : "out",
    cell(worker.slot), word(worker.up ? "up" : "down", { up: "good", down: "bad" }),
    cell(worker.pid), cell(worker.edition), cell(worker.restarts)));
  return make("div", "upstream", table(["Slot", "State", "Pid", "Edition", "Restarts"], rows, "Workers"));
}

// Config

function config(state) {
  facts("config", {
    file: state.source,
    generation: String(state.generation),
    "on disk": state.on_disk,
    "last reload": state.error ? "failed" : new Date(state.reloaded * 1000).toLocaleString(),
  });
  byId("config-error").hidden = !state.error;
  byId("config-error").textContent = state.error ?? "";
}

// A tab that nobody sees asks for nothing.

function stop() {
  clearTimeout(timer);
  round += 1;
  last = null;
  closeEvents();
}

document.addEventListener("visibilitychange", () => {
  stop();
  if (!document.hidden && byId("session").hidden) look();
});

listenForToken(look);
listenForTransfer();
look();
