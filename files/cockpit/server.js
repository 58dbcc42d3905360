/* #/servers/3: one server, what can be done with it, and its log, console, jobs and configuration. */

import { Disconnected, Refused, follow, json } from "./ctl.js";
import { Facts, Lines, Table, bytes, element, on, plural, setAttribute, setLink, setText, textColumn } from "./dom.js";
import { jobsTable } from "./jobs.js";
import { isDown, pending, players, setState } from "./servers.js";
import { rowOf } from "./status.js";
import { offer, setWords, verbButton } from "./verbs.js";

const LOG_LINES = 1000;
const CONSOLE_LINES = 500;
const JOBS = 100;
const HISTORY = 100;
const RETRY = 3000; // milliseconds
const PLAYERS_AGE = 30000; // milliseconds after which names and times of players are read again
const ADDRESS = /^[A-Za-z0-9.:[\]-]+:\d+$/;
const TABS = { log: "Log", console: "Console", jobs: "Jobs", configuration: "Configuration" };

const histories = new Map(); // console commands by server, in memory only: they may hold passwords

function minutes(seconds) {
    const whole = Math.floor(seconds / 60);
    if (whole < 1)
        return "< 1 min";
    return whole < 60 ? `${whole} min` : `${Math.floor(whole / 60)} h ${whole % 60} min`;
}

/** Show an attic entry's time, such as 20261128T150312.123456789, as 2026-11-28 15:03:12 UTC. */
function atticTime(when) {
    return when.replace(/^(\d{4})(\d\d)(\d\d)T(\d\d)(\d\d)(\d\d)\..*$/, "$1-$2-$3 $4:$5:$6 UTC");
}

class Log {
    constructor(server) {
        this.server = server;
        this.lines = new Lines(`Log of server ${server}`, LOG_LINES);
        this.note = element("p", { class: "note", role: "status" });
        this.element = element("div", {}, this.note, this.lines.element);
        this.stream = null;
        this.retry = 0;
    }

    open() {
        if (this.stream)
            return;
        this.lines.readAgain();
        setText(this.note, "");
        this.stream = follow(["logs", "-f", "-n", "200", this.server], line => this.lines.add(line));
        const opened = this.stream;
        opened.done.then(() => "it ended", error => error.message).then(why => {
            if (opened !== this.stream)
                return;
            setText(this.note, `The log stopped (${why}); reading it again …`);
            this.retry = setTimeout(() => {
                this.stream = null;
                this.open();
            }, RETRY);
        });
    }

    close() {
        clearTimeout(this.retry);
        this.stream?.close();
        this.stream = null;
    }
}

class Console {
    constructor(server) {
        this.server = server;
        this.lines = new Lines(`Output of the console of server ${server}`, CONSOLE_LINES);
        setAttribute(this.lines.element, "aria-live", "polite");
        this.input = element("input", {
            id: "command",
            "data-keydown": "history",
            autocomplete: "off",
            autocapitalize: "off",
            spellcheck: "false",
            enterkeyhint: "send",
        });
        this.element = element(
            "div",
            {},
            this.lines.element,
            element(
                "form",
                { class: "toolbar", "data-submit": "console" },
                element("label", { for: "command" }, "Command"),
                this.input,
                element("button", { type: "submit" }, "Send"),
            ),
        );
        if (!histories.has(server))
            histories.set(server, []);
        this.history = histories.get(server);
        this.at = this.history.length;
    }

    open() {}

    close() {}

    async send() {
        const command = this.input.value.trim();
        if (!command)
            return;
        this.input.value = "";
        if (this.history.at(-1) !== command)
            this.history.push(command);
        this.history.splice(0, this.history.length - HISTORY);
        this.at = this.history.length;
        this.lines.add(`> ${command}`, "typed");
        let answered = false;
        await follow(["rcon", this.server, "--", command], line => {
            answered = true;
            this.lines.add(line.replace(/^l4d2ctl: /, ""));
        }, { withErrors: true }).done.then(
            () => answered || this.lines.add("(no output)", "note"),
            error => {
                if (!answered || error instanceof Disconnected)
                    this.lines.add(error.message, "error");
            },
        );
    }

    /** Move in the history by `step`; return whether there is an entry. */
    move(step) {
        const at = this.at + step;
        if (at < 0 || at > this.history.length)
            return false;
        this.at = at;
        this.input.value = this.history[at] ?? "";
        return true;
    }
}

class Jobs {
    constructor(server) {
        this.server = server;
        this.table = jobsTable(`Jobs of server ${server}`, { nothing: "No job of this server yet." });
        this.note = element("p", { class: "error", hidden: true });
        this.element = element("div", {}, this.note, this.table.element);
    }

    async open() {
        try {
            const jobs = await json("jobs", "--json");
            this.table.update(jobs.filter(job => job.servers.includes(this.server)).slice(0, JOBS));
            this.note.hidden = true;
        } catch (error) {
            setText(this.note, error.message);
            this.note.hidden = false;
        }
    }

    close() {}
}

class Configuration {
    constructor() {
        this.shown = "";
        this.element = element("div", { class: "configuration" });
    }

    show(declared) {
        const about = JSON.stringify(declared);
        if (about === this.shown)
            return;
        this.shown = about;
        this.element.replaceChildren(...Object.entries(declared).map(([name, text]) =>
            element("section", {}, element("h3", {}, name), element("pre", { tabindex: "0" }, text || "(empty)"))));
    }

    open() {}

    close() {}
}

const PLAYERS = [
    textColumn("Player", player => player.name || "(joining)", "long"),
    textColumn("Time", player => minutes(player.seconds)),
    textColumn("Score", player => String(player.score)),
];

function atticColumns(server) {
    return [
        textColumn("When", entry => atticTime(entry.when), "long"),
        textColumn("Moved by", entry => entry.by),
        {
            name: "Actions",
            fill: (cell, entry) => {
                if (!cell.firstElementChild) {
                    const label = `Bring back the files of ${atticTime(entry.when)}`;
                    cell.append(verbButton("Bring back", ["reset", "--undo", entry.when, server], { "aria-label": label }));
                }
            },
        },
    ];
}

let view = null; // the open one

export class ServerView {
    constructor(main, server) {
        view = this;
        this.server = server;
        this.shown = "";
        this.readAt = 0;
        this.reading = false;
        this.state = element("span");
        this.missing = element("p", { class: "error" }, `No server ${server} is declared on this host.`);
        this.facts = new Facts();
        this.start = verbButton("Start", ["start", server], { class: "primary" });
        this.stop = verbButton("Stop", ["stop", server]);
        this.restart = verbButton("Restart now", ["restart", server]);
        this.whenEmpty = verbButton("Restart when empty", ["restart", "--when-empty", server]);
        this.cancel = verbButton("Cancel the waiting restart", ["start", server], { hidden: true });
        this.reset = verbButton("Reset", ["reset", server], { class: "danger" });
        this.undo = verbButton("Undo", ["reset", "--undo", server], { "aria-describedby": "undo" });
        setWords(this.undo, null);
        this.undoText = element("p", { id: "undo", class: "note" });
        this.players = new Table(`Players on server ${server}`, player => player.key, PLAYERS, { nothing: "Nobody plays." });
        this.attic = new Table(`Attic of server ${server}`, entry => entry.path, atticColumns(server), { nothing: "The attic is empty." });
        this.tabs = {
            log: new Log(server),
            console: new Console(server),
            jobs: new Jobs(server),
            configuration: new Configuration(),
        };
        this.tab = "";
        this.buttons = Object.fromEntries(Object.entries(TABS).map(([name, label]) => [name, element("button", {
            type: "button",
            role: "tab",
            id: `tab-${name}`,
            "aria-controls": `panel-${name}`,
            "data-click": "tab",
            "data-keydown": "tab",
            "data-tab": name,
        }, label)]));
        this.panels = Object.fromEntries(Object.keys(TABS).map(name => [name, element(
            "div",
            { role: "tabpanel", id: `panel-${name}`, "aria-labelledby": `tab-${name}`, hidden: true },
            this.tabs[name].element,
        )]));
        this.declared = false;
        // What an undeclared server does not have.
        this.parts = [
            element(
                "div",
                { class: "buttons", role: "group", "aria-label": `Actions for server ${server}` },
                ...[this.start, this.stop, this.restart, this.whenEmpty, this.cancel, this.reset, this.undo],
            ),
            this.undoText,
            element("section", { class: "card", "aria-label": "State" }, this.facts.element),
            element(
                "div",
                { class: "cards" },
                element("section", { class: "card", "aria-label": "Players" }, element("h2", {}, "Players"), this.players.element),
                element("section", { class: "card", "aria-label": "Attic" }, element("h2", {}, "Attic"), this.attic.element),
            ),
            element(
                "section",
                { class: "card", "aria-label": "Details" },
                element("div", { role: "tablist", "aria-label": `Details of server ${server}` }, ...Object.values(this.buttons)),
                ...Object.values(this.panels),
            ),
        ];
        main.append(
            element("p", { class: "crumbs" }, element("a", { href: "#/servers" }, "Servers")),
            element("div", { class: "title" }, element("h1", {}, `Server ${server}`), this.state),
            this.missing,
            ...this.parts,
        );
    }

    /** Show the tab that the address names. */
    options({ tab }) {
        const chosen = Object.hasOwn(TABS, tab ?? "") ? tab : "log";
        if (chosen === this.tab)
            return;
        this.tabs[this.tab]?.close();
        this.tab = chosen;
        for (const name of Object.keys(TABS)) {
            setAttribute(this.buttons[name], "aria-selected", String(name === chosen));
            setAttribute(this.buttons[name], "tabindex", name === chosen ? "0" : "-1");
            this.panels[name].hidden = name !== chosen;
        }
        if (this.declared)
            this.tabs[chosen].open();
    }

    update(latest) {
        const row = rowOf(this.server);
        const jobs = latest.jobs.filter(job => job.servers.includes(this.server));
        this.setDeclared(Boolean(row));
        if (!row)
            return;
        setState(this.state, row.state);
        this.facts.set("Since", row.since);
        this.facts.set("Players", players(row));
        this.facts.set("No answer since", row.unanswered_since || "");
        this.facts.set("Map", row.map || "");
        this.facts.set("Build", row.build);
        this.facts.set("Pending", pending(row));
        this.memory = row.memory;
        this.setMemory();
        const dropped = Object.entries(row.dropped).map(([reason, count]) => `${reason.replaceAll("_", " ")} ${count}`);
        this.facts.set("Packets dropped", dropped.join(", "));
        const waits = jobs.some(job => job.result === "waiting");
        offer(this.cancel, waits ? ["start", this.server] : null);
        offer(this.whenEmpty, waits ? null : ["restart", "--when-empty", this.server]);
        const down = isDown(row);
        setWords(this.start, row.state === "active" ? null : ["start", this.server]);
        // A stop of a server that is down is safe, and it is the way to repeat one whose overlay was held.
        setWords(this.restart, down ? null : ["restart", this.server]);
        if (down)
            setWords(this.whenEmpty, null);
        // Memory and counters change all the time, and `show` has nothing about them.
        const about = JSON.stringify([{ ...row, memory: 0, dropped: 0 }, jobs.map(job => [job.job, job.result])]);
        const old = row.players && Date.now() - this.readAt > PLAYERS_AGE;
        if (about !== this.shown || old) {
            this.shown = about;
            this.read();
            if (this.tab === "jobs")
                this.tabs.jobs.open();
        }
    }

    setDeclared(declared) {
        for (const part of [this.state, ...this.parts])
            part.hidden = !declared;
        this.missing.hidden = declared;
        if (declared === this.declared)
            return;
        this.declared = declared;
        if (declared)
            this.tabs[this.tab]?.open();
        else
            this.tabs[this.tab]?.close();
    }

    setMemory() {
        const most = this.limits?.memory_max;
        const used = bytes(this.memory);
        this.facts.set("Memory", used && most ? `${used} of ${bytes(most)}` : used || (most ? `at most ${bytes(most)}` : ""));
    }

    async read() {
        if (this.reading) {
            this.stale = true;
            return;
        }
        this.reading = true;
        try {
            do {
                this.stale = false;
                this.readAt = Date.now();
                this.show(await json("show", this.server, "--json"));
            } while (this.stale && view === this);
            this.facts.set("Problem", "");
        } catch (error) {
            this.shown = ""; // read it again with the next status
            if (!(error instanceof Refused))
                this.facts.set("Problem", error.message);
        }
        this.reading = false;
    }

    show({ address, players: playing, layers, limits, attic, declared }) {
        const connect = this.facts.value("Address");
        connect.parentElement.hidden = !address;
        const link = ADDRESS.test(address) ? `steam://connect/${address}` : null;
        setLink(connect, address, link, { target: "_blank", rel: "noopener noreferrer", title: "Join in the game" });
        this.facts.set("Layers", layers.map(({ name, version }) => `${name} ${version}`).join(", "));
        this.limits = limits;
        this.setMemory();
        this.facts.set("CPU weight", String(limits.cpu_weight ?? ""));
        this.facts.set("Nice", String(limits.nice ?? ""));
        // Names need not differ, so a row is known by its place.
        this.players.update((playing ?? []).map((player, index) => ({ ...player, key: index })));
        this.attic.update(attic);
        const next = attic.find(entry => entry.next);
        setWords(this.undo, next ? ["reset", "--undo", next.when, this.server] : null);
        const held = `${plural(attic.length, "entry").replace("entrys", "entries")} in the attic`;
        setText(this.undoText, next ? `Undo brings back the files of ${atticTime(next.when)}; ${held}.` : "");
        this.tabs.configuration.show(declared);
    }

    close() {
        this.tabs[this.tab]?.close();
        view = null;
    }
}

function choose(name) {
    cockpit.location.replace(cockpit.location.path, { tab: name });
    view.buttons[name].focus();
}

on("click", "tab", button => choose(button.dataset.tab));
on("keydown", "tab", (button, event) => {
    const names = Object.keys(TABS);
    const at = names.indexOf(button.dataset.tab);
    const next = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: names.length - 1 }[event.key];
    if (next === undefined)
        return;
    event.preventDefault();
    choose(names[(next + names.length) % names.length]);
});
on("submit", "console", (_form, event) => {
    event.preventDefault();
    view.tabs.console.send();
});
on("keydown", "history", (_input, event) => {
    const step = { ArrowUp: -1, ArrowDown: 1 }[event.key];
    if (step && view.tabs.console.move(step))
        event.preventDefault();
});
