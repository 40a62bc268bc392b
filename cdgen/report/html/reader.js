// The section "Read it": a list of seeds with a search box and filters, and the chosen seed's documents side by side.
//
// The page holds the documents as JSON (written by reader.py) and their explanations as viewer data. Text reaches the
// page through textContent alone. A document is put into the contrast viewer when its seed is chosen.
"use strict";

(() => {
    const root = document.getElementById("reader");
    if (!root) return; // a report without documents
    const byId = (id) => document.getElementById(id);
    const parsed = (id) => JSON.parse(byId(id).textContent);

    const {columns, entries} = parsed("documents");
    const explained = cdgenViewer.read(parsed("viewer-data"));
    const FRAGMENT = "#read=";
    const AROUND = 40; // characters shown before and after a match in the list

    const search = byId("reader-search");
    const seed = byId("reader-seed");
    const shortest = byId("reader-shortest");
    const longest = byId("reader-longest");
    const reason = byId("reader-reason");
    const boxes = [...root.querySelectorAll("input[name=column]")];
    const list = byId("reader-list");
    const status = byId("reader-status");
    const title = byId("reader-title");
    const place = byId("reader-place");
    const shown = byId("reader-documents");

    const noun = entries.every((entry) => entry.documents.length > 1) ? "seeds" : "entries";
    let listed = entries; // the entries that match, in order
    let current = null; // the chosen entry
    let options = new Map(); // the list's elements by entry

    function element(name, className, text) {
        const made = document.createElement(name);
        if (className) made.className = className;
        if (text !== undefined) made.textContent = text;
        return made;
    }

    // ---- search and filters

    /** A regular expression folds case without changing the length of the text, unlike toLowerCase. */
    function patternOf(input) {
        const words = input.value.normalize("NFC").trim();
        return words ? new RegExp(words.replace(/[\\^$.*+?()[\]{}|/]/g, "\\$&"), "giu") : null;
    }

    function filters() {
        const bound = (input, none) => (Number.isNaN(input.valueAsNumber) ? none : input.valueAsNumber); // NaN if empty
        return {
            pattern: patternOf(search),
            seed: patternOf(seed),
            least: bound(shortest, 0),
            most: bound(longest, Infinity),
            reason: reason.value,
            columns: new Set(boxes.filter((box) => box.checked).map((box) => Number(box.value))),
        };
    }

    function matches(one, wanted) {
        return (
            wanted.columns.has(one.column) &&
            one.words >= wanted.least &&
            one.words <= wanted.most &&
            (wanted.reason === "any" || one.finish_reason === wanted.reason) &&
            (wanted.pattern === null || one.folded.search(wanted.pattern) >= 0)
        );
    }

    function countIn(text, pattern) {
        return pattern === null ? 0 : [...text.matchAll(pattern)].length;
    }

    function update() {
        const wanted = filters();
        const found = new Map();
        for (const entry of entries) {
            if (wanted.seed !== null && entry.id.normalize("NFC").search(wanted.seed) < 0) continue;
            const documents = entry.documents.filter((one) => matches(one, wanted));
            if (documents.length) found.set(entry, documents);
        }
        listed = [...found.keys()];
        fillList(found, wanted.pattern);
        const all = [...found.values()].flat();
        const times = all.reduce((sum, one) => sum + countIn(one.folded, wanted.pattern), 0);
        const each = times === 1 ? "1 match" : `${times} matches`;
        status.textContent = `${listed.length} of ${entries.length} ${noun}` + (wanted.pattern ? `, ${each}` : "");
        choose(listed.includes(current) ? current : (listed[0] ?? null), wanted);
    }

    // ---- the list

    function fillList(found, pattern) {
        options = new Map();
        list.replaceChildren();
        let group = null;
        for (const [entry, documents] of found) {
            if (group === null || group.dataset.name !== entry.group) {
                group = element("div");
                group.dataset.name = entry.group;
                group.setAttribute("role", "group");
                group.setAttribute("aria-label", entry.group);
                const heading = element("div", "reader-group", entry.group);
                heading.setAttribute("aria-hidden", "true"); // the group's label says the same
                group.append(heading);
                list.append(group);
            }
            const option = element("div", "reader-option");
            option.id = `reader-option-${options.size}`;
            option.setAttribute("role", "option");
            option.append(startOf(entry, pattern), ...(pattern ? [matchesOf(documents, pattern)] : []));
            option.addEventListener("click", () => choose(entry, filters(), true));
            options.set(entry, option);
            group.append(option);
        }
    }

    function startOf(entry, pattern) {
        const start = element("span", "reader-start");
        start.dir = "auto";
        start.append(marked(entry.start, pattern));
        return start;
    }

    /** The first match with the words around it, and the number of all matches. */
    function matchesOf(documents, pattern) {
        const {folded: text, column} = documents[0];
        const first = text.matchAll(pattern).next().value;
        const from = Math.max(0, first.index - AROUND);
        const to = first.index + first[0].length + AROUND;
        const times = documents.reduce((sum, one) => sum + countIn(one.folded, pattern), 0);
        const line = element("span", "reader-match");
        const excerpt = element("bdi");
        excerpt.append(from > 0 ? "…" : "", marked(whole(text, from, to), pattern), to < text.length ? "…" : "");
        const name = element("bdi", "", columns[column].label);
        line.append(name, ": ", excerpt, ` (${times === 1 ? "1 match" : `${times} matches`})`);
        return line;
    }

    /** Part of a text that does not begin or end inside a surrogate pair. */
    function whole(text, from, to) {
        const isLow = (at) => /[\uDC00-\uDFFF]/.test(text.charAt(at));
        return text.slice(isLow(from) ? from + 1 : from, isLow(to) ? to + 1 : to);
    }

    function marked(text, pattern) {
        const made = document.createDocumentFragment();
        let end = 0;
        for (const match of pattern ? text.matchAll(pattern) : []) {
            made.append(text.slice(end, match.index), element("mark", "", match[0]));
            end = match.index + match[0].length;
        }
        made.append(text.slice(end));
        return made;
    }

    // ---- the chosen entry

    /** Show an entry; `byReader` keeps it in the address, so that a link leads back to it. */
    function choose(entry, wanted, byReader = false) {
        for (const option of options.values()) option.setAttribute("aria-selected", "false");
        const option = options.get(entry);
        if (option) {
            option.setAttribute("aria-selected", "true");
            list.setAttribute("aria-activedescendant", option.id);
            scrollInList(option);
        } else {
            list.removeAttribute("aria-activedescendant");
        }
        if (byReader) history.replaceState(null, "", address(entry));
        title.textContent = entry ? `${entry.group}: ${entry.id}` : "No document matches";
        const at = listed.indexOf(entry);
        place.textContent = entry ? `${at + 1} of ${listed.length}` : "";
        byId("reader-previous").setAttribute("aria-disabled", String(at <= 0));
        byId("reader-next").setAttribute("aria-disabled", String(at < 0 || at === listed.length - 1));
        const documents = entry ? entry.documents.filter((one) => wanted.columns.has(one.column)) : [];
        showDocuments(documents, wanted);
        current = entry;
    }

    function step(by) {
        const at = listed.indexOf(current) + by;
        if (at >= 0 && at < listed.length) choose(listed[at], filters(), true);
    }

    /** Scroll the list alone: scrollIntoView would move the page as well. */
    function scrollInList(option) {
        const [inner, outer] = [option.getBoundingClientRect(), list.getBoundingClientRect()];
        if (inner.top < outer.top) list.scrollTop -= outer.top - inner.top;
        if (inner.bottom > outer.bottom) list.scrollTop += inner.bottom - outer.bottom;
    }

    function showDocuments(documents, wanted) {
        const kept = new Map([...shown.children].map((article) => [article.document, article]));
        shown.replaceChildren(...documents.map((one) => kept.get(one) ?? articleOf(one)));
        for (const article of shown.children) {
            article.querySelector(".reader-unmatched").hidden = matches(article.document, wanted);
        }
    }

    function articleOf(one) {
        const column = columns[one.column];
        const article = element("article", "reader-document");
        article.document = one;
        const heading = element("h4");
        heading.append(element("bdi", "", column.label));
        const unmatched = element("p", "reader-unmatched", "Does not match the search and the filters.");
        const body = element("div", "reader-body");
        if (one.explained === null) body.append(plain(one.text));
        else mountIn(body, one);
        if (one.left_out) {
            const more = one.left_out.toLocaleString("en");
            body.append(element("p", "reader-note", `${more} more characters are left out.`));
        }
        article.append(heading, factsOf(one, column), unmatched, body);
        return article;
    }

    /** Put a document into the contrast viewer. What is not explained follows its text, above the details. */
    function mountIn(body, one) {
        const view = explained[one.explained];
        const viewer = element("div");
        body.append(viewer);
        cdgenViewer.mount(viewer, view, {legend: view.bad === null, name: columns[one.column].label});
        if (one.rest) {
            const note = `Only the first ${view.tokens.length} tokens are scored. The rest of the text:`;
            const rest = plain(one.text.slice(-one.rest));
            viewer.querySelector(".viewer-reading").append(element("p", "reader-note", note), rest);
        }
    }

    function plain(text) {
        const made = element("p", "viewer-plain reader-text", text);
        made.dir = "auto";
        return made;
    }

    function factsOf(one, column) {
        const facts = element("dl", "reader-facts");
        const add = (name, value) => {
            const pair = element("div");
            const described = element("dd");
            described.append(element("bdi", "", value));
            pair.append(element("dt", "", name), described);
            facts.append(pair);
        };
        if (column.name !== column.label) add("corpus", column.name);
        if (column.good) add("GOOD", column.good);
        if (column.bad) add("BAD", column.bad);
        if (column.scored_with) add("scored with", column.scored_with);
        const words = `${one.words.toLocaleString("en")} words`;
        add("length", one.tokens === null ? words : `${words}, ${one.tokens} tokens`);
        if (one.finish_reason) add("finish reason", one.finish_reason);
        return facts;
    }

    // ---- the address

    const address = (entry) => FRAGMENT + encodeURIComponent(entry.id);

    /** Choose the entry that the address names, even if filters hide it. */
    function follow() {
        const named = entries.find((entry) => address(entry) === location.hash);
        if (!named) return;
        if (!listed.includes(named)) {
            byId("reader-filters").reset();
            update();
        }
        choose(named, filters());
        root.parentElement.scrollIntoView();
    }

    // ---- events

    function onKey(event) {
        const at = listed.indexOf(current);
        const target = {ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: listed.length - 1}[event.key];
        if (target === undefined || event.ctrlKey || event.altKey || event.metaKey) return;
        event.preventDefault();
        if (target >= 0 && target < listed.length) choose(listed[target], filters(), true);
    }

    // The same letters may be stored in several ways; the search compares one of them.
    for (const entry of entries) for (const one of entry.documents) one.folded = one.text.normalize("NFC");
    const coloured = explained.find((one) => one.bad !== null);
    if (coloured) byId("reader-legend").append(cdgenViewer.legend(coloured));
    byId("reader-filters").addEventListener("input", update);
    byId("reader-filters").addEventListener("submit", (event) => event.preventDefault());
    byId("reader-filters").addEventListener("reset", () => setTimeout(update)); // the fields change after the event
    list.addEventListener("keydown", onKey);
    byId("reader-previous").addEventListener("click", () => step(-1));
    byId("reader-next").addEventListener("click", () => step(1));
    addEventListener("hashchange", follow);
    root.hidden = false;
    update();
    follow();
})();
