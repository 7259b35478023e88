// The group's panel: who the members are, how far, and moving the leader.
// Rows stay the same elements from reading to reading, so that a click is never lost.

import { byId, make, setText, span, table } from "./page.js";
import { ask } from "./session.js";

const COLUMNS = ["Member", "Role", "Address", "Match", "Lag", "Last contact", "Version", "Config", ""];
const HASH_SHOWN = 8;
const NUMBER_FROM = 3;
const NUMBER_TO = 5;

const rows = new Map(); // Name: { row, cells, button }.
let body = null;
let chosen = ""; // Whom the open dialog is about.

const WORDS = {
  "no-quorum": "No quorum",
  "removed": "This instance was removed from its group",
  "damaged": "The log of this instance is damaged",
  "stopped-apply": "This instance has stopped following the group",
};

export function drawGroup(group) {
  const voters = group.members.filter((member) => member.role === "voter").length;
  setText(byId("group-state"), isWell(group) ? inOrder(voters) : alarm(group));
  byId("group-state").className = isWell(group) ? "good" : "bad";
  setText(byId("group-facts"), `leader ${group.leader || "none"}, term ${group.term}, `
    + `revision ${group.revision}, committed ${group.commit}, applied ${group.applied}`);
  if (body === null) {
    const made = table(COLUMNS, [], "Members");
    body = made.querySelector("tbody");
    byId("group").replaceChildren(make("div", "upstream", made));
  }
  for (const member of group.members) drawMember(member, group);
  const names = new Set(group.members.map((member) => member.name));
  for (const [name, { row }] of rows) {
    if (names.has(name)) continue;
    row.remove();
    rows.delete(name);
  }
}

function inOrder(voters) {
  if (voters < 2) return "one voter: it agrees with itself";
  if (voters === 2) return "two voters: neither may be lost";
  return `${voters} voters: any ${Math.floor((voters - 1) / 2)} may be lost`;
}

export function isWell(group) {
  return group.quorum && (group.state === "ok" || group.state === "alone");
}

export function alarm(group) {
  if (group.state === "forming") {
    const waiting = (group.waiting_for ?? []).join(", ") || "the others";
    return `No group yet: waiting for ${waiting}; traffic goes by this instance's file`;
  }
  const what = WORDS[group.state] ?? (group.quorum ? group.state : WORDS["no-quorum"]);
  const age = group.age_s >= 1 ? `, known to be current ${span(group.age_s)} ago` : "";
  const detail = group.detail ? ` (${group.detail})` : "";
  return `${what}${detail}: traffic goes on by the last good registry${age}, and nothing can be changed`;
}

function drawMember(member, group) {
  const leads = member.name === group.leader;
  const shown = rows.get(member.name) ?? addRow(member.name);
  const silent = member.live === false;
  const contact = member.last_contact_ms;
  [member.name,
    leads ? "leader" : member.role,
    member.address,
    dash(member.match),
    dash(member.lag),
    contact === null || contact === undefined ? "–"
      : contact > 5000 ? `${span(contact / 1000)} ago` : `${contact} ms ago`,
    member.version || "–",
    (member.config_hash || "–").slice(0, HASH_SHOWN),
  ].forEach((text, i) => setText(shown.cells[i], text));
  shown.row.className = silent ? "out" : "";
  shown.cells[1].className = silent ? "bad" : leads ? "good" : "";
  shown.button.hidden = leads || member.role !== "voter" || !isWell(group);
}

function addRow(name) {
  const cells = COLUMNS.slice(0, -1).map((_, i) =>
    make("td", i >= NUMBER_FROM && i <= NUMBER_TO ? "number" : "", ""));
  const button = make("button", "", "Make leader");
  button.type = "button";
  button.setAttribute("aria-label", `Make ${name} the leader`);
  button.addEventListener("click", () => {
    chosen = name;
    setText(byId("transfer-text"), `Hand leadership to ${name}? Writes wait for a moment; `
      + "traffic does not.");
    setText(byId("transfer-trouble"), "");
    byId("transfer").showModal();
  });
  const made = { row: make("tr", "", ...cells, make("td", "", button)), cells, button };
  rows.set(name, made);
  body.append(made.row);
  return made;
}

export function listenForTransfer() {
  byId("transfer-no").addEventListener("click", () => byId("transfer").close());
  byId("transfer-yes").addEventListener("click", async () => {
    byId("transfer-yes").disabled = true;
    try {
      await ask("/v1/group/transfer", "POST", { to: chosen });
      byId("transfer").close();
    } catch (error) {
      setText(byId("transfer-trouble"), error.message);
    } finally {
      byId("transfer-yes").disabled = false;
    }
  });
}

function dash(value) {
  return value === null || value === undefined ? "–" : String(value);
}
