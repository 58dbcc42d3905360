
"use strict";
// Without this script the page has everything but search and sorting.
const main = document.querySelector("main");
const words = document.getElementById("words");
const order = document.getElementById("order");
const hosts = [...document.querySelectorAll("article")].map((article, place) => {
  const name = article.querySelector("h3").textContent;
  const details = article.querySelector("details");
  return {
    article, place, name, details,
    open: Boolean(details && details.open),
    players: Number(article.dataset.players),
    // Without the rows: what is searched in if no row matches.
    text: [...article.querySelectorAll("h3, .badge, li")].map((each) => each.textContent).join(" ").toLowerCase(),
    rows: [...article.querySelectorAll("tbody tr")].map((row) => {
      const cells = [...row.cells].map((cell) => cell.textContent);
      return { row, text: [name, ...cells].join(" ").toLowerCase() };
    }),
  };
});

function search() {
  const wanted = words.value.toLowerCase().split(/\s+/).filter(Boolean);
  const matches = (text) => wanted.every((word) => text.includes(word));
  let servers = 0;
  let shown = 0;
  for (const host of hosts) {
    const matching = host.rows.filter((each) => matches(each.text));
    const whole = !matching.length && matches(host.text);
    for (const each of host.rows) each.row.hidden = !whole && !matches(each.text);
    host.article.hidden = !whole && !matching.length;
    if (!host.article.hidden) shown += 1;
    servers += whole ? host.rows.length : matching.length;
    // A search opens the hosts with matching servers; its end brings back what was open before.
    if (host.details) host.details.open = wanted.length ? matching.length > 0 : host.open;
  }
  document.getElementById("found").textContent = wanted.length
    ? `${servers} server${servers === 1 ? "" : "s"} on ${shown} host${shown === 1 ? "" : "s"}` : "";
}

function sort() {
  const by = {
    "": (a, b) => a.place - b.place,
    name: (a, b) => a.name.localeCompare(b.name, undefined, { numeric: true }),
    players: (a, b) => b.players - a.players || a.place - b.place,
  };
  main.append(...[...hosts].sort(by[order.value]).map((host) => host.article));
}

for (const host of hosts) {
  host.details?.addEventListener("toggle", () => { if (!words.value.trim()) host.open = host.details.open; });
}
words.addEventListener("input", search);
order.addEventListener("change", sort);
document.getElementById("tools").hidden = false;
// A browser keeps what was typed over a reload.
search();
sort();
