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
    silence = setTimeout(() => lose("the host is silent"), SILENCE);
}

function lose(why) {
    close();
    set("lost", why);
    retry = setTimeout(open, RETRY);
}

/** Open the stream, again if it is open. */
export function open() {
    close();
    listen();
    const opened = follow(["status", "--json", "--follow"], line => {
        listen();
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
            } else if (error instanceof Disconnected) {
                close();
                set("lost", error.message);
                reload();
            } else {
                lose(error.message);
            }
        },
    );
}

/** Load Cockpit again as soon as the host answers: its own connection does not come back by itself. */
function reload() {
    retry = setTimeout(async () => {
        try {
            await fetch("manifest.json", { cache: "no-store" });
            window.top.location.reload();
        } catch {
            reload();
        }
    }, RETRY);
}

/** Start; a page that nobody sees costs the host nothing. */
export function begin() {
    cockpit.addEventListener("visibilitychange", () => {
        if (status.connection === "refused")
            return;
        if (cockpit.hidden)
            close();
        else if (!stream)
            open();
    });
    open();
}

/** Return a server's row, or undefined. */
export function rowOf(server) {
    return status.latest?.servers.find(row => row.id === server);
}

export function isRunning(job) {
    return job.result === "running" || job.result === "waiting";
}
