/* Elements of the page. Text goes in by textContent alone: names, logs and answers come from strangers. */

const LONGEST = 4000; // characters of a line that are shown

/** Create an element; attributes that are null or false are left out. */
export function element(tag, attributes = {}, ...children) {
    const created = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
        if (value !== null && value !== false)
            created.setAttribute(name, value === true ? "" : value);
    }
    created.append(...children);
    return created;
}

/** Set an element's text if it differs, so that a selection in it survives. */
export function setText(target, text) {
    if (target.textContent !== text)
        target.textContent = text;
}

/** Set an attribute if it differs; null removes it. */
export function setAttribute(target, name, value) {
    if (value === null)
        target.removeAttribute(name);
    else if (target.getAttribute(name) !== value)
        target.setAttribute(name, value);
}

/** Make the children of `parent` match `items` in place: those that stay keep focus, selection and scroll position. */
export function reconcile(parent, items, keyOf, make, update = () => {}) {
    const keys = items.map(item => String(keyOf(item)));
    const wanted = new Set(keys);
    const present = new Map();
    for (const child of [...parent.children]) {
        if (wanted.has(child.dataset.key))
            present.set(child.dataset.key, child);
        else
            child.remove();
    }
    let next = parent.firstElementChild;
    items.forEach((item, index) => {
        let child = present.get(keys[index]);
        if (!child) {
            child = make(item);
            child.dataset.key = keys[index];
        }
        if (child === next)
            next = next.nextElementSibling;
        else
            parent.insertBefore(child, next);
        update(child, item);
    });
}

/**
 * A table whose rows `update(items)` sets. If it has many columns, a narrow one shows each row as a card.
 *
 * A column is {name, fill, kind}: `fill(cell, item)` is called for each update. `kind` is "long" for text that may break
 * anywhere, "long row" for such text that has a row of its own in a card. The first column's cells are row headers.
 */
export class Table {
    constructor(caption, keyOf, columns, { nothing = "", kind = columns.length > 3 ? "wide" : "" } = {}) {
        this.columns = columns;
        this.keyOf = keyOf;
        this.body = element("tbody", { role: "rowgroup" });
        const headings = columns.map(({ name }) => element("th", { scope: "col", role: "columnheader" }, name));
        this.table = element(
            "table",
            // A table that CSS shows as cards is no table to a screen reader without these roles.
            { role: "table", class: kind, hidden: true },
            element("caption", { class: "unseen" }, caption),
            element("thead", { role: "rowgroup" }, element("tr", { role: "row" }, ...headings)),
            this.body,
        );
        this.nothing = element("p", { class: "nothing", hidden: true }, nothing);
        this.element = element("div", { class: "table" }, this.table, this.nothing);
    }

    update(items) {
        this.table.hidden = !items.length;
        this.nothing.hidden = Boolean(items.length);
        reconcile(this.body, items, this.keyOf, () => this.row(), (row, item) => {
            this.columns.forEach(({ fill }, index) => {
                const cell = row.children[index];
                fill(cell, item);
                const parts = cell.children.length ? [...cell.children] : [cell];
                cell.classList.toggle("blank", parts.every(part => part.hidden || !part.textContent));
            });
        });
    }

    row() {
        const cells = this.columns.map(({ name, kind = null }, index) =>
            index
                ? element("td", { role: "cell", class: kind, "data-label": name })
                : element("th", { scope: "row", role: "rowheader", class: kind }));
        return element("tr", { role: "row" }, ...cells);
    }
}

/** Return a column that shows text. */
export function textColumn(name, textOf, kind = null) {
    return { name, kind, fill: (cell, item) => setText(cell, textOf(item)) };
}

/** Make a cell's only child a link, and set it in place; `address` is null for text without a link. */
export function setLink(parent, text, address, attributes = {}) {
    const tag = address === null ? "SPAN" : "A";
    let child = parent.firstElementChild;
    if (child?.tagName !== tag) {
        child = element(tag, address === null ? {} : attributes);
        parent.replaceChildren(child);
    }
    setText(child, text);
    if (address !== null)
        setAttribute(child, "href", address);
}

/** The last lines of an output. It scrolls along unless the reader has scrolled up. */
export class Lines {
    constructor(label, most) {
        this.most = most;
        this.waiting = [];
        this.isOld = false;
        this.element = element("div", {
            class: "lines",
            role: "log",
            "aria-live": "off",
            "aria-label": label,
            tabindex: "0",
        });
    }

    add(text, kind = null) {
        if (this.isOld)
            this.clear();
        if (!this.waiting.length)
            requestAnimationFrame(() => this.draw());
        this.waiting.push(element("div", { class: kind }, text.length > LONGEST ? `${text.slice(0, LONGEST)} …` : text));
        if (this.waiting.length > this.most)
            this.waiting.shift();
    }

    draw() {
        const { element: box, most } = this;
        const atEnd = box.scrollHeight - box.scrollTop - box.clientHeight < 8;
        box.append(...this.waiting);
        this.waiting = [];
        while (box.children.length > most)
            box.firstChild.remove();
        if (atEnd)
            box.scrollTop = box.scrollHeight;
    }

    /** Keep what is there until the next line: the output is read again from its beginning. */
    readAgain() {
        this.isOld = true;
    }

    clear() {
        this.isOld = false;
        this.waiting = [];
        this.element.replaceChildren();
    }
}

/** Return a list of names and values whose `set(name, text)` shows a value, or hides it if it is empty. */
export class Facts {
    constructor() {
        this.element = element("dl", { class: "facts" });
        this.values = new Map();
    }

    /** Return the element of a value; it is created at the first call. */
    value(name) {
        if (!this.values.has(name)) {
            const value = element("dd");
            this.values.set(name, value);
            this.element.append(element("div", {}, element("dt", {}, name), value));
        }
        return this.values.get(name);
    }

    set(name, text) {
        const value = this.value(name);
        setText(value, text);
        value.parentElement.hidden = !text;
    }
}

const handlers = new Map();

/** Call `handler(target, event)` for events in elements with the attribute data-TYPE="name", whenever they were made. */
export function on(type, name, handler) {
    if (!handlers.has(type)) {
        handlers.set(type, new Map());
        document.addEventListener(type, event => {
            const target = event.target.closest?.(`[data-${type}]`);
            if (target && target.getAttribute("aria-disabled") !== "true")
                handlers.get(type).get(target.dataset[type])?.(target, event);
        });
    }
    handlers.get(type).set(name, handler);
}

/** Show bytes as people read them. */
export function bytes(count) {
    if (count === null || count === undefined)
        return "";
    return count < 2 ** 30 ? `${Math.round(count / 2 ** 20)} MiB` : `${(count / 2 ** 30).toFixed(1)} GiB`;
}

/** Show a time, given in seconds since the epoch, in the browser's time zone. */
export function clock(seconds) {
    const at = new Date(seconds * 1000);
    const two = number => String(number).padStart(2, "0");
    const day = [at.getFullYear(), two(at.getMonth() + 1), two(at.getDate())].join("-");
    return `${day} ${[at.getHours(), at.getMinutes(), at.getSeconds()].map(two).join(":")}`;
}

/** Show seconds with at most two decimals: 1.3 s. */
export function duration(seconds) {
    return `${Number(Number(seconds).toFixed(2))} s`;
}

export function plural(count, noun) {
    return `${count} ${noun}${count === 1 ? "" : "s"}`;
}
