"use strict";
// The reader: the prompt, and one completion as the steps it consists of. Steps that other completions share fold
// to one line each where a completion is long, so that what is its own comes into sight.

const Reader = (() => {
  const FOLD = 4000; // characters of a completion from which its shared steps fold
  const PROMPT = 1500; // characters of a prompt shown before it folds
  const LONG = 200; // characters of a step from which it is set as a passage of its own
  const MOST = 60000; // characters of a step shown at once
  // Chat markers and tags, beginnings of turns as the reader joins them, fences of code, boxed answers.
  const MARKS = /<\|im_start\|>\w{0,20}|<\|[^|<>\s]{1,40}\|>|<\/?[a-z][a-z_]{0,23}>|^\[(?:system|developer|user|assistant|tool)\]|^```.*$|\\boxed\{[^{}]*\}/gim;
  const TURN = /^(?:<\|(?:im_start|start_header_id|user|assistant|system|tool)\b|\[)/i;
  const at = (id) => document.getElementById(id);
  let state, on;
  let folds = null; // whether shared steps fold, as the button says; null: by the completion's length
  let own = new Map(); // the steps of this group that were folded or unfolded one by one
  let whole = new Set(); // the steps that are shown with all their characters, however many

  /** Join the reader to the explorer: `on` = { point, leave, select }. */
  function start(shared, actions) {
    [state, on] = [shared, actions];
    at("fold").addEventListener("click", toggleAll);
  }

  /** Forget what was folded in another group, and show this group's prompt. */
  function pick() {
    [own, whole] = [new Map(), new Set()];
    const text = state.group.prompt || "(the file holds no prompt)";
    const show = (all) => {
      const part = write(Show.make("bdi", "part"), all ? text : Show.cut(text, PROMPT), []);
      at("prompt").replaceChildren(part);
      if (!all) part.after(unfold(text.length, () => show(true)));
    };
    show(text.length <= PROMPT * 1.2);
  }

  function unfold(length, then) {
    const button = Show.make("button", "unfold", `Show all ${Show.number(length)} characters`);
    button.type = "button";
    button.addEventListener("click", then);
    return button;
  }

  /** The steps of a completion from the root on. */
  function path(group, completion) {
    const nodes = [];
    for (let n = group.leaf[completion]; n >= 0; n = group.nodes.parent[n]) nodes.unshift(n);
    return nodes;
  }

  const isShared = (n) => state.group.nodes.size[n] > 1 && state.group.nodes.text[n] !== "";

  function foldsAll(nodes) {
    const length = nodes.reduce((sum, n) => sum + state.group.nodes.text[n].length, 0);
    return folds ?? length > FOLD;
  }

  const isFolded = (n, all) => isShared(n) && (own.get(n) ?? all);

  /** Show the completion at hand. */
  function show() {
    const { group, completion } = state;
    heading(group, completion);
    const nodes = path(group, completion);
    const all = foldsAll(nodes);
    const marks = Find.inside(completion);
    let from = 0;
    const shown = nodes.map((n) => {
      const text = group.nodes.text[n];
      const made = isFolded(n, all) ? folded(n, marks, from) : step(n, clip(marks, from, from + text.length));
      from += text.length;
      return made;
    });
    at("completion").replaceChildren(...shown, ...note(group));
    at("fold").hidden = !nodes.some(isShared);
    at("fold").textContent = nodes.some((n) => isFolded(n, all)) ? "Unfold shared" : "Fold shared";
  }

  function heading(group, completion) {
    const place = group.order.indexOf(completion);
    const scored = group.rewards[completion] !== null;
    const told = scored ? `reward ${Show.number(group.rewards[completion])}, advantage ${Show.signed(group.advantages[completion])}` : "unscored: no reward function could score it";
    at("reader-title").textContent = `Completion ${completion} (${place + 1} of ${group.order.length}): ${told}, ${Show.plural(group.lengths[completion], "token")}`;
  }

  function note(group) {
    if (group.texts_exact) return [];
    const why = group.nodes.text.some((text) => text) ? "Steps are placed in the text by its common characters, so their ends may be off by part of a token; name the policy's tokenizer with --tokenizer for exact ones." : "The file holds token ids only; name the policy's tokenizer with --tokenizer to read them.";
    return [Show.make("p", "note", why)];
  }

  /** The matches between two places, as places after the first. */
  function clip(marks, from, to) {
    return marks.filter((mark) => mark.from < to && mark.to > from).map((mark) => ({ ...mark, first: Math.max(mark.from, from) - from, last: Math.min(mark.to, to) - from }));
  }

  function colour(element, n) {
    const push = Figure.pushes(state.group, state.credit)[n];
    const rgb = Colour.diverging(Colour.position(push, Figure.extreme(state.group)));
    element.style.setProperty("--push", Colour.css(rgb));
    element.style.setProperty("--on-push", Colour.ink(rgb));
    element.classList.toggle("selected", n === state.node);
    element.dataset.step = n;
    element.addEventListener("pointerenter", () => on.point(n, element));
    element.addEventListener("pointerleave", on.leave);
    return element;
  }

  /** A step in full: a short one runs on in the line, a long one is a passage with its push at the edge. */
  function step(n, marks) {
    const text = state.group.nodes.text[n];
    const cut = text.length > MOST && !whole.has(n);
    const part = write(Show.make("bdi", "part step"), cut ? Show.cut(text, MOST) : text, marks);
    part.addEventListener("click", () => String(getSelection()) || on.select(n, state.completion));
    if (text.length <= LONG) return colour(part, n);
    const passage = colour(Show.make("div", "passage"), n);
    passage.append(isShared(n) ? toggle(n, "passage-head", `▾ ${sharedBy(n)}`) : Show.make("span", "passage-head", sharedBy(n)), part);
    if (cut) passage.append(unfold(text.length, () => (whole.add(n), show())));
    return passage;
  }

  function sharedBy(n) {
    const { size, start, end } = state.group.nodes;
    const tokens = Show.plural(end[n] - start[n], "token");
    return size[n] === 1 ? `its own ${tokens}` : `shared by ${size[n]} of ${state.group.rewards.length}, ${tokens}`;
  }

  /** A folded step in one line: who shares it, how it begins and how it ends. */
  function folded(n, marks, from) {
    const text = state.group.nodes.text[n];
    const line = (part) => Show.visible(part.replace(/\s+/g, " "));
    const row = colour(toggle(n, "folded", `▸ ${state.group.nodes.size[n]}×`), n);
    row.setAttribute("aria-label", `Unfold: ${sharedBy(n)}`);
    row.append(Show.make("bdi", "folded-text", line(Show.cut(text, 160))));
    if (text.length > 160) row.append(Show.make("bdi", "folded-end", line(text.slice(-28))));
    const inside = marks.filter((mark) => mark.from >= from && mark.from < from + text.length).length;
    if (inside) row.append(Show.make("mark", "", `${inside} found`));
    return row;
  }

  function toggle(n, className, text) {
    const button = Show.make("button", className);
    button.append(Show.make("span", "fold-mark", text));
    button.type = "button";
    button.dataset.step = n;
    button.setAttribute("aria-expanded", String(className !== "folded"));
    button.addEventListener("click", () => {
      own.set(n, !isFolded(n, foldsAll(path(state.group, state.completion))));
      on.leave();
      show();
      at("completion").querySelector(`button[data-step="${n}"], [data-step="${n}"] button`)?.focus({ preventScroll: true });
    });
    return button;
  }

  /** Fold all shared steps or, if some are folded, unfold them. */
  function toggleAll() {
    const nodes = path(state.group, state.completion);
    const all = foldsAll(nodes);
    folds = !nodes.some((n) => isFolded(n, all));
    own = new Map();
    show();
    into(state.node);
  }

  /** Text with its markers set apart and its matches marked; every character stays. */
  function write(element, text, marks) {
    let from = 0;
    for (const found of text.matchAll(MARKS)) {
      marked(element, text, from, found.index, marks);
      const kind = found[0].startsWith("`") ? "fence" : found[0].startsWith("\\") ? "boxed" : "marker";
      if (TURN.test(found[0])) element.append(Show.make("span", "turn"));
      from = found.index + found[0].length;
      marked(element.appendChild(Show.make("span", kind)), text, found.index, from, marks);
    }
    marked(element, text, from, text.length, marks);
    return element;
  }

  function marked(element, text, from, to, marks) {
    let done = from;
    for (const mark of marks) {
      if (mark.first >= to || mark.last <= done) continue;
      const first = Math.max(mark.first, done);
      const last = Math.min(mark.last, to);
      Show.append(element, text.slice(done, first));
      const made = Show.append(Show.make("mark", mark.current ? "current" : ""), text.slice(first, last));
      element.append(made);
      done = last;
    }
    Show.append(element, text.slice(done, to));
  }

  /** Bring a step into sight, unfolded. */
  function open(n) {
    if (isFolded(n, foldsAll(path(state.group, state.completion)))) own.set(n, false);
    show();
    into(n);
  }

  function into(n) {
    centre(at("completion").querySelector(`[data-step="${n}"]`), 0);
  }

  /** Unfold what a match lies in, and bring the match into sight. */
  function reveal(match) {
    let from = 0;
    for (const n of path(state.group, state.completion)) {
      const to = from + state.group.nodes.text[n].length;
      if (from < match.to && to > match.from) {
        own.set(n, false);
        if (match.to - from > MOST) whole.add(n);
      }
      from = to;
    }
    show();
    centre(at("completion").querySelector("mark.current"), 0.4);
    at("completion").scrollIntoView({ block: "nearest" });
  }

  /** Scroll the text, not the page, until an element is in sight: at this share of its height. */
  function centre(element, share) {
    if (!element) return;
    const [box, host] = [element.getBoundingClientRect(), at("completion").getBoundingClientRect()];
    if (box.top >= host.top && Math.min(box.bottom, box.top + 60) <= host.top + 0.75 * host.height) return;
    at("completion").scrollTop += box.top - host.top - share * host.height - 8;
  }

  return { start, pick, show, open, reveal, path, toggleAll };
})();
