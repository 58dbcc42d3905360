// Runs before the first paint, so that a dark page does not flash white.
"use strict";

(() => {
    const system = window.matchMedia("(prefers-color-scheme: dark)");

    function apply() {
        const style = localStorage.getItem("shell:style") || "auto";
        const dark = style === "dark" || (style === "auto" && system.matches);
        document.documentElement.dataset.theme = dark ? "dark" : "light";
    }

    apply();
    system.addEventListener("change", apply);
    // Cockpit's own document writes the style; this event tells the other documents.
    window.addEventListener("storage", apply);
})();
