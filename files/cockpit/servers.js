/* #/servers: all servers of the host; above them builds, problems and jobs. */

import { Refused, json } from "./ctl.js";
import { Table, bytes, element, on, plural, reconcile, setAttribute, setLink, setText, textColumn } from "./dom.js";
import { jobsTable } from "./jobs.js";
import { isRunning, status } from "./status.js";
import { offer, verbButton } from "./verbs.js";

const FINISHED = {
    reset: "a reset was finished at the boot",
    undo: "an undo was finished at the boot",
    "not begun": "an interrupted reset changed nothing",
};
const DOWN = ["inactive", "failed"];
const FIX = ["doctor", "--fix"];

export function isDown(row) {
    return DOWN.includes(row.state);
}

/** Return what is pending for a server, in words. */
export function pending(row) {
    const said = [];
    if (row.reset_unfinished)
        said.push("reset is unfinished");
    if (row.restart_due)
        said.push(`restart required${row.restart_for.length ? ` (${row.restart_for.join(", ")})` : ""}`);
    else if (row.next_map)
        said.push("applies at the next map");
    if (row.held)
        said.push(`stopped by hand${row.held_by ? ` by ${row.held_by}` : ""}`);
    if (FINISHED[row.reset_finished])
        said.push(FINISHED[row.reset_finished]);
    return said.join("; ");
}

export function players(row) {
    if (row.players !== null)
        return `${row.players} / ${row.slots}`;
    return row.unanswered_since ? "no answer" : "";
}

/** Show a state with a mark whose shape differs too, for those who do not see its colour. */
export function setState(cell, state) {
    if (!cell.firstElementChild)
        cell.append(element("span", { class: "state" }));
    const shown = cell.firstElementChild;
    setText(shown, state);
    setAttribute(shown, "data-state", ["active", ...DOWN].includes(state) ? state : "changing");
}

function fillPending(cell, row) {
    if (!cell.firstElementChild)
        cell.append(element("span"), element("span"));
    const [text, jobs] = cell.children;
    setText(text, pending(row));
    const running = status.latest.jobs.filter(job => isRunning(job) && job.servers.includes(row.id));
    reconcile(jobs, running, job => job.job, () => element("a", { class: "job" }), (link, job) => {
        setText(link, `#${job.job} ${job.words}`);
        setAttribute(link, "href", `#/jobs/${job.job}`);
    });
}

function fillButtons(cell, row) {
    if (!cell.firstElementChild) {
        cell.append(
            verbButton("Start", ["start", row.id], { "aria-label": `Start server ${row.id}` }),
            verbButton("Restart", ["restart", row.id], { "aria-label": `Restart server ${row.id}` }),
        );
    }
    const [start, restart] = cell.children;
    offer(start, isDown(row) ? ["start", row.id] : null);
    offer(restart, row.restart_due && !isDown(row) ? ["restart", row.id] : null);
}

const COLUMNS = [
    { name: "Server", kind: "long", fill: (cell, row) => setLink(cell, row.id, `#/servers/${row.id}`) },
    { name: "State", fill: (cell, row) => setState(cell, row.state) },
    textColumn("Players", players),
    textColumn("Map", row => row.map || "", "long"),
    textColumn("Port", row => String(row.port ?? "")),
    textColumn("Build", row => row.build, "long"),
    textColumn("Memory", row => bytes(row.memory)),
    { name: "Pending", kind: "long row", fill: fillPending },
    { name: "Actions", fill: fillButtons },
];

let doctor = null; // of the open view
let filter = ""; // kept while the user looks at a server and comes back

function matches(row) {
    const text = [row.id, row.state, row.map, row.port, row.build, pending(row)].join(" ").toLowerCase();
    return filter.toLowerCase().split(/\s+/).every(word => text.includes(word));
}

/** What `doctor` finds: read when the view opens, after each fix, and when the user asks again. */
class Doctor {
    constructor() {
        this.fixed = -1; // the latest job that has fixed something
        this.asked = null; // the latest answer, perhaps on its way
        this.words = null;
        this.text = element("p");
        this.list = element("ul", { class: "findings" });
        this.again = element("button", { type: "button", "data-click": "examine" }, "Examine again");
        this.fix = verbButton("Fix what is safe to fix", FIX, { hidden: true });
        this.element = element(
            "section",
            { class: "card", "aria-label": "Problems" },
            element("h2", {}, "Problems"),
            this.text,
            this.list,
            element("p", { class: "buttons" }, this.fix, this.again),
        );
    }

    update(jobs) {
        offer(this.fix, this.words);
        const fixed = jobs.find(job => job.verb === FIX.join(" ") && !isRunning(job))?.job ?? 0;
        if (fixed > this.fixed) {
            this.fixed = fixed;
            this.examine();
        }
    }

    async examine() {
        setText(this.text, "Examining the host …");
        setAttribute(this.again, "aria-disabled", "true");
        const asked = json("doctor", "--json");
        this.asked = asked;
        const [findings, error] = await asked.then(found => [found, null], failed => [null, failed]);
        if (asked !== this.asked)
            return;
        if (findings)
            this.show(findings);
        else
            setText(this.text, error instanceof Refused ? "" : `The doctor failed: ${error.message}`);
        setAttribute(this.again, "aria-disabled", null);
    }

    show(findings) {
        setText(this.text, findings.length ? `${plural(findings.length, "problem")} found:` : "No problems found.");
        this.list.replaceChildren(...findings.map(({ server, what, do: command }) => element(
            "li",
            {},
            server ? element("a", { href: `#/servers/${server}` }, `server ${server}`) : "",
            `${server ? ": " : ""}${what} `,
            element("code", {}, command),
        )));
        this.words = findings.some(finding => finding.do.includes(FIX.join(" "))) ? FIX : null;
        offer(this.fix, this.words);
    }
}

export class ServersView {
    constructor(main) {
        this.sum = element("p", { class: "sum", id: "sum" });
        this.search = element("input", {
            type: "search",
            id: "search",
            "data-input": "search",
            autocomplete: "off",
            "aria-describedby": "sum",
        });
        this.search.value = filter;
        this.table = new Table("Servers of this host", row => row.id, COLUMNS, { nothing: "No server to show.", kind: "wide servers" });
        this.build = element("p");
        this.updateState = element("p", { class: "warning" });
        doctor = new Doctor();
        this.running = jobsTable("Running jobs", { nothing: "No job is running." });
        this.latest = jobsTable("Latest jobs", { nothing: "No job yet." });
        main.append(
            element("h1", { class: "unseen" }, "Servers"),
            element(
                "div",
                { class: "cards" },
                element(
                    "section",
                    { class: "card", "aria-label": "Game" },
                    element("h2", {}, element("a", { href: "#/game" }, "Game")),
                    this.build,
                    this.updateState,
                ),
                doctor.element,
                element(
                    "section",
                    { class: "card", "aria-label": "Jobs" },
                    element("h2", {}, "Jobs"),
                    this.running.element,
                    element("details", {}, element("summary", {}, "Latest jobs"), this.latest.element),
                ),
            ),
            element(
                "section",
                { class: "card", "aria-label": "Servers" },
                element(
                    "div",
                    { class: "toolbar" },
                    element("label", { for: "search" }, "Search"),
                    this.search,
                    this.sum,
                ),
                this.table.element,
            ),
        );
    }

    update(latest) {
        const shown = latest.servers.filter(matches);
        const active = shown.filter(row => row.state === "active").length;
        const playing = shown.reduce((sum, row) => sum + (row.players ?? 0), 0);
        const some = shown.length < latest.servers.length ? ` of ${latest.servers.length}` : "";
        const servers = `${shown.length}${some} ${latest.servers.length === 1 ? "server" : "servers"}`;
        setText(this.sum, `${servers}, ${active} active, ${plural(playing, "player")}`);
        this.table.update(shown);
        doctor.update(latest.jobs);
        const current = latest.builds.find(build => build.current);
        const others = latest.builds.length - (current ? 1 : 0);
        const more = others ? `, ${plural(others, "other build")} on this host` : "";
        setText(this.build, current ? `Build ${current.build} is current${more}.` : "No build is current.");
        setText(this.updateState, latest.update);
        this.running.update(latest.jobs.filter(isRunning));
        this.latest.update(latest.jobs);
    }

    close() {}
}

on("input", "search", input => {
    filter = input.value;
    status.dispatchEvent(new Event("change"));
});
on("click", "examine", () => doctor?.examine());
