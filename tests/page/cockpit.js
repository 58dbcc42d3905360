// Stands in for Cockpit's cockpit.js where a test needs a host that answers as it says: 40 servers, lost streams.
"use strict";

const processes = []; // what the page has started
const answers = {}; // what a program prints at once, by its words after l4d2ctl; it then ends

class Process {
    constructor(argv) {
        this.words = argv.slice(3).join(" ");
        this.open = true;
        this.onText = () => {};
        this.ended = new Promise((resolve, reject) => {
            Object.assign(this, { resolve, reject });
        });
        this.ended.catch(() => {});
    }

    stream(onText) {
        this.onText = onText;
        return this;
    }

    then(ok, failed) {
        return this.ended.then(ok, failed);
    }

    close() {
        this.fail({ problem: "cancelled", message: "cancelled" });
    }

    say(text) {
        this.onText(text);
    }

    end() {
        this.open = false;
        this.resolve();
    }

    fail(problem) {
        this.open = false;
        this.reject(problem);
    }
}

window.cockpit = Object.assign(new EventTarget(), {
    hidden: false,
    spawn(argv) {
        const process = new Process(argv);
        processes.push(process);
        const answer = answers[process.words];
        if (answer !== undefined) {
            setTimeout(() => {
                process.say(answer);
                process.end();
            });
        }
        return process;
    },
    location: {
        get path() {
            return location.hash.slice(2).split("?")[0].split("/").filter(Boolean).map(decodeURIComponent);
        },
        get options() {
            return Object.fromEntries(new URLSearchParams(location.hash.split("?")[1]));
        },
        replace(path, options) {
            history.replaceState(null, "", `#/${path.join("/")}?${new URLSearchParams(options)}`);
            window.cockpit.dispatchEvent(new Event("locationchanged"));
        },
    },
});
window.addEventListener("hashchange", () => window.cockpit.dispatchEvent(new Event("locationchanged")));

// For the test: the processes with these words that still run, the latest last.
window.host = {
    answers,
    running: words => processes.filter(each => each.open && each.words === words),
    started: words => processes.filter(each => each.words === words).length,
    get all() {
        return processes;
    },
};
