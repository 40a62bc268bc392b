"use strict";

/* The contrast viewer. `read` decodes viewer data; `mount` builds the viewer of one of its documents; `legend` explains
   the colours. Text from models reaches the page as text nodes and attributes only. */
const cdgenViewer = (() => {
    const {read, contrastOf, stepOf, signOf, CONTROLS} = cdgenData;
    const {create, details, spoken, summary} = cdgenDetails;
    const KEYS = {ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity};

    function svg(tag, attributes) {
        const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
        for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
        return element;
    }

    /* Appends the tokens to the text. CSS draws signs and bytes, so copied text is the text itself. A line break at the
       end of a token stands after its element, whose outline would otherwise reach into the next line. */
    function appendTokens(text, view) {
        return view.tokens.map((token, index) => {
            const body = token.text.replace(/\n$/, "");
            const element = create("span", "viewer-token");
            element.dataset.index = index;
            element.tabIndex = -1;
            element.setAttribute("role", "option");
            const contrast = contrastOf(token);
            if (contrast !== null) element.dataset.step = stepOf(contrast, view.steps);
            if (index < view.promptLength) element.classList.add("viewer-prompt");
            if (token.piece.isSpecial) element.classList.add("viewer-special");
            if (token.piece.bytes !== null) {
                element.classList.add("viewer-bytes");
                element.dataset.bytes = token.piece.bytes;
            }
            appendText(element, body);
            if (body !== token.text) element.append(sign("\n", ""));
            // Names of tokens whose text cannot be heard.
            if (/\p{C}|^\s*$/u.test(token.text)) element.setAttribute("aria-label", spoken(token));
            text.append(element, token.text.slice(body.length));
            return element;
        });
    }

    function appendText(element, text) {
        let start = 0;
        for (const {0: character, index} of text.matchAll(CONTROLS)) {
            if (character === "\t") continue;
            element.append(text.slice(start, index), sign(character, character));
            start = index + 1;
        }
        element.append(text.slice(start));
    }

    function sign(character, content) {
        const element = create("span", "viewer-sign", content);
        element.dataset.sign = signOf(character);
        return element;
    }

    /* The colour scale with its numbers, and how to use the viewer. */
    function legend(view) {
        const element = create("div", "viewer-legend");
        const note = (...content) => element.append(create("p", "viewer-note", ...content));
        if (view.bad === null) {
            note("There is no BAD, so tokens have no contrast and no colour.");
        } else {
            const ends = ["← BAD prefers", "GOOD prefers →"].map((end) => create("span", "", end));
            element.append(create("p", "viewer-ends", ...ends), scale(view.steps));
            const logs = ["log p", create("sub", "", "GOOD"), " − log p", create("sub", "", "BAD")];
            const example = "At +1, GOOD gives the token 2.7 times the probability that BAD gives it.";
            note("Contrast: ", ...logs, `, in nats. ${example}`);
        }
        const prompt = view.tokens.slice(0, view.promptLength).some((token) => !token.piece.isSpecial);
        const underlined = prompt ? [create("span", "viewer-prompt", "Underlined"), ": the prompt. "] : [];
        const keys = ["←", "→", "Home", "End"].flatMap((name) => [create("kbd", "", name), " "]);
        note("Candidates: tokens to which GOOD gives at least alpha times the probability of its most probable token.");
        note(...underlined, "Point at a token or tap it to see what else could have come next.");
        const leaving = create("kbd", "", "Esc");
        element.append(create("p", "viewer-note viewer-hint", ...keys, "move in reading order, ", leaving, " leaves."));
        return element;
    }

    function scale(steps) {
        const shown = {0.25: "¼", 0.5: "½"};
        const list = create("ol", "viewer-scale");
        for (let step = -steps.length; step <= steps.length; step += 1) {
            const limit = steps[Math.abs(step) - 1] ?? 0;
            const outer = Math.abs(step) === steps.length ? (step < 0 ? "≤" : "≥") : "";
            const item = create("li", "", `${outer}${step < 0 ? "−" : ""}${shown[limit] ?? limit}`);
            item.dataset.step = step;
            list.append(item);
        }
        return list;
    }

    /* Entropy and number of candidates along the text. Returns the element and a function that marks a token. */
    function strip(tokens, select) {
        const predictions = tokens.map((token) => token.prediction ?? {entropy: 0, candidates: 0});
        const maximum = Math.max(1e-9, ...predictions.map((one) => one.entropy));
        const most = Math.max(1, ...predictions.map((one) => one.candidates));
        const entropies = predictions.map((one) => one.entropy / maximum);
        const counts = predictions.map((one) => Math.log1p(one.candidates) / Math.log1p(most));
        const rows = [
            plot("entropy", `Entropy of GOOD, 0 to ${maximum.toFixed(1)} nats`, entropies),
            plot("counts", `Candidates, up to ${most.toLocaleString("en")}, logarithmic`, counts),
        ];
        const element = create("div", "viewer-strip", ...rows.map((row) => row.element));
        const at = (event) => {
            const box = event.target.closest("svg")?.getBoundingClientRect();
            const share = box ? (event.clientX - box.left) / box.width : -1;
            return share >= 0 && share < 1 ? Math.floor(share * tokens.length) : null;
        };
        element.addEventListener("click", (event) => at(event) !== null && select(at(event)));
        return {element, mark: (index) => rows.forEach((row) => row.mark(index))};
    }

    /* One row of the strip: heights between 0 and 1 as a stepped area. */
    function plot(name, title, heights) {
        const length = heights.length;
        const box = {viewBox: `0 0 ${length} 1`, preserveAspectRatio: "none"};
        const picture = svg("svg", {...box, role: "img", "aria-label": title});
        const points = heights.map((height, index) => `V${(1 - height).toFixed(3)}H${index + 1}`).join("");
        picture.append(svg("path", {class: `viewer-${name}`, d: `M0 1${points}V1Z`}));
        const cursor = svg("rect", {class: "viewer-cursor", y: 0, height: 1, width: Math.max(1, length / 250)});
        picture.append(cursor);
        const mark = (index) => cursor.setAttribute("x", index + 0.5 - cursor.getAttribute("width") / 2);
        return {element: create("figure", "", create("figcaption", "", title), picture), mark};
    }

    /* Builds the viewer of a document in an element, whose content it replaces. Without `legend` the page has its own.
       A page with several viewers gives each a `name` for screen readers. */
    function mount(element, view, {legend: hasLegend = true, name = ""} = {}) {
        const named = (label) => (name ? `${label}, ${name}` : label);
        const {tokens} = view;
        const text = create("div", "viewer-text");
        const spans = appendTokens(text, view);
        text.dir = "auto";
        text.setAttribute("role", "listbox");
        text.setAttribute("aria-label", named("Tokens"));
        text.setAttribute("aria-orientation", "horizontal");
        const panel = create("section", "viewer-details");
        panel.setAttribute("aria-label", named("Details of the token"));
        const close = create("button", "viewer-close", "×");
        close.type = "button";
        close.setAttribute("aria-label", "Close the details");
        const status = create("p", "visually-hidden");
        status.setAttribute("aria-live", "polite");
        const state = {shown: null, chosen: null};

        function show(index) {
            if (index === null || index === state.shown) return;
            const before = spans[state.shown];
            if (before) {
                before.removeAttribute("aria-selected");
                before.tabIndex = -1;
            }
            spans[index].setAttribute("aria-selected", "true");
            spans[index].tabIndex = 0;
            state.shown = index;
            panel.replaceChildren(close, ...details(tokens[index], index, view, tokens.length));
            panel.scrollTop = 0;
            allowScrolling();
            lane.mark(index);
        }

        /* A panel that scrolls is a tab stop of its own, so that the keyboard can scroll it. */
        function allowScrolling() {
            if (panel.scrollHeight > panel.clientHeight) panel.tabIndex = 0;
            else panel.removeAttribute("tabindex");
        }

        function choose(index) {
            show(index);
            state.chosen = index;
            body.classList.add("viewer-open");
            uncover(spans[index]);
            status.textContent = summary(tokens[index]);
        }

        /* Scrolls the page if the panel covers a token. */
        function uncover(span) {
            const [token, sheet] = [span.getBoundingClientRect(), panel.getBoundingClientRect()];
            const isBeside = token.right <= sheet.left || token.left >= sheet.right;
            const isAbove = token.bottom <= sheet.top;
            if (!isBeside && !isAbove) span.scrollIntoView({block: "nearest"});
        }

        function leave() {
            state.chosen = null;
            body.classList.remove("viewer-open");
        }

        const lane = strip(tokens, choose);
        listen(text, spans, state, {show, choose, leave});
        close.addEventListener("click", leave);
        const reading = create("div", "viewer-reading", lane.element, text);
        const body = create("div", "viewer-body", reading, panel, status);
        element.classList.add("viewer");
        element.replaceChildren(...(hasLegend ? [legend(view)] : []), body);
        show(Math.min(Math.max(1, view.promptLength), tokens.length - 1));
        new ResizeObserver(allowScrolling).observe(panel);
    }

    /* The pointer shows a token while it is over it; a click, a tap or the keyboard chooses it until another is chosen.
       Once the pointer leaves the text, the chosen token is shown again. One listener per event serves all tokens. */
    function listen(text, spans, state, {show, choose, leave}) {
        const indexOf = (event) => {
            const span = event.target.closest?.(".viewer-token");
            return span ? Number(span.dataset.index) : null;
        };
        const chooseAt = (event) => indexOf(event) !== null && choose(indexOf(event));
        text.addEventListener("pointerover", (event) => event.pointerType === "mouse" && show(indexOf(event)));
        text.addEventListener("pointerleave", () => show(state.chosen));
        text.addEventListener("focusin", chooseAt);
        text.addEventListener("click", chooseAt);
        text.addEventListener("keydown", (event) => {
            if (event.altKey || event.ctrlKey || event.metaKey || event.shiftKey) return;
            if (event.key === "Escape") {
                leave();
                event.target.blur();
            } else if (event.key in KEYS) {
                event.preventDefault();
                const index = Math.min(Math.max(0, indexOf(event) + KEYS[event.key]), spans.length - 1);
                spans[index].focus();
            }
        });
    }

    return {read, mount, legend};
})();
