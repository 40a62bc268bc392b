"use strict";

// Buttons that copy a command or a citation, and tab stops of tables. Without scripts, text can be selected as usual.
(() => {
    const label = "Copy";

    function select(element) {
        const selection = getSelection();
        selection.removeAllRanges();
        selection.selectAllChildren(element);
    }

    async function copy(text, button) {
        try {
            await navigator.clipboard.writeText(text.textContent);
            button.textContent = "Copied";
        } catch {
            select(text); // the browser does not allow it: the reader copies what is selected
            button.textContent = "Selected";
        }
        setTimeout(() => { button.textContent = label; }, 2000);
    }

    // Only a table that scrolls needs to be a tab stop.
    const tables = new ResizeObserver((changes) => {
        for (const {target} of changes) {
            if (target.scrollWidth > target.clientWidth) target.tabIndex = 0;
            else target.removeAttribute("tabindex");
        }
    });
    for (const table of document.querySelectorAll(".scroll")) tables.observe(table);

    for (const block of document.querySelectorAll("pre[data-copy]")) {
        const button = document.createElement("button");
        button.type = "button";
        button.className = "copy";
        button.textContent = label;
        button.setAttribute("aria-live", "polite");
        const frame = document.createElement("div");
        frame.className = "copied";
        block.replaceWith(frame);
        frame.append(block, button);
        button.addEventListener("click", () => copy(block.firstElementChild, button));
    }
})();
