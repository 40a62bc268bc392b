"use strict";

/* The data of the contrast viewer, as cdgen/viewer/encode.py wrote it, and how its numbers and tokens are written. */
const cdgenData = (() => {
    const NEVER = 0; // stored for a log-probability of -Infinity; others are stored as their absolute value plus 1
    const UNITS_PER_NAT = 1000;

    /* Returns the documents of viewer data. The columns of a document are decoded when its tokens are first needed. */
    function read(data) {
        const special = new Set(data.special);
        const pieces = data.pieces.map((piece, index) => ({
            id: data.ids[index],
            text: typeof piece === "string" ? piece : "",
            bytes: typeof piece === "string" ? null : piece[0],
            isSpecial: special.has(index),
        }));
        return data.documents.map((stored) => {
            let tokens = null;
            return {
                ...data.settings[stored.settings],
                steps: data.steps,
                promptLength: stored.prompt_length,
                get tokens() {
                    tokens ??= decode(stored, pieces);
                    return tokens;
                },
                get text() {
                    return this.tokens.map((token) => token.text).join("");
                },
            };
        });
    }

    function decode(stored, pieces) {
        const column = {};
        for (const [name, value] of Object.entries(stored)) {
            if (Array.isArray(value)) column[name] = integers(value);
        }
        const candidates = column.candidate.map((piece, index) => ({
            piece: pieces[piece],
            good: nats(column.good[index]),
            bad: column.bad ? nats(column.bad[index]) : null,
            logprob: nats((column.logprob ?? column.good)[index]),
        }));
        let start = 0;
        let predicted = 0;
        return column.tokens.map((piece, position) => {
            const token = {piece: pieces[piece], text: stored.texts[position] ?? pieces[piece].text, prediction: null};
            const count = column.listed[position];
            if (count > 0) {
                const listed = candidates.slice(start, start + count);
                token.prediction = {
                    chosen: listed[column.chosen[predicted]],
                    best: listed[column.best[predicted]],
                    goodBest: listed[column.good_best[predicted]],
                    entropy: column.entropy[predicted] / UNITS_PER_NAT,
                    candidates: column.candidates[predicted],
                    drawable: (column.drawable ?? column.candidates)[predicted],
                    listed,
                };
                start += count;
                predicted += 1;
            }
            return token;
        });
    }

    function integers([length, bits, base64]) {
        const bytes = atob(base64);
        const values = [];
        let buffer = 0;
        let filled = 0; // bits in the buffer
        for (let index = 0; index < bytes.length; index += 1) {
            buffer = (buffer << 8) | bytes.charCodeAt(index);
            filled += 8;
            while (filled >= bits && values.length < length) {
                filled -= bits;
                values.push(buffer >>> filled);
                buffer &= (1 << filled) - 1;
            }
        }
        return values;
    }

    function nats(units) {
        return units === NEVER ? -Infinity : (1 - units) / UNITS_PER_NAT;
    }

    /* Contrast of a predicted token in nats; null without BAD and for a token that nothing predicts. */
    function contrastOf(token) {
        const chosen = token.prediction?.chosen;
        return chosen && chosen.bad !== null ? chosen.good - chosen.bad : null;
    }

    /* The step of the colour scale, as contrast_step in encode.py. */
    function stepOf(contrast, steps) {
        return Math.sign(contrast) * steps.filter((limit) => Math.abs(contrast) >= limit).length;
    }

    /* A probability in percent with three significant digits. */
    function percent(logprob) {
        if (logprob === -Infinity) return "cannot be drawn";
        const value = 100 * Math.exp(logprob);
        return `${value < 0.001 ? "<\u202f0.001" : value.toPrecision(3)}\u202f%`;
    }

    /* A contrast with its sign. */
    function signed(value) {
        const text = Math.abs(value).toFixed(2);
        return Number(text) === 0 ? text : `${value > 0 ? "+" : "\u2212"}${text}`;
    }

    // Control characters, and characters that change the direction of the text after them or break the line.
    const CONTROLS = /[\p{Cc}\u2028\u2029\u202a-\u202e\u2066-\u2069]/gu;
    const INVISIBLE = /^[\p{C}\p{Z}\ufe00-\ufe0f]+$/u;

    /* A sign for a character that cannot be seen. */
    function signOf(character) {
        const code = character.codePointAt(0);
        const signs = {"\n": "↵", "\t": "⇥", " ": "␣", "\x7f": "␡"};
        if (character in signs) return signs[character];
        if (code < 0x20) return String.fromCodePoint(0x2400 + code);
        return `U+${code.toString(16).toUpperCase().padStart(4, "0")}`;
    }

    /* A token by itself, with visible white space and a dotted circle under a combining mark that has no base. */
    function visible(piece) {
        if (piece.bytes !== null) return piece.bytes;
        if (piece.text === "") return "(empty)";
        if (INVISIBLE.test(piece.text)) {
            return piece.text.replace(/ {9,}|./gsu, (one) => (one.length > 8 ? `␣×${one.length}` : signOf(one)));
        }
        const spaced = piece.text.replace(/^ +| +$/g, (spaces) => "␣".repeat(spaces.length));
        return spaced.replace(/^(␣*)(?=\p{M})/u, "$1◌").replace(CONTROLS, signOf);
    }

    return {read, contrastOf, stepOf, percent, signed, signOf, visible, CONTROLS};
})();
