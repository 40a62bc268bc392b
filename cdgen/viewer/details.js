"use strict";

/* The panel beside the text: what both models predicted at one token. */
const cdgenDetails = (() => {
    const {contrastOf, stepOf, percent, signed, visible} = cdgenData;

    function create(tag, name, ...children) {
        const element = document.createElement(tag);
        if (name) element.className = name;
        element.append(...children);
        return element;
    }

    /* A token by itself. */
    function pieceElement(piece) {
        const kind = piece.bytes !== null ? " viewer-bytes" : piece.isSpecial ? " viewer-special" : "";
        return create("bdi", `viewer-piece${kind}`, visible(piece));
    }

    /* The elements of the panel. */
    function details(token, index, view, length) {
        const prompt = index < view.promptLength ? "prompt · " : "";
        const place = `token ${index + 1} of ${length} · ${prompt}id ${token.piece.id}`;
        const head = create("p", "viewer-head", pieceElement(token.piece), " ", create("span", "viewer-note", place));
        const {prediction} = token;
        if (!prediction) return [head, create("p", "viewer-note", "The first token is not predicted.")];
        return [head, figures(token, view), sentences(prediction), table(prediction, view), counts(prediction, view)];
    }

    function figures(token, view) {
        const {chosen} = token.prediction;
        const list = create("dl", "viewer-figures");
        const add = (name, value, kind = "") => {
            list.append(create("div", "", create("dt", "", name), create("dd", kind, value)));
        };
        const contrast = contrastOf(token);
        if (contrast !== null) {
            add("contrast", signed(contrast));
            list.firstChild.lastChild.dataset.step = stepOf(contrast, view.steps);
        }
        add("GOOD", percent(chosen.good));
        if (chosen.bad !== null) add("BAD", percent(chosen.bad));
        add("sampling", percent(chosen.logprob), chosen.logprob === -Infinity ? "viewer-never" : "");
        return list;
    }

    /* What greedy decoding and GOOD alone would have preferred. */
    function sentences({chosen, best, goodBest, drawable}) {
        const greedy = create("p", "");
        if (drawable === 0) greedy.append("No token can be drawn here: all are banned.");
        else if (best === chosen) greedy.append("Greedy decoding takes this token.");
        else greedy.append("Greedy decoding takes ", pieceElement(best.piece), ` (${percent(best.logprob)}).`);
        const good = create("p", "");
        if (goodBest === chosen) good.append("GOOD’s most probable token is this one.");
        else {
            const probability = ` (${percent(goodBest.good)}).`;
            good.append("GOOD’s most probable token is ", pieceElement(goodBest.piece), probability);
        }
        return create("div", "viewer-sentences", greedy, good);
    }

    function table({chosen, best, goodBest, listed, drawable}, view) {
        const titles = ["token", "GOOD", ...(view.bad === null ? [] : ["BAD"]), "sampling"];
        const head = create("tr", "", ...titles.map((title) => create("th", "", title)));
        for (const cell of head.cells) cell.scope = "col";
        const rows = listed.map((one) => {
            const name = create("th", "", pieceElement(one.piece));
            name.scope = "row";
            const greedy = drawable > 0 ? best : null;
            const marks = [[chosen, "in the text"], [greedy, "greedy"], [goodBest, "GOOD’s best"]];
            const labels = marks.filter(([marked]) => marked === one).map(([, label]) => label);
            name.append(" ", create("span", "viewer-label", labels.join(", ")));
            const values = [one.good, ...(view.bad === null ? [] : [one.bad]), one.logprob];
            return create("tr", one === chosen ? "viewer-chosen" : "", name, ...values.map(bar));
        });
        const caption = create("caption", "visually-hidden", "Tokens that could have come next");
        return create("table", "viewer-candidates", caption, create("thead", "", head), create("tbody", "", ...rows));
    }

    function bar(logprob) {
        const cell = create("td", logprob === -Infinity ? "viewer-never" : "", percent(logprob));
        cell.style.setProperty("--share", Math.exp(logprob).toFixed(4));
        return cell;
    }

    /* How many candidates there are, how many tokens can be drawn if those are others, and how many of the latter the
       table leaves out. */
    function counts({listed, candidates, drawable, entropy}, view) {
        const parts = [counted(candidates, "candidate")];
        if (drawable !== candidates) parts.push(`${counted(drawable, "token")} can be drawn`);
        const hidden = drawable - listed.filter((one) => one.logprob > -Infinity).length;
        if (hidden > 0) parts.push(`${hidden.toLocaleString("en")} of them not listed`);
        parts.push(`entropy of GOOD ${entropy.toFixed(2)} nats`);
        if (view.params.temperature === 0) parts.push("temperature 0 takes the best score; sampling is at temperature 1");
        return create("p", "viewer-note", parts.join(" · "));
    }

    function counted(number, noun) {
        return `${number.toLocaleString("en")} ${noun}${number === 1 ? "" : "s"}`;
    }

    /* The name of a token for a screen reader. */
    function spoken(token) {
        return token.piece.bytes === null ? visible(token.piece) : `bytes ${token.piece.bytes} ${token.text}`;
    }

    /* What a screen reader says when another token is selected. */
    function summary(token) {
        const {prediction} = token;
        if (!prediction) return `${spoken(token)}: not predicted`;
        const contrast = contrastOf(token);
        const {good, bad, logprob} = prediction.chosen;
        const contrasted = contrast === null ? "" : `contrast ${signed(contrast)}, BAD ${percent(bad)}, `;
        const drawn = logprob === -Infinity ? percent(logprob) : `sampling ${percent(logprob)}`;
        return `${spoken(token)}: ${contrasted}GOOD ${percent(good)}, ${drawn}`;
    }

    return {create, details, spoken, summary};
})();
