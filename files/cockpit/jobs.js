/* #/jobs/164: a job's lines as they come, then its record. And tables of jobs for other views. */

import { Disconnected, Failed, Refused, follow, json } from "./ctl.js";
import { Facts, Lines, Table, clock, duration, element, reconcile, setAttribute, setLink, setText, textColumn } from "./dom.js";
import { isRunning } from "./status.js";
import { REFUSED } from "./verbs.js";

const LINES = 2000;
const RETRY = 3000; // milliseconds
const MISSING = "there is no job"; // what l4d2ctl says of one that was never there or is too old

/** Return how a job ended, or what it is doing: "succeeded in 1.3 s". */
export function outcome(job) {
    const seconds = job.ended === null ? "" : duration(job.seconds);
    if (job.result === "succeeded")
        return `succeeded in ${seconds}`;
    if (job.result === "failed")
        return `failed after ${seconds}`;
    return job.result === "cancelled" || job.result === "interrupted" ? `was ${job.result}` : job.result;
}

function setOutcome(cell, job) {
    if (!cell.firstElementChild)
        cell.append(element("span", { class: "outcome" }));
    setText(cell.firstElementChild, outcome(job));
    setAttribute(cell.firstElementChild, "data-result", job.result);
}

function by(job) {
    return job.origin ? `${job.who} (${job.origin})` : job.who;
}

/** Return a table of jobs. */
export function jobsTable(caption, options) {
    return new Table(caption, job => job.job, [
        { name: "Job", fill: (cell, job) => setLink(cell, `#${job.job}`, `#/jobs/${job.job}`) },
        textColumn("What", job => job.words, "long row"),
        textColumn("Who", by),
        textColumn("Begun", job => clock(job.begun)),
        { name: "Result", fill: setOutcome },
    ], options);
}

/** Shows one job, and follows it until it ends. */
export class JobFollower {
    constructor(number) {
        this.number = String(number);
        this.stream = null;
        this.retry = 0;
        this.closed = false;
        this.result = element("p", { class: "headline", role: "status" });
        this.facts = new Facts();
        this.error = element("p", { class: "error", hidden: true });
        this.lines = new Lines(`Lines of job #${number}`, LINES);
        this.element = element("div", { class: "follower" }, this.result, this.facts.element, this.error, this.lines.element);
        this.read(false);
    }

    /** Read the job's record; with `followed`, its lines are shown already. */
    async read(followed) {
        let job;
        try {
            job = await json("jobs", this.number, "--json");
        } catch (error) {
            this.fail(error);
            return;
        }
        if (this.closed)
            return;
        this.show(job);
        if (isRunning(job)) {
            if (followed)
                this.again();
            else
                this.follow();
        } else if (!followed) {
            this.lines.clear();
            if (job.line_count > job.lines.length)
                this.lines.add(`… ${job.line_count - job.lines.length} earlier lines are not kept`, "note");
            job.lines.forEach(line => this.lines.add(line));
        }
    }

    follow() {
        this.lines.readAgain();
        this.stream = follow(["jobs", "-f", this.number], line => {
            // The last line says how the job ended, as the headline does.
            if (!line.startsWith(`job ${this.number} `))
                this.lines.add(line);
        }, { withErrors: true });
        // l4d2ctl exits with 1 if the job failed: its record says what happened.
        this.stream.done.catch(() => {}).then(() => !this.closed && this.read(true));
    }

    again() {
        this.retry = setTimeout(() => this.read(false), RETRY);
    }

    fail(error) {
        if (this.closed)
            return;
        setText(this.error, error instanceof Refused ? REFUSED : error.message);
        this.error.hidden = false;
        if (!(error instanceof Refused || error instanceof Failed || error instanceof Disconnected))
            throw error;
        if (!(error instanceof Refused || error.message.includes(MISSING)))
            this.again();
    }

    show(job) {
        setText(this.result, `job #${job.job} ${isRunning(job) ? `is ${job.result}` : outcome(job)}`);
        setAttribute(this.result, "data-result", job.result);
        this.facts.set("What", job.words);
        this.facts.value("Servers").parentElement.hidden = !job.servers.length;
        reconcile(this.facts.value("Servers"), job.servers, id => id, id => element("a", { href: `#/servers/${id}` }, id));
        this.facts.set("Who", by(job));
        this.facts.set("Begun", clock(job.begun));
        this.facts.set("Ended", job.ended === null ? "" : clock(job.ended));
        const steps = Object.entries(job.steps).map(([step, seconds]) => `${step} ${duration(seconds)}`);
        this.facts.set("Steps", steps.join(", "));
        setText(this.error, job.error);
        this.error.hidden = !job.error;
    }

    close() {
        this.closed = true;
        clearTimeout(this.retry);
        this.stream?.close();
    }
}

export class JobView {
    constructor(main, number) {
        this.follower = new JobFollower(number);
        main.append(
            element("p", { class: "crumbs" }, element("a", { href: "#/servers" }, "Servers")),
            element("h1", {}, `Job #${number}`),
            element("section", { class: "card" }, this.follower.element),
        );
    }

    update() {}

    close() {
        this.follower.close();
    }
}
