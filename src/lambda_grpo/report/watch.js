"use strict";
// `lambda-grpo watch`: loads the page anew when the run has something new, and puts back what the reader had
// open. It asks for `/changed` only: the version of the page that the server would send now.

(() => {
  const EVERY = 3000; // milliseconds
  const KEY = "lambda-grpo watch";
  const FIELDS = ["search", "pick-run", "pick-step", "sort", "find"];
  const at = (id) => document.getElementById(id);

  function title(item) {
    const run = item.querySelector(".dot")?.title ?? "";
    return `${run} ${item.querySelector(".entry-head").textContent}`;
  }

  function keep() {
    const chosen = document.querySelector('#groups [aria-selected="true"]');
    const kept = {
      open: [...document.querySelectorAll("details")].map((details) => details.open),
      fields: FIELDS.map((id) => at(id).value),
      credit: document.querySelector("input[name=credit]:checked")?.value,
      group: chosen && title(chosen),
      completion: at("reader-title").textContent.match(/^Completion (\d+)/)?.[1],
      fold: at("fold").textContent,
      read: at("completion").scrollTop,
      focus: document.activeElement?.id,
      scroll: scrollY,
    };
    sessionStorage.setItem(KEY, JSON.stringify(kept));
  }

  function restore() {
    const kept = JSON.parse(sessionStorage.getItem(KEY));
    sessionStorage.removeItem(KEY);
    if (!kept) return;
    document.querySelectorAll("details").forEach((details, i) => (details.open = kept.open[i] ?? details.open));
    FIELDS.forEach((id, i) => {
      at(id).value = kept.fields[i];
      if (at(id).selectedIndex === -1) at(id).value = ""; // that run or step is no longer shown
      at(id).dispatchEvent(new Event("input"));
    });
    const item = [...at("groups").children].find((entry) => title(entry) === kept.group);
    if (item) {
      item.click();
      const leaf = document.querySelector(`.leaf[data-completion="${kept.completion}"]`);
      leaf?.dispatchEvent(new MouseEvent("click", { bubbles: true }));
    }
    const credit = document.querySelector(`input[name=credit][value="${kept.credit}"]`);
    if (credit && !credit.checked) credit.click();
    if (at("fold").textContent !== kept.fold) at("fold").click();
    at("completion").scrollTop = kept.read;
    if (kept.focus) at(kept.focus)?.focus({ preventScroll: true });
    requestAnimationFrame(() => scrollTo(0, kept.scroll));
  }

  async function isNew() {
    try {
      const answer = await fetch("/changed", { cache: "no-store" });
      return answer.ok && (await answer.text()) !== document.body.dataset.version;
    } catch {
      return false; // the command has ended; it may be started again
    }
  }

  async function look() {
    const reading = document.hidden || String(getSelection()); // a reload would lose the selected text
    if (!reading && (await isNew())) {
      if (at("explorer")) keep();
      location.reload();
    } else setTimeout(look, EVERY);
  }

  if (at("explorer")) restore();
  setTimeout(look, EVERY);
})();
