/* Runs l4d2ctl on the host, with the rights that the user has over SSH. No other file starts a program. */

const CTL = ["sudo", "-n", "/usr/local/sbin/l4d2ctl"];
const LONGEST = 4 << 20; // characters of a line

/** sudo does not let this user run l4d2ctl. */
export class Refused extends Error {}

/** The connection to the host is lost. */
export class Disconnected extends Error {}

/** l4d2ctl failed; the message is what it printed. */
export class Failed extends Error {}

function toError(problem, said) {
    if (problem.problem === "disconnected")
        return new Disconnected("the connection to the host is lost");
    const lines = said.split("\n");
    if (lines.some(line => /^(sudo:|Sorry, user) /.test(line)) && !lines.some(line => line.startsWith("l4d2ctl: ")))
        return new Refused(lines[0]);
    return new Failed(said.trim() || problem.message || String(problem.problem));
}

function spawn(words, err, onText) {
    // sudo's messages depend on the language.
    const process = cockpit.spawn([...CTL, ...words], { err, environ: ["LC_ALL=C.UTF-8"] });
    process.stream(onText);
    return process;
}

/**
 * Run l4d2ctl and call `onLine` for each line of its output, including stderr if `withErrors`.
 *
 * Returns `done`, a promise that rejects with Refused, Disconnected or Failed, and `close`, which stops listening.
 */
export function follow(words, onLine, { withErrors = false } = {}) {
    let rest = "";
    let last = [];
    let closed = false;

    function emit(line) {
        last = [...last.slice(-9), line];
        if (!closed)
            onLine(line);
    }

    const process = spawn(words, withErrors ? "out" : "message", text => {
        const lines = (rest + text).split("\n");
        rest = lines.pop();
        lines.forEach(emit);
        if (rest.length > LONGEST) {
            emit(rest);
            rest = "";
        }
    });
    const done = new Promise((resolve, reject) => {
        const end = () => {
            if (rest)
                emit(rest);
            rest = "";
        };
        process.then(
            () => {
                end();
                resolve();
            },
            problem => {
                end();
                reject(toError(problem, withErrors ? last.join("\n") : problem.message || ""));
            },
        );
    });
    const close = () => {
        closed = true;
        process.close("cancelled");
    };
    return { done, close };
}

/** Run l4d2ctl and return the JSON that it prints, also if it exits with 1 after that, as `doctor` does. */
export function json(...words) {
    return new Promise((resolve, reject) => {
        let text = "";
        const parsed = problem => {
            try {
                resolve(JSON.parse(text));
            } catch {
                reject(problem ? toError(problem, problem.message || "") : new Failed(`unreadable: ${text.slice(0, 200)}`));
            }
        };
        spawn(words, "message", more => {
            text += more;
        }).then(() => parsed(null), parsed);
    });
}
