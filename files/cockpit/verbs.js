/* What changes the host: a question if people play, then l4d2ctl, its output, and how the job ended. */

import { Disconnected, Refused, follow, json } from "./ctl.js";
import { Lines, duration, element, on, plural, setAttribute, setText } from "./dom.js";
import { rowOf, status, until } from "./status.js";

const MOST = 8; // entries that are shown
const LINES = 200;

export const REFUSED =
    "Your account may not run l4d2ctl on this host. Members of the group that the host's setting “operators” names may: " +
    "ask the host's administrator to add you to it, then log in again.";

const running = new Set();
let asked = Promise.resolve(); // resolves when the dialog is free

/** Return a button that runs l4d2ctl with these words. */
export function verbButton(label, words, attributes = {}) {
    return element("button", { type: "button", "data-click": "verb", ...attributes, "data-words": words.join(" ") }, label);
}

/** Change in place which words a button runs, or disable it with null. */
export function setWords(button, words) {
    // Not `disabled`, which takes the focus away.
    setAttribute(button, "aria-disabled", words ? null : "true");
    if (words)
        setAttribute(button, "data-words", words.join(" "));
}

/** Change in place which words a button runs, or hide it with null; under the keyboard's focus it stays, disabled. */
export function offer(button, words) {
    setWords(button, words);
    button.hidden = !words && !button.matches(":focus-visible");
}

/** Return what words do, as a headline: "Reset of server 3". */
export function headline(words) {
    const [verb, ...rest] = words;
    const server = `server ${rest.at(-1)}`;
    if (verb === "game")
        return rest[0] === "update" ? "Update of the game" : `Rollback of the game to build ${rest[1]}`;
    if (verb === "doctor")
        return "Fix of what is safe to fix";
    if (rest.includes("--undo"))
        return `Undo for ${server}`;
    if (rest.includes("--when-empty"))
        return `Restart of ${server} when it is empty`;
    return `${verb[0].toUpperCase()}${verb.slice(1)} of ${server}`;
}

/** Return what to ask before words run; null if nobody is affected. */
async function questionFor(words) {
    const [verb, ...rest] = words;
    if (verb === "game" && rest[0] === "rollback") {
        return {
            title: `Make build ${rest[1]} current?`,
            text: "Running servers keep their build until they restart.",
            yes: "Make current",
        };
    }
    if (!["stop", "restart", "reset"].includes(verb) || rest.includes("--when-empty"))
        return null;
    const row = await freshRow(rest.at(-1));
    // Even if it has not answered since its start: maybe nobody has asked. Before "active" its game is not up.
    const unknown = row?.state === "active" && row.players === null;
    if (!row?.players && !unknown)
        return null;
    const known = row.unanswered_since && row.unanswered_since !== row.since;
    const latest = known ? `It answered last at ${row.unanswered_since}.` : `It runs since ${row.since}.`;
    const name = rest.includes("--undo") ? "Undo" : verb[0].toUpperCase() + verb.slice(1);
    const who = unknown
        ? `The server does not answer: players may be on it. ${latest}`
        : `${plural(row.players, "player")} ${row.players === 1 ? "is" : "are"} on it and will be disconnected.`;
    const after = verb === "reset" ? " What the server wrote moves to the attic." : "";
    return {
        title: rest.includes("--undo") ? `Undo for server ${row.id}?` : `${name} server ${row.id}?`,
        text: who + after,
        yes: unknown ? name : `${name} with ${plural(row.players, "player")} on`,
    };
}

/** Return a server's row as it is now: the stream asks a server without players only every 30 s. */
async function freshRow(server) {
    // In Cockpit a command may never end when the connection is lost.
    const read = Promise.race([json("status", "--json", server), until("lost")]);
    const rows = await read.catch(() => null); // l4d2ctl fails again at once, and its output is shown
    return rows ? rows[0] : rowOf(server);
}

/** Ask in a modal dialog, which traps the focus and returns it; Escape cancels. */
function ask({ title, text, yes }) {
    const dialog = document.getElementById("question");
    setText(document.getElementById("question-title"), title);
    setText(document.getElementById("question-text"), text);
    setText(document.getElementById("question-yes"), yes);
    dialog.returnValue = "";
    dialog.showModal();
    return new Promise(resolve => {
        dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true });
    });
}

/** Ask what there is to ask before words run, one question after the other: all use one dialog. Return the answer. */
function isWanted(words) {
    const answer = asked.then(async () => {
        const question = await questionFor(words);
        return !question || status.connection !== "live" || ask(question);
    });
    asked = answer.catch(() => {});
    return answer;
}

function announce(text) {
    document.getElementById("announcement").textContent = text;
}

/** One run of l4d2ctl, shown at the foot of the page. */
class Act {
    constructor(words) {
        this.words = words;
        this.begun = false;
        this.job = null;
        this.ended = "";
        this.title = element("strong", {}, `${headline(words)} …`);
        this.how = element("span");
        this.result = element("span", { class: "result" }, this.how);
        this.lines = new Lines(`Output of: ${headline(words)}`, LINES);
        const dismiss = element(
            "button",
            { type: "button", class: "plain", "data-click": "dismiss", "aria-label": `Dismiss: ${headline(words)}` },
            "×",
        );
        const head = element("div", { class: "act-head" }, this.title, " ", this.result, " ", dismiss);
        this.element = element("li", { class: "act running" }, head, this.lines.element);
    }

    async run() {
        if (status.connection !== "live") {
            this.end(new Disconnected());
            return;
        }
        this.begun = true;
        const show = () => this.show();
        status.addEventListener("change", show);
        await follow(this.words, line => this.line(line), { withErrors: true }).done.then(
            () => this.end(null),
            error => this.end(error),
        );
        status.removeEventListener("change", show);
    }

    line(text) {
        const about = /^job (\d+) (is running|(?:succeeded|failed|was cancelled|was interrupted)\b.*)/.exec(text);
        if (!about) {
            this.lines.add(text.replace(/^l4d2ctl: /, ""));
            return;
        }
        if (!this.job)
            this.result.prepend(element("a", { href: `#/jobs/${about[1]}` }, `job #${about[1]}`), " ");
        this.job = about[1];
        if (about[2] !== "is running")
            this.ended = about[2].replace(/[\d.]+(?= s$)/, seconds => duration(seconds).replace(" s", ""));
        this.show();
    }

    /** Return what is known of it without a connection. */
    lost() {
        if (!this.begun)
            return "not started: no connection to the host";
        return `the connection was lost; ${this.job ? "the job goes on without it" : "see the jobs whether it began"}`;
    }

    show(text = this.ended || (status.connection === "lost" ? this.lost() : "")) {
        setText(this.how, text);
    }

    end(error) {
        setText(this.title, headline(this.words));
        this.element.className = `act ${error ? "failed" : "succeeded"}`;
        if (error instanceof Refused)
            this.show(REFUSED);
        else if (error instanceof Disconnected)
            this.show(this.ended || this.lost());
        else
            this.show(this.ended || (error ? "failed" : "done"));
        announce(`${headline(this.words)}: ${this.result.textContent}`);
    }
}

function show(act) {
    const acts = document.getElementById("acts");
    const list = acts.querySelector("ul");
    list.prepend(act.element);
    for (const old of [...list.querySelectorAll(":scope > :not(.running)")].slice(MOST - 1))
        old.remove();
    acts.hidden = false;
    announce(act.title.textContent);
}

function mark(key) {
    for (const button of document.querySelectorAll("[data-words]")) {
        if (button.dataset.words === key)
            button.setAttribute("aria-busy", String(running.has(key)));
    }
}

async function run(words) {
    const key = words.join(" ");
    if (running.has(key))
        return;
    running.add(key);
    mark(key);
    try {
        await until("live", "lost", "refused");
        if (status.connection !== "live" || await isWanted(words)) {
            const act = new Act(words);
            show(act);
            await act.run();
        }
    } finally {
        running.delete(key);
        mark(key);
    }
}

on("click", "verb", button => run(button.dataset.words.split(" ")));
on("click", "dismiss", button => {
    const acts = document.getElementById("acts");
    button.closest("li").remove();
    acts.hidden = !acts.querySelector("li");
    // The focus must not fall out of the page.
    (acts.querySelector("li:not(.running) button") ?? document.getElementById("main")).focus({ preventScroll: true });
});
