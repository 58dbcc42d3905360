/* The host's status as one stream: `l4d2ctl status --json --follow` prints an object at once and at each change. */

import { Disconnected, Refused, follow } from "./ctl.js";

const RETRY = 3000; // milliseconds
const SILENCE = 30000; // the stream says something at least every 10 s

/** Dispatches "change". `latest` is the last object, or null; `connection` is opening, live, lost or refused. */
export const status = new EventTarget();
status.latest = null;
status.connection = "opening";
status.why = "";

let stream = null;
let silence = 0;
let silences = 0; // in a row
let retry = 0;

function set(connection, why = "") {
    status.connection = connection;
    status.why = why;
    status.dispatchEvent(new Event("change"));
}

function close() {
    clearTimeout(silence);
    clearTimeout(retry);
    stream?.close();
    stream = null;
}

function listen() {
    clearTimeout(silence);
    silence = setTimeout(() => {
        silences += 1;
        lose("the host is silent", silences > 1);
    }, SILENCE);
}

/** Open the stream again; if Cockpit's own connection is gone, which does not come back by itself, load Cockpit again. */
function lose(why, isCockpitGone = false) {
    close();
    set("lost", why);
    retry = setTimeout(isCockpitGone ? reload : open, RETRY);
}

async function reload() {
    try {
        await fetch("manifest.json", { cache: "no-store" });
        window.top.location.reload();
    } catch {
        retry = setTimeout(reload, RETRY);
    }
}

/** Open the stream, again if it is open. */
export function open() {
    close();
    listen();
    const opened = follow(["status", "--json", "--follow"], line => {
        listen();
        silences = 0;
        try {
            status.latest = JSON.parse(line);
        } catch {
            lose("the host's answer is unreadable");
            return;
        }
        set("live");
    });
    stream = opened;
    opened.done.then(
        () => opened === stream && lose("the stream ended"),
        error => {
            if (opened !== stream)
                return;
            if (error instanceof Refused) {
                close();
                status.latest = null; // what a member saw is not a stranger's to see
                set("refused", error.message);
            } else {
                lose(error.message, error instanceof Disconnected);
            }
        },
    );
}

/** Start. A page that nobody sees does not ask for the status; its log or job goes on, which keeps the lines so far. */
export function begin() {
    cockpit.addEventListener("visibilitychange", () => {
        if (status.connection === "refused")
            return;
        if (cockpit.hidden) {
            close();
        } else if (!stream) {
            open();
            set("opening");
        }
    });
    open();
}

/** Resolve once the connection is one of these. */
export async function until(...connections) {
    while (!connections.includes(status.connection))
        await new Promise(resolve => status.addEventListener("change", resolve, { once: true }));
}

/** Return a server's row, or undefined. */
export function rowOf(server) {
    return status.latest?.servers.find(row => row.id === server);
}

export function isRunning(job) {
    return job.result === "running" || job.result === "waiting";
}
