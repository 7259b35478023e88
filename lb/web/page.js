// What every panel is made of: elements, tables, numbers in words. Text only ever goes in as
// text, never as HTML.

export const byId = (id) => document.getElementById(id);

export function make(tag, className, ...children) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  element.append(...children);
  return element;
}

export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

const NUMBERS = new Set(["Weight", "Requests/s", "Active", "Requests", "Errors", "p50", "p99",
  "Slot", "Pid", "Edition", "Restarts", "Match", "Lag", "Last contact"]);

export function table(columns, rows, caption) {
  const head = make("tr", "", ...columns.map((column) => {
    const cell = make("th", NUMBERS.has(column) ? "number" : "", column);
    cell.scope = "col";
    return cell;
  }));
  const made = make("table", "", make("thead", "", head), make("tbody", "", ...rows));
  made.setAttribute("aria-label", caption);
  return made;
}

export function cell(value) {
  return make("td", "number", String(value));
}

export function word(text, classes) {
  const className = classes[text] ?? "faint";
  return make("td", className, make("span", "dot"), ` ${text}`);
}

export function facts(id, values) {
  byId(id).replaceChildren(...Object.entries(values).map(([name, value]) =>
    make("div", "", make("dt", "", name), make("dd", "", value))));
}

export function number(value) {
  if (value === null || value === undefined) return "–";
  return value >= 100 ? String(Math.round(value)) : value.toFixed(1);
}

export function millis(value) {
  if (value === null || value === undefined) return "–";
  return value >= 10 ? `${Math.round(value)} ms` : `${value.toFixed(1)} ms`;
}

export function span(seconds) {
  const units = [["d", 86400], ["h", 3600], ["m", 60], ["s", 1]];
  const parts = [];
  let rest = Math.floor(seconds);
  for (const [unit, size] of units) {
    const count = Math.floor(rest / size);
    rest -= count * size;
    if (count || (unit === "s" && !parts.length)) parts.push(`${count}${unit}`);
  }
  return parts.slice(0, 2).join(" ");
}
