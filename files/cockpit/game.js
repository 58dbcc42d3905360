/* #/game: the builds on the host, updates from Steam, rollbacks. */

import { Table, element, setText, textColumn } from "./dom.js";
import { JobFollower } from "./jobs.js";
import { isRunning } from "./status.js";
import { offer, setWords, verbButton } from "./verbs.js";

function servers(ids) {
    return ids.length ? ids.join(", ") : "";
}

const COLUMNS = [
    textColumn("Build", build => build.build),
    textColumn("Current", build => (build.current ? "current" : "")),
    textColumn("Since", build => build.since),
    textColumn("Servers", build => servers(build.servers), "long row"),
    textColumn("Declared for", build => servers(build.declared_for), "long row"),
    textColumn("Smoke test", build => build.trial, "long row"),
    {
        name: "Actions",
        fill: (cell, build) => {
            const words = ["game", "rollback", build.build];
            if (!cell.firstElementChild)
                cell.append(verbButton("Make current", words, { "aria-label": `Make build ${build.build} current` }));
            offer(cell.firstElementChild, build.current ? null : words);
        },
    },
];

export class GameView {
    constructor(main) {
        this.state = element("p", { role: "status" });
        this.button = verbButton("Update", ["game", "update"], { class: "primary" });
        this.table = new Table("Builds on this host", build => build.build, COLUMNS, { nothing: "No build on this host." });
        this.follower = null;
        this.progress = element("section", { class: "card", "aria-label": "Progress", hidden: true });
        main.append(
            element("h1", {}, "Game"),
            element("section", { class: "card", "aria-label": "Update" }, this.state, element("p", { class: "buttons" }, this.button)),
            this.progress,
            element("section", { class: "card", "aria-label": "Builds" }, element("h2", {}, "Builds"), this.table.element),
        );
    }

    update(latest) {
        const current = latest.builds.find(build => build.current);
        setText(this.state, latest.update || (current ? `Build ${current.build} is current.` : "No build is current."));
        const job = latest.jobs.find(each => isRunning(each) && each.words.startsWith("game "));
        setWords(this.button, job ? null : ["game", "update"]);
        this.table.update(latest.builds);
        // The lines stay after the job has ended, until another one begins or the user leaves.
        if (job && this.follower?.number !== String(job.job)) {
            this.follower?.close();
            this.follower = new JobFollower(job.job);
            this.progress.replaceChildren(element("h2", {}, `Job #${job.job}: ${job.words}`), this.follower.element);
            this.progress.hidden = false;
        }
    }

    close() {
        this.follower?.close();
    }
}
