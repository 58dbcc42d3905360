/* The routes, and what all views share: the banner, the host's name, and what a stranger sees. */

import { element, on, setText } from "./dom.js";
import { GameView } from "./game.js";
import { JobView } from "./jobs.js";
import { ServerView } from "./server.js";
import { ServersView } from "./servers.js";
import { begin, open, status } from "./status.js";
import { REFUSED } from "./verbs.js";

const main = document.getElementById("main");
const banner = document.getElementById("banner");

// Views put these names into command lines: nothing else, such as --all, may come from an address.
const VIEWS = [
    [/^(?:servers)?$/, ServersView],
    [/^servers\/([a-z0-9][a-z0-9_-]{0,19})$/, ServerView],
    [/^jobs\/(\d+)$/, JobView],
    [/^game$/, GameView],
];

let view = null;
let shown = null; // the route of the view

class NoView {
    constructor() {
        main.append(element("h1", {}, "There is no such page"));
    }

    update() {}

    close() {}
}

function viewFor(address) {
    for (const [form, View] of VIEWS) {
        const found = form.exec(address);
        if (found)
            return new View(main, found[1]);
    }
    return new NoView();
}

function leave() {
    view?.close();
    view = null;
    shown = null;
    main.replaceChildren();
}

function route() {
    // Views run l4d2ctl too: they wait until the host has answered, so that a stranger is refused once.
    if (!status.latest)
        return;
    const { path, options } = cockpit.location;
    const next = path.join("/");
    if (next !== shown) {
        const first = shown === null;
        leave();
        shown = next;
        view = viewFor(next);
        for (const link of document.querySelectorAll("nav a")) {
            if (link.hash === `#/${path[0] ?? "servers"}`)
                link.setAttribute("aria-current", "page");
            else
                link.removeAttribute("aria-current");
        }
        document.title = `Left 4 Dead 2: ${main.querySelector("h1").textContent}`;
        if (!first)
            main.focus();
        view.update(status.latest);
    }
    view.options?.(options);
}

function refuse() {
    leave();
    main.append(element("section", { class: "card" },
        element("h1", {}, "No access"),
        element("p", {}, REFUSED),
        element("p", { class: "buttons" }, element("button", { type: "button", "data-click": "retry" }, "Try again"))));
}

function draw() {
    const { connection, latest, why } = status;
    const lost = connection === "lost";
    setText(banner, lost ? `Connection lost (${why}); reconnecting …` : "");
    banner.hidden = !lost;
    main.classList.toggle("stale", lost || connection === "opening");
    setText(document.getElementById("host"), latest ? ` on ${latest.host}` : "");
    if (connection === "refused") {
        refuse();
        return;
    }
    if (view)
        view.update(latest);
    else
        route();
}

on("click", "retry", () => {
    leave();
    open();
});
status.addEventListener("change", draw);
cockpit.addEventListener("locationchanged", route);
begin();
